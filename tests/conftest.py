"""Fixtures that more than one room of the house uses."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import tiny_models

from mme.local import LocalAws

FAKE_CONTAINER = shlex.join([sys.executable, str(Path(__file__).parent / "local" / "fake_container.py")])
"""The command of a container that keeps the contract, hosts anything and starts at once (see its docstring)."""


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """A shell that runs this in the background has interrupts ignored, which programs inherit; some tests send them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def local_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    """One local AWS for the whole run, whose endpoints run the fake container. Make your names unique."""
    folder = tmp_path_factory.mktemp("local-aws")
    with LocalAws(folder / "data", container=FAKE_CONTAINER) as aws:
        yield aws


@pytest.fixture
def aws_env(local_aws: LocalAws, monkeypatch: pytest.MonkeyPatch) -> LocalAws:
    """The environment of this process turned to the local AWS, for code that makes its own clients."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in local_aws.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it would remember an earlier test's credentials
    return local_aws


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own, to be really filled. Only root may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=200", "tmpfs", str(disk)], capture_output=True, text=True
        )
        problem = made.stderr.strip() if made.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        pytest.skip(f"a small file system cannot be mounted here: {problem}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.gpt2(tmp_path_factory.mktemp("models") / "gpt2")
