"""Asking a model on the endpoint."""

from __future__ import annotations

import contextlib
import json as jsonlib
import math
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invoke import Context

from mme import aws, console
from mme import releases as versions
from mme.client import Endpoint, Model
from mme.client import endpoint as endpoints
from mme.client.errors import TargetNotFound
from mme.errors import EndpointError, MmeError, UsageError, nearest
from mme.settings import Settings
from mme.tasks.command import JSON_HELP, command, json_text, note, print_json, whole_number

MOST_AT_ONCE = 64


@command(
    {
        "model": "the model, or one of its channels as in bert@staging",
        "target": "or an exact version, as the target model",
        "text": "the input",
        "file": "a file with the input: .json, .npy, or text; - is standard input",
        "parameters": "a JSON object that goes with the text, as in '{\"max_new_tokens\": 20}'",
        "accept": "the type of answer to ask for: application/json or application/x-npy",
        "content-type": "the type of the input, where it is not clear from the file's name",
        "key": "the same key always gets the same version of a channel (a user's or session's id)",
        "save": "write the answer as it came to this file",
        "repeat": "the number of requests; prints how long they took instead of the answer",
        "concurrency": "with --repeat, so many requests at a time (up to 64); the first goes alone",
        "json": JSON_HELP,
    },
    where=("bucket", "prefix", "endpoint", "region", "terraform"),
)
def predict(
    context: Context,
    settings: Settings,
    model: str | None = None,
    target: str | None = None,
    text: str | None = None,
    file: str | None = None,
    parameters: str | None = None,
    accept: str = endpoints.JSON,
    content_type: str | None = None,
    key: str | None = None,
    save: str | None = None,
    repeat: str | None = None,
    concurrency: str = "1",
    json: bool = False,
) -> None:
    """Ask a model on the endpoint and print the answer as JSON.

    --model asks the version that its channel means (by weight, when there are several), or the newest one when it has
    no channel. The input is --text, --file, or standard input: text is sent as {"inputs": TEXT}, JSON as
    it is. --json prints the answer with who gave it and how long it took. --repeat is for a quick look at the latency
    that a client here sees; for a load that says something of the endpoint, use `invoke capacity measure`.
    """
    if bool(model) == bool(target):
        raise UsageError("Give either --model or --target.", "As in: invoke predict --model bert --text hello.")
    times = whole_number("--repeat", repeat, 1) if repeat is not None else None
    at_once = whole_number("--concurrency", concurrency, 1)
    if at_once > 1 and times is None:
        raise UsageError("--concurrency goes with --repeat.", "As in: --repeat 200 --concurrency 8.")
    if at_once > MOST_AT_ONCE:
        raise UsageError(f"--concurrency is {MOST_AT_ONCE} at most.")
    if times is not None and save:
        raise UsageError("--save is for one answer, not for --repeat.")
    body, kind = _input(text, file, parameters, content_type)
    name = settings.endpoint
    bucket, prefix = (settings.bucket, settings.prefix) if settings.knows_bucket else (None, None)
    with Endpoint(name, bucket=bucket, prefix=prefix, region=settings.region) as endpoint:
        asked = endpoint.model(model) if model else endpoint.target(str(target))
        request = _Request(asked, body, kind, accept, key)
        try:
            if times is not None:
                _measured(request, times, at_once, json)
                return
            answer = request()
        except TargetNotFound as error:
            raise _with_nearest(error, settings, str(target)) if target else error from error
    if save:
        try:
            Path(save).write_bytes(answer.body)
        except OSError as error:
            raise UsageError(f"Cannot write {save}: {error.strerror}.") from error
    if json:
        said = {"saved": save} if save else {"answer": endpoints.decode(answer)}
        print_json(
            {
                **said,
                "target": answer.target,
                "variant": answer.variant,
                "content_type": answer.content_type,
                "ms": round(1000 * answer.seconds, 1),
                "tries": answer.tries,
            }
        )
    elif not save:
        print(json_text(endpoints.decode(answer)))
    if sys.stderr.isatty():
        note(f"{answer.target} answered {console.size(len(answer.body))} in {answer.seconds * 1000:.0f} ms.")


def _with_nearest(error: TargetNotFound, settings: Settings, target: str) -> MmeError:
    """The error with the released versions whose names are near, where they can be listed."""
    if not settings.knows_bucket:
        return error
    store = versions.Store(settings.bucket, settings.prefix)
    try:
        listed = versions.list_versions(aws.s3_client(settings.region), store)
    except MmeError:
        return error
    there = [version.target for version in listed]
    if target in there:
        return error
    hint = nearest(target, there, "Released are", at_most=5)
    return TargetNotFound(f"{store.uri(target)} is not released.", f"{hint} See all: invoke releases.")


