"""Channels: which versions a name means, and with what weights.

A channel is one small JSON object beside the model prefix, ``channels/CHANNEL.json``. It names one version, or several
with weights, and carries its own history. It is changed by compare-and-swap on the object's ETag, so of two pipelines
that change it at once one succeeds and the other gets an error. Each revision has an id of its own: when S3 wrote a
change and its answer was lost, the client asks again and is refused, and the id shows that the change is there.

A model's own channel has the model's name (``bert``). More of them have a name after an ``@`` (``bert@staging``).
A model without a channel means its newest version.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import random
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from mme.aws import CONNECTIONS, explain, explained, is_missing, status_of
from mme.errors import ConflictError, MmeError, ReleaseError, UsageError, nearest
from mme.releases import Store, parse_target, versions_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

FORMAT = 1
HISTORY = 100  # revisions that a channel remembers

_SEGMENT = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_CHANNEL = re.compile(rf"(?P<model>{_SEGMENT}(?:/{_SEGMENT})*)(?:@(?P<stage>{_SEGMENT}))?")

Split = Mapping[str, float]  # target -> weight


@dataclass(frozen=True)
class Revision:
    """One state of a channel: its split, and who set it when (UTC), by what action and why.

    ``id`` is random and belongs to one revision alone; "" for those that earlier versions of mme wrote.
    """

    number: int
    time: datetime
    author: str
    action: str
    notes: str
    split: Split
    id: str = field(default="", compare=False)


@dataclass(frozen=True)
class Channel:
    """A channel as it was read. ``etag`` is that of the state that a change will replace; None if there is none yet.

    ``keep_warm``: its versions are wanted in memory before anybody asks for them (`invoke warm --kept`).
    """

    name: str
    history: tuple[Revision, ...]  # newest first
    etag: str | None
    keep_warm: bool = False

    @property
    def model(self) -> str:
        """The model whose versions this channel names."""
        return model_of(self.name)

    @property
    def revision(self) -> int:
        """The number of the present state; 0 before the first change."""
        return self.history[0].number if self.history else 0

    @property
    def split(self) -> Split:
        """Target and weight of each version that the name means now; empty before the first change."""
        return self.history[0].split if self.history else {}


def model_of(channel: str) -> str:
    """The model of a channel's name. Raises UsageError when it is not such a name."""
    match = _CHANNEL.fullmatch(channel)
    if not match:
        raise UsageError(
            f"{channel!r} is not the name of a model or channel.",
            "It is a model's name as in bert or team-a/bert, or one with a stage as in bert@staging: small letters, "
            "digits and hyphens.",
        )
    return match["model"]


# ---- reading ----------------------------------------------------------------------------------------------------


def read(s3: S3Client, store: Store, name: str) -> Channel:
    """The channel of this name; one without history when there is none yet."""
    model_of(name)
    with explained(f"read channel {name} of {store.uri()}", bucket=store.bucket):
        try:
            answer = s3.get_object(Bucket=store.bucket, Key=_key(store, name))
            body = answer["Body"].read()
        except ClientError as error:
            if is_missing(s3, store.bucket, _key(store, name), error):
                return Channel(name, (), None)
            raise
    return _parse(store, name, body, answer["ETag"])


def read_all(s3: S3Client, store: Store, model: str = "", known: dict[str, Channel] | None = None) -> list[Channel]:
    """Every channel beside the model prefix, or every one of ``model``, by name.

    ``known`` is what an earlier call read, by name: a channel whose object has not changed since is not read again. It
    then holds what there is now.
    """
    return read_these(s3, store, listed(s3, store, model), known)


def read_of(
    s3: S3Client, store: Store, models: Collection[str], known: dict[str, Channel] | None = None
) -> list[Channel]:
    """Every channel of these models, by name: one listing, and only those are read. ``known`` as for ``read_all``."""
    if not models:
        return []
    names = {name: tag for name, tag in listed(s3, store).items() if model_of(name) in models}
    return read_these(s3, store, names, known)


