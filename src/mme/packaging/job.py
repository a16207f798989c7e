"""Packages one model into OUT: recognised as unchanged, or retrieved, packed, verified and recorded.

What is known of a model's last archive is in OUT/NAME.json (see ``mme.packaging.records``). Its ``key`` covers
everything that the archive depends on, so that an unchanged model costs neither weights read nor libraries imported.
"""

from __future__ import annotations

import contextlib
import filecmp
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mme.archive import handler, plan, read, write
from mme.archive.contents import Archive
from mme.archive.gzipstream import Buffer
from mme.catalog.spec import ModelSpec
from mme.errors import ArchiveError
from mme.folder import FolderFile
from mme.packaging import records, unchanged, vendor
from mme.packaging.defaults import completed
from mme.packaging.unchanged import Previous, Sources
from mme.packaging.verify import Verified, Verifier
from mme.packaging.workspace import workspace
from mme.snapshot import retrieve

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
    """What became of a model: ``fresh`` is False when the archive of an earlier run is still right."""

    archive: Archive
    fresh: bool
    verified: Verified | None
    seconds: float


@dataclass(frozen=True)
class Streamed:
    """An archive that is made only while it is sent; ``verified`` is what the handler answered before."""

    planned: plan.Plan
    compression: str
    verified: Verified | None

    def send(self, write_bytes: Callable[[Buffer], object]) -> None:
        """Hand all bytes of the archive to ``write_bytes``, in order. Raises ArchiveError when a file has changed."""
        write.stream(self.planned, write_bytes, compression=self.compression)


@dataclass(frozen=True)
class Checked:
    """A rebuilt archive beside the one in OUT: the content is the same; ``same_bytes`` when the file is, too."""

    archive: Archive
    same_bytes: bool


@dataclass(frozen=True)
class _Parts:
    """What an archive is made of. ``runs_here``: whether this machine can import all of it."""

    snapshot: retrieve.Snapshot
    vendored: Path | None
    facts: Mapping[str, Any]
    runs_here: bool


