"""An adapter that lies beside its base, applied by both handlers: as if it were merged, and nothing copied."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_adapters
import torch
from handler_tools import TINY_GPT2, cosines, linked, request, vectors
from safetensors.torch import load_file, save_file
from sentences import SENTENCES
from test_handler_versions import on, version  # noqa: F401 (a fixture)
from transformers import AutoModel, AutoModelForCausalLM

from mme.snapshot import adapters

BERT_LAYERS = ("query", "value", "output.dense", "word_embeddings", "token_type_embeddings")
GPT2_LAYERS = ("c_attn", "c_fc", "c_proj")
SCALES = {"alpha_pattern": {"0.attention.self.query|layer.1.output.dense": 8, "h.0.attn.c_attn": 9}}
PROMPTS = ["It was", "She", "Mr. Darcy and his friend, who had come from London", "The house"]


def merged(base: Path, adapter: Path, folder: Path, kind: Any) -> Path:
    """The same model with the adapter in its weights."""
    model = kind.from_pretrained(base)
    adapters.merge(model, adapter, "the adapter")
    linked(base, folder, ("model.safetensors", "config.json"))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def berts(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """MiniLM with an adapter, kept apart and merged."""
    root = tmp_path_factory.mktemp("berts")
    folder = linked(bert, root / "apart")
    tiny_adapters.lora(folder / "adapter", folder, BERT_LAYERS, strength=0.1, use_rslora=True, **SCALES)
    return folder, merged(bert, folder / "adapter", root / "merged", AutoModel)


@pytest.fixture(scope="module")
def gpt2s(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small trained GPT-2 with an adapter, kept apart and merged."""
    root = tmp_path_factory.mktemp("gpt2s")
    base = linked(TINY_GPT2, root / "base", ("model.safetensors", "config.json", "generation_config.json"))
    AutoModelForCausalLM.from_pretrained(TINY_GPT2).float().save_pretrained(base)  # it comes in float16
    folder = linked(base, root / "apart")
    tiny_adapters.lora(folder / "adapter", folder, GPT2_LAYERS, **SCALES)
    return folder, merged(base, folder / "adapter", root / "merged", AutoModelForCausalLM)


def texts(generation: ModuleType, model: Any, **parameters: Any) -> Any:
    return generation.predict_fn(request(generation, PROMPTS, max_new_tokens=24, **parameters), model)


def test_vectors_are_those_of_the_merged_model(embedding: ModuleType, embedder: Any, berts: tuple[Path, Path]) -> None:
    apart, in_one = (embedding.model_fn(str(folder)) for folder in berts)
    together = vectors(embedding, apart, SENTENCES)
    assert np.abs(together - vectors(embedding, in_one, SENTENCES)).max() < 1e-5
    alone = np.concatenate([vectors(embedding, apart, [text]) for text in SENTENCES])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - vectors(embedding, embedder, SENTENCES)).max() > 0.1, "the adapter does something"


@pytest.mark.parametrize("rows", [1, 2, 8, 64, 65])
def test_logits_are_those_of_the_merged_model_for_any_number_of_rows(
    generation: ModuleType, generator: Any, gpt2s: tuple[Path, Path], rows: int
) -> None:
    apart = generation.model_fn(str(gpt2s[0])).model
    plain = AutoModelForCausalLM.from_pretrained(gpt2s[1]).eval()
    torch.manual_seed(rows)
    ids = torch.randint(0, plain.config.vocab_size, (rows, 1))
    with torch.inference_mode():
        expected = plain(input_ids=ids).logits
        assert (apart(input_ids=ids).logits - expected).abs().max() < 1e-4
        assert (generator.model(input_ids=ids).logits - expected).abs().max() > 0.1
    layer = apart.transformer.h[0].attn.c_attn
    assert type(layer).__name__ == "AdaptedLinear"
    if torch.backends.mkldnn.is_available():
        assert type(layer.layer).__name__ == "FewRowsLinear", "the base computes as fast as without an adapter"


