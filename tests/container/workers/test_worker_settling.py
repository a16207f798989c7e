"""What the parent does about its memory: what is made after it lies together."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

POOLS = """
import sys
from mme.container.workers import settling

size = 112
pieces = [bytes(size - sys.getsizeof(b"")) for _ in range(20_000)]
holes = sorted(id(pieces[place]) for place in range(0, 20_000, 7))
del pieces[::7]
filled = settling.fill_pools()
made = [bytes(size - sys.getsizeof(b"")) for _ in range(200)]
together = sum(abs(id(one) - id(other)) == size for one, other in zip(made, made[1:]))
print(len(set(map(id, made)) & set(holes)), together, len(settling.fill_pools()) < len(filled) / 4)
"""

CHUNKS = """
import ctypes
from mme.container.workers import settling

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
pieces = [library.malloc(3000) for _ in range(1000)]
for piece in pieces[::2]:
    library.free(piece)
settling.fill_chunks()
print(len(set(pieces[::2]) & {library.malloc(3000) for _ in range(1000)}))
"""


def run(source: str) -> str:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="its own allocator")
def test_no_hole_among_small_objects_is_left() -> None:
    in_holes, together, less = run(POOLS).split()
    assert (in_holes, less) == ("0", "True")
    assert int(together) > 190  # but where one pool ends and the next begins


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library does not tell")
def test_no_hole_in_the_heap_is_left() -> None:
    assert run(CHUNKS) == "0"
