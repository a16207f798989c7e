"""Which files travel with a handler: its own, and the modules that it imports from a folder named common."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mme import handler_files
from mme.archive import handler, untar
from mme.catalog import reader
from mme.catalog.spec import ModelSpec, Source
from mme.errors import CatalogError, HandlerError
from mme.packaging.job import PackagingJob

ROOT = Path(__file__).parents[2]
SHARED = {"handler_adapter.py", "handler_common.py", "handler_int8.py"}
SCRIPT = "def model_fn(model_dir):\n    return 1\n\n\ndef predict_fn(data, model):\n    return data\n"


def write(folder: Path, **sources: str) -> Path:
    """A folder with these modules."""
    for name, source in sources.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder


def paths(folder: Path) -> list[str]:
    return [item.path for item in handler_files.collect(folder)]


def origins(folder: Path) -> dict[str, Path]:
    return {item.path: item.origin for item in handler_files.collect(folder)}


@pytest.mark.parametrize("kind", ["embedding", "generation"])
def test_the_handlers_here_get_the_modules_that_they_share(kind: str) -> None:
    folder = ROOT / "model_code" / kind
    own = {path.name for path in folder.iterdir() if path.suffix in (".py", ".json")}
    common = {path.name for path in (ROOT / "model_code" / "common").glob("*.py")}
    assert own | SHARED <= set(paths(folder)) <= own | common
    assert not own & common, "each stands in one place"


def test_imports_are_followed_wherever_they_stand(tmp_path: Path) -> None:
    mine = write(
        tmp_path / "mine",
        inference=f"import one.part as o, json\n\n\ndef late():\n    from two import x\n\n\n{SCRIPT}",
        **{"sub/helper": "try:\n    import three\nexcept ImportError:\n    three = None\n"},
    )
    write(
        tmp_path / "common",
        **{"one/__init__": "from one.part import y\n", "one/part": "import four\n"},
        two="import torch, os.path, missing\n",
        three="from . import unused\nfrom .unused import x\n",
        four="import two, one\n",
        unused="",
        json="",
        os="",
    )
    (tmp_path / "common" / "one" / "table.txt").write_text("1")
    assert paths(mine) == [
        "four.py",
        "inference.py",
        "one/__init__.py",
        "one/part.py",
        "one/table.txt",
        "sub/helper.py",
        "three.py",
        "two.py",
    ]


@pytest.mark.parametrize("own", ["shared.py", "shared/__init__.py", "shared.cpython-312-x86_64-linux-gnu.so"])
def test_a_copy_of_ones_own_takes_precedence(tmp_path: Path, own: str) -> None:
    mine = write(tmp_path / "mine", inference=f"import shared\n{SCRIPT}")
    write(tmp_path / "common", shared="import other\n", other="")
    (mine / own).parent.mkdir(exist_ok=True)
    (mine / own).write_text("")
    assert paths(mine) == sorted(["inference.py", own])


def test_the_common_folder_beside_comes_before_the_projects_own(tmp_path: Path) -> None:
    """A handler outside this repository can import what the handlers here share, and replace any of it."""
    mine = write(tmp_path / "mine", inference=f"import handler_common, handler_int8\n{SCRIPT}")
    shipped = ROOT / "model_code" / "common"
    assert origins(mine)["handler_common.py"] == shipped / "handler_common.py"
    write(tmp_path / "common", handler_common="import helper\n", helper="")
    files = origins(mine)
    assert files["handler_common.py"] == tmp_path / "common" / "handler_common.py"
    assert files["handler_int8.py"] == shipped / "handler_int8.py"
    assert "helper.py" in files


def test_the_installed_package_brings_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a wheel holds it: model_code inside the package, and no repository around it."""
    package = tmp_path / "site-packages" / "mme"
    shutil.copytree(ROOT / "model_code", package / "model_code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(handler_files, "__file__", str(package / "handler_files.py"))
    mine = write(tmp_path / "mine", inference=f"import handler_adapter\n{SCRIPT}")
    assert origins(mine)["handler_adapter.py"] == package / "model_code" / "common" / "handler_adapter.py"
    assert set(paths(package / "model_code" / "embedding")) >= SHARED


def test_a_module_that_links_elsewhere_is_refused(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", inference=f"import shared\n{SCRIPT}")
    write(tmp_path / "elsewhere", shared="")
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "shared.py").symlink_to(tmp_path / "elsewhere" / "shared.py")
    with pytest.raises(HandlerError, match=r"shared\.py is a link that leads out of .*common"):
        handler_files.collect(mine)
    (tmp_path / "common" / "shared.py").unlink()
    write(tmp_path / "elsewhere" / "package", __init__="")
    (tmp_path / "common" / "shared").symlink_to(tmp_path / "elsewhere" / "package")
    with pytest.raises(HandlerError, match="shared is a link that leads out"):
        handler_files.collect(mine)


def test_a_module_of_common_is_checked_like_the_handler(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", inference=f"import shared\n{SCRIPT}")
    script = write(tmp_path / "common", shared="def f(:\n") / "shared.py"
    with pytest.raises(HandlerError, match=rf"{script}:1: this is not valid Python"):
        handler.check(mine)


def test_the_archive_stands_alone_and_notices_every_change(bert: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "code" / "mine", inference=f"import shared\nfrom deeper import VALUE\n{SCRIPT}")
    write(tmp_path / "code" / "common", shared="import deeper\n", deeper="VALUE = 3\n", unused="")
    spec = ModelSpec("bert", Source("folder", "model", bert), handler=mine, task="feature-extraction")
    made = PackagingJob(spec, tmp_path / "dist").package().archive
    assert made.path is not None
    assert PackagingJob(spec, tmp_path / "dist").unchanged() == made
    shutil.move(tmp_path / "code" / "common" / "unused.py", tmp_path / "unused.py")
    assert PackagingJob(spec, tmp_path / "dist").unchanged() == made, "what is not imported is not part of it"
    untar.extract(made.path, tmp_path / "unpacked")
    write(tmp_path / "code" / "common", deeper="VALUE = 4\n")
    assert PackagingJob(spec, tmp_path / "dist").unchanged() is None
    again = PackagingJob(spec, tmp_path / "dist").package().archive
    assert again.digest != made.digest
    assert again.manifest["handler"]["digest"] != made.manifest["handler"]["digest"]
    own = Path(shutil.copytree(tmp_path / "unpacked" / "code", tmp_path / "own"))
    (own / "settings.json").unlink()
    same = PackagingJob(dataclasses.replace(spec, handler=own), tmp_path / "other").package().archive
    assert same.digest == made.digest, "with copies of its own it is the same archive"
    shutil.rmtree(tmp_path / "code")
    code = str(tmp_path / "unpacked" / "code")
    program = "import sys; sys.path.insert(0, sys.argv[1]); import inference; print(inference.VALUE)"
    done = subprocess.run([sys.executable, "-I", "-c", program, code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("3\n", "")


@pytest.mark.parametrize("where", ["imported", "own", "nowhere"])
def test_a_handler_of_ones_own_computes_in_int8_where_it_has_the_module(tmp_path: Path, where: str) -> None:
    source = SCRIPT if where == "nowhere" else f"import handler_int8\n{SCRIPT}"
    mine = write(tmp_path / "mine", inference=source, **({"handler_int8": ""} if where == "own" else {}))
    text = '[models.a]\nsource = "folder:x"\ntask = "feature-extraction"\nhandler = "./mine"\nquantize = "int8"\n'
    (tmp_path / "models.toml").write_text(text, encoding="utf-8")
    if where == "nowhere":
        with pytest.raises(CatalogError, match=r"one with handler_int8\.py"):
            reader.load(tmp_path / "models.toml")
    else:
        (model,) = reader.load(tmp_path / "models.toml").models
        assert (model.handler, model.quantize) == (mine, "int8")


def test_common_is_not_a_handler(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('[models.a]\nsource = "folder:x"\nhandler = "common"\n', encoding="utf-8")
    with pytest.raises(CatalogError, match="there is no handler 'common'"):
        reader.load(tmp_path / "models.toml")


@pytest.mark.parametrize(("kind", "int8"), [("embedding", True), ("generation", True), ("reranking", False)])
def test_which_handlers_that_come_along_compute_in_int8(kind: str, int8: bool) -> None:
    """It goes by what they import, also by way of modules that all of them have, such as the engine's."""
    folder = next(root / kind for root in handler_files.shipped_roots() if (root / kind).is_dir())
    assert handler_files.computes_in_int8(folder) == int8
