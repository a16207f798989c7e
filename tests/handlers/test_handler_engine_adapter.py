"""Encoders with an adapter, computed by ONNX Runtime: as torch computes them, and left to it where it knows more."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_adapters
import torch
from handler_tools import Context, cosines, linked, load, minilm, request, stored_int8, vectors
from safetensors.torch import load_file, save_file
from small_encoders import TEXTS, body

load("embedding")
pytest.importorskip("onnxruntime")
import engine  # noqa: E402

LAYERS = {
    "Bert": ("query", "value", "output.dense", "intermediate.dense"),
    "MPNet": ("attn.q", "attn.o"),
    "Albert": ("query", "ffn"),
    "ModernBert": ("Wqkv", "Wo"),
    "DebertaV2": ("query_proj", "key_proj", "output.dense"),
    "Deberta": ("in_proj", "pos_proj"),
}


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_ENGINE", raising=False)


def by_both(embedding: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray, str]:
    """What the handler answers by itself and with torch, and why it is not the engine, where it is not."""
    context = Context()
    ours = vectors(embedding, embedding.model_fn(str(folder), context), TEXTS)
    with monkeypatch.context() as patched:
        patched.setenv("MME_ENGINE", "torch")
        torchs = vectors(embedding, embedding.model_fn(str(folder)), TEXTS)
    return ours, torchs, context.notes["reason"]


def renamed(adapter: Path, change: Any) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize("name", LAYERS)
def test_vectors_are_torchs(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = body(name, bert, tmp_path / "m")
    plain = vectors(embedding, embedding.model_fn(str(folder)), TEXTS)
    tiny_adapters.lora(folder / "adapter", folder, LAYERS[name], use_rslora=True)
    ours, torchs, reason = by_both(embedding, folder, monkeypatch)
    assert reason == ""
    bound = 1e-5 * max(1.0, float(np.abs(torchs).max()))
    assert np.abs(ours - torchs).max() <= bound
    assert np.abs(ours - plain).max() > 100 * bound, "the adapter does something"


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_adapter_of_a_model_with_a_head(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """It may have the head's names where the base has none, and the other way round."""
    folder = body("Bert", bert, tmp_path / "m", "Model" if prefix else "ForMaskedLM")
    tiny_adapters.lora(folder / "adapter", folder, ("query", "value"))
    start = tiny_adapters.PREFIX
    renamed(folder / "adapter", lambda name: start + prefix + name.removeprefix(start).removeprefix("bert."))
    ours, torchs, reason = by_both(embedding, folder, monkeypatch)
    assert reason == ""
    assert np.abs(ours - torchs).max() <= 1e-5 * max(1.0, float(np.abs(torchs).max()))


@pytest.mark.parametrize("stored", [True, False])
def test_int8_beneath_an_adapter(
    embedding: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    if stored:
        folder = stored_int8(minilm(), tmp_path / "m", "AutoModel")
    else:
        folder = linked(minilm(), tmp_path / "m", quantize="int8")
    exact = linked(minilm(), tmp_path / "exact")
    for at in (folder, exact):
        tiny_adapters.lora(at / "adapter", minilm(), ("query", "value"), strength=0.1)
    ours, torchs, reason = by_both(embedding, folder, monkeypatch)
    assert reason == ""
    want = vectors(embedding, embedding.model_fn(str(exact)), TEXTS)
    assert cosines(ours, want).min() > 0.98
    assert 1 - cosines(ours, want).mean() < 1.5 * (1 - cosines(torchs, want).mean())


def test_a_part_that_no_answer_depends_on_does_not_matter(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = body("Bert", bert, tmp_path / "m")
    tiny_adapters.lora(folder / "adapter", folder, ("query", "pooler.dense"))
    ours, torchs, reason = by_both(embedding, folder, monkeypatch)
    assert reason == ""
    assert np.abs(ours - torchs).max() <= 1e-5 * max(1.0, float(np.abs(torchs).max()))


def test_an_adapter_of_a_table_is_torchs(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = body("Bert", bert, tmp_path / "m")
    tiny_adapters.lora(folder / "adapter", folder, ("query", "word_embeddings"))
    ours, torchs, reason = by_both(embedding, folder, monkeypatch)
    assert reason == "its adapter changes embeddings.word_embeddings"
    assert (ours == torchs).all()


@pytest.mark.parametrize(("layer", "size"), [("encoder.layer.0.attention.self.query", 9), ("nowhere", 32)])
def test_an_adapter_that_does_not_fit_is_refused_also_where_the_graph_is_known(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, size: int
) -> None:
    folder = body("Bert", bert, tmp_path / "m")
    context = Context()
    embedding.model_fn(str(folder), context)
    monkeypatch.setenv(engine.CHECKED, context.notes["key"])
    halves = {"A": torch.ones(2, size), "B": torch.ones(32, 2)}
    tensors = {f"{tiny_adapters.PREFIX}{layer}.lora_{side}.weight": half for side, half in halves.items()}
    tiny_adapters.written(folder / "adapter", tensors, r=2)
    with pytest.raises(ValueError, match="adapter"):
        embedding.model_fn(str(folder))


def test_models_that_share_a_base_have_graphs_that_are_known_alike(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = body("Bert", bert, tmp_path / "base")
    answers, keys = [], []
    for seed in range(2):
        folder = linked(base, tmp_path / str(seed))
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").hardlink_to(base / "model.safetensors")
        tiny_adapters.lora(folder / "adapter", base, LAYERS["Bert"], seed=seed)
        context = Context()
        model = embedding.model_fn(str(folder), context)
        assert model.model is None
        keys.append(context.notes["key"])
        monkeypatch.setenv(engine.CHECKED, keys[0])
        monkeypatch.setattr(embedding, "_model", lambda *_: pytest.fail("transformers' model was loaded"))
        answers.append(embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"])
    assert keys[0] == keys[1]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
