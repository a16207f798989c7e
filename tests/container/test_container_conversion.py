"""What a load is promised bounds what it takes, where weights become another number format."""

from __future__ import annotations

import json
import shutil
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from container_process import Container

from mme import handler_files
from mme.container import conversion, memory, system
from mme.container.config import MiB
from mme.container.front.models import Model

ROOT = Path(__file__).resolve().parents[2]
FORMATS = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}


def weights(folder: Path, name: str = "model.safetensors", **tensors: tuple[str, int]) -> Path:
    """A file of so many numbers of these formats, without the numbers: it takes no place on the disk."""
    header, at = {}, 0
    for tensor, (kind, count) in tensors.items():
        header[tensor.replace("_", ".")] = {
            "dtype": kind,
            "shape": [count],
            "data_offsets": [at, at + count * FORMATS[kind]],
        }
        at += count * FORMATS[kind]
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return folder


def settings(folder: Path, ours: bool = True, **said: Any) -> Path:
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "settings.json").write_text(json.dumps(said))
    if ours:
        (folder / "code" / "handler_common.py").touch()
    return folder


@pytest.mark.parametrize(
    ("kind", "said", "converted", "meanwhile"),
    [
        ("F32", {}, 0, 0),
        ("F32", {"dtype": "float32"}, 0, 0),
        ("F32", {"accuracy": "exact"}, 0, 0),
        ("F32", {"dtype": "bfloat16"}, 2, 0),
        ("F32", {"dtype": "float16"}, 2, 0),
        ("F32", {"accuracy": "close"}, 2, 0),
        ("F32", {"accuracy": "small"}, 2, 3),
        ("F32", {"quantize": "int8"}, 2, 3),
        ("BF16", {}, 4, 0),  # nothing asked is float32
        ("BF16", {"dtype": "bfloat16"}, 4, 0),  # which a slow processor goes back to
        ("F16", {"dtype": "bfloat16"}, 4, 0),
        ("BF16", {"quantize": "int8"}, 4, 2),
        ("F32", {"dtype": "no such"}, 0, 0),
        ("F32", {"dtype": ["bfloat16"]}, 0, 0),
        ("I8", {"dtype": "float32"}, 0, 0),
    ],
)
def test_each_number_counts_as_what_it_becomes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    said: dict[str, Any],
    converted: int,
    meanwhile: int,
) -> None:
    monkeypatch.setattr(conversion, "fast", frozenset)
    folder = settings(weights(tmp_path / "m", layer_weight=(kind, 1000)), **said)
    found = memory.weights(str(folder))
    assert (found.converted, found.meanwhile) == (1000 * converted, 1000 * meanwhile)
    entry = Model("m", "/m", "/m", 1, found)
    assert entry.load_estimate - entry.estimate == 1000 * meanwhile
    entry.private = 7
    assert (entry.estimate, entry.load_estimate) == (7, 7 + 1000 * meanwhile)


def test_a_format_that_the_processor_has_stays_as_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "fast", lambda: frozenset({"BF16"}))
    for number, (kind, dtype, converted) in enumerate(
        [("BF16", "bfloat16", 0), ("BF16", "float32", 4), ("F32", "bfloat16", 2), ("F16", "float16", 4)]
    ):
        folder = settings(weights(tmp_path / str(number), a=(kind, 1000)), dtype=dtype)
        assert memory.weights(str(folder)).converted == 1000 * converted, (kind, dtype)


@pytest.mark.parametrize(
    ("tensors", "dtype", "grown"),
    [
        ({"a": ("BF16", 1000)}, "float32", 2000),
        ({"a": ("BF16", 1000)}, "bfloat16", 0),
        ({"a": ("F16", 1000)}, "bfloat16", 0),
        ({"a": ("F32", 1000)}, "float32", 0),
        ({"a": ("F32", 1000)}, "float16", 0),  # a card has less to hold, and what it was promised is not counted down
        ({"a": ("F32", 1000), "b": ("F16", 500), "c": ("I8", 300)}, "float32", 1000),
    ],
)
def test_a_card_holds_the_numbers_in_the_format_that_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, tuple[str, int]], dtype: str, grown: int
) -> None:
    monkeypatch.setattr(conversion, "fast", lambda: frozenset({"BF16", "F16"}))  # as where there is a GPU
    assert memory.weights(str(settings(weights(tmp_path, **tensors), dtype=dtype))).grown == grown
    (tmp_path / "code" / "handler_common.py").unlink()
    (tmp_path / "code" / "settings.json").unlink()
    assert memory.weights(str(tmp_path)).grown == 0, "what another handler computes in is not known"


def test_whatever_is_asked_for_is_computed_in_where_a_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MME_FORMAT", "asked")
    assert conversion.fast.__wrapped__() == {"BF16", "F16"}
    monkeypatch.delenv("MME_FORMAT")
    monkeypatch.setenv("MME_DEVICE", "cpu")
    assert conversion.fast.__wrapped__() <= {"BF16", "F16"}


def test_tables_stay_as_they_are_in_int8(tmp_path: Path) -> None:
    folder = weights(tmp_path / "m", embeddings_word__embeddings_weight=("F32", 1000), wte_weight=("F32", 1000))
    found = memory.weights(str(settings(folder, quantize="int8")))
    assert (found.converted, found.meanwhile) == (2000, 2000)


