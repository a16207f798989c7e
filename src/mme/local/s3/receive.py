"""The bytes of S3 objects: received in pieces into files, checked against what the sender said, and read in pieces.

moto holds each request and each object in memory. Archives have hundreds of megabytes, so their bytes bypass moto,
which gets a ``Blob`` in their place.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs

from mme.local.s3.blobs import CHUNK, IN_MEMORY, Blob, Received
from mme.local.s3.checksums import Hash, hasher

_PLAIN_QUERY = {"partNumber", "uploadId", "x-id", "AWSAccessKeyId", "Signature", "Expires"}


class Refused(Exception):
    """S3 does not take the body; ``code`` and the message are S3's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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
        checksum = hasher(name)
        if checksum is not None:
            hashes[name] = checksum
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
    """The request for moto, without its body, which was received already."""
    import io

    slim = {
        name: value
        for name, value in environ.items()
        if name not in ("HTTP_X_AMZ_DECODED_CONTENT_LENGTH", "HTTP_X_AMZ_TRAILER", "HTTP_TRANSFER_ENCODING")
    }
    encodings = [word.strip() for word in str(environ.get("HTTP_CONTENT_ENCODING", "")).split(",")]
    slim.pop("HTTP_CONTENT_ENCODING", None)
    encodings_left = ",".join(word for word in encodings if word and word != "aws-chunked")
    if encodings_left:
        slim["HTTP_CONTENT_ENCODING"] = encodings_left
    slim["HTTP_X_AMZ_CONTENT_SHA256"] = "UNSIGNED-PAYLOAD"
    slim["wsgi.input"] = io.BytesIO()
    slim["wsgi.input_terminated"] = True
    slim["CONTENT_LENGTH"] = "0"
    slim["mme.received"] = received
    return slim
