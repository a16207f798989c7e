"""scripts/image.py, which is a program, as a module for the tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "image.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("image_script_module", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


image = _load()
