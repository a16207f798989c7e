"""What `measure` asks of the real container."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from mme.capacity import listing
from mme.capacity import measure as measuring
from mme.capacity.measure import Subject, measure, quantiles
from mme.errors import UsageError

HANDLER = b"""
import json


def model_fn(model_dir):
    return bytearray(24 << 20)


def predict_fn(data, model):
    total = 0
    for number in range(200_000):
        total += number
    return [data, total]


def output_fn(prediction, accept):
    return json.dumps(prediction)
"""


BUSY = b"""

class More:
    bytes = 200 << 20
    held = b""

    def begin(self):
        self.held = b"x" * self.bytes

    def end(self):
        self.held = b""


def busy_fn(model):
    return More()
"""


def archived(path: Path, handler: bytes = HANDLER) -> Path:
    files = {
        "weights.safetensors": bytes(1 << 20),
        "code/inference.py": handler,
        "code/sample.json": b'{"inputs": "x"}',
    }
    files["weights.safetensors"] = (2).to_bytes(8, "little") + b"{}" + bytes((1 << 20) - 10)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.slow
def test_the_container_tells_what_a_model_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject("m", archived(tmp_path / "m.tar.gz"))
    written: list[str] = []
    sync = os.fsync

    def noted(file: int) -> None:
        written.append(Path(f"/proc/self/fd/{file}").readlink().name)
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    document = measure([subject])
    # Wakes are of files that are on the disk: those of files that were just extracted take longer.
    assert {"weights.safetensors", "inference.py", "sample.json"} <= set(written)
    (tmp_path / "needs.json").write_text(json.dumps(document))
    needs = listing.read_needs(tmp_path / "needs.json")
    (sample,) = needs.samples
    assert sample["weights_bytes"] == 1 << 20
    assert sample["disk_bytes"] > 1 << 20
    assert sample["archive_bytes"] < sample["disk_bytes"]
    assert 20 << 20 < sample["private_bytes"] < 200 << 20
    assert 0 < sample["answer_seconds"] < sample["load_seconds"] + 10
    assert sample["wake_seconds"] > 0
    assert 0 <= (needs.batch_shared or 0) <= 1
    assert needs.base_bytes is not None
    assert needs.base_bytes > 50 << 20
    assert len(needs.answer_spread) == 50
    assert 0.1 <= document["load_cores"] <= document["cores"]
    assert 0.1 <= needs.wake_cores <= document["cores"]
    assert sample["parked_bytes"] == measuring.PARKED_BYTES
    made = listing.combine([listing.Row("m", 1, {})], needs)
    assert made.active[0] == sample["private_bytes"] + (1 << 20)


@pytest.mark.slow
def test_a_model_that_could_be_busy_is_measured_without_what_that_takes(tmp_path: Path) -> None:
    """Forty answers in a row make a model busy, and its handler would take 200 MB for it (docs/handlers.md)."""
    document = measure([Subject("m", archived(tmp_path / "m.tar.gz", HANDLER + BUSY))])
    assert document["models"]["m"]["private_bytes"] < 200 << 20


@pytest.mark.slow
def test_a_model_that_fails_is_an_error_with_the_containers_words(tmp_path: Path) -> None:
    broken = HANDLER.replace(b"return [data, total]", b"raise ValueError('no such thing')")
    with pytest.raises(UsageError, match=r"m: INVOKE: the container answers 400: .*no such thing"):
        measure([Subject("m", archived(tmp_path / "m.tar.gz", broken))])


def test_what_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Which archives"):
        measure([])
    with pytest.raises(UsageError, match=r"There is no archive .*none\.tar\.gz"):
        measure([Subject("m", tmp_path / "none.tar.gz")])


def test_a_folder_in_memory_is_distinguished_from_one_on_a_disk() -> None:
    if not Path("/proc/self/mounts").is_file():
        pytest.skip("there is no list of mounts here")
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    kinds = {words[1]: words[2] for words in mounts}  # of several at one place, the last is seen
    for place, kind in kinds.items():
        if Path(place).is_dir():
            assert measuring.in_memory(Path(place)) == (kind in ("tmpfs", "ramfs")), place
            assert measuring.in_memory(Path(place) / "none" / "below") == (kind in ("tmpfs", "ramfs")), place


def test_quantiles_stand_for_all() -> None:
    assert quantiles([]) == [1.0]
    assert quantiles([2.0]) == [2.0] * 50
    made = quantiles([float(number) for number in range(1000)], 4)
    assert made == [125, 375, 625, 875]
