"""A really full disk under the container: under its temporary files, under a handler's, under the models' folders."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from container_process import Container

from mme.container.front.weightpool import SMALLEST

Make = Callable[..., Path]

PLAIN = "def model_fn(d): return 1\ndef predict_fn(data, model): return model"


def fill(disk: Path) -> Path:
    """Fill a disk to the last byte. Returns the file to remove when there is to be room again."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


def test_no_room_for_temporary_files(start: Callable[..., Container], handler: Make) -> None:
    """What is warmed up with temporary files at the start is not worth a container that does not start."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # as a full disk, and everywhere
    try:
        container = start(MME_PRELOAD="torch,transformers")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be run" in container.log()
    assert container.load("one", handler("one", PLAIN)).status == 200
    assert container.invoke("one").json() == 1


def test_a_handler_without_room_is_a_507(small_disk: Path, container: Container, handler: Make) -> None:
    """On LOAD it tells the platform to unload something; whatever it is, nothing of the load is left."""
    ballast = fill(small_disk)
    source = f"""
        import os
        def write(name):
            with open({str(small_disk)!r} + "/" + name, "wb") as file:
                file.write(bytes(100_000))
            return os.path.getsize(file.name)
        def model_fn(d): return write("cache") if os.path.exists(d + "/writes") else 0
        def predict_fn(data, model): return write("answer") + model
    """
    writes, folder = handler("writes", source, writes=""), handler("plain", source)
    full = container.load("writes", writes)
    assert (full.status, full.json()["type"]) == (507, "InsufficientStorageException")
    assert "No space left on device" in full.json()["message"]
    assert container.names() == []
    assert container.load("plain", folder).status == 200
    assert container.invoke("plain").status == 507
    ballast.unlink()
    assert container.load("writes", writes).status == 200
    assert [container.invoke(name).json() for name in ("writes", "plain")] == [200_000, 100_000]


def test_models_on_a_full_disk_load_and_share_their_weights(
    small_disk: Path, container: Container, handler: Make
) -> None:
    content = os.urandom(SMALLEST + 1)
    folders = [small_disk / name for name in "ab"]
    for folder in folders:
        shutil.copytree(handler(folder.name, PLAIN), folder)
        (folder / "model.safetensors").write_bytes(content)
    fill(small_disk)
    for folder in folders:
        assert container.load(folder.name, folder).status == 200
        assert container.invoke(folder.name).json() == 1
    # Where the system can still make a link it was made; either way both have their weights, and nothing else is there.
    assert [(folder / "model.safetensors").read_bytes() == content for folder in folders] == [True, True]
    assert not list(small_disk.rglob(".*"))


def test_no_link_can_be_made(small_disk: Path, container: Container, handler: Make) -> None:
    """No file more fits on the disk, so equal weights cannot be made one. Each model keeps its own."""
    content = os.urandom(SMALLEST + 1)
    folders = [small_disk / name for name in "ab"]
    for folder in folders:
        shutil.copytree(handler(folder.name, PLAIN), folder)
        (folder / "model.safetensors").write_bytes(content)
    with contextlib.suppress(OSError):
        for number in range(1000):
            (small_disk / f"file-{number}").touch()
    for folder in folders:
        assert container.load(folder.name, folder).status == 200
        assert container.invoke(folder.name).json() == 1
    first, second = (folder / "model.safetensors" for folder in folders)
    assert not first.samefile(second)
    assert second.read_bytes() == content
