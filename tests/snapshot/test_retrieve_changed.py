"""Weights that are changed on purpose: another number format, measured and bounded; an adapter merged in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from mme.catalog.spec import ModelSpec, Source
from mme.errors import SourceError
from mme.snapshot import accuracy, retrieve, weights
from mme.tasks.inspection import accuracy_text

pytestmark = pytest.mark.usefixtures("warm_accuracy")


def spec(folder: Path, task: str = "text-generation", **more: object) -> ModelSpec:
    return ModelSpec("model", Source("folder", "model", folder), task=task, **more)  # type: ignore[arg-type]


# --- number formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_half_the_size_and_what_it_costs(gpt2: Path, tmp_path: Path, dtype: str, stored: str) -> None:
    full = retrieve.snapshot(spec(gpt2), tmp_path / "whole")
    half = retrieve.snapshot(spec(gpt2, dtype=dtype), tmp_path / "half")
    assert {tensor.dtype for tensor in weights.read_header(half.path / "model.safetensors")} == {stored}
    sizes = [(taken.path / "model.safetensors").stat().st_size for taken in (full, half)]
    assert sizes[1] < 0.7 * sizes[0]
    assert json.loads((half.path / "config.json").read_text())["torch_dtype"] == dtype
    measured = half.facts["accuracy"]
    assert measured["against"] == "float32"
    assert 0 < measured["mean"] <= measured["worst"] < 0.01
    assert (measured["measure"], measured["bounded"], measured["bound"]) == ("choices", "mean", 0.05)
    assert 0 <= measured["same_choice"] <= 1
    assert "against float32" in (accuracy_text(measured) or "")
    assert "accuracy" not in full.facts


def test_the_measure_is_that_of_the_outputs(gpt2: Path, tmp_path: Path) -> None:
    """The same figures, found another way: both models loaded by hand, one text, one token after the other."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = retrieve.snapshot(spec(gpt2, dtype="bfloat16"), tmp_path / "half")
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    moved = []
    for text in accuracy.TEXTS:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=accuracy.MOST_TOKENS)["input_ids"]
        with torch.no_grad():
            one, two = (
                AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()(ids).logits[0].float().softmax(-1)
                for path in (gpt2, half.path)
            )
        moved += [float((a - b).clamp(min=0).sum()) for a, b in zip(one, two, strict=True)]
    assert half.facts["accuracy"]["worst"] == pytest.approx(max(moved), rel=1e-3, abs=1e-7)
    assert half.facts["accuracy"]["mean"] == pytest.approx(sum(moved) / len(moved), rel=1e-3, abs=1e-7)


def test_what_exceeds_the_bound_is_refused(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"more accuracy than max_error allows.* In bfloat16: .* \(bound: 1e-09 on average\)"
    ) as caught:
        retrieve.snapshot(spec(gpt2, dtype="bfloat16", max_error=1e-9), tmp_path / "half")
    assert "max_error" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


def test_numbers_beyond_float16_are_refused(gpt2: Path, tmp_path: Path) -> None:
    """1e5 is infinite in float16: the outputs are NaN, which must not pass for no difference."""
    folder = tmp_path / "large"
    tiny_models.gpt2(folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.0.mlp.c_fc.weight"))
    tensors[name][0, 0] = 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match="more accuracy than max_error allows"):
        retrieve.snapshot(spec(folder, dtype="float16"), tmp_path / "out")


def test_the_format_it_has_already_is_not_measured(gpt2: Path, tmp_path: Path) -> None:
    assert "accuracy" not in retrieve.snapshot(spec(gpt2, dtype="float32"), tmp_path / "out").facts


def test_embeddings_are_measured_too(bert: Path, tmp_path: Path) -> None:
    taken = retrieve.snapshot(spec(bert, "feature-extraction", dtype="bfloat16"), tmp_path / "out")
    assert 0 < taken.facts["accuracy"]["worst"] < 0.01
    assert taken.facts["accuracy"]["same_choice"] is None


# --- adapters ------------------------------------------------------------------------------------------------


def adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Source:
    folder.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6, **config}))
    return Source("folder", "adapter", folder)


ATTENTION = "transformer.h.0.attn.c_attn"  # 8 in, 24 out, stored the other way round (Conv1D)
QUERY = "encoder.layer.0.attention.self.query"  # 8 in, 8 out


