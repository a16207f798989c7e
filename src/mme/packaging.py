"""A model's whole way into ``dist``: recognised as unchanged, or retrieved, packed, verified and noted.

What is known of a model's last archive is in OUT/NAME.json (see ``archive.note``). Its ``key`` covers
everything that the archive depends on, so that an unchanged model costs neither weights read nor libraries
imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mme import __version__, archive, handler, retrieve, vendor
from mme.archive import Archive, File
from mme.catalog import ModelSpec, Source
from mme.errors import ArchiveError, SourceError
from mme.folder import Found
from mme.gzipstream import Buffer
from mme.sources import Located, locate
from mme.verify import Verified, Verifier

# Raise this when the same input would now give another archive.
RECIPE = 1
LIBRARIES = ("safetensors", "tokenizers", "torch", "transformers", "peft")

# A file that changed less than this long before it was looked at may change again without its times showing
# it (some file systems count in seconds), so its content is compared instead.
RACY_NS = 2_000_000_000

NOT_HERE = Verified(
    0.0, None, None, None, "its libraries are for the container's Python and platform, not this one: it was not run"
)

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Called with what is being done and the bytes it takes (0 when unknown); gives what counts them."""


@contextlib.contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], object]]:
    yield lambda _: None


@dataclass(frozen=True)
class Packaged:
    """What became of a model: ``fresh`` is False when the archive of an earlier run still holds."""

    archive: Archive
    fresh: bool
    verified: Verified | None
    seconds: float


def package(
    spec: ModelSpec,
    out: Path,
    *,
    compression: str | None = None,
    verifier: Verifier | None = None,
    force: bool = False,
    stage: Stage = silent,
) -> Packaged:
    """Build the archive of ``spec`` in ``out``, unless the one that is there is still right.

    ``compression`` is used where the catalogue names none. With a ``verifier``, the archive is noted as built
    only when the handler answered on it. ``force`` builds in any case. Raises MmeError.
    """
    start = time.monotonic()
    how = spec.compression or compression or "auto"
    code = handler.check(spec.handler) if spec.handler else ()
    sources = look(spec, out)
    key = _key(spec, how, code, sources)
    if not force:
        kept = _kept(out, spec, key)
        if kept is not None and (verifier is None or kept.verified):
            if sources.fresh:
                _note(out, kept.archive, key, sources, kept.verified)
            return Packaged(kept.archive, False, None, time.monotonic() - start)
        if kept is not None and verifier is not None:
            with stage("verifying", 0):
                verified = verifier.verify(kept.archive)
            _note(out, kept.archive, key, sources, True)
            return Packaged(kept.archive, False, verified, time.monotonic() - start)
    if verifier is not None:
        verifier.start()
    with workspace(out) as work:
        parts = _gather(spec, sources, work, stage)
        total = sum(item.size for item in archive.collect(spec, parts.snapshot.path, parts.vendored))
        with stage("packing", total) as count:
            made = archive.build(
                spec,
                parts.snapshot.path,
                out,
                compression=how,
                vendored=parts.vendored,
                facts=parts.facts,
                progress=count,
            )
    seen: Verified | None = None
    if verifier is not None:
        with stage("verifying", 0):
            seen = verifier.verify(made) if parts.runs_here else NOT_HERE
    _note(out, made, key, sources, seen is not None)
    return Packaged(made, True, seen, time.monotonic() - start)


@dataclass(frozen=True)
class _Parts:
    """What an archive is made of. ``runs_here``: whether this machine can import all of it."""

    snapshot: retrieve.Snapshot
    vendored: Path | None
    facts: Mapping[str, Any]
    runs_here: bool


def _gather(spec: ModelSpec, sources: Sources, work: Path, stage: Stage) -> _Parts:
    libraries: vendor.Vendored | None = None
    if spec.handler is not None and (spec.handler / handler.REQUIREMENTS).is_file():
        with stage("fetching its handler's libraries", 0):
            libraries = vendor.vendor(
                spec.handler / handler.REQUIREMENTS, work / "libraries", spec.python, spec.platform
            )
    with stage("retrieving", 0):
        folder = libraries.folder if libraries is not None else None
        taken = retrieve.snapshot(spec, work / "snapshot", sources.located, folder)
    sources.still()
    if libraries is None:
        return _Parts(taken, None, taken.facts, True)
    facts = {**taken.facts, "requirements": list(libraries.pins)}
    return _Parts(taken, libraries.folder, facts, vendor.runs_here(libraries, spec.python, spec.platform))


