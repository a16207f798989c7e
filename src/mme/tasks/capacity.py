"""How many of which instance: plan, simulate, measure."""

from __future__ import annotations

import json as jsonlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke import Context

from mme import aws, console
from mme.errors import EndpointError, UsageError
from mme.settings import Settings
from mme.tasks.command import JSON_HELP, command, load_catalog, note, print_json

if TYPE_CHECKING:
    from mme.capacity.needs import Models
    from mme.capacity.plan import Plan, Search
    from mme.capacity.simulate import Requests
    from mme.capacity.state import Floats

WHAT = ("plan", "simulate", "measure")


@dataclass(frozen=True)
class Asked:
    """The flags, as they were given."""

    what: str | None
    models: str | None
    catalog: str | None
    dist: str
    needs: str | None
    container: str
    trace: str | None
    access_log: str | None
    gaps: bool
    live: bool
    zipf: str | None
    rate: str | None
    hours: str | None
    swing: str
    bursts: str | None
    churn: str
    p99: str
    cold: str
    type: Sequence[str]
    count: str | None
    at_least: str
    volume_gb: str | None
    routing: str
    download: str
    extract: str
    processor_factor: str
    deployments: str | None
    warm: str
    autoscale: str | None
    prices: str | None
    seed: str
    tfvars: str | None
    page: str | None
    plots: str | None
    archive: Sequence[str]
    out: str | None
    per_model: bool
    json: bool