def listed(s3: S3Client, store: Store, model: str = "") -> dict[str, str]:
    """The ETag of every channel beside the model prefix, or of every one of ``model``, by name; none is read."""
    folder = f"{store.root}channels/"
    with explained(f"list the channels of {store.uri()}", bucket=store.bucket):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=folder + model)
        tags = {item["Key"]: item["ETag"] for page in pages for item in page.get("Contents", [])}
    names = {key[len(folder) : -len(".json")]: tag for key, tag in tags.items() if key.endswith(".json")}
    return {
        name: names[name]
        for name in sorted(names)
        if (match := _CHANNEL.fullmatch(name)) and model in ("", match["model"])
    }


def read_these(
    s3: S3Client, store: Store, names: Mapping[str, str], known: dict[str, Channel] | None = None
) -> list[Channel]:
    """The channels of these names, in this order; ``names`` and ``known`` as ``listed`` and ``read_all`` have them."""
    before = {name: channel for name, channel in (known or {}).items() if channel.etag == names.get(name)}
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        every = list(pool.map(lambda name: before.get(name) or read(s3, store, name), names))
    if known is not None:
        known.clear()
        known.update((channel.name, channel) for channel in every)
    return [channel for channel in every if channel.history]


def in_use(channels: Sequence[Channel]) -> dict[str, list[str]]:
    """For each target that a channel names, or would name after a plain rollback: the channels."""
    users: dict[str, list[str]] = {}
    for channel in channels:
        for target in {target for revision in channel.history[:2] for target in revision.split}:
            users.setdefault(target, []).append(channel.name)
    return users


def pick(split: Split, key: str | None = None, chance: random.Random | None = None) -> str:
    """One target of the split, by weight: at random, or always the same one for the same ``key``.

    When the weights change, only as many keys move to another version as the change asks for.
    """
    targets = sorted(target for target, weight in split.items() if weight > 0)
    if not targets:
        raise ReleaseError("The channel names no version.")
    if key is None:
        return (chance or random.SystemRandom()).choices(targets, [split[target] for target in targets])[0]

    def score(target: str) -> float:
        # Weighted rendezvous hashing: each target draws for the key, and its weight scales the draw.
        drawn = hashlib.sha256(f"{target}\0{key}".encode()).digest()
        return -split[target] / math.log((int.from_bytes(drawn[:8], "big") + 1) / (2**64 + 2))

    return max(targets, key=score)


# ---- changing ---------------------------------------------------------------------------------------------------


def change(
    s3: S3Client,
    store: Store,
    channel: Channel,
    split: Split,
    *,
    action: str,
    author: str,
    notes: str = "",
    now: datetime | None = None,
) -> Channel:
    """Make ``split`` the channel's next state, if the channel still is as ``channel`` was read.

    A split that it has already makes no new revision: what comes back is then ``channel`` as it was given, and a
    rollback still leads to the state before.
    Raises ConflictError when somebody else changed it meanwhile: then nothing is changed. Raises ReleaseError when a
    version that the split names is not released.
    """
    _check(channel, split)
    _check_released(s3, store, split)
    if _shares(split) == dict(channel.split):
        return channel
    revision = Revision(
        channel.revision + 1,
        (now or datetime.now(timezone.utc)).replace(microsecond=0),
        author,
        action,
        notes,
        _shares(split),
        secrets.token_hex(8),
    )
    changed = replace(channel, history=(revision, *channel.history)[:HISTORY])
    condition = {"IfMatch": channel.etag} if channel.etag else {"IfNoneMatch": "*"}
    try:
        etag = _put(s3, store, changed, condition)
    except (ClientError, BotoCoreError) as error:
        written = _written_all_the_same(s3, store, channel.name, revision)
        if written is None and isinstance(error, ClientError) and status_of(error) in (404, 409, 412):
            raise _changed_meanwhile(channel) from error
        if written is None:
            raise explain(error, f"change channel {channel.name}", bucket=store.bucket) from error
        etag = written
    # A delete that ran at the same moment may not have seen this change; then this check sees the delete.
    _check_released(s3, store, split)
    return replace(changed, etag=etag)


def _put(s3: S3Client, store: Store, channel: Channel, condition: Mapping[str, str]) -> str:
    """Write the channel's object under a condition; the ETag of what was written."""
    return s3.put_object(
        Bucket=store.bucket,
        Key=_key(store, channel.name),
        Body=_format(store, channel),
        ContentType="application/json",
        **condition,  # type: ignore[arg-type]
    )["ETag"]


