"""The Invoke tasks: each parses its flags, calls one of the other modules, and prints.

Another repository gets them with a ``tasks.py`` of two lines:

    import mme.tasks
    from invoke import Collection; ns = Collection.from_module(mme.tasks)

Every path is relative to the folder where ``invoke`` runs. What a script reads goes to standard output, everything
else to standard error. Exit codes are those of ``mme.errors``; 1 is Invoke's own (an unknown flag), 130 an interrupt.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib.util
import inspect as introspection
import json as jsonlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke import Context, Exit, task

from mme import aws, console
from mme import channels as channel_objects
from mme import jobs as mme_jobs
from mme import releases as versions
from mme.archive import contents
from mme.archive.plan import Plan
from mme.catalog import reader as catalogs
from mme.catalog.spec import COMPRESSIONS, Catalog, ModelSpec
from mme.client import endpoint as endpoints
from mme.errors import ArchiveError, EndpointError, MmeError, ReleaseError, UsageError
from mme.jobs import Job
from mme.packaging import build, unchanged
from mme.packaging import records as packaging_records
from mme.packaging import verify as verification
from mme.packaging.records import Latest, latest
from mme.settings import Flags, Settings
from mme.tasks import inspection

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

# ---- what all tasks share -----------------------------------------------------------------------------------------

WHERE_HELP = {
    "bucket": "the bucket with the models; else MME_BUCKET, else the Terraform output",
    "prefix": "the model prefix in the bucket; else MME_PREFIX, else the Terraform output, else models/",
    "endpoint": "the endpoint's name; else MME_ENDPOINT, else the Terraform output",
    "region": "the AWS region; else AWS_REGION, AWS_DEFAULT_REGION, else the Terraform output, else the profile's",
    "terraform": "a folder in which terraform apply has run, to read the names from; else MME_TERRAFORM",
}

CATALOG_HELP = "the catalogue (models.toml)"
JSON_HELP = "print JSON for a script to read"
DRY_RUN_HELP = "say what would be done, and do nothing"


def command(
    help: Mapping[str, str], *, where: Sequence[str] = (), repeatable: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Any]:
    """An Invoke task whose errors end in a message and an exit code, never in a traceback.

    ``where`` names flags of WHERE_HELP that the task takes besides its own; the function gets them as ``settings``.
    ``repeatable`` flags may be given several times and arrive as a list. There are no one-letter flags: Invoke would
    choose them by the order of the parameters.
    """

    def decorate(function: Callable[..., None]) -> Any:
        own = introspection.signature(function)

        @functools.wraps(function)
        def run(context: Context, **given: Any) -> None:
            if where:
                given["settings"] = Settings(Flags(**{flag: given.pop(flag) for flag in where}), os.environ)
            with errors_as_exit_codes():
                function(context, **given)

        kept = [
            # With None, Invoke makes a list; with a tuple, it would take a word apart into its letters.
            parameter.replace(default=None) if parameter.name in repeatable else parameter
            for parameter in own.parameters.values()
            if parameter.name != "settings"
        ]
        added = [introspection.Parameter(flag, introspection.Parameter.KEYWORD_ONLY, default=None) for flag in where]
        run.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        texts = {**help, **{flag: WHERE_HELP[flag] for flag in where}}
        return task(auto_shortflags=False, positional=[], iterable=list(repeatable), help=texts)(run)

    return decorate


@contextlib.contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Print an error's message and hint to standard error, and exit with its code."""
    try:
        yield
        sys.stdout.flush()
    except MmeError as error:
        note(f"Error: {error}")
        raise Exit(code=error.exit_code) from error
    except KeyboardInterrupt:
        note("\nInterrupted. Nothing half-done is visible; run the same command again.")
        raise Exit(code=130) from None
    except BrokenPipeError:
        # The reader of a pipe has gone (as in: invoke releases | head). Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Exit(code=141) from None
    except OSError as error:
        note(f"Error: {error.filename or 'this machine'}: {error.strerror or error}.")
        raise Exit(code=1) from error


