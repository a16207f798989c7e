"""A snapshot and a handler -> NAME-DIGEST12.tar.gz: the same bytes for the same content, wherever it is built.

The digest is of the list of files and of their bytes, never of the gzip stream, so that it does not move with
the compressor. The archive's last member, ``mme-manifest.json``, says what is inside and where it came from.
It is outside the digest, and always stored, never compressed, so that it can be read from the last few
kilobytes of a file or an object.

For those who publish: ``built`` finds what ``invoke package`` built. To upload without an archive on disk,
``plan`` tells the target's name before a byte is made, and ``stream`` makes the bytes:

    planned = archive.plan(spec, snapshot)            # reads and hashes the files
    upload = start_upload(planned.target)
    archive.stream(planned, upload.write)             # raises ArchiveError if a file changed meanwhile:
    upload.complete()                                 # then complete nothing
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from isal import isal_zlib

from mme.archive.contents import MANIFEST, Archive, File, content_digest, target
from mme.archive.gzipstream import FAST, SMALL, STORED, Buffer, GzipStream, Sink, file_sink
from mme.archive.plan import Item, Plan, Progress, check_size, collect, manifest_of, open_item
from mme.catalog.spec import COMPRESSIONS, ModelSpec
from mme.errors import ArchiveError, CatalogError

# Compressing pays when a container that downloads at 100 MB/s and more starts sooner for it. Inflating costs
# about 3 ms for each MB, downloading 10 ms at most: so what shrinks to less than 0.6 of its size.
PAYS = 0.6
# Smaller files are stored: there is nothing to win, and stored bytes are the same on every kind of processor.
WORTH = 16 << 20
SAMPLE_SIZE = 256 * 1024


def stream(
    planned: Plan,
    write: Callable[[Buffer], object],
    *,
    compression: str = "auto",
    progress: Progress | None = None,
) -> Archive:
    """Make the planned archive and hand its bytes to ``write``, in order, up to 1 MiB at a time.

    ``write`` is called on this thread and may raise. It must be done with the bytes when it returns: their place is
    used again. Memory is bounded whatever the size. Raises ArchiveError
    when a file is no longer what was planned; what was written by then must be thrown away.
    """

    def sink(parts: Sequence[Buffer]) -> None:
        for part in parts:
            write(part)

    size, _, content = _write(planned.items, sink, compression, progress, lambda _: planned.manifest)
    if content != planned.files:
        changed = next(new.path for new, old in zip(content, planned.files, strict=True) if new != old)
        raise ArchiveError(f"{changed} of {planned.name} changed while it was packed.", "Run the command again.")
    return Archive(None, planned.name, planned.digest, size, content, planned.manifest)


def write_files(planned: Plan, folder: Path) -> None:
    """Put the planned archive's files into ``folder`` (new) as unpacking the archive would. Raises ArchiveError."""
    try:
        for item in planned.items:
            path = folder / item.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(item.origin, bytes):
                path.write_bytes(item.origin)
            else:
                shutil.copyfile(item.origin, path)
    except OSError as error:
        raise _disk_error(error, folder) from None


