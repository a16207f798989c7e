"""Removing what is not needed any more: versions and channels in the bucket, archives on this disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from invoke import Context

from mme import aws, console
from mme import channels as channel_objects
from mme import releases as versions
from mme.client import endpoint as endpoints
from mme.errors import EndpointError, ReleaseError, UsageError
from mme.settings import Settings
from mme.tasks.command import DRY_RUN_HELP, JSON_HELP, command, confirm, note, open_store, print_json, whole_number
from mme.tasks.release import version_json

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


@command(
    {
        "model": "the model",
        "version": "its version: the first digits of the digest, four or more",
        "target": "or both in one: the target model",
        "channel": "or a channel, as in bert@staging: its name, weights and history, and no version",
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
    channel: str | None = None,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Remove one released version, or a channel, after asking. A version that a channel uses is not removed.

    Instances that have a version loaded go on answering until they unload it. Without its channel, a model's name means
    its newest version.
    """
    if channel:
        if model or version or target:
            raise UsageError("Give either --channel or a version.")
        _delete_channel(settings, channel, yes, dry_run, json)
        return
    parsed = versions.parse_target(target) if target else None
    if target and not parsed:
        raise UsageError(f"{target!r} is not a target model.", "It looks like bert-0123456789ab.tar.gz.")
    name, wanted = parsed or (model, version)
    if not name or not wanted:
        raise UsageError("Which version?", "Give --target, or --model and --version; invoke releases shows them.")
    s3, store = open_store(settings)
    chosen = versions.find_version(versions.versions_of(s3, store, name), name, wanted)
    _refuse_in_use(s3, store, chosen.target, "not deleted")
    what = f"{store.uri(chosen.target)} ({console.size(chosen.size)})"
    done = not dry_run and confirm(f"Delete {what}?", yes)
    if done:
        versions.delete(s3, store, chosen.target)
    if json:
        print_json({"deleted": done, "target": chosen.target, "uri": store.uri(chosen.target)})
    elif dry_run:
        print(f"Would delete {what}.")
    else:
        print(f"Deleted {what}." if done else "Nothing was deleted.")
    if done:
        _refuse_in_use(
            s3, store, chosen.target, "deleted while the channel was changed: upload it again, or change the channel"
        )


def _delete_channel(settings: Settings, name: str, yes: bool, dry_run: bool, json: bool) -> None:
    s3, store = open_store(settings)
    channel = channel_objects.read(s3, store, name)
    if not channel.history:
        raise channel_objects.no_channel(s3, store, name)
    what = f"channel {name} ({console.shares(channel.split)}, revision {channel.revision})"
    after = f"{name} then means its newest version" if name == channel.model else f"{name} then means nothing"
    done = not dry_run and confirm(f"Delete {what}? {after[0].upper()}{after[1:]}.", yes)
    if done:
        channel_objects.delete(s3, store, channel)
    if json:
        print_json({"deleted": done, "channel": name, "versions": dict(channel.split), "revision": channel.revision})
    elif dry_run:
        print(f"Would delete {what}; {after}.")
    else:
        print(f"Deleted {what}; {after}." if done else "Nothing was deleted.")


