"""Modules that are imported before the fork are found where a model has the very same, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mme.container.workers.shipped import Shipped

SOURCES = {
    "common/zz_base.py": "import json\nVALUE = []\n",
    "common/zz_middle.py": "import zz_base\n",
    "common/zz_unused.py": "raise SystemExit('nobody imports it')\n",
    "one/inference.py": "import zz_middle\nimport zz_one\nNAME = 'one'\n",
    "one/zz_one.py": "import csv\n",
    "two/inference.py": "import zz_base\nNAME = 'two'\n",
    "absent/inference.py": "import zz_library_that_nobody_has\n",
}
ONE = ["inference", "zz_base", "zz_middle", "zz_one"]


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    before = dict(sys.modules)
    for name in ONE:
        sys.modules.pop(name, None)
    yield
    for name in ONE:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, source in SOURCES.items():
        target = tmp_path / "model_code" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source)
    return tmp_path / "model_code"


@pytest.fixture
def shipped(root: Path) -> Shipped:
    made = Shipped()
    made.keep([root.parent / "is-not-there", root])
    return made


@pytest.fixture
def model(root: Path, tmp_path: Path) -> Path:
    """A model with the handler ``one``, as an archive brings it."""
    code = tmp_path / "model" / "code"
    code.mkdir(parents=True)
    for folder, names in (("common", ("zz_base", "zz_middle")), ("one", ("inference", "zz_one"))):
        for name in names:
            (code / f"{name}.py").write_bytes((root / folder / f"{name}.py").read_bytes())
    return tmp_path / "model"


def test_nothing_is_found_before_it_is_adopted(shipped: Shipped, root: Path) -> None:
    assert not [name for name in ONE if name in sys.modules]
    assert not list(root.rglob("__pycache__"))
    assert str(root) not in "".join(sys.path)


def test_equal_modules_are_found_imported_under_the_models_own_names(shipped: Shipped, model: Path) -> None:
    assert shipped.adopt(str(model)) == ONE
    import inference
    import zz_base

    assert inference.NAME == "one"
    assert inference.__file__ == inference.__spec__.origin == str(model / "code" / "inference.py")
    assert inference.zz_middle.zz_base is zz_base is sys.modules["zz_base"]


def test_what_was_adopted_is_let_go(shipped: Shipped, model: Path) -> None:
    shipped.adopt(str(model))
    sys.modules["zz_one"] = sys  # somebody else's
    shipped.let_go()
    assert [name for name in ONE if name in sys.modules] == ["zz_one"]


def test_handlers_have_the_common_modules_together(shipped: Shipped, root: Path, model: Path) -> None:
    (model / "code" / "inference.py").write_bytes((root / "two" / "inference.py").read_bytes())
    assert shipped.adopt(str(model)) == ONE
    assert sys.modules["inference"].NAME == "two"
    assert sys.modules["inference"].zz_base is sys.modules["zz_middle"].zz_base


@pytest.mark.parametrize(
    ("path", "source", "left"),
    [
        ("code/zz_base.py", "VALUE = [1]\n", ["zz_one"]),
        ("code/zz_middle.py", "import zz_base  # mine\n", ["zz_base", "zz_one"]),
        ("code/inference.py", "import zz_middle  # mine\n", ["zz_base", "zz_middle", "zz_one"]),
        ("code/csv.py", "", ["zz_base", "zz_middle"]),  # a library that zz_one imports
        ("json.py", "", ["zz_one"]),  # the model's folder is on the path, too
        ("code/json/__init__.py", "", ["zz_one"]),
        ("code/zz_base/__init__.py", "", ["zz_one"]),  # goes before zz_base.py
        ("code/zz_middle.so", "", ["zz_base", "zz_one"]),
        ("code/unrelated.py", "", ONE),
        ("csv", "a file that cannot be imported", ONE),
    ],
)
def test_what_depends_on_something_of_the_models_own_is_left_to_it(
    shipped: Shipped, model: Path, path: str, source: str, left: list[str]
) -> None:
    (model / path).parent.mkdir(exist_ok=True)
    (model / path).write_text(source)
    assert shipped.adopt(str(model)) == left
    assert [name for name in ONE if name in sys.modules] == left


def test_a_module_that_is_no_file_is_left_alone(shipped: Shipped, model: Path) -> None:
    path = model / "code" / "zz_middle.py"
    path.unlink()
    path.mkdir()
    assert shipped.adopt(str(model)) == ["zz_base", "zz_one"]


def test_a_model_without_code_has_nothing_of_ours(shipped: Shipped, tmp_path: Path) -> None:
    assert shipped.adopt(str(tmp_path)) == []


@pytest.mark.parametrize("there", [True, False])
def test_no_handler_brings_in_what_is_not_to_be_imported_before_the_forks(
    root: Path, model: Path, there: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """onnxruntime, which handlers go without: left out of MME_PRELOAD it stays out, and where it is not, so be it."""
    for name in ("zz_base.py", "zz_middle.py"):
        (root / "common" / name).unlink()
        (model / "code" / name).unlink()
    for path in (root / "one" / "inference.py", model / "code" / "inference.py"):
        path.write_text("try:\n    import onnxruntime\nexcept ImportError:\n    onnxruntime = None\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    libraries = tmp_path / "libraries"
    if there:
        (libraries / "onnxruntime").mkdir(parents=True)
        (libraries / "onnxruntime" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(libraries)])
    made = Shipped()
    made.keep([root])
    assert ("onnxruntime" in sys.modules) is False
    assert made.adopt(str(model)) == ([] if there else ["inference"])
