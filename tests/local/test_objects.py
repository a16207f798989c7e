"""S3's bytes: what arrives is what was sent, in bounded memory, and of two who write first only one wins."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import psutil
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from local_tools import Cloud, error_of

from mme.local.s3.blobs import IN_MEMORY, Blob, Joined, Received, own
from mme.local.s3.receive import Refused, is_upload, receive

MIB = 1 << 20


def request(body: bytes, **more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "PUT",
        "PATH_INFO": "/bucket/key",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        **more,
    }


def chunked(data: bytes, size: int, trailer: str = "", signed: bool = False) -> bytes:
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    mark = b";chunk-signature=" + b"0" * 64 if signed else b""
    body = b"".join(f"{len(part):x}".encode() + mark + b"\r\n" + part + b"\r\n" for part in parts)
    return body + b"0" + mark + b"\r\n" + (trailer.encode() + b"\r\n" if trailer else b"") + b"\r\n"


def sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


# -- receiving


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 3 * IN_MEMORY), step=st.integers(1000, 100_000), signed=st.booleans())
def test_a_chunked_body_is_what_was_chunked(tmp_path_factory: Any, size: int, step: int, signed: bool) -> None:
    data = os.urandom(size)
    kind = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" if signed else "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    environ = request(
        chunked(data, step, f"x-amz-checksum-sha256:{sha256(data)}", signed),
        HTTP_X_AMZ_CONTENT_SHA256=kind,
        HTTP_X_AMZ_DECODED_CONTENT_LENGTH=str(size),
        HTTP_X_AMZ_TRAILER="x-amz-checksum-sha256",
    )
    folder = tmp_path_factory.mktemp("objects")
    received = receive(environ, folder)
    assert bytes(received.value) == data
    assert received.md5 == hashlib.md5(data).hexdigest()
    assert received.checksums == {"sha256": sha256(data)}
    assert isinstance(received.value, Blob) == (size > IN_MEMORY)


@pytest.mark.parametrize("size", [10, 2 * IN_MEMORY])
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"HTTP_CONTENT_MD5": base64.b64encode(b"0" * 16).decode()}, "BadDigest"),
        ({"HTTP_CONTENT_MD5": "nonsense"}, "InvalidDigest"),
        ({"HTTP_X_AMZ_CHECKSUM_SHA256": sha256(b"other")}, "BadDigest"),
        ({"HTTP_X_AMZ_CHECKSUM_SHA1": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}, "BadDigest"),
        ({"HTTP_X_AMZ_CHECKSUM_CRC32": "AAAAAA=="}, "BadDigest"),
        ({"CONTENT_LENGTH": "1000000"}, "IncompleteBody"),
        ({"HTTP_X_AMZ_CONTENT_SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, "IncompleteBody"),
    ],
)
def test_a_body_that_is_not_what_was_announced(tmp_path: Path, size: int, headers: dict[str, str], code: str) -> None:
    with pytest.raises(Refused) as caught:
        receive(request(b"z" * size, **headers), tmp_path)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_a_chunked_body_that_is_cut(tmp_path: Path) -> None:
    chunks = chunked(b"x" * 1000, 300)
    for cut in (10, 500, len(chunks) - 3):
        environ = request(
            chunks[:cut],
            HTTP_X_AMZ_CONTENT_SHA256="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            HTTP_X_AMZ_DECODED_CONTENT_LENGTH="1000",
        )
        if cut == len(chunks) - 3:
            continue  # only the last empty line is missing: all the data is there
        with pytest.raises(Refused):
            receive(environ, tmp_path)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, True),
        ({"QUERY_STRING": "partNumber=1&uploadId=x"}, True),
        ({"QUERY_STRING": "X-Amz-Signature=1&X-Amz-Date=2"}, True),
        ({"QUERY_STRING": "acl"}, False),
        ({"QUERY_STRING": "tagging="}, False),
        ({"HTTP_X_AMZ_COPY_SOURCE": "a/b"}, False),
        ({"PATH_INFO": "/bucket"}, False),
        ({"PATH_INFO": "/bucket/"}, False),
        ({"REQUEST_METHOD": "POST"}, False),
    ],
)
def test_what_is_an_upload(more: dict[str, str], expected: bool) -> None:
    assert is_upload(request(b"", **more)) is expected


def test_a_blob_is_read_in_parts_and_after_its_file_is_gone(tmp_path: Path) -> None:
    data = os.urandom(3 * MIB + 17)
    received = receive(request(data), tmp_path)
    blob = received.value
    assert isinstance(blob, Blob)
    assert bytes(blob[5:MIB]) == data[5:MIB]
    assert bytes(blob[2 * MIB :][10:20]) == data[2 * MIB + 10 : 2 * MIB + 20]
    view = blob.view()
    first = own(blob, tmp_path)
    second = own(blob, tmp_path)
    assert first is blob
    assert second.path != first.path
    first.path.unlink()
    assert bytes(view) == data
    assert bytes(second) == data
    assert bytes(Joined([b"head", second, b"tail"], tmp_path)) == b"head" + data + b"tail"


def test_parts_are_joined_when_they_are_read_and_lie_there_once(tmp_path: Path) -> None:
    data = [os.urandom(IN_MEMORY + 1), b"short", os.urandom(2 * MIB)]
    for read in (True, False):
        parts = [receive(request(part), tmp_path).value for part in data]
        joined = Joined(parts, tmp_path)
        assert len(joined) == sum(map(len, data))
        assert len(list(tmp_path.iterdir())) == 2
        if read:
            views = [joined.view(), joined.view()]
            assert [bytes(view) for view in views] == [b"".join(data)] * 2
            assert bytes(joined[IN_MEMORY : IN_MEMORY + 10]) == b"".join(data)[IN_MEMORY : IN_MEMORY + 10]
            assert list(tmp_path.iterdir()) == [joined.path]
        joined.discard()
        assert not list(tmp_path.iterdir())


def test_parts_that_cannot_be_joined_leave_no_half_of_it(tmp_path: Path) -> None:
    parts = [receive(request(os.urandom(2 * IN_MEMORY)), tmp_path).value for _ in range(2)]
    joined = Joined(parts, tmp_path)
    assert isinstance(parts[1], Blob)
    parts[1].path.write_bytes(b"cut")
    with pytest.raises(OSError, match="shorter"):
        joined.view()
    assert len(list(tmp_path.iterdir())) == 2


def test_received_needs_no_checksums() -> None:
    assert Received(b"", "").checksums == {}


# -- through the whole of S3


def server_memory(cloud: Cloud) -> int:
    assert cloud.aws.pid is not None
    return int(psutil.Process(cloud.aws.pid).memory_info().rss)


def test_a_large_archive_goes_up_and_down_in_little_memory(cloud: Cloud, tmp_path: Path) -> None:
    """boto3's own multipart upload and ranged download; moto alone would hold it several times over."""
    size = 160 * MIB
    source, copy = tmp_path / "source", tmp_path / "copy"
    block = os.urandom(MIB)
    with source.open("wb") as file:
        for number in range(size // MIB):
            file.write(number.to_bytes(8, "big") + block[8:])
    before = server_memory(cloud)
    cloud.s3.upload_file(str(source), cloud.bucket, "models/big.tar.gz")
    cloud.s3.download_file(cloud.bucket, "models/big.tar.gz", str(copy))
    assert source.read_bytes() == copy.read_bytes()
    assert server_memory(cloud) - before < size / 2
    head = cloud.s3.head_object(Bucket=cloud.bucket, Key="models/big.tar.gz")
    assert head["ContentLength"] == size
    assert head["ETag"].endswith('-20"')


def test_ranges(cloud: Cloud) -> None:
    data = os.urandom(200_000)
    cloud.s3.put_object(Bucket=cloud.bucket, Key="x", Body=data)

    def read(asked: str) -> bytes:
        answer = cloud.s3.get_object(Bucket=cloud.bucket, Key="x", Range=asked)
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        content: bytes = answer["Body"].read()
        return content

    assert read("bytes=0-9") == data[:10]
    assert read("bytes=100000-") == data[100000:]
    assert read("bytes=-7") == data[-7:]
    assert error_of(cloud.s3.get_object, Bucket=cloud.bucket, Key="x", Range="bytes=200000-")["Error"]["Code"] == (
        "InvalidRange"
    )
    # What is no range of bytes is passed over.
    for asked in ("everything", "lines=1-2", "bytes=5-2"):
        assert cloud.s3.get_object(Bucket=cloud.bucket, Key="x", Range=asked)["Body"].read() == data


def test_a_listing_refuses_numbers_and_tokens_that_s3_refuses(cloud: Cloud) -> None:
    for key in ("a", "b"):
        cloud.s3.put_object(Bucket=cloud.bucket, Key=key, Body=b"")
    for listing in (cloud.s3.list_objects, cloud.s3.list_objects_v2, cloud.s3.list_object_versions):
        refusal = error_of(listing, Bucket=cloud.bucket, MaxKeys=-1)
        assert refusal["Error"]["Code"] == "InvalidArgument"
        assert "between 0 and 2147483647" in refusal["Error"]["Message"]
        assert listing(Bucket=cloud.bucket, MaxKeys=5000)["MaxKeys"] == 1000
    refusal = error_of(cloud.s3.list_objects_v2, Bucket=cloud.bucket, ContinuationToken="made-up")
    assert refusal["Error"]["Message"] == "The continuation token provided is incorrect"
    first = cloud.s3.list_objects_v2(Bucket=cloud.bucket, MaxKeys=1)
    then = cloud.s3.list_objects_v2(Bucket=cloud.bucket, ContinuationToken=first["NextContinuationToken"])
    assert [item["Key"] for page in (first, then) for item in page["Contents"]] == ["a", "b"]


@pytest.mark.parametrize("size", [100, 300_000])
def test_a_wrong_checksum_is_refused_and_a_right_one_kept(cloud: Cloud, size: int) -> None:
    data = os.urandom(size)
    put = {"Bucket": cloud.bucket, "Key": "models/x", "Body": data}
    for algorithm, wrong in (("SHA256", sha256(b"other")), ("CRC32", "AAAAAA==")):
        refusal = error_of(cloud.s3.put_object, **put, **{f"Checksum{algorithm}": wrong})
        assert refusal["Error"]["Code"] == "BadDigest"
    assert error_of(cloud.s3.head_object, Bucket=cloud.bucket, Key="models/x")["Error"]["Code"] == "404"
    cloud.s3.put_object(**put, ChecksumSHA256=sha256(data))
    head = cloud.s3.head_object(Bucket=cloud.bucket, Key="models/x", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == sha256(data)
    assert head["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'


def multipart(cloud: Cloud, parts: list[bytes], finish: dict[str, Any], **create: Any) -> dict[str, Any]:
    key = {"Bucket": cloud.bucket, "Key": "models/parts"}
    upload = {**key, "UploadId": cloud.s3.create_multipart_upload(**key, **create)["UploadId"]}
    tags = []
    for number, data in enumerate(parts, 1):
        algorithm = {"ChecksumAlgorithm": create["ChecksumAlgorithm"]} if "ChecksumAlgorithm" in create else {}
        answer = cloud.s3.upload_part(**upload, PartNumber=number, Body=data, **algorithm)
        sums = {name: value for name, value in answer.items() if name.startswith("Checksum") and name != "ChecksumType"}
        tags.append({"PartNumber": number, "ETag": answer["ETag"], **sums})
    done: dict[str, Any] = cloud.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": tags}, **finish)
    return done


def test_the_checksum_of_an_object_in_parts(cloud: Cloud) -> None:
    parts = [os.urandom(5 * MIB), os.urandom(MIB)]
    composite = base64.b64encode(hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in parts)).digest()).decode()
    multipart(cloud, parts, {}, ChecksumAlgorithm="SHA256")
    head = cloud.s3.head_object(Bucket=cloud.bucket, Key="models/parts", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == f"{composite}-2"
    assert head["ETag"] == f'"{hashlib.md5(b"".join(hashlib.md5(p).digest() for p in parts)).hexdigest()}-2"'

    of_content = base64.b64encode(zlib.crc32(b"".join(parts)).to_bytes(4, "big")).decode()
    full = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
    multipart(cloud, parts, {"ChecksumCRC32": of_content}, **full)
    head = cloud.s3.head_object(Bucket=cloud.bucket, Key="models/parts", ChecksumMode="ENABLED")
    assert (head["ChecksumCRC32"], head["ChecksumType"]) == (of_content, "FULL_OBJECT")
    assert cloud.s3.get_object(Bucket=cloud.bucket, Key="models/parts")["Body"].read() == b"".join(parts)

    with pytest.raises(ClientError, match="BadDigest"):
        multipart(cloud, parts, {"ChecksumCRC32": "AAAAAA=="}, **full)


def test_of_many_conditional_writes_one_wins(cloud: Cloud) -> None:
    results: list[str] = []

    def put(number: int) -> None:
        s3 = cloud.client("s3")
        try:
            s3.put_object(Bucket=cloud.bucket, Key="models/m", Body=bytes([number]) * 100_000, IfNoneMatch="*")
            results.append(f"won {number}")
        except ClientError as problem:
            results.append(problem.response["Error"]["Code"])

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [result for result in results if result.startswith("won")]
    assert results.count("PreconditionFailed") == 7
    body = cloud.s3.get_object(Bucket=cloud.bucket, Key="models/m")["Body"].read()
    assert body == bytes([int(winner.split()[1])]) * 100_000


def test_copies_stand_on_their_own(cloud: Cloud) -> None:
    data = os.urandom(200_000)
    cloud.s3.put_object(Bucket=cloud.bucket, Key="a", Body=data)
    cloud.s3.copy_object(Bucket=cloud.bucket, Key="b", CopySource=f"{cloud.bucket}/a")
    cloud.s3.put_object(Bucket=cloud.bucket, Key="a", Body=b"new")
    cloud.s3.delete_object(Bucket=cloud.bucket, Key="a")
    copied = cloud.s3.get_object(Bucket=cloud.bucket, Key="b")
    assert copied["Body"].read() == data
    assert copied["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'


def test_versions_of_an_object_are_kept_apart(cloud: Cloud) -> None:
    cloud.s3.put_bucket_versioning(Bucket=cloud.bucket, VersioningConfiguration={"Status": "Enabled"})
    first, second = os.urandom(100_000), os.urandom(100_000)
    one = cloud.s3.put_object(Bucket=cloud.bucket, Key="a", Body=first)["VersionId"]
    cloud.s3.put_object(Bucket=cloud.bucket, Key="a", Body=second)
    assert cloud.s3.get_object(Bucket=cloud.bucket, Key="a", VersionId=one)["Body"].read() == first
    assert cloud.s3.get_object(Bucket=cloud.bucket, Key="a")["Body"].read() == second


def test_parts_of_an_upload_that_was_given_up_go(cloud: Cloud) -> None:
    key = {"Bucket": cloud.bucket, "Key": "models/parts"}
    upload = {**key, "UploadId": cloud.s3.create_multipart_upload(**key)["UploadId"]}
    cloud.s3.upload_part(**upload, PartNumber=1, Body=os.urandom(6 * MIB))
    cloud.s3.abort_multipart_upload(**upload)
    assert "Uploads" not in cloud.s3.list_multipart_uploads(Bucket=cloud.bucket)


def test_keys_with_odd_characters(cloud: Cloud) -> None:
    for key in ("a b+c", "ü/ñ%41", "plus+and&amp", "x" * 900):
        cloud.s3.put_object(Bucket=cloud.bucket, Key=key, Body=key.encode() * 1000)
        assert cloud.s3.get_object(Bucket=cloud.bucket, Key=key)["Body"].read() == key.encode() * 1000


def test_a_presigned_url_uploads_and_downloads(cloud: Cloud) -> None:
    import urllib.request

    data = os.urandom(100_000)
    place = {"Bucket": cloud.bucket, "Key": "models/x"}
    url = cloud.s3.generate_presigned_url("put_object", Params=place)
    sent = urllib.request.Request(url, data=data, method="PUT", headers={"Content-Type": "application/gzip"})
    with urllib.request.urlopen(sent) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(cloud.s3.generate_presigned_url("get_object", Params=place)) as answer:
        assert answer.read() == data


def test_an_upload_in_many_threads_at_once(cloud: Cloud, tmp_path: Path) -> None:
    source = tmp_path / "x"
    source.write_bytes(os.urandom(40 * MIB))
    config = TransferConfig(multipart_chunksize=5 * MIB, max_concurrency=8)
    cloud.s3.upload_file(str(source), cloud.bucket, "models/x", Config=config)
    assert cloud.s3.get_object(Bucket=cloud.bucket, Key="models/x")["Body"].read() == source.read_bytes()


@pytest.mark.parametrize(
    "key", ["two\nlines", "m/a\r\nb", "m/%0A", "m/../x", "m//x", "?a=b&c#d", 'm/"<&>"', "m/\u202eü"]
)
def test_keys_of_any_kind(cloud: Cloud, key: str) -> None:
    """Put, read, listed, copied and deleted under the name that they were given, and held to policies by it."""
    named = {"Bucket": cloud.bucket, "Key": key}
    cloud.s3.put_object(**named, Body=b"content")
    assert cloud.s3.get_object(**named)["Body"].read() == b"content"
    cloud.s3.copy_object(Bucket=cloud.bucket, Key="copy", CopySource=named)
    assert {item["Key"] for item in cloud.s3.list_objects_v2(Bucket=cloud.bucket)["Contents"]} == {key, "copy"}
    everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    denied = {"Effect": "Deny", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{cloud.bucket}/{key[:2]}*"}
    reader = cloud.client("s3", cloud.user(everything, denied))
    assert error_of(reader.get_object, **named)["Error"]["Code"] == "AccessDenied"
    assert reader.get_object(Bucket=cloud.bucket, Key="copy")["Body"].read() == b"content"
    cloud.s3.delete_object(**named)
    assert error_of(cloud.s3.get_object, **named)["Error"]["Code"] == "NoSuchKey"


def test_a_bucket_takes_access_logs_by_any_policy_that_allows_it(cloud: Cloud) -> None:
    logs = f"{cloud.bucket}-logs"
    cloud.s3.create_bucket(Bucket=logs)
    arn = f"arn:aws:s3:::{logs}"
    plain = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": [arn, f"{arn}/*"]}
    plain["Condition"] = {"Bool": {"aws:SecureTransport": "false"}}
    where = {"ArnLike": {"aws:SourceArn": f"arn:aws:s3:::{cloud.bucket}"}}
    deliver = {"Effect": "Allow", "Principal": {"Service": ["logging.s3.amazonaws.com"]}, "Action": ["s3:Put*"]}
    status = {"LoggingEnabled": {"TargetBucket": logs, "TargetPrefix": "search/"}}
    for resource, condition, code in (
        (f"{arn}/search/*", where, ""),
        (f"{arn}/other/*", where, "InvalidTargetBucketForLogging"),
        (f"{arn}/*", {"ArnLike": {"aws:SourceArn": "arn:aws:s3:::another"}}, "InvalidTargetBucketForLogging"),
    ):
        statement = [plain, {**deliver, "Resource": [resource], "Condition": condition}]
        cloud.s3.put_bucket_policy(Bucket=logs, Policy=json.dumps({"Version": "2012-10-17", "Statement": statement}))
        put = {"Bucket": cloud.bucket, "BucketLoggingStatus": status}
        if code:
            assert error_of(cloud.s3.put_bucket_logging, **put)["Error"]["Code"] == code
        else:
            cloud.s3.put_bucket_logging(**put)
            assert cloud.s3.get_bucket_logging(Bucket=cloud.bucket)["LoggingEnabled"]["TargetPrefix"] == "search/"
