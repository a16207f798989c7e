"""What a further model's process has for itself: what it made, and not what it merely looked at.

A page that a process shares with its parent becomes its own when it writes there, and counting a reference is writing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from container_process import Container, wait_until

from mme import handler_files

ROOT = Path(__file__).resolve().parents[2]
MB = 1024 * 1024
# Measured: 7.2 MB. Each of the ways to lose it that there have been (to go through sys.modules, to have Python forget
# what it knows of all folders that it imported from, to import the handler anew) takes 4 to 8 MB more.
MOST = 10 * MB


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell")
def test_a_further_model_has_few_pages_of_its_own(start: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import tiny_models

    container: Container = start(MME_PRELOAD="torch,transformers,onnxruntime")
    for number in range(5):
        folder = tiny_models.bert(tmp_path / f"m{number}", seed=number)
        handler_files.copy_handler(ROOT / "model_code" / "embedding", folder / "code")
        assert container.load(f"m{number}", folder).status == 200, container.log()
    events = wait_until(lambda: container.events("load") if len(container.events("load")) == 5 else None)
    assert [event["engine"] for event in events] == ["onnxruntime"] * 5
    # The first makes what the others find; from the third on, all has been shared that can be.
    assert max(event["private"] for event in events[2:]) < MOST, [event["private"] for event in events]
    assert all("handler" in event["shared"] for event in events)
    assert "could not be" not in container.log()  # of what the parent tries before it forks
    # A module that is not as it comes with the container is the model's own, and so is what it means for others.
    folder = tiny_models.bert(tmp_path / "changed")
    handler_files.copy_handler(ROOT / "model_code" / "embedding", folder / "code")
    with (folder / "code" / "handler_common.py").open("a") as file:
        file.write("\n\ndef name_of(request, place):\n    return 'as this model calls it'\n")
    assert container.load("changed", folder).status == 200, container.log()
    long = json.dumps({"inputs": "house " * 40, "parameters": {"truncate": False}})
    for name, said in (("m0", "inputs"), ("changed", "as this model calls it")):
        reply = container.invoke(name, long)
        assert (reply.status, said in reply.json()["message"]) == (400, True), reply.body