def pending(
    spec: ModelSpec, out: Path, *, compression: str | None = None, sources: Sources | None = None
) -> Archive | None:
    """The archive that ``package`` would keep, or None when it would build. Changes nothing. Raises MmeError.

    ``sources`` are those of ``look``, for whoever asks more than one thing about a model.
    """
    code = handler.check(spec.handler) if spec.handler else ()
    sources = sources or look(spec, out)
    kept = _kept(out, spec, _key(spec, spec.compression or compression or "auto", code, sources))
    return kept.archive if kept else None


def known(
    spec: ModelSpec,
    out: Path,
    *,
    compression: str | None = None,
    verified: bool = True,
    sources: Sources | None = None,
) -> str | None:
    """The digest of what ``spec`` gives, when an earlier run found it out and nothing has changed since; else None.

    With ``verified``, only when the handler answered then. Reads no weights, and needs no archive in ``out``.
    """
    record = archive.recorded(out, spec.name) or {}
    code = handler.check(spec.handler) if spec.handler else ()
    key = _key(spec, spec.compression or compression or "auto", code, sources or look(spec, out))
    if record.get("key") != key or (verified and record.get("verified") is not True):
        return None
    return str(record["digest"])


@contextlib.contextmanager
def prepared(
    spec: ModelSpec,
    out: Path,
    *,
    compression: str | None = None,
    verifier: Verifier | None = None,
    stage: Stage = silent,
    sources: Sources | None = None,
) -> Iterator[Streamed]:
    """What ``spec`` gives, retrieved, hashed and verified, but not packed: its bytes are made while they are sent.

    When the block ends without an error, the model is noted in ``out`` as done; see ``known``. Raises MmeError.
    """
    how = spec.compression or compression or "auto"
    code = handler.check(spec.handler) if spec.handler else ()
    sources = sources or look(spec, out)
    key = _key(spec, how, code, sources)
    if verifier is not None:
        verifier.start()
    with workspace(out) as work:
        parts = _gather(spec, sources, work, stage)
        taken = parts.snapshot
        planned = archive.plan(spec, taken.path, vendored=parts.vendored, known=taken.digests, facts=parts.facts)
        seen: Verified | None = None
        if verifier is not None:
            with stage("verifying", 0):
                seen = verifier.verify_plan(planned) if parts.runs_here else NOT_HERE
        yield Streamed(planned, how, seen)
        if not (out / planned.target).exists():  # what was noted about an archive on disk stays right
            made = Archive(None, planned.name, planned.digest, 0, planned.files, planned.manifest)
            _note(out, made, key, sources, seen is not None)


@dataclass(frozen=True)
class Streamed:
    """An archive that is made only while it is sent; ``verified`` is what the handler answered before."""

    planned: archive.Plan
    compression: str
    verified: Verified | None

    def send(self, write: Callable[[Buffer], object]) -> None:
        """Hand all bytes of the archive to ``write``, in order. Raises ArchiveError when a file has changed."""
        archive.stream(self.planned, write, compression=self.compression)


@dataclass(frozen=True)
class Checked:
    """A rebuilt archive beside the one in ``out``: the content is the same; ``same_bytes`` when the file is, too."""

    archive: Archive
    same_bytes: bool


