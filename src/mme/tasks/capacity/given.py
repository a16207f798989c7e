"""The inputs of a plan and a simulation: the models, the traffic, the assumptions, the prices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from invoke import Context

from mme import aws
from mme.capacity import instances, listing
from mme.capacity import live as metrics
from mme.capacity import trace as traces
from mme.capacity.compiled import COMPILED
from mme.capacity.fleets import GB, MOST_VOLUME
from mme.capacity.fleets import Settings as Assumed
from mme.capacity.needs import SERVINGS, Models
from mme.capacity.simulate import ROUTINGS, Requests
from mme.capacity.state import Floats
from mme.errors import EndpointError, UsageError
from mme.settings import Settings
from mme.tasks.capacity.asked import Asked, number, whole
from mme.tasks.command import load_catalog, note

SHORTEST = 1.0
"""Seconds that a trace must last to give a rate."""


def models_of(context: Context, asked: Asked, settings: Settings) -> Models:
    if asked.models and asked.catalog:
        raise UsageError("There is more than one source of the models.", "Give one of --models and --catalog.")
    if asked.models:
        rows = listing.read_csv(Path(asked.models))
    elif asked.catalog:
        rows = _built(Path(asked.dist), [spec.name for spec in load_catalog(context, asked.catalog).models])
    elif settings.knows_bucket:
        with aws.explained(f"list s3://{settings.bucket}/{settings.prefix}", bucket=settings.bucket):
            rows = listing.read_bucket(aws.s3_client(settings.region), settings.bucket, settings.prefix)
    else:
        raise UsageError("Which models?", "Give --models FILE.csv, --catalog models.toml or --bucket NAME.")
    measured = listing.read_needs(Path(asked.needs)) if asked.needs else None
    if measured is not None and measured.container != asked.container:
        raise UsageError(
            f"{asked.needs} was measured with the container {measured.container}; the plan is for {asked.container}.",
            f"Give --container {measured.container}, or measure with the other one.",
        )
    return listing.combine(rows, measured)


def _built(dist: Path, names: Sequence[str]) -> list[listing.Row]:
    """The newest archive of each model of a catalogue. Raises UsageError for a model without one."""
    archives = {row.name: row for row in listing.read_folder(dist)}
    rows = []
    for name in names:
        versions = [path for path in archives if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}\.tar\.gz", path)]
        if not versions:
            raise UsageError(
                f"There is no archive of {name} in {dist}.", "Build it with `invoke package`, or give --models."
            )
        rows.append(archives[max(versions, key=lambda path: (dist / path).stat().st_mtime_ns)])
    return rows


def traffic_of(
    asked: Asked, settings: Settings, models: Models, most: int | None
) -> tuple[Requests, Floats, str, tuple[float, float] | None]:
    """(requests, requests a second of each model, words, (peak, trough) requests a second where they are known)."""
    seed = whole("--seed", asked.seed, 0, 2**31)
    sources = [asked.trace, asked.access_log, asked.live or None, asked.zipf if not asked.live else None]
    if sum(source is not None for source in sources) != 1:
        raise UsageError(
            "Which traffic?" if not any(sources) else "There is more than one source of the traffic.",
            "Give one of --trace FILE, --access-log FILE, --live, or --zipf EXPONENT with --rate REQUESTS_A_SECOND.",
        )
    if asked.trace or asked.access_log:
        read = traces.read_csv if asked.trace else traces.read_access_log
        path = asked.trace or asked.access_log or ""
        requests = read(Path(path), models, gaps=asked.gaps)
        if most is not None and len(requests) and requests.seconds < SHORTEST:
            moment = "one moment" if requests.seconds == 0 else f"{requests.seconds:.3f} seconds"
            raise UsageError(
                f"{path}: all requests are of {moment}, so that nothing says how many come in a second.",
                "Give a longer recording, or a law: --zipf EXPONENT --rate REQUESTS_A_SECOND.",
            )
        words = f"{len(requests):,} requests of {path}"
        if not len(requests):
            words += ": nobody asks, so that the fewest instances that are allowed will do"
        return requests, traces.rates(requests, len(models)), words, traces.minutes(requests)
    if asked.live:
        hours = number("--hours", asked.hours or "24", 0.1, 360)
        with aws.explained("read the endpoint's metrics", error=EndpointError):
            variants = [
                one["VariantName"]
                for one in aws.sagemaker_client(settings.region).describe_endpoint(EndpointName=settings.endpoint)[
                    "ProductionVariants"
                ]
            ]
            seen = metrics.read(
                aws.cloudwatch_client(settings.region), settings.endpoint, variants, datetime.now(timezone.utc), hours
            )
        exponent = metrics.exponent(seen, len(models))
        if asked.zipf is None and exponent is None:
            raise UsageError(
                f"The metrics of {settings.endpoint} do not tell how popular the popular models are.",
                "No metric is per model. Give --zipf EXPONENT (0.8 to 1.2 is usual), or --access-log FILE.",
            )
        power = number("--zipf", asked.zipf, 0, 5) if asked.zipf is not None else float(exponent or 0)
        requests, rates = metrics.requests(seen, len(models), power, seed)
        peak, trough = float(seen.per_minute.max()) / 60, float(seen.per_minute.min()) / 60
        words = f"{len(requests):,} requests of {settings.endpoint} in {hours:g} h, Zipf {power:.2f}"
        return requests, rates, words, (peak, trough)
    if asked.rate is None:
        raise UsageError("--zipf needs --rate, in requests a second.")
    bursts = (0.0, 1.0, 0.0)
    if asked.bursts:
        parts = asked.bursts.split(",")
        if len(parts) != 3:
            raise UsageError(f"--bursts takes NUMBER,FACTOR,SECONDS, such as 2,5,30, not {asked.bursts!r}.")
        bursts = (number("--bursts", parts[0]), number("--bursts", parts[1], 1), number("--bursts", parts[2]))
    law = traces.Law(
        number("--rate", asked.rate, 1e-6, 1e7),
        number("--zipf", asked.zipf or "", 0, 5),
        number("--hours", asked.hours or "1", 1e-3, 1e5) * 3600,
        number("--swing", asked.swing, 0, 1),
        bursts,
        number("--churn", asked.churn, 0, 1),
    )
    words = f"{law.rate:g} requests a second on average, Zipf {law.exponent:g}"
    words += f", {law.swing:g} of daily swing" if law.swing else ""
    words += f", bursts {asked.bursts}" if asked.bursts else ""
    peak, trough = law.rate * (1 + law.swing), law.rate * (1 - law.swing)
    if most is not None:
        requests, rates = traces.busiest_of(law, len(models), most, seed)
        return requests, rates, words, (peak, trough)
    requests, rates = traces.generate(law, len(models), seed)
    return requests, rates, words, (peak, trough)


def settings_of(asked: Asked) -> Assumed:
    if asked.routing not in ROUTINGS:
        raise UsageError(f"There is no routing {asked.routing!r}.", f"Known: {', '.join(ROUTINGS)}.")
    volume = None
    if asked.volume_gb is not None:
        volume = int(number("--volume-gb", asked.volume_gb, 1, MOST_VOLUME / GB) * GB)
    return Assumed(
        SERVINGS[asked.container],
        asked.routing,
        volume,
        number("--download", asked.download, 0.1) * 1e6,
        number("--extract", asked.extract, 0.1) * 1e6,
        number("--processor-factor", asked.processor_factor, 0.01, 100),
        whole("--at-least", asked.at_least, 1, 200),
        whole("--seed", asked.seed, 0, 2**31),
    )


def prices_of(asked: Asked, settings: Settings) -> instances.Prices:
    return instances.load(Path(asked.prices) if asked.prices else None, settings.region)


def say_if_slow() -> None:
    if not COMPILED:
        note("numba is not installed, so this takes a hundred times as long: pip install 'mme[capacity]'")
