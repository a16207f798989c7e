"""Pipelines whose forward pass is computed by ONNX Runtime: the answers are those of transformers' own pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_adapters
import transformers
from handler_tools import Context, load
from pipelines import ASKED, AUTO, LONG, TEXTS, near, saved, task_of
from small_encoders import HEADS, SMALL
from transformers import AutoTokenizer

load("embedding")
import engine  # noqa: E402

pytest.importorskip("onnxruntime")

FAMILIES = [name for name in HEADS if "mean" not in name]


@pytest.fixture
def pipeline() -> ModuleType:
    return load("pipeline")


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_ENGINE", raising=False)


def ask(pipeline: ModuleType, loaded: Any, inputs: Any, **parameters: Any) -> Any:
    body = json.dumps({"inputs": inputs, "parameters": parameters})
    answer = pipeline.predict_fn(pipeline.input_fn(body, "application/json"), loaded)
    return json.loads(pipeline.output_fn(answer, "application/json"))


def by_torch(pipeline: ModuleType, folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MME_ENGINE", "torch")
        loaded = pipeline.model_fn(str(folder))
    assert loaded.engine is None
    return loaded


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("task", AUTO)
def test_every_kind_of_model_answers_as_with_torch(
    pipeline: ModuleType, bert: Path, tmp_path: Path, task: str, name: str
) -> None:
    folder = saved(task, name, bert, tmp_path / "model")
    context = Context()
    loaded = pipeline.model_fn(str(folder), context)
    assert (context.notes["engine"], context.notes["reason"]) == ("onnxruntime", "")
    own = by_torch(pipeline, folder)
    assert loaded.reads == own.reads
    inputs, parameters = ASKED[task][1]
    assert near(ask(pipeline, loaded, inputs, **parameters), ask(pipeline, own, inputs, **parameters))


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
@pytest.mark.parametrize("task", AUTO)
def test_every_option_answers_as_with_torch(
    pipeline: ModuleType, bert: Path, tmp_path: Path, task: str, name: str
) -> None:
    folder = saved(task, name, bert, tmp_path / "model")
    loaded, own = pipeline.model_fn(str(folder)), by_torch(pipeline, folder)
    assert loaded.engine is not None
    for inputs, parameters in ASKED[task]:
        want = ask(pipeline, own, inputs, **parameters)
        assert near(ask(pipeline, loaded, inputs, **parameters), want), (inputs, parameters)


def test_answers_say_something(pipeline: ModuleType, bert: Path, tmp_path: Path) -> None:
    """The models above tell texts from each other, so that equal answers mean something."""
    loaded = pipeline.model_fn(str(saved("text-classification", "Bert", bert, tmp_path / "model")))
    answers = ask(pipeline, loaded, TEXTS, function_to_apply="none", top_k=None)
    scores = [next(label["score"] for label in answer if label["label"] == "LABEL_0") for answer in answers]
    assert max(scores) - min(scores) > 1e-3


def test_a_text_without_a_mask_is_refused_as_with_torch(pipeline: ModuleType, bert: Path, tmp_path: Path) -> None:
    folder = saved("fill-mask", "Bert", bert, tmp_path / "model")
    reasons = []
    for loaded in (pipeline.model_fn(str(folder)), by_torch(pipeline, folder)):
        with pytest.raises(ValueError) as caught:
            ask(pipeline, loaded, TEXTS[0])
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1] == "No mask_token ([MASK]) found on the input"


@pytest.mark.parametrize("task", AUTO)
def test_a_further_model_never_has_transformers_own(
    pipeline: ModuleType, bert: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context()
    pipeline.model_fn(str(saved(task, "Bert", bert, tmp_path / "model")), context)
    monkeypatch.setenv(engine.CHECKED, context.notes["key"])
    further = saved(task, "Bert", bert, tmp_path / "further", seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "load_whole", None)
        loaded = pipeline.model_fn(str(further))
    inputs, parameters = ASKED[task][1]
    want = ask(pipeline, by_torch(pipeline, further), inputs, **parameters)
    assert near(ask(pipeline, loaded, inputs, **parameters), want)


def test_packed_weights_give_the_same_answers(pipeline: ModuleType, bert: Path, tmp_path: Path) -> None:
    loaded = pipeline.model_fn(str(saved("token-classification", "DistilBert", bert, tmp_path / "model")))
    before = ask(pipeline, loaded, TEXTS)
    offer = pipeline.busy_fn(loaded)
    assert offer.bytes > 0
    offer.begin()
    assert near(ask(pipeline, loaded, TEXTS), before)
    offer.end()


def test_labels_of_one_request_share_passes(
    pipeline: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = pipeline.model_fn(str(saved("zero-shot-classification", "Bert", bert, tmp_path / "model")))
    passes = []
    run = loaded.engine.run
    monkeypatch.setattr(loaded.engine, "run", lambda rows, *rest: passes.append(len(rows)) or run(rows, *rest))
    ask(pipeline, loaded, TEXTS[0], candidate_labels=["a house", "weather", "politics"])
    assert passes == [3]


def test_an_adapter_beside_a_classifier(pipeline: ModuleType, bert: Path, tmp_path: Path) -> None:
    folder = saved("text-classification", "Bert", bert, tmp_path / "model")
    before = ask(pipeline, pipeline.model_fn(str(folder)), TEXTS, function_to_apply="none")
    tiny_adapters.lora(folder / "adapter", folder, ("query", "value"))
    loaded = pipeline.model_fn(str(folder))
    assert loaded.engine is not None
    after = ask(pipeline, loaded, TEXTS, function_to_apply="none")
    assert near(after, ask(pipeline, by_torch(pipeline, folder), TEXTS, function_to_apply="none"))
    assert not near(after, before)


def _reason(pipeline: ModuleType, folder: Path) -> str:
    context = Context()
    loaded = pipeline.model_fn(str(folder), context)
    assert context.notes["engine"] == "torch"
    assert loaded.engine is None
    assert pipeline.busy_fn(loaded) is None
    reason: str = context.notes["reason"]
    return reason


def test_what_is_left_to_torch(
    pipeline: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = "token-classification"
    folder = saved(task, "Roberta", bert, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.save_pretrained(folder)
    assert "padding first" in _reason(pipeline, folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    assert "bfloat16" in _reason(pipeline, task_of(folder, task, dtype="bfloat16"))
    monkeypatch.setattr(engine, "onnxruntime", None)
    assert "not installed" in _reason(pipeline, task_of(folder, task))


def test_a_head_that_answers_otherwise_is_torchs(
    pipeline: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import engine_heads

    folder = saved("text-classification", "Roberta", bert, tmp_path / "model")
    monkeypatch.setitem(engine_heads.HEADS, "roberta", engine_heads._own("relu", "classifier.dense"))
    assert "differ" in _reason(pipeline, folder)


def test_a_model_that_no_graph_is_known_for(pipeline: ModuleType, bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = transformers.RoFormerConfig(**SMALL, embedding_size=32, num_labels=2)
    transformers.RoFormerForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    assert "no graph is known for roformer" in _reason(pipeline, task_of(folder, "text-classification"))


def test_a_model_without_the_tasks_head_is_refused_as_ever(pipeline: ModuleType, bert: Path, tmp_path: Path) -> None:
    folder = saved("feature-extraction", "Bert", bert, tmp_path / "model")
    with pytest.raises(ValueError, match="finds no weights for 2 parts of BertForTokenClassification"):
        pipeline.model_fn(str(task_of(folder, "token-classification")))


def _batch(pipeline: ModuleType, loaded: Any, bodies: list[dict[str, Any]]) -> list[Any]:
    """What batch_fn answers, which is to be what predict_fn does; errors as their words."""
    requests = [pipeline.input_fn(json.dumps(body), "application/json") for body in bodies]
    results = pipeline.batch_fn(requests, loaded)
    return [str(result) if isinstance(result, Exception) else result for result in results]


@pytest.mark.parametrize("task", AUTO)
def test_requests_that_share_passes_are_answered_as_alone(
    pipeline: ModuleType, bert: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = pipeline.model_fn(str(saved(task, "Bert", bert, tmp_path / "model")))
    bodies = [{"inputs": inputs, "parameters": parameters} for inputs, parameters in ASKED[task]]
    bodies += [{"inputs": 3}, {"inputs": TEXTS[1], "parameters": {"unknown": 1}}]
    bodies += [{**body, "inputs": LONG} for body in bodies[:1] if task == "text-classification"]  # too long
    bodies = [*bodies, *bodies[:3], bodies[0]]
    alone = [_batch(pipeline, loaded, [body])[0] for body in bodies]
    assert sum(isinstance(answer, str) for answer in alone) >= 2
    passes = []
    run = loaded.engine.run
    monkeypatch.setattr(loaded.engine, "run", lambda rows, *rest: passes.append(len(rows)) or run(rows, *rest))
    assert near(_batch(pipeline, loaded, bodies), alone)
    if task in ("text-classification", "zero-shot-classification", "token-classification"):
        assert max(passes) > 1


def test_requests_of_one_batch_share_a_pass(
    pipeline: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = pipeline.model_fn(str(saved("text-classification", "Bert", bert, tmp_path / "model")))
    passes = []
    run = loaded.engine.run
    monkeypatch.setattr(loaded.engine, "run", lambda rows, *rest: passes.append(len(rows)) or run(rows, *rest))
    other = {"inputs": TEXTS[0], "parameters": {"top_k": 2}}
    answers = _batch(pipeline, loaded, [{"inputs": TEXTS[0]}, {"inputs": TEXTS[1:3]}, other])
    assert passes == [3, 1]
    assert [len(answer) for answer in answers] == [1, 2, 2]


def test_what_a_request_costs_of_a_batch(pipeline: ModuleType, bert: Path, tmp_path: Path) -> None:
    def cost(loaded: Any, inputs: Any, **parameters: Any) -> int:
        body = json.dumps({"inputs": inputs, "parameters": parameters})
        tokens: int = pipeline.tokens_fn(pipeline.input_fn(body, "application/json"), loaded)
        return tokens

    zero = pipeline.model_fn(str(saved("zero-shot-classification", "Bert", bert, tmp_path / "zero")))
    one = cost(zero, TEXTS[2], candidate_labels=["a"])
    assert 0 < one < cost(zero, LONG, candidate_labels=["a"])
    assert (
        cost(zero, TEXTS[2], candidate_labels=["a", "b", "c"])
        == 3 * one
        == cost(zero, TEXTS[2], candidate_labels="a,b,c")
    )
    assert cost(zero, {"no": "text"}, candidate_labels=3) > 0
    features = pipeline.model_fn(str(saved("feature-extraction", "Bert", bert, tmp_path / "features")))
    assert cost(features, TEXTS[0]) == 0, "it shares no pass"
    assert cost(by_torch(pipeline, tmp_path / "zero"), TEXTS[0], candidate_labels=["a"]) == 0
