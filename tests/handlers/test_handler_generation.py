"""The generation handler against transformers' own `generate`, on the small GPT-2 of the demo and random models."""

import dataclasses
import json
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

PROMPTS = [
    "It was",
    "She could not help thinking that the evening had been very long, and that",
    "a",
    "Mr. Elton said,",
    "The house of her father, which stood at the end of the village, " * 3,
]


def answer(handler: ModuleType, model: Any, inputs: Any, **parameters: Any) -> Any:
    body = handler.output_fn(handler.predict_fn(request(handler, inputs, **parameters), model), "application/json")
    return json.loads(body)


def texts(results: list[dict[str, Any]]) -> list[str]:
    return [result["generated_text"] for result in results]


def generated(model: Any, prompt: str, seed: int | None = None, **arguments: Any) -> list[str]:
    """What transformers gives for one prompt alone."""
    encoded = model.tokenizer(prompt, return_tensors="pt")
    if seed is not None:
        torch.manual_seed(seed)
    ids = model.model.generate(
        input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], pad_token_id=0, **arguments
    )
    new = ids[:, encoded["input_ids"].shape[1] :]
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in new]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
    ],
)
def test_without_sampling_the_text_is_that_of_generate(
    generation: ModuleType, generator: Any, parameters: dict[str, Any]
) -> None:
    expected = [generated(generator, prompt, max_new_tokens=24, do_sample=False, **parameters) for prompt in PROMPTS]
    alone = [texts(answer(generation, generator, prompt, max_new_tokens=24, **parameters)) for prompt in PROMPTS]
    together = answer(generation, generator, PROMPTS, max_new_tokens=24, **parameters)
    assert alone == expected
    assert [texts(results) for results in together] == expected


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"temperature": 0.6, "top_k": 5},
        {"temperature": 1.5, "top_k": 0, "top_p": 0.8},
        {"min_p": 0.05, "typical_p": 0.9, "repetition_penalty": 1.2},
        {"temperature": 2, "top_p": 1, "repetition_penalty": 1, "min_p": 0},
        {"no_repeat_ngram_size": 1, "min_new_tokens": 10},
    ],
)
def test_a_seed_gives_the_text_that_generate_gives_with_it(
    generation: ModuleType, generator: Any, parameters: dict[str, Any]
) -> None:
    ask = {"max_new_tokens": 24, **parameters}
    # Our numbers may be whole, those of transformers may not.
    wanted = {
        name: float(value) if name in sys.modules["generation_options"].FRACTIONS else value
        for name, value in ask.items()
    }
    expected = [generated(generator, prompt, seed=7, do_sample=True, **{"top_k": 50, **wanted}) for prompt in PROMPTS]
    alone = [texts(answer(generation, generator, prompt, seed=7, **ask)) for prompt in PROMPTS]
    together = answer(generation, generator, PROMPTS, seed=7, **ask)
    assert alone == expected
    assert [texts(results) for results in together] == expected, "a prompt's text does not depend on its company"


def test_seeds_tell_sequences_apart(generation: ModuleType, generator: Any) -> None:
    three = texts(answer(generation, generator, "It was", seed=5, num_return_sequences=3))
    assert len(set(three)) == 3
    assert texts(answer(generation, generator, "It was", seed=6)) == three[1:2]
    assert answer(generation, generator, "It was", seed=5) == answer(generation, generator, "It was", seed=5)
    without = {texts(answer(generation, generator, "It was", do_sample=True))[0] for _ in range(4)}
    assert len(without) > 1


def test_a_batch_gives_each_request_what_it_would_get_alone(generation: ModuleType, generator: Any) -> None:
    asked = [
        request(generation, "It was", max_new_tokens=30),
        request(generation, PROMPTS, max_new_tokens=5, seed=1),
        request(generation, "She", seed=2, num_return_sequences=3, temperature=0.7, max_new_tokens=12),
        request(generation, "He", max_new_tokens=9999),
        request(generation, "Nobody", num_beams=2, max_new_tokens=8),
        request(generation, PROMPTS[4], repetition_penalty=1.3, no_repeat_ngram_size=3, stop=["."]),
        request(generation, "word " * 600),
        request(generation, "", seed=3, top_p=0.5, min_new_tokens=4, max_new_tokens=6, return_full_text=True),
    ]
    alone = []
    for one in asked:
        try:
            alone.append(generation.predict_fn(one, generator))
        except ValueError as error:
            alone.append(str(error))
    together = generation.batch_fn(asked, generator)
    assert [str(got) if isinstance(got, ValueError) else got for got in together] == alone
    assert [isinstance(got, ValueError) for got in together] == [False] * 3 + [True] + [False] * 2 + [True, False]
    assert generation.batch_fn([], generator) == []


