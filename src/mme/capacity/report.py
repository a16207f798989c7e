"""A plan or a simulation as text, as JSON and as a page with its plots."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np

from mme.capacity import state
from mme.capacity.fleets import Settings
from mme.capacity.instances import Prices
from mme.capacity.needs import Models
from mme.capacity.plan import Goal, Option, Plan
from mme.capacity.plots import Axis, Series, plot
from mme.capacity.published import MOST_ROWS, Picture, Shown, Table
from mme.capacity.simulate import Outcome, hit_kinds
from mme.capacity.state import Floats

NUMBER = re.compile(r"-|[\d,.]+( ms| s| %)?")
"""A cell with a number alone; columns of such cells stand to the right."""
HEAD = ("", "instances", "USD a month", "p50", "p99", "cold", "woken", "processor", "what limits it")


def ms(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def share(value: float) -> str:
    return f"{value * 100:.2f} %" if 0 < value < 0.1 else f"{value * 100:.0f} %"


def option_row(option: Option, best: Option | None) -> tuple[str, ...]:
    return (
        "->" if option is best else "",
        f"{option.instances} x {option.type}",
        f"{option.usd_month:,.0f}",
        ms(option.p50),
        ms(option.p99),
        share(option.cold),
        share(option.woken),
        share(option.processor),
        option.limit if option.meets else f"misses {', '.join(option.missed)}: {option.limit}",
    )


def assumptions(models: Models, prices: Prices, settings: Settings, traffic: str) -> list[str]:
    """What the figures are based on, for every output."""
    return [
        f"Prices: {prices.words}. Without storage, data transfer and discounts.",
        f"Needs: {models.origin}; a core of the instance takes {settings.processor_factor:g} times those seconds.",
        f"Traffic: {traffic}.",
        f"Assumed: downloads of {settings.download / 1e6:.0f} MB/s and extraction of {settings.extract / 1e6:.0f} MB/s "
        f"an instance, {settings.routing} routing, the container {settings.serving.name}.",
    ]


def about_types(prices: Prices, types: Sequence[str], asked: bool) -> list[str]:
    """What has to be said of the types that were simulated, and of those that were not unless they were asked for."""
    arm = sorted({name for name in types if prices.types[name].arm})
    words = []
    if arm:
        words.append(
            f"{', '.join(arm)}: Arm processors (Graviton). The image, and what archives bring compiled, must be built "
            "for them: AWS's Hugging Face image and archives with x86 wheels do not run there."
        )
    left_out = [] if asked else prices.left_out()
    if left_out:
        more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        words.append(f"Left out: {'; '.join(left_out[:3])}{more}.")
    return words


def plan_json(plan: Plan, models: Models, prices: Prices, notes: Sequence[str]) -> dict[str, Any]:
    def option(one: Option) -> dict[str, Any]:
        return {key: clean(value) for key, value in asdict(one).items()} | {"meets": one.meets}

    return {
        "goal": asdict(plan.goal),
        "best": option(plan.best) if plan.best else None,
        "options": [option(one) for one in plan.options],
        "not_simulated": {name: round(usd, 2) for name, usd in plan.skipped.items()},
        "alternatives": [asdict(one) for one in plan.alternatives],
        "changes": [asdict(one) for one in plan.changes],
        "models": len(models),
        "prices": {"region": prices.region, "day": prices.day, "source": prices.source, "file": prices.path.name},
        "assumptions": list(notes),
    }


def clean(value: Any) -> Any:
    """JSON has no "not a number"."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def outcome_json(outcome: Outcome, models: Models, per_model: bool) -> dict[str, Any]:
    """A simulation's result; seconds and shares."""
    reasons = ("answered", "model_not_ready", "timed_out", "refused_503", "too_large_507")
    answer: dict[str, Any] = {
        "requests": len(outcome.kind),
        "hit_ratio": outcome.hit_ratio,
        "cold_share": outcome.cold_share,
        "met": dict(hit_kinds(outcome)),
        "outcomes": {name: int((outcome.outcome == number).sum()) for number, name in enumerate(reasons)},
        "p50_seconds": clean(outcome.percentile(50)),
        "p95_seconds": clean(outcome.percentile(95)),
        "p99_seconds": clean(outcome.percentile(99)),
        "loads": outcome.loads,
        "loads_again": outcome.reloads,
        "unloads": outcome.unloads,
        "parks": outcome.parks,
        "wakes": outcome.wakes,
        "retries": outcome.retries,
        "scaled_out": outcome.scaled_out,
        "scaled_in": outcome.scaled_in,
        "processor": outcome.processor,
        "network": outcome.network,
        "memory_mean": outcome.memory_mean,
        "memory_peak": outcome.memory_peak,
        "instance_hours": outcome.instance_hours,
    }
    if per_model:
        rows = outcome.by_model(len(models))
        answer["models"] = {
            name: {key: clean(float(column[at])) for key, column in rows.items()}
            for at, name in enumerate(models.names)
        }
    return answer


# ---- plots --------------------------------------------------------------------------------------------------------


