"""docs/api.md: its examples run, one after the other, and what it calls public is there and documented."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any

import endpoints_here
import pytest

from mme.archive import write
from mme.catalog.spec import ModelSpec, Source
from mme.local import LocalAws
from mme.packaging import records

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ROWS = re.findall(r"^\| ((?:`mme[\w.]*`(?:, )?)+) \| (.*) \|$", TEXT, re.MULTILINE)


def test_what_is_called_public_is_there_and_has_a_docstring() -> None:
    assert len(ROWS) >= 9
    for modules, what in ROWS:
        names = re.findall(r"`(mme[\w.]*)`", modules)
        loaded = [importlib.import_module(name) for name in names]
        assert all(module.__doc__ for module in loaded)
        for name in re.findall(r"`(\w+)(?:\([^)]*\))?`", what):
            (thing, *_) = [getattr(module, name) for module in loaded if hasattr(module, name)] or [None]
            if thing is None:
                assert name in ("Catalog", "ModelSpec", "package"), f"{modules} has no {name}"
            elif inspect.isfunction(thing) or inspect.isclass(thing):
                assert inspect.getdoc(thing), f"{modules}: {name} explains nothing"


def test_its_examples_run(
    tmp_path: Path, aws_env: LocalAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bucket = f"api-{os.urandom(4).hex()}"
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.json").write_text("{}")
    (tmp_path / "models.toml").write_text('[models.bert]\nsource = "folder:snapshot"\nhandler = "embedding"\n')
    made = write.build(ModelSpec("bert", Source("folder", "snapshot")), snapshot, tmp_path / "dist")
    records.note(tmp_path / "dist", made)
    endpoints_here.create(aws_env, bucket)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block.replace("my-bucket", bucket).replace("my-endpoint", bucket), names)
    printed = capsys.readouterr().out
    assert "bert folder:snapshot embedding" in printed
    assert f"bert uploaded {made.target}" in printed
    assert "nightly trained on March's data" in printed
    assert names["target"] == made.target
    assert names["channel"].revision == 1
    assert "'target': " in printed
    assert "http://127.0.0.1:" in printed
