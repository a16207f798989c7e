"""Requests that join and leave a batch in work, beside the same requests alone."""

import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from handler_tools import TINY_GPT2, linked, request
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

ASKED: list[tuple[Any, dict[str, Any]]] = [
    ("It was", {"max_new_tokens": 30}),
    ("She could not help thinking that the evening had been very long, and that", {"max_new_tokens": 3}),
    (["a", "Mr. Elton said,"], {"max_new_tokens": 17, "seed": 1}),
    ("She", {"seed": 2, "num_return_sequences": 3, "temperature": 0.7, "max_new_tokens": 12}),
    ("The house of her father, " * 8, {"max_new_tokens": 9, "repetition_penalty": 1.3}),
    ("Nobody", {"num_beams": 2, "max_new_tokens": 8}),
    ("He", {"max_new_tokens": 1}),
    ("It was", {"max_new_tokens": 40, "stop": [",", "."], "seed": 9}),
    ("Emma", {"max_new_tokens": 25, "top_p": 0.8, "min_new_tokens": 20, "seed": 5}),
]


def alone(generation: ModuleType, model: Any) -> list[Any]:
    return [generation.predict_fn(request(generation, text, **more), model) for text, more in ASKED]


def served(generation: ModuleType, model: Any, arrivals: dict[int, list[int]]) -> dict[int, Any]:
    """The results by number, of requests that arrive before these steps."""
    decoder = generation.decoder_fn(model)
    results: dict[int, Any] = {}
    step = 0
    while len(results) < len(ASKED):
        for number in arrivals.get(step, []):
            text, more = ASKED[number]
            decoder.add(number, request(generation, text, **more))
        for number, result in decoder.step():
            assert number not in results
            results[number] = result
        step += 1
        assert step < 500
    assert len(decoder) == 0
    assert decoder.step() == []
    return results


@pytest.mark.parametrize("seed", range(4))
def test_who_joins_when_changes_no_text(generation: ModuleType, generator: Any, seed: int) -> None:
    choice = random.Random(seed)
    arrivals: dict[int, list[int]] = {}
    for number in range(len(ASKED)):
        arrivals.setdefault(choice.randrange(30), []).append(number)
    assert served(generation, generator, arrivals) == dict(enumerate(alone(generation, generator)))


def test_a_small_budget_makes_requests_wait_and_changes_no_text(
    generation: ModuleType, generator: Any, tmp_path: Path
) -> None:
    small = generation.model_fn(str(linked(TINY_GPT2, tmp_path / "m", batch_tokens=90)))
    everything = {0: list(range(len(ASKED)))}
    assert served(generation, small, everything) == dict(enumerate(alone(generation, generator)))


def test_rows_keep_within_the_budget(
    generation: ModuleType, generator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = generation.model_fn(str(linked(TINY_GPT2, tmp_path / "m", batch_tokens=120)))
    decoding = sys.modules["generation_decoding"]
    sizes = []
    forward = decoding._forward

    def watched(ids: torch.Tensor, mask: torch.Tensor, *rest: Any) -> Any:
        sizes.append(tuple(mask.shape))
        return forward(ids, mask, *rest)

    monkeypatch.setattr(decoding, "_forward", watched)
    decoder = generation.decoder_fn(small)
    for number in range(12):
        decoder.add(number, request(generation, "It was", max_new_tokens=5 + number))
    finished = []
    while len(decoder):
        finished += [number for number, _ in decoder.step()]
    assert sorted(finished) == list(range(12))
    assert max(rows for rows, _ in sizes) > 1
    assert max(rows * columns for rows, columns in sizes) <= 120


def test_one_who_comes_late_does_not_wait_for_the_end_of_the_others(generation: ModuleType, generator: Any) -> None:
    decoder = generation.decoder_fn(generator)
    decoder.add("long", request(generation, "It was", max_new_tokens=100))
    for _ in range(5):
        assert decoder.step() == []
    decoder.add("short", request(generation, "She", max_new_tokens=3))
    done = [decoder.step() for _ in range(3)]
    assert [[key for key, _ in results] for results in done] == [[], [], ["short"]]
    assert len(decoder) == 1


def test_a_batch_that_never_ends_does_not_grow(generation: ModuleType, generator: Any) -> None:
    """Columns that nobody has any more leave with the rows that had them."""
    decoder = generation.decoder_fn(generator)
    widths = []
    for step in range(300):
        if step % 4 == 0:
            decoder.add(step, request(generation, "It was", max_new_tokens=10))
        decoder.step()
        widths.append(decoder._rows._mask.shape[1])
    assert max(widths) <= len(generator.tokenizer("It was")["input_ids"]) + 10
    assert len(decoder) <= 3


def test_a_request_that_is_dropped_is_never_answered(generation: ModuleType, generator: Any) -> None:
    decoder = generation.decoder_fn(generator)
    for key in ("gone", "stays"):
        decoder.add(key, request(generation, "It was", max_new_tokens=12))
    decoder.step()
    decoder.drop("gone")
    decoder.add("never begun", request(generation, "She"))
    decoder.drop("never begun")
    decoder.drop("no such")
    finished = []
    while len(decoder):
        finished += decoder.step()
    expected = generation.predict_fn(request(generation, "It was", max_new_tokens=12), generator)
    assert finished == [("stays", expected)]


def test_a_bad_request_is_refused_and_leaves_nothing(generation: ModuleType, generator: Any) -> None:
    decoder = generation.decoder_fn(generator)
    with pytest.raises(ValueError, match="max_new_tokens must be"):
        decoder.add(1, request(generation, "hi", max_new_tokens=0))
    with pytest.raises(ValueError, match="the model's context is 256"):
        decoder.add(1, request(generation, "word " * 600))
    assert len(decoder) == 0
    decoder.add(1, request(generation, "hi"))
    with pytest.raises(ValueError, match="the key 1 is in work"):
        decoder.add(1, request(generation, "hi"))
    assert len(decoder) == 1


@pytest.mark.parametrize("kind", ["llama", "llama with a window", "mamba"])
def test_models_with_other_caches(generation: ModuleType, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(TINY_GPT2)
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    heads = {
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**size, **ends, **heads)),
        "llama with a window": lambda: MistralForCausalLM(MistralConfig(**size, **ends, **heads, sliding_window=8)),
        "mamba": lambda: MambaForCausalLM(MambaConfig(**size, **ends, state_size=4)),
    }[kind]()
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    loaded = generation.model_fn(str(tmp_path / "m"))
    arrivals = {0: [0, 3], 2: [1, 2], 4: [4, 5, 6], 11: [7, 8]}
    assert served(generation, loaded, arrivals) == dict(enumerate(alone(generation, loaded)))
