"""Models whose files are unusual, though nothing is wrong with them, and those whose answers are no numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_adapters
import tiny_models
import torch
import transformers
from handler_tools import load
from pipelines import task_of

from mme.catalog.spec import ModelSpec, Source
from mme.snapshot import retrieve

WORDS = len(tiny_models.WORDS)
TEXT = "the house is quiet"


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    return load("pipeline")


def written(folder: Path, **values: Any) -> Path:
    """The folder with these values in its configuration."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


def bart(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "max_position_embeddings": 24, "vocab_size": WORDS}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 16}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 3}
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **ids))
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5)
    model.save_pretrained(folder)
    tiny_models.wordpiece(folder)
    return folder


def gpt2(folder: Path) -> Path:
    tiny_models.gpt2(folder, n_positions=24)
    return task_of(folder, "text-generation")


def ask(handler: ModuleType, model: Any, body: Any, accept: str = "application/json") -> Any:
    answer = handler.output_fn(
        handler.predict_fn(handler.input_fn(json.dumps(body), "application/json"), model), accept
    )
    return json.loads(answer) if accept == "application/json" else answer


# --- what a configuration says of writing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "values", "prefix"),
    [
        ("summarization", {"prefix": "the dog : "}, "the dog : "),
        ("text2text-generation", {"prefix": "nobody "}, "nobody "),
        ("summarization", {"prefix": "nobody ", "task_specific_params": {"summarization": {"prefix": "at "}}}, "at "),
        ("translation", {"task_specific_params": {"translation_en_to_fr": {"prefix": "home "}}}, "home "),
        ("translation_en_to_de", {"task_specific_params": {"translation_en_to_fr": {"prefix": "home "}}}, ""),
    ],
)
def test_what_goes_before_a_text(
    pipeline: ModuleType, tmp_path: Path, task: str, values: dict[str, Any], prefix: str
) -> None:
    """As in the pipelines of transformers 4, where a translation without languages is the first that is described."""
    model = pipeline.model_fn(str(task_of(written(bart(tmp_path / "m"), **values), task)))
    read = []
    tokenizer = model.parts.tokenizer
    encode = type(tokenizer).__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(tokenizer), "__call__", lambda self, text, **more: (read.append(text), encode(self, text, **more))[1]
        )
        ask(pipeline, model, {"inputs": TEXT, "parameters": {"max_new_tokens": 2}})
    assert read[-1] == prefix + TEXT


@pytest.mark.parametrize(
    "values",
    [{"task_specific_params": [1]}, {"task_specific_params": {"summarization": "x"}}, {"prefix": 5}],
    ids=["a list", "a text for a task", "a number"],
)
def test_values_of_other_types_fail_the_load(pipeline: ModuleType, tmp_path: Path, values: dict[str, Any]) -> None:
    folder = written(bart(tmp_path / "m"), **values)
    with pytest.raises(ValueError, match=r"config.json: (task_specific_params|prefix) must be"):
        pipeline.model_fn(str(task_of(folder, "summarization")))


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_ends_with_the_decoders_positions(pipeline: ModuleType, tmp_path: Path, beams: int) -> None:
    """Beyond them `generate` fails."""
    folder = task_of(bart(tmp_path / "m"), "text2text-generation")
    model = pipeline.model_fn(str(folder))
    options = {"num_beams": beams, "min_new_tokens": 24}
    (most,) = ask(pipeline, model, {"inputs": TEXT, "parameters": {**options, "max_new_tokens": 24}})
    (more,) = ask(pipeline, model, {"inputs": TEXT, "parameters": {**options, "max_new_tokens": 200}})
    assert beams > 1 or more == most
    assert len(more["generated_text"].split()) <= 24


def test_a_prompt_and_its_text_share_the_positions(pipeline: ModuleType, tmp_path: Path) -> None:
    model = pipeline.model_fn(str(gpt2(tmp_path / "m")))
    asked = {"do_sample": False, "min_new_tokens": 5, "return_full_text": False}
    (most,) = ask(pipeline, model, {"inputs": "a" * 20, "parameters": {**asked, "max_new_tokens": 5}})
    (more,) = ask(pipeline, model, {"inputs": "a" * 20, "parameters": {**asked, "max_new_tokens": 100}})
    assert more == most
    with pytest.raises(ValueError, match=r"inputs\[1\] has 25 tokens; the model reads 24"):
        ask(pipeline, model, {"inputs": ["a", "a" * 25], "parameters": asked})


def test_a_class_without_a_name_fails_the_load(pipeline: ModuleType, tmp_path: Path) -> None:
    tiny_models.bert(tmp_path / "m")
    config = transformers.BertConfig.from_pretrained(tmp_path / "m", num_labels=3)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "m")
    written(tmp_path / "m", id2label={"0": "good", "1": "bad", "5": "none"}, label2id={"good": 0, "bad": 1, "none": 5})
    with pytest.raises(ValueError, match="id2label has 3 labels and none for 2"):
        pipeline.model_fn(str(task_of(tmp_path / "m", "text-classification")))
    pipeline.model_fn(str(task_of(tmp_path / "m", "zero-shot-classification")))  # answers with none of these names


