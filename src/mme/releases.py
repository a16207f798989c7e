"""Released versions: immutable objects under the model prefix.

A version is one object, ``NAME-DIGEST12.tar.gz`` under the prefix that the endpoint reads. It is written once, by a
conditional write, and never again: publishing the same content a second time sends nothing. Who published it and why
travels in the object's metadata, so that a version and its record are one write.

A large archive goes up in parts, several at a time, with a CRC32 over each part and over the whole, which S3 checks
itself. A run that was stopped at any point leaves nothing visible; the next run finds the unfinished upload and sends
only what is missing.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

from botocore.exceptions import ClientError
from isal.isal_zlib import crc32

from mme.aws import CONNECTIONS, code_of, explain, explained, status_of
from mme.errors import ReleaseError, UsageError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef

MIB = 1 << 20
PART = 8 * MIB
MAX_PARTS = 10_000
SENDERS = 6
MAX_NOTES = 1_400  # bytes once encoded; S3 keeps at most 2 KB of metadata with an object
STALE = timedelta(days=7)

_TARGET = re.compile(r"(?P<name>[a-z0-9][a-z0-9/-]*)-(?P<digest>[0-9a-f]{12})\.tar\.gz")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Store:
    """A model prefix in a bucket, and what lies beside it.

    ``prefix`` holds the archives and nothing else: the endpoint's role reads it. Channels
    lie in ``channels/`` beside it.
    """

    bucket: str
    prefix: str = "models/"

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise UsageError(
                f"{self.bucket!r} is not a bucket name",
                "Give the name alone, without s3:// and without a path: --bucket my-bucket --prefix models/.",
            )
        parts = self.prefix.split("/")
        if self.prefix.startswith("/") or parts[-1] or not all(parts[:-1]) or len(parts) < 2:
            raise UsageError(
                f"{self.prefix!r} is not a model prefix",
                "It is a folder inside the bucket and ends with one slash, as in models/ or production/models/.",
            )
        if parts[-2] == "channels":
            raise UsageError(
                f"the model prefix cannot be {self.prefix!r}: the channels are kept there",
                "Use another last folder, as in models/.",
            )

    @property
    def root(self) -> str:
        """The folder that the model prefix lies in: "" or "production/"."""
        return self.prefix[: self.prefix.rstrip("/").rfind("/") + 1]

    def key(self, target: str) -> str:
        """The object key of a target model."""
        return self.prefix + target

    def uri(self, target: str = "") -> str:
        """``s3://`` and so on, of a target model or of the whole prefix."""
        return f"s3://{self.bucket}/{self.prefix}{target}"


@dataclass(frozen=True)
class Version:
    """A released version as a listing shows it. ``size`` in bytes; ``time`` is when S3 received it (UTC)."""

    name: str
    digest: str  # the first 12 hex digits
    size: int
    time: datetime

    @property
    def target(self) -> str:
        """What InvokeEndpoint takes as TargetModel."""
        return f"{self.name}-{self.digest}.tar.gz"


@dataclass(frozen=True)
class Record:
    """What is kept with a version: the whole digest, who published it and why, and S3's checksum of the archive."""

    version: Version
    digest: str
    author: str
    notes: str
    crc32: str | None


@dataclass(frozen=True)
class Stream:
    """An archive that is made while it is sent.

    ``open`` gives its bytes from the start, each time it is called, the same ones each time; it raises when it cannot
    give the whole. ``size`` is in bytes and may be too large, not too small: it sets the size of the parts.
    """

    open: Callable[[], Iterable[bytes]]
    size: int


@dataclass(frozen=True)
class Published:
    """What became of one archive: ``present`` means that the bucket had it and nothing was sent."""

    name: str
    target: str
    uri: str
    digest: str
    status: Literal["uploaded", "resumed", "present"]
    size: int  # bytes of the archive; 0 when nothing was sent and the archive was a stream
    sent: int  # bytes that went over the wire


def target_of(name: str, digest: str) -> str:
    """The target model of a name and a digest (12 hex digits or more)."""
    return f"{name}-{digest[:12]}.tar.gz"


def parse_target(target: str) -> tuple[str, str] | None:
    """The name and the 12 digits of a target model, or None for an object that is no version of ours."""
    match = _TARGET.fullmatch(target)
    return (match["name"], match["digest"]) if match else None


