"""The fixtures of the tests that look after an endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from doctor_tools import Stack
from operate_tools import Corner

from mme.local import LocalAws


@pytest.fixture
def corner(aws_env: LocalAws, capsys: pytest.CaptureFixture[str]) -> Iterator[Corner]:
    made = Corner(aws_env, capsys)
    yield made
    made.close()


@pytest.fixture
def stack(corner: Corner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stack:
    return Stack(corner, monkeypatch, tmp_path)
