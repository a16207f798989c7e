"""Publishing: written once, checked, taken up again; listing and deleting."""

from __future__ import annotations

import base64
import hashlib
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from moto import mock_aws

from mme import aws, channels, releases
from mme.errors import ReleaseError, UsageError
from mme.multipart import MAX_PARTS, MIB, PART, Upload, first_part, part_size
from mme.releases import Store, Stream, Version

STORE = Store("models-bucket", "models/")
DIGEST = hashlib.sha256(b"a model").hexdigest()
TARGET = f"bert-{DIGEST[:12]}.tar.gz"
FIRST = first_part(PART, {"mme-digest": DIGEST, "mme-author": "ada"})
"""Where the first part ends, of an upload by ada and without notes."""
BIG = random.Random(7).randbytes(FIRST + 2 * PART + 12345)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=STORE.bucket)
        yield client


class Watched:
    """An S3 client that notes each call's name, and runs ``before[name]`` ahead of such a call."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls: list[str] = []
        self.before: dict[str, Callable[..., None]] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.client, name)
        if not callable(real) or name in ("get_paginator",):
            return real

        def call(**given: Any) -> Any:
            self.calls.append(name)
            if name in self.before:
                self.before[name](**given)
            return real(**given)

        return call


def refusal(code: str, status: int, operation: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        operation,
    )


def publish(s3: Any, content: Path | Stream | bytes, tmp_path: Path | None = None, **more: Any) -> releases.Published:
    if isinstance(content, bytes):
        assert tmp_path is not None
        path = tmp_path / "archive.tar.gz"
        path.write_bytes(content)
        content = path
    given = {"name": "bert", "digest": DIGEST, "author": "ada", **more}
    return releases.publish(s3, STORE, content=content, **given)


def body_of(s3: Any, target: str = TARGET) -> bytes:
    return bytes(s3.get_object(Bucket=STORE.bucket, Key=f"models/{target}")["Body"].read())


def crc_of(data: bytes) -> str:
    return base64.b64encode(struct.pack(">I", zlib.crc32(data))).decode()


# ---- the place ----------------------------------------------------------------------------------------------------


def test_what_lies_beside_the_models_is_in_the_same_folder() -> None:
    assert Store("bucket", "models/").root == ""
    assert Store("bucket", "a/b/models/").root == "a/b/"
    assert Store("bucket", "a/models/").uri("bert-0.tar.gz") == "s3://bucket/a/models/bert-0.tar.gz"


@pytest.mark.parametrize(
    "prefix", ["", "/", "models", "/models/", "a//models/", "models//", "channels/", "a/channels/"]
)
def test_a_prefix_that_cannot_work_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="prefix"):
        Store("bucket", prefix)


@pytest.mark.parametrize("bucket", ["s3://bucket", "bucket/models", "Bucket", "b", ""])
def test_a_bucket_that_is_no_name_is_refused(bucket: str) -> None:
    with pytest.raises(UsageError, match="not a bucket name"):
        Store(bucket)


def test_a_bucket_that_is_not_there(s3: Any) -> None:
    with pytest.raises(ReleaseError, match=r"no bucket no-such-bucket") as error:
        releases.check_bucket(s3, Store("no-such-bucket"))
    assert "--bucket" in str(error.value)


def test_a_bucket_in_another_region(s3: Any) -> None:
    elsewhere = boto3.client("s3", region_name="eu-west-1")
    elsewhere.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    with pytest.raises(ReleaseError, match="far-away is in eu-west-1, not in us-east-1") as error:
        releases.check_bucket(s3, Store("far-away"))
    assert "--region eu-west-1" in str(error.value)
    releases.check_bucket(elsewhere, Store("far-away"))


class PrefixOnly(Watched):
    """S3 as somebody sees it who may list below a prefix only: what is missing is forbidden, and so is the bucket."""

    def __getattr__(self, name: str) -> Any:
        real = super().__getattr__(name)
        if name not in ("head_bucket", "head_object", "get_object"):
            return real

        def call(**given: Any) -> Any:
            try:
                answer = real(**given)
            except ClientError:
                raise refusal("403", 403, name) from None
            if name == "head_bucket":
                raise refusal("403", 403, "HeadBucket")
            return answer

        return call


def test_a_publisher_who_may_list_below_the_prefix_only(s3: Any, tmp_path: Path) -> None:
    limited = PrefixOnly(s3)
    releases.check_bucket(limited, STORE)
    assert publish(limited, b"small", tmp_path).status == "uploaded"
    assert publish(limited, b"small", tmp_path).status == "present"
    channel = channels.read(limited, STORE, "bert")
    assert channel.etag is None
    channels.change(limited, STORE, channel, {TARGET: 1}, action="promote", author="ada")
    assert channels.read(limited, STORE, "bert").revision == 1
    with pytest.raises(ReleaseError, match="is not released"):
        channels.change(limited, STORE, channel, {"bert-000000000000.tar.gz": 1}, action="promote", author="ada")


def test_expired_credentials_are_told_although_a_head_says_nothing(s3: Any, tmp_path: Path) -> None:
    watched = Watched(s3)

    def refuse(**_: Any) -> None:
        raise refusal("400", 400, "HeadBucket")

    watched.before["head_bucket"] = watched.before["head_object"] = refuse
    releases.check_bucket(watched, STORE)  # the listing that follows gives the reason
    with pytest.raises(ReleaseError, match="without a reason") as error:
        publish(watched, b"small", tmp_path)
    assert "sign in again" in str(error.value)


def test_a_forbidden_object_that_is_there_is_not_called_missing(s3: Any, tmp_path: Path) -> None:
    publish(s3, b"small", tmp_path)
    watched = Watched(s3)

    def denied(**_: Any) -> None:
        raise refusal("403", 403, "HeadObject")

    watched.before["head_object"] = denied
    with pytest.raises(ReleaseError, match="no permission for HeadObject"):
        publish(watched, b"small", tmp_path)


# ---- publishing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"small", BIG[:FIRST], BIG[: FIRST + 1], BIG[: FIRST + PART], BIG], ids=len)
def test_what_is_published_is_what_was_read(s3: Any, tmp_path: Path, content: bytes) -> None:
    counted: list[int] = []
    done = publish(s3, content, tmp_path, progress=counted.append)
    assert done.status == "uploaded"
    assert done.target == TARGET
    assert done.uri == f"s3://models-bucket/models/{TARGET}"
    assert (done.size, done.sent, sum(counted)) == (len(content),) * 3
    assert body_of(s3) == content
    assert releases.unfinished_uploads(s3, STORE) == {}


def test_every_write_is_conditional_and_carries_checksums(s3: Any, tmp_path: Path) -> None:
    seen: dict[str, dict[str, Any]] = {}
    watched = Watched(s3)
    for name in ("put_object", "create_multipart_upload", "complete_multipart_upload"):
        watched.before[name] = lambda name=name, **given: seen.update({name: given})
    publish(watched, b"small", tmp_path)
    assert seen["put_object"]["IfNoneMatch"] == "*"
    assert seen["put_object"]["ChecksumCRC32"] == crc_of(b"small")
    publish(watched, BIG, tmp_path, name="big")
    assert seen["create_multipart_upload"]["ChecksumType"] == "FULL_OBJECT"
    complete = seen["complete_multipart_upload"]
    assert complete["IfNoneMatch"] == "*"
    assert complete["ChecksumCRC32"] == crc_of(BIG)
    assert complete["MpuObjectSize"] == len(BIG)
    parts = complete["MultipartUpload"]["Parts"]
    assert [part["PartNumber"] for part in parts] == [1, 2, 3, 4]
    assert parts[0]["ChecksumCRC32"] == crc_of(BIG[:FIRST])


def test_bodies_go_out_at_once_and_without_asking_first(s3: Any, tmp_path: Path) -> None:
    """boto3 would ask with Expect: 100-continue for each part, and send 16 KiB at a time."""
    ours = aws.s3_client("us-east-1")
    sent: list[tuple[str, Any, Any]] = []
    ours.meta.events.register(
        "before-send.s3",
        lambda request, **_: sent.append((request.method, request.body, request.headers.get("Expect"))),
    )
    publish(ours, b"small", tmp_path)
    publish(ours, BIG, tmp_path, name="big")
    bodies = [(body, expect) for method, body, expect in sent if method == "PUT"]
    assert sorted(len(body) for body, _ in bodies) == [5, 12345, PART, PART, FIRST]
    assert all(isinstance(body, bytes) and expect is None for body, expect in bodies)
    assert body_of(s3) == b"small"


@pytest.mark.parametrize("content", [b"small", BIG], ids=len)
def test_the_same_content_again_sends_nothing(s3: Any, tmp_path: Path, content: bytes) -> None:
    publish(s3, content, tmp_path)
    watched = Watched(s3)
    again = publish(watched, content, tmp_path)
    assert (again.status, again.sent) == ("present", 0)
    assert watched.calls == ["head_object"]


def test_a_listing_spares_the_look_at_each_object(s3: Any, tmp_path: Path) -> None:
    publish(s3, b"small", tmp_path)
    present = {version.target for version in releases.list_versions(s3, STORE)}
    watched = Watched(s3)
    assert publish(watched, b"small", tmp_path, present=present).status == "present"
    assert watched.calls == []


@pytest.mark.parametrize(("content", "write"), [(b"small", "put_object"), (BIG, "complete_multipart_upload")])
def test_of_two_runs_at_once_one_writes_and_both_succeed(s3: Any, tmp_path: Path, content: bytes, write: str) -> None:
    watched = Watched(s3)

    def somebody_is_faster(**_: Any) -> None:
        del watched.before[write]
        publish(s3, content, tmp_path, unfinished={})

    watched.before[write] = somebody_is_faster
    done = publish(watched, content, tmp_path)
    assert done.status == "present"
    assert body_of(s3) == content
    assert releases.unfinished_uploads(s3, STORE) == {}


def test_an_object_of_somebody_else_is_neither_taken_nor_overwritten(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=STORE.bucket, Key=f"models/{TARGET}", Body=b"not ours")
    with pytest.raises(ReleaseError, match="does not name the same content"):
        publish(s3, b"small", tmp_path)
    with pytest.raises(ReleaseError, match="does not name the same content"):
        publish(s3, BIG, tmp_path, present=())
    assert body_of(s3) == b"not ours"


def test_s3_holding_something_else_is_noticed(s3: Any, tmp_path: Path) -> None:
    watched = Watched(s3)

    def flip(**_: Any) -> None:
        kept = {"mme-digest": DIGEST}
        s3.put_object(
            Bucket=STORE.bucket, Key=f"models/{TARGET}", Body=b"smalL", Metadata=kept, ChecksumAlgorithm="CRC32"
        )

    watched.before["head_object"] = flip
    with pytest.raises(ReleaseError, match="does not hold what was sent"):
        publish(watched, BIG, tmp_path, present=())


@pytest.mark.parametrize("says", [None, "AAAAAA=="], ids=["no checksum", "another checksum"])
def test_a_small_object_is_looked_at_when_the_answer_does_not_confirm_it(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str | None
) -> None:
    watched = Watched(s3)
    assert publish(watched, b"small", tmp_path, present=(), unfinished={}).status == "uploaded"
    assert watched.calls == ["put_object"]
    real = s3.put_object
    monkeypatch.setattr(s3, "put_object", lambda **given: {**real(**given), "ChecksumCRC32": says})
    again = Watched(s3)
    assert publish(again, b"small", tmp_path, name="other", present=(), unfinished={}).status == "uploaded"
    assert again.calls == ["put_object", "head_object"]


@pytest.mark.parametrize("content", [b"small", BIG], ids=len)
def test_a_file_that_was_damaged_since_it_was_built_is_not_published(s3: Any, tmp_path: Path, content: bytes) -> None:
    built = zlib.crc32(content)
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(ReleaseError, match="changed or damaged since") as error:
        publish(s3, damaged, tmp_path, crc32=built)
    assert "invoke package --force --model bert" in str(error.value)
    assert releases.list_versions(s3, STORE) == []
    assert publish(s3, content, tmp_path, crc32=built).status in ("uploaded", "resumed")
    assert body_of(s3) == content


def test_a_digest_must_be_whole(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="64 hex digits"):
        publish(s3, b"small", tmp_path, digest=DIGEST[:12])


def test_author_and_notes_are_kept_in_any_language(s3: Any, tmp_path: Path) -> None:
    publish(s3, b"small", tmp_path, author="Ada Lovelace <ada@example.com>", notes="größer, schneller\n→ 日本語 100 %")
    (record,) = releases.read_records(s3, STORE, releases.list_versions(s3, STORE))
    assert record.author == "Ada Lovelace <ada@example.com>"
    assert record.notes == "größer, schneller\n→ 日本語 100 %"
    assert record.digest == DIGEST
    assert record.crc32 == crc_of(b"small")


def test_notes_that_do_not_fit_are_refused_before_anything_is_sent(s3: Any, tmp_path: Path) -> None:
    watched = Watched(s3)
    with pytest.raises(UsageError, match="too long"):
        publish(watched, b"small", tmp_path, notes="n" * 2000)
    assert watched.calls == []


# ---- a stream -----------------------------------------------------------------------------------------------------


def in_chunks(content: bytes, size: int) -> Stream:
    def send(write: Callable[[bytes], object]) -> None:
        for start in range(0, len(content), size):
            write(content[start : start + size])

    return Stream(send, len(content))


@pytest.mark.parametrize("size", [1000_003, 64 * MIB], ids=["small chunks", "one chunk"])
def test_a_stream_is_published_as_it_is_made(s3: Any, size: int) -> None:
    done = publish(s3, in_chunks(BIG, size))
    assert (done.status, done.size) == ("uploaded", len(BIG))
    assert body_of(s3) == BIG


def test_a_stream_that_breaks_off_publishes_nothing(s3: Any) -> None:
    def send(write: Callable[[bytes], object]) -> None:
        write(BIG[: FIRST + PART + 5])
        raise ReleaseError("A file changed while it was packed.")

    with pytest.raises(ReleaseError, match="changed while"):
        publish(s3, Stream(send, len(BIG)))
    assert releases.list_versions(s3, STORE) == []
    done = publish(s3, in_chunks(BIG, MIB))
    assert done.status == "resumed"
    assert done.sent == len(BIG) - FIRST - PART
    assert body_of(s3) == BIG


# ---- interruption -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


def stop_at_part(s3: Any, number: int, error: BaseException) -> Watched:
    watched = Watched(s3)

    def check(**given: Any) -> None:
        if given["PartNumber"] >= number:
            raise error

    watched.before["upload_part"] = check
    return watched


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


def test_a_run_that_insists_goes_on_only_with_an_upload_of_its_own_author_and_notes(s3: Any, tmp_path: Path) -> None:
    for author, notes, status in [("ada", "new", "resumed"), ("ada", "newer", "uploaded"), ("bob", "new", "uploaded")]:
        with pytest.raises(Killed):
            publish(stop_at_part(s3, 3, Killed()), BIG, tmp_path, notes="new")
        done = publish(s3, BIG, tmp_path, author=author, notes=notes, own_notes=True)
        assert done.status == status
        assert (record_of(s3).author, record_of(s3).notes) == (author, notes)
        assert body_of(s3) == BIG
        assert releases.unfinished_uploads(s3, STORE) == {}
        releases.delete(s3, STORE, TARGET)


def test_a_run_that_does_not_insist_goes_on_with_whatever_is_there(s3: Any, tmp_path: Path) -> None:
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


# ---- the answer is lost, and the client asks again ----------------------------------------------------------------


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


def failing_pages(s3: Any, monkeypatch: pytest.MonkeyPatch, operation: str, error: Exception) -> None:
    """Make the listing ``operation`` of this client fail."""

    class Failing:
        def paginate(self, **_: Any) -> Any:
            raise error

    real = s3.get_paginator
    monkeypatch.setattr(s3, "get_paginator", lambda name: Failing() if name == operation else real(name))


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


def test_few_parts_are_in_memory_at_once(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    real = Upload._part

    def count(self: Upload, body: bytes) -> None:
        nonlocal most
        real(self, body)
        most = max(most, len(self.sending))

    monkeypatch.setattr(Upload, "_part", count)
    monkeypatch.setattr("mme.multipart.PART", 5 * MIB)

    def send(write: Callable[[bytes], object]) -> None:
        for _ in range(100):
            write(bytes(MIB))

    publish(s3, Stream(send, 100 * MIB))
    assert 1 <= most <= 7


def test_where_the_first_part_ends_tells_the_metadata_apart() -> None:
    ends = {first_part(PART, {"mme-notes": str(number)}) - PART for number in range(200)}
    assert len(ends) > 190
    assert all(0 <= end < MIB for end in ends)
    assert first_part(PART, {"a": "1", "b": "2"}) == first_part(PART, {"b": "2", "a": "1"})


def test_parts_are_as_large_as_the_limit_on_their_number_asks() -> None:
    assert part_size(0) == part_size(PART * (MAX_PARTS - 100)) == PART
    for size in (PART * MAX_PARTS + 1, 500 * 10**9, 5 * 10**12):
        assert part_size(size) % MIB == 0
        assert 1.01 * size <= part_size(size) * MAX_PARTS < 1.01 * size + MAX_PARTS * MIB


def test_small_archives_share_the_room_and_a_large_one_takes_it_all() -> None:
    assert [releases.room_for(size) for size in (0, 1, PART, PART + 1, 3 * PART)] == [1, 1, 1, 2, 3]
    assert releases.room_for(10**9) == releases.room_for(10**12) == releases.AT_ONCE


# ---- unfinished uploads -------------------------------------------------------------------------------------------


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


# ---- listing and deleting -----------------------------------------------------------------------------------------


def release(s3: Any, target: str, size: int = 1) -> None:
    s3.put_object(Bucket=STORE.bucket, Key=f"models/{target}", Body=b"x" * size)


def test_listing_finds_versions_and_nothing_else(s3: Any) -> None:
    for target in (
        "bert-000000000001.tar.gz",
        "bert-large-000000000002.tar.gz",
        "team-a/bert-000000000003.tar.gz",
        "bert-0000000000aa-000000000004.tar.gz",
        "strangers-model.tar.gz",
        "bert-00000000000G.tar.gz",
        "bert-000000000005.tar.gz.sha256",
        "",
    ):
        release(s3, target)
    found = {(version.name, version.digest) for version in releases.list_versions(s3, STORE)}
    assert found == {
        ("bert", "000000000001"),
        ("bert-large", "000000000002"),
        ("team-a/bert", "000000000003"),
        ("bert-0000000000aa", "000000000004"),
    }
    assert [version.target for version in releases.list_versions(s3, STORE, "bert")] == ["bert-000000000001.tar.gz"]


def test_listing_goes_through_all_pages_newest_first(s3: Any) -> None:
    for number in range(23):
        release(s3, f"bert-{number:012x}.tar.gz", size=number % 3 + 1)
    s3.meta.events.register("provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 5})
    found = releases.list_versions(s3, STORE)
    assert len(found) == 23
    assert found == sorted(found, key=lambda version: (version.time, version.target), reverse=True)
    assert found[0].time.utcoffset() == timedelta(0)
    assert sum(version.size for version in found) == sum(number % 3 + 1 for number in range(23))


def version(name: str, digest: str, age: int = 0) -> Version:
    return Version(name, digest, 1, datetime(2026, 1, 31, tzinfo=timezone.utc) - timedelta(days=age))


SOME = [version("bert", "aaaa11112222"), version("gpt2", "aaaa99999999"), version("bert", "aaaa33334444", 1)]


def test_a_version_is_found_by_what_people_type() -> None:
    newest, _, older = SOME
    assert releases.find_version(SOME, "bert") == newest
    for wanted in ("aaaa3", "AAAA3333", "aaaa33334444", older.target, "bert-aaaa33334444", "aaaa33334444" + "0" * 52):
        assert releases.find_version(SOME, "bert", wanted) == older


def test_a_version_that_cannot_be_told_is_an_error() -> None:
    with pytest.raises(UsageError, match="fits several versions of bert: aaaa11112222, aaaa33334444"):
        releases.find_version(SOME, "bert", "aaaa")
    with pytest.raises(ReleaseError, match="bert has no version bbbb"):
        releases.find_version(SOME, "bert", "bbbb")
    with pytest.raises(UsageError, match="names no version"):
        releases.find_version(SOME, "bert", "aaa")
    with pytest.raises(UsageError, match="names no version"):
        releases.find_version(SOME, "bert", "gpt2-aaaa99999999.tar.gz")
    with pytest.raises(ReleaseError, match="t5 has no released version"):
        releases.find_version(SOME, "t5")


def test_deleting_takes_one_version_and_leaves_the_rest(s3: Any) -> None:
    release(s3, "bert-000000000001.tar.gz")
    release(s3, "bert-000000000002.tar.gz")
    releases.delete(s3, STORE, "bert-000000000001.tar.gz")
    assert [item.digest for item in releases.list_versions(s3, STORE)] == ["000000000002"]


def test_many_are_deleted_with_few_calls(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "DELETE_AT_ONCE", 4)
    targets = [f"bert-{number:012x}.tar.gz" for number in range(8)]
    for target in targets:
        release(s3, target)
    watched = Watched(s3)
    releases.delete_many(watched, STORE, targets[:-1])
    assert watched.calls == ["delete_objects", "delete_objects"]
    assert [item.target for item in releases.list_versions(s3, STORE)] == targets[-1:]


def test_what_s3_kept_is_said(s3: Any) -> None:
    class Keeps:
        def delete_objects(self, **_: Any) -> Any:
            return {"Errors": [{"Key": "models/bert-000000000001.tar.gz", "Code": "AccessDenied", "Message": "Denied"}]}

    with pytest.raises(ReleaseError, match=r"1 of 2 versions were not deleted.*Denied"):
        releases.delete_many(Keeps(), STORE, ["bert-000000000001.tar.gz", "bert-000000000002.tar.gz"])  # type: ignore[arg-type]


def test_pruning_keeps_the_newest_and_what_is_in_use() -> None:
    released = [version("bert", f"{age:012x}", age) for age in range(6)]
    released += [version("gpt2", f"{age:012x}", age) for age in range(3)]
    plan = releases.plan_prune(released, 2, {released[4].target})
    assert [item.target for item in plan] == [
        released[2].target,
        released[3].target,
        released[5].target,
        released[8].target,
    ]
    assert releases.plan_prune(released, 2, (), {"gpt2"}) == [released[8]]
    assert releases.plan_prune(released, 9, ()) == []
