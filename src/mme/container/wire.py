"""Frames between the front and a worker, and messages between the front and the parent.

A frame is a header (kind, id, length of the JSON part, length of the body), the JSON part, and the body as raw
bytes, so that a request's body is never encoded again on its way.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import orjson

_HEADER = struct.Struct("<BQII")
HEADER_SIZE = _HEADER.size


class Kind(IntEnum):
    # front -> worker
    REQUEST = 1  # meta: headers of the request; body: its payload
    CANCEL = 2  # id: a request that nobody waits for any more
    GRANT = 3  # id: how many threads the worker may compute with, until it says RELEASED
    YIELD = 4  # give the grant back after the present batch
    BUSY = 5  # id: 1, the model may take more memory to be faster; 0, it has to give that back
    # worker -> front
    READY = 16  # meta: what loading took
    FAILED = 17  # meta: status, type, message; the worker ends after this
    STARTED = 18  # meta: ids of the requests in work now; left out where one alone was there when the grant came
    RESULT = 19  # id: the request; meta: status, content type, times; body: the answer
    RELEASED = 20  # meta: how many requests are left
    MEMORY = 21  # meta: private memory, sent when idle for a moment; after BUSY also what of it is beyond the need


class Frame(NamedTuple):
    kind: int
    id: int
    meta: dict[str, Any]
    body: bytes


def pack(kind: Kind, number: int = 0, meta: dict[str, Any] | None = None, body: bytes = b"") -> bytes:
    """One frame. The body is copied once, which is cheaper than a second system call for all but huge ones."""
    text = _written(meta) if meta else b""
    return b"".join((_HEADER.pack(kind, number, len(text), len(body)), text, body))


def _written(meta: dict[str, Any]) -> bytes:
    """Each answer is written and read in a process that has just computed something else, whose caches hold none of
    this: there json takes twice as long as orjson."""
    try:
        return orjson.dumps(meta)
    except TypeError:  # half of a surrogate pair in a message, or a number of more than 64 bits
        return json.dumps(meta, separators=(",", ":")).encode()


def _read(text: bytes | bytearray) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text)


class Decoder:
    """Cuts a stream of bytes into frames. Raises ValueError at one that is larger than ``limit`` bytes."""

    def __init__(self, limit: int | None = None) -> None:
        self._buffer = bytearray()
        self._need = HEADER_SIZE
        self._limit = limit

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        self._buffer += data
        if len(self._buffer) < self._need:  # a big frame arrives in many pieces: do not look at it for each
            return
        at = 0
        size = len(self._buffer)
        while size - at >= HEADER_SIZE:
            kind, number, meta_size, body_size = _HEADER.unpack_from(self._buffer, at)
            end = at + HEADER_SIZE + meta_size + body_size
            if self._limit is not None and end - at > self._limit:
                raise ValueError(f"a frame of {end - at} bytes is larger than {self._limit} bytes")
            if end > size:
                self._need = end - at
                break
            middle = at + HEADER_SIZE + meta_size
            meta = _read(self._buffer[at + HEADER_SIZE : middle]) if meta_size else {}
            yield Frame(kind, number, meta, bytes(memoryview(self._buffer)[middle:end]))
            at = end
        else:
            self._need = HEADER_SIZE
        if at:
            del self._buffer[:at]


class Lines:
    """Cuts a stream of bytes into JSON messages, one a line (the language of the parent)."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
