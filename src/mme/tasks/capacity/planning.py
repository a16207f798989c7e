"""The cheapest instances that meet a goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from invoke import Context

from mme import console
from mme.capacity import plan as plans
from mme.capacity import published, report, tfvars
from mme.capacity.state import Floats
from mme.errors import UsageError
from mme.settings import Settings
from mme.tasks.capacity.asked import Asked, counted, number, write
from mme.tasks.capacity.given import models_of, prices_of, say_if_slow, settings_of, traffic_of
from mme.tasks.command import note, open_store, print_json, stage

IDLE = 0.3
"""The processor's share below which an instance could take several times the traffic."""


def plan(context: Context, asked: Asked, settings: Settings) -> None:
    if asked.publish:
        published.check_name(asked.publish)
        bucket = open_store(settings)  # which says what is wrong with it before the work
    goal = plans.Goal(
        None if asked.p99 == "none" else number("--p99", asked.p99, 1e-3) / 1000,
        None if asked.cold == "none" else number("--cold", asked.cold, 0, 1),
    )
    assumed = settings_of(asked)
    prices = prices_of(asked, settings)
    models = models_of(context, asked, settings)
    assumed = replace(assumed, serving=models.measured(assumed.serving))
    requests, rates, words, span = traffic_of(asked, settings, models, plans.SAMPLE)
    say_if_slow()
    with stage("plan", "simulating fleets (the first run compiles the simulation)", 0):
        made = plans.plan(models, requests, rates, prices, goal, assumed, tuple(asked.type))
    search = plans.Search(models, requests, rates, prices, goal, assumed)
    notes = [
        *report.assumptions(models, prices, assumed, words),
        *report.about_types(prices, [one.type for one in made.options], bool(asked.type)),
    ]
    # Files are written before anything is printed: the reader may close the pipe early (| head).
    if asked.plots or asked.page or asked.publish:
        with stage("plan", "simulating further fleets for the plots", 0):
            pictures = _pictures(made, search, rates)
        shown = report.shown(made, [f"{counted(len(models))}.", *notes], pictures)
        if asked.plots:
            for name, svg in pictures.items():
                write(Path(asked.plots) / f"{name}.svg", svg)
            note(f"The plots are in {asked.plots}.")
        if asked.page:
            write(Path(asked.page), report.page(shown))
            note(f"The page is {asked.page}.")
        if asked.publish:
            where = published.publish(*bucket, asked.publish, shown, datetime.now(timezone.utc))
            note(f"The plan is {where}; the endpoint's page shows it: invoke dashboard, or that of the local AWS.")
    if asked.tfvars and made.best is not None:
        peak, trough = span or (search.peak, float(rates.sum()))
        value = tfvars.variants(made.best, asked.routing, peak, trough, assumed.at_least)
        write(Path(asked.tfvars), tfvars.text(value))
        note(f"The variants are in {asked.tfvars}: terraform apply -var-file={asked.tfvars}")
        if made.best.processor < IDLE:
            target = value["primary"]["autoscaling"]["invocations_per_instance"]
            note(
                f"Autoscaling adds instances above {target:,} invocations a minute on each: this traffic. With "
                f"{report.share(made.best.processor)} of the processor at work, an instance carries more: raise it."
            )
    if asked.json:
        print_json(report.plan_json(made, models, prices, notes))
    else:
        _print(made, goal, len(models), notes)
    if made.best is None:
        raise UsageError(
            f"No fleet that was tried meets the goal ({goal.words}).",
            "The table says what each one misses. Loosen the goal (--p99, --cold), or take what would change it.",
        )


def _print(made: plans.Plan, goal: plans.Goal, count: int, notes: Sequence[str]) -> None:
    """The plan of ``count`` models as text."""
    print(f"Goal: {goal.words}. {counted(count)}.\n")
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


def _pictures(made: plans.Plan, search: plans.Search, rates: Floats) -> dict[str, str]:
    """The three plots by the names of their files."""
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
