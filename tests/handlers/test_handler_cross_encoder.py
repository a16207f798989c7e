"""Scores against those of sentence-transformers' CrossEncoder, for everything that its files can say of a model."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from handler_tools import SMALL, load
from sentence_folders import raw, saved
from sentence_transformers import CrossEncoder
from sentence_transformers.sentence_transformer.modules import (
    Pooling,
)
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

QUERY = "Is anybody at home today?"
DOCUMENTS = [
    "Nobody.",
    "The house is quiet.",
    "Nobody is at home, and the garden gate stands open in the wind all day long.",
    "word " * 60,
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw(tmp_path_factory.mktemp("tiny"), BertModel(BertConfig(**SMALL)))


@pytest.fixture(scope="module")
def reranking() -> ModuleType:
    return load("reranking")


def cross_encoder(folder: Path, kind: str = "bert", labels: int = 1, **options: Any) -> Path:
    if kind == "bert":
        model: Any = BertForSequenceClassification(BertConfig(**SMALL, num_labels=labels))
    else:
        config = RobertaConfig(**SMALL, pad_token_id=1, type_vocab_size=1, num_labels=labels)
        model = RobertaForSequenceClassification(config)
    plain = raw(folder.with_name(folder.name + "-raw"), model)
    CrossEncoder(str(plain), max_length=40, **options).save(str(folder))
    return folder


def ask(reranking: ModuleType, model: Any, **body: Any) -> dict[str, Any]:
    data = reranking.input_fn(json.dumps(body), "application/json")
    answer: dict[str, Any] = json.loads(reranking.output_fn(reranking.predict_fn(data, model), "application/json"))
    return answer


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("labels", "options"),
    [
        *[(1, {}), (1, {"activation_fn": torch.nn.Identity()}), (1, {"activation_fn": torch.nn.Tanh()}), (3, {})],
        *[(3, {"activation_fn": torch.nn.Softmax(dim=-1)}), (3, {"activation_fn": torch.nn.LogSoftmax(dim=-1)})],
        *[(2, {"activation_fn": torch.nn.Softmax(dim=1)}), (3, {"activation_fn": torch.nn.PReLU()})],
    ],
)
def test_scores_are_those_of_a_cross_encoder(
    reranking: ModuleType, tmp_path: Path, kind: str, labels: int, options: dict[str, Any]
) -> None:
    folder = cross_encoder(tmp_path / "m", kind, labels, **options)
    pairs = [[QUERY, document] for document in DOCUMENTS] + [[DOCUMENTS[3], DOCUMENTS[3]], ["", ""]]
    expected = CrossEncoder(str(folder)).predict(pairs, batch_size=1)
    model = reranking.model_fn(str(folder))
    assert np.abs(np.array(ask(reranking, model, inputs=pairs)["scores"]) - expected).max() < 1e-5
    for pair, score in zip(pairs, expected, strict=True):
        alone = ask(reranking, model, inputs=[{"text": pair[0], "text_pair": pair[1]}])["scores"][0]
        assert np.abs(np.array(alone) - score).max() < 1e-5
    if labels > 1 and not options:
        softmax = CrossEncoder(str(folder)).predict(pairs, apply_softmax=True)
        asked = ask(reranking, model, inputs=pairs, parameters={"activation": "softmax"})["scores"]
        assert np.abs(np.array(asked) - softmax).max() < 1e-5
        with pytest.raises(ValueError, match="gives 3 scores for a pair"):
            ask(reranking, model, query=QUERY, documents=DOCUMENTS)


def test_documents_are_ranked_as_a_cross_encoder_ranks_them(reranking: ModuleType, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path / "m")
    expected = CrossEncoder(str(folder)).rank(QUERY, DOCUMENTS, top_k=3, return_documents=True)
    model = reranking.model_fn(str(folder))
    answer = ask(reranking, model, query=QUERY, documents=DOCUMENTS, top_k=3, return_documents=True)
    assert [item["index"] for item in answer["results"]] == [item["corpus_id"] for item in expected]
    assert [item["document"] for item in answer["results"]] == [item["text"] for item in expected]
    for ours, theirs in zip(answer["results"], expected, strict=True):
        assert abs(ours["score"] - theirs["score"]) < 1e-5
    assert answer["truncated"] == [False, False, False, True]
    assert answer["tokens"][3] == 40
    asked = [
        reranking.input_fn(json.dumps({"query": QUERY, "documents": DOCUMENTS}), "application/json"),
        reranking.input_fn(json.dumps({"inputs": [["a", "b"]]}), "application/json"),
        reranking.input_fn(json.dumps({"query": QUERY, "documents": ["x"], "top_k": 0}), "application/json"),
    ]
    together = reranking.batch_fn(asked, model)
    assert [item["index"] for item in together[0]["results"]][:3] == [item["corpus_id"] for item in expected]
    assert len(together[1]["scores"]) == 1
    assert isinstance(together[2], ValueError)
    assert reranking.tokens_fn(asked[1], model) == 5


def test_activations_in_older_configurations(reranking: ModuleType, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path / "m")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    for more in (
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh", "version": "4.1.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Softmax"},
        {},
    ):
        (folder / "config.json").write_text(json.dumps(config | more))
        expected = CrossEncoder(str(folder)).predict([[QUERY, document] for document in DOCUMENTS])
        answer = ask(reranking, reranking.model_fn(str(folder)), inputs=[[QUERY, item] for item in DOCUMENTS])
        assert np.abs(np.array(answer["scores"]) - expected).max() < 1e-5
    (folder / "config.json").write_text(json.dumps(config | {"sentence_transformers": {"activation_fn": "mine.Swish"}}))
    with pytest.raises(ValueError, match=r"configuration has the activation mine.Swish, .* LogSoftmax"):
        reranking.model_fn(str(folder))


def test_a_cross_encoders_prompt_goes_before_the_first_text(reranking: ModuleType, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path / "m", prompts={"q": "find: "}, default_prompt_name="q")
    model = reranking.model_fn(str(folder))
    pairs = [[QUERY, document] for document in DOCUMENTS]
    for named in ({}, {"prompt": "other "}, {"prompt_name": "q"}):
        expected = CrossEncoder(str(folder)).predict(pairs, **named)
        assert np.abs(np.array(ask(reranking, model, inputs=pairs, **named)["scores"]) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, 'has "query", a text, and "documents"'),
        ({"query": "a"}, 'has "query", a text, and "documents"'),
        ({"query": 1, "documents": ["b"]}, "query.0. is a number"),
        ({"query": "a", "documents": []}, "not an empty one"),
        ({"query": "a", "documents": "b"}, "must be a list of texts"),
        ({"query": "a", "documents": ["b", None]}, r"documents\[1\] is null"),
        ({"query": "a", "documents": ["b"], "inputs": [["a", "b"]]}, "not both"),
        ({"query": "a", "documents": ["b"], "top_n": 1}, "Unknown field 'top_n'. Known: query, documents"),
        ({"query": "a", "documents": ["b"], "parameters": {"top_n": 1}}, "Unknown parameter 'top_n'"),
        ({"query": "a", "documents": ["b"], "top_k": 0}, "top_k must be a whole number from 1"),
        ({"query": "a", "documents": ["b"] * 257}, "There are 257 pairs; at most 256"),
        ({"inputs": []}, "not an empty one"),
        ({"inputs": [["a"]]}, r"inputs\[0\] must be a pair"),
        ({"inputs": [["a", 1]]}, r"inputs\[0\]\[1\] is a number"),
        ({"inputs": [["a", "b"]], "top_k": 1}, 'go with "query" and "documents"'),
        ({"inputs": [["a", "b"]], "parameters": {"activation": "relu"}}, "activation must be one of identity, sigmoid"),
        ({"inputs": [["word " * 99, "b"]], "parameters": {"truncate": False}}, r"inputs\[0\] has 103 tokens"),
    ],
)
def test_a_request_that_is_wrong(
    reranking: ModuleType, tmp_path_factory: pytest.TempPathFactory, body: dict[str, Any], reason: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "wrong-requests"
    model = reranking.model_fn(str(folder if folder.is_dir() else cross_encoder(folder)))
    with pytest.raises(ValueError, match=reason):
        ask(reranking, model, **body)


def test_a_chain_of_modules_is_no_cross_encoder(reranking: ModuleType, tiny: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", tiny, [Pooling(16, "mean")])
    with pytest.raises(ValueError, match="Transformer, Pooling is not computed here"):
        reranking.model_fn(str(folder))


def test_a_token_that_the_model_does_not_know_is_refused_alone(reranking: ModuleType, tmp_path: Path) -> None:
    """Tokenizers may have more tokens than the model has embeddings: looking one up fails the whole batch."""
    folder = cross_encoder(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<beyond>"])
    tokenizer.save_pretrained(folder)
    model = reranking.model_fn(str(folder))
    bodies = [json.dumps({"inputs": [["a", text]]}) for text in ("Rain.", "a <beyond> b", "Rain.")]
    first, refused, last = reranking.batch_fn([reranking.input_fn(b, "application/json") for b in bodies], model)
    assert isinstance(refused, ValueError)
    assert "inputs[0] has the token '<beyond>', which the model does not know" in str(refused)
    assert first == last