@dataclass(frozen=True)
class _Request:
    """The request that the command line describes; called, it is made."""

    model: Model
    body: bytes
    content_type: str
    accept: str
    key: str | None

    def __call__(self) -> endpoints.Answer:
        return self.model.ask(
            self.body, content_type=self.content_type, accept=self.accept, key=self.key, waiting=self._tell
        )

    def _tell(self) -> None:
        if sys.stderr.isatty():
            note(f"{self.model.name} does not answer yet; asking again ...")


# ---- latency ------------------------------------------------------------------------------------------------------


@dataclass
class _Times:
    """How long requests to one version took, in milliseconds: the first, and the others."""

    first: float
    others: list[float] = field(default_factory=list)


def _measured(request: _Request, times: int, at_once: int, json: bool) -> None:
    """Ask ``times`` times, and print how long it took by version. Raises EndpointError when requests failed."""
    by_target: dict[str, _Times] = {}
    failures: list[MmeError] = []
    lock = threading.Lock()

    def one() -> None:
        start = time.perf_counter()
        try:
            target = request().target
        except MmeError as error:
            with lock:
                failures.append(error)
            return
        took = 1000 * (time.perf_counter() - start)
        with lock:
            known = by_target.get(target)
            if known is None:
                by_target[target] = _Times(took)
            else:
                known.others.append(took)

    one()  # alone, so that the others find the model loaded
    if failures:
        raise failures[0]
    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(lambda _: one(), range(times - 1)):
            pass
    seconds = time.perf_counter() - start
    rate = round((times - 1 - len(failures)) / seconds, 1) if times > 1 else None
    rows = [
        {
            "target": target,
            "requests": 1 + len(took.others),
            **{f"p{percent}_ms": _percentile(took.others, percent) for percent in (50, 95, 99)},
            "cold_ms": round(took.first, 1),
        }
        for target, took in sorted(by_target.items())
    ]
    if json:
        print_json({"versions": rows, "failed": len(failures), "concurrency": at_once, "per_second": rate})
    else:
        head = ["target", "requests", "p50 ms", "p95 ms", "p99 ms", "cold ms"]
        print(console.table(head, [["-" if value is None else str(value) for value in row.values()] for row in rows]))
        if rate is not None:
            print(f"{rate:g} answers per second, {at_once} at a time.")
    if failures:
        raise EndpointError(
            f"{len(failures)} of {times} requests failed. The first: {failures[0].message}", failures[0].hint
        )


def _percentile(took: Sequence[float], percent: int) -> float | None:
    """The nearest-rank percentile, rounded to a tenth; None of nothing."""
    if not took:
        return None
    return round(sorted(took)[math.ceil(percent / 100 * len(took)) - 1], 1)


# ---- the input ----------------------------------------------------------------------------------------------------


def _input(text: str | None, file: str | None, parameters: str | None, content_type: str | None) -> tuple[bytes, str]:
    """The body to send and its type."""
    if text is not None and file:
        raise UsageError("Give either --text or --file.")
    if text is None:
        data, kind = _read_input(file)
        if content_type or kind:
            if parameters:
                raise UsageError("--parameters goes with text alone.", "Put the parameters into the JSON.")
            return data, content_type or kind
        try:
            text = data.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError("The input is not text in UTF-8.", "Say what it is with --content-type.") from error
    if content_type and content_type != endpoints.JSON:
        return text.encode(), content_type
    return jsonlib.dumps({"inputs": text, **_parameters(parameters)}).encode(), endpoints.JSON


def _read_input(file: str | None) -> tuple[bytes, str]:
    """What is in the file or on standard input, and its type; no type for text."""
    if not file or file == "-":
        if sys.stdin is None or (sys.stdin.isatty() and not file):
            raise UsageError("There is no input.", "Give --text or --file, or pipe it in.")
        data = sys.stdin.buffer.read()
        if not data:
            raise UsageError("Standard input is empty.", "Give --text or --file, or pipe the input in.")
        suffix = ""
    else:
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"Cannot read {file}: {error.strerror}.") from error
        suffix = Path(file).suffix.lower()
    if suffix in (".json", ".npy"):
        return data, endpoints.JSON if suffix == ".json" else endpoints.NPY
    if suffix != ".txt" and data.lstrip()[:1] in (b"{", b"["):
        with contextlib.suppress(ValueError):  # "[CLS] is a word" is text
            jsonlib.loads(data)
            return data, endpoints.JSON
    return data, ""


def _parameters(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        parsed = jsonlib.loads(text)
    except ValueError as error:
        raise UsageError(f"--parameters is not JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise UsageError("--parameters is not a JSON object.", "As in: --parameters '{\"max_new_tokens\": 20}'.")
    return {"parameters": parsed}
