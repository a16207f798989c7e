"""Arranges the parent's memory before it forks.

A page that a process shares with its parent becomes the process's own once it writes there. After all that the parent
has imported, its heaps are full of small holes, each in a page with things that stay: a process that puts something
into them makes a page its own for a few bytes. So the parent fills the holes, and what a process makes lies together,
in pages that nobody shares.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from itertools import repeat

POOL = 16 * 1024  # bytes: what Python's allocator has for objects of one size
POOL_HEAD = 48
SMALLEST, LARGEST, STEP = 16, 512, 16  # sizes of what it makes
MOST = 8 * 1024 * 1024  # bytes to fill for one size: there are no such pools with another allocator
MOST_CHUNKS = 20_000

_filled: list[list[object]] = []


def forget_lookups() -> None:
    """Empty Python's cache of attributes of types. It is small, and full: whatever a process looks up that is not in
    it takes the place of something else, whose name loses a reference, somewhere in a page that is shared."""
    if hasattr(sys, "_clear_type_cache"):
        sys._clear_type_cache()


def settle() -> None:
    """Make the heaps of this process such that forks have few pages of their own. Costs some megabytes, once."""
    gc.collect()  # it empties Python's lists of free objects, too
    _filled.append(fill_pools())
    fill_chunks()
    gc.freeze()  # the collector must not touch, and so copy, the pages that all processes share


def fill_pools() -> list[object]:
    """Objects in all places that are free between others in the heap of Python's small objects."""
    if sys.implementation.name != "cpython":
        return []
    filled: list[object] = []
    for size in range(SMALLEST, LARGEST + 1, STEP):
        filled += _fill(size)
    return filled


def _fill(size: int) -> list[object]:
    """Objects of this size until some have had a pool of their own: then no other pool has had room."""
    enough = (POOL - POOL_HEAD) // size
    made: list[object] = []
    while len(made) * size < MOST:
        new = _objects(size, 2 * enough)
        row = 1
        for place in range(1, len(new)):
            row = row + 1 if abs(id(new[place]) - id(new[place - 1])) == size else 1
            if row == enough:
                return made + new[: place + 1 - enough]
        made += new
    return []


def _objects(size: int, count: int) -> list[object]:
    """So many objects that take this many bytes each, with nothing else of that size made between them."""
    if size == SMALLEST:
        return [object() for _ in repeat(None, count)]
    if size == 2 * STEP:
        half = 0.5
        return [half * half for _ in repeat(None, count)]
    length = size - sys.getsizeof(b"")
    return [bytes(length) for _ in repeat(None, count)]


class _Heap(ctypes.Structure):
    """glibc's struct mallinfo2: bytes, but for ordblks, smblks and hblks."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def fill_chunks() -> int:
    """Take all pieces that are free between others in the heap of the C library, and never give them back; how many.
    Does nothing where that is not glibc."""
    if not sys.platform.startswith("linux"):
        return 0
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return 0
    library.mallinfo2.restype = _Heap
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    count = 0
    size = 64 * 1024
    while size >= 24 and count < MOST_CHUNKS:
        before = library.mallinfo2()
        piece = library.malloc(size)
        after = library.mallinfo2()
        if (before.arena, before.keepcost) == (after.arena, after.keepcost):
            count += 1
            continue
        library.free(piece)  # it came from the end of the heap: no piece between others was as large
        size = size * 3 // 4 if size > 1024 else size - 16
    return count