class PackagingJob:
    """One model to be packaged into ``out``. The handler and the source are examined once.

    ``compression`` is used where the catalogue names none. Every method raises MmeError.
    """

    def __init__(self, spec: ModelSpec, out: Path, *, compression: str | None = None) -> None:
        self.spec = completed(spec)
        self.out = out
        self.compression = spec.compression or compression or "auto"

    @functools.cached_property
    def code(self) -> Sequence[FolderFile]:
        """The files of the handler, checked."""
        return handler.check(self.spec.handler) if self.spec.handler else ()

    @functools.cached_property
    def sources(self) -> Sources:
        """What the model's source is now."""
        return unchanged.look(self.spec, self.out)

    @functools.cached_property
    def key(self) -> str:
        """One digest of everything that the archive depends on."""
        return unchanged.archive_key(self.spec, self.compression, self.code, self.sources)

    def unchanged(self) -> Archive | None:
        """The archive that ``package`` would keep, or None when it would build. Changes nothing."""
        previous = self._previous()
        return previous.archive if previous else None

    def known_digest(self, *, verified: bool = True) -> str | None:
        """The digest of what the model gives, if an earlier run found it out and nothing has changed since; else None.

        With ``verified``, only when the handler answered then. Reads no weights, and needs no archive in ``out``.
        """
        record = records.recorded(self.out, self.spec.name) or {}
        if record.get("key") != self.key or (verified and record.get("verified") is not True):
            return None
        return str(record["digest"])

    def package(self, verifier: Verifier | None = None, *, force: bool = False, stage: Stage = silent) -> Packaged:
        """Build the archive in ``out``, unless the one that is there is still right, which ``force`` does not ask.

        With a ``verifier``, the archive is recorded as built only when the handler answered on it.
        """
        start = time.monotonic()
        previous = None if force else self._previous()
        if previous is not None:
            seen = self._verify_previous(previous, verifier, stage)
            return Packaged(previous.archive, False, seen, time.monotonic() - start)
        if verifier is not None:
            verifier.start(self.spec.trust_remote_code)  # the container starts meanwhile
        with workspace(self.out) as work:
            parts = self._gather(work, stage)
            made = self._pack(parts, stage)
        seen = self._verify(verifier, parts, stage, lambda verifier: verifier.verify(made))
        self._record(made, seen is not None)
        return Packaged(made, True, seen, time.monotonic() - start)

    @contextlib.contextmanager
    def prepared(self, verifier: Verifier | None = None, *, stage: Stage = silent) -> Iterator[Streamed]:
        """The archive as a stream: retrieved, hashed and verified, but packed only while it is sent.

        When the block ends without an error, the model is recorded in ``out`` as done; see ``known_digest``.
        """
        _ = self.key  # the source's state before it is read
        if verifier is not None:
            verifier.start(self.spec.trust_remote_code)
        with workspace(self.out) as work:
            parts = self._gather(work, stage)
            planned = plan.plan(
                self.spec,
                parts.snapshot.path,
                vendored=parts.vendored,
                known=parts.snapshot.digests,
                facts=parts.facts,
            )
            seen = self._verify(verifier, parts, stage, lambda verifier: verifier.verify_plan(planned))
            yield Streamed(planned, self.compression, seen)
            if not (self.out / planned.target).exists():  # else the record of the archive on disk is still right
                made = Archive(None, planned.name, planned.digest, 0, planned.files, planned.manifest)
                self._record(made, seen is not None)

    def check(self, *, stage: Stage = silent) -> Checked:
        """Build the model again, apart, and compare with the archive in ``out``. Raises ArchiveError if they differ."""
        before = records.built(self.out, self.spec.name)
        if before is None or before.path is None:
            raise ArchiveError(
                f"There is no archive of {self.spec.name} in {self.out} to compare with.", "Package it first."
            )
        with stage("reading", 0):
            read.check(before.path)
        with workspace(self.out) as work:
            after = PackagingJob(self.spec, work / "again", compression=self.compression).package(stage=stage).archive
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

    # --- the steps -----------------------------------------------------------------------------------------------

    def _previous(self) -> Previous | None:
        """The archive of an earlier run, if neither it nor anything that it depends on has changed."""
        return unchanged.previous_archive(self.out, self.spec, self.key)

    def _verify_previous(self, previous: Previous, verifier: Verifier | None, stage: Stage) -> Verified | None:
        """Run the handler on an earlier run's archive if that was not done yet, and record the result."""
        if verifier is None or previous.verified:
            if self.sources.fresh:
                self._record(previous.archive, previous.verified)
            return None
        with stage("verifying", 0):
            seen = verifier.verify(previous.archive)
        self._record(previous.archive, True)
        return seen

    def _gather(self, work: Path, stage: Stage) -> _Parts:
        """Retrieve the snapshot, and the libraries that the handler requires, into ``work``."""
        spec = self.spec
        _ = self.sources  # its state before anything is read, so that a change meanwhile is noticed
        libraries: vendor.Vendored | None = None
        if spec.handler is not None and (spec.handler / handler.REQUIREMENTS).is_file():
            with stage("fetching its handler's libraries", 0):
                libraries = vendor.vendor(
                    spec.handler / handler.REQUIREMENTS, work / "libraries", spec.python, spec.platform
                )
        with stage("retrieving", 0):
            folder = libraries.folder if libraries is not None else None
            snapshot = retrieve.snapshot(spec, work / "snapshot", self.sources.located, folder)
        self.sources.still()
        if libraries is None:
            return _Parts(snapshot, None, snapshot.facts, True)
        facts = {**snapshot.facts, "requirements": list(libraries.pins)}
        return _Parts(snapshot, libraries.folder, facts, vendor.runs_here(libraries, spec.python, spec.platform))

    def _pack(self, parts: _Parts, stage: Stage) -> Archive:
        snapshot, vendored = parts.snapshot.path, parts.vendored
        total = sum(item.size for item in plan.collect(self.spec, snapshot, vendored))
        with stage("packing", total) as count:
            return write.build(
                self.spec,
                snapshot,
                self.out,
                compression=self.compression,
                vendored=vendored,
                facts=parts.facts,
                progress=count,
            )

    def _verify(
        self, verifier: Verifier | None, parts: _Parts, stage: Stage, run: Callable[[Verifier], Verified]
    ) -> Verified | None:
        if verifier is None:
            return None
        with stage("verifying", 0):
            return run(verifier) if parts.runs_here else NOT_HERE

    def _record(self, made: Archive, verified: bool) -> None:
        unchanged.remember(self.out, made, self.key, self.sources, verified)