def number(flag: str, text: str, low: float = 0.0, high: float = 1e12) -> float:
    """The value of a flag as a number. Raises UsageError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UsageError(f"{flag} takes a number from {low:g} to {high:g}, not {text!r}.")
    return value


@command(
    {
        "what": "plan (the cheapest instances that meet a goal), simulate (one fleet, in detail), measure (what models "
        "need, asked of the real container on this machine)",
        "models": "the models: a CSV file name,size with any of disk, active, parked (bytes), load_seconds, "
        "wake_seconds, answer_seconds, cores",
        "catalog": "the models: those of this catalogue, with the archives that --dist holds; give --bucket for those "
        "of a bucket",
        "dist": "with --catalog and measure: the folder of the built archives",
        "needs": "what models need, as measure wrote it; columns of the CSV file come first",
        "container": "ours or stock: whose way of serving, and what measure runs",
        "trace": "the traffic: a CSV file time,model or time,model,seconds",
        "access-log": "the traffic: the container's log (its lines with event invoke)",
        "gaps": "take long times without a request in a trace for what they say, not for a hole in the recording",
        "live": "the traffic: the CloudWatch metrics of the endpoint (--endpoint) in the last --hours",
        "zipf": "the traffic: by Zipf's law with this exponent, at --rate; with --live: in place of what metrics tell",
        "rate": "with --zipf: requests a second, on average",
        "hours": "with --zipf (simulate) and --live: for how long; else 1, and 24 with --live",
        "swing": "with --zipf: how much more at the busiest time of the day than on average, 0 to 1",
        "bursts": "with --zipf: NUMBER,FACTOR,SECONDS: so many bursts an hour, of so many times the rate, so long",
        "churn": "with --zipf: the share of models whose popularity changes places in a day",
        "p99": "the goal: milliseconds; none for no such goal",
        "cold": "the goal: the share of requests that may wait for a load, such as 1%; none for no such goal",
        "type": "plan: look at this instance type only, repeatable; simulate: the type",
        "count": "simulate: how many instances",
        "at-least": "plan: no fewer instances than this (2 survive the loss of a zone)",
        "volume-gb": "each instance's volume; else room for all models and a fifth more, at most 512",
        "routing": "random, least-outstanding, or sticky (a model's requests go where it is loaded)",
        "download": "MB a second that an instance downloads with",
        "extract": "MB a second that it extracts with",
        "processor-factor": "how many times the measured seconds a core of the instance takes",
        "deployments": "simulate: at which seconds all instances are replaced, such as 600,1800",
        "warm": "simulate: how many of the most popular models every new instance loads at once",
        "autoscale": "simulate: MIN,MAX,TARGET (invocations per instance and minute)",
        "prices": "a price file of another region or day; docs/capacity.md shows the form",
        "seed": "another whole number plays the same with other chance",
        "tfvars": "plan: write the module's variants, with autoscaling to match, to this .tfvars.json file",
        "page": "plan: write the plan and its plots as an HTML page",
        "plots": "plan: write the plots as SVG files into this folder",
        "archive": "measure: an archive to measure, repeatable; left out, every one in --dist",
        "out": "measure: write the needs to this file",
        "per-model": "simulate: with --json, the figures of each model too",
        "json": JSON_HELP,
    },
    where=("bucket", "prefix", "endpoint", "region", "terraform"),
    repeatable=("type", "archive"),
    positional=("what",),
)
def capacity(
    context: Context,
    settings: Settings,
    what: str | None = None,
    models: str | None = None,
    catalog: str | None = None,
    dist: str = "dist",
    needs: str | None = None,
    container: str = "ours",
    trace: str | None = None,
    access_log: str | None = None,
    gaps: bool = False,
    live: bool = False,
    zipf: str | None = None,
    rate: str | None = None,
    hours: str | None = None,
    swing: str = "0",
    bursts: str | None = None,
    churn: str = "0",
    p99: str = "300",
    cold: str = "1%",
    type: Sequence[str] = (),
    count: str | None = None,
    at_least: str = "1",
    volume_gb: str | None = None,
    routing: str = "random",
    download: str = "250",
    extract: str = "500",
    processor_factor: str = "1",
    deployments: str | None = None,
    warm: str = "0",
    autoscale: str | None = None,
    prices: str | None = None,
    seed: str = "1",
    tfvars: str | None = None,
    page: str | None = None,
    plots: str | None = None,
    archive: Sequence[str] = (),
    out: str | None = None,
    per_model: bool = False,
    json: bool = False,
) -> None:
    """Plan how many of which instance an endpoint needs: what a month costs, how often a request is cold, p50 and p99.

    invoke capacity measure --archive dist/bert-….tar.gz --out needs.json
    invoke capacity plan --bucket my-models --needs needs.json --zipf 0.9 --rate 50
    invoke capacity simulate --models models.csv --trace trace.csv --type ml.m5.xlarge --count 4
    """
    if find_spec("numpy") is None:
        raise UsageError("The planner is not installed.", "pip install 'mme[capacity]'")
    if what not in WHAT:
        raise UsageError(
            "Plan, simulate or measure?" if what is None else f"There is no `capacity {what}`.",
            f"invoke capacity {' | '.join(WHAT)}; `invoke --help capacity` lists the flags.",
        )
    from mme.capacity.needs import SERVINGS

    if container not in SERVINGS:
        raise UsageError(f"There is no container {container!r}.", f"Known: {', '.join(SERVINGS)}.")
    if tfvars is not None and not tfvars.endswith(".tfvars.json"):
        raise UsageError(f"--tfvars {tfvars}: Terraform reads such a file by its name, NAME.tfvars.json.")
    asked = Asked(
        what, models, catalog, dist, needs, container, trace, access_log, gaps, live, zipf, rate, hours, swing, bursts,
        churn, p99, cold, type, count, at_least, volume_gb, routing, download, extract, processor_factor, deployments,
        warm, autoscale, prices, seed, tfvars, page, plots, archive, out, per_model, json,
    )  # fmt: skip
    if what == "measure":
        _measure(asked)
    elif what == "simulate":
        _simulate(context, asked, settings)
    else:
        _plan(context, asked, settings)


# ---- what both need -----------------------------------------------------------------------------------------------


def _models(context: Context, asked: Asked, settings: Settings) -> Models:
    from mme.capacity import listing

    if asked.models:
        rows = listing.read_csv(Path(asked.models))
    elif asked.catalog:
        wanted = [spec.name for spec in load_catalog(context, asked.catalog).models]
        rows = [
            row
            for row in listing.read_folder(Path(asked.dist))
            if any(row.name.startswith(f"{name}-") and "/" not in row.name[len(name) :] for name in wanted)
        ]
        missing = [name for name in wanted if not any(row.name.startswith(f"{name}-") for row in rows)]
        if missing:
            raise UsageError(
                f"There is no archive of {missing[0]} in {asked.dist}.",
                "Build it with `invoke package`, or give --models.",
            )
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


def _traffic(asked: Asked, settings: Settings, models: Models, most: int | None) -> tuple[Requests, Floats, str, Any]:
    """(requests, requests a second of each model, words, (peak, trough) requests a second where they are known)."""
    from mme.capacity import live as metrics
    from mme.capacity import trace as traces

    seed = int(number("--seed", asked.seed, 0, 2**31))
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
        if most is not None and len(requests) and requests.seconds == 0:
            raise UsageError(
                f"{path}: all requests are of one moment, so that nothing says how many come in a second.",
                "Give a longer recording, or a law: --zipf EXPONENT --rate REQUESTS_A_SECOND.",
            )
        words = f"{len(requests):,} requests of {path}"
        return requests, traces.rates(requests, len(models)), words, None
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


def _settings(asked: Asked) -> Any:
    from mme.capacity.fleets import GB, MOST_VOLUME
    from mme.capacity.fleets import Settings as Assumed
    from mme.capacity.needs import SERVINGS
    from mme.capacity.simulate import ROUTINGS

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
        int(number("--at-least", asked.at_least, 1, 200)),
        int(number("--seed", asked.seed, 0, 2**31)),
    )


def _prices(asked: Asked, settings: Settings) -> Any:
    from mme.capacity import instances

    return instances.load(Path(asked.prices) if asked.prices else None, settings.region)


def counted(models: int) -> str:
    return "1 model" if models == 1 else f"{models:,} models"


def write(path: Path, text: str) -> None:
    """The whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# ---- plan ---------------------------------------------------------------------------------------------------------


