"""A running container for the tests, and folders with small handlers to load into it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from container_process import KIND, Container


@pytest.fixture(autouse=True)
def open_to_the_images_user(tmp_path: Path) -> Iterator[None]:
    """An image's server is another user, who reads the models and whose handlers write beside them."""
    if KIND == "ours":
        yield
        return
    before = os.umask(0)
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o777)
    yield
    os.umask(before)


@pytest.fixture
def handler(tmp_path: Path) -> Callable[..., Path]:
    """``handler("name", "source of inference.py", **files)`` makes a model's folder."""

    def make(name: str, source: str | None, **files: str) -> Path:
        folder = tmp_path / "models" / name
        (folder / "code").mkdir(parents=True)
        if source is not None:
            (folder / "code" / "inference.py").write_text(textwrap.dedent(source))
        for path, text in files.items():
            target = folder / path.replace("__", "/").replace("_dot_", ".")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(textwrap.dedent(text))
        return folder

    return make


@pytest.fixture(scope="session")
def shared_container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    # It computes in the formats that are asked for, whether or not this processor is fast in them.
    container = Container(tmp_path_factory.mktemp("container") / "log", {"MME_FORMAT": "asked"})
    yield container
    container.stop()


@pytest.fixture
def container(shared_container: Container) -> Iterator[Container]:
    """A container without models. Many tests share it; each leaves it empty."""
    yield shared_container
    for name in shared_container.names():
        shared_container.unload(name)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """Start a container of the test's own, with settings: ``start(MME_CPUS="1")``. It starts without torch, fast."""
    started: list[Container] = []

    def begin(wait: bool = True, **environ: str) -> Container:
        container = Container(tmp_path / f"log-{len(started)}", {"MME_PRELOAD": "", **environ}, wait)
        started.append(container)
        return container

    yield begin
    for container in started:
        container.stop()
