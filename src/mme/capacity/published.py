"""Plans that are shown on the page of an endpoint: one JSON object each beside the model prefix, ``plans/NAME.json``.

It holds what a person reads: tables of text, and plots as SVG. Anybody who may write to the bucket can change it, so
reading checks everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from mme.aws import explained, is_missing
from mme.errors import EndpointError, UsageError
from mme.releases import Store

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

FORMAT = 1
MOST_BYTES = 2_000_000
MOST_ROWS = 100
MOST_PLANS = 50
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Table:
    """Rows of text under a header. ``marked``: the number of the row with the result."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: int | None = None


@dataclass(frozen=True)
class Picture:
    """A plot: an SVG document."""

    title: str
    svg: str


@dataclass(frozen=True)
class Shown:
    """A plan as a person reads it."""

    goal: str
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    notes: Sequence[str]


def check_name(name: str) -> str:
    """The name of a plan. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a plan.", "Small letters, digits and hyphens, 63 at most."
        )
    return name


def publish(s3: S3Client, store: Store, name: str, what: Shown, now: datetime) -> str:
    """Put the plan beside the model prefix, in the place of one of that name; its address."""
    document = {"format": FORMAT, "made": now.astimezone(timezone.utc).isoformat(timespec="seconds"), **asdict(what)}
    body = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    key = _key(store, check_name(name))
    with explained(f"put the plan to s3://{store.bucket}/{key}", bucket=store.bucket):
        s3.put_object(Bucket=store.bucket, Key=key, Body=body, ContentType="application/json")
    return f"s3://{store.bucket}/{key}"


def names(s3: S3Client, store: Store) -> list[tuple[str, datetime]]:
    """The plans, MOST_PLANS of them, and when each was put there; the newest first."""
    folder = _key(store, "")[: -len(".json")]
    plans: list[tuple[str, datetime]] = []
    with explained(f"list the plans of {store.uri()}", bucket=store.bucket):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=folder):
            for item in page.get("Contents", ()):
                name = item["Key"][len(folder) :].removesuffix(".json")
                if item["Key"].endswith(".json") and _NAME.fullmatch(name):
                    plans.append((name, item["LastModified"]))
    return sorted(plans, key=lambda one: one[1], reverse=True)[:MOST_PLANS]


def read(s3: S3Client, store: Store, name: str) -> tuple[str, Shown]:
    """(when it was made, the plan). Raises EndpointError where there is none, or where it is invalid."""
    key = _key(store, check_name(name))
    with explained(f"read the plan s3://{store.bucket}/{key}", bucket=store.bucket):
        try:
            answer = s3.get_object(Bucket=store.bucket, Key=key)
            body = answer["Body"].read(MOST_BYTES + 1)
        except ClientError as error:
            if is_missing(s3, store.bucket, key, error):
                raise EndpointError(f"There is no plan {name}.", "It was deleted.") from None
            raise
    try:
        if len(body) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        document = json.loads(body)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError("its format is another one")
        return _words(document["made"]), Shown(
            _words(document["goal"]),
            [_table(one) for one in _list(document["tables"], 10)],
            [Picture(_words(one["title"]), _words(one["svg"])) for one in _list(document["pictures"], 10)],
            [_words(one) for one in _list(document["notes"], 50)],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EndpointError(
            f"s3://{store.bucket}/{key} is not a plan: {error}.", "Write it anew: invoke capacity plan --publish NAME."
        ) from None


def _key(store: Store, name: str) -> str:
    return f"{store.root}plans/{name}.json"


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it has something else where words should be")
    return value


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"it has something else where a list of at most {most} should be")
    return value


def _table(value: Any) -> Table:
    marked = value["marked"]
    if marked is not None and (isinstance(marked, bool) or not isinstance(marked, int)):
        raise ValueError("the row that is marked has no number")
    head = [_words(cell) for cell in _list(value["head"], 20)]
    rows = [[_words(cell) for cell in _list(row, len(head))] for row in _list(value["rows"], MOST_ROWS)]
    return Table(_words(value["title"]), head, rows, marked)
