"""The fixtures of the tests of the tasks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from task_project import FAKE, Project

from mme.local import LocalAws


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with LocalAws(tmp_path_factory.mktemp("aws"), container=FAKE, iam=False) as aws:
        yield aws


@pytest.fixture
def project(
    tmp_path: Path, server: LocalAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MME_"))]:
        monkeypatch.delenv(name)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MME_AUTHOR", "ada")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials that it found first
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path, server, capsys)
    monkeypatch.setenv("MME_BUCKET", made.bucket)
    made.catalogue("bert", "gpt2")
    return made
