"""What benchmarks/gpu.py tries on a GPU, quick: where there is one, and elsewhere against a card that is made up."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def cuda() -> bool:
    if importlib.util.find_spec("pynvml") is None:
        return False
    import torch

    return torch.cuda.is_available()


on_a_card = pytest.mark.skipif(not cuda(), reason="there is no GPU that torch and nvidia-ml-py see")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def run(device: str, folder: Path, *more: str) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", device, "--quick", "--without", "stock", *more]
    done = subprocess.run([*command, "--out", str(folder)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (folder / "gpu.txt").read_text() == done.stdout
    return done.returncode, json.loads((folder / "gpu.json").read_text())["rows"], done.stdout + done.stderr


def check(device: str, part: str, folder: Path) -> None:
    code, rows, said = run(device, folder, "--minutes", "20", "--only", part)
    assert code == 0, said
    assert rows
    assert not [row for row in rows if row.get("good") is False], said


@on_a_card
@linux
@pytest.mark.parametrize("part", ["correct", "load", "memory", "full", "turns"])
def test_on_a_real_card(tmp_path: Path, part: str) -> None:
    check("cuda", part, tmp_path)


@linux
@pytest.mark.parametrize("part", ["full", "turns"])
def test_on_a_card_that_is_made_up(tmp_path: Path, part: str) -> None:
    check("cpu", part, tmp_path)


@linux
def test_what_runs_over_is_cut_and_said_with_what_there_is(tmp_path: Path) -> None:
    code, rows, said = run("cpu", tmp_path, "--minutes", "0.01", "--only", "correct")
    assert code == 1
    assert [row["what"] for row in rows if "cut" in row["figure"]] == ["models"], said
    assert [row["what"] for row in rows if "time is over" in row["figure"]] == ["correct"], said


@pytest.mark.skipif(cuda(), reason="there is a GPU")
def test_without_a_card_it_says_so_and_is_left_out_of_a_run_of_all_benchmarks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
    for more, code in (([], 2), (["--json", str(tmp_path / "all" / "gpu.json")], 0)):
        done = subprocess.run([*command, *more], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, "")
        assert "GPU" in done.stdout or "missing" in done.stdout
    assert "left out" in json.loads((tmp_path / "all" / "gpu.json").read_text())
