"""The platform that benchmarks/serving.py puts in front of a server whose models do not all fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from container_process import Container

REPOSITORY = Path(__file__).resolve().parents[2]


def test_models_that_do_not_fit_are_loaded_when_they_are_asked_for(
    start: Callable[..., Container], handler: Callable[..., Path]
) -> None:
    container = start()
    source = "def model_fn(folder): return folder.rpartition('/')[2]\ndef predict_fn(data, model): return [data, model]"
    folders = {f"m{number}": str(handler(f"m{number}", source)) for number in range(6)}
    plan: dict[str, Any] = {"port": container.port, "paths": [], "bodies": ['"a"'], "clients": 3, "zipf": True}
    plan |= {"seconds": 2.0, "folders": folders, "here": [], "room": 4}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._serving_clients"],
        input=json.dumps(plan), capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answered = len(json.loads(done.stdout)["seconds"])
    assert answered > len(folders)
    assert 1 <= len(container.names()) <= 4
    assert container.metric("mme_unloads_total") > 0
    assert container.metric('mme_answers_total{status="200"}') == answered
