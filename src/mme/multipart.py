"""One object, written once: in parts, several at a time, checked by S3, and taken up again after an interruption.

Nothing is visible before all of it is there, and an object that is there is never written again. A CRC32 goes over each
part and over the object; S3 compares both with what it received.

S3 may write an object and the answer may be lost on its way. The client then sends the same request again, and S3
refuses it because the object is there. So each upload carries a mark of its own in the object's metadata, by which a
run recognises what it wrote itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from isal.isal_zlib import crc32, crc32_combine

from mme.aws import code_of, concerns_every_call, status_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

MIB = 1 << 20
PART = 8 * MIB
MAX_PARTS = 10_000
SENDERS = 6

Buffer = bytes | bytearray | memoryview
Progress = Callable[[int], object]
"""Called with the number of bytes that are newly safe in S3."""


def part_size(size: int) -> int:
    """The size of a part, in bytes, for an archive of ``size`` bytes, or up to 1 % more: S3 takes at most 10,000."""
    return max(PART, -(-size * 101 // (100 * MAX_PARTS * MIB)) * MIB)


def first_part(size: int, metadata: Mapping[str, str]) -> int:
    """The size of the first part, given that of the others, for an archive that is to carry ``metadata``.

    S3 lists the parts of an unfinished upload, and not its metadata. So the first part is longer than the others by
    up to 1 MiB, and its length says whether an upload was begun with the same author and notes.
    """
    return size + crc32(json.dumps(metadata, sort_keys=True).encode()) % MIB


MARK = "mme-upload"
"""The key of the object's metadata by which a run recognises its own upload."""


class Gone(Exception):
    """The object is there already, or the unfinished upload is not, or it holds parts of another build: start over.

    ``perhaps_ours``: S3 may have carried out an earlier try of the same request, whose answer was lost.
    """

    def __init__(self, error: ClientError, perhaps_ours: bool = False) -> None:
        super().__init__()
        self.perhaps_ours = perhaps_ours or bool(error.response.get("ResponseMetadata", {}).get("RetryAttempts"))


class Damaged(Exception):
    """The bytes that were read are not those of the archive. Nothing has become visible in the bucket."""


