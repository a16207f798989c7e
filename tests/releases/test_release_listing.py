"""Versions are listed, found by what people type, deleted and pruned."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from release_tools import STORE, Watched

from mme import releases
from mme.errors import ReleaseError, UsageError
from mme.releases import Version


def release(s3: Any, target: str, size: int = 1) -> None:
    s3.put_object(Bucket=STORE.bucket, Key=f"models/{target}", Body=b"x" * size)


def test_listing_finds_versions_and_nothing_else(s3: Any) -> None:
    for target in (
        "bert-000000000001.tar.gz",
        "bert-large-000000000002.tar.gz",
        "team-a/bert-000000000003.tar.gz",
        "bert-0000000000aa-000000000004.tar.gz",
        "strangers-model.tar.gz",
        "bert-00000000000G.tar.gz",
        "bert-000000000005.tar.gz.sha256",
        "",
    ):
        release(s3, target)
    listed = {(version.name, version.digest) for version in releases.list_versions(s3, STORE)}
    assert listed == {
        ("bert", "000000000001"),
        ("bert-large", "000000000002"),
        ("team-a/bert", "000000000003"),
        ("bert-0000000000aa", "000000000004"),
    }
    assert [version.target for version in releases.list_versions(s3, STORE, "bert")] == ["bert-000000000001.tar.gz"]


def test_listing_goes_through_all_pages_newest_first(s3: Any) -> None:
    for number in range(23):
        release(s3, f"bert-{number:012x}.tar.gz", size=number % 3 + 1)
    s3.meta.events.register("provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 5})
    versions = releases.list_versions(s3, STORE)
    assert len(versions) == 23
    assert versions == sorted(versions, key=lambda version: (version.time, version.target), reverse=True)
    assert versions[0].time.utcoffset() == timedelta(0)
    assert sum(version.size for version in versions) == sum(number % 3 + 1 for number in range(23))


def version(name: str, digest: str, age: int = 0) -> Version:
    return Version(name, digest, 1, datetime(2026, 1, 31, tzinfo=timezone.utc) - timedelta(days=age))


SOME = [version("bert", "aaaa11112222"), version("gpt2", "aaaa99999999"), version("bert", "aaaa33334444", 1)]


def test_a_version_is_found_by_what_people_type() -> None:
    newest, _, older = SOME
    assert releases.find_version(SOME, "bert") == newest
    for wanted in ("aaaa3", "AAAA3333", "aaaa33334444", older.target, "bert-aaaa33334444", "aaaa33334444" + "0" * 52):
        assert releases.find_version(SOME, "bert", wanted) == older


def test_an_ambiguous_or_unknown_version_is_an_error() -> None:
    with pytest.raises(UsageError, match="fits several versions of bert: aaaa11112222, aaaa33334444"):
        releases.find_version(SOME, "bert", "aaaa")
    with pytest.raises(ReleaseError, match="bert has no version bbbb"):
        releases.find_version(SOME, "bert", "bbbb")
    with pytest.raises(UsageError, match="names no version"):
        releases.find_version(SOME, "bert", "aaa")
    with pytest.raises(UsageError, match="names no version"):
        releases.find_version(SOME, "bert", "gpt2-aaaa99999999.tar.gz")
    with pytest.raises(ReleaseError, match="t5 has no released version"):
        releases.find_version(SOME, "t5")


def test_deleting_takes_one_version_and_leaves_the_rest(s3: Any) -> None:
    release(s3, "bert-000000000001.tar.gz")
    release(s3, "bert-000000000002.tar.gz")
    releases.delete(s3, STORE, "bert-000000000001.tar.gz")
    assert [item.digest for item in releases.list_versions(s3, STORE)] == ["000000000002"]


def test_many_are_deleted_with_few_calls(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "DELETE_AT_ONCE", 4)
    targets = [f"bert-{number:012x}.tar.gz" for number in range(8)]
    for target in targets:
        release(s3, target)
    watched = Watched(s3)
    releases.delete_many(watched, STORE, targets[:-1])
    assert watched.calls == ["delete_objects", "delete_objects"]
    assert [item.target for item in releases.list_versions(s3, STORE)] == targets[-1:]


def test_what_s3_kept_is_said(s3: Any) -> None:
    class Keeps:
        def delete_objects(self, **_: Any) -> Any:
            return {"Errors": [{"Key": "models/bert-000000000001.tar.gz", "Code": "AccessDenied", "Message": "Denied"}]}

    with pytest.raises(ReleaseError, match=r"1 of 2 versions were not deleted.*Denied"):
        releases.delete_many(Keeps(), STORE, ["bert-000000000001.tar.gz", "bert-000000000002.tar.gz"])  # type: ignore[arg-type]


def test_pruning_keeps_the_newest_and_what_is_in_use() -> None:
    released = [version("bert", f"{age:012x}", age) for age in range(6)]
    released += [version("gpt2", f"{age:012x}", age) for age in range(3)]
    plan = releases.plan_prune(released, 2, {released[4].target})
    assert [item.target for item in plan] == [
        released[2].target,
        released[3].target,
        released[5].target,
        released[8].target,
    ]
    assert releases.plan_prune(released, 2, (), {"gpt2"}) == [released[8]]
    assert releases.plan_prune(released, 9, ()) == []