# --- answers that are no numbers -------------------------------------------------------------------------------------


def overflowing(folder: Path, kind: str, **config: Any) -> Path:
    """A BERT in which the token "nobody" makes numbers that are beyond float32."""
    tiny_models.bert(folder)
    model = getattr(transformers, kind)(transformers.BertConfig.from_pretrained(folder, **config))
    body = model if kind == "BertModel" else model.bert
    body.embeddings.word_embeddings.weight.data[tiny_models.WORDS.index("nobody")] = float("inf")
    model.save_pretrained(folder)
    return folder


def test_a_vector_that_is_no_number_is_an_error_and_its_neighbours_are_answered(
    embedding: ModuleType, tmp_path: Path
) -> None:
    """JSON would have null for each of its numbers."""
    model = embedding.model_fn(str(overflowing(tmp_path / "m", "BertModel")))
    asked = [
        embedding.input_fn(json.dumps({"inputs": texts}), "application/json") for texts in ([TEXT], [TEXT, "nobody"])
    ]
    alone, other = embedding.batch_fn(asked, model)
    assert np.isfinite(alone["embeddings"]).all()
    assert isinstance(other, ArithmeticError)
    assert str(other) == "The model's vector of inputs[1] holds numbers that are none (NaN or infinite)."


def test_a_score_that_is_no_number_is_an_error_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    reranking = load("reranking")
    model = reranking.model_fn(str(overflowing(tmp_path / "m", "BertForSequenceClassification", num_labels=1)))
    bodies = [{"query": TEXT, "documents": [text]} for text in ("home", "nobody")]
    asked = [reranking.input_fn(json.dumps(body), "application/json") for body in bodies]
    alone, other = reranking.batch_fn(asked, model)
    assert len(alone["results"]) == 1
    assert isinstance(other, ArithmeticError)


@pytest.mark.parametrize("accept", ["application/json", "text/csv", "application/x-npy"])
def test_no_form_of_an_answer_holds_what_is_no_number(pipeline: ModuleType, tmp_path: Path, accept: str) -> None:
    kind, task = (
        ("BertModel", "feature-extraction")
        if "npy" in accept
        else ("BertForSequenceClassification", "text-classification")
    )
    model = pipeline.model_fn(str(task_of(overflowing(tmp_path / "m", kind), task)))
    assert ask(pipeline, model, {"inputs": TEXT}, accept)
    with pytest.raises(ArithmeticError):
        ask(pipeline, model, {"inputs": "nobody"}, accept)


# --- an adapter that is kept apart -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["torch", ""])
def test_a_cross_encoder_with_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """It scores as PEFT's merged model does, and not as its base."""
    monkeypatch.setenv("MME_ENGINE", engine)
    reranking = load("reranking")
    base = tiny_models.bert(tmp_path / "base")
    config = transformers.BertConfig.from_pretrained(base, num_labels=1)
    model = transformers.BertForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5)
    model.save_pretrained(base)
    source = tiny_adapters.lora(tmp_path / "adapter", base, ("query", "value"), strength=2.0)
    packed = {}
    for name, more in {
        "base": {},
        "merged": {"adapter": source},
        "apart": {"adapter": source, "adapter_merge": False},
    }.items():
        spec = ModelSpec("m", Source("folder", "base", base), task="text-ranking", **more)  # type: ignore[arg-type]
        folder = retrieve.snapshot(spec, tmp_path / name / "s").path
        model = reranking.model_fn(str(folder))
        packed[name] = ask(reranking, model, {"inputs": [[TEXT, "nobody is at home"]]})["scores"][0]
    assert packed["apart"] == pytest.approx(packed["merged"], abs=1e-6)
    assert abs(packed["apart"] - packed["base"]) > 1e-3


# --- a library that fails by itself ----------------------------------------------------------------------------------


def test_a_model_that_speaks_and_has_a_tokenizer_alone(pipeline: ModuleType, tmp_path: Path) -> None:
    """transformers 5.17 casts what its text-to-audio pipeline has read to the model's format, which of what a tokenizer
    answers it cannot: VITS failed."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "flow_size": 16}
    small |= {"upsample_initial_channel": 8, "upsample_rates": [4], "upsample_kernel_sizes": [8]}
    small |= {
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
        "spectrogram_bins": 9,
        "vocab_size": WORDS,
    }
    small |= {
        "prior_encoder_num_flows": 1,
        "posterior_encoder_num_wavenet_layers": 1,
        "duration_predictor_num_flows": 1,
    }
    transformers.VitsModel(transformers.VitsConfig(**small)).save_pretrained(tmp_path / "m")
    tiny_models.wordpiece(tmp_path / "m")
    model = pipeline.model_fn(str(task_of(tmp_path / "m", "text-to-audio")))
    read = model.call.preprocess(TEXT)
    assert read.to(dtype=torch.float16)["input_ids"].tolist() == model.parts.tokenizer([TEXT])["input_ids"]
    assert len(ask(pipeline, model, {"inputs": TEXT})["audio"]) > 0
