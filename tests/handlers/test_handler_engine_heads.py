"""Cross-encoders computed by ONNX Runtime against transformers' own scores, and when they are left to torch."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from handler_tools import Context, load
from small_encoders import HEADS, SMALL, model
from transformers import AutoTokenizer

load("embedding")
import engine  # noqa: E402

pytest.importorskip("onnxruntime")

DOCUMENTS = ["rain", "the house is quiet " * 9, "word " * 40, "rain", "nobody is at home and the gate stands open", "a"]
QUERY = "is anybody at home ?"


@pytest.fixture
def reranking() -> ModuleType:
    return load("reranking")


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_ENGINE", raising=False)


def transformers_own(folder: Path) -> np.ndarray:
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    typed = "token_type_ids" in tokenizer.model_input_names and getattr(classifier.config, "type_vocab_size", 0) > 1
    rows = []
    for text in DOCUMENTS:
        encoded = tokenizer(QUERY, text, return_tensors="pt", return_token_type_ids=typed)
        with torch.inference_mode():
            rows.append(classifier(**encoded).logits[0].numpy())
    return np.stack(rows)


def scores(reranking: ModuleType, loaded: Any) -> np.ndarray:
    body = {"inputs": [[QUERY, text] for text in DOCUMENTS], "parameters": {"activation": "identity"}}
    answer = reranking.predict_fn(reranking.input_fn(json.dumps(body), "application/json"), loaded)
    return np.array(answer["scores"]).reshape(len(DOCUMENTS), -1)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", HEADS)
def test_scores_are_transformers_own(
    reranking: ModuleType, bert: Path, tmp_path: Path, name: str, labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(name, bert, tmp_path / "model", labels)
    want = transformers_own(folder)
    bound = 1e-5 * max(1.0, float(np.abs(want).max()))
    assert float(want.std(axis=0).max()) > 100 * bound, "the pairs are told from each other"
    context = Context()
    loaded = reranking.model_fn(str(folder), context)
    assert (context.notes["engine"], context.notes["reason"]) == ("onnxruntime", "")
    assert loaded.model is None
    assert float(np.abs(scores(reranking, loaded) - want).max()) <= bound
    # A further model of the kind, whose graph is known to be equal, never has transformers' own.
    monkeypatch.setenv(engine.CHECKED, context.notes["key"])
    further = model(name, bert, tmp_path / "further", labels, seed=1)
    want = transformers_own(further)
    with monkeypatch.context() as patched:
        patched.setattr(reranking.AutoModelForSequenceClassification, "from_pretrained", None)
        loaded = reranking.model_fn(str(further))
    assert float(np.abs(scores(reranking, loaded) - want).max()) <= 1e-5 * max(1.0, float(np.abs(want).max()))


@pytest.mark.parametrize("name", [name for name in HEADS if name != "Albert"])
def test_packed_weights_give_the_same_scores(reranking: ModuleType, bert: Path, tmp_path: Path, name: str) -> None:
    loaded = reranking.model_fn(str(model(name, bert, tmp_path / "model")))
    before = scores(reranking, loaded)
    offer = reranking.busy_fn(loaded)
    assert offer.bytes > 0
    offer.begin()
    assert float(np.abs(scores(reranking, loaded) - before).max()) <= 1e-5 * max(1.0, float(np.abs(before).max()))
    offer.end()


def test_a_head_that_answers_otherwise_is_torchs(
    reranking: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import engine_heads

    folder = model("Roberta", bert, tmp_path / "model")
    monkeypatch.setitem(engine_heads.HEADS, "roberta", engine_heads._own("relu", "classifier.dense"))
    context = Context()
    loaded = reranking.model_fn(str(folder), context)
    assert context.notes["engine"] == "torch"
    assert "differ" in context.notes["reason"]
    want = transformers_own(folder)
    assert float(np.abs(scores(reranking, loaded) - want).max()) <= 1e-4
    assert reranking.busy_fn(loaded) is None


@pytest.mark.parametrize(
    ("settings", "reason"), [({"dtype": "bfloat16"}, "bfloat16"), ({}, "no graph is known for roformer")]
)
def test_what_is_left_to_torch(
    reranking: ModuleType, bert: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    if settings:
        folder = model("Bert", bert, tmp_path / "model")
    else:
        folder = tmp_path / "model"
        config = transformers.RoFormerConfig(**SMALL, embedding_size=32, num_labels=1)
        transformers.RoFormerForSequenceClassification(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    (folder / "code").mkdir()
    (folder / "code" / "settings.json").write_text(json.dumps(settings))
    context = Context()
    loaded = reranking.model_fn(str(folder), context)
    assert context.notes["engine"] == "torch"
    assert reason in context.notes["reason"]
    assert scores(reranking, loaded).shape == (len(DOCUMENTS), 1)


def test_a_ranking_is_the_same_with_torch(
    reranking: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model("Bert", bert, tmp_path / "model")
    body = json.dumps({"query": QUERY, "documents": [text for place, text in enumerate(DOCUMENTS) if place != 3]})
    answers = []
    for chosen in ("", "torch"):
        monkeypatch.setenv("MME_ENGINE", chosen)
        loaded = reranking.model_fn(str(folder))
        assert (loaded.engine is None) == bool(chosen)
        answers.append(reranking.predict_fn(reranking.input_fn(body, "application/json"), loaded))
    ours, torchs = answers
    assert [result["index"] for result in ours["results"]] == [result["index"] for result in torchs["results"]]
    assert (ours["tokens"], ours["truncated"]) == (torchs["tokens"], torchs["truncated"])
