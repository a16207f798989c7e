"""Encoders in int8 by ONNX Runtime: as near to float32 as torch's int8, and when they are left to torch."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers
from handler_tools import Context, cosines, linked, load, minilm, request, stored_int8
from safetensors.torch import load_file, save_file
from small_encoders import TEXTS, body

load("embedding")  # which puts its modules on the path
import engine  # noqa: E402
import engine_builder  # noqa: E402


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_ENGINE")


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "MPNet", "Albert", "Electra", "ModernBert", "DebertaV2"])
def test_int8_that_is_stored_is_torchs_int8(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stored_int8(body(name, bert, tmp_path / "source"), tmp_path / "m", "AutoModel")
    context = Context()
    ours = embedding.model_fn(str(tmp_path / "m"), context)
    assert (context.notes["engine"], context.notes["format"]) == ("onnxruntime", "int8"), context.notes
    monkeypatch.setenv("MME_ENGINE", "torch")
    torchs = embedding.model_fn(str(tmp_path / "m"))
    got, want = (embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"] for model in (ours, torchs))
    assert cosines(got, want).min() > 0.999


@pytest.mark.parametrize("stored", [True, False])
def test_int8_is_near_to_float32_and_alone_as_in_a_batch(embedding: ModuleType, tmp_path: Path, stored: bool) -> None:
    from sentences import SENTENCES

    if stored:
        stored_int8(minilm(), tmp_path / "m", "AutoModel")
    else:
        linked(minilm(), tmp_path / "m", quantize="int8")
    model, exact = embedding.model_fn(str(tmp_path / "m")), embedding.model_fn(str(minilm()))
    assert model.engine is not None
    together = embedding.predict_fn(request(embedding, SENTENCES), model)["embeddings"]
    want = embedding.predict_fn(request(embedding, SENTENCES), exact)["embeddings"]
    alone = [embedding.predict_fn(request(embedding, text), model)["embeddings"][0] for text in SENTENCES]
    assert cosines(together, want).min() > 0.99
    assert cosines(together, np.stack(alone)).min() > 0.9999


@pytest.mark.parametrize(
    "name", ["Bert", "MPNet", "Albert", "Electra", "ModernBert", "NomicBert", "DebertaV2", "Deberta"]
)
def test_int8_that_is_made_on_loading_is_torchs_int8(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    body(name, bert, tmp_path / "source")
    folder = linked(tmp_path / "source", tmp_path / "m", quantize="int8")
    context = Context()
    ours = embedding.model_fn(str(folder), context)
    assert (context.notes["engine"], context.notes["format"]) == ("onnxruntime", "int8"), context.notes
    assert ours.model is None
    monkeypatch.setenv("MME_ENGINE", "torch")
    torchs = embedding.model_fn(str(folder))
    got, want = (embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"] for model in (ours, torchs))
    assert cosines(got, want).min() > 0.999


def test_int8_made_on_loading_is_the_very_int8_that_is_stored(bert: Path, tmp_path: Path) -> None:
    source = body("Bert", bert, tmp_path / "source")
    stored_int8(source, tmp_path / "m", "AutoModel", smooth=False)
    config = transformers.AutoConfig.from_pretrained(source)
    made = engine.load(source, config, int8=True)
    stored = engine.load(tmp_path / "m", config, "model.int8.safetensors", int8=True)
    rows = [[101, 7, 8, 9, 102], [101, 102]]
    assert (made.run(rows) == stored.run(rows)).all()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("name", ["Bert", "DebertaV2"])
def test_int8_that_is_farther_from_float32_than_torchs_is_not_used(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stored: bool
) -> None:
    """Here since its norms add a larger number than the model's."""
    source = body(name, bert, tmp_path / "source")
    if stored:
        folder = stored_int8(source, tmp_path / "m", "AutoModel")
    else:
        folder = linked(source, tmp_path / "m", quantize="int8")
    norm = engine_builder.Builder.norm
    monkeypatch.setattr(
        engine_builder.Builder, "norm", lambda self, x, name, width, eps: norm(self, x, name, width, eps + 0.02)
    )
    context = Context()
    assert embedding.model_fn(str(folder), context).engine is None
    assert "from float32, and torch's" in context.notes["reason"]


def test_int8_of_tokens_without_any_value(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no largest value to divide by."""
    source = body("Bert", bert, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    for part in ("weight", "bias"):
        tensors[f"embeddings.LayerNorm.{part}"] = torch.zeros_like(tensors[f"embeddings.LayerNorm.{part}"])
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    stored_int8(source, tmp_path / "m", "AutoModel")
    ours = embedding.model_fn(str(tmp_path / "m"))
    assert ours.engine is not None
    monkeypatch.setenv("MME_ENGINE", "torch")
    torchs = embedding.model_fn(str(tmp_path / "m"))
    got, want = (embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"] for model in (ours, torchs))
    assert np.isfinite(got).all()
    assert cosines(got, want).min() > 0.999


def test_int8_models_of_a_kind_are_compared_once(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their graphs hold their weights, and are the same in all else."""
    keys = []
    for number in range(2):
        source = body("Bert", bert, tmp_path / f"source{number}")
        tensors = {name: tensor * (1 + number) for name, tensor in load_file(source / "model.safetensors").items()}
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        stored_int8(source, tmp_path / f"m{number}", "AutoModel")
        context = Context()
        embedding.model_fn(str(tmp_path / f"m{number}"), context)
        keys.append(context.notes["key"])
    assert keys[0]
    assert keys[0] == keys[1]


def test_int8_of_eight_bits_is_torchs(embedding: ModuleType, bert: Path, tmp_path: Path) -> None:
    """As archives have it from before weights had seven: products of eight bits overflow on some processors."""
    stored_int8(body("Bert", bert, tmp_path / "source"), tmp_path / "m", "AutoModel")
    path = tmp_path / "m" / "model.int8.safetensors"
    tensors = load_file(path)
    wide = {name: tensor * 2 if tensor.dtype == torch.int8 else tensor for name, tensor in tensors.items()}
    save_file(wide, path, {"format": "pt"})
    context = Context()
    assert embedding.model_fn(str(tmp_path / "m"), context).engine is None
    assert "eight bits" in context.notes["reason"]


def test_int8_offers_nothing_since_it_is_packed(embedding: ModuleType, tmp_path: Path) -> None:
    model = embedding.model_fn(str(stored_int8(minilm(), tmp_path / "m", "AutoModel")))
    assert embedding.busy_fn(model).bytes == 0