def test_merging_adds_b_times_a(gpt2: Path, tmp_path: Path) -> None:
    a, b = torch.randn(2, 8), torch.randn(24, 2)
    source = adapter(tmp_path / "a", {f"{ATTENTION}.lora_A.weight": a, f"{ATTENTION}.lora_B.weight": b})
    before, after = (
        load_file(retrieve.snapshot(spec(gpt2, adapter=given), tmp_path / str(number)).path / "model.safetensors")
        for number, given in enumerate((None, source))
    )
    assert torch.allclose(after[f"{ATTENTION}.weight"], before[f"{ATTENTION}.weight"] + 3 * (b @ a).T, atol=1e-6)
    unchanged = before.keys() - {f"{ATTENTION}.weight"}
    assert all(torch.equal(before[name], after[name]) for name in unchanged)


def test_scales_and_other_layers(bert: Path, tmp_path: Path) -> None:
    """Rank-stabilised scaling, an alpha of its own for one layer, an embedding, a layer trained whole."""
    torch.manual_seed(0)
    tensors = {
        f"{QUERY}.lora_A.weight": torch.randn(2, 8),
        f"{QUERY}.lora_B.weight": torch.randn(8, 2),
        "embeddings.word_embeddings.lora_embedding_A": torch.randn(2, 14),
        "embeddings.word_embeddings.lora_embedding_B": torch.randn(8, 2),
        "pooler.dense.weight": torch.randn(8, 8),
    }
    source = adapter(tmp_path / "a", tensors, use_rslora=True, alpha_pattern={"attention.self.query": 4})
    base = spec(bert, "feature-extraction")
    before = load_file(retrieve.snapshot(base, tmp_path / "before").path / "model.safetensors")
    taken = retrieve.snapshot(spec(bert, "feature-extraction", adapter=source), tmp_path / "after")
    after = load_file(taken.path / "model.safetensors")
    assert taken.facts["adapted"] == 3
    query = tensors[f"{QUERY}.lora_B.weight"] @ tensors[f"{QUERY}.lora_A.weight"]
    assert torch.allclose(after[f"{QUERY}.weight"], before[f"{QUERY}.weight"] + 4 / 2**0.5 * query, atol=1e-6)
    words = (
        tensors["embeddings.word_embeddings.lora_embedding_B"] @ tensors["embeddings.word_embeddings.lora_embedding_A"]
    )
    name = "embeddings.word_embeddings.weight"
    assert torch.allclose(after[name], before[name] + 6 / 2**0.5 * words.T, atol=1e-6)
    assert torch.equal(after["pooler.dense.weight"], tensors["pooler.dense.weight"])


def test_an_adapter_of_the_whole_fits_the_body(gpt2: Path, tmp_path: Path) -> None:
    """Trained on GPT2LMHeadModel, merged into GPT2Model: the layer is called h.0 there, not transformer.h.0."""
    source = adapter(
        tmp_path / "a",
        {f"{ATTENTION}.lora_A.weight": torch.ones(2, 8), f"{ATTENTION}.lora_B.weight": torch.ones(24, 2)},
    )
    assert retrieve.snapshot(spec(gpt2, "feature-extraction", adapter=source), tmp_path / "out").facts["adapted"] == 1


WRONG = {
    "another kind": ({}, {"peft_type": "IA3"}, r"not a plain LoRA adapter \(IA3\)"),
    "DoRA": ({}, {"use_dora": True}, r"use_dora"),
    "a bias": ({}, {"bias": "all"}, "a bias of its own"),
    "nothing": ({}, {}, "holds nothing"),
    "half of it": ({f"{ATTENTION}.lora_A.weight": torch.ones(2, 8)}, {}, "without its other half"),
    "another half": ({f"{ATTENTION}.lora_B.weight": torch.ones(24, 2)}, {}, "not part of a LoRA adapter"),
    "another model": (
        {"layers.9.q.lora_A.weight": torch.ones(2, 8), "layers.9.q.lora_B.weight": torch.ones(8, 2)},
        {},
        r"a layer layers\.9\.q, which GPT2LMHeadModel does not have",
    ),
    "another size": (
        {f"{ATTENTION}.lora_A.weight": torch.ones(2, 9), f"{ATTENTION}.lora_B.weight": torch.ones(24, 2)},
        {},
        r"has the shape \(8, 24\)",
    ),
    "a layer that does not fit": ({"transformer.wte.weight": torch.ones(3, 3)}, {}, "does not fit the model"),
}


@pytest.mark.parametrize(("tensors", "config", "message"), WRONG.values(), ids=WRONG.keys())
def test_adapters_that_are_refused(
    gpt2: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, object], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        retrieve.snapshot(spec(gpt2, adapter=adapter(tmp_path / "a", tensors, **config)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_an_adapter(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no adapter_config\.json"):
        retrieve.snapshot(spec(gpt2, adapter=Source("folder", "g", gpt2)), tmp_path / "out")
