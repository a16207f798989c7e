"""`invoke watch`: an edited handler answers on the local endpoint, and the one before goes on until it has."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from operate_tools import Corner, corner_of

from mme.archive import read
from mme.local import LocalAws
from mme.operate import watch

HANDLER = """
import json
import helpers


def model_fn(folder):
    return 1


def transform_fn(model, body, content_type, accept):
    return json.dumps({"said": helpers.word(), "version": 1}), "application/json"
"""
HELPERS = "def word():\n    return 'one'\n"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    """A local AWS with the real serving container."""
    with LocalAws(tmp_path_factory.mktemp("real") / "data", container="ours") as made:
        yield made


class Project:
    """A catalogue with a handler in it, which imports a module of ``common``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handler = folder / "model_code" / "mine"
        self.common = folder / "model_code" / "common"
        self.handler.mkdir(parents=True)
        self.common.mkdir()
        tiny_models.bert(folder / "bert")
        self.script = self.handler / "inference.py"
        self.helpers = self.common / "helpers.py"
        self.script.write_text(HANDLER)
        self.helpers.write_text(HELPERS)
        (self.handler / "sample.json").write_text('{"inputs": "x"}')
        (folder / "models.toml").write_text('[models.bert]\nsource = "folder:bert"\nhandler = "mine"\n')


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def corner_of_real(
    real: LocalAws, aws_env: LocalAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Corner]:
    with corner_of(real, monkeypatch, capsys) as made:
        yield made


def save(file: Path, text: str) -> None:
    """As an editor does. Were it written in place, who looks at that moment would see an empty file."""
    written = file.parents[2] / f"{file.name}.new"  # not in a folder that is watched
    written.write_text(text)
    written.replace(file)


