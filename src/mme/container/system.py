"""Calls that only some operating systems have. Each does nothing where the system lacks it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path

_LINUX = sys.platform.startswith("linux")
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if _LINUX else None


_C = _libc()


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends, however the parent ends. ``parent`` is the parent's process id."""
    if _C is not None:
        _C.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent has ended, so that they are reaped."""
    if _C is not None:
        _C.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(pid: int) -> list[int]:
    """Process ids of the children of a process, of all its threads; none where the system does not tell."""
    pids: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                pids += [int(word) for word in (thread / "children").read_text().split()]
    return pids


def name_process(name: str) -> None:
    """What ps and top show (15 characters at most)."""
    if _C is not None:
        _C.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def prefer_for_oom(score: int = 500) -> None:
    """Ask the kernel to end this process rather than others when memory runs out."""
    with contextlib.suppress(OSError):  # by hand: a file object would touch some fifty pages shared with the parent
        file = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(file, str(score).encode())
        finally:
            os.close(file)


def has_open(file: str) -> bool:
    """Whether this process has the file open."""
    with contextlib.suppress(OSError):
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) == file:
                    return True
    return False


def has_gpu() -> bool:
    """Whether the system has the device file of NVIDIA's driver."""
    return Path("/dev/nvidiactl").exists()


def keep_only(descriptors: Collection[int]) -> None:
    """Have all other open files be closed when another program takes this process's place."""
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor not in descriptors:
            with contextlib.suppress(OSError):  # the one that listed them
                os.set_inheritable(descriptor, False)


def trim_heap() -> None:
    """Give free heap pages back to the system (glibc only)."""
    if _C is not None and hasattr(_C, "malloc_trim"):
        _C.malloc_trim(0)


def raise_file_limit() -> None:
    """As many open files as the system allows: each active model takes one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 16
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
