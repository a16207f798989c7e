"""Uploads that ended half-way are gone on with, or given up."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from release_tools import (
    BIG,
    FIRST,
    STORE,
    TARGET,
    Killed,
    Watched,
    body_of,
    failing_pages,
    publish,
    refusal,
    stop_at_part,
)

from mme import releases
from mme.multipart import PART


def test_the_next_run_goes_on_with_an_unfinished_upload(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        publish(stop_at_part(s3, 3, Killed()), BIG, tmp_path)
    assert releases.list_versions(s3, STORE) == []
    assert list(releases.unfinished_uploads(s3, STORE)) == [TARGET]
    counted: list[int] = []
    done = publish(s3, BIG, tmp_path, progress=counted.append)
    assert done.status == "resumed"
    assert done.sent == len(BIG) - FIRST - PART
    assert sum(counted) == len(BIG)
    assert body_of(s3) == BIG
    assert releases.unfinished_uploads(s3, STORE) == {}


def record_of(s3: Any) -> releases.Record:
    (record,) = releases.read_records(s3, STORE, releases.list_versions(s3, STORE))
    return record


def test_a_run_with_notes_of_its_own_goes_on_only_with_such_an_upload(s3: Any, tmp_path: Path) -> None:
    for author, notes, status in [("ada", "new", "resumed"), ("ada", "newer", "uploaded"), ("bob", "new", "uploaded")]:
        with pytest.raises(Killed):
            publish(stop_at_part(s3, 3, Killed()), BIG, tmp_path, notes="new")
        done = publish(s3, BIG, tmp_path, author=author, notes=notes, own_notes=True)
        assert done.status == status
        assert (record_of(s3).author, record_of(s3).notes) == (author, notes)
        assert body_of(s3) == BIG
        assert releases.unfinished_uploads(s3, STORE) == {}
        releases.delete(s3, STORE, TARGET)


def test_a_run_without_notes_goes_on_with_whatever_is_there(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        publish(stop_at_part(s3, 3, Killed()), BIG, tmp_path, author="bob", notes="new")
    assert publish(s3, BIG, tmp_path).status == "resumed"
    assert (record_of(s3).author, record_of(s3).notes) == ("bob", "new")
    assert body_of(s3) == BIG


@pytest.mark.parametrize("parts", [[], [2], [2, 3]], ids=["no part", "the second", "second and third"])
def test_an_upload_without_its_first_part_is_given_up(s3: Any, tmp_path: Path, parts: list[int]) -> None:
    """Its parts may end anywhere, and S3 bills them. A run that is at work on it starts again."""
    place = {"Bucket": STORE.bucket, "Key": f"models/{TARGET}"}
    begun = s3.create_multipart_upload(**place, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    for number in parts:
        s3.upload_part(**place, UploadId=begun["UploadId"], PartNumber=number, Body=BIG[:PART])
    done = publish(s3, BIG, tmp_path)
    assert (done.status, done.sent) == ("uploaded", len(BIG))
    assert body_of(s3) == BIG
    assert releases.unfinished_uploads(s3, STORE) == {}


def test_an_upload_with_parts_of_another_size_is_given_up(s3: Any, tmp_path: Path) -> None:
    place = {"Bucket": STORE.bucket, "Key": f"models/{TARGET}"}
    begun = s3.create_multipart_upload(**place, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    s3.upload_part(**place, UploadId=begun["UploadId"], PartNumber=1, Body=BIG[: PART // 2])
    assert publish(s3, BIG, tmp_path).status == "uploaded"
    assert releases.unfinished_uploads(s3, STORE) == {}


def test_where_parts_cannot_be_listed_the_upload_starts_over(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        publish(stop_at_part(s3, 3, Killed()), BIG, tmp_path)
    failing_pages(s3, monkeypatch, "list_parts", refusal("AccessDenied", 403, "ListParts"))
    assert publish(s3, BIG, tmp_path).status == "uploaded"
    assert body_of(s3) == BIG
    assert releases.unfinished_uploads(s3, STORE) == {}


def test_an_upload_that_s3_does_not_let_go_stops_nobody(s3: Any, tmp_path: Path) -> None:
    begun = s3.create_multipart_upload(
        Bucket=STORE.bucket, Key=f"models/{TARGET}", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
    )
    watched = Watched(s3)

    def fail(**_: Any) -> None:
        raise refusal("InternalError", 500, "AbortMultipartUpload")

    watched.before["abort_multipart_upload"] = fail
    assert publish(watched, BIG, tmp_path).status == "uploaded"
    assert releases.unfinished_uploads(s3, STORE) == {TARGET: begun["UploadId"]}


def test_stale_uploads_are_given_up_and_live_ones_are_not(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        publish(stop_at_part(s3, 3, Killed()), BIG, tmp_path)
    now = datetime.now(timezone.utc)
    assert releases.abort_stale_uploads(s3, STORE, now=now) == []  # its parts are fresh
    later = now + timedelta(days=8)
    assert releases.abort_stale_uploads(s3, STORE, now=later, dry_run=True) == [TARGET]
    assert list(releases.unfinished_uploads(s3, STORE)) == [TARGET]
    assert releases.abort_stale_uploads(s3, STORE, now=later) == [TARGET]
    assert releases.unfinished_uploads(s3, STORE) == {}
