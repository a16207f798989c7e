"""The task capacity: plan, simulate, measure."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from invoke import Context

from mme.errors import UsageError
from mme.settings import Settings
from mme.tasks.capacity.asked import Asked
from mme.tasks.command import JSON_HELP, command

WHAT = ("plan", "simulate", "measure")


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
        "container": "ours or stock: the container that is simulated, and that measure runs",
        "trace": "the traffic: a CSV file time,model or time,model,seconds",
        "access-log": "the traffic: the container's log (its lines with event invoke)",
        "gaps": "accept gaps of hours in a trace, which are otherwise refused as holes in the recording",
        "live": "the traffic: the CloudWatch metrics of the endpoint (--endpoint) in the last --hours",
        "zipf": "the traffic: by Zipf's law with this exponent, at --rate; with --live: the exponent to use",
        "rate": "with --zipf: requests a second, on average",
        "hours": "with --zipf and --live: for how long; else 1, and 24 with --live",
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
        "processor-factor": "seconds on a core of the instance for a measured second",
        "deployments": "simulate: at which seconds all instances are replaced, such as 600,1800",
        "warm": "simulate: how many of the most popular models every new instance loads at once",
        "autoscale": "simulate: MIN,MAX,TARGET (invocations per instance and minute)",
        "prices": "a price file of another region or day; docs/capacity.md shows the form",
        "seed": "a whole number; another one draws other random numbers",
        "tfvars": "plan: write the module's variants, with autoscaling to match, to this .tfvars.json file",
        "page": "plan: write the plan and its plots as an HTML page",
        "plots": "plan: write the plots as SVG files into this folder",
        "publish": "plan: show it under this name on the endpoint's page (docs/page.md): put it and its plots as "
        "plans/NAME.json into the bucket, in the place of a plan of that name",
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
    dist: str = Asked.dist,
    needs: str | None = None,
    container: str = Asked.container,
    trace: str | None = None,
    access_log: str | None = None,
    gaps: bool = False,
    live: bool = False,
    zipf: str | None = None,
    rate: str | None = None,
    hours: str | None = None,
    swing: str = Asked.swing,
    bursts: str | None = None,
    churn: str = Asked.churn,
    p99: str = Asked.p99,
    cold: str = Asked.cold,
    type: Sequence[str] = (),
    count: str | None = None,
    at_least: str = Asked.at_least,
    volume_gb: str | None = None,
    routing: str = Asked.routing,
    download: str = Asked.download,
    extract: str = Asked.extract,
    processor_factor: str = Asked.processor_factor,
    deployments: str | None = None,
    warm: str = Asked.warm,
    autoscale: str | None = None,
    prices: str | None = None,
    seed: str = Asked.seed,
    tfvars: str | None = None,
    page: str | None = None,
    plots: str | None = None,
    publish: str | None = None,
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
        warm, autoscale, prices, seed, tfvars, page, plots, publish, archive, out, per_model, json,
    )  # fmt: skip
    asked.check()
    if what == "measure":
        from mme.tasks.capacity import measuring

        measuring.measure(asked)
    elif what == "simulate":
        from mme.tasks.capacity import simulating

        simulating.simulate(context, asked, settings)
    else:
        from mme.tasks.capacity import planning

        planning.plan(context, asked, settings)
