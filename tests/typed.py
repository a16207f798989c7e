"""``invoke WORDS`` as a user types it, run in this process."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from invoke import Collection, Program

import mme.tasks


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> Result:
    """What it ends with and prints. A traceback is no answer to anybody's mistake, and fails the test."""
    capsys.readouterr()
    program = Program(namespace=Collection.from_module(mme.tasks))
    try:
        program.run(["invoke", *words])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    assert not re.search(r"^Traceback", err, re.MULTILINE)
    return Result(code, out, err)
