"""How much memory there is, and how much of it a process or a model takes. All figures are bytes."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mme.container import cgroup, conversion
from mme.container.config import MiB

_PAGE = os.sysconf("SC_PAGE_SIZE")
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
MAPPED_FILES = (".safetensors",)


@dataclass(frozen=True)
class Host:
    """``total`` is what this container may use; ``available`` is what it could still take without swapping,
    clean file pages (mapped weights among them) counted as available."""

    total: int
    available: int


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def host(limit: int | None = None) -> Host:
    """Memory of this container: the lowest of the machine's, its control groups' and ``limit`` (a setting)."""
    info = {name: size * 1024 for name, size in _kilobytes(_read("/proc/meminfo") or "").items()}
    if info:
        total, available = info["MemTotal"], info.get("MemAvailable", info["MemFree"])
    else:  # macOS has no /proc
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        available = _mac_available() if sys.platform == "darwin" else total // 2
    for group in cgroup.memory():
        total = min(total, group.size)
        available = min(available, max(0, group.size - group.used))
    if limit is not None and limit < total:
        total = limit
    return Host(total, min(available, total))


def _mac_available() -> int:
    try:
        text = subprocess.run(["vm_stat"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    page = int((re.search(r"page size of (\d+)", text) or ["", "4096"])[1])
    pages = sum(int(n) for n in re.findall(r"^Pages (?:free|inactive|purgeable):\s+(\d+)", text, re.MULTILINE))
    return pages * page


def default_reserve(total: int) -> int:
    """Kept free for the front, the parent, the kernel and a request's passing needs."""
    return min(max(total // 20, 256 * MiB), 2048 * MiB)


_OURS = ("/memfd:", "/dev/zero (deleted)", "/SYSV")  # mapped like files, and gone with the last process that has them


_DIRTY = re.compile(r"\nPrivate_Dirty: +([1-9]\d*) kB\n")  # of the mappings that have any
_AWAY = re.compile(r"\n(?:Private_Hugetlb|Swap): +([1-9]\d*) kB\n")


def private(pid: int | str = "self", fresh: bool = False) -> int:
    """Memory that ends with the process: its private pages that no file backs. 0 where there is no /proc.

    ``fresh`` says that it has files mapped that were written lately: then one look is enough where it takes two else.
    """
    if not fresh:
        text = _read(f"/proc/{pid}/smaps_rollup")
        if text is None:
            return 0
        rows = _kilobytes(text)
        # Dirty pages need not be anonymous: a mapped file that was written lately, or that lies in memory (tmpfs), has
        # some too.
        if rows["Private_Dirty"] + rows.get("Shared_Dirty", 0) <= rows.get("Anonymous", 0):
            return (rows["Private_Dirty"] + rows.get("Private_Hugetlb", 0) + rows.get("Swap", 0)) * 1024
    return _unbacked(_read(f"/proc/{pid}/smaps") or "") * 1024


def _unbacked(smaps: str) -> int:
    """Kilobytes of private pages that are no file's, going by the list of all mappings (proc_pid_smaps(5))."""
    total = sum(int(size) for size in _AWAY.findall(smaps))
    for match in _DIRTY.finditer(smaps):
        dirty = int(match[1])
        begin = smaps.index("\nAnonymous:", match.start()) + len("\nAnonymous:")
        # What was written through a private mapping is anonymous, and the process's own.
        anonymous = int(smaps[begin : smaps.index(" kB", begin)])
        total += min(dirty, anonymous) if dirty > anonymous and _backed(smaps, match.start()) else dirty
    return total


def _backed(smaps: str, at: int) -> bool:
    """Whether a file backs the mapping whose description this is a place of."""
    end = smaps.rindex("\nSize:", 0, at)
    words = smaps[smaps.rfind("\n", 0, end) + 1 : end].split(None, 5)
    name = words[5] if len(words) == 6 else ""
    deleted = name.startswith("/dev/shm/") and name.endswith(" (deleted)")  # noqa: S108
    return name.startswith("/") and not name.startswith(_OURS) and not deleted


LATELY = 60.0  # seconds: Linux writes changed pages back after 30, and looks for them every 5


def written_lately(model_dir: str) -> bool:
    """Whether a file at the top of the folder was put there a moment ago, so that its pages may still be unwritten."""
    try:
        with os.scandir(model_dir) as entries:
            return any(time.time() - entry.stat().st_ctime < LATELY for entry in entries if entry.is_file())
    except OSError:
        return False


def _kilobytes(text: str) -> dict[str, int]:
    return {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def anonymous(pid: int) -> int:
    """Memory of a process that no file backs, shared with its parent or not. Much cheaper to ask than ``private``."""
    words = (_read(f"/proc/{pid}/statm") or "").split()
    return (int(words[1]) - int(words[2])) * _PAGE if len(words) > 2 else 0


def oom_kills() -> int:
    """How often the kernel has killed a process for want of memory, as far as this container can see."""
    count = cgroup.oom_kills()
    if count is None:
        match = re.search(r"^oom_kill (\d+)", _read("/proc/vmstat") or "", re.MULTILINE)
        count = int(match[1]) if match else 0
    return count


@dataclass(frozen=True)
class Weights:
    """What a model's folder says about its size before it is loaded.

    ``mapped`` are bytes that stay in files (shared by every model with the same file, and given up by the kernel
    under pressure); ``copied`` are bytes that loading brings into private memory as they are, and ``converted`` those
    that it makes there in another number format, with ``meanwhile`` more of them until it is over; ``grown`` is by how
    much they are larger in that format than in the files; ``files`` names each mapped file by (device, inode, size), so
    that a file with several names counts once.
    """

    mapped: int
    copied: int
    files: tuple[tuple[int, int, int], ...]
    converted: int = 0
    meanwhile: int = 0
    grown: int = 0


NO_WEIGHTS = Weights(0, 0, ())


def weights(model_dir: str) -> Weights:
    """Look at the files of a model. Raises OSError where the folder cannot be read."""
    mapped: dict[tuple[int, int, int], Path] = {}
    copied = 0
    for folder, _, names in os.walk(model_dir):
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix in WEIGHT_FILES:
                path = Path(folder, name)
                info = path.stat()
                if not stat.S_ISREG(info.st_mode):
                    continue
                if suffix in MAPPED_FILES:
                    mapped[(info.st_dev, info.st_ino, info.st_size)] = path
                else:
                    copied += info.st_size
    if mapped:  # the same weights in an older format beside them are not read
        copied = 0
    converted, meanwhile, grown = conversion.needs(Path(model_dir), mapped.values(), copied)
    return Weights(sum(key[2] for key in mapped), copied, tuple(sorted(mapped)), converted, meanwhile, grown)
