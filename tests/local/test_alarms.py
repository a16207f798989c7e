"""Alarms as CloudWatch judges them, on metrics of single values and of many."""

from __future__ import annotations

import operator
import random
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from moto.cloudwatch.models import CloudWatchBackend, cloudwatch_backends

from mme.local.sagemaker.alarms import Alarms, composite, judged
from mme.local.sagemaker.cloudwatch import CloudWatch, percentile
from mme.local.sagemaker.minutes import Minutes

ACCOUNT, REGION = "111122223333", "eu-west-1"
ABOVE = (operator.gt, "greater than")


def state(points: list[float | None], missing: str, needed: int | None = None) -> str | None:
    return judged(points, breaches=ABOVE, threshold=1.0, needed=needed or len(points), missing=missing)[0]


@pytest.mark.parametrize(
    ("points", "needed", "expected"),
    [
        # the state where missing data is: missing, ignore, breaching, notBreaching
        ([0.0, 2.0, 2.0], 3, ("OK", "OK", "OK", "OK")),
        ([2.0, 2.0, 2.0], 3, ("ALARM", "ALARM", "ALARM", "ALARM")),
        ([None, None, None], 3, ("INSUFFICIENT_DATA", None, "ALARM", "OK")),
        ([None, None, 0.0], 3, ("OK", "OK", "OK", "OK")),
        ([2.0, None, 2.0], 2, ("ALARM", "ALARM", "ALARM", "ALARM")),
        ([2.0, None, None], 3, ("ALARM", None, "ALARM", "OK")),
        ([None, None, 2.0], 3, (None, None, "ALARM", "OK")),  # too early: its first bad point is the last
        ([1.0], 1, ("OK", "OK", "OK", "OK")),  # not above the threshold
    ],
)
def test_states_and_missing_data(
    points: list[float | None], needed: int, expected: tuple[str | None, str | None, str, str]
) -> None:
    kinds = ("missing", "ignore", "breaching", "notBreaching")
    assert tuple(state(points, kind, needed) for kind in kinds) == expected


def test_the_reason_has_the_numbers() -> None:
    _, reason = judged([0.0, 5.0], breaches=ABOVE, threshold=1.0, needed=1, missing="missing")
    assert reason == (
        "Threshold Crossed: 1 out of the last 2 datapoints [0, 5] were greater than the threshold (1) "
        "(minimum 1 for OK -> ALARM transition)."
    )


def test_percentiles_are_within_a_percent_or_two() -> None:
    dice = random.Random(7)
    values = sorted(dice.lognormvariate(10, 2) for _ in range(2000))
    cloudwatch = CloudWatch(ACCOUNT, Minutes(60))
    for value in [*values, 0.0]:
        cloudwatch.metric(REGION, {"EndpointName": "percentiles"}, "ModelLatency", value, "Microseconds")
    counts: Counter[int | None] = Counter()
    for datum in cloudwatch_backends[ACCOUNT][REGION].metric_data:
        if datum.dimensions[0].value == "percentiles":
            counts.update(datum.mme_counts)
    for part in (0.5, 0.9, 0.99):
        assert percentile(counts, part) == pytest.approx(values[int(part * 2000)], rel=0.03)
    assert percentile(counts, 0.0) == 0.0
    assert percentile({}, 0.99) == 0.0


@pytest.fixture
def backend() -> CloudWatchBackend:
    cloudwatch: CloudWatchBackend = cloudwatch_backends[ACCOUNT][REGION]
    cloudwatch.alarms.clear()
    cloudwatch.metric_data.clear()
    return cloudwatch


def put(backend: CloudWatchBackend, now: float, *values: tuple[float, float], unit: str = "None") -> None:
    """A metric's values, each with the seconds that it is old."""
    for ago, value in values:
        moment = datetime.fromtimestamp(now - ago, timezone.utc)
        dimensions = [{"Name": "Queue", "Value": "q"}]
        datum = {"MetricName": "Depth", "Dimensions": dimensions, "Value": value, "Unit": unit}
        backend.put_metric_data("Mine", [{**datum, "Timestamp": moment.replace(tzinfo=None)}])


