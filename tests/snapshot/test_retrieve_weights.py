"""Weights as bytes: only whole files are taken, and the canonical form depends on the tensors alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mme.errors import SourceError
from mme.snapshot import weights

TENSORS = {
    "b.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a.bias": torch.ones(5, dtype=torch.bfloat16),
    "c.mask": torch.tensor([True, False]),
    "d.empty": torch.zeros(0, 3),
    "e.scalar": torch.tensor(7, dtype=torch.int64),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt", "by": "somebody"})
    return tmp_path / "model.safetensors"


def test_the_header(path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in weights.read_header(path)}
    assert tensors.keys() == TENSORS.keys()
    assert (tensors["b.weight"].dtype, tensors["b.weight"].shape, tensors["b.weight"].elements) == ("F32", (3, 4), 12)
    assert tensors["d.empty"].elements == 0


def test_the_canonical_form_says_the_same(path: Path, tmp_path: Path) -> None:
    digest = weights.canonical(path, tmp_path / "out")
    assert hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest() == digest
    loaded = load_file(tmp_path / "out")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor)
    assert b"somebody" not in (tmp_path / "out").read_bytes()


def test_the_canonical_form_does_not_depend_on_the_writer(path: Path, tmp_path: Path) -> None:
    """The same tensors, in another order and with another header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    body, at, placed = b"", 0, {}
    for name in sorted(header, reverse=True):
        begin, end = header[name]["data_offsets"]
        placed[name] = {**header[name], "data_offsets": [at, at + end - begin]}
        body += data[8 + length + begin : 8 + length + end]
        at += end - begin
    text = json.dumps(placed, indent=3).encode()
    (tmp_path / "other").write_bytes(len(text).to_bytes(8, "little") + text + body)
    assert weights.canonical(tmp_path / "other", tmp_path / "1") == weights.canonical(path, tmp_path / "2")
    assert weights.canonical(tmp_path / "1", tmp_path / "3") == weights.canonical(path, tmp_path / "2")


def test_tensors_are_aligned(path: Path, tmp_path: Path) -> None:
    weights.canonical(path, tmp_path / "out")
    for tensor in weights.read_header(tmp_path / "out"):
        assert tensor.begin % max(1, weights.BITS[tensor.dtype] // 8) == 0


def test_old_names_become_new_ones(tmp_path: Path) -> None:
    names = {"x.LayerNorm.gamma": "x.LayerNorm.weight", "x.LayerNorm.beta": "x.LayerNorm.bias", "x.gamma": "x.gamma"}
    save_file({name: torch.ones(2) for name in names}, tmp_path / "old")
    weights.canonical(tmp_path / "old", tmp_path / "new")
    assert {tensor.name for tensor in weights.read_header(tmp_path / "new")} == set(names.values())


def test_some_are_left_out(path: Path, tmp_path: Path) -> None:
    weights.canonical(path, tmp_path / "out", frozenset({"a.bias"}))
    assert load_file(tmp_path / "out").keys() == TENSORS.keys() - {"a.bias"}


def header(**entry: object) -> bytes:
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}
    text = json.dumps({"x": tensor}).encode()
    return len(text).to_bytes(8, "little") + text


BROKEN = {
    "nothing": b"",
    "a length beyond the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"{{{{",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "too little data": header() + b"abc",
    "too much data": header() + b"abcde",
    "a hole": header(data_offsets=[4, 8]) + b"abcdefgh",
    "offsets backwards": header(data_offsets=[4, 0]) + b"abcd",
    "offsets below nought": header(data_offsets=[-4, 0]) + b"",
    "a size that is not the shape's": header(shape=[2]) + b"abcd",
    "a shape below nought": header(shape=[-1]) + b"abcd",
    "an unknown type": header(dtype="F31") + b"abcd",
    "no offsets": header(data_offsets=None) + b"abcd",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(SourceError) as caught:
        weights.read_header(tmp_path / "x")
    assert str(tmp_path / "x") in caught.value.message


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(at=st.integers(0, 400), with_=st.binary(min_size=1, max_size=8))
def test_no_change_ends_in_anything_but_an_error_of_ours(path: Path, at: int, with_: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(with_)] = with_
    other = path.with_name("changed")
    other.write_bytes(data)
    try:
        weights.canonical(other, path.with_name("out"))
    except SourceError:
        return
    assert other.stat().st_size
