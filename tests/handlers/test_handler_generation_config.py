"""What a model's generation_config.json says of how it writes holds, as `generate` has it, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from handler_tools import TINY_GPT2, linked, request
from transformers import AutoTokenizer, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

PROMPTS = ["It was", "She had never been so", "He"]
LENGTH = 12


def written(folder: Path, **values: Any) -> Path:
    """The small GPT-2 with these values in its generation_config.json."""
    linked(TINY_GPT2, folder, ("generation_config.json",))
    before = json.loads((TINY_GPT2 / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**before, **values}))
    return folder


def generated(folder: Path, kind: Any = GPT2LMHeadModel, prompts: list[str] = PROMPTS, **options: Any) -> list[str]:
    """What `generate` itself writes, each prompt alone."""
    model, tokenizer = kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        options = {"max_new_tokens": LENGTH, "pad_token_id": 0, "do_sample": False, "tokenizer": tokenizer, **options}
        torch.manual_seed(5)
        row = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
        before = tokenizer.decode(row[: ids.shape[1]], clean_up_tokenization_spaces=False)
        whole = tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        texts.append(whole[len(before) :])
    return texts


def answered(generation: ModuleType, model: Any, prompts: list[str] = PROMPTS, **parameters: Any) -> list[str]:
    parameters = {"max_new_tokens": LENGTH, **parameters}
    together = [
        item[0]["generated_text"] for item in generation.predict_fn(request(generation, prompts, **parameters), model)
    ]
    alone = [
        generation.predict_fn(request(generation, prompt, **parameters), model)[0]["generated_text"]
        for prompt in prompts
    ]
    assert together == alone
    return alone


@pytest.mark.parametrize(
    "values",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 100},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
        {"suppress_tokens": [259, 387, 491, 305]},
        {"begin_suppress_tokens": list(range(100, 500))},
        {"bad_words_ids": [[259], [387], [491]]},
        {"forced_eos_token_id": 13},
        {"sequence_bias": [[[259], -50.0], [[491], -50.0]]},
        {"exponential_decay_length_penalty": [2, 1.5]},
        {"watermarking_config": {"greenlist_ratio": 0.25, "bias": 8.0}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_is_written_there_holds(generation: ModuleType, tmp_path: Path, values: dict[str, Any]) -> None:
    folder = written(tmp_path / "m", **values)
    expected = generated(folder)
    if "min_new_tokens" not in values:
        assert expected != generated(TINY_GPT2), "it changes the texts"
    assert answered(generation, generation.model_fn(str(folder))) == expected


def test_numbers_of_sampling_hold_where_a_request_samples(generation: ModuleType, tmp_path: Path) -> None:
    folder = written(tmp_path / "m", do_sample=True, temperature=0.4, top_k=7, top_p=0.9)
    model = generation.model_fn(str(folder))
    assert answered(generation, model) == generated(TINY_GPT2), (
        "the most likely tokens, where nothing else is asked for"
    )
    assert answered(generation, model, seed=5) == generated(folder, do_sample=True)
    assert answered(generation, model, seed=5, top_k=50, top_p=1.0, temperature=1.0) == generated(
        TINY_GPT2, do_sample=True
    )


def test_requests_and_settings_go_before_it(generation: ModuleType, tmp_path: Path) -> None:
    folder = written(tmp_path / "m", repetition_penalty=1.8, num_beams=3)
    plain = generated(TINY_GPT2)
    model = generation.model_fn(str(folder))
    assert answered(generation, model, repetition_penalty=1.0, num_beams=1) == plain
    (folder / "code" / "settings.json").write_text('{"repetition_penalty": 1.0, "num_beams": 1}')
    assert answered(generation, generation.model_fn(str(folder))) == plain


def test_stop_texts_are_not_part_of_an_answer(generation: ModuleType, tmp_path: Path) -> None:
    model = generation.model_fn(str(written(tmp_path / "m", stop_strings=["a"])))
    (answer,) = generation.predict_fn(request(generation, "It was", max_new_tokens=40), model)
    assert answer["finish_reason"] == "stop_sequence"
    assert "a" not in answer["generated_text"]
    (answer,) = generation.predict_fn(
        request(generation, "It was", max_new_tokens=40, num_beams=2, stop=["zzz"]), model
    )
    assert answer["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha is 0.6"),
        ({"dola_layers": "low"}, "dola_layers is 'low'"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups is 2|diversity_penalty"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be a number from 0.01"),
        ({"num_beams": 20}, "what the settings allow: num_beams must be a whole number from 1 to 8"),
    ],
)
def test_what_does_not_hold_is_refused(
    generation: ModuleType, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    folder = written(tmp_path / "m", **values)
    with pytest.raises(ValueError, match=rf"generation_config.json.*({words})"):
        generation.model_fn(str(folder))


def test_what_changes_no_token_is_passed_over(generation: ModuleType, tmp_path: Path) -> None:
    values = {"return_dict_in_generate": True, "output_scores": True, "max_length": 5, "max_time": 0.0001}
    values |= {"prompt_lookup_num_tokens": 3, "use_cache": False, "num_beam_groups": 1, "renormalize_logits": True}
    model = generation.model_fn(str(written(tmp_path / "m", **values)))
    assert model.together
    assert answered(generation, model) == generated(TINY_GPT2)
    beams = answered(generation, model, num_beams=2)
    assert beams == generated(TINY_GPT2, num_beams=2, renormalize_logits=True)


def test_frequencies_do_not_go_by_the_longest_prompt_of_a_batch(generation: ModuleType, tmp_path: Path) -> None:
    """LongRoPE changes them past the length for which the model was trained at first, for all texts of a pass."""
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(TINY_GPT2)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    config = Phi3Config(
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0},
        **{"bos_token_id": 1, "eos_token_id": 2, "original_max_position_embeddings": 16},
        rope_parameters={"rope_theta": 10000.0, "original_max_position_embeddings": 16, **rope},
    )
    model = Phi3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    prompts = ["It", "It was a long way to go", "word " * 20, "He"]
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert lengths[0] + LENGTH <= 16 < lengths[1] + LENGTH, "one stays below the length, and one grows past it"
    expected = generated(tmp_path / "m", Phi3ForCausalLM, prompts)
    loaded = generation.model_fn(str(tmp_path / "m"))
    assert loaded.together, "prompts that stay below it share a pass"
    assert answered(generation, loaded, prompts) == expected
