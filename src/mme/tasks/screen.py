"""Text output of the tasks that operate an endpoint: the status on one screen, lines of the log, findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mme import console
from mme.operate.facts import Variant
from mme.operate.findings import ORDER, Finding
from mme.operate.lines import Line
from mme.operate.metrics import Figures, Timing
from mme.operate.status import Released, Scaling, Status, shown_first
from mme.operate.warm import Warmed

if TYPE_CHECKING:
    from mme.operate.watch import Answered, Problem

UNITS = {"InvocationsPerInstance": "requests a minute", "SageMakerVariantInvocationsPerInstance": "requests a minute"}


def status(now: Status, rows: int) -> str:
    """The status for people, with at most ``rows`` models."""
    facts = now.endpoint
    parts = [
        f"{facts.name}: {facts.status} since {console.when(facts.modified)} "
        f"(configuration {facts.config}); seen {console.when(now.at)}"
    ]
    if facts.failure:
        parts.append(f"why: {facts.failure}")
    if facts.update:
        parts.append(f"update: {facts.update}")
    parts += ["", _variants(now), *_scaling(now.scaling or ()), "", *_alarms(now), "", *_models(now, rows)]
    parts += ["", *(f"Not known: {what}. {why}" for what, why in now.unknown.items())] if now.unknown else []
    return console.plain("\n".join(parts))


def _variants(now: Status) -> str:
    figures = now.figures or {}
    scaling = {item.variant: item for item in now.scaling or ()}
    head = ("variant", "instances", "type", "weight", "requests", "failed", "cache hits", "loaded", "mean ms", "load s")
    return console.table(
        head, [_variant(item, figures.get(item.name), scaling.get(item.name)) for item in now.endpoint.variants]
    )


def _variant(item: Variant, seen: Figures | None, scaling: Scaling | None) -> tuple[str, ...]:
    count = "-" if item.current is None else str(item.current)
    if item.desired is not None and item.desired != item.current:
        count += f", going to {item.desired}"
    if scaling:
        count += f" ({scaling.minimum} to {scaling.maximum})"
    return (
        f"{item.name} (shadow)" if item.shadow else item.name,
        count,
        item.instance_type,
        "-" if item.weight is None else f"{item.weight:g}",
        f"{seen.requests:,}" if seen else "-",
        f"{seen.client_errors + seen.server_errors:,}" if seen else "-",
        "-" if seen is None or seen.hit_ratio is None else f"{100 * seen.hit_ratio:.1f} %",
        "-" if seen is None or seen.loaded is None else str(seen.loaded),
        _mean(seen.latency if seen else None, 1000, "{:.1f}"),
        _load(seen),
    )


def _mean(timing: Timing | None, factor: float, form: str) -> str:
    return form.format(timing.mean * factor) if timing else "-"


def _load(seen: Figures | None) -> str:
    """How long a request for a model that is not loaded waits: the download, and LOAD."""
    if seen is None or seen.load is None:
        return "-"
    fetched = seen.download.mean if seen.download else 0.0
    return f"{fetched:.2f} + {seen.load.mean:.2f} ({seen.load.count} loads)"


def _scaling(every: Sequence[Scaling]) -> list[str]:
    shown = []
    for item in every:
        words = [
            f"{policy.name} at {policy.target:g} {UNITS.get(policy.metric or '', policy.metric or '')}".rstrip()
            if policy.target is not None
            else f"{policy.name} ({policy.kind})"
            for policy in item.policies
        ]
        words += [f"{action.name} {action.when}: {action.minimum} to {action.maximum}" for action in item.schedules]
        if item.suspended:
            words.append(f"suspended: {', '.join(item.suspended)}")
        shown.append(f"autoscaling of {item.variant}: {'; '.join(words) or 'no policy and no schedule'}")
    return shown


def _alarms(now: Status) -> list[str]:
    if now.alarms is None:
        return ["alarms: not known"]
    own = [alarm for alarm in now.alarms if not alarm.scaling]
    if not own:
        return ["alarms: none"]
    counts = {state: sum(alarm.state == state for alarm in own) for state in ("ALARM", "OK", "INSUFFICIENT_DATA")}
    words = {"ALARM": "in ALARM", "OK": "OK", "INSUFFICIENT_DATA": "without data"}
    shown = ["alarms: " + ", ".join(f"{count} {words[state]}" for state, count in counts.items() if count)]
    for alarm in own:
        if alarm.state == "ALARM":
            since = f" since {console.when(alarm.since)}" if alarm.since else ""
            shown.append(f"  {alarm.name}{since}: {alarm.reason or alarm.metric}")
    return shown


def _models(now: Status, rows: int) -> list[str]:
    released, used = now.released, now.used
    shown = []
    if used and used.models:
        shown.append(f"most used since {console.when(used.since)}, {used.source}:")
        table = [
            (
                use.target,
                ", ".join(released.names_of(use.target)) or "-" if released else "-",
                f"{use.requests:,}",
                f"{use.cold:,}",
                f"{use.failed:,}",
                "-" if use.p50_ms is None else f"{use.p50_ms:.1f}",
                "-" if use.p99_ms is None else f"{use.p99_ms:.1f}",
            )
            for use in used.models[:rows]
        ]
        shown.append(console.table(("target", "names", "requests", "cold", "failed", "p50 ms", "p99 ms"), table))
        if len(used.models) > rows:
            shown.append(f"and {len(used.models) - rows} more (--rows)")
    elif used:
        shown.append(f"most used: no request in the log names its target model since {console.when(used.since)}")
    if released:
        shown += ["", *_released(released, rows)]
    return shown


def _released(released: Released, rows: int) -> list[str]:
    shown = [
        f"released in s3://{released.bucket}/{released.prefix}: {released.models:,} models, "
        f"{released.versions:,} versions, {console.size(released.size)}"
    ]
    if not released.meanings:
        return shown
    meanings = {item.name: item for item in released.meanings}
    models = {item.name: item.model for item in released.meanings}
    channels = [item.name for item in released.meanings if item.channel]
    ordered = shown_first(models, channels, [version.name for version in released.newest])
    table = [
        (
            name,
            console.shares(meanings[name].targets),
            f"channel, revision {meanings[name].revision}" if meanings[name].channel else "newest version",
        )
        for name in ordered[:rows]
    ]
    shown.append(console.table(("name", "means", "by"), table))
    if released.names > len(table):
        shown.append(
            f"and {released.names - len(table):,} other names "
            f"({released.channels:,} channels in all; --rows, invoke channels)"
        )
    return shown


def line(item: Line, *, several: bool) -> str:
    """One line of the log for people; ``several``: whether the instance is shown, since there are several."""
    where = f"{item.variant}/{item.instance} " if several else ""
    return console.plain(f"{item.time:%Y-%m-%d %H:%M:%S}.{item.time.microsecond // 1000:03}Z {where}{_said(item)}")


def _said(item: Line) -> str:
    if item.event == "invoke":
        total, cold = item.fields.get("total_ms"), " cold" if item.fields.get("cold") is True else ""
        took = f" {total:g} ms" if type(total) in (int, float) else ""
        words = f" {item.message}" if item.message else ""
        return f"{item.target or item.model or '-'} {item.status}{took}{cold}{words}"
    if not item.fields:
        return item.text
    known = ("time", "level", "event", "target", "message")
    rest = " ".join(
        f"{name}={_short(value)}" for name, value in item.fields.items() if name not in known and value is not None
    )
    head = f"{item.level.upper()} {item.event}" if item.level != "info" else item.event
    return " ".join(part for part in (head, item.target, item.message, rest) if part)


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def findings(results: Sequence[Finding], *, with_ok: bool) -> str:
    """Findings for people, the worst first: what is wrong, what to do, what to type."""
    words = {"error": "ERROR", "warning": "WARNING", "unknown": "NOT CHECKED", "ok": "ok"}
    shown = []
    for severity in ORDER:
        for item in results:
            if item.severity != severity or (severity == "ok" and not with_ok):
                continue
            shown.append(f"{words[severity]}  {item.check}: {item.what}")
            shown += [f"  {item.fix}"] if item.fix else []
            shown += [f"  $ {item.command}"] if item.command else []
    return console.plain("\n".join(shown) or "Nothing is wrong.")


def warmed(results: Sequence[Warmed], confidence: float) -> str:
    """The result for each model on each variant, for people."""
    words = {"warm": "warm", "perhaps": "answered", "unloaded": "UNLOADED", "refused": "loaded", "failed": "FAILED"}
    rows = []
    for item in results:
        if item.reached is not None:
            where = f"{item.reached} of {item.instances} (log)"
        elif item.state == "perhaps" and item.instances > 1:
            where = f"{item.instances} with {100 * confidence:g} %"
        else:
            where = f"1 of {item.instances}" if item.state in ("perhaps", "refused") else "-"
        first = "-" if item.first is None else f"{item.first:.2f}"
        rows.append((item.target, item.variant, words[item.state], where, str(item.requests), first, item.message[:80]))
    head = ("target", "variant", "state", "instances", "requests", "first s", "")
    return console.table(head, rows)


def watched(result: Answered | Problem, name: str) -> str:
    """The result of a save, for people."""
    from mme.operate.watch import Problem

    if isinstance(result, Problem):
        return console.plain(f"{result.text}\n  {name} means what it meant before.")
    body = result.answer.body[:200].decode("utf-8", "replace").replace("\n", " ")
    steps = f"packed {result.packed:.2f}, uploaded {result.uploaded:.2f}, loaded and answered {result.answered:.2f}"
    return console.plain(f"{result.target} answers after {result.saved:.2f} s ({steps}); {name} means it.\n  {body}")


def watched_json(result: Answered | Problem, name: str) -> dict[str, Any]:
    """The same as plain JSON values."""
    from mme.operate.watch import Problem

    if isinstance(result, Problem):
        return {"ok": False, "target": result.target, "problem": result.text, "channel": name}
    return {
        "ok": True,
        "target": result.target,
        "channel": name,
        "seconds": round(result.saved, 3),
        "packed_seconds": round(result.packed, 3),
        "uploaded_seconds": round(result.uploaded, 3),
        "answered_seconds": round(result.answered, 3),
        "answer": result.answer.body.decode("utf-8", "replace"),
    }
