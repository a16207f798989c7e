"""Manifests that others wrote: read as what they say, or refused; never a traceback."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fuzzing import bounded, changed, odd
from hypothesis import given
from hypothesis import strategies as st

from mme.archive import write
from mme.archive.contents import MANIFEST, load_manifest
from mme.archive.read import check, manifest_from_tail, read_manifest
from mme.catalog.spec import ModelSpec, Source
from mme.errors import ArchiveError
from mme.tasks.inspection import text

SHA = "ab" * 32
WHOLE: dict[str, Any] = {
    "format": 1,
    "name": "team-a/bert",
    "digest": SHA,
    "source": "hub:a/b",
    "revision": "c" * 40,
    "adapter": "hub:c/d",
    "adapter_revision": "d" * 40,
    "adapter_apart": {"layers": 8, "ranks": [3], "parameters": 1000},
    "task": "fill-mask",
    "trust_remote_code": True,
    "handler": {"name": "embedding", "digest": SHA},
    "notes": "new",
    "parameters": 110_000_000,
    "architecture": "BertModel",
    "accuracy": {
        **{"measure": "outputs", "form": "int8", "against": "float32", "worst": 0.01, "mean": 0.001},
        **{"same_choice": 0.99, "bound": 0.02, "bounded": "worst"},
    },
    "requirements": ["einops==0.8.0"],
    "libraries": {"torch": "2.13.0"},
    "created_by": "mme 0.1.0",
    "files": [{"path": "config.json", "size": 2, "sha256": SHA}],
}


def packed(path: Path, manifest: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(MANIFEST)
        info.size = len(manifest)
        tar.addfile(info, io.BytesIO(manifest))
    return path


def shown(data: bytes) -> str | None:
    """What ``inspect`` prints of it; None where it is not a manifest."""
    manifest = load_manifest(data)
    return None if manifest is None else text(manifest, True)


def test_a_full_manifest_is_shown() -> None:
    assert "team-a/bert-abababababab.tar.gz" in (shown(json.dumps(WHOLE).encode()) or "")


@bounded
@given(changed(WHOLE))
def test_a_manifest_that_was_changed_is_shown_or_refused(manifest: Any) -> None:
    printed = shown(json.dumps(manifest).encode())
    if printed is not None:
        printed.encode()
        assert "\x1b" not in printed


@bounded
@given(odd.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60) | st.just(b"[" * 100_000))
def test_any_json_and_any_bytes(data: bytes) -> None:
    assert load_manifest(data) is None or isinstance(json.loads(data), dict)


@bounded
@given(manifest=changed(WHOLE))
def test_an_archive_whose_manifest_lies_is_refused(tmp_path: Path, manifest: Any) -> None:
    name = "bert-abababababab.tar.gz"
    path = packed(tmp_path / name, json.dumps(manifest).encode())
    with pytest.raises(ArchiveError, match=name):
        check(path)


@bounded
@given(changes=st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=3)), min_size=1, max_size=5))
def test_bytes_changed_at_the_end_of_an_archive(tmp_path_factory: pytest.TempPathFactory, changes: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifest-end"
    if not folder.exists():
        (folder / "snapshot").mkdir(parents=True)
        (folder / "snapshot" / "config.json").write_text("{}")
        write.build(ModelSpec("bert", Source("folder", "x")), folder / "snapshot", folder / "dist")
    (made,) = (folder / "dist").glob("*.tar.gz")
    data = bytearray(made.read_bytes())
    for place, new in changes:
        at = place % len(data)
        data[at : at + len(new)] = new
    manifest = manifest_from_tail(bytes(data))
    if manifest is not None:
        text(manifest, True).encode()
    copy = folder / "changed.tar.gz"
    copy.write_bytes(data)
    if bytes(data) != made.read_bytes():
        with pytest.raises(ArchiveError):
            check(copy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "\ud800"},
        {"files": [{"path": "\ud800", "size": 1, "sha256": SHA}]},
        {"files": [{"path": "a", "size": float("inf"), "sha256": SHA}]},
        {"files": [{"path": "a", "size": 10**400, "sha256": SHA}]},
        {"files": [{"path": "a", "size": -1, "sha256": SHA}]},
        {"files": {"a": 1}},
        {"files": ["a"]},
        {"handler": "embedding"},
        {"libraries": ["torch"]},
        {"requirements": [1]},
        {"accuracy": {"worst": "a lot"}},
        {"adapter_apart": {"ranks": 3}},
    ],
    ids=json.dumps,
)
def test_values_of_other_types_are_no_manifest(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = packed(tmp_path / "bert-abababababab.tar.gz", json.dumps({**WHOLE, **wrong}).encode())
    with pytest.raises(ArchiveError, match=rf"{path.name} has no {MANIFEST} that can be read"):
        read_manifest(path)


def test_a_header_that_is_not_utf8_is_no_manifest() -> None:
    header = bytearray(tarfile.TarInfo(MANIFEST).tobuf(tarfile.GNU_FORMAT))
    header[265] = 0xFF  # the owner's name
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = len(header).to_bytes(2, "little") + (len(header) ^ 0xFFFF).to_bytes(2, "little")
    assert manifest_from_tail(b"\0" + block + bytes(header)) is None


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    printed = shown(json.dumps({**WHOLE, "licence": "mit\x1b]0;owned\x07", "notes": "one\ntwo"}).encode()) or ""
    assert "mit?]0;owned?" in printed
    assert "one\ntwo" in printed


def test_it_is_read_from_an_archive_of_somebody_else(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.tar.gz", json.dumps(WHOLE).encode())
    assert read_manifest(path) == WHOLE
