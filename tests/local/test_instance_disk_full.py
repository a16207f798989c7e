"""The disk is full while an archive is downloaded or unpacked: a clear answer, nothing left, and well afterwards."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from local_tools import FAKE_CONTAINER, archive

from mme.archive.untar import NoRoom, extract
from mme.local.sagemaker.errors import ModelFailed
from mme.local.sagemaker.instance import Instance
from mme.local.sagemaker.spec import VariantSpec

LARGE = os.urandom(1_200_000).hex()  # 2.4 MB, half of it packed


class Recorder:
    def metric(self, variant: str, name: str, value: float, unit: str) -> None: ...

    def gauge(self, variant: str, instance: str, name: str, value: float, unit: str) -> None: ...

    def output(self, variant: str, instance: str, line: str) -> None: ...


class ArchiveSource:
    """Where archives come from: files that do not lie on the small disk, linked or copied to where they are wanted."""

    def __init__(self, folder: Path, copy: bool, **archives: bytes) -> None:
        folder.mkdir()
        self.copy = copy
        self.folder = folder
        for name, data in archives.items():
            (folder / name).write_bytes(data)

    def __call__(self, *, bucket: str, key: str, role_arn: str, into: Path) -> Path:
        source = self.folder / Path(key).name
        if not self.copy:
            return linked(source, into)
        (into / "archive.tar.gz").write_bytes(source.read_bytes())
        return into / "archive.tar.gz"


def linked(source: Path, into: Path) -> Path:
    (into / "archive.tar.gz").symlink_to(source)
    return into / "archive.tar.gz"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("copy", [True, False], ids=["downloading", "unpacking"])
def test_a_full_disk_is_a_507_and_leaves_nothing(small_disk: Path, tmp_path: Path, copy: bool) -> None:
    source = ArchiveSource(tmp_path / "shelf", copy, large=archive(padding=LARGE), small=archive(times=2))
    spec = VariantSpec("v", "m", "image", "role", {}, "bucket", "models/", startup_seconds=10)
    host = Instance("e/v", spec, FAKE_CONTAINER, small_disk / "host", source, Recorder())
    host.start()
    try:
        assert host.invoke("small", b"1", {}).status == 200
        before = files(small_disk)
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(3_200_000 if copy else 2_000_000))
        with pytest.raises(ModelFailed, match="no room on the disk for large") as caught:
            host.invoke("large", b"1", {})
        assert caught.value.status == 507
        assert not [name for name in files(small_disk) if name not in before and name != "ballast"]
        assert not list((small_disk / "host").rglob("*.partial"))
        ballast.unlink()
        assert host.invoke("large", b"1", {}).status == 200
        assert host.invoke("small", b"1", {}).status == 200
    finally:
        host.stop()


def test_what_is_not_in_use_makes_room_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """Two models of 2.4 MB on 4 MB: each is loaded when it is asked for, and the other one goes, files and all."""
    names = ("one", "two")
    source = ArchiveSource(tmp_path / "shelf", False, **{name: archive(padding=LARGE, times=2) for name in names})
    spec = VariantSpec("v", "m", "image", "role", {}, "bucket", "models/", startup_seconds=10)
    host = Instance("e/v", spec, FAKE_CONTAINER, small_disk / "host", source, Recorder())
    host.start()
    try:
        for name in (*names, *names):
            assert host.invoke(name, b"1", {}).status == 200
            assert host.loaded == 1
    finally:
        host.stop()


def test_room_that_another_load_has_made_counts_too(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two loads meet the same full disk: what one unloads, the other may remove from the disk first."""
    source = ArchiveSource(
        tmp_path / "shelf", False, **{name: archive(padding=LARGE, times=2) for name in ("one", "two")}
    )
    spec = VariantSpec("v", "m", "image", "role", {}, "bucket", "models/", startup_seconds=10)
    host = Instance("e/v", spec, FAKE_CONTAINER, small_disk / "host", source, Recorder())
    make_room = host._make_room

    def and_another_is_first(target: str, deadline: float) -> bool:
        made = make_room(target, deadline)
        host._trim_disk(0)
        return made

    monkeypatch.setattr(host, "_make_room", and_another_is_first)
    host.start()
    try:
        for name in ("one", "two"):
            assert host.invoke(name, b"1", {}).status == 200
    finally:
        host.stop()


def test_a_file_may_not_grow_any_more(tmp_path: Path) -> None:
    """Where no small disk can be made: a limit on the size of files stops a write in its middle just the same."""
    (tmp_path / "a.tar.gz").write_bytes(archive(padding=LARGE))
    code = (
        "import sys\nfrom pathlib import Path\nfrom mme.archive.untar import NoRoom, extract\n"
        "try:\n  extract(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except NoRoom as problem:\n  print(problem)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.tar.gz"), str(tmp_path / "into" / "model")]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit)
    assert "cannot be unpacked" in done.stdout, done
    assert list((tmp_path / "into").iterdir()) == []
    extract(tmp_path / "a.tar.gz", tmp_path / "into" / "model")


def test_no_folder_can_be_made(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive(times=2))
    with contextlib.suppress(OSError):  # no space, at some time
        for number in range(1000):
            (small_disk / str(number)).mkdir()
    with pytest.raises(NoRoom, match="cannot be unpacked"):
        extract(tmp_path / "a.tar.gz", small_disk / "new" / "model")
    (small_disk / "0").rmdir()
