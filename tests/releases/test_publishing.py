"""A run of uploads: outcomes and events as plain values, for whoever shows them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from release_tools import STORE

from mme import publishing, releases
from mme.archive import plan, write
from mme.archive.contents import Archive
from mme.catalog.spec import ModelSpec, Source
from mme.errors import ArchiveError, ReleaseError
from mme.packaging import records
from mme.packaging.job import Streamed
from mme.publishing import Events, Publisher


class Noted(Events):
    """Events as they came: what began, what was counted, what ended."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.finishes: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def sending(self, names: Sequence[str], size: int) -> Iterator[Callable[[int], object]]:
        counted: list[int] = []
        yield counted.append
        self.seen.append(("sent", list(names), size, sum(counted)))

    def finished(self, done: int, of: int) -> None:
        self.finishes.append((done, of))

    @contextlib.contextmanager
    def packaging(self, name: str, step: str, size: int) -> Iterator[Callable[[int], object]]:
        yield lambda count: None
        self.seen.append((step, name))

    def packaged(self, name: str, made: Streamed) -> None:
        self.seen.append(("packaged", name, made.planned.target))


def spec(name: str) -> ModelSpec:
    return ModelSpec(name, Source("folder", "source"))


def snapshot(folder: Path, name: str) -> Path:
    path = folder / "snapshot" / name
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "weights.bin").write_bytes(name.encode() * 1000)
    return path


def built(folder: Path, name: str) -> Archive:
    archive = write.build(spec(name), snapshot(folder, name), folder / "dist")
    records.note(folder / "dist", archive)
    return archive


def latest(folder: Path, *names: str) -> list[records.Latest]:
    every = [records.latest(folder / "dist", name) for name in names]
    return [item for item in every if item is not None]


def publisher(s3: Any, **more: Any) -> Publisher:
    return Publisher.open(s3, STORE, author="ada", **more)


