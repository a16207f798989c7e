"""A run of uploads: archives that were built, or models that are packaged while they are sent.

Takes and returns plain values and prints nothing: what goes on meanwhile is reported through ``Events``. What the
bucket holds is listed once for the whole run. One model that fails does not stop the others; when the sign-in, the
bucket or the connection is what fails, the rest is not tried.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mme import aws, jobs, releases
from mme.archive import contents
from mme.archive.plan import Plan
from mme.catalog.spec import ModelSpec
from mme.errors import ArchiveError, MmeError
from mme.packaging import records
from mme.packaging.job import PackagingJob, Streamed
from mme.packaging.records import Latest
from mme.packaging.verify import Verifier

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

Count = Callable[[int], object]
"""Called with the number of bytes that are newly done."""


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    ``status`` is "uploaded", "resumed" (an earlier run's upload was completed), "present" (the bucket had it, nothing
    was sent), "not built", "not tried", "failed" (then ``error`` says why), or of a dry run "would upload", "would go
    on" or "would package and upload". ``sent`` is the number of bytes that went over the wire.
    """

    name: str
    status: str
    target: str | None = None
    uri: str | None = None
    digest: str | None = None
    size: int | None = None
    sent: int = 0
    error: MmeError | None = None

    def as_json(self) -> dict[str, Any]:
        """The outcome as plain JSON values; ``error`` and ``hint`` only where there is an error."""
        values: dict[str, Any] = {
            "name": self.name,
            "status": self.status,
            "target": self.target,
            "uri": self.uri,
            "digest": self.digest,
            "size": self.size,
            "sent": self.sent,
        }
        return {**values, "error": self.error.message, "hint": self.error.hint} if self.error else values


class Events:
    """What a run reports while it goes on. Override what is of interest; each method does nothing by itself."""

    def sending(self, names: Sequence[str], size: int) -> AbstractContextManager[Count]:
        """The archives of ``names``, ``size`` bytes together, are being sent; the result counts the bytes."""
        return contextlib.nullcontext(lambda count: None)

    def packaging(self, name: str, step: str, size: int) -> AbstractContextManager[Count]:
        """A model is being packaged: the step, and its bytes (0 when unknown); the result counts the bytes."""
        return contextlib.nullcontext(lambda count: None)

    def finished(self, done: int, of: int) -> None:
        """``done`` of the ``of`` models of this run are through, whatever became of them. May come from any thread."""

    def packaged(self, name: str, made: Streamed) -> None:
        """A model that is streamed has been packaged and verified; its bytes are sent next."""


