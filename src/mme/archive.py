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
import re
import shutil
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Any

from isal import isal_zlib

from mme import __version__, handler
from mme.catalog import COMPRESSIONS, NAME, ModelSpec
from mme.errors import ArchiveError, CatalogError
from mme.folder import files
from mme.gzipstream import CHUNK, FAST, SMALL, STORED, Buffer, GzipStream, Sink, file_sink
from mme.untar import extract as extract
from mme.untar import reading

MANIFEST = "mme-manifest.json"
FORMAT = 1
DIGITS = 12
SUFFIX = ".tar.gz"
FILE_NAME = re.compile(rf"(?P<name>{NAME.pattern})-(?P<digest>[0-9a-f]{{{DIGITS}}}){re.escape(SUFFIX)}")

# How much of an archive's end is enough to find the manifest of one with some 1,500 files.
TAIL = 256 * 1024

# Compressing pays when a container that downloads at 100 MB/s and more starts sooner for it. Inflating costs
# about 3 ms for each MB, downloading 10 ms at most: so what shrinks to less than 0.6 of its size.
PAYS = 0.6
# Smaller files are stored: there is nothing to win, and stored bytes are the same on every kind of processor.
WORTH = 16 << 20
SAMPLE_SIZE = 256 * 1024

Progress = Callable[[int], object]
"""Called with the number of bytes read since the last call."""


@dataclass(frozen=True)
class File:
    """One file of an archive: its path, its size in bytes, the sha256 of its content in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Archive:
    """A finished archive. ``digest`` is of the content (64 hexadecimal digits), ``size`` of the gzip file in bytes.

    ``path`` is None when it was streamed and never written here. ``files`` leaves the manifest out. ``crc32`` is of
    the gzip file as it was written, where that is known: whoever reads the file later can tell whether it still is.
    """

    path: Path | None
    name: str
    digest: str
    size: int
    files: tuple[File, ...]
    manifest: Mapping[str, Any]
    crc32: int | None = field(default=None, compare=False)

    @property
    def target(self) -> str:
        """The target model: the archive's path below the model prefix, and below the folder it is built in."""
        return target(self.name, self.digest)


@dataclass(frozen=True)
class Item:
    """A file to be packed: from a file on disk, or from bytes at hand."""

    path: str
    origin: Path | bytes
    size: int


@dataclass(frozen=True)
class Plan:
    """What an archive will hold, before it is made. ``files`` are the items' digests, in the same order."""

    name: str
    digest: str
    items: tuple[Item, ...]
    files: tuple[File, ...]
    manifest: Mapping[str, Any]

    @property
    def target(self) -> str:
        return target(self.name, self.digest)

    @property
    def content_size(self) -> int:
        """The bytes of all files together; a stored archive is a few parts in ten thousand larger."""
        return sum(item.size for item in self.items)


def target(name: str, digest: str) -> str:
    return f"{name}-{digest[:DIGITS]}{SUFFIX}"


def parse_target(text: str) -> tuple[str, str]:
    """NAME-DIGEST12.tar.gz -> (name, digest12). Raises ArchiveError for anything else."""
    match = FILE_NAME.fullmatch(text)
    if not match:
        raise ArchiveError(
            f"{text!r} is not the name of an archive.", f"It should look like bert-0123456789ab{SUFFIX}."
        )
    return match["name"], match["digest"]


def content_digest(content: Sequence[File]) -> str:
    """The digest that names a version: of every file's path, size and sha256, in order of path."""
    digest = hashlib.sha256(b"mme archive 1\n")
    for file in sorted(content, key=lambda file: file.path.encode()):
        digest.update(f"{file.sha256} {file.size} {file.path}\n".encode())
    return digest.hexdigest()


