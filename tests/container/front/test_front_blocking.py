"""What may block does not stop anything else, and nobody waits for it at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_process import Container, background

from mme.container import memory
from mme.container.errors import ServingError
from mme.container.files import open_regular, read_regular
from mme.container.front.blocking import Blocking
from mme.container.front.weightpool import WeightPool
from mme.container.recipes import foresee, recipe

SOURCE = Path(__file__).resolve().parents[3] / "src"
ANSWERS = "def model_fn(d): return 1\ndef predict_fn(data, model): return model"


def test_results_and_errors_come_back() -> None:
    async def work() -> None:
        blocking = Blocking()
        assert await blocking.run(lambda a, b: a + b, 1, 2) == 3
        with pytest.raises(ZeroDivisionError):
            await blocking.run(lambda: 1 / 0)

    asyncio.run(work())


def test_one_that_is_stuck_holds_nobody_up_and_too_many_are_refused() -> None:
    async def work() -> None:
        blocking, release = Blocking(bound=3), threading.Event()
        stuck = [asyncio.create_task(blocking.run(release.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await blocking.run(lambda: 1) == 1
        stuck.append(asyncio.create_task(blocking.run(release.wait)))
        await asyncio.sleep(0)
        stuck[0].cancel()
        with pytest.raises(ServingError) as refused:
            await blocking.run(lambda: 1)
        assert refused.value.status == 503
        release.set()
        await asyncio.gather(*stuck[1:])
        while True:  # the cancelled one has given its place back as well, as soon as it has ended
            try:
                assert await blocking.run(lambda: 1) == 1
                break
            except ServingError:
                await asyncio.sleep(0.01)

    asyncio.run(work())


def test_the_process_ends_whatever_is_stuck(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = f"""
import asyncio
from mme.container.front.blocking import Blocking
async def work():
    task = asyncio.create_task(Blocking().run(open, {str(fifo)!r}))
    await asyncio.sleep(0.1)
    task.cancel()
asyncio.run(work())
print("ended")
"""
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (0, "ended\n"), run.stderr


# -- regular files alone --------------------------------------------------------------------------------------------


@pytest.fixture
def bounded() -> Any:
    """Fails a call that blocks, instead of waiting for it for ever."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return background(function, *arguments).result(20)

    return call


def test_only_regular_files_are_opened(tmp_path: Path, bounded: Any) -> None:
    plain, fifo, link = tmp_path / "plain", tmp_path / "fifo", tmp_path / "link"
    plain.write_bytes(b"content")
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    assert bounded(read_regular, plain, 7) == b"content"
    with pytest.raises(ValueError, match="larger"):
        bounded(read_regular, plain, 6)
    for path in (fifo, link, tmp_path, tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(OSError):
            bounded(open_regular, path)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_in_a_model_folder_blocks_nothing(tmp_path: Path, bounded: Any, name: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    known = recipe("model", "AutoModel", (str(first),), {})
    assert known is not None
    (second / name).unlink(missing_ok=True)
    os.mkfifo(second / name)
    assert bounded(recipe, "model", "AutoModel", (str(second),), {}) is None or name == "tokenizer.json"
    bounded(foresee, [(known.plain(), str(first))], str(second))
    assert bounded(memory.weights, str(second)) == memory.NO_WEIGHTS
    assert bounded(WeightPool().share, 1, str(second)) == 0


def test_pipes_in_folders_do_not_end_all_loading_and_sigterm_ends_the_container(
    start: Callable[..., Container], handler: Callable[..., Path]
) -> None:
    container = start(MME_MAX_LOADS="2", MME_LOAD_TIMEOUT="20")
    first = handler("first", f"import helper\n{ANSWERS}", code__helper_dot_py="x = 1")
    assert container.load("first", first).status == 200
    for number in range(8):  # each is looked at for what it has in common with the first
        folder = handler(f"pipe-{number}", ANSWERS)
        os.mkfifo(folder / "code" / "helper.py")
        assert container.load(folder.name, folder).status == 200
    assert container.load("last", handler("last", ANSWERS)).status == 200
    assert container.invoke("last").json() == 1
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(30) == 0
