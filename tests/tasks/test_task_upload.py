"""`invoke upload`: what was built is published once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from task_project import Project, targets

from mme import releases
from mme.catalog import reader
from mme.multipart import PART


def test_what_was_built_is_uploaded_once(project: Project) -> None:
    made = [project.build("bert"), project.build("gpt2", b"other")]
    first = project("upload")
    assert first.code == 0
    assert "uploaded" in first.out
    assert targets(project) == {item.target for item in made}
    again = project("upload")
    assert again.code == 0
    assert again.out.count("already there, nothing sent") == 2


def test_upload_can_be_limited_to_some_models(project: Project) -> None:
    project.catalogue("bert", "gpt2", "t5")
    for name in ("bert", "gpt2", "t5"):
        project.build(name)
    done = project("upload", "--model", "bert", "--model", "t5", "--json")
    assert [item["name"] for item in done.json["models"]] == ["bert", "t5"]
    assert {target.rpartition("-")[0] for target in targets(project)} == {"bert", "t5"}


def test_a_dry_run_uploads_nothing(project: Project) -> None:
    made = project.build("bert")
    shown = project("upload", "--model", "bert", "--dry-run")
    assert shown.code == 0
    assert "would upload" in shown.out
    assert made.target in shown.out
    assert targets(project) == set()


def test_upload_takes_the_catalogue_and_the_folder_that_package_had_in_the_same_command(project: Project) -> None:
    project.build("bert")
    project.build("gpt2")
    (project.folder / "models.toml").rename(project.folder / "other.toml")
    (project.folder / "dist").rename(project.folder / "other")
    done = project("package", "--catalog", "other.toml", "--out", "other", "--dry-run", "upload")
    assert done.code == 0, done.err
    assert len(targets(project)) == 2


@pytest.mark.parametrize(("flag", "value"), [("--catalog", "other.toml"), ("--out", "other")])
def test_what_is_given_to_upload_alone_is_refused_where_package_took_something_else(
    project: Project, flag: str, value: str
) -> None:
    project.build("bert")
    project.build("gpt2")
    (project.folder / "other.toml").write_text((project.folder / "models.toml").read_text())
    done = project("package", "--dry-run", "upload", flag, value)
    assert done.code == 2
    assert f"invoke package {flag} {value} upload" in done.err
    assert "mme.chain.Executor" in done.err
    assert targets(project) == set()
    both = project("package", "--dry-run", flag, value, "upload", flag, value, "--dry-run")
    assert both.code == 0


def test_what_is_not_built_is_said(project: Project) -> None:
    project.build("bert")
    named = project("upload", "--model", "gpt2")
    assert named.code == 6
    assert "no archive of gpt2 in dist" in named.err
    assert "invoke package --model gpt2" in named.err
    rest = project("upload", "--json")
    assert {item["name"]: item["status"] for item in rest.json["models"]} == {"bert": "uploaded", "gpt2": "not built"}
    assert rest.code == 6
    assert "no archive of gpt2 in dist" in rest.err
    assert project("upload", "--dry-run").code == 0


def test_tasks_in_a_row_read_the_catalogue_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = reader.load
    monkeypatch.setattr(reader, "load", lambda path: read.append(path) or real(path))
    project.build("bert")
    assert project("package", "--dry-run", "upload", "--dry-run").code == 0
    assert read == [Path("models.toml")]
    assert project("upload", "--dry-run").code == 0
    assert len(read) == 2


def test_the_newest_build_is_uploaded(project: Project) -> None:
    project.build("bert", b"old")
    newest = project.build("bert", b"new")
    project("upload", "--model", "bert")
    assert targets(project) == {newest.target}


def test_an_archive_that_was_damaged_on_the_disk_is_not_published(project: Project) -> None:
    made = project.build("bert", os.urandom(100_000))
    path = project.folder / "dist" / made.target
    content = bytearray(path.read_bytes())
    content[50_000] ^= 1
    path.write_bytes(content)
    done = project("upload", "--model", "bert")
    assert done.code == 8
    assert "changed or damaged since" in done.err
    assert targets(project) == set()


def test_of_many_who_publish_the_same_one_writes(project: Project) -> None:
    made = project.build("bert", os.urandom(2 * PART))

    def pipeline(_: int) -> str:
        path = project.folder / "dist" / made.target
        given: dict[str, Any] = {"name": "bert", "digest": made.digest, "content": path, "author": "ada"}
        return releases.publish(project.s3, project.store, **given, present=(), unfinished={}).status

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(pipeline, range(4)))
    assert statuses == ["present", "present", "present", "uploaded"]
    assert releases.unfinished_uploads(project.s3, project.store) == {}