def test_each_outcome_says_what_became_of_its_model(s3: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = {name: built(tmp_path, name) for name in ("bert", "gpt2", "t5")}
    publisher(s3).publish_built(latest(tmp_path, "gpt2"), tmp_path / "dist")
    noted = Noted()
    outcomes = publisher(s3, events=noted).publish_built(latest(tmp_path, "bert", "gpt2", "t5"), tmp_path / "dist")
    assert [(item.name, item.status) for item in outcomes] == [
        ("bert", "uploaded"),
        ("gpt2", "present"),
        ("t5", "uploaded"),
    ]
    for item in outcomes:
        archive = made[item.name]
        assert (item.target, item.digest, item.size) == (archive.target, archive.digest, archive.size)
        assert item.uri == STORE.uri(archive.target)
        assert item.sent == (0 if item.status == "present" else archive.size)
        assert json.loads(json.dumps(item.as_json()))["status"] == item.status
        assert "error" not in item.as_json()
    size = made["bert"].size + made["t5"].size
    assert noted.seen == [("sent", ["bert", "t5"], size, size)]
    assert noted.finishes == [(1, 2), (2, 2)]
    assert {version.target for version in releases.list_versions(s3, STORE)} == {item.target for item in made.values()}
    assert capfd.readouterr() == ("", "")


def test_a_dry_run_tells_new_from_begun_from_present(s3: Any, tmp_path: Path) -> None:
    made = [built(tmp_path, name) for name in ("bert", "gpt2", "t5")]
    publisher(s3).publish_built(latest(tmp_path, "bert"), tmp_path / "dist")
    s3.create_multipart_upload(
        Bucket=STORE.bucket, Key=STORE.key(made[1].target), ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
    )
    run = publisher(s3, dry_run=True)
    outcomes = run.publish_built(latest(tmp_path, "bert", "gpt2", "t5"), tmp_path / "dist")
    assert [item.status for item in outcomes] == ["present", "would go on", "would upload"]
    assert [version.name for version in releases.list_versions(s3, STORE)] == ["bert"]


def test_an_unfinished_upload_of_what_is_released_is_given_up(s3: Any, tmp_path: Path) -> None:
    """Two runs published the same, and one of them was killed: the parts that it left are billed."""
    made = built(tmp_path, "bert")
    publisher(s3).publish_built(latest(tmp_path, "bert"), tmp_path / "dist")
    s3.create_multipart_upload(
        Bucket=STORE.bucket, Key=STORE.key(made.target), ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
    )
    publisher(s3, dry_run=True).publish_built(latest(tmp_path, "bert"), tmp_path / "dist")
    assert list(releases.unfinished_uploads(s3, STORE)) == [made.target]
    (outcome,) = publisher(s3).publish_built(latest(tmp_path, "bert"), tmp_path / "dist")
    assert outcome.status == "present"
    assert releases.unfinished_uploads(s3, STORE) == {}


def test_a_model_that_fails_is_an_outcome_like_the_others(s3: Any, tmp_path: Path) -> None:
    made = [built(tmp_path, name) for name in ("bert", "gpt2")]
    chosen = latest(tmp_path, "bert", "gpt2")
    (tmp_path / "dist" / made[0].target).unlink()
    outcomes = publisher(s3).publish_built(chosen, tmp_path / "dist")
    assert [item.status for item in outcomes] == ["failed", "uploaded"]
    assert isinstance(outcomes[0].error, ArchiveError)
    assert outcomes[0].as_json()["hint"] == "Package the model again."


def streaming(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Packaging that reads a snapshot as it is, so that no library of models is needed."""

    class Job:
        def __init__(self, model: ModelSpec, out: Path, **more: Any) -> None:
            self.model = model

        def unchanged(self) -> None:
            return None

        def known_digest(self, **more: Any) -> None:
            return None

        @contextlib.contextmanager
        def prepared(self, verifier: Any, *, stage: Any) -> Iterator[Streamed]:
            if self.model.name == "broken":
                raise ArchiveError("broken changes while it is read.", "Wait.")
            with stage("retrieving", 0):
                path = snapshot(folder, self.model.name)
            yield Streamed(plan.plan(self.model, path), "auto", None)

    (folder / "source").mkdir()
    monkeypatch.setattr(publishing, "PackagingJob", Job)


def test_streamed_models_are_packaged_then_sent_one_after_the_other(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    streaming(monkeypatch, tmp_path)
    noted = Noted()
    run = publisher(s3, events=noted, notes="new")
    outcomes = run.publish_streamed([spec("bert"), spec("broken"), spec("gpt2")], tmp_path / "dist")
    assert [item.status for item in outcomes] == ["uploaded", "failed", "uploaded"]
    assert [(event[0], event[1]) for event in noted.seen] == [
        ("retrieving", "bert"),
        ("packaged", "bert"),
        ("sent", ["bert"]),
        ("retrieving", "gpt2"),
        ("packaged", "gpt2"),
        ("sent", ["gpt2"]),
    ]
    assert noted.seen[1][2] == outcomes[0].target
    assert noted.finishes == [(0, 3), (1, 3), (2, 3)]
    assert list((tmp_path).rglob("*.tar.gz")) == []
    (record, _) = releases.read_records(s3, STORE, releases.list_versions(s3, STORE))
    assert (record.author, record.notes) == ("ada", "new")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("code", "rest"), [("ExpiredToken", "not tried"), ("InternalError", "failed")])
def test_what_concerns_every_model_ends_a_streamed_run(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, rest: str
) -> None:
    streaming(monkeypatch, tmp_path)

    def refuse(**_: Any) -> None:
        answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        raise ClientError(answer, "PutObject")

    run = publisher(s3)
    monkeypatch.setattr(s3, "put_object", refuse)
    first, second = run.publish_streamed([spec("bert"), spec("gpt2")], tmp_path / "dist")
    assert (first.status, second.status) == ("failed", rest)
    assert isinstance(first.error, ReleaseError)