def test_a_small_budget_splits_a_batch_and_changes_nothing(
    generation: ModuleType, generator: Any, tmp_path: Path
) -> None:
    small = generation.model_fn(str(linked(TINY_GPT2, tmp_path / "m", batch_tokens=100)))
    ask = request(generation, PROMPTS, max_new_tokens=20)
    generation.tokens_fn(ask, small)  # so that it has its tokens
    prompts = generation._prompts(ask, generation.options_of(ask, small.settings), small)
    batches = sys.modules["generation_decoding"].batches(prompts, small)
    assert len(batches) > 1
    assert sum(map(len, batches)) == len(PROMPTS)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(p.tokens) + p.limit for p in batch) <= 100
    assert generation.predict_fn(ask, small) == generation.predict_fn(ask, generator)


def test_stop_texts_end_the_generation_and_are_left_out(generation: ModuleType, generator: Any) -> None:
    unstopped = answer(generation, generator, "It was", max_new_tokens=60)[0]["generated_text"]
    words = unstopped.split()
    stop = f"{words[3][-2:]} {words[4][:2]}"  # begins in one token and ends in another
    for wanted in (stop, [stop, "no such text"], ["no such text", stop[0:2], stop]):
        result = answer(generation, generator, "It was", max_new_tokens=60, stop=wanted)[0]
        first = min(
            unstopped.index(text) for text in ([wanted] if isinstance(wanted, str) else wanted) if text in unstopped
        )
        assert result["generated_text"] == unstopped[:first]
        assert result["finish_reason"] == "stop_sequence"
        assert result["generated_tokens"] < 60
    beams = answer(generation, generator, "It was", max_new_tokens=60, stop=",", num_beams=2)[0]
    assert "," not in beams["generated_text"]


def test_the_end_token_ends_the_generation(generation: ModuleType, generator: Any) -> None:
    """With the comma's token as the end, so that ends come early and at different times in a batch."""
    [comma] = generator.tokenizer(",")["input_ids"]
    model = dataclasses.replace(generator, end_tokens=frozenset([comma]))
    ask = {"max_new_tokens": 40, "repetition_penalty": 1.3}
    results = [group[0] for group in answer(generation, model, PROMPTS, **ask)]
    for prompt, result in zip(PROMPTS, results, strict=True):
        [expected] = generated(generator, prompt, do_sample=False, eos_token_id=comma, **ask)
        ended = result["finish_reason"] == "eos_token"
        assert result["generated_text"] + ("," if ended else "") == expected
        assert ended == (result["generated_tokens"] < 40)
    assert len({result["generated_tokens"] for result in results if result["finish_reason"] == "eos_token"}) > 1
    late = answer(generation, model, PROMPTS, min_new_tokens=30, **ask)
    assert all(group[0]["generated_tokens"] >= 30 for group in late)


def test_full_text_counts_and_finish_reason(generation: ModuleType, generator: Any) -> None:
    new = answer(generation, generator, "It was", max_new_tokens=7)[0]
    full = answer(generation, generator, "It was", max_new_tokens=7, return_full_text=True)[0]
    assert full["generated_text"] == "It was" + new["generated_text"]
    assert new["generated_tokens"] == 7
    assert new["finish_reason"] == "length"
    assert new["prompt_tokens"] == len(generator.tokenizer("It was")["input_ids"])
    assert new["truncated"] is False


def test_a_prompt_longer_than_the_context(generation: ModuleType, generator: Any) -> None:
    prompt = "one two three four five " * 100
    with pytest.raises(ValueError, match=r"^inputs has \d+ tokens; the model's context is 256, .*parameters.truncate"):
        answer(generation, generator, prompt)
    with pytest.raises(ValueError, match=r"^inputs\[1\] has"):
        answer(generation, generator, ["fine", prompt])
    result = answer(generation, generator, prompt, truncate=True, max_new_tokens=16)[0]
    assert result["truncated"] is True
    assert result["prompt_tokens"] == 240
    assert result["generated_tokens"] == 16
    result = answer(generation, generator, prompt, truncate=True, max_new_tokens=400)[0]
    assert result["prompt_tokens"] + result["generated_tokens"] == 256