@pytest.mark.parametrize(
    "parameters",
    [{}, {"do_sample": True, "seed": 5}, {"num_beams": 3}, {"do_sample": True, "seed": 1, "num_return_sequences": 3}],
)
def test_texts_are_those_of_the_merged_model(
    generation: ModuleType, generator: Any, gpt2s: tuple[Path, Path], parameters: dict[str, Any]
) -> None:
    apart, in_one = (generation.model_fn(str(folder)) for folder in gpt2s)
    expected = texts(generation, in_one, **parameters)
    assert texts(generation, apart, **parameters) == expected
    assert texts(generation, generator, **parameters) != expected
    decoder = generation.decoder_fn(apart)
    joined: dict[Any, Any] = {}
    for place, prompt in enumerate(PROMPTS):
        decoder.add(place, request(generation, prompt, max_new_tokens=24, **parameters))
        joined.update(decoder.step())
    while len(decoder):
        joined.update(decoder.step())
    assert [joined[place] for place in range(len(PROMPTS))] == expected


def mapped(file: Path) -> list[tuple[int, int]]:
    """The addresses at which this process has the file in memory."""
    rows = re.findall(
        rf"^([0-9a-f]+)-([0-9a-f]+) .* {re.escape(str(file.resolve()))}$", Path("/proc/self/maps").read_text(), re.M
    )
    return [(int(begin, 16), int(end, 16)) for begin, end in rows]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells by /proc")
def test_weights_stay_in_their_files(
    embedding: ModuleType, generation: ModuleType, berts: tuple[Path, Path], gpt2s: tuple[Path, Path]
) -> None:
    """The base's, which all models over it share, and the adapter's: no copies in the process's own memory."""
    for handler, folder in ((embedding, berts[0]), (generation, gpt2s[0])):
        loaded = handler.model_fn(str(folder))
        base, own = mapped(folder / "model.safetensors"), mapped(folder / "adapter" / "adapter_model.safetensors")
        assert base
        for name, tensor in loaded.model.named_parameters():
            assert any(begin <= tensor.data_ptr() < end for begin, end in base), name
        halves = [(name, tensor) for name, tensor in loaded.model.named_buffers() if name.endswith((".a", ".b"))]
        assert halves
        for name, tensor in halves:
            assert any(begin <= tensor.data_ptr() < end for begin, end in own), name


def test_bfloat16(
    embedding: ModuleType, generation: ModuleType, berts: tuple[Path, Path], gpt2s: tuple[Path, Path], tmp_path: Path
) -> None:
    half = embedding.model_fn(str(linked(berts[0], tmp_path / "bert", dtype="bfloat16")))
    assert {tensor.dtype for tensor in half.model.state_dict().values() if tensor.is_floating_point()} == {
        torch.bfloat16
    }
    exact = vectors(embedding, embedding.model_fn(str(berts[1])), SENTENCES)
    assert cosines(vectors(embedding, half, SENTENCES), exact).min() > 0.999
    half = generation.model_fn(str(linked(gpt2s[0], tmp_path / "gpt2", dtype="bfloat16"))).model
    exact = AutoModelForCausalLM.from_pretrained(gpt2s[1]).eval()
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        near = torch.cosine_similarity(half(input_ids=ids).logits.float(), exact(input_ids=ids).logits, dim=-1)
    assert near.min() > 0.999


def test_int8_base_with_an_adapter_in_float32(
    embedding: ModuleType, generation: ModuleType, berts: tuple[Path, Path], gpt2s: tuple[Path, Path], tmp_path: Path
) -> None:
    coarse = embedding.model_fn(str(linked(berts[0], tmp_path / "bert", quantize="int8")))
    layer = coarse.model.encoder.layer[0].attention.self.query
    assert (type(layer).__name__, type(layer.layer).__name__) == ("AdaptedLinear", "Int8Linear")
    exact = vectors(embedding, embedding.model_fn(str(berts[1])), SENTENCES)
    assert cosines(vectors(embedding, coarse, SENTENCES), exact).min() > 0.98
    coarse = generation.model_fn(str(linked(gpt2s[0], tmp_path / "gpt2", quantize="int8"))).model
    exact = AutoModelForCausalLM.from_pretrained(gpt2s[1]).eval()
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        near = torch.cosine_similarity(coarse(input_ids=ids).logits, exact(input_ids=ids).logits, dim=-1)
    assert near.min() > 0.98


def test_a_model_without_an_adapter_is_left_alone(embedding: ModuleType, embedder: Any, bert: Path) -> None:
    assert sys.modules["handler_adapter"].adapt(embedder.model, bert) == 0
    assert not any(type(module).__name__.startswith("Adapted") for module in embedder.model.modules())