def _plan(context: Context, asked: Asked, settings: Settings) -> None:
    from mme.capacity import plan as plans
    from mme.capacity import report, tfvars
    from mme.capacity.plan import Goal

    goal = Goal(
        None if asked.p99 == "none" else number("--p99", asked.p99, 1e-3) / 1000,
        None if asked.cold == "none" else number("--cold", asked.cold, 0, 1),
    )
    assumed = _settings(asked)
    prices = _prices(asked, settings)
    models = _models(context, asked, settings)
    assumed = replace(assumed, serving=models.measured(assumed.serving))
    requests, rates, words, span = _traffic(asked, settings, models, plans.SAMPLE)
    _prepare()
    made = plans.plan(models, requests, rates, prices, goal, assumed, tuple(asked.type))
    search = plans.Search(models, requests, rates, prices, goal, assumed)
    notes = report.assumptions(models, prices, assumed, words)
    if asked.json:
        print_json(report.plan_json(made, models, prices, assumed, words))
    else:
        print(f"Goal: {goal.words}. {counted(len(models))}.\n")
        print(console.table(report.HEAD, [report.option_row(one, made.best) for one in made.options[:12]]))
        if made.skipped:
            note(f"\nNot simulated, since they cost more in any case: {len(made.skipped)} types.")
        print("\nOther ways to host them:")
        for other in made.alternatives:
            cost = "-" if other.usd_month is None else f"{other.usd_month:,.0f} USD"
            print(f"  {other.name:<24} {cost:>14}  {other.what + ': ' if other.what else ''}{other.words}")
        if made.changes:
            print("\nWhat would change it:")
            for change in made.changes:
                print(f"  {change.name}: {change.words}")
        print()
        for line in notes:
            print(line)
    if asked.plots or asked.page:
        pictures = _pictures(made, search, rates)
        if asked.plots:
            for name, svg in pictures.items():
                write(Path(asked.plots) / f"{name}.svg", svg)
            note(f"The plots are in {asked.plots}.")
        if asked.page:
            write(Path(asked.page), report.page(made, notes, list(pictures.values())))
            note(f"The page is {asked.page}.")
    if made.best is None:
        raise UsageError(
            f"No fleet that was tried meets the goal ({goal.words}).",
            "The table says what each one misses. Loosen the goal (--p99, --cold), or take what would change it.",
        )
    if asked.tfvars:
        peak, trough = span or (search.peak, float(rates.sum()))
        value = tfvars.variants(made.best, asked.routing, peak, trough, assumed.at_least)
        write(Path(asked.tfvars), tfvars.text(value))
        note(f"The variants are in {asked.tfvars}: terraform apply -var-file={asked.tfvars}")


def _pictures(made: Plan, search: Search, rates: Floats) -> dict[str, str]:
    """The three plots by the names of their files."""
    from mme.capacity import plan as plans
    from mme.capacity import report

    shown = made.best or made.options[0]
    kind = search.prices.types[shown.type]
    curves = []
    for routing in ("random", "sticky"):
        points = []
        other = plans.Search(
            search.models,
            search.requests,
            search.rates,
            search.prices,
            search.goal,
            replace(search.settings, routing=routing),
        )
        for count in sorted(
            {1, 2, 3, shown.instances, *(round(shown.instances * times) for times in (0.5, 1.5, 2))} - {0}
        ):
            points.append((float(count), other.outcome(kind, count).hit_ratio))
        curves.append((routing, points))
    return {
        "cost-and-cold": report.cost_and_cold(made.trials, made.best, made.goal),
        "hits-and-instances": report.hits_and_instances(curves, shown.type),
        "latency-by-popularity": report.latency_by_popularity(search.outcome(kind, shown.instances), rates),
    }


def _prepare() -> None:
    from mme.capacity.compiled import COMPILED

    if not COMPILED:
        note("numba is not installed: the simulation runs a hundred times slower. pip install 'mme[capacity]'")


# ---- simulate -----------------------------------------------------------------------------------------------------


