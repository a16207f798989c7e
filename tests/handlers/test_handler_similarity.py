"""sentence-similarity: one sentence compared with others, by the embedding handler."""

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SOURCE, OTHERS = "The house is quiet.", ["Nobody is at home.", "Rain falls.", "The house is quiet."]


def ask(embedding: ModuleType, model: Any, body: Any) -> Any:
    return json.loads(
        embedding.output_fn(
            embedding.predict_fn(embedding.input_fn(json.dumps(body), "application/json"), model), "*/*"
        )
    )


def test_sentences_are_compared(embedding: ModuleType, embedder: Any) -> None:
    inputs = {"source_sentence": SOURCE, "sentences": OTHERS}
    reply = ask(embedding, embedder, {"inputs": inputs})
    vectors = np.array(ask(embedding, embedder, {"inputs": [SOURCE, *OTHERS]})["embeddings"])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.abs(np.array(reply) - vectors[1:] @ vectors[0]).max() < 1e-5
    assert reply[2] == pytest.approx(1.0, abs=1e-5)
    assert ask(embedding, embedder, inputs) == reply, "without the word inputs, as the toolkit has it"


def test_in_company_it_is_the_same(embedding: ModuleType, embedder: Any) -> None:
    bodies = [{"inputs": {"source_sentence": SOURCE, "sentences": OTHERS}}, {"inputs": OTHERS}]
    requests = [embedding.input_fn(json.dumps(body), "application/json") for body in bodies]
    compared, embedded = embedding.batch_fn(requests, embedder)
    assert np.abs(np.array(compared) - np.array(ask(embedding, embedder, bodies[0]))).max() < 1e-5
    assert len(embedded["embeddings"]) == 3


@pytest.mark.parametrize("function", ["dot", "euclidean", "manhattan"])
def test_other_ways_to_compare(embedding: ModuleType, function: str) -> None:
    import embedding_similarity

    rows = np.array([[1.0, 2.0], [1.0, 0.0]], np.float32)
    expected = {"dot": 1.0, "euclidean": -2.0, "manhattan": -2.0}
    assert embedding_similarity.compared(rows, function) == [expected[function]]


WRONG = {
    "no sentences": ({"source_sentence": "a"}, "sentences must be a list"),
    "a source that is no text": ({"source_sentence": 1, "sentences": ["a"]}, "source_sentence must be a text"),
    "a sentence that is no text": ({"source_sentence": "a", "sentences": [1]}, "must hold texts"),
    "another field": ({"source_sentence": "a", "sentences": ["a"], "top_k": 1}, "unknown field 'top_k'"),
}


@pytest.mark.parametrize(("inputs", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_comparison_is_named(embedding: ModuleType, embedder: Any, inputs: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ask(embedding, embedder, {"inputs": inputs})
