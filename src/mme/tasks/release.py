"""Publishing versions, and listing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke import Context

from mme import channels as channel_objects
from mme import console
from mme import releases as versions
from mme.catalog.spec import ModelSpec
from mme.errors import ArchiveError, UsageError
from mme.settings import Settings
from mme.tasks.command import (
    CATALOG_HELP,
    DRY_RUN_HELP,
    JSON_HELP,
    check_compression,
    command,
    load_catalog,
    note,
    open_store,
    print_json,
    who,
    whole_number,
)
from mme.tasks.package import PACKAGED, PACKAGED_FROM

if TYPE_CHECKING:
    from mme import publishing
    from mme.publishing import Outcome

# ---- publishing ---------------------------------------------------------------------------------------------------

EXECUTOR = "tasks: {executor_class: mme.chain.Executor}"
"""What invoke.yaml says so that ``package`` and ``upload`` in one command know of each other."""

ALREADY_ON_DISK = (
    "The archives were written to disk, since package ran first. To stream them, run invoke upload --stream alone, "
    f"or put this into invoke.yaml beside tasks.py:\n  {EXECUTOR}"
)


@command(
    {
        "model": "a model of the catalogue, repeatable; left out, all of them",
        "catalog": CATALOG_HELP,
        "out": "the folder that holds the archives",
        "stream": "package and upload in one go: each archive is made while it is sent, and never written to disk",
        "compression": "with --stream: as for package",
        "no-verify": "with --stream: do not run the handler first",
        "notes": "what is new; stored with the version",
        "author": "who publishes; stored with the version; else MME_AUTHOR, else this machine's user",
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
    was stopped goes on where it was when the same command runs again. A model that has no archive is an error (exit
    code 6), after the others have been published; a dry run only lists it.
    """
    from mme import publishing  # slow to import, and few tasks need it
    from mme.packaging import verify
    from mme.packaging.records import latest
    from mme.tasks.shown import Shown

    if (compression or no_verify) and not stream:
        raise UsageError("--compression and --no-verify go with --stream.", "Otherwise give them to invoke package.")
    check_compression(compression)
    catalog, out = _as_packaged(context, catalog, out)
    versions.check_notes(who(author), notes)
    specs = load_catalog(context, catalog).select(model)
    if not (stream or dry_run) and not any(latest(Path(out), spec.name) for spec in specs):
        raise _not_built([spec.name for spec in specs], out, named=bool(model))
    s3, store = open_store(settings)
    publisher = publishing.Publisher.open(
        s3,
        store,
        author=who(author),
        notes=notes,
        own_notes=bool(author or notes),
        dry_run=dry_run,
        events=Shown(),
    )
    if stream:
        if context.config.get(PACKAGED):
            note(ALREADY_ON_DISK)
        with verify.maybe(not (no_verify or dry_run)) as verifier:
            outcomes = publisher.publish_streamed(
                specs, Path(out), compression=compression, verified=not no_verify, verifier=verifier
            )
    else:
        outcomes = _publish_built(publisher, specs, Path(out))
    if json:
        print_json({"bucket": store.bucket, "prefix": store.prefix, "models": [item.as_json() for item in outcomes]})
    _report(outcomes, table=not json)
    missing = [item.name for item in outcomes if item.status == "not built"]
    if missing and not dry_run:
        raise _not_built(missing, out, named=bool(model))


def _as_packaged(context: Context, catalog: str, out: str) -> tuple[str, str]:
    """The catalogue and the folder: what ``package`` had in the same command, where ``upload`` does not say.

    Raises UsageError where only ``upload`` says, and ``package`` has already built something else.
    """
    if PACKAGED_FROM not in context.config:
        return catalog, out
    values = []
    for flag, unset, mine, theirs in zip(
        ("--catalog", "--out"), ("models.toml", "dist"), (catalog, out), context.config[PACKAGED_FROM], strict=True
    ):
        if mine != unset and theirs == unset:
            raise UsageError(
                f"{flag} {mine} is given to upload alone: package, which ran before it, took {theirs}.",
                f"Give it to package: invoke package {flag} {mine} upload. Or put this into invoke.yaml beside "
                f"tasks.py, and it holds for both:\n  {EXECUTOR}",
            )
        values.append(theirs if mine == unset else mine)
    return values[0], values[1]


def _publish_built(publisher: publishing.Publisher, specs: Sequence[ModelSpec], out: Path) -> list[Outcome]:
    """Publish what is built; the outcomes in the order of ``specs``, those of models without an archive among them."""
    from mme.packaging.records import latest
    from mme.publishing import Outcome

    built = [archive for spec in specs if (archive := latest(out, spec.name)) is not None]
    outcomes = {item.name: item for item in publisher.publish_built(built, out)}
    return [outcomes.get(spec.name) or Outcome(spec.name, "not built") for spec in specs]


