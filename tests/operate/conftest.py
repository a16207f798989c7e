"""The fixture of the tests that look after an endpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from operate_tools import Corner

from mme.local import LocalAws


@pytest.fixture
def corner(aws_env: LocalAws, capsys: pytest.CaptureFixture[str]) -> Iterator[Corner]:
    made = Corner(aws_env, capsys)
    yield made
    made.close()
