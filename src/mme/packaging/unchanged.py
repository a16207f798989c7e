"""Has anything changed since a model was last packaged? Answered with as little reading as is safe."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mme import __version__
from mme.archive import contents
from mme.archive.contents import Archive, File
from mme.catalog.spec import ModelSpec, Source
from mme.errors import ArchiveError, SourceError
from mme.folder import FolderFile
from mme.packaging import records
from mme.snapshot.sources import Located, locate

# Increase this when the same input would now give another archive.
RECIPE = 3
LIBRARIES = ("safetensors", "tokenizers", "torch", "transformers", "peft")

# A file that changed less than this long before it was looked at may change again without its times showing
# it (some file systems count in seconds), so its content is compared instead.
RACY_NS = 2_000_000_000


def look(spec: ModelSpec, out: Path) -> Sources:
    """Identify the model's source as it is now. Reads it only where the record in ``out`` does not show that it is
    unchanged."""
    return Sources(spec, records.recorded(out, spec.name) or {})


class Sources:
    """The identity of a model's source, and of its adapter, found with as little reading as is safe."""

    def __init__(self, spec: ModelSpec, record: Mapping[str, Any]) -> None:
        before = record.get("sources")
        self._before: Mapping[str, Any] = before if isinstance(before, dict) else {}
        self._watched: dict[Source, tuple[Located, str]] = {}
        self.digests: dict[str, Any] = {}
        self.located: Located | None = None
        self.identity = self._identify("source", spec, spec.source, spec.revision)
        self.adapter = self._identify("adapter", spec, spec.adapter, spec.adapter_revision) if spec.adapter else None

    @property
    def fresh(self) -> bool:
        """Whether there is something new to record."""
        return self.digests != self._before

    def still(self) -> None:
        """Raise ArchiveError if a source has changed since it was looked at."""
        for source, (located, stamp) in self._watched.items():
            now = None
            with contextlib.suppress(OSError):
                now, _ = _stamp(located.files)
            if now != stamp:
                raise ArchiveError(f"{source} changes while it is read.", "Run the command again when it is still.")

    def _identify(self, what: str, spec: ModelSpec, source: Source, revision: str | None) -> str:
        if source.kind == "hub":
            return f"{source}@{revision}"  # a full commit is its content
        located = locate(source, None)
        if what == "source":
            self.located = located
        try:
            stamp, newest = _stamp(located.files)
        except OSError as error:
            raise SourceError(f"{error.filename} cannot be read: {error.strerror}.", "Check the file.") from None
        before = self._before.get(what, {})
        if stamp == before.get("stamp") and before.get("settled") is True:
            digest = str(before["digest"])
        else:
            digest = contents.content_digest([File(f.path, f.size, _sha256(f.origin)) for f in located.files])
        self._watched[source] = (located, stamp)
        self.digests[what] = {"stamp": stamp, "digest": digest, "settled": newest < time.time_ns() - RACY_NS}
        return digest


def _stamp(files: Sequence[FolderFile]) -> tuple[str, int]:
    """A digest of what the file system says of the files, and the time of the last change (ns since 1970).

    ctime is set by the system alone, so no edit can hide from it.
    """
    digest, newest = hashlib.sha256(), 0
    for file in files:
        status = file.origin.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        digest.update(json.dumps([file.path, status.st_size, *times, status.st_ino]).encode())
        newest = max(newest, *times)
    return digest.hexdigest(), newest


def archive_key(spec: ModelSpec, compression: str, code: Sequence[FolderFile], sources: Sources) -> str:
    """One digest of everything that an archive depends on."""
    fields = asdict(spec)
    for name in ("source", "revision", "adapter", "adapter_revision", "handler"):
        del fields[name]
    everything = {
        "recipe": RECIPE,
        "mme": __version__,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "spec": fields,
        "source": [str(spec.source), sources.identity],
        "adapter": [str(spec.adapter), sources.adapter],
        "handler": [[file.path, _sha256(file.origin)] for file in code] if spec.handler else None,
        "handler_name": spec.handler.name if spec.handler else None,
        "compression": compression,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Previous:
    archive: Archive
    verified: bool


def previous_archive(out: Path, spec: ModelSpec, key: str) -> Previous | None:
    """The archive of an earlier run, if neither it nor anything that it depends on has changed; else None."""
    record = records.recorded(out, spec.name)
    if record is None or record.get("key") != key:
        return None
    try:
        made = records.built(out, spec.name)
        if made is None or made.path is None or record.get("file") != _file_stamp(made.path):
            return None
    except (ArchiveError, OSError):
        return None  # it was damaged: build it again
    return Previous(made, record.get("verified") is True)


def remember(out: Path, made: Archive, key: str, sources: Sources, verified: bool) -> None:
    try:
        file = _file_stamp(made.path) if made.path else None
        records.note(out, made, key=key, sources=sources.digests, verified=verified, file=file)
    except OSError as error:
        raise ArchiveError(
            f"{records.record_path(out, made.name)} cannot be written: {error.strerror}.", "Check the disk's space."
        ) from None


def _file_stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(1 << 20):
                digest.update(data)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.", "Check the file.") from None
    return digest.hexdigest()


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
