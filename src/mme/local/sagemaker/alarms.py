"""Evaluates CloudWatch's alarms on the metrics that are there: moto stores alarms and never evaluates them.

An alarm is judged on whole periods that have passed. Its words and its treatment of missing data are those of
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from mme.local.console import log
from mme.local.sagemaker.cloudwatch import percentile
from mme.local.sagemaker.minutes import Minutes

OK, ALARM, NO_DATA = "OK", "ALARM", "INSUFFICIENT_DATA"

_BREACHES: Mapping[str, tuple[Callable[[float, float], bool], str]] = {
    "GreaterThanThreshold": (operator.gt, "greater than"),
    "GreaterThanOrEqualToThreshold": (operator.ge, "greater than or equal to"),
    "LessThanThreshold": (operator.lt, "less than"),
    "LessThanOrEqualToThreshold": (operator.le, "less than or equal to"),
}


class Alarms:
    """Every alarm of the account."""

    def __init__(self, account: str, minutes: Minutes) -> None:
        self._account = account
        self._minutes = minutes

    def ringing(self, region: str, names: Sequence[str]) -> list[str]:
        """Those of the named alarms that are in the state ALARM."""
        from moto.cloudwatch.models import cloudwatch_backends

        alarms = cloudwatch_backends[self._account][region].alarms
        return [name for name in names if name in alarms and alarms[name].state_value == ALARM]

    def judge_all(self, now: float) -> None:
        """Gives every alarm the state that its metric has; ``now`` in seconds since the epoch."""
        from moto.cloudwatch.models import cloudwatch_backends

        for backend in list(cloudwatch_backends[self._account].values()):
            alarms = list(backend.alarms.values())
            watched = [alarm for alarm in alarms if alarm.metric_name and alarm.comparison_operator in _BREACHES]
            data: dict[tuple[str, str], list[Any]] = {(alarm.namespace, alarm.metric_name): [] for alarm in watched}
            for datum in list(backend.metric_data) if watched else ():
                if (datum.namespace, datum.name) in data:
                    data[datum.namespace, datum.name].append(datum)
            for alarm in watched:
                self._set(alarm, *self._judged(alarm, data[alarm.namespace, alarm.metric_name], now))
            for alarm in alarms:
                if alarm.rule:
                    self._set(alarm, *composite(alarm.rule, {one.name: one.state_value for one in alarms}))

    def latest(self, alarm: Any, region: str, now: float) -> float | None:
        """The last value that the alarm's metric had in the periods that it looks at."""
        from moto.cloudwatch.models import cloudwatch_backends

        points = self._points(alarm, list(cloudwatch_backends[self._account][region].metric_data), now)
        return next((point for point in reversed(points) if point is not None), None)

    def _points(self, alarm: Any, data: Sequence[Any], now: float) -> list[float | None]:
        """The metric in each period that the alarm looks at, the oldest first."""
        period = self._minutes.here(alarm.period)
        step = min(period, self._minutes.seconds)
        end = now // step * step  # the last moment before which nothing more can come
        wanted = {(dimension.name, dimension.value) for dimension in alarm.dimensions}
        periods: list[list[Any]] = [[] for _ in range(int(alarm.evaluation_periods))]
        start = end - period * len(periods)
        for datum in data:
            if datum.name != alarm.metric_name or datum.namespace != alarm.namespace:
                continue
            if alarm.unit and datum.unit != alarm.unit:
                continue
            at = _seconds(datum.timestamp)
            if start <= at < end and {(one.name, one.value) for one in datum.dimensions} == wanted:
                periods[min(int((at - start) / period), len(periods) - 1)].append(datum)
        return [_statistic(data, alarm.extended_statistic or alarm.statistic) for data in periods]

    def _judged(self, alarm: Any, data: Sequence[Any], now: float) -> tuple[str | None, str]:
        points = self._points(alarm, data, now)
        return judged(
            points,
            breaches=_BREACHES[alarm.comparison_operator],
            threshold=float(alarm.threshold),
            needed=int(alarm.datapoints_to_alarm or len(points)),
            missing=alarm.treat_missing_data or "missing",
        )

    @staticmethod
    def _set(alarm: Any, state: str | None, reason: str) -> None:
        if state is None or state == alarm.state_value:
            return
        if ALARM in (state, alarm.state_value):
            log(f"alarm {alarm.name}: {state}: {reason}")
        alarm.update_state(reason, "{}", state)


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _statistic(data: Iterable[Any], name: str) -> float | None:
    """The statistic of the records of one period, each of single values or of many; None where there are none."""
    count = total = 0.0
    least, most = float("inf"), float("-inf")
    steps: dict[int | None, int] = {}
    singles: list[float] = []
    for datum in data:
        value = getattr(datum, "value", None)
        if value is None:
            count, total = count + datum.sample_count, total + datum.sum
            least, most = min(least, datum.min), max(most, datum.max)
            for step, number in getattr(datum, "mme_counts", {}).items():
                steps[step] = steps.get(step, 0) + number
        else:
            count, total = count + 1, total + value
            least, most = min(least, value), max(most, value)
            singles.append(value)
    if not count:
        return None
    values = {"SampleCount": count, "Sum": total, "Average": total / count, "Minimum": least, "Maximum": most}
    if name in values:
        return values[name]
    part = float(name[1:]) / 100  # p99 and the like
    if singles:
        return sorted(singles)[max(0, min(len(singles) - 1, int(part * len(singles))))]
    return min(most, max(least, percentile(steps, part))) if steps else most


