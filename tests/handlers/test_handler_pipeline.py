"""The pipeline handler: what a request may contain, and the errors of a wrong one."""

import ast
import base64
import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
from handler_tools import ROOT, load

from mme.catalog.spec import TASK_ALIASES, TASKS
from mme.packaging import samples


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    return load("pipeline")


def saved(folder: Path, kind: str, **more: Any) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, **more}
    config |= {"vocab_size": len(tiny_models.WORDS), "max_position_embeddings": 32}
    getattr(transformers, kind)(transformers.BertConfig(**config)).save_pretrained(folder)
    tiny_models.wordpiece(folder)
    return folder


def settings(folder: Path, **values: Any) -> Path:
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "settings.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def models(pipeline: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A loaded model of each of some tasks."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {
        "text-classification": ("BertForSequenceClassification", {"num_labels": 3}),
        "fill-mask": ("BertForMaskedLM", {}),
        "token-classification": ("BertForTokenClassification", {}),
        "question-answering": ("BertForQuestionAnswering", {}),
        "zero-shot-classification": (
            "BertForSequenceClassification",
            {"id2label": {0: "entailment", 1: "contradiction"}},
        ),
        "feature-extraction": ("BertModel", {}),
    }
    loaded = {}
    for task, (kind, more) in kinds.items():
        loaded[task] = pipeline.model_fn(str(settings(saved(folder / task, kind, **more), task=task)))
    vit = folder / "image-classification"
    _vit(vit)
    loaded["image-classification"] = pipeline.model_fn(
        str(settings(vit, task="image-classification", max_pixels=10_000))
    )
    return loaded


def _vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **config)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def ask(
    pipeline: ModuleType, model: Any, body: Any, content_type: str = "application/json", accept: str = "*/*"
) -> Any:
    data = body if isinstance(body, (str, bytes)) else json.dumps(body)
    answer = pipeline.output_fn(pipeline.predict_fn(pipeline.input_fn(data, content_type), model), accept)
    return json.loads(answer) if accept in ("*/*", "application/json") else answer


def test_it_knows_the_catalogues_tasks_and_no_others(pipeline: ModuleType) -> None:
    """The catalogue cannot import what runs in a container, so each has the table; they must be the same."""
    import pipeline_tasks

    assert {name: task.classes for name, task in pipeline_tasks.TASKS.items()} == TASKS
    assert pipeline_tasks.ALIASES == TASK_ALIASES


def test_it_covers_every_pipeline_of_this_transformers() -> None:
    from transformers.pipelines import SUPPORTED_TASKS

    assert set(SUPPORTED_TASKS) - set(TASKS) <= {"any-to-any"}


REFUSED = {
    "no mask": ("fill-mask", {"inputs": "the house"}, "mask"),
    "no labels": ("zero-shot-classification", {"inputs": "the house"}, "candidate_labels is missing"),
    "empty labels": (
        "zero-shot-classification",
        {"inputs": "the house", "parameters": {"candidate_labels": []}},
        "candidate_labels must be a text or a list of texts",
    ),
    "a template without a place": (
        "zero-shot-classification",
        {"inputs": "a", "parameters": {"candidate_labels": ["a"], "hypothesis_template": "it is"}},
        "must have {} once",
    ),
    "an unknown parameter": (
        "text-classification",
        {"inputs": "a", "parameters": {"topk": 1}},
        "Unknown parameter 'topk'. Known: top_k, function_to_apply",
    ),
    "a parameter of another type": (
        "text-classification",
        {"inputs": "a", "parameters": {"top_k": "three"}},
        "parameters.top_k must be a whole number",
    ),
    "parameters that are a list": ("text-classification", {"inputs": "a", "parameters": [1]}, "must be a JSON object"),
    "a number for a text": ("text-classification", {"inputs": 3}, "inputs must be a text, not a number"),
    "a list with a number": ("text-classification", {"inputs": ["a", None]}, "inputs[1] must be a text, not null"),
    "an empty text": (
        "zero-shot-classification",
        {"inputs": "  ", "parameters": {"candidate_labels": ["a"]}},
        "inputs is empty",
    ),
    "an empty question": (
        "question-answering",
        {"inputs": {"question": "", "context": "the house"}},
        "question is empty",
    ),
    "an empty text without a mask": ("fill-mask", {"inputs": ""}, "mask"),
    "an empty list": ("text-classification", {"inputs": []}, "empty list"),
    "half a character": ("text-classification", {"inputs": "\ud800"}, "surrogate"),
    "a long text": ("text-classification", {"inputs": "the house " * 40}, "has 82 tokens; the model reads 32"),
    "no context": ("question-answering", {"inputs": {"question": "what"}}, 'inputs has no "context"'),
    "a text for a question": ("question-answering", {"inputs": "what"}, 'must be {"question": ..., "context": ...}'),
    "a question too long": (
        "question-answering",
        {"inputs": {"question": "the house " * 40, "context": "the house"}},
        "no room is left for the context",
    ),
    "a URL": ("image-classification", {"inputs": "https://example.com/a.png"}, "nothing is fetched"),
    "a path": ("image-classification", {"inputs": "/etc/hostname.png"}, "not valid base64"),
    "no image": ("image-classification", {"inputs": base64.b64encode(b"text").decode()}, "cannot be read as an image"),
    "too many pixels": ("image-classification", {"inputs": samples.image(128, 128)}, "128 x 128 pixels; at most 10000"),
    "no JSON": ("text-classification", "{", "not valid JSON"),
    "another field": ("text-classification", {"inputs": "a", "options": {}}, "Unknown field 'options'"),
}


