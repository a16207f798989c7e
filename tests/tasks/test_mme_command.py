"""The command ``mme``: the same tasks without a tasks.py, its version, completion, and what it says of itself."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from invoke import Collection

import mme.tasks
from mme import __version__
from mme.__main__ import main, program
from mme.tasks import command

SOURCE = '[models.{name}]\nsource = "folder:{name}"\nhandler = "embedding"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MME_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.toml").write_text(SOURCE.format(name="bert"))
    return tmp_path


def typed(folder: Path, *words: str, module: str = "mme") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *words], cwd=folder, capture_output=True, text=True)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The command in this process: its exit code and what it printed."""
    code = 0
    try:
        program.run(["mme", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_it_has_the_same_tasks_as_invoke() -> None:
    assert set(program.namespace.task_names) == set(Collection.from_module(mme.tasks).task_names)


def test_as_a_module_it_runs_tasks_and_names_itself_in_hints(folder: Path) -> None:
    listed = typed(folder, "models", "--json")
    assert listed.returncode == 0, listed.stderr
    assert '"name": "bert"' in listed.stdout
    wrong = typed(folder, "upload")
    assert wrong.returncode == 6
    assert "python -m mme package" in wrong.stderr
    assert typed(folder, "bench").returncode == 1, "there is nothing to bench"


def test_a_reader_that_goes_away_from_the_list_of_tasks_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "argv", ["mme", "--list"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 141


def test_the_version(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert run(capsys, "--version") == (0, f"mme {__version__}\n", "")


def test_a_catalogue_given_to_upload_is_also_what_package_reads(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "other.toml").write_text(SOURCE.format(name="gpt2"))
    for name in ("bert", "gpt2"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    code, out, err = run(capsys, "package", "--dry-run", "upload", "--catalog", "other.toml")
    assert "bert" not in out + err
    assert re.search(r"gpt2 .*would build", out)
    assert code == 6


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_invokes_own(capsys: pytest.CaptureFixture[str], folder: Path, shell: str) -> None:
    code, script, _ = run(capsys, "--print-completion-script", shell)
    assert code == 0
    assert "_complete_mme" in script or "mme --complete" in script
    assert "promote" in run(capsys, "--complete", "--", "mme", "")[1].split()
    assert "--weight" in run(capsys, "--complete", "--", "mme", "split", "-")[1].split()


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("/venv/bin/mme", "mme"),
        ("/venv/bin/invoke", "invoke"),
        ("/venv/bin/inv", "invoke"),
        ("/lib/mme/__main__.py", "python -m mme"),
        ("/lib/invoke/__main__.py", "invoke"),
    ],
)
def test_hints_name_the_command_that_was_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, called: str, name: str
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    command.note("Build it first: invoke package --model bert. See invoke.yaml, and what you invoke.")
    said = capsys.readouterr().err
    assert f"first: {name} package --model bert. See invoke.yaml, and what you invoke." in said


def test_the_containers_help_names_what_it_serves(folder: Path) -> None:
    for flag in ("--help", "-h"):
        done = typed(folder, flag, module="mme.container")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: python -m mme.container [serve]")
        assert "SAGEMAKER_BIND_TO_PORT" in done.stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["status", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["promote", "--model"], "model"),
        (["models", "more"], "more"),
    ],
)
def test_a_mistyped_command_is_a_document_for_a_script_too(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    code, out, err = run(capsys, *words, "--json")
    assert code == 1
    error = json.loads(out)["error"]
    assert what in error["message"]
    assert error["exit_code"] == 1
    assert error["message"] in err
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "")


def test_a_proxy_that_is_not_there_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "HTTP_PROXY": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL": "http://somewhere.example",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    code, out, _ = run(capsys, "releases", "--bucket", "some-bucket", "--json")
    assert code == 8
    assert "127.0.0.1:9" in json.loads(out)["error"]["message"]
    assert "HTTPS_PROXY" in json.loads(out)["error"]["hint"]
