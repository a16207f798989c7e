"""Price files: dated, of one region, and checked key by key."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from capacity_files import written

from mme.capacity import instances
from mme.errors import UsageError


def test_a_day_is_a_text_or_tomls_own_and_may_be_tomorrow_already(tmp_path: Path) -> None:
    tomorrow = (datetime.now(timezone.utc) + timedelta(days=1)).date()
    for day in ("2026-11-01", f'"{tomorrow}"', str(tomorrow)):
        text = GOOD.replace('"2026-11-01"', day)
        assert instances.load(written(tmp_path, text, "day.toml")).day == day.strip('"')


def test_the_shipped_prices_say_where_and_when_they_are_from() -> None:
    prices = instances.load()
    assert prices.region == "us-east-1"
    assert prices.day in prices.words
    assert "AWS Price List" in prices.words
    assert prices.type("ml.m5.xlarge").usd_per_hour == 0.23
    assert all(kind.vcpus and kind.memory and kind.usd_per_hour for kind in prices.types.values())


def test_a_type_without_a_price_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UsageError) as caught:
        instances.load().type("ml.m5.xlrage")
    assert "has no price of 'ml.m5.xlrage'" in str(caught.value)
    assert "ml.m5.xlarge" in str(caught.value)


def test_another_region_needs_another_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not of eu-west-1"):
        instances.load(region="eu-west-1")
    text = instances.SHIPPED.read_text().replace('"us-east-1"', '"eu-west-1"', 1)
    assert instances.load(written(tmp_path, text, "eu.toml"), "eu-west-1").region == "eu-west-1"


GOOD = """region = "r"
day = "2026-11-01"
source = "s"
[types]
"ml.a.b" = { vcpus = 2, memory_gib = 4, usd_per_hour = 0.1 }
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('region = "r"\n', ""), "region must be a text"),
        (('source = "s"\n', ""), "source must be a text"),
        (('day = "2026-11-01"\n', ""), "day is None; it must be which day"),
        (('"2026-11-01"', '"lately"'), "day is 'lately'; it must be which day"),
        (('"2026-11-01"', '"2026-11-31"'), "day is '2026-11-31'; it must be which day"),
        (('"2026-11-01"', '"01.11.2026"'), "day is '01.11.2026'; it must be which day"),
        (('"2026-11-01"', "20261101"), "day is 20261101; it must be which day"),
        (('"2026-11-01"', "2026-11-01T10:00:00Z"), "must be which day"),
        (('"2026-11-01"', "9999-12-31"), "day is 9999-12-31, which is still to come"),
        (("vcpus = 2", "vcpus = 0"), "vcpus is 0"),
        (("usd_per_hour = 0.1", "usd_per_hour = -1"), "usd_per_hour is -1"),
        ((", usd_per_hour = 0.1", ""), "usd_per_hour is None"),
        (("usd_per_hour", "eur_per_hour"), "eur_per_hour is not a key"),
        (('"ml.a.b"', '"m5.large"'), "is no instance type"),
        (("[types]", "[other]"), "types is missing"),
        (("{ vcpus", "vcpus"), "is not a price file"),
        (("vcpus = 2", "vcpus = 0.5"), "vcpus is 0.5"),
        (('region = "r"\n', 'region = "r"\ncurrency = "EUR"\n'), "prices are US dollars"),
        (('region = "r"\n', 'region = "r"\nspeed = 2\n'), "speed is not a key that is known"),
        (('region = "r"\n', 'region = "r"\nserverless = "none"\n'), "serverless is not a table"),
        (
            ("[types]", '[serverless]\nday = "d"\nsource = "s"\nusd_per_second = { 3 = 1 }\n[types]'),
            "serverless.day is 'd'",
        ),
        (
            ("[types]", '[serverless]\nday = "2026-11-01"\nsource = "s"\nusd_per_second = 1\n[types]'),
            "serverless is not a table",
        ),
        (
            ("[types]", '[serverless]\nday = "2026-11-01"\nsource = "s"\nusd_per_second = { "²" = 1 }\n[types]'),
            "has the key '²'; keys are GB of memory, 1 to 6",
        ),
    ],
)
def test_a_bad_price_file_is_refused_with_the_key(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    assert instances.load(written(tmp_path, GOOD, "good.toml")).type("ml.a.b").vcpus == 2
    with pytest.raises(UsageError) as caught:
        instances.load(written(tmp_path, GOOD.replace(*change), "bad.toml"))
    assert words in str(caught.value)
    assert "bad.toml" in str(caught.value)
