"""What of a process's memory ends with it, as the kernel tells."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from pathlib import Path

import pytest

from mme.container import memory

MB = 1024 * 1024
SIZE = 32 * MB
SLACK = 8 * MB  # what Python takes or frees meanwhile

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell")


def look(mapped: mmap.mmap) -> int:
    return sum(mapped[place] for place in range(0, len(mapped), mmap.PAGESIZE))


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_file_that_has_just_been_written_is_not_the_processs(tmp_path: Path, where: str) -> None:
    """It was: the pages that an archive's file had been unpacked into were dirty, and mapped by one process alone."""
    folder = tmp_path if where == "disk" else Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        pytest.skip(f"{folder} cannot be written")
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(os.urandom(SIZE))
        file.flush()
        before = memory.private()
        with mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped:
            assert look(mapped)
            for fresh in (False, True):
                assert abs(memory.private(fresh=fresh) - before) < SLACK
        with mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_COPY) as mapped:
            mapped[:] = bytes(SIZE)  # now it is its own
            for fresh in (False, True):
                assert abs(memory.private(fresh=fresh) - before - SIZE) < SLACK


def test_what_no_file_backs_is_the_processs() -> None:
    before = memory.private()
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
        mapped[:] = bytes(SIZE)
        for fresh in (False, True):
            assert abs(memory.private(fresh=fresh) - before - SIZE) < SLACK


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no such files")
def test_memory_that_is_mapped_like_a_file_is_the_processs() -> None:
    before = memory.private()
    fd = os.memfd_create("one")
    try:
        os.truncate(fd, SIZE)
        with mmap.mmap(fd, SIZE) as one, mmap.mmap(-1, SIZE, flags=mmap.MAP_SHARED) as other:
            one[:] = other[:] = bytes(SIZE)
            for fresh in (False, True):
                assert abs(memory.private(fresh=fresh) - before - 2 * SIZE) < SLACK
    finally:
        os.close(fd)


def test_a_process_that_is_gone_has_none() -> None:
    assert memory.private(2**30) == memory.private(2**30, fresh=True) == 0


def test_a_folder_is_lately_written_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not memory.written_lately(str(tmp_path / "none"))
    assert not memory.written_lately(str(tmp_path))
    (tmp_path / "code").mkdir()
    assert not memory.written_lately(str(tmp_path)), "only files have weights"
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    os.utime(tmp_path / "model.safetensors", (0, 0))  # as an archive has it, which says nothing of when it was unpacked
    assert memory.written_lately(str(tmp_path))
    later = time.time() + 2 * memory.LATELY
    monkeypatch.setattr(time, "time", lambda: later)
    assert not memory.written_lately(str(tmp_path))
