"""What the tests ask of a running container, and how they compare answers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mme.runner.process import Container, Reply
from mme.runner.stock import StockMissing, find_java, venv_python


@dataclasses.dataclass
class Server:
    """A running container with what the tests ask of it."""

    container: Container
    log: list[str]

    def load(self, name: str, folder: Path) -> Reply:
        body = json.dumps({"model_name": name, "url": str(folder)}).encode()
        headers = {"Content-Type": "application/json"}
        return self.container.request("POST", "/models", body=body, headers=headers, timeout=120)

    def invoke(self, name: str, body: bytes, content_type: str, accept: str = "application/json") -> Reply:
        headers = {"Content-Type": content_type, "Accept": accept}
        return self.container.request("POST", f"/models/{name}/invoke", body=body, headers=headers, timeout=120)


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> bool:
    """Equal, with numbers that are not whole as near as this."""
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return abs(ours - theirs) <= tolerance
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(close(ours[key], theirs[key], tolerance) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(close(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    return type(ours) is type(theirs) and ours == theirs


def skip_without_stock() -> None:
    """Skips the test, and says why, where the stock stack cannot be run."""
    try:
        venv_python()
        find_java()
    except StockMissing as reason:
        pytest.skip(str(reason))
