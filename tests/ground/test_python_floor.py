"""What runs in the container uses nothing newer than Python 3.10 (for the rest, mypy goes by pyproject.toml)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = sorted(path for path in (ROOT / "model_code").iterdir() if path.is_dir())
FLOOR = "3.10"
NEWER_MODULES = {"tomllib", "compression", "annotationlib"}
NOT_THERE = re.compile(r"\[(attr-defined|name-defined|syntax|call-arg)\]$")


def newer(folder: Path, cache: Path) -> list[str]:
    """What the files of the folder use of newer versions of Python."""
    options = ["--python-version", FLOOR, "--follow-imports=skip", "--ignore-missing-imports", "--config-file="]
    command = [sys.executable, "-m", "mypy", *options, "--cache-dir", str(cache), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if NOT_THERE.search(line)]
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            lines += [f"{path}: import {name}" for name in names if name.partition(".")[0] in NEWER_MODULES]
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("folder", HANDLERS, ids=lambda folder: folder.name)
def test_handlers_use_nothing_newer(folder: Path, tmp_path: Path) -> None:
    assert newer(folder, tmp_path) == []


@pytest.mark.slow
def test_what_is_newer_is_seen(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    source = "import datetime, tomllib, typing\nfrom enum import StrEnum\nnow = datetime.UTC\nx: typing.Self\n"
    (tmp_path / "m" / "newer.py").write_text(source)
    seen = "\n".join(newer(tmp_path / "m", tmp_path / "cache"))
    assert all(name in seen for name in ("StrEnum", "UTC", "Self", "tomllib")), seen
