"""The forward pass without padding against transformers' own, for every family that it knows."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from handler_tools import SMALL, cosines, linked, load, minilm, request
from transformers import AutoTokenizer

load("embedding")  # which puts its modules on the path
import embedding_passes  # noqa: E402

TEXTS = ["rain", "the house is quiet", "word " * 40, "rain", "nobody is at home and the gate stands open", "a b c"]
DISTIL = {"vocab_size": 30522, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": SMALL | {"hidden_act": "relu"},
    "Roberta": SMALL | {"pad_token_id": 1, "type_vocab_size": 1},
    "XLMRoberta": SMALL | {"pad_token_id": 1, "type_vocab_size": 1},
    "Camembert": SMALL | {"pad_token_id": 1},
    "Electra": SMALL | {"embedding_size": 8},
    "DistilBert": DISTIL,
}


def family(name: str, bert: Path, folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**FAMILIES.get(name, SMALL) | changes)
    model = getattr(transformers, f"{name}Model")(config)
    for parameter in model.parameters():  # so that what is near zero at first, biases above all, is not
        parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


def one_by_one(model: Any, pooling: str) -> np.ndarray:
    """The vectors by transformers' own forward pass, one text at a time."""
    vectors = []
    for text in TEXTS:
        ids = model.tokenizer(text, truncation=True, max_length=model.max_length, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            hidden = model.model(input_ids=ids).last_hidden_state[0].float()
        vectors.append((hidden.mean(dim=0) if pooling == "mean" else hidden[0]).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_without_padding_are_transformers_own(
    embedding: ModuleType, bert: Path, tmp_path: Path, name: str, pooling: str
) -> None:
    model = embedding.model_fn(str(family(name, bert, tmp_path / "m")))
    assert model.plan is not None
    vectors = embedding.predict_fn(request(embedding, TEXTS, pooling=pooling), model)["embeddings"]
    assert np.abs(vectors - one_by_one(model, pooling)).max() < 2e-5


def test_requests_with_different_poolings_share_a_batch(embedding: ModuleType, embedder: Any) -> None:
    requests = [request(embedding, TEXTS, pooling=pooling) for pooling in ("mean", "cls")]
    results = embedding.batch_fn(requests, embedder)
    for result, pooling in zip(results, ("mean", "cls"), strict=True):
        assert np.abs(result["embeddings"] - one_by_one(embedder, pooling)).max() < 1e-5


def test_the_padding_token_written_in_a_text_has_the_position_that_roberta_gives_it(
    embedding: ModuleType, bert: Path, tmp_path: Path
) -> None:
    """RoBERTa does not count it, so this text is not packed, and its answer stays transformers' own."""
    model = embedding.model_fn(str(family("Roberta", bert, tmp_path / "m", pad_token_id=0)))
    ids = model.tokenizer("rain [PAD] house")["input_ids"]
    assert 0 in ids
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state[0]
    vector = embedding.predict_fn(request(embedding, "rain [PAD] house"), model)["embeddings"][0]
    assert np.abs(vector - hidden.mean(dim=0).numpy()).max() < 2e-5


def test_a_model_built_otherwise_is_padded(embedding: ModuleType, bert: Path, tmp_path: Path) -> None:
    """MPNet's attention knows how far two tokens are apart: packing would lose that."""
    model = embedding.model_fn(str(family("MPNet", bert, tmp_path / "m", pad_token_id=1)))
    assert model.plan is None
    vectors = embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"]
    alone = [embedding.predict_fn(request(embedding, text), model)["embeddings"][0] for text in TEXTS]
    assert np.abs(vectors - np.stack(alone)).max() < 2e-5


def test_a_decoder_is_padded(embedding: ModuleType, bert: Path, tmp_path: Path) -> None:
    model = embedding.model_fn(str(family("Bert", bert, tmp_path / "m", is_decoder=True)))
    assert model.plan is None


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"quantize": "int8"}])
def test_reduced_precision_is_the_same_with_and_without_padding(
    embedding: ModuleType, tmp_path: Path, settings: dict[str, str]
) -> None:
    model = embedding.model_fn(str(linked(minilm(), tmp_path / "m", **settings)))
    assert model.plan is not None
    got = embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"]
    assert cosines(got, one_by_one(model, "mean")).min() > 0.999


def test_threads_share_a_batch_and_leave_torchs_setting_as_it_was(embedding: ModuleType, embedder: Any) -> None:
    texts = [f"{text} {number}" for number in range(20) for text in TEXTS]
    alone = embedding.predict_fn(request(embedding, texts), embedder)["embeddings"]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = embedding.predict_fn(request(embedding, texts), embedder)["embeddings"]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert np.abs(shared - alone).max() < 1e-5


def test_threads_get_shares_of_like_size() -> None:
    rows = [[0] * length for length in (94, 66, 35, 27, 19, 13, 11, 6)]
    shares = embedding_passes._shares(list(range(8)), rows, 2)
    assert sorted(row for share in shares for row in share) == list(range(8))
    assert [sum(len(rows[row]) for row in share) for share in shares] == [138, 133]


@pytest.mark.parametrize(
    ("threads", "lengths", "expected"),
    [
        (2, [300], (1, 2)),
        (2, [12, 12, 12, 12], (1, 2)),  # too little for shares
        (2, [12, 12, 12, 12, 12, 12], (2, 1)),
        (8, [300, 300], (2, 4)),
        (1, [300, 300], (1, 1)),
    ],
)
def test_threads_are_used_where_there_is_work_for_them(
    embedder: Any, threads: int, lengths: list[int], expected: tuple[int, int]
) -> None:
    assert embedding_passes._threads(threads, [[0] * length for length in lengths], embedder) == expected
