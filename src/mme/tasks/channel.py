"""Which versions a name means: channels, their weights and their history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from invoke import Context

from mme import channels as channel_objects
from mme import console
from mme import releases as versions
from mme.errors import ReleaseError, UsageError
from mme.settings import Settings
from mme.tasks.command import DRY_RUN_HELP, JSON_HELP, command, note, open_store, print_json, who, whole_number

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CHANGE_HELP = {
    "model": "the model, or one of its channels as in bert@staging",
    "expect": "change nothing unless the channel is at this revision",
    "notes": "why; the history shows it",
    "author": "who; the history shows it; else MME_AUTHOR, else this machine's user",
    "dry-run": DRY_RUN_HELP,
    "json": JSON_HELP,
}


@command({"json": JSON_HELP}, where=("bucket", "prefix", "region", "terraform"))
def channels(context: Context, settings: Settings, json: bool = False) -> None:
    """List the channels: which versions each name means, and with what weights.

    A model without a channel means its newest version.
    """
    s3, store = open_store(settings)
    every = channel_objects.read_all(s3, store)
    if json:
        print_json({"channels": [_channel(item) for item in every]})
        return
    rows = [
        (
            item.name,
            str(item.revision),
            console.shares(item.split) + (" (kept warm)" if item.keep_warm else ""),
            console.when(item.history[0].time),
            item.history[0].author,
        )
        for item in every
    ]
    print(console.table(("channel", "revision", "versions", "since", "author"), rows))


@command(
    {
        **CHANGE_HELP,
        "version": "the version, by the first digits of its digest or as a target; newest, or left out: the newest",
        "from": "the version that another channel means now, as in bert@staging",
        "keep-warm": "mark the channel, so that invoke warm --kept loads its versions",
        "no-keep-warm": "take that back",
    },
    where=("bucket", "prefix", "region", "terraform"),
)
def promote(
    context: Context,
    settings: Settings,
    model: str | None = None,
    version: str | None = None,
    from_: str | None = None,
    keep_warm: bool = False,
    no_keep_warm: bool = False,
    expect: str | None = None,
    notes: str = "",
    author: str | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Make one version what a name means, at once and for all clients that use the name.

    Two pipelines cannot lose each other's change: the later one ends with exit code 11 and changes nothing.
    """
    if version and from_:
        raise UsageError("Give either --version or --from.")
    if keep_warm and no_keep_warm:
        raise UsageError("Give either --keep-warm or --no-keep-warm.")
    name, base = _channel_name(model)
    s3, store = open_store(settings)
    channel = channel_objects.read(s3, store, name)
    if from_:
        if channel_objects.model_of(from_) != base:
            raise UsageError(f"{from_} is not a channel of {base}.")
        split, _ = channel_objects.current_split(s3, store, from_)
        action = f"promote from {from_}"
    else:
        chosen = versions.find_version(versions.versions_of(s3, store, base), base, _newest_or(version))
        split, action = {chosen.target: 100.0}, "promote"
    keep = keep_warm if keep_warm or no_keep_warm else None
    _change(s3, store, channel, split, action, expect, notes, author, dry_run, json, keep)


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
    released = versions.versions_of(s3, store, base)
    shares: dict[str, float] = {}
    for item in weight:
        wanted, equals, number = item.rpartition("=")
        try:
            share = float(number.rstrip("%"))
        except ValueError:
            equals = ""
        if not equals or not wanted:
            raise UsageError(f"{item!r} is not VERSION=WEIGHT.", "As in --weight 0123=90.")
        chosen = versions.find_version(released, base, _newest_or(wanted))
        if chosen.target in shares:
            raise UsageError(f"{chosen.target} is given twice.")
        shares[chosen.target] = share
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
    if not channel.history:
        missing = channel_objects.no_channel(s3, store, name)
        raise ReleaseError(f"{name} has no earlier state to go back to: it has no channel.", missing.hint)
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
    if not channel.history:
        if name != channel.model:
            raise channel_objects.no_channel(s3, store, name)
        versions.versions_of(s3, store, name)
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
            console.shares(item.split),
            " ".join(item.notes.split()),
        )
        for item in shown
    ]
    print(console.table(("revision", "time", "author", "action", "versions", "notes"), rows))


def _newest_or(version: str | None) -> str | None:
    """What ``find_version`` takes for a version that may be the word newest."""
    return None if version == "newest" else version


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
    keep: bool | None = None,
) -> None:
    if expect is not None:
        channel_objects.expect(channel, whole_number("--expect", expect))
    if dry_run:
        now = console.shares(channel.split) or "no channel"
        warm = "" if keep is None else f", {'kept' if keep else 'no longer kept'} warm"
        note(f"Would set {channel.name} to {console.shares(shares)} (now {now}){warm}.")
        if json:
            kept = channel.keep_warm if keep is None else keep
            would = {"name": channel.name, "model": channel.model, "keep_warm": kept, "dry_run": True}
            print_json({**would, "revision": channel.revision, "now": dict(channel.split), "versions": dict(shares)})
        return
    changed = channel_objects.change(s3, store, channel, shares, action=action, author=who(author), notes=notes)
    same = changed is channel
    if keep is not None:
        changed = channel_objects.keep_warm(s3, store, changed, keep)
    if json:
        print_json(_channel(changed))
    else:
        verb = "already means" if same else "now means"
        warm = ", kept warm" if changed.keep_warm else ""
        print(f"{changed.name} {verb} {console.shares(changed.split)} (revision {changed.revision}{warm}).")


def _channel(channel: channel_objects.Channel) -> dict[str, Any]:
    return {
        "name": channel.name,
        "model": channel.model,
        "keep_warm": channel.keep_warm,
        **channel_objects.revision_as_json(channel.history[0]),
    }
