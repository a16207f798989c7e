"""Identical weight files of several models become one file, so that their pages are in memory once.

A hundred versions that differ only in a head or a handler come as a hundred archives with the same weights in them. The
platform extracts each into a folder of its own. Before such a model is loaded, its file is replaced by a hard link to
the same file of a model that is loaded already: nothing is copied, and whichever folder goes first, the other keeps it.

A shared file cannot be written. Owner and mode do not prevent it, since a handler mostly runs as the owner, or as root.
So each shared file is held with a read lease (fcntl(2), F_SETLEASE): a process that opens it for writing, maps it for
writing or truncates it is stopped by the kernel until the lease is given up. Before it is, the processes of all models
with this file are ended (the one that wanted to write among them), and each gets a file of its own. Then they come back
and do their work once more; the write now reaches the writer's own file. A lease is had only while nobody has the file
open for writing. Where none is to be had (another system than Linux, some network file systems), nothing is shared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import stat
import threading
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from mme.container.files import open_regular
from mme.container.memory import MAPPED_FILES

SMALLEST = 1024 * 1024  # bytes; smaller files are not worth a look
SAMPLES = 64
BLOCK = 4096
CHUNK = 4 * 1024 * 1024
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file until one is written


@dataclass
class Lease:
    """One file that several models have, or that has other names. ``members`` are the models' paths, by number."""

    file: FileIO
    info: os.stat_result
    members: dict[int, Path] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, int]:
        return self.info.st_dev, self.info.st_ino

    @property
    def broken(self) -> bool:
        """Whether a process wants to write the file, or has changed its owner or mode."""
        now = os.fstat(self.file.fileno())
        same = (now.st_mode, now.st_uid, now.st_gid) == (self.info.st_mode, self.info.st_uid, self.info.st_gid)
        return not same or fcntl.fcntl(self.file.fileno(), fcntl.F_GETLEASE) != fcntl.F_RDLCK