def test_generation_ends_with_the_context(generation: ModuleType, generator: Any) -> None:
    prompt = generator.tokenizer.decode(generator.tokenizer("it was the house of her father " * 60)["input_ids"][:250])
    read = len(generator.tokenizer(prompt)["input_ids"])
    result = answer(generation, generator, prompt, max_new_tokens=50)[0]
    assert result["prompt_tokens"] == read
    assert result["generated_tokens"] == 256 - read
    assert result["finish_reason"] == "length"


def test_an_empty_prompt_begins_a_text(generation: ModuleType, generator: Any) -> None:
    result = answer(generation, generator, "", max_new_tokens=4)[0]
    assert result["prompt_tokens"] == 1
    assert result["generated_text"]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"max_new_tokens": 0}, "parameters.max_new_tokens must be a whole number from 1 to 512, not 0"),
        ({"max_new_tokens": 513}, "from 1 to 512, not 513"),
        ({"max_new_tokens": 1.5}, "not 1.5"),
        ({"max_new_tokens": True}, "not True"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is more than max_new_tokens"),
        ({"do_sample": "yes"}, "parameters.do_sample must be true or false, not 'yes'"),
        ({"temperature": -1}, "parameters.temperature must be a number from 0 to 100, not -1"),
        ({"temperature": "hot"}, "not 'hot'"),
        ({"temperature": 10**400}, "parameters.temperature"),
        ({"top_p": 0}, "parameters.top_p must be a number above 0 to 1, not 0"),
        ({"top_k": -1}, "parameters.top_k"),
        ({"min_p": 1.01}, "parameters.min_p"),
        ({"typical_p": 0}, "parameters.typical_p"),
        ({"repetition_penalty": 0}, "parameters.repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "parameters.no_repeat_ngram_size"),
        ({"num_return_sequences": 9, "do_sample": True}, "from 1 to 8, not 9"),
        ({"num_return_sequences": 2}, "without sampling they would all be the same"),
        ({"num_beams": 9}, "from 1 to 8, not 9"),
        ({"num_beams": 2, "do_sample": True}, "beams are not sampled"),
        ({"length_penalty": "x"}, "parameters.length_penalty"),
        ({"seed": -1}, "parameters.seed must be a whole number from 0 to"),
        ({"seed": 2**63}, "parameters.seed"),
        ({"stop": ""}, "parameters.stop must be a text or a list of texts, none of them empty"),
        ({"stop": [3]}, "parameters.stop"),
        ({"stop": ["x"] * 17}, "may hold 16 texts of 100 characters"),
        ({"stop": "x" * 101}, "may hold 16 texts of 100 characters"),
        ({"truncate": 0}, "parameters.truncate"),
        ({"temprature": 1}, "Unknown parameter 'temprature'. Known: max_new_tokens, "),
    ],
)
def test_parameters_out_of_bounds(
    generation: ModuleType, generator: Any, parameters: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        answer(generation, generator, "hi", **parameters)


def test_too_many_prompts_are_refused(generation: ModuleType, generator: Any) -> None:
    with pytest.raises(ValueError, match="inputs has 33 prompts; at most 32"):
        answer(generation, generator, ["hi"] * 33)


def test_temperature_zero_is_greedy(generation: ModuleType, generator: Any) -> None:
    assert answer(generation, generator, "It was", temperature=0) == answer(generation, generator, "It was")


def test_naming_a_sampling_parameter_samples(generation: ModuleType, generator: Any) -> None:
    greedy = answer(generation, generator, "It was")
    assert answer(generation, generator, "It was", seed=1) != greedy
    assert answer(generation, generator, "It was", seed=1, do_sample=False) == greedy


def test_settings_are_defaults_and_limits(generation: ModuleType, generator: Any, tmp_path: Path) -> None:
    folder = linked(TINY_GPT2, tmp_path / "m", max_new_tokens=9, stop=["."], max_new_tokens_limit=12, seed=4)
    model = generation.model_fn(str(folder))
    assert answer(generation, model, "It was") == answer(
        generation, generator, "It was", max_new_tokens=9, stop=["."], do_sample=False
    )
    low = generation.model_fn(str(linked(TINY_GPT2, tmp_path / "low", max_new_tokens_limit=3)))
    assert answer(generation, low, "It was")[0]["generated_tokens"] == 3
    with pytest.raises(ValueError, match="from 1 to 12, not 13"):
        answer(generation, model, "It was", max_new_tokens=13)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_tokens": 5}, "unknown setting 'max_tokens'. Known: max_new_tokens, "),
        ({"max_new_tokens": 600}, "code/settings.json: max_new_tokens must be a whole number from 1 to 512, not 600"),
        ({"dtype": "int4"}, "code/settings.json: dtype must be one of"),
        ({"batch_tokens": 0}, "code/settings.json: batch_tokens"),
        ({"temperature": "low"}, "code/settings.json: temperature"),
    ],
)
def test_wrong_settings_fail_the_load_and_say_why(
    generation: ModuleType, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        generation.model_fn(str(linked(TINY_GPT2, tmp_path / "m", **settings)))


def test_tokens_fn_counts_prompt_and_new_tokens(generation: ModuleType, generator: Any) -> None:
    read = len(generator.tokenizer("It was")["input_ids"])
    assert generation.tokens_fn(request(generation, "It was", max_new_tokens=10), generator) == read + 10
    three = request(generation, ["It was"] * 2, max_new_tokens=10, num_return_sequences=3, seed=1)
    assert generation.tokens_fn(three, generator) == 2 * 3 * (read + 10)
    assert generation.tokens_fn(request(generation, "a " * 600), generator) == 256
    assert generation.tokens_fn(request(generation, "a", max_new_tokens=0), generator) == 1


OTHERS = {
    # Rotary positions, and fewer heads for keys than for queries.
    "llama": lambda size: LlamaForCausalLM(
        LlamaConfig(
            **size, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128
        )
    ),
    # A window that is shorter than the prompts.
    "mistral": lambda size: MistralForCausalLM(
        MistralConfig(
            **size,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            max_position_embeddings=128,
        )
    ),
    # No attention at all: its state is no cache of rows, so `generate` does the work.
    "mamba": lambda size: MambaForCausalLM(MambaConfig(**size, state_size=4)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_decoder(generation: ModuleType, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(TINY_GPT2)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "initializer_range": 0.4,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    OTHERS[kind](size).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    model = generation.model_fn(str(tmp_path / "m"))
    assert model.context == (2048 if kind == "mamba" else 128)
    for seed in (None, 3):
        ask: dict[str, Any] = {"max_new_tokens": 12}
        wanted = {**ask, "do_sample": seed is not None, "top_k": 50}
        expected = [generated(model, prompt, seed=seed, **wanted) for prompt in PROMPTS]
        got = answer(generation, model, PROMPTS, **ask, **({} if seed is None else {"seed": seed}))
        assert [texts(results) for results in got] == expected


def test_a_request_with_tiny_numbers_does_not_fail_those_beside_it(generation: ModuleType, generator: Any) -> None:
    """Numbers past what float32 holds are no probabilities, for which torch fails the whole batch."""
    greedy = generation.predict_fn(request(generation, "It was", max_new_tokens=4), generator)
    odd = [
        request(generation, "It was", max_new_tokens=4, temperature=1e-300),
        request(generation, "It was", max_new_tokens=4, seed=1, temperature=1e-5, repetition_penalty=0.01, top_p=0.5),
        request(generation, "It was", max_new_tokens=4, seed=1, repetition_penalty=1e-300),
        request(generation, "It was", max_new_tokens=4),
    ]
    cold, low, refused, beside = generation.batch_fn(odd, generator)
    assert cold == beside == greedy
    assert low[0]["generated_tokens"] == 4
    assert isinstance(refused, ValueError)
    assert "repetition_penalty must be a number from 0.01 to 100" in str(refused)


def test_a_token_that_the_model_does_not_know_is_refused_alone(generation: ModuleType, tmp_path: Path) -> None:
    """Tokenizers may have more tokens than the model has embeddings: looking one up fails the whole batch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_GPT2)
    tokenizer.add_tokens(["<beyond>"])
    folder = linked(TINY_GPT2, tmp_path / "m", ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"))
    tokenizer.save_pretrained(folder)
    model = generation.model_fn(str(folder))
    assert len(tokenizer) > model.words
    asked = [request(generation, text, max_new_tokens=3) for text in ("It was", "a <beyond> b", "He")]
    first, refused, last = generation.batch_fn(asked, model)
    assert isinstance(refused, ValueError)
    assert "inputs has the token '<beyond>', which the model does not know" in str(refused)
    plain = generation.model_fn(str(TINY_GPT2))
    assert plain.words is None
    assert [first, last] == [
        generation.predict_fn(request(generation, t, max_new_tokens=3), plain) for t in ("It was", "He")
    ]