def judged(
    points: Sequence[float | None],
    *,
    breaches: tuple[Callable[[float, float], bool], str],
    threshold: float,
    needed: int,
    missing: str,
) -> tuple[str | None, str]:
    """The state of an alarm over its evaluation periods, the oldest first, and why; None: it stays as it is.

    ``needed`` datapoints of them must breach. ``missing`` is TreatMissingData.
    """
    breaching, words = breaches
    real = [point for point in points if point is not None]
    bad = [point for point in real if breaching(point, threshold)]
    gaps = len(points) - len(real)
    shown = ", ".join(f"{point:g}" for point in real)
    if not real and missing == "missing":
        return NO_DATA, f"Insufficient Data: {gaps} datapoint{_s(gaps)} were unknown."
    if not real and missing == "ignore":
        return None, ""
    assumed = gaps if missing == "breaching" else 0
    if len(bad) + assumed >= needed:
        crossed = f"{len(bad)} out of the last {len(points)} datapoints [{shown}] were {words} the threshold"
        return ALARM, f"Threshold Crossed: {crossed} ({threshold:g}) (minimum {needed} for OK -> ALARM transition)."
    if missing in ("missing", "ignore") and gaps and bad:
        # Too few points to say. If the first bad one is old enough, what there is decides; else it is too early.
        oldest = next(n for n, point in enumerate(points) if point is not None and breaching(point, threshold))
        if missing == "missing" and len(points) - oldest >= needed and len(bad) == len(real):
            return ALARM, f"Threshold Crossed: {len(bad)} datapoint{_s(len(bad))} [{shown}] {words} {threshold:g}."
        if len(bad) == len(real):
            return None, ""
    good = f"{len(real) - len(bad)} datapoint{_s(len(real) - len(bad))} [{shown}] not {words} the threshold"
    return OK, f"Threshold Crossed: {good} ({threshold:g})."


def _s(number: int) -> str:
    return "" if number == 1 else "s"


_TOKEN = re.compile(r'\s*(?:(AND|OR|NOT|TRUE|FALSE|\(|\))|(ALARM|OK|INSUFFICIENT_DATA)\s*\(\s*("[^"]*"|[^()]*?)\s*\))')


def composite(rule: str, states: Mapping[str, str]) -> tuple[str | None, str]:
    """The state of a composite alarm, whose rule is over the states of others; None where it cannot be read."""
    tokens: list[str | bool] = []
    at = 0
    while at < len(rule.rstrip()):
        match = _TOKEN.match(rule, at)
        if match is None:
            return None, ""
        at = match.end()
        if match[2]:
            name = match[3].strip('"').rpartition(":alarm:")[2] or match[3].strip('"')
            tokens.append(states.get(name) == match[2])
        else:
            tokens.append({"TRUE": True, "FALSE": False}.get(match[1], match[1]))
    try:
        value, rest = _either(tokens)
    except (IndexError, TypeError):
        return None, ""
    if rest:
        return None, ""
    return (ALARM if value else OK), f"The rule {rule} is {'true' if value else 'false'}."


def _either(tokens: list[str | bool]) -> tuple[bool, list[str | bool]]:
    value, rest = _both(tokens)
    while rest and rest[0] == "OR":
        other, rest = _both(rest[1:])
        value = value or other
    return value, rest


def _both(tokens: list[str | bool]) -> tuple[bool, list[str | bool]]:
    value, rest = _one(tokens)
    while rest and rest[0] == "AND":
        other, rest = _one(rest[1:])
        value = value and other
    return value, rest


def _one(tokens: list[str | bool]) -> tuple[bool, list[str | bool]]:
    first, rest = tokens[0], tokens[1:]
    if first == "NOT":
        value, rest = _one(rest)
        return not value, rest
    if first == "(":
        value, rest = _either(rest)
        if rest[0] != ")":
            raise TypeError
        return value, rest[1:]
    if not isinstance(first, bool):
        raise TypeError
    return first, rest
