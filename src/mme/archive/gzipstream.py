"""A gzip file made of parts: stored as they are, or deflated in parallel, in one member that every reader takes.

Weights hardly compress, and a byte that is stored costs neither the packer nor the container any time. Several
gzip members in one file would be simpler still, but some readers stop after the first (JDK-7036144), so what
is written here is a single member: deflate blocks that each end on a byte and never look back past their own
start, put one after the other.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from isal import isal_zlib

Buffer = bytes | bytearray | memoryview
Sink = Callable[[Sequence[Buffer]], None]

# magic, deflate, no flags, mtime 0, no extra flags, system unknown: nothing of the machine or the moment
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
LAST_BLOCK = b"\x01\x00\x00\xff\xff"
STORED_MAX = 65535
_FULL_STORED = b"\x00\xff\xff\x00\x00"

# One unit of work for a thread. A multiple of STORED_MAX, so that stored blocks are full ones.
CHUNK = 16 * STORED_MAX

# Chunks that wait for a thread or for their turn to be written, so that no thread has to wait for one.
AHEAD = 6

# What is deflated in one go: input, output and tables stay in a core's own cache, which makes a third of the time.
PIECE = 4 * STORED_MAX

STORED, FAST, SMALL = "stored", "fast", "small"


def stored_blocks(data: memoryview) -> list[Buffer]:
    """``data`` as deflate blocks that are not compressed: a header of five bytes before every 65,535."""
    parts: list[Buffer] = []
    for start in range(0, len(data), STORED_MAX):
        piece = data[start : start + STORED_MAX]
        size = len(piece)
        full = size == STORED_MAX
        header = _FULL_STORED if full else b"\x00" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")
        parts += (header, piece)
    return parts


@dataclass(frozen=True)
class Packed:
    """Deflate blocks in order, their size together, and the CRC32 of what was packed and of the blocks."""

    parts: list[bytes]
    size: int
    content_crc: int
    crc: int


def deflate(data: memoryview, how: str) -> Packed:
    """``data`` as deflate blocks that end on a byte and stand alone. Releases the interpreter's lock.

    ``fast`` is ISA-L's level 1, which does as well on weights as gzip does at any level. ``small`` keeps the
    best of that, level 3, and zlib's level 6, which is tried only where there is something to find.
    """
    best = _isal(data, 1)
    if how == SMALL:
        best = min(best, _isal(data, 3), key=_total)
        if _total(best) < 0.7 * len(data):
            other = zlib.compressobj(6, zlib.DEFLATED, -15)
            best = min(best, [other.compress(data), other.flush(zlib.Z_SYNC_FLUSH)], key=_total)
    # Here, and not where the blocks are written: the bytes are still in this core's cache.
    return Packed(best, _total(best), isal_zlib.crc32(data), crc_of(best))


def _isal(data: memoryview, level: int) -> list[bytes]:
    parts = []
    for start in range(0, len(data), PIECE):
        packer = isal_zlib.compressobj(level, isal_zlib.DEFLATED, -15, isal_zlib.DEF_MEM_LEVEL + 1)
        parts += [packer.compress(data[start : start + PIECE]), packer.flush(isal_zlib.Z_SYNC_FLUSH)]
    return parts


def _total(parts: Sequence[Buffer]) -> int:
    return sum(len(part) for part in parts)


def crc_of(parts: Sequence[Buffer], before: int = 0) -> int:
    """The CRC32 of all parts in a row, after bytes whose own is ``before``."""
    for part in parts:
        before = isal_zlib.crc32(part, before)
    return before


class GzipStream:
    """Writes one gzip member to ``sink``, which is called with buffers in order, on the caller's thread alone.

    A sink must be done with the buffers when it returns: they are used again. At most ``threads`` + AHEAD chunks
    of 1 MiB are held, however much goes through. Whatever ``sink`` or a ``watch`` raises comes out of ``write``
    or ``close``.
    """

    def __init__(self, sink: Sink, threads: int | None = None) -> None:
        self.sink = sink
        self.size = 0  # bytes of gzip so far
        self.crc = 0  # their CRC32
        self._content_crc = 0
        self._length = 0
        threads = threads or max(2, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, "deflate")
        # Digests are of one file after the other, so one thread does them in order.
        self._watcher = ThreadPoolExecutor(1, "sha256")
        # A buffer with the watches that may still be reading it: those are waited for when it is used again.
        self._free: deque[tuple[bytearray, list[Future[None]]]] = deque(
            (bytearray(CHUNK), []) for _ in range(threads + AHEAD)
        )
        self._pending: deque[tuple[bytearray, int, Future[Packed] | None, list[Future[None]]]] = deque()
        self._buffer = self._take()
        self._filled = 0
        self._how = STORED
        self._watches: list[Future[None]] = []
        self._emit([HEADER])

    def __enter__(self) -> GzipStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._watcher.shutdown(wait=True, cancel_futures=True)

    def write(self, data: bytes, how: str = STORED) -> None:
        """Add ``data``."""
        view = memoryview(data)
        while view:
            room = self.room(how)
            size = min(len(view), len(room))
            room[:size] = view[:size]
            self.advance(size)
            view = view[size:]

    def room(self, how: str) -> memoryview:
        """A piece of the buffer to fill, never empty. ``advance`` is then called with the number of bytes filled."""
        if how != self._how or self._filled == CHUNK:
            self.flush()
            self._how = how
        return memoryview(self._buffer)[self._filled :]

    def advance(self, size: int, watch: Callable[[memoryview], Any] | None = None) -> None:
        """``size`` bytes of the room were filled; ``watch`` is called with them, in order, on another thread."""
        piece = memoryview(self._buffer)[self._filled : self._filled + size]
        self._filled += size
        if watch is not None and size:
            self._watches.append(self._watcher.submit(watch, piece))

    def flush(self) -> None:
        """End the block at hand, so that what follows starts on a byte of its own."""
        if not self._filled:
            return
        view = memoryview(self._buffer)[: self._filled]
        job = None if self._how == STORED else self._pool.submit(deflate, view, self._how)
        self._pending.append((self._buffer, self._filled, job, self._watches))
        self._watches = []
        self._filled = 0
        if job is None and len(self._pending) == 1:
            self._write_oldest()  # nothing to wait for
        self._buffer = self._take()

    def drain(self) -> int:
        """Hand everything so far to the sink; return the number of gzip bytes up to here."""
        self.flush()
        while self._pending:
            self._write_oldest()
        for _, watches in self._free:
            _settle(watches)
        return self.size

    def close(self) -> int:
        """End the member; return its size in bytes."""
        self.drain()
        trailer = self._content_crc.to_bytes(4, "little") + (self._length & 0xFFFFFFFF).to_bytes(4, "little")
        self._emit([LAST_BLOCK, trailer])
        return self.size

    def _take(self) -> bytearray:
        while not self._free:
            self._write_oldest()
        buffer, watches = self._free.popleft()
        _settle(watches)
        return buffer

    def _write_oldest(self) -> None:
        buffer, size, job, watches = self._pending.popleft()
        if job is None:
            view = memoryview(buffer)[:size]
            self._emit(stored_blocks(view))
            self._content_crc = isal_zlib.crc32(view, self._content_crc)
        else:
            packed = job.result()
            self._send(packed.parts, packed.size, isal_zlib.crc32_combine(self.crc, packed.crc, packed.size))
            self._content_crc = isal_zlib.crc32_combine(self._content_crc, packed.content_crc, size)
        self._length += size
        self._free.append((buffer, watches))

    def _emit(self, parts: Sequence[Buffer]) -> None:
        self._send(parts, _total(parts), crc_of(parts, self.crc))

    def _send(self, parts: Sequence[Buffer], size: int, crc: int) -> None:
        self.size += size
        self.crc = crc
        self.sink(parts)


def _settle(watches: list[Future[None]]) -> None:
    while watches:
        watches.pop().result()


def file_sink(descriptor: int) -> Sink:
    """A sink that writes to an open file. Raises OSError (no space left, …)."""

    def write(parts: Sequence[Buffer]) -> None:
        waiting = deque(memoryview(part) for part in parts)
        while waiting:
            batch = [waiting[i] for i in range(min(len(waiting), 512))]
            done = os.writev(descriptor, batch)
            while waiting and done >= len(waiting[0]):
                done -= len(waiting.popleft())
            if done:
                waiting[0] = waiting[0][done:]

    return write
