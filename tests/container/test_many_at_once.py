"""Many models at once: loads beside traffic, cores divided, and processes that are killed while all are busy."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container, background, processes, wait_until
from killing import SOURCE, Clients, kill_one

Make = Callable[..., Path]
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

# Leaves a file when it is loaded, or computes, and waits for another one.
WAITS = """
    import os, pathlib, time
    import torch
    def wait(folder, begun, go):
        (folder / begun).touch()
        while not (folder.parent / go).exists(): time.sleep(0.005)
    def model_fn(d):
        folder = pathlib.Path(d)
        if folder.name.startswith("slow"): wait(folder, "loading", "go-on-loading")
        return folder
    def predict_fn(data, folder):
        if data == "wait": wait(folder, "computing", "go-on-computing")
        return torch.get_num_threads()
"""


def test_loads_go_on_beside_traffic_and_only_so_many_at_a_time(start: Callable[..., Container], handler: Make) -> None:
    container = start(MME_MAX_LOADS="2")
    assert container.load("quick", handler("quick", WAITS)).status == 200
    folders = [handler(f"slow-{number}", WAITS) for number in range(5)]
    loads = [background(container.load, folder.name, folder) for folder in folders]
    wait_until(lambda: sum((folder / "loading").exists() for folder in folders) == 2)
    for _ in range(20):
        assert container.invoke("quick").status == 200
        assert container.get("/ping").status == 200
    assert container.names() == ["quick"], "a model is listed once it can be called"
    assert sum((folder / "loading").exists() for folder in folders) == 2
    (folders[0].parent / "go-on-loading").touch()
    assert [load.result().status for load in loads] == [200] * 5
    assert sorted(container.names()) == ["quick", *(folder.name for folder in folders)]


def test_models_that_compute_at_the_same_time_divide_the_threads(
    start: Callable[..., Container], handler: Make
) -> None:
    container = start(MME_CPUS="4", MME_PRELOAD="torch")
    folders = [handler(name, WAITS) for name in ("one", "two")]
    for folder in folders:
        assert container.load(folder.name, folder).status == 200
    assert container.invoke("one", '"alone"').json() == 4
    held = background(container.invoke, "one", '"wait"')
    wait_until((folders[0] / "computing").exists)
    assert container.invoke("two", '"beside"').json() == 2
    (folders[0].parent / "go-on-computing").touch()
    assert held.result().status == 200
    assert container.invoke("two", '"alone again"').json() == 4


@linux
def test_kills_at_random_under_load(start: Callable[..., Container], handler: Make) -> None:
    """Models are killed all the time, and once the parent of all: each request is answered, every 200 with its own
    result, a model that has gone is loaded again as the platform would, and in the end all is well."""
    container = start()
    folders = {name: handler(name, SOURCE) for name in ("a", "b", "c", "d")}
    for name, folder in folders.items():
        assert container.load(name, folder).status == 200
    choice = random.Random(0)
    with Clients(container, folders) as clients:
        for number in range(60):
            time.sleep(0.05)
            if number == 30:
                kill_one(container, "mme-parent", choice)
            kill_one(container, "mme-model", choice)
    assert (clients.lost, clients.misrouted, clients.wrong) == ([], [], [])
    assert min(clients.seen[200], clients.seen[500]) > 0
    container.wait_healthy()
    for name, folder in folders.items():
        assert container.load(name, folder).status in (200, 409)
        assert container.invoke(name, json.dumps("x")).json() == [name, "x"]
    assert container.metric("mme_parent_starts_total") == 2
    assert len(processes(container.process.pid)) == 1 + len(folders)