def _simulate(context: Context, asked: Asked, settings: Settings) -> None:
    import numpy as np

    from mme.capacity import fleets, report
    from mme.capacity.simulate import Autoscaling, simulate

    if len(asked.type) != 1 or asked.count is None:
        raise UsageError("Which fleet?", "Give --type ml.m5.xlarge --count 4.")
    assumed = _settings(asked)
    prices = _prices(asked, settings)
    kind = prices.type(asked.type[0])
    if kind.gpu:
        raise UsageError(f"{kind.name} has a GPU, and the simulation knows processors only.")
    models = _models(context, asked, settings)
    assumed = replace(assumed, serving=models.measured(assumed.serving))
    requests, rates, words, _ = _traffic(asked, settings, models, None)
    fleet = fleets.fleet_of(kind, int(number("--count", asked.count, 1, 10_000)), models, assumed)
    if asked.deployments:
        fleet = replace(fleet, deployments=tuple(number("--deployments", t) for t in asked.deployments.split(",")))
    popular = int(number("--warm", asked.warm, 0, len(models)))
    fleet = replace(fleet, warm=tuple(int(m) for m in np.argsort(-rates)[:popular]))
    if asked.autoscale:
        parts = asked.autoscale.split(",")
        if len(parts) != 3:
            raise UsageError(f"--autoscale takes MIN,MAX,TARGET, such as 2,8,600, not {asked.autoscale!r}.")
        least, most = (int(number("--autoscale", part, 1, 10_000)) for part in parts[:2])
        fleet = replace(fleet, autoscaling=Autoscaling(least, most, number("--autoscale", parts[2], 1e-9)))
    _prepare()
    outcome = simulate(fleets.on(kind, models, assumed), requests, fleet, seed=assumed.seed)
    hours = outcome.seconds / 3600
    mean = outcome.instance_hours / hours if hours else fleet.instances
    usd = mean * prices.month(kind.usd_per_hour)
    notes = report.assumptions(models, prices, assumed, words)
    if asked.json:
        answer = report.outcome_json(outcome, models, asked.per_model)
        print_json({**answer, "usd_month": usd, "assumptions": notes})
        return
    figures = report.outcome_json(outcome, models, False)
    print(
        f"{fleet.instances} x {kind.name}, {usd:,.0f} USD a month; {counted(len(models))}; caches empty at the start.\n"
    )
    rows = [
        ("requests", f"{figures['requests']:,}"),
        ("model loaded when they came", report.share(outcome.hit_ratio)),
        *((f"  {name}", report.share(value)) for name, value in figures["met"].items()),
        ("p50, p95, p99", ", ".join(report.ms(outcome.percentile(p)) for p in (50, 95, 99))),
        *((name.replace("_", " "), f"{value:,}") for name, value in figures["outcomes"].items() if value),
        ("loads, again on the same instance", f"{outcome.loads:,}, {outcome.reloads:,}"),
        ("unloads, parks, wakes", f"{outcome.unloads:,}, {outcome.parks:,}, {outcome.wakes:,}"),
        (
            "processor, network, memory",
            ", ".join(report.share(v) for v in (outcome.processor, outcome.network, outcome.memory_mean)),
        ),
        ("instance hours", f"{outcome.instance_hours:.1f}"),
    ]
    if fleet.autoscaling:
        rows.append(("instances added, removed", f"{outcome.scaled_out}, {outcome.scaled_in}"))
    print(console.table(("", ""), rows))
    print()
    for line in notes:
        print(line)


# ---- measure ------------------------------------------------------------------------------------------------------


def _measure(asked: Asked) -> None:
    from mme.capacity import measure as measuring

    paths = [Path(name) for name in asked.archive] or sorted(Path(asked.dist).rglob("*.tar.gz"))
    subjects = [
        measuring.Subject(
            path.relative_to(asked.dist).as_posix() if path.is_relative_to(asked.dist) else path.name, path
        )
        for path in paths
    ]
    document = measuring.measure(subjects, asked.container, note=note)
    text = jsonlib.dumps(document, indent=2) + "\n"
    if asked.out:
        write(Path(asked.out), text)
        note(f"The needs are in {asked.out}.")
    if asked.json or not asked.out:
        print_json(document)
        return
    rows = [
        (
            name,
            console.size(model["disk_bytes"]),
            console.size(model["private_bytes"] + model["weights_bytes"]),
            f"{model['load_seconds']:.3f} s",
            f"{model['wake_seconds']:.3f} s",
            f"{model['answer_seconds'] * 1000:.1f} ms",
            f"{model['answer_cores']:.2f}",
        )
        for name, model in document["models"].items()
    ]
    print(console.table(("model", "disk", "memory", "load", "wake", "answer", "cores"), rows))
