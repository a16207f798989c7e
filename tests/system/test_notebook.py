"""The notebook: its cells are run against the local AWS, and what is kept in it was printed by them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "notebooks" / "multi_model_endpoint.ipynb"
HERE = re.compile(r"(?<![\w.])/(?:work|root|tmp|home|Users|var|opt/(?!ml/))[\w/.-]*|\b[A-Z]:\\")
"""What a path of somebody's machine looks like."""


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell: Any) -> str:
    """What a cell printed, its value and errors included, without pictures."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        parts.append(output.get("data", {}).get("text/plain", ""))
        parts += output.get("traceback", [])
    return "\n".join(parts)


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)


def test_what_is_kept_was_printed_by_one_run_from_start_to_end() -> None:
    cells = code(read())
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    words = "\n".join(map(said, cells))
    assert "Apply complete!" in words
    assert "Destroy complete!" in words
    assert pictures(read()) >= 4
    assert NOTEBOOK.stat().st_size < 300_000


def test_nothing_in_it_is_of_one_machine() -> None:
    notebook = read()
    assert [HERE.findall(said(cell)) for cell in code(notebook)] == [[] for _ in code(notebook)]
    assert [HERE.findall(cell.source) for cell in notebook.cells] == [[] for _ in notebook.cells]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert {name for cell in notebook.cells for name in cell.metadata} <= {"execution"}  # when it ran


@pytest.mark.parametrize("path", ["/work/x", "/home/ada/models", "/tmp/abc", "C:\\Users"])
def test_a_path_of_a_machine_is_seen(path: str) -> None:
    assert HERE.findall(f"it is in {path}.")
    assert not HERE.findall("models/ and https://example.com/home/x and a/tmp/b and /opt/ml/metadata")


def test_every_cell_runs_against_the_local_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_everywhere: Path
) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    for source in REPOSITORY.glob("*.tf"):
        shutil.copy(source, clone)
    leftovers = shutil.ignore_patterns(".terraform*", "*.tfstate*", "__pycache__")
    for folder in ("demo", "examples/minimal", "model_code", "notebooks"):
        shutil.copytree(REPOSITORY / folder, clone / folder, ignore=leftovers)
    for name in [name for name in os.environ if name.startswith(("AWS_", "MME_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = read()
    for cell in code(notebook):
        cell.outputs = []
    # The commands, the local AWS and the containers are forked from a python that has imported the libraries.
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import sys; sys.executable = {str(warm_everywhere)!r}"))
    where = {"metadata": {"path": str(clone / "notebooks")}}
    client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources=where)
    client.execute()
    words = "\n".join(map(said, code(notebook)))
    assert "Apply complete!" in words
    assert "Destroy complete!" in words
    assert pictures(notebook) == pictures(read())
    shares = re.search(r"\{'[0-9a-f]{12}': (\d+), '[0-9a-f]{12}': (\d+)\}", words)
    assert shares is not None
    # 200 callers, 80 to 20; the split goes by a hash of their keys and of the digests.
    assert sum(map(int, shares.groups())) == 200
    assert 15 <= min(map(int, shares.groups())) <= 70
    assert HERE.findall(words) == []
    assert not (clone / ".local" / "notebook").exists()


def test_a_cell_that_fails_fails_the_run(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('broken')")])
    with pytest.raises(CellExecutionError, match="broken"):
        NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