def collect(spec: ModelSpec, snapshot: Path, vendored: Path | None = None) -> tuple[Item, ...]:
    """What goes into the archive, in order of path: the model at the root, the handler below code/.

    ``vendored`` is a folder of libraries that go into code/ beside the handler. Raises SourceError,
    HandlerError or ArchiveError when something may not be packed.
    """
    items = {found.path: Item(found.path, found.origin, found.size) for found in files(snapshot)}
    items.pop(MANIFEST, None)
    code: list[Item] = []
    if spec.handler is not None:
        if any(path == "code" or path.startswith("code/") for path in items):
            raise ArchiveError(
                f"The snapshot of {spec.name} has a code folder, where the handler goes.", "Remove it from the source."
            )
        settings = json.dumps(spec.settings, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        code = [
            Item(f"code/{found.path}", found.origin, found.size)
            for found in handler.check(spec.handler)
            if found.path != handler.REQUIREMENTS
        ]
        code.append(Item(f"code/{handler.SETTINGS}", settings.encode(), len(settings.encode())))
        if vendored is not None:
            code += [Item(f"code/{found.path}", found.origin, found.size) for found in files(vendored)]
    for item in code:
        if item.path in items:
            raise ArchiveError(
                f"{item.path} comes both with the handler and with a library it requires.", "Rename the handler's file."
            )
        items[item.path] = item
    if "config.json" not in items:
        raise ArchiveError(f"The snapshot of {spec.name} in {snapshot} has no config.json.", "It is not a model.")
    return tuple(sorted(items.values(), key=lambda item: item.path.encode()))


def plan(
    spec: ModelSpec,
    snapshot: Path,
    *,
    vendored: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    known: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Hash everything that goes into an archive, so that its name is known before it is made.

    ``known`` gives the sha256 of files, by path, that were hashed when they were written. Such a digest is
    not believed blindly: making the archive hashes each file again and compares.
    """
    items = collect(spec, snapshot, vendored)
    content = []
    for item in items:
        sha256 = (known or {}).get(item.path)
        if sha256 is None:
            digest = hashlib.sha256()
            size = 0
            for data in _chunks(item):
                digest.update(data)
                size += len(data)
                if progress:
                    progress(len(data))
            _check_size(item, size)
            sha256 = digest.hexdigest()
        content.append(File(item.path, item.size, sha256))
    digest_ = content_digest(content)
    return Plan(spec.name, digest_, items, tuple(content), _manifest(spec, digest_, content, facts))


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


def lay_out(planned: Plan, folder: Path) -> None:
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

    The final name appears only when the file is whole; killed at any point, this leaves at most a hidden
    partial file, which the next build removes. ``facts`` are added to the manifest. Raises ArchiveError when
    the disk is full or cannot be written to, and when a file changes while it is read.
    """
    items = collect(spec, snapshot, vendored)
    folder = (out / spec.name).parent
    found: dict[str, Any] = {}

    def manifest(content: Sequence[File]) -> Mapping[str, Any]:
        found.update(_manifest(spec, content_digest(content), content, facts))
        return found

    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        _check_space(folder, sum(item.size for item in items))
        partial = folder / f".{Path(spec.name).name}-{os.getpid()}-{os.urandom(4).hex()}.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # tells ``clean`` that somebody is at work here
            size, crc32, content = _write(items, file_sink(descriptor), compression, progress, manifest)
            os.fchmod(descriptor, 0o644)
            path = out / target(spec.name, found["digest"])
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _disk_error(error, folder) from None
    return Archive(path, spec.name, found["digest"], size, content, found, crc32)


def clean(folder: Path) -> None:
    """Remove partial archives in ``folder`` that nobody is writing any more."""
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


def open_archive(path: Path) -> Archive:
    """What the archive at ``path`` holds, by its manifest; the files themselves are not read.

    Raises ArchiveError when there is none, when it is not made by mme, or when its name is not that of its content.
    """
    manifest = read_manifest(path)
    try:
        content = tuple(File(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in manifest["files"])
        name, digest = str(manifest["name"]), str(manifest["digest"])
        size = path.stat().st_size
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArchiveError(f"The manifest of {path} is broken: {error!r}.", "Build the archive again.") from None
    if content_digest(content) != digest:
        raise ArchiveError(f"The manifest of {path} contradicts itself.", "Build the archive again.")
    if not NAME.fullmatch(name) or not path.name == Path(target(name, digest)).name:
        raise ArchiveError(f"{path} is the archive {target(name, digest)} under another name.", "Rename it back.")
    return Archive(path, name, digest, size, content, manifest)


def read_manifest(path: Path) -> Mapping[str, Any]:
    """The manifest of the archive at ``path``, from its last few kilobytes. Raises ArchiveError if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            manifest = manifest_from_tail(file.read())
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    if manifest is None:  # made by somebody else, or very long: look through all of it
        for member in reading(path):
            if member.path == MANIFEST:
                manifest = _load_manifest(b"".join(member.read()) if member.size < 64 << 20 else b"")
    if manifest is None:
        raise ArchiveError(f"{path} has no {MANIFEST}: mme did not make it.", "Only its list of files can be shown.")
    return manifest


def manifest_from_tail(tail: bytes) -> Mapping[str, Any] | None:
    """The manifest, given the last ``TAIL`` bytes of an archive (or fewer, when it is smaller); None if not there."""
    name = MANIFEST.encode().ljust(100, b"\0")
    at = tail.rfind(name)
    if at < 5:
        return None
    data, position = b"", at - 5
    while tail[position : position + 1] == b"\0":  # a stored block that is not the last
        size = int.from_bytes(tail[position + 1 : position + 3], "little")
        if size ^ int.from_bytes(tail[position + 3 : position + 5], "little") != 0xFFFF:
            return None
        data += tail[position + 5 : position + 5 + size]
        position += 5 + size
    try:
        header = tarfile.TarInfo.frombuf(data[:512], "utf-8", "strict")
    except tarfile.TarError:
        return None
    return _load_manifest(data[512 : 512 + header.size])


def contents(path: Path) -> tuple[File, ...]:
    """Every file of any archive, read and hashed, manifest included. Raises ArchiveError when broken or hostile."""
    found = []
    for member in reading(path):
        digest = hashlib.sha256()
        for data in member.read():
            digest.update(data)
        if not member.is_folder:
            found.append(File(member.path, member.size, digest.hexdigest()))
    return tuple(found)


def check(path: Path) -> Archive:
    """Read all of the archive and compare every byte with its manifest and its name. Raises ArchiveError."""
    archive = open_archive(path)
    real = tuple(file for file in contents(path) if file.path != MANIFEST)
    if sorted(real, key=lambda file: file.path.encode()) != list(archive.files):
        raise ArchiveError(f"{path} does not hold what its manifest says.", "Build the archive again.")
    return archive


# --- what was built last, for each model: OUT/NAME.json ------------------------------------------------------


def record_path(out: Path, name: str) -> Path:
    """Where ``note`` keeps what is known of a model's last archive. A name has no dot, so it hides no archive."""
    return out / f"{name}.json"


def note(out: Path, archive: Archive, **more: Any) -> None:
    """Remember ``archive`` as the last one built for its model; ``more`` is for ``mme.packaging`` alone."""
    record = {
        "target": archive.target,
        "digest": archive.digest,
        "size": archive.size,
        "crc32": archive.crc32,
        **more,
    }
    path = record_path(out, archive.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{os.getpid()}.new")
    partial.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def recorded(out: Path, name: str) -> Mapping[str, Any] | None:
    """What ``note`` wrote for this model, or None."""
    try:
        record = json.loads(record_path(out, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True)
class Latest:
    """The archive of a model that was built last; ``size`` in bytes is that of the file as it is now."""

    name: str
    target: str
    digest: str
    size: int


def latest(out: Path, name: str) -> Latest | None:
    """What was noted of the archive of ``name`` that was built last in ``out``; None when it is not there.

    Nothing of the archive is read, and nothing compared: ``built`` does that.
    """
    record = recorded(out, name)
    if record is None or not FILE_NAME.fullmatch(str(record.get("target"))):
        return None
    target = str(record["target"])
    try:
        status = os.stat(out / target)  # noqa: PTH116 - pathlib would look twice
    except OSError:
        return None
    return Latest(name, target, str(record.get("digest")), status.st_size) if stat.S_ISREG(status.st_mode) else None


def built(out: Path, name: str) -> Archive | None:
    """The archive of the model ``name`` that was built last in ``out``, or None when there is none.

    Its manifest is read, and its size compared with what was noted, so that a file cut short is not taken.
    Raises ArchiveError when the file is there but broken.
    """
    record = recorded(out, name)
    if record is None or not FILE_NAME.fullmatch(str(record.get("target"))):
        return None
    path = out / str(record["target"])
    if not path.is_file():
        return None
    archive = open_archive(path)
    if archive.name != name or archive.digest != record.get("digest") or archive.size != record.get("size"):
        raise ArchiveError(f"{path} is not the archive that was built.", "Package the model again.")
    crc32 = record.get("crc32")
    return replace(archive, crc32=crc32 if isinstance(crc32, int) else None)


# --- writing -------------------------------------------------------------------------------------------------


def _manifest(
    spec: ModelSpec, digest: str, content: Sequence[File], facts: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    ordered = sorted(content, key=lambda file: file.path.encode())
    code = [replace(file, path=file.path.removeprefix("code/")) for file in ordered if file.path.startswith("code/")]
    return {
        "format": FORMAT,
        "name": spec.name,
        "digest": digest,
        "source": str(spec.source),
        **({"revision": spec.revision} if spec.revision else {}),
        **({"adapter": str(spec.adapter)} if spec.adapter else {}),
        **({"adapter_revision": spec.adapter_revision} if spec.adapter_revision else {}),
        **({"task": spec.task} if spec.task else {}),
        **({"handler": {"name": spec.handler.name, "digest": content_digest(code)}} if spec.handler else {}),
        **({"notes": spec.notes} if spec.notes else {}),
        **(facts or {}),
        "created_by": f"mme {__version__}",
        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in ordered],
    }


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
            _check_size(item, size)
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
    with _opened(item.path, item.origin) as file:
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
    with _opened(item.path, item.origin) as file:
        for part in (1, 2, 3):
            file.seek(item.size * part // 4)
            data = file.read(SAMPLE_SIZE)
            tried += len(data)
            packed += len(isal_zlib.compress(data, 1))
    return FAST if tried and packed < PAYS * tried else STORED


def _opened(path: str, origin: Path) -> FileIO:
    try:
        return FileIO(origin)
    except OSError as error:
        raise ArchiveError(f"{path} ({origin}) cannot be read: {error.strerror}.", "Check the file.") from None


def _header(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _chunks(item: Item) -> Iterator[bytes]:
    if isinstance(item.origin, bytes):
        yield item.origin
        return
    with _opened(item.path, item.origin) as file:
        while data := file.read(CHUNK):
            yield data


def _check_size(item: Item, size: int) -> None:
    if size != item.size:
        raise ArchiveError(
            f"{item.path} changed while it was packed: it had {item.size:,} bytes, and {size:,} were read.",
            "Run the command again when nothing writes to it.",
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 0.5:  # it may compress; what certainly does not fit is said before the work
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


def _load_manifest(data: bytes) -> Mapping[str, Any] | None:
    try:
        manifest = json.loads(data)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None


if sys.platform == "win32":  # pragma: no cover
    raise ImportError("mme builds archives on Linux and macOS")
