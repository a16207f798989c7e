"""Channel objects that others wrote: read as what they say, or refused with their place; never a traceback."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from fuzzing import bounded, changed, odd
from hypothesis import given
from hypothesis import strategies as st

from mme import channels, console
from mme.errors import ReleaseError
from mme.releases import Store, parse_target

STORE = Store("models-bucket", "production/models/")
A, B = (f"bert-{digit * 12}.tar.gz" for digit in "ab")
HISTORY = [
    {
        **{"revision": 2, "time": "2026-01-02T03:04:05Z", "author": "ada", "action": "split", "notes": "größer"},
        **{"versions": {A: 90.0, B: 10.0}, "id": "0123456789abcdef"},
    },
    {
        **{"revision": 1, "time": "2026-01-01T03:04:05Z", "author": "ada", "action": "promote", "notes": ""},
        "versions": {A: 100.0},
    },
]
VALID = {
    **{"format": 1, "channel": "bert", "prefix": STORE.prefix, "revision": 2},
    **{"versions": HISTORY[0]["versions"], "history": HISTORY},
}


class Bucket:
    """An S3 that holds this body, whatever is asked for."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def get_object(self, **_: Any) -> Any:
        return {"Body": self, "ETag": '"1"'}

    def read(self) -> bytes:
        return self.body


def read(document: Any) -> channels.Channel:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    bucket: Any = Bucket(body)
    return channels.read(bucket, STORE, "bert")


def use(channel: channels.Channel) -> None:
    """All that is done with a channel that was read."""
    for revision in channel.history:
        assert all((parse_target(target) or ("",))[0] == "bert" for target in revision.split)
        assert channels.pick(revision.split, "a key") in revision.split
        assert revision.time.utcoffset() is not None
        json.dumps(channels.revision_as_json(revision), ensure_ascii=False, allow_nan=False).encode()
        (console.shares(revision.split) + console.when(revision.time)).encode()
    channels.in_use([channel])


def test_a_valid_object_is_read() -> None:
    channel = read(VALID)
    use(channel)
    assert (channel.revision, dict(channel.split)) == (2, {A: 90.0, B: 10.0})


@bounded
@given(changed(VALID))
def test_an_object_that_was_changed_is_read_or_refused(document: Any) -> None:
    with contextlib.suppress(ReleaseError):
        use(read(document))


@bounded
@given(odd | st.binary(max_size=60) | st.just(b"[" * 100_000))
def test_any_json_and_any_bytes(document: Any) -> None:
    with pytest.raises(ReleaseError, match="bert"):
        read(document)


@pytest.mark.parametrize(
    "wrong",
    [
        {"versions": {"gpt2-aaaaaaaaaaaa.tar.gz": 100}},
        {"versions": {A: float("nan")}},
        {"versions": {A: float("inf")}},
        {"versions": {A: 10**400}},
        {"versions": {A: -1, B: 2}},
        {"versions": {A: 0}},
        {"versions": {}},
        {"versions": [A]},
        {"revision": 1},
        {"revision": "3"},
        {"revision": True},
        {"time": "2026-01-02T03:04:05"},
        {"time": 7},
        {"author": "\ud800"},
    ],
    ids=json.dumps,
)
def test_what_no_change_would_have_written_is_refused(wrong: dict[str, Any]) -> None:
    """Above all a version of another model, which would answer in this one's name."""
    with pytest.raises(ReleaseError, match=r"s3://models-bucket/production/channels/bert.json is not a channel"):
        read({**VALID, "history": [{**HISTORY[0], **wrong}, HISTORY[1]]})