class Upload:
    """One archive on its way into the bucket: bytes come in by ``write`` or ``read``, parts go out several at a time.

    ``size`` is that of the archive in bytes, to within 1 %. ``expected`` is the CRC32 that the archive must have, where
    it is known. ``unfinished`` is an upload to go on with. It has the metadata that it was begun with; with
    ``own_notes`` it is given up unless those are ``metadata``. It is given up, too, when its first part is missing
    (nothing then says what it was begun with), when its parts have other sizes, or when they cannot be listed.
    """

    def __init__(
        self,
        place: Place,
        metadata: dict[str, str],
        size: int,
        unfinished: str | None = None,
        expected: int | None = None,
        progress: Progress = lambda count: None,
        own_notes: bool = False,
    ) -> None:
        self.place = place
        self.mark = secrets.token_hex(8)
        self.metadata = {**metadata, MARK: self.mark}
        self.part_size = part_size(size)
        self.expected = expected
        self.progress = progress
        self.first = first_part(self.part_size, metadata)
        self.upload: str | None = None
        self.have: Mapping[int, Part] = {}
        if unfinished:
            parts = place.parts(unfinished)
            begun = parts[1].size if 1 in parts else 0
            if 0 <= begun - self.part_size < MIB and (begun == self.first or not own_notes):
                self.upload, self.first, self.have = unfinished, begun, parts
            else:
                place.abort(unfinished)
        self.begun_before = self.upload is not None
        self.senders = max(1, min(SENDERS, -(-size // self.part_size)))
        self.pool = ThreadPoolExecutor(self.senders)
        self.sending: set[Future[_Sent]] = set()
        self.done: dict[int, _Sent] = {}
        self.buffer = bytearray()
        self.filled = 0
        self.last: bytes | None = None  # what is left to send, where that is known already
        self.answered: dict[str, str] | None = None
        self.number = self.size = self.sent = self.crc = 0
        self.resumed = False

    @property
    def limit(self) -> int:
        """The size of the part at hand."""
        return self.part_size if self.number else self.first

    def write(self, data: Buffer) -> None:
        """Take the next bytes of the archive; waits while enough parts are on their way."""
        view = memoryview(data)
        if not self.buffer:
            self.buffer = bytearray(self.first)
        while view:
            # A full part is held back until more follows: an archive of one part is one write, not an upload in parts.
            if self.filled == self.limit:
                self._part(bytes(memoryview(self.buffer)[: self.filled]))
                self.filled = 0
            size = min(len(view), self.limit - self.filled)
            self.buffer[self.filled : self.filled + size] = view[:size]
            self.filled += size
            view = view[size:]

    def read(self, file: FileIO) -> None:
        """Take the archive from a file, without copying it. Raises OSError when it cannot be read."""
        ahead = _read(file, self.first)
        while following := _read(file, self.part_size):
            self._part(ahead)
            ahead = following
        self.last = ahead

    def close(self) -> None:
        """Send what is left and make the archive visible. Raises Damaged before that when it is not as expected."""
        last = bytes(memoryview(self.buffer)[: self.filled]) if self.last is None else self.last
        if self.number == 0:
            self.size, self.crc = len(last), crc32(last)
            self._compare()
            try:
                if self.place.put(last, self.crc, self.metadata):
                    self.answered = self.metadata
            except Gone as gone:
                if not self._wrote_it(gone):
                    raise
            self.sent += len(last)
            self.progress(len(last))
            return
        self._part(last)
        while self.sending:
            self._collect()
        for number in range(1, self.number + 1):
            self.crc = crc32_combine(self.crc, self.done[number].crc, self.done[number].size)
        self._compare()
        try:
            self.place.complete(str(self.upload), self.done, self.size, self.crc)
        except Gone as gone:
            if not self._wrote_it(gone):
                raise

    def _wrote_it(self, gone: Gone) -> bool:
        """Whether the object that is there is this run's own, after S3 refused to write it.

        An upload that an earlier run began carries that run's mark, which nobody else knows. Where it was completed by
        a try without an answer, only another run that went on with the same upload could have done it instead.
        """
        head = self.place.metadata()
        if head is None:
            return False
        return head.get(MARK) == self.mark or (
            self.begun_before and gone.perhaps_ours and head.get("mme-digest") == self.metadata.get("mme-digest")
        )

    def held(self) -> dict[str, str]:
        """The metadata of what S3 holds now; empty when that is not what was sent."""
        if self.answered is not None:
            return self.answered
        head = self.place.s3.head_object(**self.place.where, ChecksumMode="ENABLED")
        same = head["ContentLength"] == self.size and head.get("ChecksumCRC32", crc_text(self.crc)) == crc_text(
            self.crc
        )
        return head["Metadata"] if same else {}

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        # After an error the parts on their way are waited for, not the ones in the queue. The upload itself stays: the
        # next run goes on with it.
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _part(self, body: bytes) -> None:
        self.number += 1
        self.size += len(body)
        if self.upload is None:
            self.upload = self.place.create(self.metadata)
        # The pool would take every part at once; this holds at most SENDERS + 1 of them in memory.
        while len(self.sending) > self.senders:
            self._collect()
        self.sending.add(self.pool.submit(self._deliver, self.upload, self.number, body))

    def _deliver(self, upload: str, number: int, body: bytes) -> _Sent:
        crc = crc32(body)
        there = self.have.get(number)
        if there is not None and _same(there, body, crc):
            return _Sent(number, len(body), crc, there.etag, before=True)
        return _Sent(number, len(body), crc, self.place.send(upload, number, body, crc), before=False)

    def _collect(self) -> None:
        finished, _ = wait(self.sending, return_when=FIRST_COMPLETED)
        for future in finished:
            self.sending.remove(future)
            sent = future.result()
            self.done[sent.number] = sent
            if sent.before:
                self.resumed = True
            else:
                self.sent += sent.size
            self.progress(sent.size)

    def _compare(self) -> None:
        if self.expected is not None and self.crc != self.expected:
            raise Damaged


@dataclass(frozen=True)
class _Sent:
    """A part that S3 holds; ``before``: an earlier run sent it."""

    number: int
    size: int
    crc: int
    etag: str
    before: bool


@dataclass(frozen=True)
class Place:
    """An object that is to be written once, and S3's calls for that.

    Raises Gone when the object or the upload is not as expected, ClientError for all else.
    """

    s3: S3Client
    bucket: str
    key: str

    @property
    def where(self) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self.key}

    def put(self, body: bytes, crc: int, metadata: dict[str, str]) -> bool:
        """Write the object in one call; whether S3's answer has the checksum of what it holds now, and it is right."""
        try:
            answer = self.s3.put_object(
                **self.where,
                Body=body,
                IfNoneMatch="*",
                ChecksumAlgorithm="CRC32",
                ChecksumCRC32=crc_text(crc),
                ContentType="application/gzip",
                Metadata=metadata,
            )
        except ClientError as error:
            if status_of(error) in (409, 412):
                raise Gone(error) from error
            raise
        return answer.get("ChecksumCRC32") == crc_text(crc)

    def create(self, metadata: dict[str, str]) -> str:
        answer = self.s3.create_multipart_upload(
            **self.where,
            ChecksumAlgorithm="CRC32",
            ChecksumType="FULL_OBJECT",
            ContentType="application/gzip",
            Metadata=metadata,
        )
        return answer["UploadId"]

    def send(self, upload: str, number: int, body: bytes, crc: int) -> str:
        try:
            answer = self.s3.upload_part(
                **self.where, UploadId=upload, PartNumber=number, Body=body, ChecksumCRC32=crc_text(crc)
            )
        except ClientError as error:
            if code_of(error) == "NoSuchUpload":
                raise Gone(error) from error
            raise
        return answer["ETag"]

    def parts(self, upload: str) -> dict[int, Part]:
        """The parts of an upload, by number; none when they cannot be listed, which is only needed to go on."""
        try:
            pages = self.s3.get_paginator("list_parts").paginate(**self.where, UploadId=upload)
            return {
                part["PartNumber"]: Part(part["ETag"], part["Size"], part.get("ChecksumCRC32"))
                for page in pages
                for part in page.get("Parts", [])
            }
        except ClientError as error:
            if code_of(error) == "NoSuchUpload":
                raise Gone(error) from error
            if concerns_every_call(error):
                raise
            return {}

    def metadata(self) -> Mapping[str, str] | None:
        """The metadata of the object that is there now; None when there is none, or it cannot be read."""
        try:
            return self.s3.head_object(**self.where).get("Metadata", {})
        except ClientError:
            return None

    def complete(self, upload: str, parts: Mapping[int, _Sent], size: int, crc: int) -> None:
        try:
            self.s3.complete_multipart_upload(
                **self.where,
                UploadId=upload,
                IfNoneMatch="*",
                ChecksumCRC32=crc_text(crc),
                ChecksumType="FULL_OBJECT",
                MpuObjectSize=size,
                MultipartUpload={
                    "Parts": [
                        {"PartNumber": number, "ETag": parts[number].etag, "ChecksumCRC32": crc_text(parts[number].crc)}
                        for number in sorted(parts)
                    ]
                },
            )
        except ClientError as error:
            code = code_of(error)
            if status_of(error) in (409, 412) or code in ("InvalidPart", "BadDigest"):
                raise Gone(error, perhaps_ours=not self.abort(upload)) from error
            if code == "NoSuchUpload":
                raise Gone(error) from error
            raise

    def abort(self, upload: str) -> bool:
        """Give an upload up; False when it is not there any more.

        Where S3 refuses, the upload is left to the bucket's lifecycle rule, or to ``invoke prune``.
        """
        try:
            self.s3.abort_multipart_upload(**self.where, UploadId=upload)
        except ClientError as error:
            return code_of(error) != "NoSuchUpload"
        return True


@dataclass(frozen=True)
class Part:
    etag: str
    size: int
    crc: str | None


def _same(part: Part, body: bytes, crc: int) -> bool:
    """Whether an earlier run sent exactly this part."""
    if part.size != len(body):
        return False
    if part.crc:
        return part.crc == crc_text(crc)
    # Without a checksum in the listing the ETag has to do: the MD5, unless KMS encrypts (then it never fits, and the
    # part is sent again).
    return part.etag.strip('"') == hashlib.md5(body, usedforsecurity=False).hexdigest()


def _read(file: FileIO, size: int) -> bytes:
    """So many bytes of the file; fewer only at its end."""
    data = file.read(size) or b""
    while 0 < len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def crc_text(crc: int) -> str:
    return base64.b64encode(struct.pack(">I", crc)).decode("ascii")