class WeightPool:
    """The weight files of the models that are loaded. All but :meth:`broken` and :meth:`forget` block; all may be
    called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, dict[int, Path]] = {}  # by fingerprint: of which model, where
        self._leases: dict[tuple[int, int], Lease] = {}  # by device and inode

    def share(self, number: int, folder: str) -> int:
        """Link this model's weights to equal ones that are known. Returns how many bytes that saves.

        Raises OSError where a file that has other names can be neither held nor copied.
        """
        saved = 0
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root, name)
                if path.suffix.lower() in MAPPED_FILES:
                    info = path.lstat()
                    if stat.S_ISREG(info.st_mode) and info.st_size >= SMALLEST:
                        saved += self._share_file(number, path, info)
        return saved

    def _share_file(self, number: int, path: Path, info: os.stat_result) -> int:
        saved = 0
        with contextlib.suppress(OSError):
            mark = fingerprint(path, info.st_size)
            with self._lock:
                others = list(self._known.setdefault(mark, {}).items())
                self._known[mark][number] = path
            for other_number, other in others[:1]:
                saved = self._join(number, path, other_number, other)
        if path.lstat().st_nlink > 1:  # perhaps an earlier container left it so, and nothing else holds it
            self._guard(number, path)
        return saved

    def _join(self, number: int, path: Path, other_number: int, other: Path) -> int:
        """Make two equal files one. Returns the bytes saved. Raises OSError where that cannot be."""
        lease = _take(other)
        try:
            if path.samefile(other) or not equal(path, other):
                lease.file.close()
                return 0
            link = path.with_name(f".{path.name}.mme-{os.getpid()}-{number}")
            os.link(other, link)  # fails across file systems and where it is not allowed: then each keeps its own
            try:
                info = link.stat()
                with self._lock:
                    if (info.st_dev, info.st_ino) != lease.key or lease.broken:
                        raise OSError(errno.EBUSY, "somebody else writes the file", str(other))
                    link.replace(path)
                    held = self._leases.setdefault(lease.key, lease)
                    held.members |= {other_number: other, number: path}
            except OSError:
                link.unlink(missing_ok=True)
                raise
        except BaseException:
            lease.file.close()
            raise
        if held is not lease:
            lease.file.close()
        return info.st_size

    def _guard(self, number: int, path: Path) -> None:
        """Hold a file that has other names; where it cannot be held, the model gets a copy."""
        info = path.lstat()
        with self._lock:
            held = self._leases.get((info.st_dev, info.st_ino))
            if held is not None:
                held.members[number] = path
                return
            try:
                lease = _take(path)
            except OSError:
                lease = None
            if lease is not None:
                self._leases[lease.key] = lease
                lease.members[number] = path
                return
        with open_regular(path) as file:
            _copy(file, path, os.fstat(file.fileno()), number)

    def broken(self) -> list[Lease]:
        """Files that a process wants to write, each once. The caller ends the processes of its models, then calls
        part."""
        with self._lock:
            broken = [lease for lease in self._leases.values() if lease.broken]
            for lease in broken:
                del self._leases[lease.key]
            for models in self._known.values():
                for number in [number for lease in broken for number in lease.members]:
                    models.pop(number, None)  # it is about to differ, or has been meant to
        return broken

    def part(self, lease: Lease) -> dict[int, OSError]:
        """Give each model a file of its own, and the lease up. Returns the models for which that failed, and why."""
        failed = {}
        for number, path in lease.members.items():
            try:
                now = path.lstat()
                if (now.st_dev, now.st_ino) == lease.key:
                    _copy(lease.file, path, lease.info, number)
            except FileNotFoundError:
                continue  # its folder has gone meanwhile
            except OSError as error:
                failed[number] = error
        lease.file.close()
        return failed

    def forget(self, number: int) -> None:
        with self._lock:
            for key in [key for key, models in self._known.items() if number in models]:
                del self._known[key][number]
                if not self._known[key]:
                    del self._known[key]
            for lease in [lease for lease in self._leases.values() if number in lease.members]:
                del lease.members[number]
                if not lease.members:
                    del self._leases[lease.key]
                    lease.file.close()


def _take(path: Path) -> Lease:
    """Hold a file. Raises OSError where somebody has it open for writing, or where the system has no leases."""
    if not hasattr(fcntl, "F_SETLEASE"):
        raise OSError(errno.ENOSYS, "this system has no leases", str(path))
    file = open_regular(path)
    try:
        # The kernel tells the holder by a signal. It is looked for instead, so it is one that does nothing.
        fcntl.fcntl(file.fileno(), fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK)
        return Lease(file, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise


def _copy(source: FileIO, path: Path, info: os.stat_result, number: int) -> None:
    """Put a copy of the file in this place, with the same owner, mode and times."""
    copy = path.with_name(f".{path.name}.mme-{os.getpid()}-{number}")
    fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb", buffering=0) as target:  # noqa: PTH123 (a descriptor)
            try:
                fcntl.ioctl(fd, _FICLONE, source.fileno())
            except OSError:  # the file system cannot share blocks
                at = 0
                while at < info.st_size:
                    part = os.pread(source.fileno(), CHUNK, at)
                    if not part:
                        raise OSError(errno.EIO, "the file is shorter than it was", str(path)) from None
                    at += _write(target, part)
            os.fchmod(fd, stat.S_IMODE(info.st_mode))
            with contextlib.suppress(OSError):
                os.fchown(fd, info.st_uid, info.st_gid)
            os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))
        copy.replace(path)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def _write(target: FileIO, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]
    return len(data)


def fingerprint(path: Path, size: int) -> str:
    """A digest of the size and of blocks from all over the file: different for files worth telling apart quickly."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open_regular(path) as file:
        for number in range(SAMPLES):
            file.seek((size - BLOCK) * number // (SAMPLES - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def equal(one: Path, two: Path) -> bool:
    """Whether two files hold the same bytes, every one of them."""
    with open_regular(one) as left, open_regular(two) as right:
        while True:
            chunk = left.read(CHUNK)
            if chunk != right.read(CHUNK):
                return False
            if not chunk:
                return True
