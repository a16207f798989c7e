"""Nothing begins CUDA in the parent: a process that is forked afterwards could not use a GPU. No GPU is needed here."""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container

from mme.container.workers import cuda, parent

# Stands for a library that begins CUDA, at once or in the first pass: cuda.begun() looks at the files that are open.
BEGINS = """
import pathlib
from mme.container.workers import cuda
once = pathlib.Path({once!r})
begun = {always} or not once.exists()
once.touch()
cuda.begun = lambda: begun
"""
HANDLER = "def model_fn(folder): return folder\ndef predict_fn(data, model): return data * 2\n"


def container(start: Callable[..., Container], folder: Path, always: bool) -> tuple[int, str]:
    """What a model answers behind a parent that has begun CUDA once or each time, and the log."""
    (folder / "model" / "code").mkdir(parents=True)
    (folder / "model" / "code" / "inference.py").write_text(HANDLER)
    (folder / "packages").mkdir()
    source = BEGINS.format(once=str(folder / "once"), always=always)
    (folder / "packages" / "begins_cuda.py").write_text(source)
    running = start(MME_PRELOAD="json,begins_cuda,csv", PYTHONPATH=str(folder / "packages"))
    assert running.load("m", folder / "model").status == 200
    return int(running.invoke("m", "21").json()), running.log()


def test_what_begins_cuda_when_it_is_tried_is_only_imported(start: Callable[..., Container], tmp_path: Path) -> None:
    answer, log = container(start, tmp_path, always=False)
    assert answer == 42
    assert "begins_cuda began to use CUDA: the libraries are imported once more" in log
    assert "Leave it out of MME_PRELOAD" not in log


def test_what_begins_cuda_as_it_is_imported_is_named_once(start: Callable[..., Container], tmp_path: Path) -> None:
    answer, log = container(start, tmp_path, always=True)
    assert answer == 42
    assert log.count("MME_PRELOAD: begins_cuda began to use CUDA while it was imported") == 1


def test_only_imported_means_that_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(parent.templates, "exercise", lambda: ran.append("exercise"))
    monkeypatch.setattr(parent.curves, "import_generation", lambda: None)
    monkeypatch.setattr(parent, "TRANSFORMERS_NAMES", ())
    parent.warm(["transformers"], only_import=True)
    assert ran == []
    parent.warm(["transformers"])
    assert ran == ["exercise"]


class Driver:
    """CUDA's own library, as a process finds it that is forked from this one."""

    def __init__(self, answer: int, seconds: float = 0) -> None:
        self._answer, self._seconds = answer, seconds

    def cuInit(self, flags: int) -> int:
        time.sleep(self._seconds)
        return 0

    def cuDeviceGet(self, device: object, number: int) -> int:
        return 0

    def cuDevicePrimaryCtxRetain(self, context: object, device: object) -> int:
        return self._answer


@pytest.mark.parametrize(
    ("driver", "begun"), [(Driver(0), False), (Driver(3), True), (Driver(0, seconds=60), True), (None, True)]
)
def test_cuda_has_begun_where_a_fork_cannot_begin_it(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None, begun: bool
) -> None:
    """Its device file is opened by some drivers when the GPUs are counted: that alone says nothing."""

    def library(name: str) -> Driver:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    assert not cuda.begun()  # here
    monkeypatch.setattr(cuda.system, "has_open", lambda file: file == "/dev/nvidia-uvm")
    monkeypatch.setattr(cuda.ctypes, "CDLL", library)
    monkeypatch.setattr(cuda, "_PROBE_SECONDS", 0.3)
    assert cuda.begun() is begun


@pytest.mark.parametrize("initialized", [False, True])
def test_nothing_is_captured_where_cuda_has_not_begun(initialized: bool) -> None:
    asked: list[bool] = []

    def capturing() -> bool:
        asked.append(True)
        return True

    graphs = types.SimpleNamespace(_cuda_isCurrentStreamCapturing=capturing)
    torch = types.SimpleNamespace(cuda=types.SimpleNamespace(graphs=graphs, is_initialized=lambda: initialized))
    cuda.answer_without_cuda(torch)
    assert graphs._cuda_isCurrentStreamCapturing() is initialized
    assert bool(asked) is initialized


def test_the_function_that_is_wrapped_is_the_one_that_torch_calls() -> None:
    import torch

    wrapped = torch.cuda.graphs._cuda_isCurrentStreamCapturing
    assert torch.cuda.is_current_stream_capturing.__globals__["_cuda_isCurrentStreamCapturing"] is wrapped
