"""Channels: weights, compare-and-swap, history, rollback."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import datetime, timezone
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from hypothesis import given, settings
from hypothesis import strategies as st

from mme import channels
from mme.errors import ConflictError, ReleaseError, UsageError
from mme.releases import Store

STORE = Store("models-bucket", "production/models/")
A, B, C = (f"bert-{digit * 12}.tar.gz" for digit in "abc")


@pytest.fixture
def s3(s3: Any) -> Any:
    for target in (A, B, C, "gpt2-aaaaaaaaaaaa.tar.gz"):
        s3.put_object(Bucket=STORE.bucket, Key=STORE.key(target), Body=b"x")
    return s3


def change(s3: Any, split: channels.Split, name: str = "bert", **more: Any) -> channels.Channel:
    channel = channels.read(s3, STORE, name)
    given = {"action": "split", "author": "ada", **more}
    return channels.change(s3, STORE, channel, split, **given)


def keys(s3: Any) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=STORE.bucket)["Contents"]}


# ---- changing and reading -----------------------------------------------------------------------------------------


def test_a_channel_is_an_object_beside_the_models(s3: Any) -> None:
    change(s3, {A: 100})
    change(s3, {A: 100}, "bert@staging")
    assert {"production/channels/bert.json", "production/channels/bert@staging.json"} <= keys(s3)


def test_what_was_set_is_read_back_in_shares_of_a_hundred(s3: Any) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc)
    changed = change(s3, {A: 1, B: 3, C: 0}, notes="größer →", now=now)
    channel = channels.read(s3, STORE, "bert")
    assert channel == changed
    assert dict(channel.split) == {B: 75.0, A: 25.0}
    assert channel.revision == 1
    assert channel.history[0].time == now.replace(microsecond=0)
    assert (channel.history[0].author, channel.history[0].notes) == ("ada", "größer →")


def test_a_channel_that_is_not_there_is_empty(s3: Any) -> None:
    channel = channels.read(s3, STORE, "bert")
    assert (channel.revision, dict(channel.split), channel.etag) == (0, {}, None)
    assert channels.read_all(s3, STORE) == []


def test_history_is_newest_first_and_bounded(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "HISTORY", 3)
    for split in ({A: 1}, {B: 1}, {C: 1}, {A: 1, B: 1}):
        change(s3, split)
    channel = channels.read(s3, STORE, "bert")
    assert [item.number for item in channel.history] == [4, 3, 2]
    assert dict(channel.history[2].split) == {B: 100.0}


def test_of_two_changes_at_once_one_gets_an_error(s3: Any) -> None:
    for theirs in (B, C):  # the first time the channel is created, the second time it is changed
        mine = channels.read(s3, STORE, "bert")
        change(s3, {theirs: 1}, author="grace")
        with pytest.raises(ConflictError, match="changed by somebody else") as error:
            channels.change(s3, STORE, mine, {A: 1}, action="promote", author="ada")
        assert error.value.exit_code == 11
        assert dict(channels.read(s3, STORE, "bert").split) == {theirs: 100.0}


def losing_the_answer(s3: Any, meanwhile: Any = lambda: None) -> None:
    """S3 writes the next change, its answer is lost, and boto3 asks again: then S3 refuses."""
    real = s3.put_object

    def put(**given: Any) -> Any:
        s3.put_object = real
        real(**given)
        meanwhile()
        return real(**given)

    s3.put_object = put


def test_a_change_whose_answer_was_lost_is_known_as_ones_own(s3: Any) -> None:
    for number, target in enumerate((A, B), 1):  # the first creates the channel, the second changes it
        losing_the_answer(s3)
        changed = change(s3, {target: 1})
        assert (changed.revision, dict(changed.split)) == (number, {target: 100.0})
        channel = channels.read(s3, STORE, "bert")
        assert (channel, channel.etag) == (changed, changed.etag)
    change(s3, {C: 1})
    assert channels.read(s3, STORE, "bert").revision == 3


def test_a_change_whose_answer_was_lost_was_made_although_somebody_changed_it_since(s3: Any) -> None:
    losing_the_answer(s3, lambda: change(s3, {B: 1}, author="grace"))
    changed = change(s3, {A: 1})
    assert (changed.revision, dict(changed.split)) == (1, {A: 100.0})
    assert [item.author for item in channels.read(s3, STORE, "bert").history] == ["grace", "ada"]


def test_the_same_change_by_the_same_author_in_the_same_second_is_somebody_elses(s3: Any) -> None:
    mine = channels.read(s3, STORE, "bert")
    now = datetime(2026, 1, 2, tzinfo=timezone.utc)
    change(s3, {A: 1}, now=now)
    with pytest.raises(ConflictError):
        channels.change(s3, STORE, mine, {A: 1}, action="split", author="ada", now=now)


@pytest.mark.parametrize("wrote", [True, False])
def test_a_change_that_got_no_answer_at_all_is_looked_for(s3: Any, wrote: bool) -> None:
    real = s3.put_object

    def put(**given: Any) -> Any:
        s3.put_object = real
        if wrote:
            real(**given)
        raise ReadTimeoutError(endpoint_url="https://s3.example")

    s3.put_object = put
    if wrote:
        assert change(s3, {A: 1}).revision == 1
    else:
        with pytest.raises(ReleaseError, match="no answer came in time"):
            change(s3, {A: 1})


def test_a_channel_without_ids_is_read_as_before(s3: Any) -> None:
    change(s3, {A: 1})
    place = {"Bucket": STORE.bucket, "Key": "production/channels/bert.json"}
    document = json.loads(s3.get_object(**place)["Body"].read())
    for item in document["history"]:
        del item["id"]
    s3.put_object(**place, Body=json.dumps(document))
    assert change(s3, {B: 1}).revision == 2


def test_what_a_channel_means_already_makes_no_new_revision(s3: Any) -> None:
    change(s3, {A: 1})
    before = change(s3, {A: 1, B: 1})
    assert change(s3, {B: 50, A: 50}) == before
    assert dict(channels.rolled_back(channels.read(s3, STORE, "bert")).split) == {A: 100.0}


def test_a_channel_that_was_removed_meanwhile_is_a_conflict(s3: Any) -> None:
    change(s3, {A: 1})
    mine = channels.read(s3, STORE, "bert")
    s3.delete_object(Bucket=STORE.bucket, Key="production/channels/bert.json")
    with pytest.raises(ConflictError):
        channels.change(s3, STORE, mine, {B: 1}, action="promote", author="ada")


def test_a_pipeline_can_require_the_revision_it_saw(s3: Any) -> None:
    channel = change(s3, {A: 1})
    channels.expect(channel, 1)
    with pytest.raises(ConflictError, match="at revision 1, not 0"):
        channels.expect(channel, 0)


def test_a_channel_is_removed_with_its_history(s3: Any) -> None:
    change(s3, {A: 1})
    channels.delete(s3, STORE, channels.read(s3, STORE, "bert"))
    assert channels.read(s3, STORE, "bert").history == ()
    assert change(s3, {B: 1}).revision == 1


@pytest.mark.parametrize("gone", [True, False])
def test_a_removal_that_is_refused_is_a_conflict_unless_it_is_done(s3: Any, gone: bool) -> None:
    channel = change(s3, {A: 1})
    real = s3.delete_object

    def refuse(**given: Any) -> Any:
        assert given["IfMatch"] == channel.etag
        if gone:
            real(Bucket=given["Bucket"], Key=given["Key"])
        answer: Any = {"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": {"HTTPStatusCode": 412}}
        raise ClientError(answer, "DeleteObject")

    s3.delete_object = refuse
    if gone:
        channels.delete(s3, STORE, channel)
    else:
        with pytest.raises(ConflictError, match="was not removed"):
            channels.delete(s3, STORE, channel)
        assert channels.read(s3, STORE, "bert").history


def test_rolling_back_sets_the_state_before(s3: Any) -> None:
    change(s3, {A: 1})
    change(s3, {B: 1})
    change(s3, {C: 1})
    channel = channels.read(s3, STORE, "bert")
    assert dict(channels.rolled_back(channel).split) == {B: 100.0}
    assert dict(channels.rolled_back(channel, 1).split) == {A: 100.0}
    with pytest.raises(UsageError, match="no earlier revision 3"):
        channels.rolled_back(channel, 3)
    with pytest.raises(ReleaseError, match="no earlier state"):
        channels.rolled_back(channels.read(s3, STORE, "bert@staging"))


def test_a_version_that_is_not_released_cannot_be_named(s3: Any) -> None:
    missing = "bert-dddddddddddd.tar.gz"
    with pytest.raises(ReleaseError, match=f"{missing} is not released"):
        change(s3, {A: 1, missing: 1})
    assert channels.read(s3, STORE, "bert").revision == 0


def test_a_version_that_is_deleted_at_that_moment_is_noticed(s3: Any) -> None:
    channel = channels.read(s3, STORE, "bert")
    real = s3.put_object

    def put_then_lose(**given: Any) -> Any:
        answer = real(**given)
        s3.delete_object(Bucket=STORE.bucket, Key=STORE.key(A))
        return answer

    s3.put_object = put_then_lose
    with pytest.raises(ReleaseError, match="was deleted"):
        channels.change(s3, STORE, channel, {A: 1}, action="promote", author="ada")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({}, "needs a version"),
        ({A: 0}, "needs a version"),
        ({A: -1, B: 2}, "-1 is not a weight"),
        ({A: float("nan"), B: 1}, "nan is not a weight"),
        ({A: float("inf")}, "inf is not a weight"),
        ({"gpt2-aaaaaaaaaaaa.tar.gz": 1}, "not a version of bert"),
        ({"whatever": 1}, "not a version of bert"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(s3: Any, split: channels.Split, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        change(s3, split)


@pytest.mark.parametrize("name", ["Bert", "bert@", "@staging", "bert@a@b", "../bert", "bert/", "bert.json", ""])
def test_a_name_that_is_no_channel_is_refused(s3: Any, name: str) -> None:
    with pytest.raises(UsageError, match="not the name"):
        channels.read(s3, STORE, name)


def test_the_model_of_a_channel() -> None:
    assert channels.model_of("team-a/bert@staging") == "team-a/bert"
    assert channels.model_of("bert") == "bert"


@pytest.mark.parametrize(
    "body", [b"not json", b"[]", b"{}", b'{"format": 1, "prefix": "production/models/", "history": [{}]}']
)
def test_a_channel_that_somebody_broke_says_where(s3: Any, body: bytes) -> None:
    s3.put_object(Bucket=STORE.bucket, Key="production/channels/bert.json", Body=body)
    with pytest.raises(ReleaseError, match=r"s3://models-bucket/production/channels/bert.json"):
        channels.read(s3, STORE, "bert")


def test_a_newer_format_is_not_guessed_at(s3: Any) -> None:
    change(s3, {A: 1})
    place = {"Bucket": STORE.bucket, "Key": "production/channels/bert.json"}
    document = json.loads(s3.get_object(**place)["Body"].read())
    s3.put_object(**place, Body=json.dumps({**document, "format": 2}))
    with pytest.raises(ReleaseError, match="of format 2"):
        channels.read(s3, STORE, "bert")


def test_a_channel_of_a_neighbouring_prefix_is_refused(s3: Any) -> None:
    change(s3, {A: 1})
    with pytest.raises(ReleaseError, match="belongs to the model prefix production/models/"):
        channels.read(s3, Store(STORE.bucket, "production/others/"), "bert")


def test_all_channels_are_read_whatever_else_lies_there(s3: Any) -> None:
    change(s3, {A: 1})
    change(s3, {B: 1}, "bert@staging")
    s3.put_object(Bucket=STORE.bucket, Key="production/channels/README.md", Body=b"hello")
    s3.put_object(Bucket=STORE.bucket, Key="production/channels/NOT A NAME.json", Body=b"hello")
    other = STORE.key("bert-large-aaaaaaaaaaaa.tar.gz")
    s3.put_object(Bucket=STORE.bucket, Key=other, Body=b"x")
    change(s3, {"bert-large-aaaaaaaaaaaa.tar.gz": 1}, "bert-large")
    assert [channel.name for channel in channels.read_all(s3, STORE)] == ["bert", "bert-large", "bert@staging"]
    assert [channel.name for channel in channels.read_all(s3, STORE, "bert")] == ["bert", "bert@staging"]


def test_in_use_is_what_a_channel_means_or_would_mean_after_a_rollback(s3: Any) -> None:
    change(s3, {A: 1})
    change(s3, {B: 1, C: 1})
    change(s3, {C: 1})
    change(s3, {C: 1}, "bert@staging")
    assert channels.in_use(channels.read_all(s3, STORE)) == {B: ["bert"], C: ["bert", "bert@staging"]}


def test_a_name_without_a_channel_means_the_newest_version(s3: Any) -> None:
    split, channel = channels.current_split(s3, STORE, "gpt2")
    assert (dict(split), channel.revision) == ({"gpt2-aaaaaaaaaaaa.tar.gz": 100.0}, 0)
    change(s3, {B: 1})
    assert dict(channels.current_split(s3, STORE, "bert")[0]) == {B: 100.0}
    with pytest.raises(ReleaseError, match="no channel gpt2@staging"):
        channels.current_split(s3, STORE, "gpt2@staging")
    with pytest.raises(ReleaseError, match="t5 has no released version"):
        channels.current_split(s3, STORE, "t5")


# ---- picking ------------------------------------------------------------------------------------------------------


def test_versions_are_picked_by_weight() -> None:
    chance = random.Random(1)
    counted = Counter(channels.pick({A: 90, B: 10, C: 0}, chance=chance) for _ in range(5000))
    assert set(counted) == {A, B}
    assert 0.08 < counted[B] / 5000 < 0.12


def test_a_key_always_gets_the_same_version_and_shares_hold() -> None:
    split = {A: 60.0, B: 30.0, C: 10.0}
    picked = {f"user-{number}": channels.pick(split, f"user-{number}") for number in range(5000)}
    assert all(channels.pick(split, key) == target for key, target in picked.items())
    counted = Counter(picked.values())
    for target, weight in split.items():
        assert abs(counted[target] / 5000 - weight / 100) < 0.03


def test_more_weight_moves_keys_to_that_version_alone() -> None:
    before, after = {A: 90.0, B: 10.0}, {A: 70.0, B: 30.0}
    for number in range(2000):
        key = f"user-{number}"
        if channels.pick(before, key) != channels.pick(after, key):
            assert channels.pick(after, key) == B


def test_nothing_to_pick_from_is_an_error() -> None:
    with pytest.raises(ReleaseError, match="names no version"):
        channels.pick({A: 0})


@given(
    weights=st.dictionaries(st.sampled_from([A, B, C]), st.floats(0, 1e6, allow_subnormal=False), min_size=1).filter(
        lambda split: any(weight > 0 for weight in split.values())
    ),
    key=st.none() | st.text(max_size=20),
)
@settings(max_examples=200, deadline=None)
def test_a_pick_has_weight(weights: dict[str, float], key: str | None) -> None:
    assert weights[channels.pick(weights, key)] > 0