# ---- reading ----------------------------------------------------------------------------------------------------


def check_bucket(s3: S3Client, store: Store) -> None:
    """Raise ReleaseError unless the bucket is there, may be used, and is in the client's region."""
    with explained(f"use {store.uri()}", bucket=store.bucket):
        answer = s3.head_bucket(Bucket=store.bucket)
    region = answer.get("BucketRegion")
    if region and region != s3.meta.region_name:
        raise ReleaseError(
            f"bucket {store.bucket} is in {region}, not in {s3.meta.region_name}",
            f"Give --region {region} (an endpoint loads models only from a bucket in its own region).",
        )


def list_versions(s3: S3Client, store: Store, name: str | None = None) -> list[Version]:
    """Every version under the prefix, or of one model, newest first; one listing, 1,000 versions a call.

    Objects that are no versions of ours are left out.
    """
    prefix = store.prefix + (f"{name}-" if name else "")
    found = []
    with explained(f"list {store.uri()}", bucket=store.bucket):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=prefix)
        for page in pages:
            for item in page.get("Contents", []):
                parsed = parse_target(item["Key"][len(store.prefix) :])
                if parsed and (name is None or parsed[0] == name):
                    found.append(Version(*parsed, item["Size"], item["LastModified"].astimezone(timezone.utc)))
    return sorted(found, key=lambda version: (version.time, version.target), reverse=True)


def find_version(versions: Iterable[Version], name: str, wanted: str | None = None) -> Version:
    """The version of ``name`` that ``wanted`` means: a target, or the start of a digest; None: the newest.

    ``versions`` is what ``list_versions`` gave. Raises ReleaseError when none or several fit.
    """
    own = [version for version in versions if version.name == name]
    if not own:
        raise ReleaseError(f"{name} has no released version", f"Release one: invoke package upload --model {name}.")
    if wanted is None:
        return own[0]
    start = wanted.removeprefix(f"{name}-").removesuffix(".tar.gz").lower()[:12]
    if not re.fullmatch(r"[0-9a-f]{4,12}", start):
        raise UsageError(
            f"{wanted!r} names no version",
            f"A version is a target as in {own[0].target}, or the first digits of its digest, four or more.",
        )
    fitting = [version for version in own if version.digest.startswith(start)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        choices = ", ".join(version.digest for version in fitting)
        raise UsageError(f"{wanted} fits several versions of {name}: {choices}", "Give more digits.")
    raise ReleaseError(f"{name} has no version {wanted}", f"See what there is: invoke releases --model {name}.")


def read_records(s3: S3Client, store: Store, versions: Collection[Version]) -> list[Record]:
    """What is kept with each of ``versions``, in their order; one call each, several at a time."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(lambda version: _read_record(s3, store, version), versions))


def _read_record(s3: S3Client, store: Store, version: Version) -> Record:
    with explained(f"read {store.uri(version.target)}", bucket=store.bucket):
        head = s3.head_object(Bucket=store.bucket, Key=store.key(version.target), ChecksumMode="ENABLED")
    kept = head.get("Metadata", {})
    return Record(
        version,
        digest=kept.get("mme-digest", ""),
        author=unquote(kept.get("mme-author", "")),
        notes=unquote(kept.get("mme-notes", "")),
        crc32=head.get("ChecksumCRC32"),
    )


# ---- publishing -------------------------------------------------------------------------------------------------


def publish(
    s3: S3Client,
    store: Store,
    *,
    name: str,
    digest: str,
    content: Path | Stream,
    author: str,
    notes: str = "",
    present: Collection[str] | None = None,
    unfinished: Mapping[str, str] | None = None,
    progress: Progress = lambda sent: None,
) -> Published:
    """Make ``content`` the version of ``name`` with this content digest (64 hex digits), unless it is there already.

    ``present`` (targets) and ``unfinished`` (from ``unfinished_uploads``) spare calls when many are published after one
    listing; left out, the bucket is asked. ``progress`` is called with the number of bytes that are newly safe.
    Raises ReleaseError; the version is then not visible, unless the error says otherwise.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ReleaseError(f"{digest!r} is not a sha256 digest of 64 hex digits")
    target = target_of(name, digest)
    metadata = _metadata(digest, author, notes)
    is_there = _is_there(s3, store, target, digest) if present is None else target in present
    if is_there:
        size = content.stat().st_size if isinstance(content, Path) else 0
        return Published(name, target, store.uri(target), digest, "present", size, 0)
    if unfinished is None:
        unfinished = unfinished_uploads(s3, store, target)
    upload = _Upload(s3, store, target, digest, metadata, progress)
    with explained(f"upload {store.uri(target)}", bucket=store.bucket):
        return upload.run(name, content, unfinished.get(target))


def check_notes(author: str, notes: str) -> None:
    """Raise UsageError when author and notes are too long to be kept with a version."""
    _metadata("0" * 64, author, notes)


def unfinished_uploads(s3: S3Client, store: Store, target: str = "") -> dict[str, str]:
    """The upload to go on with for each target that has one (all targets, or those that start with ``target``).

    An account that may not list uploads cannot go on with one: the answer is then empty.
    """
    newest: dict[str, tuple[datetime, str]] = {}
    try:
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=store.bucket, Prefix=store.key(target))
        for page in pages:
            for item in page.get("Uploads", []):
                ours = item.get("ChecksumAlgorithm", "CRC32") == "CRC32"
                whole = item.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
                if ours and whole:
                    found = (item["Initiated"], item["UploadId"])
                    name = item["Key"][len(store.prefix) :]
                    newest[name] = max(newest.get(name, found), found)
    except ClientError as error:
        if status_of(error) == 403 and code_of(error) == "AccessDenied":
            return {}
        raise explain(error, f"look for unfinished uploads in {store.uri()}", bucket=store.bucket) from error
    return {name: upload for name, (_, upload) in newest.items()}