def note(text: str) -> None:
    """For people, not for scripts."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """For scripts."""
    print(jsonlib.dumps(value, ensure_ascii=False, indent=2), flush=True)


def whole_number(flag: str, text: str, least: int = 0) -> int:
    """The value of a flag as a whole number (Invoke's own conversion ends in a traceback)."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise UsageError(f"{flag} takes a whole number, {least} or more, not {text!r}.")
    return value


def confirm(question: str, yes: bool) -> bool:
    """Whether the user agrees; with ``--yes`` without asking."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(
            "This needs a yes, and nobody is there to ask.", "Give --yes, or --dry-run to see what it does."
        )
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def who(author: str | None) -> str:
    """The author to record: the flag, MME_AUTHOR, or the user of this machine."""
    named = author or os.environ.get("MME_AUTHOR")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user database
        return "unknown"


def load_catalog(context: Context, path: str) -> Catalog:
    """The catalogue, read once for all tasks of one call of ``invoke``. Raises CatalogError."""
    kept = f"mme_catalog_{path}"
    if kept not in context.config:
        context.config[kept] = catalogs.load(Path(path))
    loaded: Catalog = context.config[kept]
    return loaded


def open_store(settings: Settings) -> tuple[S3Client, versions.Store]:
    """The client and the place of the releases, after one call that shows they can be used."""
    store = versions.Store(settings.bucket, settings.prefix)
    s3 = aws.s3_client(settings.region)
    versions.check_bucket(s3, store)
    return s3, store


# ---- packaging ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stage(name: str, title: str, total: int) -> Iterator[Callable[[int], object]]:
    """Tell on a terminal what is being done to a model, with a rate where the amount is known."""
    if total:
        with console.progress(sys.stderr, f"{name}: {title}", total) as advance:
            yield advance
        return
    terminal = sys.stderr.isatty()
    if terminal:
        print(f"\r\x1b[K{name}: {title} …", end="", file=sys.stderr, flush=True)
    try:
        yield lambda _: None
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@command(
    {
        "model": "a model of the catalogue, repeatable; left out, all of them",
        "catalog": CATALOG_HELP,
        "out": "the folder for the archives",
        "compression": "auto, stored, fast or small, where the catalogue names none; else auto",
        "no-verify": "do not run the handler on the finished archive",
        "force": "build even what has not changed",
        "check": "build again, apart, and compare with what is there",
        "dry-run": DRY_RUN_HELP,
        "json": JSON_HELP,
    },
    repeatable=("model",),
)
def package(
    context: Context,
    model: Sequence[str] = (),
    catalog: str = "models.toml",
    out: str = "dist",
    compression: str | None = None,
    no_verify: bool = False,
    force: bool = False,
    check: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Build each model's archive: retrieved, packed with its handler, and run once as the container would run it.

    What has not changed is recognised and kept. A model that fails is reported and does not stop the others.
    """
    if compression is not None and compression not in COMPRESSIONS:
        raise UsageError(f"There is no compression {compression!r}.", f"Known: {', '.join(COMPRESSIONS)}.")
    specs = load_catalog(context, catalog).select(model)
    context.config[PACKAGED] = not (check or dry_run)
    results: list[dict[str, Any]] = []
    failures: list[MmeError] = []
    with verification.maybe(not (no_verify or check or dry_run)) as verifier:
        for spec in specs:
            told = functools.partial(stage, spec.name)
            try:
                if dry_run:
                    kept = unchanged.pending(spec, Path(out), compression=compression)
                    done = _packaged(spec.name, "unchanged" if kept and not force else "would build", kept)
                elif check:
                    again = build.check(spec, Path(out), compression=compression, stage=told)
                    status = "same bytes" if again.same_bytes else "same content"
                    done = _packaged(spec.name, status, again.archive)
                else:
                    made = build.package(
                        spec, Path(out), compression=compression, verifier=verifier, force=force, stage=told
                    )
                    done = _packaged(spec.name, "built" if made.fresh else "unchanged", made.archive)
                    done["seconds"] = round(made.seconds, 2)
                    done["verified"] = asdict(made.verified) if made.verified else None
                    if made.verified and made.verified.doubt:
                        note(f"{spec.name}: {made.verified.doubt}.")
                    done["accuracy"] = made.archive.manifest.get("accuracy")
                    measured = inspection.accuracy_text(done["accuracy"])
                    if made.fresh and measured:
                        note(f"{spec.name} in {measured}.")
            except MmeError as error:
                failures.append(error)
                done = {**_packaged(spec.name, "failed", None), "error": error.message, "hint": error.hint}
                if len(specs) > 1:
                    note(f"{spec.name}: {error}")
            results.append(done)
    if json:
        print_json({"out": out, "models": results})
    elif len(results) > len(failures):
        rows = [
            (
                item["name"],
                item["target"] or "-",
                console.size(item["size"]) if item["size"] else "-",
                item["status"],
                f"{item['seconds']:.1f} s" if item.get("seconds") is not None else "-",
            )
            for item in results
        ]
        print(console.table(("model", "target", "size", "what was done", "time"), rows))
    if failures:
        if len(specs) == 1:
            raise failures[0]
        raise type(failures[0])(f"{len(failures)} of {len(specs)} models failed; see above.")


def _packaged(name: str, status: str, made: contents.Archive | None) -> dict[str, Any]:
    return {
        "name": name,
        "status": status,
        "target": made.target if made else None,
        "digest": made.digest if made else None,
        "size": made.size if made else None,
        "path": str(made.path) if made and made.path else None,
    }


@command(
    {
        "archive": "an archive: a file, s3://bucket/key, or a released target model (with --bucket and the like)",
        "files": "list the files too",
        "json": JSON_HELP,
    },
    where=("bucket", "prefix", "region", "terraform"),
)
def inspect(
    context: Context, settings: Settings, archive: str | None = None, files: bool = False, json: bool = False
) -> None:
    """Tell what an archive is: its model, source, revision, handler, licence, files. Only its end is read."""
    if not archive:
        raise UsageError("Which archive?", "Give --archive FILE, or --archive s3://bucket/models/bert-….tar.gz.")
    manifest = inspection.manifest(archive, settings)
    if json:
        print_json(manifest)
        return
    print(inspection.text(manifest, files))


# ---- publishing ---------------------------------------------------------------------------------------------------


@command(
    {
        "model": "a model of the catalogue, repeatable; left out, all whose archives are there",
        "catalog": CATALOG_HELP,
        "out": "the folder that holds the archives",
        "stream": "package and upload in one go: each archive is made while it is sent, and never written to disk",
        "compression": "with --stream: as for package",
        "no-verify": "with --stream: do not run the handler first",
        "notes": "what is new, kept with the version",
        "author": "who publishes, kept with the version; else MME_AUTHOR, else this machine's user",
        "dry-run": DRY_RUN_HELP,
        "json": JSON_HELP,
    },
    where=("bucket", "prefix", "region", "terraform"),
    repeatable=("model",),
)
def upload(
    context: Context,
    settings: Settings,
    model: Sequence[str] = (),
    catalog: str = "models.toml",
    out: str = "dist",
    stream: bool = False,
    compression: str | None = None,
    no_verify: bool = False,
    notes: str = "",
    author: str | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Publish the archives that `invoke package` built, each as an immutable version.

    A version is written once and never overwritten; the same content again uploads nothing and says so. An upload that
    was stopped goes on where it was when the same command runs again.
    """
    if (compression or no_verify) and not stream:
        raise UsageError("--compression and --no-verify go with --stream.", "Otherwise give them to invoke package.")
    if compression is not None and compression not in COMPRESSIONS:
        raise UsageError(f"There is no compression {compression!r}.", f"Known: {', '.join(COMPRESSIONS)}.")
    folder = Path(out)
    specs = load_catalog(context, catalog).select(model)
    found = {} if stream else {spec.name: latest(folder, spec.name) for spec in specs}
    missing = [name for name, built in found.items() if built is None]
    if missing and (model or len(missing) == len(found)):
        raise ArchiveError(
            f"There is no archive of {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''} in {out}.",
            "Build it first: invoke package" + "".join(f" --model {name}" for name in missing[:5] if model) + ".",
        )
    versions.check_notes(who(author), notes)
    shop = Shop.open(settings, who(author), notes, dry_run, insist=bool(author or notes))
    if stream:
        if context.config.get(PACKAGED):
            note(NOT_STREAMED)
        with verification.maybe(not (no_verify or dry_run)) as verifier:
            results = shop.stream_all(specs, folder, compression, not no_verify, verifier)
    else:
        results = shop.publish_all([built for built in found.values() if built is not None], folder)
        results += [_not_done(name, "not built") for name in missing]
    failures = [item for item in results if isinstance(item, Failed)]
    for item in failures if len(specs) > 1 else ():
        note(f"{item.name}: {item.error}")
    told = [item.told() if isinstance(item, Failed) else item for item in results]
    if json:
        print_json({"bucket": shop.store.bucket, "prefix": shop.store.prefix, "models": told})
    elif len(results) > len(failures):
        words = {"present": "already there, nothing sent", "resumed": "uploaded (went on with an earlier run)"}
        rows = [
            (item["name"], item["target"] or "-", words.get(item["status"], item["status"]), console.size(item["sent"]))
            for item in told
        ]
        print(console.table(("model", "target", "what was done", "sent"), rows))
    if failures:
        if len(specs) == 1:
            raise failures[0].error
        raise type(failures[0].error)(f"{len(failures)} of {len(specs)} models failed; see above.")


PACKAGED = "mme_packaged"
"""Set in Invoke's configuration, which lasts for one call of ``invoke``, once ``package`` has run."""

NOT_STREAMED = (
    "The archives were written to disk, since package ran first. To stream them, run invoke upload --stream alone, "
    "or put this into invoke.yaml beside tasks.py:\n  tasks: {executor_class: mme.chain.Executor}"
)


@dataclass(frozen=True)
class Failed:
    """A model that was not published, and why."""

    name: str
    error: MmeError

    def told(self) -> dict[str, Any]:
        return {**_not_done(self.name, "failed"), "error": self.error.message, "hint": self.error.hint}


def _not_done(name: str, status: str) -> dict[str, Any]:
    return {"name": name, "target": None, "uri": None, "status": status, "sent": 0}


@dataclass(frozen=True)
class Shop:
    """A run of uploads: what is there already is listed once, for all of them."""

    s3: S3Client
    store: versions.Store
    author: str
    notes: str
    insist: bool
    dry_run: bool
    present: Collection[str]
    unfinished: Mapping[str, str]

    @staticmethod
    def open(settings: Settings, author: str, notes: str, dry_run: bool, insist: bool) -> Shop:
        s3, store = open_store(settings)
        present = {version.target for version in versions.list_versions(s3, store)}
        unfinished = versions.unfinished_uploads(s3, store)
        return Shop(s3, store, author, notes, insist, dry_run, present, unfinished)

    def publish_all(self, built: Sequence[Latest], folder: Path) -> list[dict[str, Any] | Failed]:
        """Publish archives from their files, several small ones at a time; what became of each, in their order."""
        new = [item for item in built if item.target not in self.present]
        stop, lock = threading.Event(), threading.Lock()
        title = f"{new[0].name}: uploading" if len(new) == 1 else f"uploading {len(new)} models"
        with console.progress(sys.stderr, title, sum(item.size for item in new)) as count:

            def advance(size: int) -> None:
                mme_jobs.check(stop)
                with lock:
                    count(size)

            def publish(item: Latest) -> dict[str, Any]:
                made = packaging_records.built(folder, item.name)
                if made is None or made.path is None:
                    raise ArchiveError(f"{folder / item.target} is gone.", "Package the model again.")
                return self.publish(made, made.path, advance)

            jobs = [Job(functools.partial(publish, item), versions.room_for(item.size)) for item in new]
            outcomes = mme_jobs.run(jobs, versions.AT_ONCE, stop, aws.concerns_all)
        done = {item.name: self._result(item.name, outcome) for item, outcome in zip(new, outcomes, strict=True)}
        return [done.get(item.name) or self._present(item) for item in built]

    def stream_all(
        self,
        specs: Sequence[ModelSpec],
        folder: Path,
        compression: str | None,
        verified: bool,
        verifier: verification.Verifier | None,
    ) -> list[dict[str, Any] | Failed]:
        """Package and publish each model without its archive on disk; what became of each."""
        results: list[dict[str, Any] | Failed] = []
        hopeless = False
        for spec in specs:
            outcome: dict[str, Any] | MmeError | None = None
            if not hopeless:
                try:
                    outcome = self.stream(spec, folder, compression, verified, verifier)
                except MmeError as error:
                    outcome, hopeless = error, aws.concerns_all(error)
            results.append(self._result(spec.name, outcome))
        return results

    def publish(
        self,
        item: contents.Archive | Plan,
        content: Path | versions.Stream,
        advance: Callable[[int], None],
    ) -> dict[str, Any]:
        """Publish one archive, from a file or as it is made; what became of it."""
        if self.dry_run and item.target not in self.present:
            return self._told(item, "would go on" if item.target in self.unfinished else "would upload")
        done = versions.publish(
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
            insist=self.insist,
            progress=advance,
        )
        return asdict(done)

    def stream(
        self,
        spec: ModelSpec,
        folder: Path,
        compression: str | None,
        verified: bool,
        verifier: verification.Verifier | None,
    ) -> dict[str, Any]:
        """Package and publish one model without its archive on disk, unless it is there or nothing has changed."""
        sources = unchanged.look(spec, folder)
        kept = unchanged.pending(spec, folder, compression=compression, sources=sources)
        if kept is not None:
            with console.progress(sys.stderr, f"{spec.name}: uploading", kept.size) as advance:
                return self.publish(kept, folder / kept.target, advance)
        digest = unchanged.known(spec, folder, compression=compression, verified=verified, sources=sources)
        if digest is not None and (target := contents.target(spec.name, digest)) in self.present:
            return {**_not_done(spec.name, "present"), "target": target, "uri": self.store.uri(target)}
        if self.dry_run:
            return _not_done(spec.name, "would package and upload")
        told = functools.partial(stage, spec.name)
        with build.prepared(
            spec, folder, compression=compression, verifier=verifier, stage=told, sources=sources
        ) as made:
            if made.verified and made.verified.doubt:
                note(f"{spec.name}: {made.verified.doubt}.")
            if measured := inspection.accuracy_text(made.planned.manifest.get("accuracy")):
                note(f"{spec.name} in {measured}.")
            size = made.planned.content_size
            with console.progress(sys.stderr, f"{spec.name}: uploading", size) as advance:
                return self.publish(made.planned, versions.Stream(made.send, size), advance)

    @staticmethod
    def _result(name: str, outcome: dict[str, Any] | MmeError | None) -> dict[str, Any] | Failed:
        if isinstance(outcome, MmeError):
            return Failed(name, outcome)
        return _not_done(name, "not tried") if outcome is None else outcome

    def _present(self, item: Latest) -> dict[str, Any]:
        uri = self.store.uri(item.target)
        return asdict(versions.Published(item.name, item.target, uri, item.digest, "present", item.size, 0))

    def _told(self, item: contents.Archive | Plan, status: str) -> dict[str, Any]:
        uri = self.store.uri(item.target)
        return {"name": item.name, "target": item.target, "uri": uri, "status": status, "sent": 0}


@command(
    {
        "model": "show one model's versions with author and notes",
        "limit": "show the newest so many",
        "json": JSON_HELP,
    },
    where=("bucket", "prefix", "region", "terraform"),
)
def releases(
    context: Context, settings: Settings, model: str | None = None, limit: str = "20", json: bool = False
) -> None:
    """List released versions, newest first; of one model with author and notes."""
    most = whole_number("--limit", limit, 1)
    s3, store = open_store(settings)
    found = versions.list_versions(s3, store, model)
    if model and not found:
        versions.find_version(found, model)
    shown = found[:most]
    if not model:
        if json:
            print_json({"bucket": store.bucket, "prefix": store.prefix, "versions": [_version(item) for item in shown]})
            return
        rows = [(item.name, item.target, console.size(item.size), console.when(item.time)) for item in shown]
        print(console.table(("model", "target", "size", "released"), rows))
    else:
        records = versions.read_records(s3, store, shown)
        if json:
            listed = [{**_version(item.version), **_kept(item)} for item in records]
            print_json({"bucket": store.bucket, "prefix": store.prefix, "versions": listed})
            return
        lines = [
            (
                item.version.target,
                console.size(item.version.size),
                console.when(item.version.time),
                item.author or "-",
                " ".join(item.notes.split()),
            )
            for item in records
        ]
        print(console.table(("target", "size", "released", "author", "notes"), lines))
    if len(found) > len(shown):
        note(f"{len(found) - len(shown)} older ones are not shown (--limit).")


@command(
    {"catalog": CATALOG_HELP, "out": "the folder that holds the archives", "json": JSON_HELP},
    where=("bucket", "prefix", "region", "terraform"),
)
def models(
    context: Context, settings: Settings, catalog: str = "models.toml", out: str = "dist", json: bool = False
) -> None:
    """Show the catalogue beside what is released.

    Without a bucket, the catalogue and what is built.
    """
    specs = catalogs.load(Path(catalog)).select()
    released: dict[str, list[versions.Version]] = {}
    meant: dict[str, channel_objects.Split] = {}
    if settings.knows_bucket:
        s3, store = open_store(settings)
        for version in versions.list_versions(s3, store):
            released.setdefault(version.name, []).append(version)
        meant = {channel.name: channel.split for channel in channel_objects.read_all(s3, store)}
    else:
        note("No bucket is known (--bucket, MME_BUCKET or --terraform), so nothing is shown of what is released.")
    described: list[dict[str, Any]] = []
    for spec in specs:
        built = packaging_records.built(Path(out), spec.name)
        described.append(
            {
                "name": spec.name,
                "source": str(spec.source),
                "revision": spec.revision,
                "handler": spec.handler.name if spec.handler else None,
                "built": built.target if built else None,
                "channel": dict(meant.get(spec.name, {})),
                "versions": [_version(item) for item in reversed(released.get(spec.name, []))],  # oldest first
            }
        )
    unlisted = sorted(set(released) - {spec.name for spec in specs})
    if json:
        print_json({"models": described, "not_in_catalogue": unlisted})
        return
    rows = []
    for item in described:
        newest = item["versions"][-1] if item["versions"] else None
        rows.append(
            (
                item["name"],
                item["source"],
                item["handler"] or "-",
                item["built"] or "-",
                newest["target"] if newest else "-",
                newest["time"] if newest else "-",
                str(len(item["versions"])),
                _split_text(item["channel"]) if item["channel"] else "newest",
            )
        )
    head = ("model", "source", "handler", "built", "newest release", "released", "versions", "the name means")
    print(console.table(head, rows))
    if unlisted:
        note(f"Released, but not in {catalog}: {', '.join(unlisted)}.")


@command(
    {
        "model": "the model",
        "version": "its version: the first digits of the digest, four or more",
        "target": "or both in one: the target model",
        "yes": "do not ask",
        "dry-run": DRY_RUN_HELP,
        "json": JSON_HELP,
    },
    where=("bucket", "prefix", "region", "terraform"),
)
def delete(
    context: Context,
    settings: Settings,
    model: str | None = None,
    version: str | None = None,
    target: str | None = None,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Remove one released version, after asking. A version that a channel uses is kept.

    Instances that have it loaded go on answering until they unload it.
    """
    parsed = versions.parse_target(target) if target else None
    if target and not parsed:
        raise UsageError(f"{target!r} is not a target model.", "It looks like bert-0123456789ab.tar.gz.")
    name, wanted = parsed or (model, version)
    if not name or not wanted:
        raise UsageError("Which version?", "Give --target, or --model and --version; invoke releases shows them.")
    s3, store = open_store(settings)
    found = versions.find_version(versions.list_versions(s3, store, name), name, wanted)
    _refuse_in_use(s3, store, found.target, "not deleted")
    what = f"{store.uri(found.target)} ({console.size(found.size)})"
    done = not dry_run and confirm(f"Delete {what}?", yes)
    if done:
        versions.delete(s3, store, found.target)
    if json:
        print_json({"deleted": done, "target": found.target, "uri": store.uri(found.target)})
    elif dry_run:
        print(f"Would delete {what}.")
    else:
        print(f"Deleted {what}." if done else "Nothing was deleted.")
    if done:
        _refuse_in_use(
            s3, store, found.target, "deleted while the channel was changed: upload it again, or change the channel"
        )


def _refuse_in_use(s3: S3Client, store: versions.Store, target: str, consequence: str) -> None:
    model = (versions.parse_target(target) or ("",))[0]
    users = channel_objects.in_use(channel_objects.read_all(s3, store, model)).get(target)
    if users:
        raise ReleaseError(
            f"{target} is in use by channel {', '.join(users)}; {consequence}.",
            f"Point the channel at other versions first (a rollback may need it too): "
            f"invoke history --model {users[0]}.",
        )


# ---- predicting ---------------------------------------------------------------------------------------------------


@command(
    {
        "model": "the model, or one of its channels as in bert@staging",
        "target": "or an exact version, as the target model",
        "text": "the input",
        "file": "a file with the input: .json, .npy, or text; - is standard input",
        "parameters": "a JSON object that goes with the text, as in '{\"max_new_tokens\": 20}'",
        "accept": "the type of answer to ask for: application/json or application/x-npy",
        "content-type": "the type of the input, where it is not clear from the file's name",
        "key": "the same key always gets the same version of a channel (a user's or session's id)",
        "save": "write the answer as it came to this file",
    },
    where=("bucket", "prefix", "endpoint", "region", "terraform"),
)
def predict(
    context: Context,
    settings: Settings,
    model: str | None = None,
    target: str | None = None,
    text: str | None = None,
    file: str | None = None,
    parameters: str | None = None,
    accept: str = endpoints.JSON,
    content_type: str | None = None,
    key: str | None = None,
    save: str | None = None,
) -> None:
    """Ask a model on the endpoint and print the answer as JSON.

    --model asks the version that its channel means (by weight, when there are several), or the newest one when it has
    no channel. The input is --text, --file, or standard input: text is sent as {"inputs": TEXT}, JSON as
    it is.
    """
    if bool(model) == bool(target):
        raise UsageError("Give either --model or --target.", "As in: invoke predict --model bert --text hello.")
    body, kind = _input(text, file, parameters, content_type)
    name = settings.endpoint
    if model:
        store = versions.Store(settings.bucket, settings.prefix)
        split, _ = channel_objects.current_split(aws.s3_client(settings.region), store, model)
        target = channel_objects.pick(split, key)
    answer = endpoints.predict(
        aws.runtime_client(settings.region),
        name,
        str(target),
        body,
        content_type=kind,
        accept=accept,
        waiting=lambda: note(f"{target} is still loading; asking again ...") if sys.stderr.isatty() else None,
    )
    if save:
        try:
            Path(save).write_bytes(answer.body)
        except OSError as error:
            raise UsageError(f"Cannot write {save}: {error.strerror}.") from error
    else:
        print(jsonlib.dumps(endpoints.decode(answer), ensure_ascii=False))
    if sys.stderr.isatty():
        note(f"{answer.target} answered {console.size(len(answer.body))} in {answer.seconds * 1000:.0f} ms.")


def _input(text: str | None, file: str | None, parameters: str | None, content_type: str | None) -> tuple[bytes, str]:
    """The body to send and its type."""
    if text is not None and file:
        raise UsageError("Give either --text or --file.")
    if text is None:
        data, kind = _read_input(file)
        if content_type or kind:
            if parameters:
                raise UsageError("--parameters goes with text alone.", "Put the parameters into the JSON.")
            return data, content_type or kind
        try:
            text = data.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError("The input is not text in UTF-8.", "Say what it is with --content-type.") from error
    if content_type and content_type != endpoints.JSON:
        return text.encode(), content_type
    return jsonlib.dumps({"inputs": text, **_parameters(parameters)}).encode(), endpoints.JSON


def _read_input(file: str | None) -> tuple[bytes, str]:
    """What is in the file or on standard input, and its type; no type for text."""
    if not file or file == "-":
        if sys.stdin is None or (sys.stdin.isatty() and not file):
            raise UsageError("There is no input.", "Give --text or --file, or pipe it in.")
        data = sys.stdin.buffer.read()
        if not data:
            raise UsageError("Standard input is empty.", "Give --text or --file, or pipe the input in.")
        suffix = ""
    else:
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"Cannot read {file}: {error.strerror}.") from error
        suffix = Path(file).suffix.lower()
    if suffix in (".json", ".npy"):
        return data, endpoints.JSON if suffix == ".json" else endpoints.NPY
    if suffix != ".txt" and data.lstrip()[:1] in (b"{", b"["):
        with contextlib.suppress(ValueError):  # "[CLS] is a word" is text
            jsonlib.loads(data)
            return data, endpoints.JSON
    return data, ""


def _parameters(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        parsed = jsonlib.loads(text)
    except ValueError as error:
        raise UsageError(f"--parameters is not JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise UsageError("--parameters is not a JSON object.", "As in: --parameters '{\"max_new_tokens\": 20}'.")
    return {"parameters": parsed}


# ---- channels -----------------------------------------------------------------------------------------------------

CHANGE_HELP = {
    "model": "the model, or one of its channels as in bert@staging",
    "expect": "change nothing unless the channel is at this revision",
    "notes": "why, kept in the history",
    "author": "who, kept in the history; else MME_AUTHOR, else this machine's user",
    "dry-run": DRY_RUN_HELP,
    "json": JSON_HELP,
}


@command({"json": JSON_HELP}, where=("bucket", "prefix", "region", "terraform"))
def channels(context: Context, settings: Settings, json: bool = False) -> None:
    """List the channels: which versions each name means, and with what weights.

    A model without a channel means its newest version.
    """
    s3, store = open_store(settings)
    found = channel_objects.read_all(s3, store)
    if json:
        print_json({"channels": [_channel(item) for item in found]})
        return
    rows = [
        (
            item.name,
            str(item.revision),
            _split_text(item.split),
            console.when(item.history[0].time),
            item.history[0].author,
        )
        for item in found
    ]
    print(console.table(("channel", "revision", "versions", "since", "author"), rows))


@command(
    {
        **CHANGE_HELP,
        "version": "the version, by the first digits of its digest or as a target; left out, the newest",
        "from": "take what another channel means now, as in bert@staging",
    },
    where=("bucket", "prefix", "region", "terraform"),
)
def promote(
    context: Context,
    settings: Settings,
    model: str | None = None,
    version: str | None = None,
    from_: str | None = None,
    expect: str | None = None,
    notes: str = "",
    author: str | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Make one version what a name means, at once and for everybody who asks by that name.

    Two pipelines cannot lose each other's change: the later one is told (exit code 11) and changes nothing.
    """
    if version and from_:
        raise UsageError("Give either --version or --from.")
    name, base = _channel_name(model)
    s3, store = open_store(settings)
    channel = channel_objects.read(s3, store, name)
    if from_:
        if channel_objects.model_of(from_) != base:
            raise UsageError(f"{from_} is no channel of {base}.")
        split, _ = channel_objects.current_split(s3, store, from_)
        action = f"promote from {from_}"
    else:
        found = versions.find_version(versions.list_versions(s3, store, base), base, version)
        split, action = {found.target: 100.0}, "promote"
    _change(s3, store, channel, split, action, expect, notes, author, dry_run, json)


@command(
    {**CHANGE_HELP, "weight": "VERSION=WEIGHT, repeatable, as in 0123abcd=90; VERSION can be the word newest"},
    where=("bucket", "prefix", "region", "terraform"),
    repeatable=("weight",),
)
def split(
    context: Context,
    settings: Settings,
    model: str | None = None,
    weight: Sequence[str] = (),
    expect: str | None = None,
    notes: str = "",
    author: str | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Let a name mean several versions, each with its share of the requests (A/B/n)."""
    name, base = _channel_name(model)
    if not weight:
        raise UsageError(
            "Give --weight VERSION=WEIGHT, once for each version.", "As in --weight 0123=90 --weight 4567=10."
        )
    s3, store = open_store(settings)
    channel = channel_objects.read(s3, store, name)
    released = versions.list_versions(s3, store, base)
    shares: dict[str, float] = {}
    for item in weight:
        wanted, equals, number = item.rpartition("=")
        try:
            share = float(number.rstrip("%"))
        except ValueError:
            equals = ""
        if not equals or not wanted:
            raise UsageError(f"{item!r} is not VERSION=WEIGHT.", "As in --weight 0123=90.")
        found = versions.find_version(released, base, None if wanted == "newest" else wanted)
        if found.target in shares:
            raise UsageError(f"{found.target} is given twice.")
        shares[found.target] = share
    _change(s3, store, channel, shares, "split", expect, notes, author, dry_run, json)


@command(
    {**CHANGE_HELP, "to": "the revision to go back to; left out, the one before the present one"},
    where=("bucket", "prefix", "region", "terraform"),
)
def rollback(
    context: Context,
    settings: Settings,
    model: str | None = None,
    to: str | None = None,
    expect: str | None = None,
    notes: str = "",
    author: str | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Make a channel mean again what it meant before. This too is a revision of its own, so it can be undone."""
    name, _ = _channel_name(model)
    s3, store = open_store(settings)
    channel = channel_objects.read(s3, store, name)
    past = channel_objects.rolled_back(channel, whole_number("--to", to, 1) if to is not None else None)
    _change(s3, store, channel, past.split, f"rollback to {past.number}", expect, notes, author, dry_run, json)


@command(
    {"model": CHANGE_HELP["model"], "limit": "show the newest so many", "json": JSON_HELP},
    where=("bucket", "prefix", "region", "terraform"),
)
def history(
    context: Context, settings: Settings, model: str | None = None, limit: str = "20", json: bool = False
) -> None:
    """Show what a channel has meant, newest first: when, by whom, and why."""
    most = whole_number("--limit", limit, 1)
    name, _ = _channel_name(model)
    s3, store = open_store(settings)
    channel = channel_objects.read(s3, store, name)
    shown = channel.history[:most]
    if json:
        print_json({"channel": name, "history": [channel_objects.revision_as_json(item) for item in shown]})
        return
    if not shown:
        note(f"{name} has no channel yet: the name means its newest version.")
        return
    rows = [
        (
            str(item.number),
            console.when(item.time),
            item.author,
            item.action,
            _split_text(item.split),
            " ".join(item.notes.split()),
        )
        for item in shown
    ]
    print(console.table(("revision", "time", "author", "action", "versions", "notes"), rows))


def _channel_name(model: str | None) -> tuple[str, str]:
    if not model:
        raise UsageError("Which model?", "Give --model, as in --model bert or --model bert@staging.")
    return model, channel_objects.model_of(model)


def _change(
    s3: S3Client,
    store: versions.Store,
    channel: channel_objects.Channel,
    shares: channel_objects.Split,
    action: str,
    expect: str | None,
    notes: str,
    author: str | None,
    dry_run: bool,
    json: bool,
) -> None:
    if expect is not None:
        channel_objects.expect(channel, whole_number("--expect", expect))
    if dry_run:
        note(f"Would set {channel.name} to {_split_text(shares)} (now {_split_text(channel.split) or 'no channel'}).")
        return
    changed = channel_objects.change(s3, store, channel, shares, action=action, author=who(author), notes=notes)
    if json:
        print_json(_channel(changed))
    else:
        verb = "already means" if changed is channel else "now means"
        print(f"{changed.name} {verb} {_split_text(changed.split)} (revision {changed.revision}).")


def _split_text(split: channel_objects.Split) -> str:
    if len(split) == 1:
        return next(iter(split))
    total = sum(split.values())
    return ", ".join(f"{target} {100 * weight / total:g} %" for target, weight in split.items())


def _channel(channel: channel_objects.Channel) -> dict[str, Any]:
    return {
        "name": channel.name,
        "model": channel.model,
        **channel_objects.revision_as_json(channel.history[0]),
    }


def _version(version: versions.Version) -> dict[str, Any]:
    return {
        "name": version.name,
        "target": version.target,
        "digest": version.digest,
        "size": version.size,
        "time": version.time.isoformat().replace("+00:00", "Z"),
    }


def _kept(record: versions.Record) -> dict[str, Any]:
    return {"digest": record.digest, "author": record.author, "notes": record.notes, "crc32": record.crc32}


# ---- cleaning up --------------------------------------------------------------------------------------------------


@command(
    {
        "keep": "how many of each model's newest versions stay",
        "model": "a model, repeatable; left out, all that are released",
        "ignore-endpoints": "do not ask which archives live endpoints name (needs no SageMaker permission)",
        "uploads-older-than": "days after which an unfinished upload is given up",
        "yes": "do not ask",
        "dry-run": DRY_RUN_HELP,
        "json": JSON_HELP,
    },
    where=("bucket", "prefix", "region", "terraform"),
    repeatable=("model",),
)
def prune(
    context: Context,
    settings: Settings,
    keep: str = "5",
    model: Sequence[str] = (),
    ignore_endpoints: bool = False,
    uploads_older_than: str = "7",
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Remove old versions: all but the newest of each model and those still in use. Shows them first, and asks.

    In use is what a channel means now or would mean after a rollback, and what a live endpoint names itself. A client
    that calls an exact target is not seen: give it a channel. Unfinished uploads that nobody goes on with are given up.
    """
    newest = whole_number("--keep", keep, 1)
    age = timedelta(days=whole_number("--uploads-older-than", uploads_older_than, 1))
    s3, store = open_store(settings)
    released = versions.list_versions(s3, store)
    for name in model:
        versions.find_version(released, name)
    users = channel_objects.in_use(channel_objects.read_all(s3, store))
    if not ignore_endpoints:
        try:
            live = endpoints.archives_in_use(aws.sagemaker_client(settings.region))
        except EndpointError as error:
            raise EndpointError(
                error.message, f"{error.hint or ''} Or go without: --ignore-endpoints.".strip()
            ) from error
        for uri, names in live.items():
            if uri.startswith(store.uri()):
                users.setdefault(uri[len(store.uri()) :], []).extend(names)
    plan = versions.plan_prune(released, newest, users, set(model) or None)
    stale = versions.abort_stale_uploads(s3, store, older_than=age, dry_run=True)
    if not json or not yes:
        rows = [(item.name, item.target, console.size(item.size), console.when(item.time)) for item in plan]
        if rows:
            print(console.table(("model", "target", "size", "released"), rows), file=sys.stderr if json else sys.stdout)
        for target in stale:
            note(f"Unfinished upload: {target}")
    total = sum(item.size for item in plan)
    summary = f"{len(plan)} of {len(released)} versions ({console.size(total)}) and {len(stale)} unfinished uploads"
    done = False
    if not plan and not stale:
        note("There is nothing to remove.")
    elif dry_run:
        note(f"Would remove {summary}.")
    elif confirm(f"Remove {summary}?", yes):
        # Answering takes a while: what came into use meanwhile stays.
        users = channel_objects.in_use(channel_objects.read_all(s3, store))
        plan = [item for item in plan if item.target not in users]
        versions.delete_many(s3, store, [item.target for item in plan])
        versions.abort_stale_uploads(s3, store, older_than=age)
        done = True
        note(f"Removed {summary}.")
    else:
        note("Nothing was removed.")
    if json:
        print_json({"removed": done, "versions": [_version(item) for item in plan], "unfinished_uploads": stale})
    if done:
        after = channel_objects.in_use(channel_objects.read_all(s3, store))
        lost = sorted(item.target for item in plan if item.target in after)
        if lost:
            raise ReleaseError(
                f"While this ran, a channel was changed to use {', '.join(lost)}, now removed.",
                "Upload it again (the same content comes back under the same name), or change the channel.",
            )


# ---- on this machine ----------------------------------------------------------------------------------------------


@command(
    {
        "port": "the port to listen on; 0 takes a free one",
        "data-dir": "the folder for everything it keeps",
        "container": "what serves the models: ours, stock (the real multi-model-server), or a command",
    }
)
def local(context: Context, port: str = "4566", data_dir: str = ".local/aws", container: str = "ours") -> None:
    """Run AWS on this machine until interrupted: S3, IAM, SageMaker, and endpoints that really answer.

    Prints the lines to paste into any other shell; there the AWS CLI, boto3, Terraform and these tasks use it.
    """
    number = whole_number("--port", port)
    if importlib.util.find_spec("moto") is None:
        raise UsageError("The local AWS is not installed.", "pip install 'mme[local,container]'")
    sys.stdout.flush()
    words = ["--port", str(number), "--data-dir", data_dir, "--container", container]
    # This process becomes the server: signals reach it directly and nothing is left behind.
    os.execv(sys.executable, [sys.executable, "-m", "mme.local", *words])  # noqa: S606 (a list, no shell)


@command(
    {
        "name": "the benchmark to run, repeatable, as in packaging; left out, all",
        "results": "the folder for the figures as JSON, one file for each benchmark",
    },
    repeatable=("name",),
)
def bench(context: Context, name: Sequence[str] = (), results: str = "build/benchmarks") -> None:
    """Run the benchmarks of this repository, side by side with what one would use instead."""
    folder = Path("benchmarks")
    known = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
    if not known:
        raise UsageError(f"There are no benchmarks in {folder.absolute()}.", "Run this in the repository of mme.")
    unknown = [item for item in name if item not in known]
    if unknown:
        raise UsageError(f"There is no benchmark {unknown[0]}.", f"There are: {', '.join(known)}.")
    Path(results).mkdir(parents=True, exist_ok=True)
    for item in name or known:
        note(f"== {item}")
        start = time.monotonic()
        figures = Path(results) / f"{item}.json"
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{item}", "--json", str(figures)])
        if done.returncode != 0:
            raise MmeError(f"Benchmark {item} failed (exit code {done.returncode}).")
        note(f"== {item} took {console.duration(time.monotonic() - start)}; its figures are in {figures}")