def _changed_meanwhile(channel: Channel) -> ConflictError:
    return ConflictError(
        f"Channel {channel.name} was changed by somebody else meanwhile; nothing was changed here.",
        f"Look at it (invoke history --model {channel.name}), then run the same command again if it still applies.",
    )


def keep_warm(s3: S3Client, store: Store, channel: Channel, keep: bool) -> Channel:
    """Say whether the channel's versions are to be kept warm. This is not a revision: it changes no meaning.

    Raises ConflictError when somebody else changed the channel meanwhile, ReleaseError when there is no such channel.
    """
    if not channel.history:
        raise no_channel(s3, store, channel.name)
    if channel.keep_warm == keep:
        return channel
    changed = replace(channel, keep_warm=keep)
    try:
        etag = _put(s3, store, changed, {"IfMatch": channel.etag or "*"})
    except (ClientError, BotoCoreError) as error:
        with contextlib.suppress(MmeError):
            now = read(s3, store, channel.name)
            if now.keep_warm == keep and now.history == channel.history:
                return now  # an earlier try, whose answer was lost, or somebody else
        if isinstance(error, ClientError) and status_of(error) in (404, 409, 412):
            raise _changed_meanwhile(channel) from error
        raise explain(error, f"change channel {channel.name}", bucket=store.bucket) from error
    return replace(changed, etag=etag)


def delete(s3: S3Client, store: Store, channel: Channel) -> None:
    """Remove the channel and its history, if it still is as ``channel`` was read.

    A model's own name means its newest version then, and a name with a stage nothing. Raises ConflictError when
    somebody else changed the channel meanwhile.
    """
    try:
        s3.delete_object(Bucket=store.bucket, Key=_key(store, channel.name), IfMatch=channel.etag or "*")
    except (ClientError, BotoCoreError) as error:
        with contextlib.suppress(MmeError):
            if read(s3, store, channel.name).etag is None:
                return  # an earlier try, whose answer was lost, or somebody else
        if isinstance(error, ClientError) and status_of(error) in (409, 412):
            raise ConflictError(
                f"Channel {channel.name} was changed by somebody else meanwhile; it was not removed.",
                f"Look at it (invoke history --model {channel.name}), then run the same command again if it still "
                "applies.",
            ) from error
        raise explain(error, f"remove channel {channel.name}", bucket=store.bucket) from error


def _written_all_the_same(s3: S3Client, store: Store, name: str, revision: Revision) -> str | None:
    """The channel's ETag now if ``revision`` is in its history although S3's answer says otherwise, else None."""
    try:
        now = read(s3, store, name)
    except MmeError:
        return None
    return now.etag if revision.id in [item.id for item in now.history] else None


def rolled_back(channel: Channel, revision: int | None = None) -> Revision:
    """The revision whose split a rollback sets again: the one before the present one, or the one of this number."""
    wanted = channel.revision - 1 if revision is None else revision
    for past in channel.history[1:]:
        if past.number == wanted:
            return past
    if revision is None:
        raise ReleaseError(
            f"Channel {channel.name} has no earlier state to go back to.",
            f"See its history: invoke history --model {channel.name}.",
        )
    raise UsageError(
        f"Channel {channel.name} has no earlier revision {revision}.",
        f"See its history: invoke history --model {channel.name}.",
    )


def expect(channel: Channel, revision: int) -> None:
    """Raise ConflictError unless the channel is at this revision (the one that a pipeline looked at earlier)."""
    if channel.revision != revision:
        raise ConflictError(
            f"Channel {channel.name} is at revision {channel.revision}, not {revision}; nothing was changed.",
            f"Look at what changed: invoke history --model {channel.name}.",
        )


def _check(channel: Channel, split: Split) -> None:
    if not any(weight > 0 for weight in split.values()):
        raise UsageError(f"Channel {channel.name} needs a version with a weight above 0.")
    for target, weight in split.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"{weight} is not a weight for {target}.", "A weight is a number, 0 or more.")
        parsed = parse_target(target)
        if parsed is None or parsed[0] != channel.model:
            raise UsageError(f"{target} is not a version of {channel.model}.")


