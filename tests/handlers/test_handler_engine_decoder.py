"""GPT-2's steps computed by ONNX Runtime against transformers' own, and when they are left to torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_adapters
import torch
import transformers
from handler_tools import TINY_GPT2, Context, load, request
from transformers import AutoTokenizer

load("embedding")
import engine  # noqa: E402
import engine_decoders  # noqa: E402

pytest.importorskip("onnxruntime")

PROMPTS = ["The house", "Nobody was at home, and the gate stood open. The rain", "It", "a b c d e f g h"]
KINDS: dict[str, dict[str, Any]] = {
    "small": {},
    "another activation": {"activation_function": "gelu"},
    "an inner width of its own": {"n_inner": 40},
    "a head of its own": {"tie_word_embeddings": False},
    "one layer": {"n_layer": 1},
}


@pytest.fixture
def generation() -> ModuleType:
    return load("generation")


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_ENGINE", raising=False)


def model(folder: Path, settings: dict[str, Any] | None = None, seed: int = 0, **changes: Any) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(TINY_GPT2)
    torch.manual_seed(seed)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": len(tokenizer)}
    made = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | changes))
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "code").mkdir()
    (folder / "code" / "settings.json").write_text(json.dumps(settings or {}))
    return folder


def texts(generation: ModuleType, loaded: Any, **parameters: Any) -> list[list[str]]:
    """Of every prompt alone, and of all together."""
    parameters = {"max_new_tokens": 24, "return_full_text": False, **parameters}
    asked = [request(generation, prompt, **parameters) for prompt in PROMPTS]
    alone = [generation.predict_fn(one, loaded) for one in asked]
    together = generation.batch_fn([request(generation, prompt, **parameters) for prompt in PROMPTS], loaded)
    return [[entry["generated_text"] for answer in answers for entry in answer] for answers in (alone, together)]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_torchs_alone_and_together(
    generation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = model(tmp_path / "m", **KINDS[kind])
    context = Context()
    loaded = generation.model_fn(str(folder), context)
    assert (context.notes["engine"], context.notes["reason"]) == ("onnxruntime", "")
    steps: list[int] = []
    compute = engine.Decoding.step
    monkeypatch.setattr(
        engine.Decoding, "step", lambda self, ids, *rest: (steps.append(len(ids)), compute(self, ids, *rest))[1]
    )
    mapped = texts(generation, loaded)
    assert set(steps) == {1}, "mapped weights are the engine's for one row alone"
    offer = generation.busy_fn(loaded)
    assert offer.bytes > 0
    offer.begin()
    packed = texts(generation, loaded)
    assert max(steps) == len(PROMPTS)
    sampled = texts(generation, loaded, do_sample=True, seed=7)
    offer.end()
    monkeypatch.setenv("MME_ENGINE", "torch")
    torchs = generation.model_fn(str(folder))
    assert torchs.engine is None
    want = texts(generation, torchs)
    assert want[0] == want[1]
    assert mapped == packed == want
    assert sampled == texts(generation, torchs, do_sample=True, seed=7)


def test_requests_join_and_leave_as_with_torch(
    generation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path / "m")
    answers = []
    for chosen in ("", "torch"):
        monkeypatch.setenv("MME_ENGINE", chosen)
        loaded = generation.model_fn(str(folder))
        if not chosen:
            generation.busy_fn(loaded).begin()
        decoder = generation.decoder_fn(loaded)
        done: dict[Any, Any] = {}
        for place, prompt in enumerate(PROMPTS):
            decoder.add(place, request(generation, prompt, max_new_tokens=6 + 5 * place))
            done |= dict(decoder.step())
        decoder.drop(1)
        while len(decoder):
            done |= dict(decoder.step())
        answers.append(done)
    assert sorted(answers[0]) == [0, 2, 3]
    assert answers[0] == answers[1]


def test_logits_are_transformers_own_to_the_last_place_of_the_context(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", n_positions=40)
    own = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    decoding = engine.load_decoder(folder, own.config)
    ids = np.random.default_rng(3).integers(0, own.config.vocab_size, (3, 40))
    mask = np.ones_like(ids)
    mask[1, :9], mask[2, :25] = 0, 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    cache = None
    at = 0
    for columns in (20, 1, 5, 1, 13):
        until = at + columns
        got, cache = decoding.step(ids[:, at:until], mask[:, :until], positions[:, at:until], cache)
        at = until
        with torch.inference_mode():
            want = own(
                input_ids=torch.tensor(ids[:, :until]),
                attention_mask=torch.tensor(mask[:, :until]),
                position_ids=torch.tensor(positions[:, :until]),
            ).logits[:, -1]
        rows = [row for row in range(3) if mask[row, :until].any()]
        apart = np.abs(got - want.numpy())[rows].max()
        assert apart <= 1e-5 * max(1.0, float(want.abs().max()))


def test_a_graph_known_to_be_equal_is_not_compared_again(
    generation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context()
    generation.model_fn(str(model(tmp_path / "one")), context)
    monkeypatch.setenv(engine.CHECKED, context.notes["key"])
    with monkeypatch.context() as patched:
        patched.setattr(engine, "decodes_otherwise", None)
        assert generation.model_fn(str(model(tmp_path / "two", seed=1))).engine is not None
    other = Context()
    generation.model_fn(str(model(tmp_path / "three", n_layer=3)), other)
    assert other.notes["key"] != context.notes["key"]


def test_a_graph_that_answers_otherwise_is_not_used(
    generation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_decoders, "GELU", {"gelu_new": "none"})
    context = Context()
    loaded = generation.model_fn(str(model(tmp_path / "m")), context)
    assert loaded.engine is None
    assert context.notes["engine"] == "torch"
    assert "differ" in context.notes["reason"]
    assert generation.busy_fn(loaded) is None


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        ({"quantize": "int8"}, {}, "int8"),
        ({}, {"scale_attn_by_inverse_layer_idx": True}, "attention"),
        ({}, {"activation_function": "relu"}, "activation"),
    ],
)
def test_what_is_left_to_torch(
    generation: ModuleType, tmp_path: Path, settings: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    context = Context()
    loaded = generation.model_fn(str(model(tmp_path / "m", settings, **changes)), context)
    assert (loaded.engine, context.notes["engine"]) == (None, "torch")
    assert reason in context.notes["reason"]
    alone, _ = texts(generation, loaded)
    assert all(alone)


LAYERS = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")


@pytest.mark.parametrize("layers", [LAYERS, ("c_attn",)])
def test_an_adapter_of_linear_layers_is_the_graphs(
    generation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: tuple[str, ...]
) -> None:
    folder = model(tmp_path / "m")
    tiny_adapters.lora(folder / "adapter", folder, layers, rank=3, lora_alpha=5)
    context = Context()
    loaded = generation.model_fn(str(folder), context)
    assert (context.notes["engine"], context.notes["reason"]) == ("onnxruntime", "")
    got = texts(generation, loaded)
    offer = generation.busy_fn(loaded)
    offer.begin()
    assert texts(generation, loaded) == got
    offer.end()
    monkeypatch.setenv("MME_ENGINE", "torch")
    assert got == texts(generation, generation.model_fn(str(folder)))
    # A graph without the adapter would answer otherwise.
    monkeypatch.delenv("MME_ENGINE")
    monkeypatch.setattr(generation.handler_adapter, "matrices", lambda folder: {})
    generation.model_fn(str(folder), context)
    assert "differ" in context.notes["reason"]


def test_adapters_of_one_shape_have_graphs_that_are_known_alike(
    generation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for seed, rank in ((0, 4), (1, 4), (2, 3)):
        folder = model(tmp_path / str(seed))
        tiny_adapters.lora(folder / "adapter", folder, ("c_attn",), rank=rank, seed=seed)
        context = Context()
        generation.model_fn(str(folder), context)
        keys.append(context.notes["key"])
    assert keys[0] == keys[1] != keys[2]


def test_an_adapter_of_a_table_is_torchs(generation: ModuleType, tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    tiny_adapters.lora(folder / "adapter", folder, ("c_attn", "wpe"))
    context = Context()
    loaded = generation.model_fn(str(folder), context)
    assert loaded.engine is None
    assert context.notes["reason"] == "its adapter changes transformer.wpe"


def test_another_family_is_left_to_torch(generation: ModuleType, tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    shutil.rmtree(folder / "code")
    config = transformers.LlamaConfig(
        vocab_size=600, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    context = Context()
    assert generation.model_fn(str(folder), context).engine is None
    assert "llama" in context.notes["reason"]


def test_beams_are_transformers_own(generation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "m")
    got = texts(generation, generation.model_fn(str(folder)), num_beams=3)
    monkeypatch.setenv("MME_ENGINE", "torch")
    assert got == texts(generation, generation.model_fn(str(folder)), num_beams=3)