def cost_and_cold(trials: Sequence[Option], best: Option | None, goal: Goal) -> str:
    """Cost against cold share, one point for each fleet that was simulated."""
    families: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        families.setdefault(trial.type.split(".")[1][:1], []).append((trial.usd_month, trial.cold * 100))
    names = {"m": "ml.m", "c": "ml.c", "r": "ml.r"}
    series = [
        Series(names.get(family, f"ml.{family}"), sorted(points), joined=False)
        for family, points in sorted(families.items())
    ]
    if best is not None:
        mark = (best.usd_month, best.cold * 100, f"{best.instances} x {best.type}")
        series.append(Series("cheapest that meets the goal", [], marked=[mark]))
    highest = max([trial.cold * 100 for trial in trials] + [(goal.cold or 0) * 100, 1.0])
    return plot(
        "Cost against cold requests",
        Axis("US dollars a month", logarithmic=True),
        Axis("cold requests", " %", low=0.0, high=highest),
        series,
    )


def hits_and_instances(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], kind: str) -> str:
    """Hit ratio against instances; one curve for each routing."""
    lowest = min([y * 100 for _, points in curves for _, y in points if math.isfinite(y)], default=0.0)
    return plot(
        f"Requests whose model is loaded, by instances ({kind})",
        Axis("instances", whole=True),
        Axis("hit ratio", " %", low=min(95.0, lowest), high=100.0),
        [Series(name, [(x, y * 100) for x, y in points]) for name, points in curves],
    )


def latency_by_popularity(outcome: Outcome, rates: Floats) -> str:
    """p50 and p99 of models in groups from the most popular to the least."""
    order = np.argsort(-rates)
    rank = np.empty(len(rates), np.int64)
    rank[order] = np.arange(len(rates))
    edges = np.unique(np.round(np.geomspace(1, len(rates) + 1, 13)).astype(int)) - 1
    good = outcome.outcome == state.OK
    ranks = rank[outcome.model]
    middle: list[tuple[float, float]] = []
    slow: list[tuple[float, float]] = []
    for low, high in itertools.pairwise(edges):
        part = outcome.latency[good & (ranks >= low) & (ranks < high)]
        if len(part) > 1:
            at = math.sqrt((low + 1) * high)
            middle.append((at, float(np.percentile(part, 50)) * 1000))
            slow.append((at, float(np.percentile(part, 99)) * 1000))
    return plot(
        "Latency by popularity",
        Axis("model, the most popular first", logarithmic=True),
        Axis("latency", " ms", logarithmic=True),
        [Series("p50", middle), Series("p99", slow)],
    )


# ---- the page -----------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: light-dark(#111827, #e8ebf0); background: light-dark(#ffffff, #0e1116); }
div.table { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid light-dark(#e5e7eb, #2c333d);
  vertical-align: top; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 14rem; }
tr.best { background: light-dark(#ecfdf5, #12301f); font-weight: 600; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; margin: .5rem 0; }
.small { color: light-dark(#4b5563, #a0a9b6); font-size: 13px; }
"""
PLOTS = {
    "cost-and-cold": "Cost against cold requests",
    "hits-and-instances": "Hit ratio against instances",
    "latency-by-popularity": "Latency by popularity",
}
"""What each plot is called, by the name of its file."""


def shown(plan: Plan, notes: Sequence[str], plots: Mapping[str, str]) -> Shown:
    """The plan as a person reads it. ``plots``: SVG documents by the names of PLOTS."""
    best = next((at for at, one in enumerate(plan.options) if one is plan.best), None)
    others = [
        (one.name, one.what, "-" if one.usd_month is None else f"{one.usd_month:,.0f}", one.words)
        for one in plan.alternatives
    ]
    return Shown(
        f"Goal: {plan.goal.words}.",
        (
            Table("Instances", HEAD[1:], [option_row(one, plan.best)[1:] for one in plan.options[:MOST_ROWS]], best),
            Table("Other ways to host them", ("instead", "what", "USD a month", "in words"), others),
            Table("What would change it", ("with", "in words"), [(one.name, one.words) for one in plan.changes]),
        ),
        tuple(Picture(PLOTS[name], svg) for name, svg in plots.items()),
        tuple(notes),
    )


def page(what: Shown) -> str:
    """The plan as one HTML document that needs nothing else."""

    def table(one: Table) -> str:
        numbers = {at for at, column in enumerate(zip(*one.rows, strict=True)) if all(map(NUMBER.fullmatch, column))}

        def cells(tag: str, row: Sequence[str]) -> str:
            return "".join(
                f"<{tag}{' class=n' if at in numbers else ''}>{escape(cell)}</{tag}>" for at, cell in enumerate(row)
            )

        top = cells("th", one.head)
        body = "".join(
            f"<tr{' class=best' if at == one.marked else ''}>{cells('td', row)}</tr>" for at, row in enumerate(one.rows)
        )
        return (
            f"<h2>{escape(one.title)}</h2><div class=table><table><thead><tr>{top}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    notes = "".join(f"<li>{escape(line)}</li>" for line in what.notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Capacity plan</title><style>{STYLE}</style></head><body>"
        f"<h1>Capacity plan</h1><p>{escape(what.goal)}</p>{''.join(map(table, what.tables))}"
        f"<h2>In pictures</h2>{''.join(one.svg for one in what.pictures)}"
        f"<h2>What the figures rest on</h2><ul class=small>{notes}</ul></body></html>\n"
    )