class Watching:
    """`invoke watch` as a process, whose lines are read as they come."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "mme", "watch", "--model", "bert", "--json", *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)

    def next(self) -> dict[str, Any]:
        """What the next line says."""
        event: dict[str, Any] = json.loads(self._lines.get(timeout=300))
        return event

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        assert self.process.stderr
        return self.process.wait(timeout=120), self.process.stderr.read()

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def meaning(corner: Corner) -> str:
    """The version that bert@dev means."""
    body = corner.s3.get_object(Bucket=corner.bucket, Key="channels/bert@dev.json")["Body"].read()
    (target,) = json.loads(body)["versions"]
    return str(target)


def asked(corner: Corner, endpoint: str) -> Any:
    """What bert@dev answers now."""
    body = corner.runtime.invoke_endpoint(EndpointName=endpoint, TargetModel=meaning(corner), Body=b"{}")["Body"].read()
    return json.loads(body)["said"]


@pytest.mark.slow
def test_each_save_answers_or_says_what_is_wrong_and_where(corner_of_real: Corner, project: Project) -> None:
    corner = corner_of_real
    endpoint = corner.endpoint(MME_PRELOAD="")  # the handler needs none of the libraries
    with Watching("--endpoint", endpoint) as watching:
        first = watching.next()
        assert (first["ok"], json.loads(first["answer"])["said"]) == (True, "one")
        assert asked(corner, endpoint) == "one"

        save(project.helpers, HELPERS.replace("one", "two"))  # a file that is imported
        second = watching.next()
        assert json.loads(second["answer"])["said"] == "two"
        assert second["target"] != first["target"]
        assert asked(corner, endpoint) == "two"

        save(project.script, HANDLER + "\ndef broken(:\n")
        problem = watching.next()
        assert problem["ok"] is False
        assert "mine/inference.py:13:" in problem["problem"]
        assert asked(corner, endpoint) == "two", "what answered before goes on"

        save(project.script, HANDLER.replace("return 1", "raise KeyError('no weights')"))
        problem = watching.next()
        assert "inference.py:7: KeyError: 'no weights'" in problem["problem"]
        assert asked(corner, endpoint) == "two"

        save(project.script, HANDLER)
        save(project.helpers, "def word():\n    raise ValueError('not a word')\n")
        while "not a word" not in (problem := watching.next()).get("problem", ""):
            pass  # the two saves may be seen one after the other
        assert "helpers.py:2: ValueError: not a word" in problem["problem"]
        assert str(Path("model_code", "common")) in problem["problem"]
        assert asked(corner, endpoint) == "two"

        save(project.helpers, HELPERS.replace("one", "three"))
        assert json.loads(watching.next()["answer"])["said"] == "three"
        assert asked(corner, endpoint) == "three"
        code, err = watching.end()
    assert code == 0
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_weights_are_packaged_once_and_old_saves_are_removed(corner_of_real: Corner, project: Project) -> None:
    corner = corner_of_real
    endpoint = corner.endpoint(MME_PRELOAD="")  # the handler needs none of the libraries
    (project.handler / "requirements.txt").unlink(missing_ok=True)
    with Watching("--endpoint", endpoint) as watching:
        targets = [watching.next()["target"]]
        for word in ("two", "three", "four", "five"):
            save(project.helpers, HELPERS.replace("one", word))
            made = watching.next()
            assert made["ok"]
            targets.append(made["target"])
        watching.end()
    left = [
        item["Key"].removeprefix("models/")
        for item in corner.s3.list_objects_v2(Bucket=corner.bucket, Prefix="models/")["Contents"]
    ]
    assert set(left) == set(targets[-watch.LEAVE :])
    path = project.folder / "last.tar.gz"
    path = path.with_name(targets[-1])
    corner.s3.download_file(corner.bucket, f"models/{targets[-1]}", str(path))
    archive = read.check(path)
    assert {"config.json", "code/inference.py", "code/helpers.py", "code/settings.json"} <= {
        file.path for file in archive.files
    }
    packaged = list((project.folder / "dist").glob("*.tar.gz"))
    assert len(packaged) == 1, "the archive of the weights is made once"
    rebuilt = corner("package", "--model", "bert", "--no-verify")
    assert rebuilt.code == 0
    assert (project.folder / "dist" / targets[-1]).exists(), "packaging makes the very same version of it"


def test_watching_is_for_the_local_aws_alone(project: Project, corner: Corner, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("https://s3.amazonaws.com", "http://10.0.0.1:4566", "http://localhost.example.com:80"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        refused = corner("watch", "--model", "bert", "--endpoint", "e", "--bucket", "bucket")
        assert refused.code == 2
        assert "local AWS alone" in refused.err
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert corner("watch", "--model", "bert", "--endpoint", "e", "--bucket", "bucket").code == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", corner.aws.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.amazonaws.com")
    assert corner("watch", "--model", "bert", "--endpoint", "e", "--bucket", "bucket").code == 2


def test_bad_input(project: Project, corner: Corner) -> None:
    assert corner("watch", "--endpoint", "e").code == 2
    assert corner("watch", "--model", "none", "--endpoint", "e").code == 3
    assert corner("watch", "--model", "bert", "--channel", "Dev!", "--endpoint", "e").code == 2
    assert corner("watch", "--model", "bert", "--endpoint", f"{corner.name}-none").code == 9


def test_a_change_is_reported_once_files_have_settled(project: Project) -> None:
    before = watch.stamps(project.handler)
    assert {path.name for path in before} == {"inference.py", "helpers.py", "sample.json"}
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:  # it is saved in two steps
            save(project.script, "half")
        if len(slept) == 2:
            save(project.script, HANDLER + "# more\n")

    seen = watch.changes(project.handler, before, sleep)
    assert next(seen) is None
    now = next(seen)
    assert now is not None
    assert len(slept) >= 3
    assert [path.name for path in watch.changed(before, now)] == ["inference.py"]
    saved = watch.newest(now, watch.changed(before, now))
    assert saved is not None
    assert abs(saved - time.time()) < 60
    (project.handler / "other.py").write_text("")
    assert [path.name for path in watch.changed(now, watch.stamps(project.handler))] == ["other.py"]


def test_a_handler_that_does_not_parse_is_still_watched(project: Project) -> None:
    save(project.script, "def broken(:\n")
    assert {path.name for path in watch.stamps(project.handler)} >= {"inference.py"}
    (project.handler / "out").symlink_to("/")  # what may not be packed at all
    assert {path.name for path in watch.stamps(project.handler)} >= {"inference.py", "sample.json"}
