"""Which builder `make image` takes, what it gives to the build, and what it lets into a container."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from image_script import SCRIPT, image

from mme.runner import process

Program = Callable[[str, str], None]

PIP = {
    "index-url": "https://user:secret@index.example/simple",
    "extra-index-url": "file:///nowhere/simple https://more.example/simple",
    "cert": "/etc/own-ca.pem",
}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """``program("docker", "exit 1")`` puts a shell script of that name on PATH, where there is nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("IMAGE_BUILDER", raising=False)
    monkeypatch.delenv("BUILDAH_ISOLATION", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def make(name: str, source: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{source}\n")
        (folder / name).chmod(0o755)

    return make


def test_the_first_that_works_is_taken(program: Program) -> None:
    program("buildah", "exit 0")
    assert image.builder() == "buildah"
    program("podman", "exit 0")
    assert image.builder() == "podman"
    program("docker", "exit 0")
    assert image.builder() == "docker"


def test_a_client_without_an_engine_is_passed_over(program: Program) -> None:
    program("docker", "echo Cannot connect to the daemon >&2; exit 1")
    program("podman", "exit 0")
    assert image.builder() == "podman"


def test_where_none_works_each_is_named_with_the_reason(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program("docker", "echo Cannot connect to the daemon >&2; exit 1")
    program("buildah", "exit 0")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(image.ImageError) as refused:
        image.builder()
    said = str(refused.value)
    for words in ("docker: Cannot connect to the daemon", "podman: not installed", "buildah: ", "root", "install"):
        assert words in said


def test_a_builder_that_is_asked_for_is_taken_or_refused(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program("docker", "exit 0")
    program("podman", "exit 0")
    monkeypatch.setenv("IMAGE_BUILDER", "podman")
    assert image.builder() == "podman"
    monkeypatch.setenv("IMAGE_BUILDER", "buildah")
    with pytest.raises(image.ImageError, match=r"buildah.*not installed"):
        image.builder()
    monkeypatch.setenv("IMAGE_BUILDER", "kaniko")
    with pytest.raises(image.ImageError, match="docker, podman, buildah"):
        image.builder()


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_what_pip_is_configured_to_reaches_the_build_as_a_secret(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    words = image.build_command(name, "mme", ["--no-cache"], {**PIP, "find-links": str(wheels)}, tmp_path)
    assert words[:2] == [name, "build"]
    assert words[-2:] == ["--no-cache", "."]
    assert not any("secret@" in word for word in words), "a build's words are in the image's history"
    assert "id=pip.cert,src=/etc/own-ca.pem" in words
    given = (tmp_path / "pip.conf").read_text()
    assert f"id=pip.conf,src={tmp_path / 'pip.conf'}" in words
    assert "index-url = https://user:secret@index.example/simple" in given
    assert "cert = /run/secrets/pip.cert" in given
    if name == "docker":
        assert str(wheels) in capsys.readouterr().out, "it says what docker cannot be given"
        assert "--volume" not in words
        assert "find-links" not in given
        assert "extra-index-url = https://more.example/simple\n" in given
    else:
        assert f"{wheels}:{wheels}:ro" in words


def test_without_a_configuration_nothing_is_given(tmp_path: Path) -> None:
    assert image.build_command("docker", "mme", [], {}, tmp_path) == ["docker", "build", "--tag", "mme", "."]


def test_an_index_in_a_folder_brings_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "an index" / "simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    configured = {
        "extra-index-url": f"file://{tmp_path}/an%20index/simple",
        "find-links": f"{tmp_path / 'wheels'} {tmp_path / 'gone'}",
    }
    assert image.local_folders(configured) == [str(tmp_path / "an index"), str(tmp_path / "wheels")]


def test_pips_configuration_is_read_with_the_environment_before_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://a.example\ncert = /a.pem\n[install]\nindex-url = https://b.example\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_CERT", "/b.pem")
    read = image.pip_configuration()
    assert (read["index-url"], read["cert"]) == ("https://b.example", "/b.pem")


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_a_container_gets_what_the_platform_gives_and_is_reached_from_here_alone(name: str, tmp_path: Path) -> None:
    environ = {"SAGEMAKER_BIND_TO_PORT": "8123", "MME_CPUS": "1", "AWS_SECRET_ACCESS_KEY": "x", "HOME": "/root"}
    words = image.run_command(name, "mme:1", tmp_path, environ)
    assert words[:3] == [name, "run", "--rm"]
    assert words[-1] == "mme:1"
    assert {"SAGEMAKER_BIND_TO_PORT=8123", "MME_CPUS=1", "MME_CONTAINER_HOST=127.0.0.1"} <= set(words)
    assert f"{tmp_path}:{tmp_path}" in words
    assert not any("AWS_SECRET" in word or word.startswith("HOME=") for word in words)


def test_the_tests_containers_are_started_with_the_builder_and_the_engine_of_the_build(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner hides the home folder and most variables, by which a builder finds its engine and its images."""
    seen = tmp_path / "seen"
    program("docker", "exit 0")
    program("podman", f'[ "$1" = info ] || exec env > {shlex.quote(str(seen))}')
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("HOME", str(tmp_path / "a home"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///own.sock")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    work = tmp_path / "work"
    work.mkdir()
    command = shlex.join(image.test_command("podman", "mme:1", tmp_path))
    running = process.Container(command, work, {}, lambda line: None, guarded=False)
    try:
        assert running.process.wait(60) == 0
    finally:
        running.stop()
    given = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert given["HOME"] == str(tmp_path / "a home")
    assert given["DOCKER_HOST"] == "unix:///own.sock"
    assert "AWS_SECRET_ACCESS_KEY" not in given


@pytest.mark.parametrize("words", [[], ["build"], ["run", "mme"], ["push", "mme"]])
def test_wrong_words_are_answered_with_the_usage(words: list[str]) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_where_nothing_builds_make_image_ends_with_the_reason(program: Program) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "build", "mme"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "docker: not installed" in done.stderr
    assert "Traceback" not in done.stderr