def build(
    spec: ModelSpec,
    snapshot: Path,
    out: Path,
    *,
    compression: str = "auto",
    vendored: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Archive:
    """Pack ``snapshot`` and the handler of ``spec`` into ``out``/NAME-DIGEST12.tar.gz, in one pass.

    The final name appears only when the file is complete; killed at any point, this leaves at most a hidden
    partial file, which the next build removes. ``facts`` are added to the manifest. Raises ArchiveError when
    the disk is full or cannot be written to, and when a file changes while it is read.
    """
    items = collect(spec, snapshot, vendored)
    folder = (out / spec.name).parent
    made: dict[str, Any] = {}

    def manifest(content: Sequence[File]) -> Mapping[str, Any]:
        made.update(manifest_of(spec, content_digest(content), content, facts))
        return made

    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        _check_space(folder, sum(item.size for item in items))
        partial = folder / f".{Path(spec.name).name}-{os.getpid()}-{os.urandom(4).hex()}.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # tells ``clean`` that a build is under way here
            size, crc32, content = _write(items, file_sink(descriptor), compression, progress, manifest)
            os.fchmod(descriptor, 0o644)
            path = out / target(spec.name, made["digest"])
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _disk_error(error, folder) from None
    return Archive(path, spec.name, made["digest"], size, content, made, crc32)


def clean(folder: Path) -> None:
    """Remove partial archives in ``folder`` that no process is writing any more."""
    for partial in folder.glob(".*.partial"):
        try:
            descriptor = os.open(partial, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _write(
    items: Sequence[Item],
    sink: Sink,
    compression: str,
    progress: Progress | None,
    manifest: Callable[[Sequence[File]], Mapping[str, Any]],
) -> tuple[int, int, tuple[File, ...]]:
    """Write the whole gzip file; return its size, its CRC32 and what was read into it."""
    with GzipStream(sink) as gzip:
        digests = []
        for item in items:
            how = choose(item, compression)
            gzip.write(_header(item.path, item.size), how)
            digest = hashlib.sha256()
            digests.append(digest)
            size = 0
            for count in _fill(gzip, item, how, digest.update):
                size += count
                if progress:
                    progress(count)
            check_size(item, size)
            gzip.write(bytes(-size % 512), how)
        gzip.drain()
        content = tuple(
            File(item.path, item.size, digest.hexdigest()) for item, digest in zip(items, digests, strict=True)
        )
        data = json.dumps(manifest(content), indent=1, ensure_ascii=False).encode() + b"\n"
        end = bytes(-len(data) % 512 + 1024)
        gzip.write(_header(MANIFEST, len(data)) + data + end, STORED)
        return gzip.close(), gzip.crc, content


def _fill(gzip: GzipStream, item: Item, how: str, watch: Callable[[memoryview], Any]) -> Iterator[int]:
    if isinstance(item.origin, bytes):
        gzip.write(item.origin, how)
        watch(memoryview(item.origin))
        yield item.size
        return
    with open_item(item.path, item.origin) as file:
        while True:
            count = file.readinto(gzip.room(how)) or 0
            if not count:
                return
            gzip.advance(count, watch)
            yield count


def choose(item: Item, compression: str) -> str:
    """How to pack this file: stored, fast or small. ``auto`` tries three pieces of it to see whether it pays."""
    if compression not in COMPRESSIONS:
        raise CatalogError(f"There is no compression {compression!r}.", f"Known: {', '.join(COMPRESSIONS)}.")
    if compression != "auto":
        return {"stored": STORED, "fast": FAST, "small": SMALL}[compression]
    if item.size < WORTH or isinstance(item.origin, bytes):
        return STORED
    tried = packed = 0
    with open_item(item.path, item.origin) as file:
        for part in (1, 2, 3):
            file.seek(item.size * part // 4)
            data = file.read(SAMPLE_SIZE)
            tried += len(data)
            packed += len(isal_zlib.compress(data, 1))
    return FAST if tried and packed < PAYS * tried else STORED


def _header(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 0.5:  # it may compress; what certainly does not fit is refused before any work is done
        raise ArchiveError(
            f"The disk of {folder} has {free / 1e6:,.0f} MB free, and the model has {needed / 1e6:,.0f} MB.",
            "Free some space, or name another folder with --out.",
        )


def _disk_error(error: OSError, folder: Path) -> ArchiveError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArchiveError(
            f"The disk of {folder} is full; nothing half-made was left there.",
            "Free some space, or name another folder with --out.",
        )
    where = error.filename or folder
    return ArchiveError(f"{where}: {error.strerror or error}.", "Check the folder, or name another one with --out.")


if sys.platform == "win32":  # pragma: no cover
    raise ImportError("mme builds archives on Linux and macOS")
