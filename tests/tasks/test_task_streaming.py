"""`invoke upload --stream`: packed while it is sent."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml
from task_project import REPOSITORY, Project, targets

from mme import releases
from mme.packaging import unchanged


def tiny_gpt2(project: Project) -> None:
    source = REPOSITORY / "demo" / "tiny-gpt2"
    (project.folder / "models.toml").write_text(f'[models.gpt2]\nsource = "folder:{source}"\nhandler = "generation"\n')


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_streamed_archive_is_the_one_that_package_builds(project: Project) -> None:
    tiny_gpt2(project)
    assert "would package and upload" in project("upload", "--stream", "--dry-run").out
    (streamed,) = project("upload", "--stream", "--json").json["models"]
    assert streamed["status"] == "uploaded"
    assert [path.name for path in (project.folder / "dist").iterdir()] == ["gpt2.json"]
    body = project.s3.get_object(Bucket=project.bucket, Key=f"models/{streamed['target']}")["Body"].read()
    (again,) = project("upload", "--stream", "--json").json["models"]
    assert (again["status"], again["target"]) == ("present", streamed["target"])
    (packaged,) = project("package", "--no-verify", "--json").json["models"]
    assert packaged["target"] == streamed["target"]
    assert (project.folder / "dist" / streamed["target"]).read_bytes() == body
    assert project("upload", "--json").json["models"][0]["status"] == "present"


def test_streaming_reads_a_source_once_to_tell_what_it_is(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = unchanged._sha256
    monkeypatch.setattr(unchanged, "_sha256", lambda path: read.append(path.name) or real(path))
    project.catalogue("bert")
    assert "would package and upload" in project("upload", "--stream", "--dry-run").out
    assert read.count("config.json") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_streamed_model_that_does_not_answer_is_not_published(project: Project) -> None:
    handler = project.folder / "model_code" / "broken"
    handler.mkdir(parents=True)
    (handler / "inference.py").write_text("def model_fn(model_dir):\n    raise RuntimeError('no weights for you')\n")
    tiny_gpt2(project)
    text = (project.folder / "models.toml").read_text()
    (project.folder / "models.toml").write_text(text.replace('"generation"', '"broken"\ntask = "text-generation"'))
    done = project("upload", "--stream")
    assert done.code == 7
    assert "no weights for you" in done.err
    assert targets(project) == set()
    assert project("upload", "--stream", "--no-verify").code == 0
    assert len(targets(project)) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_package_and_streamed_upload_in_a_row_put_no_archive_on_the_disk(project: Project) -> None:
    tiny_gpt2(project)
    project.tasks_file(chained=True)
    words = ("package", "--no-verify", "upload", "--stream", "--notes", "in a row", "--json")
    killed = (
        "import mme.multipart as m, invoke, sys\n"
        "def put(self, *given):\n"
        "    print('about to send', flush=True)\n"
        "    sys.stdin.readline()\n"
        "m.Place.put = put\n"
        f"sys.exit(invoke.Program().run({['invoke', *words]!r}))\n"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", killed], text=True, cwd=project.folder, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "about to send\n"
        assert not list((project.folder / "dist").rglob("*.tar.gz"))
        process.kill()
    assert targets(project) == set()
    done = project.process(*words)
    assert done.returncode == 0, done.stderr
    assert "written to disk" not in done.stderr
    (streamed,) = json.loads(done.stdout)["models"]
    assert streamed["status"] == "uploaded"
    assert [path.name for path in (project.folder / "dist").iterdir()] == ["gpt2.json"]
    (record,) = releases.read_records(project.s3, project.store, releases.list_versions(project.s3, project.store))
    assert record.notes == "in a row"
    body = project.s3.get_object(Bucket=project.bucket, Key=f"models/{streamed['target']}")["Body"].read()

    (project.folder / "invoke.yaml").unlink()
    apart = project.process("package", "--no-verify", "upload", "--stream", "--prefix", "apart/models/")
    assert apart.returncode == 0, apart.stderr
    assert "written to disk" in apart.stderr
    assert "mme.chain.Executor" in apart.stderr
    assert (project.folder / "dist" / streamed["target"]).read_bytes() == body


def test_the_repositorys_own_tasks_stream_in_a_row() -> None:
    assert yaml.safe_load((REPOSITORY / "invoke.yaml").read_text()) == {
        "tasks": {"executor_class": "mme.chain.Executor"}
    }


def test_flags_that_go_with_streaming_alone(project: Project) -> None:
    done = project("upload", "--no-verify")
    assert done.code == 2
    assert "--stream" in done.err
    assert "no compression" in project("upload", "--stream", "--compression", "much").err
