"""What the control groups of this process allow, versions 1 and 2 (cgroups(7)). All sizes are bytes.

A limit holds for a group and for all below it, so each is the lowest of the process's own group and those above, as far
as they can be seen: in a container mostly its own alone, which is the root of what is mounted there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_UNLIMITED = 1 << 60  # version 1 writes a number for none


@dataclass(frozen=True)
class Limit:
    """``used`` is what of the limit's bytes cannot be reclaimed: file pages can be."""

    size: int
    used: int


def memory(root: Path = ROOT) -> list[Limit]:
    """The memory limits that hold."""
    limits = []
    for folder, version in _groups("memory", root):
        if version == 2:
            sizes = [_number(folder / name) for name in ("memory.max", "memory.high")]
            kinds: tuple[str, ...] = ("anon", "shmem", "kernel")
        else:
            sizes = [_number(folder / "memory.limit_in_bytes")]
            kinds = ("total_rss", "total_shmem")
        size = min((size for size in sizes if size is not None), default=_UNLIMITED)
        if size < _UNLIMITED:
            counts = _counts(folder / "memory.stat")
            limits.append(Limit(size, sum(counts.get(kind, 0) for kind in kinds)))
    return limits


def cpus(root: Path = ROOT) -> float | None:
    """How many cores' time the quota allows; None where there is none."""
    quotas = []
    for folder, version in _groups("cpu", root):
        if version == 2:
            words = _text(folder / "cpu.max").split()
        else:
            words = [_text(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def oom_kills(root: Path = ROOT) -> int | None:
    """How many processes of this group the kernel has ended for want of memory. None where it does not count them."""
    for folder, version in _groups("memory", root):
        count = _counts(folder / ("memory.events" if version == 2 else "memory.oom_control")).get("oom_kill")
        if count is not None:
            return count
    return None


@functools.cache
def _groups(controller: str, root: Path) -> list[tuple[Path, int]]:
    """The folders of this process's group and of those above it, its own first, each with its version."""
    groups: list[tuple[Path, int]] = []
    for row in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = row.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [(mount, 2) for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified")]
        elif controller in controllers.split(","):
            mounts = [(f"sys/fs/cgroup/{name}", 1) for name in (controller, controllers)]
        else:
            continue
        for mount, version in mounts:
            groups += [(folder, version) for folder in _up(root / mount, path)]
    return list(dict.fromkeys(groups))


def _up(mount: Path, path: str) -> Iterator[Path]:
    """The folder of the group ``path``, those above it, and the mount itself. Where only a part of the hierarchy is
    mounted, as in most containers of version 1, the group is not there under its path, and the mount is its folder."""
    own = PurePosixPath(path.lstrip("/"))
    if ".." not in own.parts:
        for part in (own, *own.parents):
            if (mount / part).is_dir() and part.parts:
                yield mount / part
    if mount.is_dir():
        yield mount


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _counts(path: Path) -> dict[str, int]:
    return {name: int(count) for name, count in re.findall(r"^(\w+) (\d+)$", _text(path), re.M)}
