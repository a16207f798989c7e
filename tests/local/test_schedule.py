"""Schedules of Application Auto Scaling, as AWS writes them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from mme.local.sagemaker.schedule import BadSchedule, due


def seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).replace(tzinfo=timezone.utc).timestamp()


def at(expression: str, moment: str, zone: str | None = None) -> bool:
    """Whether it is due in that minute."""
    then = seconds(moment)
    return due(expression, zone, then - 1, then + 1, made=0)


@pytest.mark.parametrize(
    ("expression", "hit", "miss"),
    [
        ("at(2030-01-02T03:04:05)", "2030-01-02T03:04:05", "2030-01-02T03:04:03"),
        ("cron(0 20 ? * MON-FRI *)", "2026-11-27T20:00", "2026-11-28T20:00"),
        ("cron(0 20 ? * mon-fri *)", "2026-11-27T20:00", "2026-11-27T20:01"),
        ("cron(*/15 8-10 * * ? *)", "2026-11-27T08:45", "2026-11-27T08:50"),
        ("cron(5/20 * * * ? *)", "2026-11-27T08:25", "2026-11-27T08:20"),
        ("cron(0 0 L * ? *)", "2026-02-28T00:00", "2026-02-27T00:00"),
        ("cron(0 0 LW * ? *)", "2026-01-30T00:00", "2026-01-31T00:00"),
        ("cron(0 0 15W * ? *)", "2026-11-16T00:00", "2026-11-15T00:00"),  # the 15th is a Sunday
        ("cron(0 0 1W * ? *)", "2026-08-03T00:00", "2026-07-31T00:00"),  # the 1st is a Saturday
        ("cron(0 0 ? * 6L *)", "2026-11-27T00:00", "2026-11-20T00:00"),
        ("cron(0 0 ? * 6#2 *)", "2026-11-13T00:00", "2026-11-20T00:00"),
        ("cron(0 0 ? * L *)", "2026-11-28T00:00", "2026-11-27T00:00"),
        ("cron(0 0 ? * SAT,SUN *)", "2026-11-29T00:00", "2026-11-27T00:00"),
        ("cron(0 0 1 JAN,jul ? 2026-2027)", "2027-07-01T00:00", "2028-07-01T00:00"),
        ("cron(0 22-2 * * ? *)", "2026-11-27T01:00", "2026-11-27T03:00"),
    ],
)
def test_moments(expression: str, hit: str, miss: str) -> None:
    assert at(expression, hit)
    assert not at(expression, miss)


def test_the_time_zone_counts() -> None:
    assert at("cron(0 7 * * ? *)", "2026-11-27T06:00", "Europe/Vienna")
    assert at("cron(0 7 * * ? *)", "2026-07-27T05:00", "Europe/Vienna")
    assert at("at(2026-07-27T07:00:00)", "2026-07-27T05:00:00", "Europe/Vienna")


def test_a_moment_counts_once() -> None:
    then = seconds("2026-11-27T20:00")
    expression = "cron(0 20 * * ? *)"
    assert due(expression, None, then - 30, then, made=0)
    assert not due(expression, None, then, then + 30, made=0)
    assert due(expression, None, then - 7200, then + 7200, made=0)


def test_a_rate_counts_from_its_beginning() -> None:
    assert not due("rate(5 minutes)", None, 1000, 1299, made=1000)
    assert due("rate(5 minutes)", None, 1299, 1300, made=1000)
    assert not due("rate(5 minutes)", None, 1300, 1599, made=1000)
    assert due("rate(1 day)", None, 1000 + 86399, 1000 + 86400, made=1000)
    assert due("rate(1 minute)", None, 1000, 1001, made=1000, rate=1 / 60)
    assert not due("rate(1 hour)", None, 0, 900, made=1000)


@pytest.mark.parametrize(
    "expression",
    ["daily", "at(tomorrow)", "rate(5)", "rate(5 weeks)", "rate(0 minutes)", "cron(0 20 * *)", "cron(x 20 * * ? *)"],
)
def test_what_cannot_be_read_says_so(expression: str) -> None:
    with pytest.raises(BadSchedule):
        due(expression, None, 0, 86400 * 2, made=0)


def test_a_time_zone_that_does_not_exist() -> None:
    with pytest.raises(BadSchedule, match="Nowhere"):
        due("cron(0 0 * * ? *)", "Europe/Nowhere", 0, 60, made=0)
