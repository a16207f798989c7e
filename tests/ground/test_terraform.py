"""Terraform is found, or its stand-in is, and the provider comes from a mirror where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mme import terraform
from mme.errors import TerraformError

MAIN = 'output "answer" {\n  value = { number = 42, words = ["a", "b"] }\n}\n'


@pytest.fixture
def root_module(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "main.tf").write_text(MAIN)
    return folder


def fake_terraform(folder: Path, version: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / "terraform"
    program.write_text(f"#!/bin/sh\necho '{json.dumps({'terraform_version': version})}'\n")
    program.chmod(0o755)


def test_terraform_on_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_terraform(tmp_path / "bin", "1.9.0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert terraform.command() == [str(tmp_path / "bin" / "terraform")]


@pytest.mark.parametrize("version", ["1.8.5", "0.12.31", None])
def test_the_library_stands_in_where_terraform_is_too_old_or_missing(
    version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version:
        fake_terraform(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert terraform.command() == [sys.executable, "-m", "mme.terraform"]


@pytest.mark.parametrize(("version", "words"), [("1.8.5", "1.8.5"), (None, "no terraform on PATH")])
def test_without_either_the_error_says_what_to_install(
    version: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version:
        fake_terraform(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TerraformError, match=words) as caught:
        terraform.command()
    assert "mme[terraform]" in str(caught.value)


def test_the_stand_in_applies_and_fails_as_terraform_does(root_module: Path) -> None:
    def stand_in(*args: str) -> subprocess.CompletedProcess[str]:
        env = terraform.environment({**os.environ, "PATH": "/nowhere"})
        return subprocess.run(
            [sys.executable, "-m", "mme.terraform", *args], cwd=root_module, env=env, capture_output=True, text=True
        )

    assert stand_in("init").returncode == 0
    applied = stand_in("apply", "-auto-approve", "-no-color")
    assert applied.returncode == 0
    assert "Apply complete!" in applied.stdout
    assert json.loads(stand_in("output", "-json", "answer").stdout) == {"number": 42, "words": ["a", "b"]}
    (root_module / "main.tf").write_text("nonsense")
    broken = stand_in("validate", "-no-color")
    assert broken.returncode == 1
    assert "Error" in broken.stderr


def test_outputs_are_plain_values(root_module: Path) -> None:
    assert terraform.outputs(root_module) == {}
    terraform.run(["init"], root_module)
    terraform.run(["apply", "-auto-approve"], root_module)
    assert terraform.outputs(root_module) == {"answer": {"number": 42, "words": ["a", "b"]}}


def test_a_missing_folder_and_a_failing_command_are_clear(tmp_path: Path, root_module: Path) -> None:
    with pytest.raises(TerraformError, match="not a folder"):
        terraform.outputs(tmp_path / "nothing")
    (root_module / "main.tf").write_text('output "x" {}\n')
    with pytest.raises(TerraformError, match="`terraform init` failed") as caught:
        terraform.run(["init", "-no-color"], root_module)
    assert "Missing required argument" in str(caught.value)


def test_a_named_mirror_is_used(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "example.net" / "hashicorp" / "aws" / "5.100.0").mkdir(parents=True)
    env = terraform.environment({"MME_TF_MIRROR": str(mirror), "TF_CLI_ARGS_init": "-upgrade"})
    assert env["TF_CLI_ARGS_init"] == f"-upgrade -plugin-dir={mirror}"


def test_a_mirror_without_the_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TerraformError, match="holds no hashicorp/aws"):
        terraform.environment({"MME_TF_MIRROR": str(tmp_path)})


def test_a_configuration_of_the_users_own_wins(tmp_path: Path) -> None:
    own = tmp_path / "own.tfrc"
    own.write_text("")
    env = terraform.environment({"TF_CLI_CONFIG_FILE": str(own), "MME_TF_MIRROR": "/nowhere"})
    assert env["TF_CLI_CONFIG_FILE"] == str(own)
    assert "TF_CLI_ARGS_init" not in env


def test_a_configuration_that_is_not_there_is_not_named_to_terraform(tmp_path: Path) -> None:
    assert "TF_CLI_CONFIG_FILE" not in terraform.environment({"TF_CLI_CONFIG_FILE": str(tmp_path / "gone")})