def _not_built(names: Sequence[str], out: str, named: bool) -> ArchiveError:
    """The error for models that have no archive; ``named``: whether the user named the models."""
    others = f" and {len(names) - 5} others" if len(names) > 5 else ""
    models = "".join(f" --model {name}" for name in names[:5]) if named else ""
    return ArchiveError(
        f"There is no archive of {', '.join(names[:5])}{others} in {out}.",
        f"Build {'it' if len(names) == 1 else 'them'} first: invoke package{models}.",
    )


def _report(outcomes: Sequence[Outcome], table: bool) -> None:
    """Show what became of each model. Raises the first error, or one that counts them."""
    failed = [item.error for item in outcomes if item.error]
    if len(outcomes) > 1:
        for item in outcomes:
            if item.error:
                note(f"{item.name}: {item.error}")
    if table and len(failed) < len(outcomes):
        words = {"present": "already there, nothing sent", "resumed": "uploaded (went on with an earlier run)"}
        rows = [
            (item.name, item.target or "-", words.get(item.status, item.status), console.size(item.sent))
            for item in outcomes
        ]
        print(console.table(("model", "target", "what was done", "sent"), rows))
    if failed:
        if len(outcomes) == 1:
            raise failed[0]
        raise type(failed[0])(f"{len(failed)} of {len(outcomes)} models failed; see above.")


# ---- what there is ------------------------------------------------------------------------------------------------


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
    released = versions.versions_of(s3, store, model) if model else versions.list_versions(s3, store)
    shown = released[:most]
    records_shown = versions.read_records(s3, store, shown) if model else []
    if json:
        listed = [version_json(item) for item in shown]
        for values, record in zip(listed, records_shown, strict=False):
            values.update(_record_json(record))
        older = len(released) - len(shown)
        print_json({"bucket": store.bucket, "prefix": store.prefix, "versions": listed, "not_shown": older})
        return
    if model:
        lines = [
            (
                item.version.target,
                console.size(item.version.size),
                console.when(item.version.time),
                item.author or "-",
                " ".join(item.notes.split()),
            )
            for item in records_shown
        ]
        print(console.table(("target", "size", "released", "author", "notes"), lines))
    else:
        rows = [(item.name, item.target, console.size(item.size), console.when(item.time)) for item in shown]
        print(console.table(("model", "target", "size", "released"), rows))
    if len(released) > len(shown):
        note(f"{len(released) - len(shown)} older ones are not shown (--limit).")


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
    from mme.packaging import records
    from mme.packaging.defaults import completed

    specs = load_catalog(context, catalog).select()
    released: dict[str, list[versions.Version]] = {}
    splits: dict[str, channel_objects.Split] = {}
    if settings.knows_bucket:
        s3, store = open_store(settings)
        for version in versions.list_versions(s3, store):
            released.setdefault(version.name, []).append(version)
        known = channel_objects.listed(s3, store)
        shown = {spec.name: known[spec.name] for spec in specs if spec.name in known}
        splits = {channel.name: channel.split for channel in channel_objects.read_these(s3, store, shown)}
    else:
        note("No bucket is known (--bucket, MME_BUCKET or --terraform), so nothing is shown of what is released.")
    described: list[dict[str, Any]] = []
    for spec in specs:
        built = records.built(Path(out), spec.name)
        described.append(
            {
                "name": spec.name,
                "source": str(spec.source),
                "revision": spec.revision,
                "handler": laid.name if (laid := completed(spec).handler) else None,
                "built": built.target if built else None,
                "channel": dict(splits.get(spec.name, {})),
                "versions": [version_json(item) for item in reversed(released.get(spec.name, []))],  # oldest first
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
                console.when(released[item["name"]][0].time) if newest else "-",
                str(len(item["versions"])),
                console.short_shares(item["channel"]) if item["channel"] else "newest" if newest else "-",
            )
        )
    head = ("model", "source", "handler", "built", "newest release", "released", "versions", "the name means")
    print(console.table(head, rows))
    if unlisted:
        note(f"Released, but not in {catalog}: {', '.join(unlisted)}.")


def version_json(version: versions.Version) -> dict[str, Any]:
    """A version as plain JSON values."""
    return {
        "name": version.name,
        "target": version.target,
        "digest": version.digest,
        "size": version.size,
        "time": version.time.isoformat().replace("+00:00", "Z"),
    }


def _record_json(record: versions.Record) -> dict[str, Any]:
    return {"digest": record.digest, "author": record.author, "notes": record.notes, "crc32": record.crc32}
