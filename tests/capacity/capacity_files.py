"""Files that the planner reads."""

from __future__ import annotations

from pathlib import Path


def written(folder: Path, text: str, name: str = "file.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
