"""Watches a handler's files: each save is packed, published to the local endpoint and asked its sample; if it answers,
the channel is set to it.

The weights are packaged once. A save packs the handler's files beside them again, publishes that as a version like any
other, and asks it the handler's sample; when it has answered, a channel means it. Until then, and after any error, the
channel means the previous version.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mme import channels, handler_files, releases
from mme.archive import handler, write
from mme.archive.contents import MANIFEST, Archive
from mme.archive.plan import Plan, plan
from mme.archive.untar import extract
from mme.catalog.spec import ModelSpec
from mme.client import endpoint as endpoints
from mme.errors import EndpointError, HandlerError, MmeError
from mme.folder import files
from mme.operate import logs as endpoint_logs
from mme.operate.lines import Tracebacks
from mme.packaging import samples

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_sagemaker_runtime import SageMakerRuntimeClient

EVERY_S = 0.1
SETTLE_S = 0.03  # a save is over when nothing has changed for so long
LOG_S = 2.0  # how long a traceback may take to come into the log
LEAVE = 2  # versions that watching has made and leaves in the bucket

_OWN = frozenset(
    {
        *("format", "name", "digest", "source", "revision", "adapter", "adapter_revision", "task", "trust_remote_code"),
        *("handler", "notes", "created_by", "files"),
    }
)
_FRAME = re.compile(r'\s*File "(?P<path>[^"]*?/code/(?P<name>[^"]+))", line (?P<line>\d+)')

Stamps = Mapping[Path, tuple[int, int, int]]
"""Modification time in nanoseconds, size and inode of each file that counts."""


@dataclass(frozen=True)
class Base:
    """What stays the same while a handler is edited: the model's files, the libraries beside the handler, their
    digests."""

    spec: ModelSpec
    snapshot: Path
    vendored: Path | None
    facts: Mapping[str, Any]
    known: Mapping[str, str]


@dataclass(frozen=True)
class Answered:
    """A version that has answered its sample; the channel means it now. Times are seconds: ``saved`` since the file was
    saved, then of the steps."""

    target: str
    new: bool
    saved: float
    packed: float
    uploaded: float
    answered: float
    answer: endpoints.Answer


@dataclass(frozen=True)
class Problem:
    """What is wrong with what was saved; the channel means what it meant before."""

    text: str
    target: str | None = None


@dataclass(frozen=True)
class Place:
    """Where versions go: the endpoint and its log, the bucket, and the channel that follows."""

    runtime: SageMakerRuntimeClient
    logs: Any
    s3: S3Client
    store: releases.Store
    endpoint: str
    channel: str
    author: str


@dataclass
class Made:
    """The versions that watching has published, oldest first; old ones are removed."""

    targets: list[str] = field(default_factory=list)


def prepare(archive: Archive, spec: ModelSpec, folder: Path) -> Base:
    """Lay the files of the model's archive apart in ``folder`` (new). Raises ArchiveError."""
    if archive.path is None or spec.handler is None:
        raise HandlerError(f"{spec.name} has no handler to edit.", "Name one in the catalogue: handler = ….")
    snapshot = folder / "snapshot"
    extract(archive.path, snapshot)
    (snapshot / MANIFEST).unlink(missing_ok=True)
    code, vendored = snapshot / "code", folder / "libraries"
    if code.is_dir():
        code.rename(vendored)
        for item in handler_files.collect(spec.handler):
            (vendored / item.path).unlink(missing_ok=True)
        (vendored / handler.SETTINGS).unlink(missing_ok=True)
    known = {file.path: file.sha256 for file in archive.files if not file.path.startswith("code/")}
    facts = {name: value for name, value in archive.manifest.items() if name not in _OWN}
    return Base(spec, snapshot, vendored if vendored.is_dir() and files(vendored) else None, facts, known)


def stamps(folder: Path) -> Stamps:
    """The handler's files as they are now, those that it imports from ``common`` among them."""
    try:
        paths = [item.origin for item in handler_files.collect(folder)]
    except (MmeError, OSError):  # half saved, or gone for a moment: the files in the folder show a change all the same
        paths = [path for path in folder.rglob("*") if not path.name.startswith(".")]
    seen: dict[Path, tuple[int, int, int]] = {}
    for path in paths:
        try:
            now = path.stat()
        except OSError:
            continue
        seen[path] = (now.st_mtime_ns, now.st_size, now.st_ino)
    return seen


