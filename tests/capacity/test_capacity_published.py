"""Plans beside the models: what is put there, and what is there that somebody else put there."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import boto3
import pytest

from mme.capacity import published
from mme.errors import EndpointError, ReleaseError, UsageError
from mme.local import LocalAws
from mme.releases import Store

PLAN = published.Shown(
    "Goal: p99 under 300 ms.",
    [published.Table("Instances", ("instances", "USD"), [("2 x ml.m5.xlarge", "336")], 0)],
    [published.Picture("Cost", "<svg/>")],
    ["Prices: of the day."],
)


@pytest.fixture
def s3(local_aws: LocalAws) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=local_aws.url,
        region_name="us-east-1",
        aws_access_key_id=local_aws.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=local_aws.env["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture
def store(s3: Any) -> Iterator[Store]:
    name = f"plans-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    yield Store(name, "team/models/")
    for item in s3.list_objects_v2(Bucket=name).get("Contents", []):
        s3.delete_object(Bucket=name, Key=item["Key"])
    s3.delete_bucket(Bucket=name)


def test_a_plan_comes_back_as_it_was_put(s3: Any, store: Store) -> None:
    assert published.names(s3, store) == []
    where = published.publish(s3, store, "first", PLAN, datetime(2026, 11, 26, 10, tzinfo=timezone.utc))
    assert where == f"s3://{store.bucket}/team/plans/first.json"
    made, plan = published.read(s3, store, "first")
    assert made == "2026-11-26T10:00:00+00:00"
    assert plan == published.Shown(
        PLAN.goal,
        [published.Table("Instances", ["instances", "USD"], [["2 x ml.m5.xlarge", "336"]], 0)],
        list(PLAN.pictures),
        list(PLAN.notes),
    )
    published.publish(s3, store, "second", PLAN, datetime.now(timezone.utc))
    s3.put_object(Bucket=store.bucket, Key="team/plans/Not a plan.json", Body=b"{}")
    s3.put_object(Bucket=store.bucket, Key="team/plans/readme.txt", Body=b"")
    assert {name for name, _ in published.names(s3, store)} == {"first", "second"}


@pytest.mark.parametrize("name", ["", "A", "a_b", "../x", "a/b", "-a", "a-", "a" * 64, "ä"])
def test_a_name_that_is_none_is_refused(s3: Any, store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a plan"):
        published.publish(s3, store, name, PLAN, datetime.now(timezone.utc))


GOOD = {"format": 1, "made": "x", "goal": "g", "tables": [], "pictures": [], "notes": []}
TABLE = {"title": "t", "head": ["a"], "rows": [["b"]], "marked": None}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no json", "is not a plan"),
        (b"\xff\xfe", "is not a plan"),
        (b"[" * 100_000, "is not a plan"),
        (b" " * (published.MOST_BYTES + 1), "more than 2,000,000 bytes"),
        (b"[]", "its format is another one"),
        ({**GOOD, "format": 2}, "its format is another one"),
        ({key: value for key, value in GOOD.items() if key != "notes"}, "notes"),
        ({**GOOD, "goal": {"a": 1}}, "where words should be"),
        ({**GOOD, "notes": ["x"] * 51}, "a list of at most 50"),
        ({**GOOD, "pictures": [{"title": "t", "svg": 1}]}, "where words should be"),
        ({**GOOD, "pictures": ["svg"]}, "is not a plan"),
        ({**GOOD, "tables": [{**TABLE, "rows": [["b", "c"]]}]}, "a list of at most 1"),
        ({**GOOD, "tables": [{**TABLE, "rows": [[{}]]}]}, "where words should be"),
        ({**GOOD, "tables": [{**TABLE, "marked": "0"}]}, "the row that is marked"),
    ],
)
def test_an_object_that_is_not_a_plan_is_refused(s3: Any, store: Store, body: Any, words: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    s3.put_object(Bucket=store.bucket, Key="team/plans/odd.json", Body=json.dumps({**GOOD, "tables": [TABLE]}).encode())
    assert published.read(s3, store, "odd")[1].tables[0].rows == [["b"]]
    s3.put_object(Bucket=store.bucket, Key="team/plans/odd.json", Body=raw)
    with pytest.raises(EndpointError, match="is not a plan") as caught:
        published.read(s3, store, "odd")
    assert words in str(caught.value)


def test_one_that_is_not_there_and_a_bucket_that_is_not_there_are_said(s3: Any, store: Store) -> None:
    with pytest.raises(EndpointError, match="There is no plan gone"):
        published.read(s3, store, "gone")
    nowhere = Store(f"none-{uuid.uuid4().hex}", "models/")
    with pytest.raises(ReleaseError, match="Cannot put the plan"):
        published.publish(s3, nowhere, "first", PLAN, datetime.now(timezone.utc))
