"""A model's whole way into ``dist``: recognised as unchanged, or retrieved, packed, verified and noted.

What is known of a model's last archive is in OUT/NAME.json (see ``archive.note``). Its ``key`` covers
everything that the archive depends on, so that an unchanged model costs neither weights read nor libraries
imported.
"""

from __future__ import annotations

import contextlib
import filecmp
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mme.archive import handler, plan, read
from mme.archive.contents import Archive
from mme.archive.gzipstream import Buffer
from mme.archive.write import build, stream
from mme.catalog.spec import ModelSpec
from mme.errors import ArchiveError
from mme.packaging import records, vendor
from mme.packaging.unchanged import Sources, archive_key, look, previous_archive, remember
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
    key = archive_key(spec, how, code, sources)
    if not force:
        kept = previous_archive(out, spec, key)
        if kept is not None and (verifier is None or kept.verified):
            if sources.fresh:
                remember(out, kept.archive, key, sources, kept.verified)
            return Packaged(kept.archive, False, None, time.monotonic() - start)
        if kept is not None and verifier is not None:
            with stage("verifying", 0):
                verified = verifier.verify(kept.archive)
            remember(out, kept.archive, key, sources, True)
            return Packaged(kept.archive, False, verified, time.monotonic() - start)
    if verifier is not None:
        verifier.start(spec.trust_remote_code)
    with workspace(out) as work:
        parts = _gather(spec, sources, work, stage)
        total = sum(item.size for item in plan.collect(spec, parts.snapshot.path, parts.vendored))
        with stage("packing", total) as count:
            made = build(
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
    remember(out, made, key, sources, seen is not None)
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
    key = archive_key(spec, how, code, sources)
    if verifier is not None:
        verifier.start(spec.trust_remote_code)
    with workspace(out) as work:
        parts = _gather(spec, sources, work, stage)
        taken = parts.snapshot
        planned = plan.plan(spec, taken.path, vendored=parts.vendored, known=taken.digests, facts=parts.facts)
        seen: Verified | None = None
        if verifier is not None:
            with stage("verifying", 0):
                seen = verifier.verify_plan(planned) if parts.runs_here else NOT_HERE
        yield Streamed(planned, how, seen)
        if not (out / planned.target).exists():  # what was noted about an archive on disk stays right
            made = Archive(None, planned.name, planned.digest, 0, planned.files, planned.manifest)
            remember(out, made, key, sources, seen is not None)


@dataclass(frozen=True)
class Streamed:
    """An archive that is made only while it is sent; ``verified`` is what the handler answered before."""

    planned: plan.Plan
    compression: str
    verified: Verified | None

    def send(self, write: Callable[[Buffer], object]) -> None:
        """Hand all bytes of the archive to ``write``, in order. Raises ArchiveError when a file has changed."""
        stream(self.planned, write, compression=self.compression)


@dataclass(frozen=True)
class Checked:
    """A rebuilt archive beside the one in ``out``: the content is the same; ``same_bytes`` when the file is, too."""

    archive: Archive
    same_bytes: bool


def check(spec: ModelSpec, out: Path, *, compression: str | None = None, stage: Stage = silent) -> Checked:
    """Build ``spec`` again, apart, and compare with the archive in ``out``. Raises ArchiveError when they differ."""
    before = records.built(out, spec.name)
    if before is None or before.path is None:
        raise ArchiveError(f"There is no archive of {spec.name} in {out} to compare with.", "Package it first.")
    with stage("reading", 0):
        read.check(before.path)
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
