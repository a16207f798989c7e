"""Publishing: written once, checked, in parts of a size that fits."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from release_tools import BIG, DIGEST, FIRST, STORE, TARGET, Watched, body_of, crc_of, in_chunks, publish

from mme import aws, releases
from mme.errors import ReleaseError, UsageError
from mme.multipart import MAX_PARTS, MIB, PART, Upload, first_part, part_size
from mme.releases import Stream


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
        metadata = {"mme-digest": DIGEST}
        s3.put_object(
            Bucket=STORE.bucket, Key=f"models/{TARGET}", Body=b"smalL", Metadata=metadata, ChecksumAlgorithm="CRC32"
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


def test_a_digest_must_have_all_its_digits(s3: Any, tmp_path: Path) -> None:
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