def test_of_int8_that_is_stored_that_file_is_read(tmp_path: Path) -> None:
    folder = weights(tmp_path / "m", a=("F32", 5000))
    weights(folder, "model.int8.safetensors", a=("I8", 1000))
    found = memory.weights(str(settings(folder, quantize="int8")))
    assert (found.converted, found.meanwhile) == (2000, 3000)
    assert memory.weights(str(settings(folder, dtype="bfloat16"))).converted == 10_000


def test_older_files_may_become_wider(tmp_path: Path) -> None:
    folder = settings(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    entry = Model("m", "/m", "/m", 1, memory.weights(str(folder)))
    assert entry.estimate >= 2 * 1000


@pytest.mark.parametrize(("said", "converted"), [({}, 0), ({"pooling": "mean"}, 0), ({"dtype": "bfloat16"}, 2000)])
def test_another_handler_is_believed_where_it_has_such_settings(
    tmp_path: Path, said: dict[str, Any], converted: int
) -> None:
    folder = settings(weights(tmp_path / "m", a=("F32", 1000)), ours=False, **said)
    assert memory.weights(str(folder)).converted == converted


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 6) + b'{"a":}',
        struct.pack("<Q", 11) + b'{"a":"none"}',
        *(
            struct.pack("<Q", len(text)) + text
            for text in (
                b'{"a":{"dtype":"BF16","data_offsets":[0,1000000000000]}}',
                b'{"a":{"dtype":"BF16","data_offsets":[-8,"x"]}}',
                b'{"a":{"dtype":["BF16"],"data_offsets":[0]}}',
                b'{"a":{"data_offsets":[0,1e999]}}',
            )
        ),
        struct.pack("<Q", 30_000) + b"[" * 30_000,
    ],
)
def test_a_broken_file_is_left_to_the_load_to_refuse(tmp_path: Path, content: bytes) -> None:
    folder = settings(tmp_path, dtype="bfloat16")
    (folder / "model.safetensors").write_bytes(content)
    found = memory.weights(str(folder))
    assert (found.converted, found.meanwhile) == (0, 0)


@pytest.mark.parametrize("said", [{"dtype": "bfloat16"}, {"quantize": "int8"}, {"accuracy": "small"}])
def test_a_load_that_would_exceed_the_limit_is_refused_before_it_begins(
    start: Any, handler: Callable[..., Path], said: dict[str, Any]
) -> None:
    folder = handler("m", "def model_fn(folder):\n    raise RuntimeError('it began')\n")
    settings(weights(folder, layer_weight=("F32", 200 * MiB)), **said)
    container: Container = start(MME_MEMORY_LIMIT="1300M", MME_MEMORY_RESERVE="100M")
    reply = container.load("m", folder)
    assert reply.status == 507, reply.body
    settings(folder, dtype="float32")
    assert "it began" in container.load("m", folder).json()["message"]


def anonymous(pid: int) -> int:
    """Bytes that no file backs, shared with the process's parent or not; 0 for one that is gone."""
    with suppress(OSError):
        for row in Path(f"/proc/{pid}/status").read_text().splitlines():
            if row.startswith("RssAnon:"):
                return int(row.split()[1]) * 1024
    return 0


class Watched:
    """Looks at a model's process, and at what it starts, as often as it can until the block ends."""

    def __init__(self, container: Container) -> None:
        (self._parent,) = system.children(container.process.pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.most = 0
        """Bytes that they had more than they began with, at most."""

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def now(self) -> int:
        base = anonymous(self._parent)
        return sum(max(0, anonymous(pid) - base) for pid in system.children(self._parent))

    def _watch(self) -> None:
        began: dict[int, int] = {}
        while not self._over.is_set():
            more = self.now()
            for worker in system.children(self._parent):
                for pid in system.children(worker):
                    size = anonymous(pid)
                    more += max(0, size - began.setdefault(pid, size))
            self.most = max(self.most, more)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell")
@pytest.mark.parametrize(  # in what was asked for, and in what the processor is fast in
    ("kind", "asked"), [("embedding", "asked"), ("generation", "")]
)
def test_what_is_promised_bounds_what_is_taken(start: Any, tmp_path: Path, kind: str, asked: str) -> None:
    import tiny_models
    from safetensors.torch import load_file, save_file

    if kind == "embedding":
        shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
        wide = tiny_models.bert(tmp_path / "float32", num_hidden_layers=16, **shape)
    else:
        wide = tiny_models.gpt2(tmp_path / "float32", n_embd=384, n_head=6, n_layer=12)
    half = shutil.copytree(wide, tmp_path / "bfloat16")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(wide / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    numbers = sum(tensor.numel() for tensor in tensors.values())
    container: Container = start(MME_PRELOAD="torch,transformers,onnxruntime", MME_FORMAT=asked)
    for folder, said in (
        (wide, {"dtype": "bfloat16"}),
        (wide, {"dtype": "float16"}),
        (wide, {"quantize": "int8"}),
        (half, {}),
        (half, {"quantize": "int8"}),
    ):
        handler_files.copy_handler(ROOT / "model_code" / kind, folder / "code")
        settings(folder, ours=False, **said)
        entry = Model("m", "/m", "/m", 1, memory.weights(str(folder)))
        with Watched(container) as watched:
            reply = container.load("m", folder)
        assert reply.status == 200, reply.body
        assert watched.most <= entry.load_estimate, (folder.name, said)
        assert watched.now() <= entry.estimate, (folder.name, said)
        if (folder, said) == (half, {}):
            # Float32 made of 16 bits is four bytes a number, less what the process has given back meanwhile.
            assert watched.now() > 3 * numbers, "otherwise this test sees nothing"
        container.unload("m")
