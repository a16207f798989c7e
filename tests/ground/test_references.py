"""What comments, docstrings and documents name in this repository is there, under that name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PLACES = ("src/mme", "model_code", "benchmarks", "scripts", "docs", "examples", "tests", "demo")
NAMES = {path.name for place in PLACES for path in (ROOT / place).rglob("*")} | {path.name for path in ROOT.iterdir()}
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in (SOURCE / "mme").rglob("*.py")
}
# Of others, and made up in an example.
OTHERS = {"texts.py", "sagemaker_env.py", "serverless-endpoints.md"}
METRICS = {"mme.client.request.duration"}
READERS = [path for place in ("src/mme", "model_code") for path in sorted((ROOT / place).rglob("*.py"))]
READERS += sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("path", READERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_modules_that_a_text_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = {name.rpartition("/")[2] for name in re.findall(r"(?<![\w/.{}*-])([a-z_0-9/-]+\.(?:py|md))\b", text)}
    assert named - NAMES - OTHERS == set()
    for name in re.findall(r"``(mme(?:\.[A-Za-z_0-9]+)+)``", text):
        module, _, member = name.rpartition(".")
        known = name in MODULES | METRICS or (module in MODULES and re.search(rf"\b{member}\b", source_of(module)))
        assert known, f"there is no {name}"


def source_of(module: str) -> str:
    place = SOURCE / module.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return path.read_text(encoding="utf-8")