def alarm(backend: CloudWatchBackend, name: str, **more: Any) -> Any:
    named = {
        "namespace": "Mine",
        "metric_name": "Depth",
        "comparison_operator": "GreaterThanThreshold",
        "evaluation_periods": 1,
        "period": 60,
        "threshold": 10,
        "statistic": "Sum",
        "description": "",
        "dimensions": [{"Name": "Queue", "Value": "q"}],
        "alarm_actions": [],
        **more,
    }
    return backend.put_metric_alarm(name=name, **named)


def test_alarms_look_at_whole_periods_of_their_own_metric(backend: CloudWatchBackend) -> None:
    now = 1_800_000_030.0  # half a minute into one
    put(backend, now, (10, 100), (40, 6), (50, 6), (100, 1))
    backend.put_metric_data("Mine", [{"MetricName": "Depth", "Dimensions": [], "Value": 1000}])
    total, mean, most, other = (
        alarm(backend, "sum"),
        alarm(backend, "mean", statistic="Average"),
        alarm(backend, "p99", statistic=None, extended_statistic="p99", threshold=5),
        alarm(backend, "other", unit="Count"),
    )
    alarms = Alarms(ACCOUNT, Minutes(60))
    alarms.judge_all(now)
    assert (total.state_value, mean.state_value, most.state_value) == ("ALARM", "OK", "ALARM")
    assert other.state_value == "INSUFFICIENT_DATA"
    assert alarms.ringing(REGION, ["mean", "sum", "nobody"]) == ["sum"]
    assert "[12]" in total.state_reason
    alarms.judge_all(now + 60)  # the minute with 100 has passed
    assert mean.state_value == "ALARM"
    alarms.judge_all(now + 180)
    assert total.state_value == "INSUFFICIENT_DATA"


def test_a_shorter_minute_makes_periods_shorter(backend: CloudWatchBackend) -> None:
    now = 1_800_000_000.0
    put(backend, now, (0.5, 20), (1.5, 20), (2.5, 20))
    long, short = alarm(backend, "long", evaluation_periods=3), alarm(backend, "short", period=300, threshold=50)
    Alarms(ACCOUNT, Minutes(1)).judge_all(now)
    assert (long.state_value, short.state_value) == ("ALARM", "ALARM")


def test_a_change_of_state_is_kept_in_the_history(backend: CloudWatchBackend) -> None:
    now = 1_800_000_000.0
    put(backend, now, (30, 11))
    one = alarm(backend, "one")
    Alarms(ACCOUNT, Minutes(60)).judge_all(now)
    Alarms(ACCOUNT, Minutes(60)).judge_all(now)
    assert [entry[3] for entry in one.history] == ["OK"]
    assert one.state_updated_timestamp > datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(minutes=5)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("ALARM(a)", "ALARM"),
        ('ALARM("a") AND ALARM(b)', "OK"),
        ("ALARM(a) OR ALARM(b)", "ALARM"),
        ("NOT ALARM(a) OR (OK(b) AND NOT INSUFFICIENT_DATA(b))", "ALARM"),
        ("ALARM(arn:aws:cloudwatch:us-east-1:123456789012:alarm:a) AND TRUE", "ALARM"),
        ("FALSE OR OK(a)", "OK"),
        ("ALARM(nobody)", "OK"),
        ("ALARM(a) AND", None),
        ("ALARM(a", None),
        ("(ALARM(a)", None),
        ("ALARM(a) ALARM(b)", None),
        ("a > 3", None),
        ("", None),
    ],
)
def test_rules_of_composite_alarms(rule: str, expected: str | None) -> None:
    assert composite(rule, {"a": "ALARM", "b": "OK"})[0] == expected
