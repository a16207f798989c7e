"""What a task with ``--json`` prints where it fails: a document for scripts, once."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest
from invoke import Collection
from task_project import Project
from typed import typed

import mme.tasks

TASKS = Collection.from_module(mme.tasks)
PARAMETERS = {name: inspect.signature(TASKS[name].body).parameters for name in sorted(TASKS.task_names)}


@pytest.mark.parametrize("name", [name for name, parameters in PARAMETERS.items() if "json" in parameters])
def test_an_error_is_a_document_for_scripts_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a catalogue, an archive, a region: whatever is missed first is said in JSON, with the exit code."""
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith(("AWS_", "MME_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    flags = [
        word
        for flag in ("bucket", "endpoint", "model")
        if flag in PARAMETERS[name]
        for word in (f"--{flag}", "nothing")
    ]
    what = ["plan"] if name == "capacity" else []
    failed = typed(capsys, name, *what, "--json", *flags)
    assert isinstance(failed.json, dict)
    if failed.code and name != "doctor":  # which has findings instead
        said = failed.json["error"]
        assert said["exit_code"] == failed.code
        assert said["message"] in failed.err
        assert said["kind"].endswith("Error")


def test_a_document_comes_once(project: Project) -> None:
    """A task that tells of its failure in its own document says nothing more."""
    project.catalogue("bert")
    failed = project("upload", "--json", "--bucket", project.bucket)
    assert failed.code != 0
    assert isinstance(failed.json, dict)
