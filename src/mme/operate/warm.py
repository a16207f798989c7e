"""Models loaded before they are needed: on every instance of a variant, as far as that can be known.

Nothing in SageMaker addresses one instance. A request goes to an instance that SageMaker chooses, so requests are
repeated until every instance has been reached with a stated probability. If each request went to any of n instances
alike, all of them are reached by k requests with a probability of at least 1 - n (1 - 1/n)^k (the union bound on the
coupon collector's problem). SageMaker prefers instances that have the model loaded, so this probability is no
guarantee; requests are sent at the same time, since under load SageMaker takes other instances too. Where our container
serves, its log shows which instances have answered and what was unloaded since, and further requests are sent until the
log shows all instances.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import ClientError

from mme import jobs, releases
from mme.archive.handler import SAMPLE
from mme.aws import code_of, explained
from mme.errors import EndpointError
from mme.operate import archives
from mme.operate import logs as endpoint_logs
from mme.operate.lines import Line
from mme.packaging import samples

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_sagemaker_runtime import SageMakerRuntimeClient

CONFIDENCE = 0.999
AT_ONCE = 4  # models that are warmed together
PATIENCE_S = 360.0  # as long as SageMaker goes on loading a model
LOG_S = 20.0  # until CloudWatch shows a line
ROUNDS = 4  # of requests, while the log says that an instance is missing
JSON = "application/json"

State = Literal["warm", "perhaps", "unloaded", "refused", "failed"]


@dataclass(frozen=True)
class Ask:
    """The request for a target model: its body, its type, and where it comes from, in words."""

    target: str
    body: bytes
    content_type: str = JSON
    source: str = ""


@dataclass(frozen=True)
class Warmed:
    """What became of a target on a variant.

    ``state`` is "warm" (all instances have it, by the log), "perhaps" (it answered; that all instances have it is a
    matter of chance, or the log did not show all of them), "unloaded" (an instance has unloaded it since: not
    everything fits), "refused" (it is loaded and refused the request; it was asked once) or "failed". ``reached``:
    instances that have it by the log; None where the log does not say. ``first``: seconds that the first request took.
    """

    target: str
    variant: str
    state: State
    instances: int
    requests: int
    reached: int | None
    first: float | None
    message: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "variant": self.variant,
            "state": self.state,
            "instances": self.instances,
            "reached": self.reached,
            "requests": self.requests,
            "first_seconds": self.first,
            "message": self.message or None,
        }


def requests_for(instances: int, confidence: float = CONFIDENCE) -> int:
    """How many requests reach all instances with at least this probability, each going to any of them alike."""
    if instances <= 1:
        return 1
    return max(instances, math.ceil(math.log((1 - confidence) / instances) / math.log(1 - 1 / instances)))


# ---- what to ask --------------------------------------------------------------------------------------------------


def asks(s3: S3Client, store: releases.Store, targets: Sequence[str]) -> list[Ask]:
    """A harmless request for each target: the sample that its archive brings, else one for its task, else a short text.

    Raises ReleaseError where a target is not released.
    """
    sizes = {
        version.target: version.size for name in _models(targets) for version in releases.list_versions(s3, store, name)
    }
    for target in targets:
        if target not in sizes:
            parsed = releases.parse_target(target)
            raise releases.not_released(parsed[0] if parsed else target, [])
    seen = archives.look(s3, store.bucket, {target: (store.key(target), sizes[target]) for target in targets})
    return [_ask(item) for item in seen]


def _models(targets: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(parsed[0] for target in targets if (parsed := releases.parse_target(target))))


def _ask(seen: archives.Seen) -> Ask:
    sample = seen.code.get(f"code/{SAMPLE}")
    if sample:
        return Ask(seen.target, sample, source="the sample in its archive")
    task = (seen.manifest or {}).get("task")
    if isinstance(task, str):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text("{}")
            return Ask(seen.target, samples.for_task(task, Path(folder)), source=f"a request for {task}")
    return Ask(seen.target, json.dumps({"inputs": "A short text."}).encode(), source="a short text")


# ---- asking -------------------------------------------------------------------------------------------------------


@dataclass
class _Tried:
    """The outcome of the requests for one target."""

    ask: Ask
    requests: int = 0
    first: float | None = None
    state: State = "perhaps"
    message: str = ""


@dataclass
class Loads:
    """What the log says: the instances that have a target loaded, and those that have unloaded it again."""

    loaded: dict[str, set[str]] = field(default_factory=dict)
    unloaded: dict[str, set[str]] = field(default_factory=dict)


def warm(
    runtime: SageMakerRuntimeClient,
    logs: Any | None,
    endpoint: str,
    variant: str,
    instances: int,
    wanted: Sequence[Ask],
    *,
    confidence: float = CONFIDENCE,
    log_seconds: float = LOG_S,
    progress: Callable[[str], object] = lambda target: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[Warmed]:
    """Load each target on the variant's ``instances``; what became of it, in the order of ``wanted``.

    A few models at a time, and each model's first request alone, so that what serves meanwhile keeps most of the
    machine. Without ``logs``, the log is not read. Raises EndpointError where the endpoint cannot be asked at all.
    """
    began = datetime.now(timezone.utc) - timedelta(seconds=2)
    tried = [_Tried(ask) for ask in wanted]
    count = requests_for(instances, confidence)
    stop = threading.Event()

    def work(item: _Tried) -> None:
        _first(runtime, endpoint, variant, item, sleep, clock, stop)
        if item.state == "perhaps":
            _repeat(runtime, endpoint, variant, item, count - item.requests, instances)
        progress(item.ask.target)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            list(pool.map(work, tried))
        except BaseException:
            stop.set()  # the others are not waited for until their models have loaded
            raise
    loads = None
    for round in range(ROUNDS):
        loads = _read_log(logs, endpoint, variant, instances, tried, began, log_seconds, sleep, clock)
        lacking = [item for item in _lacking(loads, tried, instances) if item.state == "perhaps"]
        if not lacking or round == ROUNDS - 1:
            break
        for item in lacking:
            _repeat(runtime, endpoint, variant, item, count, instances)
    return [_warmed(item, variant, instances, loads) for item in tried]


def _first(
    runtime: SageMakerRuntimeClient,
    endpoint: str,
    variant: str,
    item: _Tried,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
    stop: threading.Event,
) -> None:
    """Ask until the model has answered; SageMaker says for some minutes that it is still loading."""
    start, pause = clock(), 1.0
    while True:
        jobs.check(stop)
        item.requests += 1
        problem = _invoke(runtime, endpoint, variant, item.ask)
        item.first = clock() - start
        if problem is None:
            return
        code = code_of(problem)
        if (
            code in ("ModelNotReadyException", "ThrottlingException", "ServiceUnavailable")
            and item.first + pause < PATIENCE_S
        ):
            sleep(pause)
            pause = min(2 * pause, 10.0)
            continue
        item.message = str(
            problem.response.get("OriginalMessage") or problem.response.get("Error", {}).get("Message") or code
        )
        status = problem.response.get("OriginalStatusCode")
        refused = code == "ModelError" and isinstance(status, int) and 400 <= status < 500
        item.state = "refused" if refused else "failed"
        return


def _repeat(
    runtime: SageMakerRuntimeClient, endpoint: str, variant: str, item: _Tried, count: int, instances: int
) -> None:
    """Ask so many times more, some at the same time, so that SageMaker takes other instances too."""
    if count <= 0:
        return
    with ThreadPoolExecutor(max(2, min(2 * instances, 16))) as pool:
        problems = list(pool.map(lambda _: _invoke(runtime, endpoint, variant, item.ask), range(count)))
    item.requests += count
    failed = [problem for problem in problems if problem is not None and code_of(problem) == "ModelError"]
    if failed:
        item.message = str(failed[0].response.get("OriginalMessage") or failed[0])
        item.state = "failed"


def _invoke(runtime: SageMakerRuntimeClient, endpoint: str, variant: str, ask: Ask) -> ClientError | None:
    """One request; the error that SageMaker answered, or None. Raises EndpointError for what concerns every request."""
    with explained(f"warm {ask.target} on endpoint {endpoint}", error=EndpointError):
        try:
            answer = runtime.invoke_endpoint(
                EndpointName=endpoint,
                TargetModel=ask.target,
                TargetVariant=variant,
                Body=ask.body,
                ContentType=ask.content_type,
                Accept="*/*",
            )
            answer["Body"].read()
        except ClientError as problem:
            known = (
                "ModelError",
                "ModelNotReadyException",
                "ThrottlingException",
                "ServiceUnavailable",
                "InternalFailure",
            )
            if code_of(problem) in known or "TargetModel" in str(problem) or "model data" in str(problem):
                return problem
            raise
    return None


# ---- what the log says --------------------------------------------------------------------------------------------


def _read_log(
    logs: Any | None,
    endpoint: str,
    variant: str,
    instances: int,
    tried: Sequence[_Tried],
    since: datetime,
    seconds: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> Loads | None:
    """What the log says once it shows all that was asked, or after ``seconds``; None where it names no target."""
    if logs is None or not any(item.state == "perhaps" for item in tried):
        return None
    deadline = clock() + seconds
    while True:
        try:
            lines = [line for line in endpoint_logs.read(logs, endpoint, since) if line.variant == variant]
        except EndpointError:
            return None
        loads, shown = loads_after(lines), {line.target for line in lines}
        waiting = [item for item in tried if item.state == "perhaps" and item.ask.target not in shown]
        if not waiting and not _lacking(loads, tried, instances):
            return loads
        if clock() >= deadline or (not waiting and _shows_all(lines, tried)):
            return loads if any(line.target for line in lines) else None
        sleep(0.5)


def _shows_all(lines: Sequence[Line], tried: Sequence[_Tried]) -> bool:
    """Whether the log has as many requests for each target as were sent."""
    counts: dict[str, int] = {}
    for line in lines:
        if line.event == "invoke" and line.target:
            counts[line.target] = counts.get(line.target, 0) + 1
    return all(counts.get(item.ask.target, 0) >= item.requests for item in tried if item.state == "perhaps")


def loads_after(lines: Iterable[Line]) -> Loads:
    """Which instances have which target loaded after these lines of our container, and which have unloaded it."""
    loads = Loads()
    names: dict[tuple[str, str], str] = {}
    for line in sorted(lines, key=lambda line: line.time):
        if line.model and line.target:
            names[line.stream, line.model] = line.target
        target = line.target or names.get((line.stream, line.model or ""))
        if not target:
            continue
        if line.event in ("invoke", "load") and not (line.event == "invoke" and (line.status or 0) == 404):
            loads.loaded.setdefault(target, set()).add(line.stream)
            loads.unloaded.get(target, set()).discard(line.stream)
        elif line.event == "unload":
            loads.loaded.get(target, set()).discard(line.stream)
            loads.unloaded.setdefault(target, set()).add(line.stream)
    return loads


def _lacking(loads: Loads | None, tried: Sequence[_Tried], instances: int) -> list[_Tried]:
    """Those that the log does not show on all instances, and that no instance has unloaded."""
    if loads is None:
        return []
    return [
        item
        for item in tried
        if len(loads.loaded.get(item.ask.target, ())) < instances and not loads.unloaded.get(item.ask.target)
    ]


def _warmed(item: _Tried, variant: str, instances: int, loads: Loads | None) -> Warmed:
    target = item.ask.target
    made = Warmed(target, variant, item.state, instances, item.requests, None, item.first, item.message)
    if loads is None or item.state != "perhaps":
        return made
    reached, gone = len(loads.loaded.get(target, ())), loads.unloaded.get(target)
    if gone:
        words = f"unloaded again on {len(gone)} of {instances} instances: not everything fits"
        return replace(made, state="unloaded", reached=reached, message=words)
    return replace(made, state="warm" if reached >= instances else "perhaps", reached=reached)


def summary(results: Sequence[Warmed], confidence: float) -> str:
    """What is known and what is probable, in words."""
    states: Mapping[str, int] = {state: sum(item.state == state for item in results) for state in ("warm", "perhaps")}
    parts = [f"{states['warm']} of {len(results)} are on every instance: the log says so"] if states["warm"] else []
    if states["perhaps"]:
        sure = f"{100 * confidence:g} %"
        parts.append(
            f"{states['perhaps']} answered; that every instance was reached is {sure} probable if SageMaker chooses "
            "instances alike, and not known"
        )
    others = len(results) - sum(states.values())
    if others:
        parts.append(f"{others} did not stay or did not come")
    return "; ".join(parts) + "."
