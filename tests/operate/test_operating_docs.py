"""docs/operating.md: what it says to type are tasks and flags that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from invoke import Collection
from invoke.parser import Parser

import mme.tasks

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operating.md").read_text()
LINES = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip().startswith("invoke ")
]


@pytest.mark.parametrize("line", LINES)
def test_what_the_page_says_to_type_can_be_typed(line: str) -> None:
    words = shlex.split(line)[1:]
    parsed = Parser(contexts=Collection.from_module(mme.tasks).to_contexts()).parse_argv(words)
    assert [context.name for context in parsed] == [words[0]]


def test_every_task_of_the_page_is_in_it() -> None:
    assert {"status", "doctor", "logs", "warm", "promote", "watch"} <= {line.split()[1] for line in LINES}
