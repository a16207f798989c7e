"""The task warm: loads models before they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from invoke import Context

from mme import aws, channels, releases
from mme.errors import EndpointError, UsageError, nearest
from mme.operate import facts as endpoint_facts
from mme.operate import usage as endpoint_usage
from mme.operate import warm as endpoint_warm
from mme.settings import Settings
from mme.tasks import screen
from mme.tasks.command import DRY_RUN_HELP, JSON_HELP, command, note, print_json, whole_number
from mme.tasks.operate import ALL, hours_of, store_of


@command(
    {
        "model": "a model or channel, repeatable: every version that the name means now",
        "target": "a target model, repeatable",
        "kept": "the versions of the channels that invoke promote --keep-warm marked",
        "most-used": "this many of the models used most in the last --hours, by the container's log",
        "hours": "with --most-used: of how many hours",
        "variant": "on this variant, repeatable, also one without traffic; left out, on all that serve",
        "confidence": "the probability of reaching every instance, in percent",
        "log-seconds": "how long to wait for the log to say which instances were reached; 0 does not read it",
        "file": "with one model: the request to send, instead of the sample in its archive; .json or .npy",
        "dry-run": DRY_RUN_HELP,
        "json": JSON_HELP,
    },
    where=ALL,
    repeatable=("model", "target", "variant"),
)
def warm(
    context: Context,
    settings: Settings,
    model: Sequence[str] = (),
    target: Sequence[str] = (),
    kept: bool = False,
    most_used: str | None = None,
    hours: str = "24",
    variant: Sequence[str] = (),
    confidence: str = "99.9",
    log_seconds: str = str(int(endpoint_warm.LOG_S)),
    file: str | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Load models on every instance before they are needed; say which are, and what did not fit.

    Asks each model the sample that is in its archive, as often as it takes to reach every instance with --confidence:
    SageMaker chooses the instance. With our container, its log says which were reached, and more is asked until all
    are. Exit code 9 when a model cannot be loaded or was unloaded again to make room.
    """
    window, wait = hours_of("--hours", hours), whole_number("--log-seconds", log_seconds)
    sure = _percent("--confidence", confidence)
    count = whole_number("--most-used", most_used, 1) if most_used is not None else 0
    if not (model or target or kept or count):
        raise UsageError("Which models?", "Give --model, --target, --kept or --most-used, as in --most-used 20.")
    name = settings.endpoint
    facts = endpoint_facts.read(aws.sagemaker_client(settings.region), name)
    variants = _variants_of(facts, variant)
    if facts.status in endpoint_facts.SILENT and not dry_run:
        raise EndpointError(
            f"Endpoint {name} is {facts.status} and answers nobody{f': {facts.failure}' if facts.failure else ''}.",
            endpoint_facts.SILENT[facts.status].format(name=name),
        )
    store = store_of(settings, facts)
    s3 = aws.s3_client(settings.region)
    log = aws.client("logs", settings.region)
    splits = [channels.current_split(s3, store, named)[0] for named in model]
    if kept:
        splits += [channel.split for channel in channels.read_all(s3, store) if channel.keep_warm]
    wanted = [*target, *(item for split in splits for item, weight in split.items() if weight > 0)]
    if count:
        there = {version.target for version in releases.list_versions(s3, store)}
        seen = endpoint_usage.read(log, name, datetime.now(timezone.utc), window, parts=16)
        wanted += endpoint_usage.most_used(seen.models, count, there.__contains__)
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        where = (
            "No channel is kept warm" if kept and not count else f"The log of the last {window:g} hours names no model"
        )
        note(f"There is nothing to warm. {where}.")
        if json:
            print_json({"endpoint": name, "models": []})
        return
    asks = endpoint_warm.asks(s3, store, wanted)
    if file:
        asks = [_own_request(asks, file)]
    if dry_run:
        would = _would_ask(variants, asks, sure)
        if json:
            print_json({"endpoint": name, "confidence": sure, "dry_run": True, "models": would})
        return
    results: list[endpoint_warm.Warmed] = []
    runtime = aws.runtime_client(settings.region)
    for each in variants:
        results += endpoint_warm.warm(
            runtime,
            log if wait else None,
            name,
            each.name,
            each.current or 1,
            asks,
            confidence=sure,
            log_seconds=float(wait),
            progress=lambda done: note(f"{done} has answered") if sys.stderr.isatty() else None,
        )
    if json:
        print_json({"endpoint": name, "confidence": sure, "models": [item.as_json() for item in results]})
    else:
        print(screen.warmed(results, sure))
    note(endpoint_warm.summary(results, sure))
    lost = [item for item in results if item.state in ("failed", "unloaded")]
    if lost:
        raise EndpointError(
            f"{len(lost)} of {len(results)} are not warm: the first is {lost[0].target} on {lost[0].variant}: "
            f"{lost[0].message or lost[0].state}.",
            f"See the log: invoke logs --endpoint {name} --errors --since 10m. What does not fit needs larger or more "
            "instances (invoke capacity plan), or fewer models.",
        )


def _would_ask(
    variants: Sequence[endpoint_facts.Variant], asks: Sequence[endpoint_warm.Ask], sure: float
) -> list[dict[str, object]]:
    """What a dry run shows: the requests for each model on each variant, also as plain JSON values."""
    would: list[dict[str, object]] = []
    for each in variants:
        instances = each.current or 1
        times = endpoint_warm.requests_for(instances, sure)
        on = f"{each.name} ({instances} instance{'' if instances == 1 else 's'})"
        for ask in asks:
            note(f"Would ask {ask.target} on {on} {'once' if times == 1 else f'{times} times'}: {ask.source}.")
            about = {"target": ask.target, "variant": each.name, "instances": instances}
            would.append({**about, "requests": times, "sample": ask.source})
    return would


def _percent(flag: str, text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = 0.0
    if not 0 < value <= 0.999999:
        raise UsageError(f"{flag} takes a percentage below 100, not {text!r}.", "As in 99.9.")
    return value


def _variants_of(facts: endpoint_facts.Facts, wanted: Sequence[str]) -> list[endpoint_facts.Variant]:
    there = {item.name: item for item in facts.serving}
    for name in wanted:
        if name not in there:
            raise UsageError(f"Endpoint {facts.name} has no variant {name}.", nearest(name, there, "It has"))
    return [there[name] for name in dict.fromkeys(wanted)] or list(there.values())


def _own_request(asks: Sequence[endpoint_warm.Ask], file: str) -> endpoint_warm.Ask:
    if len(asks) != 1:
        raise UsageError(f"--file is a request for one model, and there are {len(asks)}.", "Warm them one by one.")
    kinds = {".json": "application/json", ".npy": "application/x-npy"}
    kind = kinds.get(Path(file).suffix.lower())
    if kind is None:
        raise UsageError(f"{file} is neither .json nor .npy.", "Give a request of one of these types.")
    try:
        return endpoint_warm.Ask(asks[0].target, Path(file).read_bytes(), kind, file)
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror}.") from error