def abort_stale_uploads(
    s3: S3Client, store: Store, *, older_than: timedelta = STALE, now: datetime | None = None, dry_run: bool = False
) -> list[str]:
    """Give up the unfinished uploads under the prefix to which nothing was added for ``older_than``; their targets.

    Parts of an unfinished upload are billed and shown by no listing of objects.
    """
    limit = (now or datetime.now(timezone.utc)) - older_than
    given_up = []
    with explained(f"clean up unfinished uploads in {store.uri()}", bucket=store.bucket):
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=store.bucket, Prefix=store.prefix)
        uploads = [item for page in pages for item in page.get("Uploads", [])]
        for item in uploads:
            if item["Initiated"] > limit:
                continue
            where: dict[str, Any] = {"Bucket": store.bucket, "Key": item["Key"], "UploadId": item["UploadId"]}
            parts = s3.get_paginator("list_parts").paginate(**where)
            if any(part["LastModified"] > limit for page in parts for part in page.get("Parts", [])):
                continue
            if not dry_run:
                s3.abort_multipart_upload(**where)
            given_up.append(item["Key"][len(store.prefix) :])
    return given_up


def delete(s3: S3Client, store: Store, target: str) -> None:
    """Remove one version. In a bucket with versioning, S3 keeps the old object behind a delete marker."""
    with explained(f"delete {store.uri(target)}", bucket=store.bucket):
        s3.delete_object(Bucket=store.bucket, Key=store.key(target))