@pytest.mark.parametrize(("task", "body", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_clients_mistake_is_named(
    pipeline: ModuleType, models: dict[str, Any], task: str, body: Any, reason: str
) -> None:
    with pytest.raises(ValueError) as caught:
        ask(pipeline, models[task], body)
    assert reason in str(caught.value)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "feature-extraction"])
@pytest.mark.parametrize("text", ["", "  "], ids=["empty", "spaces"])
def test_an_empty_text_is_answered_as_the_library_does(
    pipeline: ModuleType, models: dict[str, Any], task: str, text: str
) -> None:
    right = json.loads(json.dumps(models[task].call(text)))
    assert ask(pipeline, models[task], {"inputs": text}) == right
    pair = {"text": text, "text_pair": ""}
    if task == "text-classification":
        assert ask(pipeline, models[task], {"inputs": pair}) == json.loads(json.dumps(models[task].call(pair)))


def test_a_text_without_any_token_is_refused(pipeline: ModuleType, models: dict[str, Any], tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    folder = settings(saved(tmp_path / "m", "BertForSequenceClassification"), task="text-classification")
    model = pipeline.model_fn(str(folder))
    model.parts.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1")
    for body, name in (({"inputs": ""}, "inputs"), ({"inputs": ["the house", "\u200b"]}, r"inputs\[1\]")):
        with pytest.raises(ValueError, match=f"{name} is empty"):
            ask(pipeline, model, body)


def test_the_points_of_masks_come_in_complete_batches(pipeline: ModuleType, models: dict[str, Any]) -> None:
    """The library's pipeline never ends where the last batch is smaller than the others."""
    model, options = _noting(models, "mask-generation")
    ask(pipeline, model, {"inputs": samples.image(8, 8), "parameters": {"points_per_batch": 50, "points_per_crop": 6}})
    assert options["points_per_batch"] == 36
    ask(pipeline, model, {"inputs": samples.image(8, 8), "parameters": {"points_per_batch": 7, "points_per_crop": 6}})
    assert options["points_per_batch"] == 6


@pytest.mark.parametrize("task", ["text-to-audio", "automatic-speech-recognition", "image-text-to-text"])
def test_a_seed_may_stand_among_the_options_of_generate(
    pipeline: ModuleType, models: dict[str, Any], task: str
) -> None:
    """It seeds the request; ``generate`` itself takes none."""
    import torch

    inputs: dict[str, Any] = {
        "text-to-audio": "the house",
        "automatic-speech-recognition": samples.tone(0.1),
        "image-text-to-text": {"image": samples.image(8, 8), "text": "the house"},
    }
    model, options = _noting(models, task)
    given = {"do_sample": True, "seed": 5}
    ask(pipeline, model, {"inputs": inputs[task], "parameters": {"generate_kwargs": given}})
    assert options["generate_kwargs"] == {"do_sample": True}
    torch.manual_seed(5)
    assert options["drawn"] == torch.rand(1).item()


def _noting(models: dict[str, Any], task: str) -> tuple[Any, dict[str, Any]]:
    """A model for this task that notes the options with which its pipeline is called, and a number drawn there."""
    import torch
    from pipeline_tasks import TASKS as TASKS_HERE

    options: dict[str, Any] = {}

    def call(*_: Any, **given: Any) -> dict[str, Any]:
        options.clear()
        options.update(given, drawn=torch.rand(1).item())
        return {"masks": []}

    like = models["image-classification"]
    parts = replace(like.parts, feature_extractor=SimpleNamespace(sampling_rate=16_000))
    return replace(like, name=task, task=TASKS_HERE[task], call=call, parts=parts), options


def test_null_asks_for_all_labels(pipeline: ModuleType, models: dict[str, Any]) -> None:
    answer = ask(pipeline, models["text-classification"], {"inputs": "the house", "parameters": {"top_k": None}})
    assert len(answer) == 3


def test_a_long_text_is_cut_where_the_request_says_so(pipeline: ModuleType, models: dict[str, Any]) -> None:
    model = models["text-classification"]
    long = ask(pipeline, model, {"inputs": "the house " * 40, "parameters": {"truncation": True}})
    assert long == ask(pipeline, model, {"inputs": "the house " * 15})


def test_a_long_context_is_read_in_pieces(pipeline: ModuleType, models: dict[str, Any]) -> None:
    context = "the house is quiet and nobody is at home . " * 12
    answer = ask(pipeline, models["question-answering"], {"inputs": {"question": "the house", "context": context}})
    assert answer["answer"] == context[answer["start"] : answer["end"]]
    many = {"inputs": {"question": ["the house", "nobody"], "context": context}}
    assert ask(pipeline, models["question-answering"], many)[0] == answer


def test_a_csv_is_a_batch(pipeline: ModuleType, models: dict[str, Any]) -> None:
    model = models["text-classification"]
    alone = ask(pipeline, model, {"inputs": ["the house", "nobody, at home"]})
    assert ask(pipeline, model, 'inputs\nthe house\n"nobody, at home"\n', "text/csv") == alone
    qa = models["question-answering"]
    one = ask(pipeline, qa, {"inputs": {"question": "the house", "context": "nobody is at home"}})
    assert ask(pipeline, qa, "question,context\nthe house,nobody is at home\n", "text/csv") == one
    with pytest.raises(ValueError, match="needs a header"):
        ask(pipeline, model, "the house\nnobody\n", "text/csv")


def test_an_image_comes_in_every_form(pipeline: ModuleType, models: dict[str, Any]) -> None:
    model, text = models["image-classification"], samples.image(20, 10)
    alone = ask(pipeline, model, {"inputs": text})
    assert ask(pipeline, model, {"inputs": f"data:image/png;base64,{text}"}) == alone
    assert ask(pipeline, model, {"inputs": [text, text]}) == [alone, alone]
    raw = base64.b64decode(text)
    assert ask(pipeline, model, raw, "image/png") == alone
    assert ask(pipeline, model, raw, "application/octet-stream") == alone
    with pytest.raises(ValueError, match="The body is sound; this model's inputs are an image"):
        ask(pipeline, model, raw, "audio/wav")


def test_answers_in_other_types(pipeline: ModuleType, models: dict[str, Any]) -> None:
    body = {"inputs": "the house"}
    array = ask(pipeline, models["feature-extraction"], body, accept="application/x-npy")
    expected = ask(pipeline, models["feature-extraction"], body)
    assert np.abs(np.load(io.BytesIO(array), allow_pickle=False) - np.array(expected)).max() < 1e-6
    table = ask(pipeline, models["text-classification"], body, accept="text/csv").decode()
    assert table.splitlines()[0] == "label,score"
    with pytest.raises(ValueError, match="cannot be answered"):
        ask(pipeline, models["text-classification"], body, accept="image/png")


def test_settings_give_what_a_request_leaves_out(pipeline: ModuleType, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "BertForSequenceClassification", id2label={0: "entailment", 1: "no"})
    labels = ["the house", "nobody"]
    model = pipeline.model_fn(str(settings(folder, task="zero-shot-classification", candidate_labels=labels)))
    assert sorted(ask(pipeline, model, {"inputs": "quiet"})["labels"]) == sorted(labels)
    assert sorted(ask(pipeline, model, b"quiet", "text/plain")["labels"]) == sorted(labels)


WRONG_SETTINGS = {
    "no task": ({}, "the setting task is missing"),
    "a task that is none": ({"task": "text-to-image"}, "'text-to-image' is not known"),
    "an unknown setting": ({"task": "text-classification", "topk": 1}, "unknown setting 'topk'"),
    "a setting out of bounds": ({"task": "text-classification", "top_k": 0}, "top_k must be"),
    "another dtype": ({"task": "text-classification", "dtype": "int8"}, "dtype must be one of"),
}


@pytest.mark.parametrize(("values", "reason"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS.keys())
def test_wrong_settings_fail_the_load(
    pipeline: ModuleType, tmp_path: Path, values: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TASK", raising=False)
    folder = saved(tmp_path / "m", "BertForSequenceClassification")
    with pytest.raises(ValueError, match=reason):
        pipeline.model_fn(str(settings(folder, **values)))


def test_weights_that_are_not_found_fail_the_load(pipeline: ModuleType, tmp_path: Path) -> None:
    """Where another version of transformers has other names for them, it would leave them to chance."""
    from safetensors.torch import load_file, save_file

    folder = settings(saved(tmp_path / "m", "BertForSequenceClassification"), task="text-classification")
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("bert.encoder", "bert.model.encoder"): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="finds no weights for 32 parts of BertForSequenceClassification"):
        pipeline.model_fn(str(folder))


def test_sound_is_read_alike_with_and_without_soundfile(pipeline: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline_media

    tone = samples.tone(0.25, 8_000)
    one = pipeline_media.audio(tone, "inputs", 16_000, 10)
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    other = pipeline_media.audio(tone, "inputs", 16_000, 10)
    assert len(one) == 4_000
    assert np.abs(one - other).max() < 1e-6
    with pytest.raises(ValueError, match=r"at most 0\.1 are read"):
        pipeline_media.audio(tone, "inputs", 16_000, 0.1)


def test_resampling_keeps_a_tone(pipeline: ModuleType) -> None:
    import pipeline_media

    times = np.arange(44_100) / 44_100
    resampled = pipeline_media.resample(np.sin(2 * np.pi * 440 * times).astype(np.float32), 44_100, 16_000)
    wanted = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(resampled) == 16_000
    assert np.abs(resampled - wanted)[200:-200].max() < 2e-3


def test_l16_is_understood(pipeline: ModuleType) -> None:
    data = np.array([0, 16384, -32768], ">i2").tobytes()
    request = pipeline.input_fn(data, "audio/L16; rate=8000; channels=1")
    assert request.inputs["sampling_rate"] == 8000
    assert request.inputs["raw"].tolist() == [0, 0.5, -1.0]


def test_it_prints_nothing_and_fetches_nothing() -> None:
    for script in (ROOT / "model_code" / "pipeline").glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"print", "urlopen", "requests", "httpx"}, script


def test_ignoring_no_label_gives_every_word(pipeline: ModuleType, models: dict[str, Any]) -> None:
    """An empty list is how one asks for the words that are called O, too: without it they are left out."""
    model = models["token-classification"]
    named = model.call.model.config.id2label
    asked = {"inputs": "the house is quiet", "parameters": {"ignore_labels": list(named.values())}}
    assert ask(pipeline, model, asked) == []
    asked["parameters"]["ignore_labels"] = []
    assert [item["word"] for item in ask(pipeline, model, asked)] == ["the", "house", "is", "quiet"]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is here")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            "SegformerImageProcessor",
            "SegformerImageProcessor needs the library torchvision, which this container lacks",
        ),
        ("NoSuchImageProcessor", "NoSuchImageProcessor|image processor"),
    ],
)
def test_a_processor_that_needs_torchvision_says_so(
    pipeline: ModuleType, tmp_path: Path, kind: str, reason: str
) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_attention_heads": [1, 1], "num_encoder_blocks": 2}
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, decoder_hidden_size=8)).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind}))
    with pytest.raises(ValueError, match=reason):
        pipeline.model_fn(str(settings(tmp_path / "m", task="image-segmentation")))
