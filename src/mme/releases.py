"""Released versions: immutable objects under the model prefix.

A version is one object, ``NAME-DIGEST12.tar.gz`` under the prefix that the endpoint reads. It is written once, by a
conditional write, and never again: publishing the same content a second time sends nothing. Who published it and why
travels in the object's metadata, so that a version and its record are one write.

A large archive goes up in parts, several at a time, with a CRC32 over each part and over all of it, which S3 checks
itself. A run that was stopped at any point leaves nothing visible; the next run finds the unfinished upload and sends
only what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

from botocore.exceptions import BotoCoreError, ClientError

from mme.archive import contents
from mme.aws import CONNECTIONS, code_of, concerns_every_call, explain, explained, is_missing
from mme.errors import ReleaseError, UsageError, nearest
from mme.multipart import SENDERS, Buffer, Damaged, Gone, Place, Progress, Upload, part_size

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

MAX_NOTES = 1_400  # bytes once encoded; S3 keeps at most 2 KB of metadata with an object
DELETE_AT_ONCE = 1000
AT_ONCE = SENDERS + 2
"""The room for archives that are published together, counted in parts: a large one takes all of it."""
STALE = timedelta(days=7)

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class Store:
    """A model prefix in a bucket, and what lies beside it.

    ``prefix`` holds the archives and nothing else: the endpoint's role reads it. Channels
    lie in ``channels/`` beside it, capacity plans in ``plans/``.
    """

    bucket: str
    prefix: str = "models/"

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise UsageError(
                f"{self.bucket!r} is not a bucket name.",
                "Give the name alone, without s3:// and without a path: --bucket my-bucket --prefix models/.",
            )
        parts = self.prefix.split("/")
        if self.prefix.startswith("/") or parts[-1] or not all(parts[:-1]) or len(parts) < 2:
            raise UsageError(
                f"{self.prefix!r} is not a model prefix.",
                "It is a folder inside the bucket and ends with one slash, as in models/ or production/models/.",
            )
        if parts[-2] in ("channels", "plans"):
            raise UsageError(
                f"The model prefix cannot be {self.prefix!r}: that folder holds the {parts[-2]}.",
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
        """``s3://`` and so on, of a target model or of the prefix."""
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
        return contents.target(self.name, self.digest)


@dataclass(frozen=True)
class Record:
    """The metadata of a version: the full digest, who published it and why, and S3's checksum of the archive."""

    version: Version
    digest: str
    author: str
    notes: str
    crc32: str | None


@dataclass(frozen=True)
class Stream:
    """An archive that is made while it is sent.

    ``send`` hands all its bytes, in order, to the function it is given, and raises when it cannot give all of them. It
    may be called again, and gives the same archive then. ``size`` in bytes, to within 1 %, sets the size of the parts.
    """

    send: Callable[[Callable[[Buffer], object]], object]
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


def parse_target(target: str) -> tuple[str, str] | None:
    """The name and the 12 digits of a target model, or None for an object that is not a version of ours."""
    match = contents.FILE_NAME.fullmatch(target)
    return (match["name"], match["digest"]) if match else None


# ---- reading ----------------------------------------------------------------------------------------------------


def check_bucket(s3: S3Client, store: Store) -> None:
    """Raise ReleaseError unless the bucket is there and in the client's region."""
    region: str | None
    try:
        region = s3.head_bucket(Bucket=store.bucket).get("BucketRegion")
    except (ClientError, BotoCoreError) as error:
        if not isinstance(error, ClientError) or code_of(error) not in ("400", "403", "AccessDenied"):
            raise explain(error, f"use {store.uri()}", bucket=store.bucket) from error
        # With the right to list below the prefix only, HEAD of the bucket is refused; S3 names its region all the same.
        # What else is wrong, such as credentials that have expired, the next call says: its answer has a body.
        region = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if region and region != s3.meta.region_name:
        raise ReleaseError(
            f"Bucket {store.bucket} is in {region}, not in {s3.meta.region_name}.",
            f"Give --region {region} (an endpoint loads models only from a bucket in its own region).",
        )


def list_versions(s3: S3Client, store: Store, name: str | None = None) -> list[Version]:
    """Every version under the prefix, or of one model, newest first; one listing, 1,000 versions a call.

    Objects that are not versions of ours are left out.
    """
    prefix = store.prefix + (f"{name}-" if name else "")
    versions = []
    with explained(f"list {store.uri()}", bucket=store.bucket):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=prefix)
        for page in pages:
            for item in page.get("Contents", []):
                parsed = parse_target(item["Key"][len(store.prefix) :])
                if parsed and (name is None or parsed[0] == name):
                    versions.append(Version(*parsed, item["Size"], item["LastModified"].astimezone(timezone.utc)))
    return sorted(versions, key=lambda version: (version.time, version.target), reverse=True)


def versions_of(s3: S3Client, store: Store, name: str) -> list[Version]:
    """The versions of one model, newest first. Raises ReleaseError when there is none, with the nearest name."""
    versions = list_versions(s3, store, name)
    if not versions:
        raise not_released(name, [version.name for version in list_versions(s3, store)])
    return versions


