"""Hostile archives and killed uploads, as many as the suite has time for. More: ``python -m benchmarks.hostile``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and measures as Linux counts")


def run(part: str, count: int, folder: Path) -> Any:
    command = [sys.executable, "-m", "benchmarks.hostile", "--only", part, f"--{part}", str(count)]
    done = subprocess.run(
        [*command, "--json", str(folder / "figures")], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "figures").read_text())[part]


@linux
@pytest.mark.slow
def test_mutated_archives_neither_get_out_nor_take_the_machine(tmp_path: Path) -> None:
    figures = run("archives", 160, tmp_path)
    assert figures["escapes"] == 0
    assert set(figures["ends"]) == {"unpacked", "refused"}
    assert figures["most memory, MB"] < 100


@linux
@pytest.mark.slow
def test_uploads_that_are_killed_leave_nothing_half_and_nothing_behind(tmp_path: Path) -> None:
    figures = run("uploads", 8, tmp_path)
    assert (figures["half visible"], figures["orphaned"]) == (0, 0)
    assert sum(figures["the next run"].values()) == 8
