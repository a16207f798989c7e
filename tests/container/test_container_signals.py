"""A model's process that somebody ends, by either signal, in each phase of its life: who waits gets an answer, nothing
of it stays, and the same model can be loaded again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_process import Container, background, processes, wait_until

HANDLER = """
    import os, time

    def mark(path):
        with open(path + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".new", path)

    class Offer:
        bytes = 1 << 20

        def __init__(self, folder):
            self.folder = folder

        def begin(self):
            mark(self.folder + "/began")
            while os.path.exists(self.folder + "/wait"):
                time.sleep(0.005)

        def end(self):
            pass

    def model_fn(folder):
        mark(folder + "/pid")
        while os.path.exists(folder + "/wait"):
            time.sleep(0.005)
        return folder

    def busy_fn(model):
        return Offer(model)

    def predict_fn(data, model):
        if data == "hold":
            mark(model + "/held")
            time.sleep(60)
        return data
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
both = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])


def written(path: Path) -> int:
    """The process id that the handler writes there, once it has."""
    return int(wait_until(lambda: path.read_text() if path.exists() else ""))


def loads_again(container: Container, folder: Path) -> None:
    (folder / "wait").unlink(missing_ok=True)
    wait_until(lambda: container.invoke("m", '"x"').status == 404)
    assert container.names() == []
    assert container.load("m", folder).status == 200, container.log()
    assert container.invoke("m", '"x"').json() == "x"


@both
def test_while_it_loads(container: Container, handler: Callable[..., Path], number: signal.Signals) -> None:
    folder = handler("m", HANDLER, wait="")
    loading = background(container.load, "m", folder)
    os.kill(written(folder / "pid"), number)
    reply = loading.result()
    assert (reply.status, f"while it loaded (signal {int(number)})" in reply.json()["message"]) == (500, True)
    loads_again(container, folder)


@both
def test_while_it_computes(container: Container, handler: Callable[..., Path], number: signal.Signals) -> None:
    folder = handler("m", HANDLER)
    assert container.load("m", folder).status == 200
    asked = [background(container.invoke, "m", '"hold"')]
    pid = written(folder / "held")
    asked += [background(container.invoke, "m", '"x"') for _ in range(2)]
    os.kill(pid, number)
    replies = [one.result() for one in asked]
    assert (replies[0].status, f"signal {int(number)}" in replies[0].json()["message"]) == (500, True)
    assert {reply.status for reply in replies} <= {500, 404}
    loads_again(container, folder)


@both
def test_while_it_has_nothing_to_do(container: Container, handler: Callable[..., Path], number: signal.Signals) -> None:
    folder = handler("m", HANDLER)
    assert container.load("m", folder).status == 200
    os.kill(written(folder / "pid"), number)
    loads_again(container, folder)


@both
def test_while_it_comes_back(start: Any, handler: Callable[..., Path], number: signal.Signals) -> None:
    folder = handler("m", HANDLER)
    container: Container = start(MME_PARK_AFTER="0.3")
    assert container.load("m", folder).status == 200
    wait_until(lambda: len(processes(container.process.pid)) == 1)  # the parent alone
    (folder / "pid").unlink()
    (folder / "wait").touch()
    asked = [background(container.invoke, "m", '"x"') for _ in range(2)]
    os.kill(written(folder / "pid"), number)
    for one in asked:
        assert one.result().status in (404, 500)
    loads_again(container, folder)


@both
def test_while_it_takes_more_memory(start: Any, handler: Callable[..., Path], number: signal.Signals) -> None:
    """Another model that is busy takes its turn then."""
    container: Container = start(MME_BUSY_ANSWERS="0.01")
    folders = {name: handler(name, HANDLER) for name in ("m", "other")}
    for name, folder in folders.items():
        assert container.load(name, folder).status == 200
    (folders["m"] / "wait").touch()
    for _ in range(20):
        assert container.invoke("m", '"x"').status == 200
    pid = written(folders["m"] / "began")
    for _ in range(20):
        assert container.invoke("other", '"x"').status == 200
    assert not (folders["other"] / "began").exists()
    os.kill(pid, number)
    written(folders["other"] / "began")
    assert container.unload("other").status == 200
    loads_again(container, folders["m"])