def changes(folder: Path, before: Stamps, sleep: Callable[[float], None] = time.sleep) -> Iterator[Stamps | None]:
    """Yields the state of the handler's files each time that they have changed and settled; None while nothing
    happens."""
    while True:
        now = stamps(folder)
        if now == before:
            yield None
            sleep(EVERY_S)
            continue
        while True:
            sleep(SETTLE_S)
            again = stamps(folder)
            if again == now:
                break
            now = again
        before = now
        yield now


def renew(base: Base, place: Place, made: Made, saved: float | None = None) -> Answered | Problem:
    """Pack, publish and ask what is saved now, and let the channel mean it when it has answered.

    ``saved``: when, in seconds since 1970. Never raises MmeError: what is wrong is the problem that comes back.
    """
    folder = base.spec.handler
    target = None
    began = datetime.now(timezone.utc)
    try:
        if folder is None:
            raise HandlerError(f"{base.spec.name} has no handler.")
        start = time.monotonic()
        planned = plan(base.spec, base.snapshot, vendored=base.vendored, facts=base.facts, known=base.known)
        target = planned.target
        request = _sample(base)
        packed = time.monotonic()
        published = _publish(planned, place)
        if published.status != "present":
            made.targets.append(target)
        uploaded = time.monotonic()
        answer = endpoints.predict(place.runtime, place.endpoint, target, request)
        answered = time.monotonic()
        _mean(place, base.spec.name, target)
        _leave_few(place, base.spec.name, made)
    except EndpointError as error:
        return Problem(_where(place, folder, began) or f"{folder}: {error}", target)
    except MmeError as error:
        return Problem(str(error), target)
    since = time.time() - saved if saved is not None else time.monotonic() - start
    new = published.status != "present"
    return Answered(target, new, max(0.0, since), packed - start, uploaded - packed, answered - uploaded, answer)


def _sample(base: Base) -> bytes:
    """The request for the new version. Raises HandlerError where there is none."""
    folder = base.spec.handler
    if folder is not None and (folder / handler.SAMPLE).is_file():
        return (folder / handler.SAMPLE).read_bytes()
    if base.spec.task:
        return samples.for_task(base.spec.task, base.snapshot)
    raise HandlerError(
        f"{folder} has no {handler.SAMPLE}, so nothing can tell whether what is saved works.",
        "Put a request that it is to answer there, as JSON.",
    )


def _publish(planned: Plan, place: Place) -> releases.Published:
    def send(put: Callable[[Any], object]) -> None:
        write.stream(planned, put, compression="stored")

    return releases.publish(
        place.s3,
        place.store,
        name=planned.name,
        digest=planned.digest,
        content=releases.Stream(send, planned.content_size),
        author=place.author,
        notes="watch",
    )


def _mean(place: Place, model: str, target: str) -> None:
    channel = channels.read(place.s3, place.store, f"{model}@{place.channel}")
    channels.change(place.s3, place.store, channel, {target: 100.0}, action="watch", author=place.author)


def _leave_few(place: Place, model: str, made: Made) -> None:
    """Remove what watching has published and no channel means any more, but for the last versions."""
    old = made.targets[:-LEAVE]
    if not old:
        return
    used = channels.in_use(channels.read_all(place.s3, place.store, model))
    for target in old:
        if target not in used:
            releases.delete(place.s3, place.store, target)
            made.targets.remove(target)


def _where(place: Place, folder: Path | None, since: datetime) -> str | None:
    """File, line and error of the last traceback in the container's log that leads into the handler; None for none."""
    if folder is None:
        return None
    try:
        origins = {item.path: item.origin for item in handler_files.collect(folder)}
    except MmeError:
        origins = {}
    deadline = time.monotonic() + LOG_S
    while True:
        tracebacks, frame, innermost = Tracebacks(), None, None
        try:
            for line in endpoint_logs.read(place.logs, place.endpoint, since - timedelta(seconds=1)):
                if not tracebacks.has(line):
                    continue
                if match := _FRAME.match(line.text):
                    frame, innermost = match, None
                elif frame is not None and line.text[:1] not in ("", " ", "\t"):
                    innermost = (frame, line.text)
                    frame = None
        except EndpointError:
            return None
        if innermost is not None:
            at, text = innermost
            return f"{origins.get(at['name'], Path('code', at['name']))}:{at['line']}: {text}"
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.1)


def changed(before: Stamps, now: Stamps) -> Sequence[Path]:
    """The files that differ, by name."""
    return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))


def newest(now: Stamps, paths: Sequence[Path]) -> float | None:
    """When the last of these files was saved, in seconds since 1970; None where all of them are gone."""
    return max((now[path][0] / 1e9 for path in paths if path in now), default=None)
