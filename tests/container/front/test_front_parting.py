"""Weights that several models share cannot be written by a handler of one: whatever it does, it does to itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_process import Container, background, wait_until

from mme.container.front.weightpool import SMALLEST, WeightPool

Make = Callable[..., Path]

# Answers with a digest of its weights as they are in memory (mapped when it was loaded) and as they are in its folder.
# Told to, it does something to the file first.
MAPS = """
    import hashlib, mmap, os, pathlib, shutil
    def digest(data): return hashlib.sha256(bytes(data)).hexdigest()[:16]
    def model_fn(d):
        path = pathlib.Path(d, "model.safetensors")
        at_load = pathlib.Path(d, "at-load")
        if at_load.exists(): exec(at_load.read_text(), {"path": path, "os": os, "mmap": mmap, "shutil": shutil})
        with open(path, "rb") as file:
            return path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    def predict_fn(data, model):
        path, mapped = model
        if data: exec(data, {"path": path, "os": os, "mmap": mmap, "shutil": shutil})
        return [digest(mapped) if path.stat().st_size >= len(mapped) else "cut", digest(path.read_bytes())]
"""
WRITES = {
    "in place": "with open(path, 'r+b') as f: f.seek(5000); f.write(b'changed')",
    "over": "path.write_bytes(b'new weights')",
    "append": "with open(path, 'ab') as f: f.write(b'more')",
    "truncate": "os.truncate(path, 5)",
    "rename over": "p = path.with_name('other'); p.write_bytes(b'other'); os.replace(p, path)",
    "chmod first": "os.chmod(path, 0o666)\nwith open(path, 'r+b') as f: f.write(b'changed')",
    "mmap r+": "f = open(path, 'r+b'); m = mmap.mmap(f.fileno(), 0); m[5000:5007] = b'changed'; m.flush()",
    "descriptor": "fd = os.open(path, os.O_WRONLY); os.pwrite(fd, b'changed', 9); os.close(fd)",
    "copy over": "p = path.with_name('other'); p.write_bytes(b'x' * 3000000); shutil.copyfile(p, path)",
    "remove and write": "os.remove(path); path.write_bytes(b'other')",
    "take away": "os.chmod(path, 0)",
}


def digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.fixture
def pair(container: Container, handler: Make) -> list[Path]:
    """Two models with equal weights, loaded, one file between them."""
    content = os.urandom(2 * SMALLEST)
    folders = [handler(name, MAPS) for name in ("writes", "other")]
    for folder in folders:
        (folder / "model.safetensors").write_bytes(content)
        assert container.load(folder.name, folder).status == 200
    first, second = (folder / "model.safetensors" for folder in folders)
    assert first.samefile(second)
    return folders


@pytest.mark.parametrize("how", WRITES)
def test_what_a_handler_does_to_its_weights_it_does_to_itself(container: Container, pair: list[Path], how: str) -> None:
    writes, other = (folder / "model.safetensors" for folder in pair)
    before, mode = digest(other), other.stat().st_mode
    assert container.invoke("other", '""').json() == [before, before]
    reply = container.invoke("writes", f'"{WRITES[how]}"'.replace("\n", "\\n"))
    if how == "take away":  # nobody is stopped in this, but it is mended
        wait_until(lambda: (other.stat().st_mode, writes.samefile(other)) == (mode, False))
    else:
        assert reply.status == 200, reply.body
        assert digest(writes) != before, "the handler's own file is written"
        assert reply.json()[1] == digest(writes)
    assert digest(other) == before
    for _ in range(2):
        assert container.invoke("other", '""').json() == [before, before]
    assert sorted(container.names()) == ["other", "writes"]
    assert not list(writes.parent.glob(".*"))
    assert not list(other.parent.glob(".*"))


@pytest.mark.parametrize("how", ["in place", "truncate", "mmap r+"])
def test_while_it_is_loaded_too(container: Container, handler: Make, how: str) -> None:
    content = os.urandom(2 * SMALLEST)
    folders = {name: handler(name, MAPS) for name in ("other", "writes")}
    for folder in folders.values():
        (folder / "model.safetensors").write_bytes(content)
    (folders["writes"] / "at-load").write_text(WRITES[how])
    before = digest(folders["other"] / "model.safetensors")
    assert container.load("other", folders["other"]).status == 200
    assert container.load("writes", folders["writes"]).status == 200, container.log()
    assert digest(folders["writes"] / "model.safetensors") != before
    assert container.invoke("other", '""').json() == [before, before]
    assert container.invoke("writes", '""').status == 200


def test_requests_of_the_others_are_answered_although_their_process_was_ended(
    container: Container, handler: Make, tmp_path: Path
) -> None:
    content = os.urandom(2 * SMALLEST)
    waits = MAPS.replace(
        "        path, mapped = model\n",
        "        path, mapped = model\n"
        "        if data == 'wait':\n"
        f"            (path.parent / 'begun').touch()\n"
        f"            while not os.path.exists({str(tmp_path / 'go')!r}): __import__('time').sleep(0.01)\n"
        "            data = ''\n",
    )
    folders = {name: handler(name, waits) for name in ("other", "writes")}
    for name, folder in folders.items():
        (folder / "model.safetensors").write_bytes(content)
        assert container.load(name, folder).status == 200
    before = digest(folders["other"] / "model.safetensors")
    held = [background(container.invoke, "other", '"wait"') for _ in range(3)]
    wait_until((folders["other"] / "begun").exists)
    assert container.invoke("writes", f'"{WRITES["in place"]}"').status == 200
    (tmp_path / "go").touch()
    for answer in held:
        assert (answer.result().status, answer.result().json()) == (200, [before, before])


def test_a_file_that_an_earlier_container_shared_is_held_again(container: Container, handler: Make) -> None:
    """Only one of the two is loaded. The other lies there with the same inode, and may be loaded at any time."""
    folders = [handler(name, MAPS) for name in ("writes", "later")]
    path, later = (folder / "model.safetensors" for folder in folders)
    path.write_bytes(os.urandom(2 * SMALLEST))
    os.link(path, later)
    before = digest(later)
    assert container.load("writes", folders[0]).status == 200
    assert container.invoke("writes", f'"{WRITES["in place"]}"').status == 200
    assert digest(path) != before
    assert digest(later) == before


def test_a_file_that_somebody_writes_is_not_shared(tmp_path: Path) -> None:
    content = os.urandom(2 * SMALLEST)
    paths = [tmp_path / name / "model.safetensors" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(content)
    pool = WeightPool()
    assert pool.share(1, str(paths[0].parent)) == 0
    with paths[0].open("r+b"):
        assert pool.share(2, str(paths[1].parent)) == 0
    assert not paths[0].samefile(paths[1])
    assert pool.broken() == []


def test_each_gets_a_copy_with_the_same_mode_and_times(tmp_path: Path) -> None:
    content = os.urandom(2 * SMALLEST + 3)
    paths = [tmp_path / name / "model.safetensors" for name in "abc"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(content)
        path.chmod(0o640)
        os.utime(path, ns=(10**18, 10**18 + 7))
    pool = WeightPool()
    assert [pool.share(number, str(path.parent)) for number, path in enumerate(paths)] == [0, *[len(content)] * 2]
    shutil.rmtree(paths[2].parent)
    assert pool.broken() == []
    paths[0].chmod(0o600)
    (lease,) = pool.broken()
    assert pool.broken() == [], "each is told once"
    assert pool.part(lease) == {}
    infos = [path.stat() for path in paths[:2]]
    assert len({info.st_ino for info in infos}) == 2
    assert {(info.st_mode & 0o777, info.st_mtime_ns) for info in infos} == {(0o640, 10**18 + 7)}
    assert [path.read_bytes() == content for path in paths[:2]] == [True, True]


def test_a_model_that_goes_lets_go(tmp_path: Path) -> None:
    own = Path("/proc/self/fd")
    before = len(list(own.iterdir())) if own.exists() else 0
    content = os.urandom(2 * SMALLEST)
    pool = WeightPool()
    for number, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        pool.share(number, str(tmp_path / name))
    for number in range(3):
        pool.forget(number)
    (tmp_path / "a" / "model.safetensors").open("r+b").close()  # would wait for ever if it were held
    assert not before or len(list(own.iterdir())) == before


def test_no_room_for_copies(small_disk: Path) -> None:
    content = os.urandom(SMALLEST + 1)
    paths = [small_disk / name / "model.safetensors" for name in "ab"]
    pool = WeightPool()
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_bytes(content)
        pool.share(number, str(path.parent))
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
    paths[0].chmod(0o600)
    (lease,) = pool.broken()
    failed: dict[int, Any] = pool.part(lease)
    assert set(failed) == {0, 1}
    assert "No space left" in str(failed[0])
    assert not list(small_disk.rglob(".*"))