def part_size(size: int) -> int:
    """The size of a part, in bytes, for an archive of ``size`` bytes: S3 takes at most 10,000 parts."""
    return max(PART, -(-size // (MAX_PARTS * MIB)) * MIB)


def _metadata(digest: str, author: str, notes: str) -> dict[str, str]:
    # Metadata travels in HTTP headers: percent-encoding keeps every language and every line break whole.
    kept = {"mme-digest": digest, "mme-author": quote(author, safe=" @:/+"), "mme-notes": quote(notes, safe=" ,:/")}
    if len(kept["mme-author"]) + len(kept["mme-notes"]) > MAX_NOTES:
        raise UsageError(
            f"author and notes are too long to be kept with a version ({MAX_NOTES} bytes at most)",
            "Shorten the notes; put a link to the rest.",
        )
    return {key: value for key, value in kept.items() if value}


def _is_there(s3: S3Client, store: Store, target: str, digest: str) -> bool:
    """Whether the bucket holds this target; raises ReleaseError when what it holds is something else."""
    try:
        head = s3.head_object(Bucket=store.bucket, Key=store.key(target))
    except ClientError as error:
        if status_of(error) == 404:
            return False
        raise explain(error, f"look for {store.uri(target)}", bucket=store.bucket) from error
    if head.get("Metadata", {}).get("mme-digest") != digest:
        raise ReleaseError(
            f"{store.uri(target)} is there, but its metadata does not name the same content",
            "Something else put it there. Look at it, then remove it (invoke delete) and upload again.",
        )
    return True


class _Gone(Exception):
    """The unfinished upload is no longer there, or holds parts of another build: start over."""


class _Upload:
    """One archive on its way into the bucket."""

    def __init__(
        self, s3: S3Client, store: Store, target: str, digest: str, metadata: dict[str, str], progress: Progress
    ) -> None:
        self.s3 = s3
        self.store = store
        self.target = target
        self.digest = digest
        self.metadata = metadata
        self.progress = progress
        self.size = self.sent = self.crc = 0

    @property
    def where(self) -> dict[str, Any]:
        return {"Bucket": self.store.bucket, "Key": self.store.key(self.target)}

    def run(self, name: str, content: Path | Stream, unfinished: str | None) -> Published:
        status: Literal["uploaded", "resumed", "present"] = "uploaded"
        for attempt in range(3):
            self.size = self.sent = self.crc = 0
            resume = unfinished if attempt == 0 else None
            try:
                resumed = self._send(content, resume)
                status = "resumed" if resumed else "uploaded"
                break
            except _Gone:
                # Another run finished, gave up or mixed its own parts into the upload. The first case is a success.
                if _is_there(self.s3, self.store, self.target, self.digest):
                    status = "present"
                    break
        else:
            raise ReleaseError(
                f"cannot upload {self.store.uri(self.target)}: other runs keep changing the same upload",
                "Let one run at a time publish this model, then run the same command again.",
            )
        if status != "present":
            self._verify()
        return Published(name, self.target, self.store.uri(self.target), self.digest, status, self.size, self.sent)

    def _send(self, content: Path | Stream, unfinished: str | None) -> bool:
        """Send the whole archive; whether an earlier run had sent a part of it."""
        size = content.stat().st_size if isinstance(content, Path) else content.size
        with closing(_parts(content, part_size(size))) as parts:
            first = next(parts, b"")
            second = next(parts, None)
            if second is None:
                self._put(first)
                return False
            return self._multipart(_chain(first, second, parts), unfinished)

    def _put(self, body: bytes) -> None:
        self._count(body)
        try:
            self.s3.put_object(
                **self.where,
                Body=body,
                IfNoneMatch="*",
                ChecksumCRC32=_text(self.crc),
                ContentType="application/gzip",
                Metadata=self.metadata,
            )
        except ClientError as error:
            if status_of(error) in (409, 412):
                raise _Gone from error
            raise
        self.sent += len(body)
        self.progress(len(body))

    def _multipart(self, parts: Iterator[bytes], unfinished: str | None) -> bool:
        have = self._parts_of(unfinished) if unfinished else {}
        upload = unfinished or self._create()
        done: list[CompletedPartTypeDef] = []
        resumed = False
        with ThreadPoolExecutor(SENDERS) as pool:
            sending: dict[Future[CompletedPartTypeDef], int] = {}
            try:
                for number, body in enumerate(parts, 1):
                    crc = crc32(body)
                    self._count(body)
                    if _same(have.get(number), body, crc):
                        done.append({"PartNumber": number, "ETag": have[number].etag, "ChecksumCRC32": _text(crc)})
                        self.progress(len(body))
                        resumed = True
                        continue
                    # The pool would take every part at once; this holds at most SENDERS + 1 of them in memory.
                    if len(sending) > SENDERS:
                        done += self._collect(sending)
                    sending[pool.submit(self._send_part, upload, number, body, crc)] = len(body)
                while sending:
                    done += self._collect(sending)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._complete(upload, sorted(done, key=lambda part: part["PartNumber"]))
        return resumed

    def _collect(self, sending: dict[Future[CompletedPartTypeDef], int]) -> list[CompletedPartTypeDef]:
        finished, _ = wait(sending, return_when=FIRST_COMPLETED)
        parts = []
        for future in finished:
            size = sending.pop(future)
            parts.append(future.result())
            self.sent += size
            self.progress(size)
        return parts

    def _create(self) -> str:
        answer = self.s3.create_multipart_upload(
            **self.where,
            ChecksumAlgorithm="CRC32",
            ChecksumType="FULL_OBJECT",
            ContentType="application/gzip",
            Metadata=self.metadata,
        )
        return answer["UploadId"]

    def _send_part(self, upload: str, number: int, body: bytes, crc: int) -> CompletedPartTypeDef:
        try:
            answer = self.s3.upload_part(
                **self.where,
                UploadId=upload,
                PartNumber=number,
                Body=body,
                ChecksumCRC32=_text(crc),
            )
        except ClientError as error:
            if code_of(error) == "NoSuchUpload":
                raise _Gone from error
            raise
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": _text(crc)}

    def _complete(self, upload: str, parts: list[CompletedPartTypeDef]) -> None:
        try:
            self.s3.complete_multipart_upload(
                **self.where,
                UploadId=upload,
                IfNoneMatch="*",
                ChecksumCRC32=_text(self.crc),
                ChecksumType="FULL_OBJECT",
                MpuObjectSize=self.size,
                MultipartUpload={"Parts": parts},
            )
        except ClientError as error:
            code = code_of(error)
            if status_of(error) in (409, 412) or code in ("InvalidPart", "BadDigest"):
                self._abort(upload)
                raise _Gone from error
            if code == "NoSuchUpload":
                raise _Gone from error
            raise

    def _abort(self, upload: str) -> None:
        try:
            self.s3.abort_multipart_upload(**self.where, UploadId=upload)
        except ClientError as error:
            if status_of(error) not in (403, 404):  # a clean-up that is not allowed is left to the lifecycle rule
                raise

    def _parts_of(self, upload: str) -> dict[int, _Part]:
        try:
            pages = self.s3.get_paginator("list_parts").paginate(**self.where, UploadId=upload)
            return {
                part["PartNumber"]: _Part(part["ETag"], part["Size"], part.get("ChecksumCRC32"))
                for page in pages
                for part in page.get("Parts", [])
            }
        except ClientError as error:
            if code_of(error) == "NoSuchUpload":
                raise _Gone from error
            raise

    def _count(self, body: bytes) -> None:
        self.crc = crc32(body, self.crc)
        self.size += len(body)

    def _verify(self) -> None:
        """Ask S3 what it holds: it must be what was read here."""
        head = self.s3.head_object(**self.where, ChecksumMode="ENABLED")
        held = (head["ContentLength"], head.get("ChecksumCRC32", _text(self.crc)))
        if held != (self.size, _text(self.crc)) or head.get("Metadata", {}).get("mme-digest") != self.digest:
            raise ReleaseError(
                f"{self.store.uri(self.target)} was uploaded, but S3 holds something else than was sent",
                f"Remove it (invoke delete --target {self.target}) and upload again.",
            )


@dataclass(frozen=True)
class _Part:
    etag: str
    size: int
    crc: str | None


def _same(part: _Part | None, body: bytes, crc: int) -> bool:
    """Whether an earlier run sent exactly this part."""
    if part is None or part.size != len(body):
        return False
    if part.crc:
        return part.crc == _text(crc)
    # Without a checksum in the listing the ETag has to do: the MD5, unless KMS encrypts (then it never fits, and the
    # part is sent again).
    return part.etag.strip('"') == hashlib.md5(body, usedforsecurity=False).hexdigest()


def _text(crc: int) -> str:
    return base64.b64encode(struct.pack(">I", crc)).decode("ascii")


def _chain(first: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    del first, second  # not held while the rest goes up
    yield from rest


def _parts(content: Path | Stream, size: int) -> Generator[bytes, None, None]:
    """The archive in parts of exactly ``size`` bytes, the last one shorter."""
    if isinstance(content, Path):
        try:
            with content.open("rb") as file:
                while part := file.read(size):
                    yield part
        except OSError as error:
            raise ReleaseError(f"cannot read {content}: {error.strerror}") from error
        return
    pending = bytearray()
    for chunk in content.open():
        pending += chunk
        while len(pending) >= size:
            yield bytes(pending[:size])
            del pending[:size]
    if pending:
        yield bytes(pending)
