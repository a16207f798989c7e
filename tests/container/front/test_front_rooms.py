"""What the front may import: neither torch nor anything of the workers. Read from the source, and from a run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "src"
FRONT = sorted((SOURCE / "mme" / "container" / "front").glob("*.py"))
FORBIDDEN = ("torch", "transformers", "numpy", "safetensors", "mme.container.workers")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


@pytest.mark.parametrize("path", FRONT, ids=lambda path: path.stem)
def test_a_module_of_the_front_imports_nothing_heavy_and_nothing_outside_the_container(path: Path) -> None:
    names = imported(path)
    bad = {name for name in names for root in FORBIDDEN if name == root or name.startswith(f"{root}.")}
    assert bad == set()
    assert {name for name in names if name.startswith("mme.") and not name.startswith("mme.container")} == set()


def test_the_front_as_it_runs_has_none_of_it() -> None:
    modules = [f"mme.container.front.{path.stem}" for path in FRONT if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}\nprint([name for name in sys.modules if name.startswith({FORBIDDEN!r})])"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_the_owners_do_not_import_each_other_in_a_circle() -> None:
    """Admission, requests and the scheduler know nothing of processes or of the hub; nobody but routes and the
    metrics' text knows the hub."""
    for stem in ("admission", "requests", "scheduler", "models", "families", "parent_link", "weightpool"):
        names = imported(next(path for path in FRONT if path.stem == stem))
        assert not {
            name for name in names if name.startswith(("mme.container.front.processes", "mme.container.front.hub"))
        }
    for path in FRONT:
        if path.stem not in ("routes", "exposition"):
            assert "mme.container.front.hub" not in imported(path), path.name
