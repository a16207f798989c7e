"""tests/slow.txt names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_what_is_listed_as_slow_is_there() -> None:
    names = [line.split()[1] for line in (TESTS / "slow.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(names) > 50
    for name in names:
        file, _, function = name.partition("::")
        source = (TESTS / file).read_text()
        assert not function or re.search(rf"^def {function}\(", source, re.M), f"{name} is not there any more"