def _refuse_in_use(s3: S3Client, store: versions.Store, target: str, consequence: str) -> None:
    model = (versions.parse_target(target) or ("",))[0]
    users = channel_objects.in_use(channel_objects.read_all(s3, store, model)).get(target)
    if users:
        raise ReleaseError(
            f"{target} is in use by channel {', '.join(users)}; {consequence}.",
            f"Point the channel at other versions first (a rollback may need it too): "
            f"invoke history --model {users[0]}.",
        )


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
    old = versions.plan_prune(released, newest, (), set(model) or None)
    known: dict[str, channel_objects.Channel] = {}

    def in_use() -> dict[str, list[str]]:
        """Who uses the versions that are old, now: channels, and endpoints that name an archive."""
        users = channel_objects.in_use(channel_objects.read_of(s3, store, {item.name for item in old}, known))
        if not ignore_endpoints:
            for target, names in _named_by_endpoints(settings, store).items():
                users.setdefault(target, []).extend(names)
        return users

    users = in_use()
    plan = [item for item in old if item.target not in users]
    stale = versions.abort_stale_uploads(s3, store, older_than=age, dry_run=True)
    if not json or not yes:
        rows = [(item.name, item.target, console.size(item.size), console.when(item.time)) for item in plan]
        if rows:
            print(console.table(("model", "target", "size", "released"), rows), file=sys.stderr if json else sys.stdout)
        for item in old:
            if item.target in users:
                note(f"Stays although it is old: {item.target}, in use by {', '.join(users[item.target])}")
        for target in stale:
            note(f"Unfinished upload: {target}")

    def summary() -> str:
        total = console.size(sum(item.size for item in plan))
        return f"{len(plan)} of {len(released)} versions ({total}) and {len(stale)} unfinished uploads"

    done = False
    if not plan and not stale:
        note("There is nothing to remove.")
    elif dry_run:
        note(f"Would remove {summary()}.")
    elif confirm(f"Remove {summary()}?", yes):
        # Answering takes a while: what came into use meanwhile stays.
        users = in_use()
        plan = [item for item in plan if item.target not in users]
        versions.delete_many(s3, store, [item.target for item in plan])
        versions.abort_stale_uploads(s3, store, older_than=age)
        done = True
        note(f"Removed {summary()}.")
    else:
        note("Nothing was removed.")
    if json:
        print_json(
            {
                "removed": done,
                "versions": [version_json(item) for item in plan],
                "kept": [
                    {"target": item.target, "in_use_by": users[item.target]} for item in old if item.target in users
                ],
                "unfinished_uploads": stale,
            }
        )
    if done:
        models = {item.name for item in plan}
        after = channel_objects.in_use(channel_objects.read_of(s3, store, models, known))
        lost = sorted(item.target for item in plan if item.target in after)
        if lost:
            raise ReleaseError(
                f"While this ran, a channel was changed to use {', '.join(lost)}, now removed.",
                "Upload it again (the same content comes back under the same name), or change the channel.",
            )


def _named_by_endpoints(settings: Settings, store: versions.Store) -> dict[str, list[str]]:
    """For each target below the prefix that a live endpoint names itself: the endpoints."""
    try:
        live = endpoints.archives_in_use(aws.sagemaker_client(settings.region))
    except EndpointError as error:
        hint = f"{error.hint or ''} Or go without: --ignore-endpoints.".strip()
        raise EndpointError(error.message, hint) from error
    return {uri.removeprefix(store.uri()): names for uri, names in live.items() if uri.startswith(store.uri())}


@command(
    {
        "out": "the folder that holds the archives",
        "unpublished": "remove old archives that were never published, too; asks no bucket",
        "yes": "do not ask",
        "dry-run": DRY_RUN_HELP,
        "json": JSON_HELP,
    },
    where=("bucket", "prefix", "region", "terraform"),
)
def clean(
    context: Context,
    settings: Settings,
    out: str = "dist",
    unpublished: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Remove archives from this disk that are published and not the last build of their model, after asking.

    The last build stays, so that package and upload recognise what has not changed.
    """
    from mme.packaging import records

    old = records.superseded(Path(out))
    if not unpublished and old:
        s3, store = open_store(settings)
        published = {version.target for version in versions.list_versions(s3, store)}
        old = {target: size for target, size in old.items() if target in published}
    if old and not (json and yes):
        rows = [(target, console.size(size)) for target, size in old.items()]
        print(console.table(("archive", "size"), rows), file=sys.stderr if json else sys.stdout)
    summary = f"{len(old)} archive{'s' if len(old) > 1 else ''} ({console.size(sum(old.values()))}) from {out}"
    done = False
    if not old:
        note(f"There is nothing to remove from {out}.")
    elif dry_run:
        note(f"Would remove {summary}.")
    elif confirm(f"Remove {summary}?", yes):
        for target in old:
            (Path(out) / target).unlink(missing_ok=True)
        done = True
        note(f"Removed {summary}.")
    else:
        note("Nothing was removed.")
    if json:
        print_json({"removed": done, "archives": [{"target": target, "size": size} for target, size in old.items()]})
