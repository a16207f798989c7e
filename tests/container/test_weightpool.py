"""Equal weight files of several models become one; files that differ stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container

from mme.container.front.weightpool import SMALLEST, WeightPool

Make = Callable[..., Path]


def weights(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def test_equal_files_become_one_and_outlive_each_other(tmp_path: Path) -> None:
    content = os.urandom(3 * SMALLEST + 17)
    paths = [weights(tmp_path / name, content) for name in "abc"]
    pool = WeightPool()
    assert [pool.share(n, str(path.parent)) for n, path in enumerate(paths)] == [0, len(content), len(content)]
    assert len({path.stat().st_ino for path in paths}) == 1
    paths[0].unlink()
    assert [path.read_bytes() == content for path in paths[1:]] == [True, True]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("place", [0, 8, 500_001, 2 * SMALLEST - 1])
def test_one_different_byte_keeps_files_apart(tmp_path: Path, place: int) -> None:
    """Also where the fingerprint, which looks at parts of the file alone, does not see the difference."""
    content = bytearray(os.urandom(2 * SMALLEST))
    first = weights(tmp_path / "a", bytes(content))
    content[place] ^= 1
    second = weights(tmp_path / "b", bytes(content))
    pool = WeightPool()
    assert [pool.share(1, str(first.parent)), pool.share(2, str(second.parent))] == [0, 0]
    assert second.read_bytes() == bytes(content)
    assert first.stat().st_ino != second.stat().st_ino


def test_a_forgotten_model_is_no_source(tmp_path: Path) -> None:
    content = os.urandom(2 * SMALLEST)
    first, second = (weights(tmp_path / name, content) for name in "ab")
    pool = WeightPool()
    pool.share(1, str(first.parent))
    pool.forget(1)
    first.unlink()
    assert pool.share(2, str(second.parent)) == 0
    assert second.read_bytes() == content


def test_where_links_are_refused_each_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(2 * SMALLEST)
    first, second = (weights(tmp_path / name, content) for name in "ab")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "not here")

    monkeypatch.setattr(os, "link", refuse)
    pool = WeightPool()
    assert [pool.share(1, str(first.parent)), pool.share(2, str(second.parent))] == [0, 0]
    assert second.read_bytes() == content


def test_the_container_shares_files_of_what_it_loads(container: Container, handler: Make) -> None:
    content = os.urandom(2 * SMALLEST)
    folders = [handler(name, "def model_fn(d): return 1\ndef predict_fn(data, m): return m") for name in "ab"]
    paths = [weights(folder, content) for folder in folders]
    before = container.metric("mme_shared_bytes_total")
    for folder in folders:
        assert container.load(folder.name, folder).status == 200
    assert paths[0].samefile(paths[1])
    assert container.metric("mme_shared_bytes_total") - before == len(content)
