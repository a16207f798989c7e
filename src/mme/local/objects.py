"""The bytes of S3 objects: received in pieces into files, checked against what the sender said, and read in pieces.

moto holds a whole request, and a whole object, in memory. Archives have hundreds of megabytes, so their bytes go past
moto: it is given a ``Blob``, which stands for them.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import importlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import parse_qs

CHUNK = 1 << 20
IN_MEMORY = 64 << 10
"""Bytes up to which an object is not worth a file."""

_PLAIN_QUERY = {"partNumber", "uploadId", "x-id", "AWSAccessKeyId", "Signature", "Expires"}


class Refused(Exception):
    """S3 does not take the body; ``code`` and the message are S3's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Blob:
    """Immutable bytes in a file, or a part of them. Reading keeps no more than a chunk in memory.

    Slicing gives another Blob of the same file. A file that is removed meanwhile can still be read to its end.
    """

    def __init__(self, path: Path, offset: int, size: int, md5: str | None = None) -> None:
        self._path = path
        self.offset = offset
        self.size = size
        self.md5 = md5
        self.digests: Mapping[str, bytes] = {}
        """By the name of the algorithm, as far as they are known."""
        self.taken = False
        """Whether an object owns the file already; the next one to hold these bytes needs a file of its own."""

    @property
    def path(self) -> Path:
        """The file that the bytes are in."""
        return self._path

    def discard(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> OpenBlob:
        start, stop, step = part.indices(self.size)
        if step != 1:
            raise ValueError("A Blob has no steps.")
        return OpenBlob(self.path, self.offset + start, max(0, stop - start))

    def __bytes__(self) -> bytes:
        return b"".join(OpenBlob(self.path, self.offset, self.size))

    def view(self) -> OpenBlob:
        """The whole of it, opened for reading."""
        return OpenBlob(self.path, self.offset, self.size)

    def copy_to(self, target: BinaryIO) -> None:
        """Appends the bytes to an open file."""
        with self.path.open("rb") as source:
            source.seek(self.offset)
            left = self.size
            while left:
                data = source.read(min(CHUNK, left))
                if not data:
                    raise OSError(f"{self.path} is shorter than it was.")
                left -= len(data)
                target.write(data)


class Joined(Blob):
    """Blobs in a row as one, put into a file of their own only when somebody wants to read them. Owns the parts' files.

    Most objects that were sent in parts are never read here, and copying hundreds of megabytes takes longer than
    receiving them.
    """

    def __init__(self, parts: list[Blob | bytes], folder: Path) -> None:
        super().__init__(folder / uuid.uuid4().hex, 0, sum(len(part) for part in parts))
        self._parts = parts
        self._joining = threading.Lock()

    @property
    def path(self) -> Path:
        with self._joining:
            if self._parts:
                _join(self._parts, self._path)
                self._drop_parts()
        return self._path

    def discard(self) -> None:
        with self._joining:
            self._drop_parts()
            super().discard()

    def _drop_parts(self) -> None:
        for part in self._parts:
            if isinstance(part, Blob):
                part.discard()
        self._parts = []


class OpenBlob(Blob):
    """A Blob with its file open, so that it outlives the file's name. Iterating reads and closes it."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__(path, offset, size)
        self.taken = True
        self._file = path.open("rb")

    def __getitem__(self, part: slice) -> OpenBlob:
        start, stop, _ = part.indices(self.size)
        other = OpenBlob.__new__(OpenBlob)
        Blob.__init__(other, self.path, self.offset + start, max(0, stop - start))
        other.taken = True
        other._file = os.fdopen(os.dup(self._file.fileno()), "rb")
        return other

    def __iter__(self) -> Iterator[bytes]:
        try:
            self._file.seek(self.offset)
            left = self.size
            while left:
                data = self._file.read(min(CHUNK, left))
                if not data:
                    return
                left -= len(data)
                yield data
        finally:
            self.close()

    def close(self) -> None:
        self._file.close()

    def __bytes__(self) -> bytes:
        return b"".join(self)


# -- checksums


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc:
    def __init__(self, step: Callable[[bytes, int], int], width: int) -> None:
        self._step = step
        self._width = width
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._step(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._width, "big")


def hasher(algorithm: str) -> Hash | None:
    """What computes S3's checksum ``algorithm`` (crc32, crc32c, crc64nvme, sha1, sha256); None when nothing here can.

    CRC32C and CRC64NVME need the package awscrt; without it such a checksum is kept as it was sent.
    """
    name = algorithm.lower()
    if name == "sha256":
        return hashlib.sha256()
    if name == "sha1":
        return hashlib.sha1(usedforsecurity=False)
    if name == "crc32":
        from isal import isal_zlib

        return _Crc(isal_zlib.crc32, 4)
    if name in ("crc32c", "crc64nvme"):
        try:
            checksums = importlib.import_module("awscrt.checksums")
        except ImportError:
            return None
        return _Crc(getattr(checksums, name), 8 if name == "crc64nvme" else 4)
    return None


@dataclass(frozen=True)
class Received:
    """A request body that arrived whole and as its sender meant it."""

    value: Blob | bytes
    md5: str
    checksums: Mapping[str, str] = field(default_factory=dict)
    """By algorithm, base64."""


def is_upload(environ: Mapping[str, Any]) -> bool:
    """Whether the body of this S3 request is the content of an object or of a part."""
    if environ.get("REQUEST_METHOD") != "PUT" or environ.get("HTTP_X_AMZ_COPY_SOURCE"):
        return False
    path = str(environ.get("PATH_INFO", "")).removeprefix("/")
    query = set(parse_qs(str(environ.get("QUERY_STRING", "")), keep_blank_values=True))
    presigned = {
        name for name in query if name.lower().startswith(("x-amz-", "awsaccesskeyid", "signature", "expires"))
    }
    return "/" in path and bool(path.partition("/")[2]) and query - presigned <= _PLAIN_QUERY


def receive(environ: Mapping[str, Any], folder: Path) -> Received:
    """Reads the body to its end. Raises Refused for one that is cut short or is not what its sender announced."""
    stream = _Body(environ)
    announced = _announced(environ)
    hashes: dict[str, Hash] = {}
    for name in {*announced, *stream.trailer_names}:
        found = hasher(name)
        if found is not None:
            hashes[name] = found
    md5 = hashlib.md5(usedforsecurity=False)
    collected: list[bytes] = []
    size = 0
    path = folder / uuid.uuid4().hex
    file: BinaryIO | None = None
    try:
        for data in stream:
            md5.update(data)
            for one in hashes.values():
                one.update(data)
            size += len(data)
            if file is None and size > IN_MEMORY:
                file = path.open("wb")
                for earlier in collected:
                    file.write(earlier)
                collected = []
            if file is None:
                collected.append(data)
            else:
                file.write(data)
        if file is not None:
            file.close()
        announced = {**announced, **stream.trailers}
        _check(environ, announced, hashes, md5.digest())
    except BaseException:
        if file is not None:
            file.close()
            path.unlink()
        raise
    value: Blob | bytes = b"".join(collected)
    digests = {name: one.digest() for name, one in hashes.items()}
    if file is not None:
        value = Blob(path, 0, size, md5.hexdigest())
        value.digests = digests
    computed = {name: base64.b64encode(digest).decode() for name, digest in digests.items()}
    return Received(value, md5.hexdigest(), {**announced, **computed})


def _announced(environ: Mapping[str, Any]) -> dict[str, str]:
    prefix = "HTTP_X_AMZ_CHECKSUM_"
    words = {key.removeprefix(prefix).lower(): str(value) for key, value in environ.items() if key.startswith(prefix)}
    return {name: value for name, value in words.items() if name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")}


def _check(environ: Mapping[str, Any], announced: Mapping[str, str], hashes: Mapping[str, Hash], md5: bytes) -> None:
    said = environ.get("HTTP_CONTENT_MD5")
    if said:
        try:
            right = base64.b64decode(str(said), validate=True)
        except binascii.Error:
            right = b""
        if len(right) != 16:
            raise Refused("InvalidDigest", "The Content-MD5 you specified was invalid.")
        if right != md5:
            raise Refused("BadDigest", "The Content-MD5 you specified did not match what we received.")
    for name, value in announced.items():
        if name in hashes and base64.b64encode(hashes[name].digest()).decode() != value:
            raise Refused("BadDigest", f"The {name.upper()} you specified did not match the calculated checksum.")


class _Body:
    """The decoded body of a request: plain, or in the chunks of ``aws-chunked`` with trailers at its end."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._stream = environ["wsgi.input"]
        length = environ.get("CONTENT_LENGTH")
        self._left = int(length) if length else (None if environ.get("wsgi.input_terminated") else 0)
        self._chunked = str(environ.get("HTTP_X_AMZ_CONTENT_SHA256", "")).startswith("STREAMING-")
        self._expected = environ.get("HTTP_X_AMZ_DECODED_CONTENT_LENGTH") if self._chunked else None
        trailer = str(environ.get("HTTP_X_AMZ_TRAILER", "")).lower()
        self.trailer_names = [
            word.strip().removeprefix("x-amz-checksum-") for word in trailer.split(",") if "x-amz-checksum-" in word
        ]
        self.trailers: dict[str, str] = {}

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        for data in self._decoded() if self._chunked else self._plain():
            total += len(data)
            yield data
        if self._expected is not None and total != int(self._expected):
            raise _cut()

    def _read(self, size: int) -> bytes:
        if self._left is not None:
            size = min(size, self._left)
        if size <= 0:
            return b""
        data: bytes = self._stream.read(size)
        if self._left is not None:
            self._left -= len(data)
        return data

    def _plain(self) -> Iterator[bytes]:
        while True:
            data = self._read(CHUNK)
            if not data:
                if self._left:
                    raise _cut()
                return
            yield data

    def _line(self) -> str:
        limit = 8192 if self._left is None else min(8192, self._left)
        line: bytes = self._stream.readline(limit) if limit else b""
        if self._left is not None:
            self._left -= len(line)
        return line.decode("ascii", "replace").strip()

    def _decoded(self) -> Iterator[bytes]:
        while True:
            head = self._line()
            try:
                left = int(head.partition(";")[0], 16)
            except ValueError:
                raise _cut() from None
            if left == 0:
                break
            while left:
                data = self._read(min(CHUNK, left))
                if not data:
                    raise _cut()
                left -= len(data)
                yield data
            self._line()
        while True:
            line = self._line()
            if not line:
                break
            name, _, value = line.partition(":")
            if name.lower().startswith("x-amz-checksum-"):
                self.trailers[name.lower().removeprefix("x-amz-checksum-")] = value.strip()
        while self._read(CHUNK):
            pass


def _cut() -> Refused:
    return Refused(
        "IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header."
    )


def without_body(environ: Mapping[str, Any], received: Received) -> dict[str, Any]:
    """The request as moto is to see it: its body was received already."""
    import io

    slim = {
        name: value
        for name, value in environ.items()
        if name not in ("HTTP_X_AMZ_DECODED_CONTENT_LENGTH", "HTTP_X_AMZ_TRAILER", "HTTP_TRANSFER_ENCODING")
    }
    encodings = [word.strip() for word in str(environ.get("HTTP_CONTENT_ENCODING", "")).split(",")]
    slim.pop("HTTP_CONTENT_ENCODING", None)
    kept = ",".join(word for word in encodings if word and word != "aws-chunked")
    if kept:
        slim["HTTP_CONTENT_ENCODING"] = kept
    slim["HTTP_X_AMZ_CONTENT_SHA256"] = "UNSIGNED-PAYLOAD"
    slim["wsgi.input"] = io.BytesIO()
    slim["wsgi.input_terminated"] = True
    slim["CONTENT_LENGTH"] = "0"
    slim["mme.received"] = received
    return slim


# -- making blobs of blobs


def own(value: Blob, folder: Path) -> Blob:
    """The Blob for an object to keep: itself when nobody owns its file, else one with the same bytes.

    Where the whole file is meant, that is a second name of the same file: what is in it never changes.
    """
    if not value.taken:
        value.taken = True
        return value
    path = folder / uuid.uuid4().hex
    if value.offset == 0 and value.size == value.path.stat().st_size:
        with contextlib.suppress(OSError):
            os.link(value.path, path)
            return _taken(Blob(path, 0, value.size, value.md5))
    with path.open("wb") as file:
        value.copy_to(file)
    return _taken(Blob(path, 0, value.size, value.md5))


def _taken(blob: Blob) -> Blob:
    blob.taken = True
    return blob


def discard(received: Received) -> None:
    """Removes a received body that no object took."""
    if isinstance(received.value, Blob) and not received.value.taken:
        received.value.discard()


def _join(parts: list[Blob | bytes], path: Path) -> None:
    try:
        with path.open("wb") as file:
            for part in parts:
                if isinstance(part, Blob):
                    part.copy_to(file)
                else:
                    file.write(part)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def digest(value: Blob | bytes, algorithm: str) -> bytes | None:
    """The checksum ``algorithm`` of the bytes, which are read only if it is not known; None when nothing here can."""
    if isinstance(value, Blob) and algorithm.lower() in value.digests:
        return value.digests[algorithm.lower()]
    found = hasher(algorithm)
    if found is not None:
        for data in [value] if isinstance(value, bytes) else value.view():
            found.update(data)
    return None if found is None else found.digest()


def digest_of_all(parts: list[Blob | bytes], algorithm: str) -> bytes | None:
    """The checksum ``algorithm`` of all parts in a row; None when nothing here can."""
    if algorithm.lower() == "crc32":
        from isal import isal_zlib

        total = 0
        for part in parts:  # out of the parts' own, without reading them
            one = int.from_bytes(digest(part, algorithm) or b"", "big")
            total = isal_zlib.crc32_combine(total, one, len(part))
        return total.to_bytes(4, "big")
    found = hasher(algorithm)
    if found is None:
        return None
    for part in parts:
        for data in [part] if isinstance(part, bytes) else part.view():
            found.update(data)
    return found.digest()


def place(value: Blob | bytes, target: Path) -> None:
    """Puts the bytes at a path: as a second name of the same file where the system can."""
    if isinstance(value, Blob):
        if value.offset == 0 and value.size == value.path.stat().st_size:
            with contextlib.suppress(OSError):
                os.link(value.path, target)
                return
        with target.open("wb") as file:
            value.copy_to(file)
    else:
        target.write_bytes(value)
