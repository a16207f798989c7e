"""One fleet in detail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from invoke import Context

from mme import console
from mme.capacity import fleets, report
from mme.capacity import simulate as simulation
from mme.errors import UsageError
from mme.settings import Settings
from mme.tasks.capacity.asked import Asked, counted, number, whole
from mme.tasks.capacity.given import models_of, prices_of, say_if_slow, settings_of, traffic_of
from mme.tasks.command import print_json


def simulate(context: Context, asked: Asked, settings: Settings) -> None:
    if len(asked.type) != 1 or asked.count is None:
        raise UsageError("Which fleet?", "Give --type ml.m5.xlarge --count 4.")
    assumed = settings_of(asked)
    prices = prices_of(asked, settings)
    kind = prices.type(asked.type[0])
    kind.check_simulated()
    models = models_of(context, asked, settings)
    assumed = replace(assumed, serving=models.measured(assumed.serving))
    requests, rates, words, _ = traffic_of(asked, settings, models, None)
    fleet = fleets.fleet_of(kind, whole("--count", asked.count, 1, 10_000), models, assumed)
    if asked.deployments:
        last = float(requests.time[-1]) if len(requests) else 0.0
        moments = tuple(number("--deployments", moment) for moment in asked.deployments.split(","))
        if max(moments) > last:
            raise UsageError(f"--deployments {max(moments):g}: the last request comes after {last:g} seconds.")
        fleet = replace(fleet, deployments=moments)
    popular = whole("--warm", asked.warm, 0, len(models))
    fleet = replace(fleet, warm=tuple(int(m) for m in np.argsort(-rates)[:popular]))
    if asked.autoscale:
        parts = asked.autoscale.split(",")
        if len(parts) != 3:
            raise UsageError(f"--autoscale takes MIN,MAX,TARGET, such as 2,8,600, not {asked.autoscale!r}.")
        least, most = (whole("--autoscale", part, 1, 10_000) for part in parts[:2])
        fleet = replace(fleet, autoscaling=simulation.Autoscaling(least, most, number("--autoscale", parts[2], 1e-9)))
    say_if_slow()
    outcome = simulation.simulate(fleets.on(kind, models, assumed), requests, fleet, seed=assumed.seed)
    hours = outcome.seconds / 3600
    mean = outcome.instance_hours / hours if hours else fleet.instances
    usd = mean * prices.month(kind.usd_per_hour)
    notes = [*report.assumptions(models, prices, assumed, words), *report.about_types(prices, [kind.name], True)]
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
