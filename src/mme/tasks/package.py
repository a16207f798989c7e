"""Building archives, and looking into them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke import Context

from mme import console
from mme.catalog.spec import ModelSpec
from mme.errors import MmeError, UsageError
from mme.settings import Settings
from mme.tasks.command import (
    CATALOG_HELP,
    DRY_RUN_HELP,
    JSON_HELP,
    check_compression,
    command,
    load_catalog,
    name_of,
    note,
    print_json,
    stage,
)

if TYPE_CHECKING:
    from mme.archive import contents
    from mme.packaging import verify
    from mme.packaging.job import Stage

PACKAGED = "mme_packaged"
"""Set in Invoke's configuration, which lasts for one call of ``invoke``, once ``package`` has built archives."""
PACKAGED_FROM = "mme_packaged_from"
"""Set there once ``package`` has run: its catalogue and its folder for archives."""


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

    What has not changed is recognised and not built again. A model that fails is reported and does not stop the others.
    """
    from mme.packaging import verify  # slow to import, and few tasks need it

    check_compression(compression)
    specs = load_catalog(context, catalog).select(model)
    context.config[PACKAGED] = not (check or dry_run)
    context.config[PACKAGED_FROM] = (catalog, out)
    results: list[dict[str, Any]] = []
    failures: list[MmeError] = []
    with verify.maybe(not (no_verify or check or dry_run)) as verifier:
        for number, spec in enumerate(specs, 1):
            shown = functools.partial(stage, name_of(spec.name, number, len(specs)))
            try:
                if dry_run:
                    done = _foreseen(spec, Path(out), compression, force)
                elif check:
                    done = _compared(spec, Path(out), compression, shown)
                else:
                    done = _built(spec, Path(out), compression, verifier, force, shown)
            except MmeError as error:
                failures.append(error)
                done = {**_result(spec.name, "failed", None), "error": error.message, "hint": error.hint}
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


def _foreseen(spec: ModelSpec, out: Path, compression: str | None, force: bool) -> dict[str, Any]:
    from mme.packaging.job import PackagingJob

    archive = PackagingJob(spec, out, compression=compression).unchanged()
    return _result(spec.name, "unchanged" if archive and not force else "would build", archive)


def _compared(spec: ModelSpec, out: Path, compression: str | None, shown: Stage) -> dict[str, Any]:
    from mme.packaging.job import PackagingJob

    again = PackagingJob(spec, out, compression=compression).check(stage=shown)
    return _result(spec.name, "same bytes" if again.same_bytes else "same content", again.archive)


def _built(
    spec: ModelSpec, out: Path, compression: str | None, verifier: verify.Verifier | None, force: bool, shown: Stage
) -> dict[str, Any]:
    from mme.packaging.job import PackagingJob
    from mme.snapshot import extra
    from mme.tasks import inspection

    made = PackagingJob(spec, out, compression=compression).package(verifier, force=force, stage=shown)
    accuracy = made.archive.manifest.get("accuracy")
    if made.verified and made.verified.doubt:
        note(f"{spec.name}: {made.verified.doubt}.")
    laid = made.archive.manifest.get("handler")
    if made.fresh and spec.handler is None and laid:
        note(f"{spec.name}: the catalogue names no handler; it is served by ours for {spec.task}, {laid['name']!r}.")
    if made.fresh and (measured := inspection.accuracy_text(accuracy)):
        note(f"{spec.name} in {measured}.")
    if made.fresh and (tokenizer := made.archive.manifest.get("tokenizer")):
        note(f"{spec.name}: its tokenizer: {tokenizer}.")
    if made.fresh and (names := made.archive.manifest.get("left_out")):
        note(f"{spec.name}: {extra.words(names)}.")
    for words in made.archive.manifest.get("unused", ()) if made.fresh else ():
        note(f"{spec.name}: {words}.")
    if made.fresh and spec.trust_remote_code:
        note(f"{spec.name}: its own code {inspection.TRUST}.")
    return {
        **_result(spec.name, "built" if made.fresh else "unchanged", made.archive),
        "seconds": round(made.seconds, 2),
        "verified": asdict(made.verified) if made.verified else None,
        "accuracy": accuracy,
    }


def _result(name: str, status: str, archive: contents.Archive | None) -> dict[str, Any]:
    return {
        "name": name,
        "status": status,
        "target": archive.target if archive else None,
        "digest": archive.digest if archive else None,
        "size": archive.size if archive else None,
        "path": str(archive.path) if archive and archive.path else None,
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
    from mme.tasks import inspection

    if not archive:
        raise UsageError("Which archive?", "Give --archive FILE, or --archive s3://bucket/models/bert-….tar.gz.")
    manifest = inspection.manifest(archive, settings)
    if json:
        print_json(manifest)
        return
    print(inspection.text(manifest, files))


@command({"out": "write it into this folder, as models.schema.json, instead of printing it"})
def schema(context: Context, out: str | None = None) -> None:
    """Print the JSON schema of the catalogue, with which editors complete and check it.

    The first line of models.toml names it: #:schema ./models.schema.json
    """
    from mme.catalog import schema as catalog_schema

    if out is None:
        print(catalog_schema.text(), end="")
        return
    path = Path(out) / catalog_schema.FILE.name
    path.write_text(catalog_schema.text(), encoding="utf-8")
    note(f"Wrote {path}.")
