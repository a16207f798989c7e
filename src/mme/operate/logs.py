"""The log of an endpoint's containers in CloudWatch Logs: read, followed, and narrowed to a model or to errors.

SageMaker writes what a container prints to the group ``/aws/sagemaker/Endpoints/NAME``, one stream for each instance,
called ``VARIANT/i-…``.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from botocore.exceptions import ClientError

from mme.aws import code_of, explained
from mme.errors import EndpointError
from mme.operate.lines import Line, Tracebacks, parse
from mme.releases import parse_target

Wanted = Callable[[str], bool]
"""Whether a target model is meant."""

EVERY_S = 1.0
LATE_S = 15  # CloudWatch may show a line some seconds after a later one
_REMEMBERED = 50_000  # events that following has shown already
_HELD = 2_000  # lines of models whose target is not known yet


def group_of(endpoint: str) -> str:
    """The log group of an endpoint."""
    return f"/aws/sagemaker/Endpoints/{endpoint}"


def read(logs: Any, endpoint: str, since: datetime, until: datetime | None = None) -> Iterator[Line]:
    """The lines since then, oldest first, page by page. Raises EndpointError; where there is no log, that it is so."""
    for event in _events(logs, endpoint, since, until):
        yield parse(event["logStreamName"], event["timestamp"], event["message"])


def follow(
    logs: Any,
    endpoint: str,
    since: datetime,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> Iterator[Line | None]:
    """The lines since then and those that come, for as long as the caller goes on; None each time it is up to date.

    A log that is not there yet is waited for: an endpoint writes its first line when its container starts. Raises
    EndpointError when the log is deleted.
    """
    shown: OrderedDict[str, None] = OrderedDict()
    start, there = since, False
    while True:
        asked = now()
        try:
            for event in _events(logs, endpoint, start, None):
                if event["eventId"] in shown:
                    continue
                shown[event["eventId"]] = None
                if len(shown) > _REMEMBERED:
                    shown.popitem(last=False)
                yield parse(event["logStreamName"], event["timestamp"], event["message"])
            there = True
            start = max(since, datetime.fromtimestamp(asked.timestamp() - LATE_S, timezone.utc))
        except NoLog as error:
            if there:
                raise EndpointError(f"The log of endpoint {endpoint} is gone: it was deleted.") from error
        yield None
        sleep(EVERY_S)


class NoLog(EndpointError):
    """There is no log group: nothing has been written, or there is no such endpoint."""


def _events(logs: Any, endpoint: str, since: datetime, until: datetime | None) -> Iterator[Any]:
    group = group_of(endpoint)
    asked: dict[str, Any] = {"logGroupName": group, "startTime": round(since.timestamp() * 1000), "interleaved": True}
    if until is not None:
        asked["endTime"] = round(until.timestamp() * 1000)
    with explained(f"read the log group {group}", error=EndpointError):
        try:
            for page in logs.get_paginator("filter_log_events").paginate(**asked):
                yield from page["events"]
        except ClientError as error:
            if code_of(error) == "ResourceNotFoundException":
                raise NoLog(
                    f"There is no log group {group}.",
                    f"The endpoint has written nothing yet, or it is not there: invoke status --endpoint {endpoint}.",
                ) from error
            raise


class Filter:
    """Lets lines through: of one model, of errors, of one variant.

    ``wanted`` says whether a target model is meant. A line that has only the platform's opaque name of a model waits
    until another line says which target that is, and comes then; ``rest`` gives what never got known, which belongs to
    nobody.
    """

    def __init__(self, wanted: Wanted | None = None, *, errors: bool = False, variant: str | None = None) -> None:
        self._wanted = wanted
        self._errors = errors
        self._variant = variant
        self._targets: dict[str, str] = {}
        self._held: deque[Line] = deque(maxlen=_HELD)
        self._tracebacks = Tracebacks()
        self.named = False
        """Whether any line has named a target model."""

    def __call__(self, line: Line) -> list[Line]:
        """The lines that are to be shown now that this one has come, oldest first."""
        broken = self._tracebacks.has(line)
        if broken and line.level != "error":
            line = replace(line, level="error")
        learned = self._learn(line)
        if (self._variant and line.variant != self._variant) or (self._errors and not (line.failed or broken)):
            shown = []
        else:
            shown = [line]
        if self._wanted is None:
            return [self._with_target(item) for item in shown]
        ready = []
        if learned:
            ready = [item for item in self._held if item.model == line.model]
            self._held = deque((item for item in self._held if item.model != line.model), maxlen=_HELD)
        for item in shown:
            if item.model and not item.target and item.model not in self._targets:
                self._held.append(item)
            else:
                ready.append(item)
        return [
            known for item in ready if (known := self._with_target(item)).target and self._wanted(str(known.target))
        ]

    def _learn(self, line: Line) -> bool:
        """Whether the line says for the first time which target a model is."""
        if not line.target:
            return False
        self.named = True
        if not line.model or self._targets.get(line.model) == line.target:
            return False
        self._targets[line.model] = line.target
        return True

    def _with_target(self, line: Line) -> Line:
        if line.target or not line.model or line.model not in self._targets:
            return line
        return replace(line, target=self._targets[line.model])


def of_model(name: str) -> Wanted:
    """Whether a target model is a version of the model ``name``, or is ``name`` itself."""

    def wanted(target: str) -> bool:
        parsed = parse_target(target)
        return target == name or (parsed is not None and parsed[0] == name)

    return wanted