def _shares(split: Split) -> dict[str, float]:
    """The weights as shares of 100, largest first."""
    total = sum(split.values())
    shares = {target: round(100 * weight / total, 4) for target, weight in split.items() if weight > 0}
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _check_released(s3: S3Client, store: Store, split: Split) -> None:
    for target, weight in split.items():
        if weight <= 0:
            continue
        with explained(f"look for {store.uri(target)}", bucket=store.bucket):
            try:
                s3.head_object(Bucket=store.bucket, Key=store.key(target))
            except ClientError as error:
                if not is_missing(s3, store.bucket, store.key(target), error):
                    raise
                raise ReleaseError(
                    f"{store.uri(target)} is not released, or was deleted.",
                    "Release it (invoke package upload; the same content comes back under the same name), or name "
                    "another version.",
                ) from error


# ---- the object -------------------------------------------------------------------------------------------------


def _key(store: Store, name: str) -> str:
    return f"{store.root}channels/{name}.json"


def _format(store: Store, channel: Channel) -> bytes:
    document = {
        "format": FORMAT,
        "channel": channel.name,
        "prefix": store.prefix,
        "revision": channel.revision,
        "versions": dict(channel.split),
        **({"keep_warm": True} if channel.keep_warm else {}),
        "history": [{**revision_as_json(revision), "id": revision.id} for revision in channel.history],
    }
    return json.dumps(document, ensure_ascii=False, indent=1).encode()


def revision_as_json(revision: Revision) -> dict[str, Any]:
    """A revision as plain JSON values."""
    return {
        "revision": revision.number,
        "time": revision.time.isoformat().replace("+00:00", "Z"),
        "author": revision.author,
        "action": revision.action,
        "notes": revision.notes,
        "versions": dict(revision.split),
    }


def _parse(store: Store, name: str, body: bytes, etag: str) -> Channel:
    where = f"s3://{store.bucket}/{_key(store, name)}"
    try:
        document = json.loads(body)
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()  # a lone surrogate cannot be shown
        if document["format"] != FORMAT:
            raise ReleaseError(f"{where} is of format {document['format']}.", "Use a newer version of mme.")
        if document["prefix"] != store.prefix:
            raise ReleaseError(
                f"Channel {name} belongs to the model prefix {document['prefix']}, not to {store.prefix}.",
                "Two model prefixes beside each other share one folder of channels: put each in a folder of its own, "
                "as in a/models/ and b/models/.",
            )
        history = tuple(_revision(item, model_of(name)) for item in document["history"])
        if any(newer.number <= older.number for newer, older in itertools.pairwise(history)):
            raise ValueError("its revisions are not in order")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ReleaseError(
            f"{where} is not a channel that can be read ({error!r}).",
            "Somebody changed it by hand. Put it right, or remove it and promote again.",
        ) from error
    return Channel(name, history, etag, document.get("keep_warm") is True)


def _revision(item: Mapping[str, Any], model: str) -> Revision:
    """A revision as it was written. Raises ValueError and the like for what ``change`` would not have written."""
    split = {str(target): float(weight) for target, weight in item["versions"].items()}
    for target, weight in split.items():
        if (parse_target(target) or ("",))[0] != model or not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{target} with weight {weight} is not a version of {model} with a share")
    if not any(weight > 0 for weight in split.values()):
        raise ValueError("a revision names no version")
    time = datetime.fromisoformat(item["time"].replace("Z", "+00:00"))
    if time.tzinfo is None:
        raise ValueError(f"{item['time']} has no time zone")
    number = item["revision"]
    if type(number) is not int or number < 1:
        raise ValueError(f"{number!r} is not the number of a revision")
    author, action, notes = (str(item[key]) for key in ("author", "action", "notes"))
    return Revision(number, time, author, action, notes, split, str(item.get("id", "")))


def current_split(s3: S3Client, store: Store, name: str) -> tuple[Split, Channel]:
    """What a name means now: its channel's split, or the newest version when it has no channel."""
    channel = read(s3, store, name)
    if channel.split:
        return channel.split, channel
    if name != channel.model:
        raise no_channel(s3, store, name)
    return {versions_of(s3, store, name)[0].target: 100.0}, channel


def no_channel(s3: S3Client, store: Store, name: str) -> ReleaseError:
    """The error for a channel that is not there, with the nearest that is."""
    known = list(listed(s3, store))
    return ReleaseError(
        f"There is no channel {name}.",
        f"{nearest(name, known, 'Channels are')} Make it: invoke promote --model {name}."
        if known
        else f"Make it: invoke promote --model {name}.",
    )
