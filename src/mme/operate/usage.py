"""Which models are used most: from the lines that our container writes of each request.

No metric of SageMaker's is per model. The container's access log names the target model of each request, so it is read
here; of a long log, samples that are spread evenly over the time. The stock container's log names no target model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from mme.aws import code_of, explained
from mme.errors import EndpointError
from mme.operate.lines import Line, parse
from mme.operate.logs import group_of

PATTERN = '{ $.event = "invoke" }'
AT_ONCE = 4  # CloudWatch Logs takes five FilterLogEvents a second
PAGES = 4  # of one part; a page may be empty although more follow


@dataclass(frozen=True)
class Use:
    """How one target model was used. ``requests`` is an estimate where the log was sampled.

    ``cold``: those that came first after a load, ``failed``: those answered with 400 or more. Times are milliseconds
    in the container.
    """

    target: str
    requests: int
    cold: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Usage:
    """The most used first. ``read`` lines were read of the log between ``since`` and ``until``; ``sampled``: not all
    there were."""

    models: tuple[Use, ...]
    since: datetime
    until: datetime
    read: int
    sampled: bool

    @property
    def source(self) -> str:
        """Where the figures come from, in words."""
        what = f"estimated from {self.read:,} requests sampled in" if self.sampled else f"all {self.read:,} requests in"
        return f"{what} the container's log"


@dataclass
class _Count:
    requests: float = 0.0
    cold: float = 0.0
    failed: float = 0.0
    times: list[float] = field(default_factory=list)


def read(logs: Any, endpoint: str, end: datetime, hours: float, parts: int = AT_ONCE) -> Usage:
    """How each model was used in the last ``hours``. At most ``parts`` times PAGES calls. Raises EndpointError.

    The time is cut into ``parts``, and the beginning of each is read: one page of the log, up to a megabyte of it.
    What was read counts for the whole part.
    """
    since = end - timedelta(hours=hours)
    step = (end - since) / parts
    starts = [since + step * at for at in range(parts)]
    with (
        explained(f"read the log group {group_of(endpoint)}", error=EndpointError),
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        pieces = list(pool.map(lambda start: _part(logs, endpoint, start, start + step), starts))
    counts: dict[str, _Count] = {}
    for lines, factor in pieces:
        for line in lines:
            _add(counts, line, factor)
    models = sorted(
        (_use(target, count) for target, count in counts.items()), key=lambda use: (-use.requests, use.target)
    )
    return Usage(tuple(models), since, end, sum(len(lines) for lines, _ in pieces), any(f > 1 for _, f in pieces))


def _part(logs: Any, endpoint: str, start: datetime, end: datetime) -> tuple[Sequence[Line], float]:
    """The requests that were read of this time, and for how many each stands."""
    first, last = round(start.timestamp() * 1000), round(end.timestamp() * 1000) - 1
    asked: dict[str, Any] = {
        "logGroupName": group_of(endpoint),
        "startTime": first,
        "endTime": last,
        "filterPattern": PATTERN,
        "interleaved": True,
    }
    lines: list[Line] = []
    for _ in range(PAGES):
        try:
            page = logs.filter_log_events(**asked)
        except ClientError as error:
            if code_of(error) == "ResourceNotFoundException":
                return [], 1.0
            raise
        lines += [
            line
            for event in page["events"]
            if (line := parse(event["logStreamName"], event["timestamp"], event["message"])).event == "invoke"
            and line.target
        ]
        asked["nextToken"] = page.get("nextToken")
        if not asked["nextToken"]:
            return lines, 1.0
        if lines:
            break
    if not lines:
        return [], 1.0
    seen = lines[-1].time.timestamp() * 1000 - first
    return lines, max(1.0, (last - first) / max(seen, 1.0))


def _add(counts: dict[str, _Count], line: Line, factor: float) -> None:
    count = counts.setdefault(str(line.target), _Count())
    count.requests += factor
    count.cold += factor * (line.fields.get("cold") is True)
    count.failed += factor * ((line.status or 0) >= 400)
    total = line.fields.get("total_ms")
    if isinstance(total, (int, float)):
        count.times.append(float(total))


def _use(target: str, count: _Count) -> Use:
    times = sorted(count.times)

    def quantile(share: float) -> float | None:
        return times[min(len(times) - 1, int(share * len(times)))] if times else None

    return Use(target, round(count.requests), round(count.cold), round(count.failed), quantile(0.5), quantile(0.99))


def most_used(models: Iterable[Use], count: int, released: Callable[[str], bool]) -> list[str]:
    """The ``count`` most used targets that are still released; the most used first."""
    return [use.target for use in models if released(use.target)][:count]
