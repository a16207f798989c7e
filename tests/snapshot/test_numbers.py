"""Weights that are no numbers, or not the numbers that they are taken for, are refused before anything is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_adapters
import torch
from safetensors.torch import load_file, save_file

from mme.catalog.spec import ModelSpec, Source
from mme.errors import SourceError
from mme.snapshot import retrieve, tensors
from mme.snapshot.weights import Piece

QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def own(bert: Path, tmp_path: Path) -> Path:
    """A copy of the BERT, to be changed."""
    return Path(shutil.copytree(bert, tmp_path / "own"))


def changed(base: Path, name: str, tensor: torch.Tensor) -> None:
    state = load_file(base / "model.safetensors")
    save_file({**state, name: tensor}, base / "model.safetensors", metadata={"format": "pt"})


def taken(base: Path, out: Path, **more: object) -> Path:
    spec = ModelSpec("model", Source("folder", base.name, base), task="feature-extraction", **more)  # type: ignore[arg-type]
    return retrieve.snapshot(spec, out).path


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_nan_among_the_weights_is_refused(own: Path, tmp_path: Path, dtype: str | None) -> None:
    weight = load_file(own / "model.safetensors")[QUERY]
    weight[1, 2] = float("nan")
    changed(own, QUERY, weight)
    with pytest.raises(SourceError, match=f"{QUERY} holds NaN"):
        taken(own, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("merge", [True, False])
def test_nan_in_an_adapter_is_refused(own: Path, tmp_path: Path, merge: bool) -> None:
    adapter = tiny_adapters.lora(tmp_path / "a", own, ("query",))
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({name: half * float("nan") for name, half in load_file(file).items()}, file)
    with pytest.raises(SourceError, match="holds NaN"):
        taken(own, tmp_path / "out", adapter=adapter, adapter_merge=merge)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("cut", [1, 3, 1 << 20])
def test_every_format_in_any_pieces(dtype: str, cut: int) -> None:
    numbers = torch.tensor([0.0, -1.5, float("inf"), float("-inf"), 65504.0, -0.0], dtype=getattr(torch, dtype))

    def read(values: torch.Tensor) -> bytes:
        data = bytes(tensors.content(values))
        parts = [data[at : at + cut] for at in range(0, len(data), cut)]
        piece = Piece("w", tensors.SAFETENSORS[dtype], tuple(values.shape), lambda: parts)
        return b"".join(tensors.without_nan(piece, "model").chunks())

    assert read(numbers) == bytes(tensors.content(numbers))
    for bad in (float("nan"), -float("nan")):
        with pytest.raises(SourceError, match="w holds NaN"):
            read(torch.cat([numbers, torch.tensor([bad], dtype=numbers.dtype)]))


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool, torch.int32, torch.complex64])
def test_weights_in_whole_numbers_are_refused(own: Path, tmp_path: Path, kind: torch.dtype) -> None:
    """transformers takes them for the weights themselves, and answers nonsense without a word."""
    changed(own, QUERY, load_file(own / "model.safetensors")[QUERY].to(kind))
    with pytest.raises(SourceError, match=r"not plain numbers.*quantization_config"):
        taken(own, tmp_path / "out")


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv", "qweight", "weight.absmax", "SCB"])
def test_scales_that_nobody_applies_are_refused(own: Path, tmp_path: Path, name: str) -> None:
    changed(own, QUERY.removesuffix("weight") + name, torch.ones(8))
    with pytest.raises(SourceError, match=name):
        taken(own, tmp_path / "out")


def test_further_tensors_and_whole_numbers_of_buffers_are_taken(own: Path, tmp_path: Path) -> None:
    changed(own, "cls.predictions.bias", torch.ones(8))
    changed(own, "embeddings.position_ids", torch.arange(8))
    taken(own, tmp_path / "out")


def configured(base: Path, **values: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **values}))


def test_a_way_of_quantizing_that_transformers_does_not_know_says_nothing(own: Path, tmp_path: Path) -> None:
    """transformers passes it over with a warning, and takes the scaled numbers for the weights."""
    configured(own, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    taken(own, tmp_path / "plain")
    changed(own, QUERY.removesuffix("weight") + "weight_scale", torch.ones(8))
    with pytest.raises(
        SourceError, match=r"weight_scale among them.*a way that transformers does not know \(modelopt\)"
    ):
        taken(own, tmp_path / "out")


@pytest.mark.parametrize("values", [{"num_hidden_layers": 10**7}, {"text_config": {"encoder_layers": 10**9}}])
def test_a_model_of_more_layers_than_tensors_is_refused_before_it_is_built(
    own: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    configured(own, **values)
    with pytest.raises(SourceError, match=r"layers = [\d,]+, and its weights are \d+ tensors"):
        taken(own, tmp_path / "out")


def test_an_adapter_beside_the_weights_is_spoken_of(own: Path, tmp_path: Path) -> None:
    tiny_adapters.lora(own, own, ("query",))
    spec = ModelSpec("model", Source("folder", "own", own), task="feature-extraction")
    (words,) = retrieve.snapshot(spec, tmp_path / "out").facts["unused"]
    assert "adapter_config.json" in words
