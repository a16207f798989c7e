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
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]
CODE = re.compile(r"(?ms)^ *```.*?^ *```|`[^`\n]*`")


@pytest.mark.parametrize("path", READERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_modules_that_a_text_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = {name.rpartition("/")[2] for name in re.findall(r"(?<![\w/.{}*-])([a-z_0-9/-]+\.(?:py|md))\b", text)}
    assert named - NAMES - OTHERS == set()
    for name in re.findall(r"``(mme(?:\.[A-Za-z_0-9]+)+)``", text):
        module, _, member = name.rpartition(".")
        known = name in MODULES | METRICS or (module in MODULES and re.search(rf"\b{member}\b", source_of(module)))
        assert known, f"there is no {name}"


def headings_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"(?m)^#+ (.+)$", text)]
    anchors = {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}
    return anchors | set(re.findall(r'<a (?:name|id)="([^"]+)"', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    wrong = []
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        place = page.parent / name if name else page
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in headings_of(place)):
            wrong.append(target)
    assert wrong == []


def source_of(module: str) -> str:
    place = SOURCE / module.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return path.read_text(encoding="utf-8")