def test_an_adapter_of_the_whole_fits_the_body(embedding: ModuleType, gpt2s: tuple[Path, Path]) -> None:
    """Made for GPT2LMHeadModel, where the layers are called transformer.h, applied to GPT2Model."""
    body = AutoModel.from_pretrained(TINY_GPT2)
    assert sys.modules["handler_adapter"].adapt(body, gpt2s[0]) == 4 * body.config.n_layer


LAYER = "base_model.model.encoder.layer.0.attention.self.query"
ONES = {f"{LAYER}.lora_A.weight": torch.ones(2, 384), f"{LAYER}.lora_B.weight": torch.ones(384, 2)}
NORM = "base_model.model.encoder.layer.0.output.LayerNorm"
WRONG = {
    "another kind": ({"peft_type": "IA3"}, ONES, "peft_type must be LORA, not 'IA3'"),
    "half of it": ({}, {f"{LAYER}.lora_A.weight": torch.ones(2, 384)}, "without its other half"),
    "the other half": ({}, {f"{LAYER}.lora_B.weight": torch.ones(384, 2)}, "without its other half"),
    "more than products": ({}, {**ONES, f"{LAYER}.lora_magnitude_vector": torch.ones(384)}, "no part of a LoRA"),
    "another size": ({}, {**ONES, f"{LAYER}.lora_A.weight": torch.ones(2, 9)}, r"has the shape \(384, 384\)"),
    "another model": (
        {},
        {"x.q.lora_A.weight": torch.ones(2, 8), "x.q.lora_B.weight": torch.ones(8, 2)},
        r"BertModel has no layer x\.q\. An adapter fits the base",
    ),
    "a layer of another kind": (
        {},
        {f"{NORM}.lora_A.weight": torch.ones(2, 8), f"{NORM}.lora_B.weight": torch.ones(8, 2)},
        "is a LayerNorm, to which no adapter can be applied",
    ),
}


@pytest.mark.parametrize(("config", "tensors", "message"), WRONG.values(), ids=WRONG.keys())
def test_an_adapter_that_cannot_be_applied_fails_the_load(
    embedding: ModuleType,
    bert: Path,
    tmp_path: Path,
    config: dict[str, object],
    tensors: dict[str, torch.Tensor],
    message: str,
) -> None:
    folder = linked(bert, tmp_path / "m")
    tiny_adapters.written(folder / "adapter", tensors, **config)
    with pytest.raises(ValueError, match=message):
        embedding.model_fn(str(folder))


@pytest.mark.slow
def test_the_same_on_every_version(
    version: str,  # noqa: F811
    embedding: ModuleType,
    generation: ModuleType,
    berts: tuple[Path, Path],
    gpt2s: tuple[Path, Path],
) -> None:
    import base64

    asked = [[json.dumps(SENTENCES), "application/json", "application/json"]]
    [answer] = on(version, "embedding", berts[0], asked)
    theirs = np.array(json.loads(base64.b64decode(answer["body"]))["embeddings"])
    assert np.abs(theirs - vectors(embedding, embedding.model_fn(str(berts[1])), SENTENCES)).max() < 1e-5
    asked = [[json.dumps({"inputs": PROMPTS, "parameters": {"max_new_tokens": 24}}), "application/json", "*/*"]]
    [answer] = on(version, "generation", gpt2s[0], asked)
    assert json.loads(base64.b64decode(answer["body"])) == texts(generation, generation.model_fn(str(gpt2s[1])))


def test_a_bfloat16_adapter_on_a_float32_base(embedding: ModuleType, berts: tuple[Path, Path], tmp_path: Path) -> None:
    folder = linked(berts[0], tmp_path / "m", ("adapter",))
    (folder / "adapter").mkdir()
    rounded = {
        name: half.bfloat16() for name, half in load_file(berts[0] / "adapter/adapter_model.safetensors").items()
    }
    save_file(rounded, folder / "adapter" / "adapter_model.safetensors")
    (folder / "adapter" / "adapter_config.json").symlink_to(berts[0] / "adapter" / "adapter_config.json")
    adapted, exact = (vectors(embedding, embedding.model_fn(str(at)), SENTENCES) for at in (folder, berts[1]))
    assert cosines(adapted, exact).min() > 0.999
    assert adapted.dtype == np.float32