def not_released(name: str, released: Iterable[str]) -> ReleaseError:
    """The error for a model without a version; ``released`` are the names of those that have one."""
    known = sorted(set(released))
    hint = f"Release one: invoke package upload --model {name}."
    if known:
        hint = f"{nearest(name, known, 'Released are')} Or release it: invoke package upload --model {name}."
    return ReleaseError(f"{name} has no released version.", hint)


def find_version(versions: Iterable[Version], name: str, wanted: str | None = None) -> Version:
    """The version of ``name`` that ``wanted`` means: a target, or the start of a digest; None: the newest.

    ``versions`` is what ``list_versions`` gave. Raises ReleaseError when none or several fit.
    """
    listed = list(versions)
    own = [version for version in listed if version.name == name]
    if not own:
        raise not_released(name, [version.name for version in listed])
    if wanted is None:
        return own[0]
    start = wanted.removeprefix(f"{name}-").removesuffix(".tar.gz").lower()[:12]
    if not re.fullmatch(r"[0-9a-f]{4,12}", start):
        raise UsageError(
            f"{wanted!r} names no version.",
            f"A version is a target as in {own[0].target}, or the first digits of its digest, four or more.",
        )
    fitting = [version for version in own if version.digest.startswith(start)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        choices = ", ".join(version.digest for version in fitting)
        raise UsageError(f"{wanted} fits several versions of {name}: {choices}.", "Give more digits.")
    newest = ", ".join(version.digest for version in own[:5])
    raise ReleaseError(
        f"{name} has no version {wanted}.",
        f"{'The newest are' if len(own) > 5 else 'There is'}: {newest}. See all: invoke releases --model {name}.",
    )


def read_records(s3: S3Client, store: Store, versions: Collection[Version]) -> list[Record]:
    """The metadata of each of ``versions``, in their order; one call each, several at a time."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(lambda version: _read_record(s3, store, version), versions))


def _read_record(s3: S3Client, store: Store, version: Version) -> Record:
    with explained(f"read {store.uri(version.target)}", bucket=store.bucket):
        head = s3.head_object(Bucket=store.bucket, Key=store.key(version.target), ChecksumMode="ENABLED")
    metadata = head.get("Metadata", {})
    return Record(
        version,
        digest=metadata.get("mme-digest", ""),
        author=unquote(metadata.get("mme-author", "")),
        notes=unquote(metadata.get("mme-notes", "")),
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
    crc32: int | None = None,
    present: Collection[str] | None = None,
    unfinished: Mapping[str, str] | None = None,
    own_notes: bool = False,
    progress: Progress = lambda sent: None,
) -> Published:
    """Make ``content`` the version of ``name`` with this content digest (64 hex digits), unless it is there already.

    ``crc32`` is what the archive's bytes gave when they were written: a file that was damaged since is not published.
    ``present`` (targets) and ``unfinished`` (from ``unfinished_uploads``) spare calls when many are published after one
    listing; left out, the bucket is asked. An upload that an earlier run did not finish is completed, and has that
    run's author and notes; with ``own_notes``, only where those are the same. ``progress`` is called with the number of
    bytes that are newly safe.
    Raises ReleaseError; the version is then not visible, unless the error says otherwise.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ReleaseError(f"{digest!r} is not a sha256 digest of 64 hex digits.")
    target = contents.target(name, digest)
    metadata = _metadata(digest, author, notes)
    is_there = _is_there(s3, store, target, digest) if present is None else target in present
    if is_there:
        if unfinished and target in unfinished:
            give_up(s3, store, target, unfinished[target])
        size = content.stat().st_size if isinstance(content, Path) else 0
        return Published(name, target, store.uri(target), digest, "present", size, 0)
    if unfinished is None:
        unfinished = unfinished_uploads(s3, store, target)
    place = Place(s3, store.bucket, store.key(target))
    size = content.stat().st_size if isinstance(content, Path) else content.size
    resume = unfinished.get(target)
    with explained(f"upload {store.uri(target)}", bucket=store.bucket):
        for _ in range(3):
            try:
                with Upload(place, metadata, size, resume, crc32, progress, own_notes) as upload:
                    _send(content, upload)
                    upload.close()
            except Damaged:
                raise ReleaseError(
                    f"{content} is not the archive that was built: it was changed or damaged since.",
                    f"Build it again: invoke package --force --model {name}.",
                ) from None
            except Gone:
                # Another run finished the upload, gave it up, or mixed parts of its own build into it.
                if _is_there(s3, store, target, digest):
                    return Published(name, target, store.uri(target), digest, "present", size, 0)
                resume = None
                continue
            if upload.held().get("mme-digest") != digest:
                raise ReleaseError(
                    f"{store.uri(target)} was uploaded, but S3 does not hold what was sent.",
                    f"Remove it (invoke delete --target {target}) and upload again.",
                )
            status: Literal["uploaded", "resumed"] = "resumed" if upload.resumed else "uploaded"
            return Published(name, target, store.uri(target), digest, status, upload.size, upload.sent)
    raise ReleaseError(
        f"Cannot upload {store.uri(target)}: other runs keep changing the same upload.",
        "Let one run at a time publish this model, then run the same command again.",
    )


def room_for(size: int) -> int:
    """How much of AT_ONCE the upload of an archive of ``size`` bytes takes."""
    return max(1, min(AT_ONCE, -(-size // part_size(size))))


def check_notes(author: str, notes: str) -> None:
    """Raise UsageError when author and notes are too long to be stored with a version."""
    _metadata("0" * 64, author, notes)


def unfinished_uploads(s3: S3Client, store: Store, target: str = "") -> dict[str, str]:
    """The upload to go on with for each target that has one (all targets, or those that start with ``target``).

    Empty when uploads cannot be listed (the account may not, or S3 fails): uploads then start over.
    """
    newest: dict[str, tuple[datetime, str]] = {}
    try:
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=store.bucket, Prefix=store.key(target))
        for page in pages:
            for item in page.get("Uploads", []):
                ours = item.get("ChecksumAlgorithm", "CRC32") == "CRC32"
                full = item.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
                if ours and full:
                    begun = (item["Initiated"], item["UploadId"])
                    name = item["Key"][len(store.prefix) :]
                    newest[name] = max(newest.get(name, begun), begun)
    except ClientError as error:
        if concerns_every_call(error):
            raise explain(error, f"look for unfinished uploads in {store.uri()}", bucket=store.bucket) from error
        return {}
    except BotoCoreError:  # no answer, or none that can be read
        return {}
    return {name: upload for name, (_, upload) in newest.items()}


def give_up(s3: S3Client, store: Store, target: str, upload: str) -> None:
    """Give up an unfinished upload of a version that is released: its parts are billed and nobody needs them.

    A run that is still at work on it notices, and finds the version released.
    """
    Place(s3, store.bucket, store.key(target)).abort(upload)


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


def delete_many(s3: S3Client, store: Store, targets: Sequence[str]) -> None:
    """Remove versions, as many with a call as S3 takes. Raises ReleaseError when S3 refused some, after trying all."""
    refused = []
    for start in range(0, len(targets), DELETE_AT_ONCE):
        batch = targets[start : start + DELETE_AT_ONCE]
        with explained(f"delete versions in {store.uri()}", bucket=store.bucket):
            answer = s3.delete_objects(
                Bucket=store.bucket,
                Delete={"Objects": [{"Key": store.key(target)} for target in batch], "Quiet": True},
            )
        refused += answer.get("Errors", [])
    if refused:
        first = refused[0]
        raise ReleaseError(
            f"{len(refused)} of {len(targets)} versions were not deleted; the first is s3://{store.bucket}/"
            f"{first.get('Key')}: {first.get('Message') or first.get('Code')}.",
            "Ask for the permission s3:DeleteObject under the model prefix, or use another role.",
        )


def plan_prune(
    versions: Sequence[Version], keep: int, in_use: Collection[str], names: Collection[str] | None = None
) -> list[Version]:
    """The versions that can go: not among the ``keep`` newest of their model, and not ``in_use`` (targets).

    ``versions`` is what ``list_versions`` gave, newest first. ``names`` limits the plan to these models.
    """
    seen: dict[str, int] = {}
    plan = []
    for version in versions:
        seen[version.name] = seen.get(version.name, 0) + 1
        wanted = names is None or version.name in names
        if wanted and seen[version.name] > keep and version.target not in in_use:
            plan.append(version)
    return plan


def _metadata(digest: str, author: str, notes: str) -> dict[str, str]:
    # Metadata travels in HTTP headers: percent-encoding carries every language and line break.
    metadata = {"mme-digest": digest, "mme-author": quote(author, safe=" @:/+"), "mme-notes": quote(notes, safe=" ,:/")}
    if len(metadata["mme-author"]) + len(metadata["mme-notes"]) > MAX_NOTES:
        raise UsageError(
            f"Author and notes are too long to be stored with a version ({MAX_NOTES} bytes at most).",
            "Shorten the notes; put a link to the rest.",
        )
    return {key: value for key, value in metadata.items() if value}


def _is_there(s3: S3Client, store: Store, target: str, digest: str) -> bool:
    """Whether the bucket holds this target; raises ReleaseError when what it holds is something else."""
    with explained(f"look for {store.uri(target)}", bucket=store.bucket):
        try:
            head = s3.head_object(Bucket=store.bucket, Key=store.key(target))
        except ClientError as error:
            if is_missing(s3, store.bucket, store.key(target), error):
                return False
            raise
    if head.get("Metadata", {}).get("mme-digest") != digest:
        raise ReleaseError(
            f"{store.uri(target)} is there, but its metadata does not name the same content.",
            "Something else put it there. Look at it, then remove it (invoke delete) and upload again.",
        )
    return True


def _send(content: Path | Stream, upload: Upload) -> None:
    if isinstance(content, Stream):
        content.send(upload.write)
        return
    try:
        with FileIO(content) as file:
            upload.read(file)
    except OSError as error:
        raise ReleaseError(f"Cannot read {content}: {error.strerror}.") from error