def check(spec: ModelSpec, out: Path, *, compression: str | None = None, stage: Stage = silent) -> Checked:
    """Build ``spec`` again, apart, and compare with the archive in ``out``. Raises ArchiveError when they differ."""
    before = archive.built(out, spec.name)
    if before is None or before.path is None:
        raise ArchiveError(f"There is no archive of {spec.name} in {out} to compare with.", "Package it first.")
    with stage("reading", 0):
        archive.check(before.path)
    with workspace(out) as work:
        after = package(spec, work / "again", compression=compression, stage=stage).archive
        if after.digest != before.digest:
            old, new = ({file.path: file for file in made.files} for made in (before, after))
            differ = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
            raise ArchiveError(
                f"{before.target} is not what its source gives now: that is {after.target}. "
                f"Different: {', '.join(differ[:5])}{' and others' if len(differ) > 5 else ''}.",
                "Run invoke package to build the new version.",
            )
        same = after.path is not None and filecmp.cmp(before.path, after.path, shallow=False)
        return Checked(before, same)


# --- has anything changed? -----------------------------------------------------------------------------------


def look(spec: ModelSpec, out: Path) -> Sources:
    """Find out what the model's source is now; reads it only where ``out`` does not tell that it is unchanged."""
    return Sources(spec, archive.recorded(out, spec.name) or {})


class Sources:
    """The identity of a model's source, and of its adapter, found with as little reading as is safe."""

    def __init__(self, spec: ModelSpec, record: Mapping[str, Any]) -> None:
        before = record.get("sources")
        self._before: Mapping[str, Any] = before if isinstance(before, dict) else {}
        self._watched: dict[Source, tuple[Located, str]] = {}
        self.found: dict[str, Any] = {}
        self.located: Located | None = None
        self.identity = self._identify("source", spec, spec.source, spec.revision)
        self.adapter = self._identify("adapter", spec, spec.adapter, spec.adapter_revision) if spec.adapter else None

    @property
    def fresh(self) -> bool:
        """Whether something was found out that is not noted yet."""
        return self.found != self._before

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
            digest = archive.content_digest([File(f.path, f.size, _sha256(f.origin)) for f in located.files])
        self._watched[source] = (located, stamp)
        self.found[what] = {"stamp": stamp, "digest": digest, "settled": newest < time.time_ns() - RACY_NS}
        return digest


def _stamp(files: Sequence[Found]) -> tuple[str, int]:
    """A digest of what the file system says of the files, and the time of the last change (ns since 1970).

    ctime is set by the system alone, so no edit can hide from it.
    """
    digest, newest = hashlib.sha256(), 0
    for found in files:
        status = found.origin.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        digest.update(json.dumps([found.path, status.st_size, *times, status.st_ino]).encode())
        newest = max(newest, *times)
    return digest.hexdigest(), newest


def _key(spec: ModelSpec, compression: str, code: Sequence[Found], sources: Sources) -> str:
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
        "handler": [[found.path, _sha256(found.origin)] for found in code] if spec.handler else None,
        "handler_name": spec.handler.name if spec.handler else None,
        "compression": compression,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Kept:
    archive: Archive
    verified: bool


def _kept(out: Path, spec: ModelSpec, key: str) -> _Kept | None:
    """The archive of an earlier run, when nothing that it depends on has changed, and it neither."""
    record = archive.recorded(out, spec.name)
    if record is None or record.get("key") != key:
        return None
    try:
        made = archive.built(out, spec.name)
        if made is None or made.path is None or record.get("file") != _file_stamp(made.path):
            return None
    except (ArchiveError, OSError):
        return None  # it was damaged: build it again
    return _Kept(made, record.get("verified") is True)


def _note(out: Path, made: Archive, key: str, sources: Sources, verified: bool) -> None:
    try:
        file = _file_stamp(made.path) if made.path else None
        archive.note(out, made, key=key, sources=sources.found, verified=verified, file=file)
    except OSError as error:
        raise ArchiveError(
            f"{archive.record_path(out, made.name)} cannot be written: {error.strerror}.", "Check the disk's space."
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


# --- a place to work -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """A folder in ``out`` that is gone afterwards. What a killed run left behind goes first."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob(".work-*"):
            _remove_if_abandoned(stale)
        folder = Path(tempfile.mkdtemp(prefix=".work-", dir=out))
    except OSError as error:
        raise ArchiveError(f"{out} cannot be written to: {error.strerror}.", "Name another with --out.") from None
    lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_if_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder / "lock", os.O_WRONLY)
    except OSError:
        return  # another run is just making it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