@dataclass(frozen=True)
class Publisher:
    """Publishes into one model prefix, under one author and with the same notes.

    ``present`` are the targets that are released, ``unfinished`` the uploads that earlier runs left, by target. An
    unfinished upload is completed with the author and notes that it was begun with; with ``own_notes`` it is only
    taken up when these are the same.
    """

    s3: S3Client
    store: releases.Store
    author: str
    notes: str
    own_notes: bool
    dry_run: bool
    present: Collection[str]
    unfinished: Mapping[str, str]
    events: Events

    @staticmethod
    def open(
        s3: S3Client,
        store: releases.Store,
        *,
        author: str,
        notes: str = "",
        own_notes: bool = False,
        dry_run: bool = False,
        events: Events | None = None,
    ) -> Publisher:
        """A publisher that knows what the bucket holds now: two listings. Raises ReleaseError."""
        present = {version.target for version in releases.list_versions(s3, store)}
        unfinished = releases.unfinished_uploads(s3, store)
        return Publisher(s3, store, author, notes, own_notes, dry_run, present, unfinished, events or Events())

    def publish_built(self, built: Sequence[Latest], folder: Path) -> list[Outcome]:
        """Publish archives from their files in ``folder``, several small ones at a time; outcomes in their order."""
        new = [item for item in built if item.target not in self.present]
        stop, lock, done = threading.Event(), threading.Lock(), itertools.count(1)
        with self.events.sending([item.name for item in new], sum(item.size for item in new)) as count:

            def advance(size: int) -> None:
                jobs.check(stop)
                with lock:
                    count(size)

            def publish(item: Latest) -> Outcome:
                try:
                    archive = records.built(folder, item.name)
                    if archive is None or archive.path is None:
                        raise ArchiveError(f"{folder / item.target} is gone.", "Package the model again.")
                    return self._publish(archive, archive.path, advance)
                finally:
                    with lock:
                        self.events.finished(next(done), len(new))

            work = [jobs.Job(functools.partial(publish, item), releases.room_for(item.size)) for item in new]
            results = jobs.run(work, releases.AT_ONCE, stop, aws.concerns_all)
        outcomes = {item.name: _outcome(item.name, result) for item, result in zip(new, results, strict=True)}
        return [outcomes.get(item.name) or self._present(item) for item in built]

    def publish_streamed(
        self,
        specs: Sequence[ModelSpec],
        folder: Path,
        *,
        compression: str | None = None,
        verified: bool = True,
        verifier: Verifier | None = None,
    ) -> list[Outcome]:
        """Package and publish each model without writing its archive to disk; outcomes in the order of ``specs``.

        ``folder`` is where records of packaging lie. With ``verified``, only what a handler answered on counts as
        done by an earlier run; a ``verifier`` runs the handler before anything is sent.
        """
        outcomes: list[Outcome] = []
        give_up = False
        for done, spec in enumerate(specs):
            self.events.finished(done, len(specs))
            if give_up:
                outcomes.append(Outcome(spec.name, "not tried"))
                continue
            try:
                outcomes.append(self._stream(spec, folder, compression, verified, verifier))
            except MmeError as error:
                outcomes.append(_outcome(spec.name, error))
                give_up = aws.concerns_all(error)
        return outcomes

    def _stream(
        self, spec: ModelSpec, folder: Path, compression: str | None, verified: bool, verifier: Verifier | None
    ) -> Outcome:
        job = PackagingJob(spec, folder, compression=compression)
        archive = job.unchanged()
        if archive is not None:  # an earlier run left it on disk
            with self.events.sending([spec.name], archive.size) as count:
                return self._publish(archive, folder / archive.target, count)
        digest = job.known_digest(verified=verified)
        if digest is not None and (target := contents.target(spec.name, digest)) in self.present:
            return Outcome(spec.name, "present", target, self.store.uri(target), digest)
        if self.dry_run:
            return Outcome(spec.name, "would package and upload")
        stage = functools.partial(self.events.packaging, spec.name)
        with job.prepared(verifier, stage=stage) as made:
            self.events.packaged(spec.name, made)
            size = made.planned.content_size
            with self.events.sending([spec.name], size) as count:
                return self._publish(made.planned, releases.Stream(made.send, size), count)

    def _publish(self, item: contents.Archive | Plan, content: Path | releases.Stream, count: Count) -> Outcome:
        """Publish one archive, from a file or as it is made."""
        if self.dry_run and item.target not in self.present:
            status = "would go on" if item.target in self.unfinished else "would upload"
            return Outcome(item.name, status, item.target, self.store.uri(item.target), item.digest)
        done = releases.publish(
            self.s3,
            self.store,
            name=item.name,
            digest=item.digest,
            content=content,
            author=self.author,
            notes=self.notes,
            crc32=item.crc32 if isinstance(item, contents.Archive) else None,
            present=self.present,
            unfinished=self.unfinished,
            own_notes=self.own_notes,
            progress=count,
        )
        return Outcome(done.name, done.status, done.target, done.uri, done.digest, done.size, done.sent)

    def _present(self, item: Latest) -> Outcome:
        if item.target in self.unfinished and not self.dry_run:
            releases.give_up(self.s3, self.store, item.target, self.unfinished[item.target])
        return Outcome(item.name, "present", item.target, self.store.uri(item.target), item.digest, item.size)


def _outcome(name: str, result: Outcome | MmeError | None) -> Outcome:
    if isinstance(result, MmeError):
        return Outcome(name, "failed", error=result)
    return result or Outcome(name, "not tried")
