"""Answers that are lost, uploads that vanish, and credentials that expire while one publishes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError
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
from mme.errors import ReleaseError
from mme.multipart import PART


class LosesAnswers:
    """An S3 client whose answer to ``operation`` is lost once: asked again, S3 refuses (412), as boto3 then reports."""

    def __init__(self, client: Any, operation: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.client = client
        self.operation = operation
        self.meanwhile = meanwhile
        self.lost = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.client, name)
        if name != self.operation or self.lost:
            return real

        def call(**given: Any) -> Any:
            self.lost = True
            real(**given)
            self.meanwhile()
            return real(**given)  # raises

        return call


@pytest.mark.parametrize(
    ("content", "operation"), [(b"small", "put_object"), (BIG, "complete_multipart_upload")], ids=["small", "parts"]
)
def test_a_run_whose_answer_was_lost_knows_its_own_version(
    s3: Any, tmp_path: Path, content: bytes, operation: str
) -> None:
    done = publish(LosesAnswers(s3, operation), content, tmp_path, present=(), unfinished={})
    assert (done.status, done.sent) == ("uploaded", len(content))
    assert body_of(s3) == content
    assert releases.unfinished_uploads(s3, STORE) == {}


def test_a_resumed_run_whose_answer_was_lost_knows_its_own_version(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        publish(stop_at_part(s3, 3, Killed()), BIG, tmp_path)
    done = publish(LosesAnswers(s3, "complete_multipart_upload"), BIG, tmp_path)
    assert done.status == "resumed"
    assert 0 < done.sent < len(BIG)


@pytest.mark.parametrize("content", [b"small", BIG], ids=["small", "parts"])
def test_what_another_run_wrote_first_is_not_taken_for_ones_own(s3: Any, tmp_path: Path, content: bytes) -> None:
    """The same content, author and notes: only the mark tells the two apart."""
    watched = Watched(s3)

    def first(**_: Any) -> None:
        watched.before.clear()
        assert publish(s3, content, tmp_path, present=(), unfinished={}).status == "uploaded"

    watched.before["put_object" if content == b"small" else "complete_multipart_upload"] = first
    done = publish(watched, content, tmp_path, present=(), unfinished={})
    assert (done.status, done.sent) == ("present", 0)
    assert releases.unfinished_uploads(s3, STORE) == {}


def test_parts_of_another_build_are_not_trusted(s3: Any, tmp_path: Path) -> None:
    other = bytearray(BIG)
    other[FIRST + 1] ^= 1
    with pytest.raises(Killed):
        publish(stop_at_part(s3, 4, Killed()), bytes(other), tmp_path)
    done = publish(s3, BIG, tmp_path)
    assert done.status == "resumed"
    assert done.sent == len(BIG) - FIRST - PART  # the first and the third part are the same in both
    assert body_of(s3) == BIG


def test_an_upload_that_vanishes_is_started_again(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        publish(stop_at_part(s3, 3, Killed()), BIG, tmp_path)
    unfinished = releases.unfinished_uploads(s3, STORE)
    s3.abort_multipart_upload(Bucket=STORE.bucket, Key=f"models/{TARGET}", UploadId=unfinished[TARGET])
    done = publish(s3, BIG, tmp_path, unfinished=unfinished)
    assert done.status == "uploaded"
    assert body_of(s3) == BIG


def test_an_upload_that_vanishes_in_the_middle_is_started_again(s3: Any, tmp_path: Path) -> None:
    watched = stop_at_part(s3, 2, refusal("NoSuchUpload", 404, "UploadPart"))
    watched.before["create_multipart_upload"] = lambda **_: (
        watched.before.pop("upload_part") if watched.calls.count("create_multipart_upload") == 2 else None
    )
    assert publish(watched, BIG, tmp_path).status == "uploaded"
    assert body_of(s3) == BIG


def test_parts_that_another_run_replaced_start_the_upload_again(s3: Any, tmp_path: Path) -> None:
    watched = Watched(s3)

    def mixed(**_: Any) -> None:
        del watched.before["complete_multipart_upload"]
        raise refusal("InvalidPart", 400, "CompleteMultipartUpload")

    watched.before["complete_multipart_upload"] = mixed
    assert publish(watched, BIG, tmp_path).status == "uploaded"
    assert watched.calls.count("abort_multipart_upload") == 1
    assert body_of(s3) == BIG


def test_a_fight_over_one_upload_ends(s3: Any, tmp_path: Path) -> None:
    watched = Watched(s3)

    def mixed(**_: Any) -> None:
        raise refusal("InvalidPart", 400, "CompleteMultipartUpload")

    watched.before["complete_multipart_upload"] = mixed
    with pytest.raises(ReleaseError, match="other runs keep changing"):
        publish(watched, BIG, tmp_path)
    assert watched.calls.count("complete_multipart_upload") == 3


def test_a_token_that_expires_in_the_middle_says_what_to_do(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="credentials have expired") as error:
        publish(stop_at_part(s3, 2, refusal("ExpiredToken", 400, "UploadPart")), BIG, tmp_path)
    assert "run the same command" in str(error.value)
    assert publish(s3, BIG, tmp_path).status == "resumed"


def test_no_permission_says_which(s3: Any, tmp_path: Path) -> None:
    watched = Watched(s3)

    def denied(**_: Any) -> None:
        raise refusal("AccessDenied", 403, "PutObject")

    watched.before["put_object"] = denied
    with pytest.raises(ReleaseError, match="no permission for PutObject on bucket models-bucket"):
        publish(watched, b"small", tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        refusal("AccessDenied", 403, "ListMultipartUploads"),
        refusal("InternalError", 500, "ListMultipartUploads"),
        refusal("NotImplemented", 501, "ListMultipartUploads"),
        refusal("ServiceUnavailable", 503, "ListMultipartUploads"),
        ReadTimeoutError(endpoint_url="https://s3.example"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_where_uploads_cannot_be_listed_they_start_over(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing_pages(s3, monkeypatch, "list_multipart_uploads", error)
    assert publish(s3, BIG, tmp_path).status == "uploaded"


def test_credentials_that_expired_are_an_error_of_every_call(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_pages(s3, monkeypatch, "list_multipart_uploads", refusal("ExpiredToken", 400, "ListMultipartUploads"))
    with pytest.raises(ReleaseError, match="expired"):
        releases.unfinished_uploads(s3, STORE)
