"""A text gets the same vector alone and beside longer ones, whatever kind of encoder reads it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from handler_tools import SMALL, load, minilm, request
from transformers import AutoTokenizer

handler_exact = load("embedding").handler_exact

TEXTS = ["rain", "the house is quiet", "word " * 40, "rain", "nobody is at home and the gate stands open", "a b c d"]
FUNNEL = {"vocab_size": 30522, "block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32}
XLNET = {"vocab_size": 30522, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
# Which leak padding, and so must not share a forward pass with texts of another length.
LEAKING: dict[str, dict[str, Any]] = {
    "FNet": SMALL,
    "ConvBert": SMALL | {"embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 1},
    "Funnel": FUNNEL,
    "Yoso": SMALL,
}
OTHERS: dict[str, dict[str, Any]] = {
    "MPNet": SMALL,
    "XLNet": XLNET,
    "Albert": SMALL | {"embedding_size": 8},
    "ModernBert": SMALL | {"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102},
    "RoFormer": SMALL,
    "DebertaV2": SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "GPT2": {"vocab_size": 30522, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "T5Encoder": {"vocab_size": 30522, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}


def made(name: str, folder: Path, side: str = "right") -> Path:
    torch.manual_seed(0)
    options = {**LEAKING, **OTHERS, "Nystromformer": SMALL | {"num_landmarks": 4}}[name]
    model = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name.removesuffix('Encoder')}Config")(**options)
    )
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm(), model_max_length=64, padding_side=side).save_pretrained(folder)
    return folder


def alone(model: Any, text: str) -> np.ndarray:
    """The mean of the text's tokens by transformers' own forward pass."""
    encoded = model.tokenizer(text, return_tensors="pt", truncation=True, max_length=model.max_length)
    encoded = {name: held for name, held in encoded.items() if name in model.arguments}
    with torch.inference_mode():
        vector: np.ndarray = model.model(**encoded).last_hidden_state[0].mean(dim=0).numpy()
    return vector


@pytest.mark.parametrize("name", [*LEAKING, *OTHERS])
def test_a_text_is_answered_alike_beside_longer_ones(embedding: ModuleType, tmp_path: Path, name: str) -> None:
    model = embedding.model_fn(str(made(name, tmp_path / "m")))
    together = embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"]
    for text, vector in zip(TEXTS, together, strict=True):
        expected = alone(model, text)
        assert np.abs(vector - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    assert (model.way == handler_exact.PADDED) == (name in OTHERS)


def test_a_model_that_reads_texts_of_one_length_alone_is_refused(embedding: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"A nystromformer model cannot read a text of 1\d tokens by itself"):
        embedding.model_fn(str(made("Nystromformer", tmp_path / "m")))


def test_padding_on_the_left_that_moves_positions_is_seen(embedding: ModuleType, tmp_path: Path) -> None:
    """GPT-2 counts positions from the row's begin, padding included: texts are padded on the right, or not at all."""
    model = embedding.model_fn(str(made("GPT2", tmp_path / "m", "left")))
    assert model.way == handler_exact.EQUAL
    together = embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"]
    for text, vector in zip(TEXTS, together, strict=True):
        assert np.abs(vector - alone(model, text)).max() < 1e-5


def test_what_runs_apart_is_said(embedding: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedding.model_fn(str(made("FNet", tmp_path / "m")))
    assert "fnet: texts of one length run together, since padding would change its answers" in capsys.readouterr().err


def test_a_big_bird_reads_a_long_text_after_a_short_one_as_before(embedding: ModuleType, tmp_path: Path) -> None:
    """It changes its attention for good at the first text that is short (transformers' set_attention_type)."""
    torch.manual_seed(0)
    config = transformers.BigBirdConfig(**SMALL | {"max_position_embeddings": 512}, block_size=4, num_random_blocks=1)
    fresh = transformers.BigBirdModel(config)
    for parameter in fresh.parameters():
        parameter.data.normal_(0, 0.3)
    fresh.save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(minilm(), model_max_length=512).save_pretrained(tmp_path / "m")
    model = embedding.model_fn(str(tmp_path / "m"))
    long = "word " * 200
    before = embedding.predict_fn(request(embedding, long), model)["embeddings"]
    embedding.predict_fn(request(embedding, "rain"), model)
    after = embedding.predict_fn(request(embedding, [long, "rain"]), model)["embeddings"][:1]
    assert np.abs(after - before).max() < 1e-5
    expected = transformers.BigBirdModel.from_pretrained(tmp_path / "m").eval()
    model.model.set_attention_type("block_sparse")
    with torch.inference_mode():
        ids = model.tokenizer(long, return_tensors="pt")
        vector = expected(**ids).last_hidden_state[0].mean(dim=0).numpy()
    assert np.abs(before[0] - vector).max() < 1e-5


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    def forward(rows: list[list[int]]) -> list[torch.Tensor]:
        return [torch.rand(len(row), 4) for row in rows]

    with pytest.raises(ValueError, match="answers the same text differently from one call to the next"):
        handler_exact.way(forward, handler_exact.probes(list(range(8)), 32), "odd", "float32")


@pytest.mark.parametrize("most", [3, 4, 5, 9, 64, 512])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 16])
def test_probes_are_of_one_length_and_longer(length: int, most: int) -> None:
    row = list(range(100, 100 + min(length, most)))
    short, other, *longer = handler_exact.probes(row, most)
    assert len(short) == len(other) <= most
    assert all(0 < len(one) <= max(most, len(row)) for one in longer)


def test_a_cross_encoder_answers_a_pair_alike_beside_longer_ones(tmp_path: Path) -> None:
    reranking = load("reranking")
    for name in ("FNet", "MPNet"):
        torch.manual_seed(0)
        kind = getattr(transformers, f"{name}ForSequenceClassification")
        model = kind(getattr(transformers, f"{name}Config")(**SMALL, num_labels=2))
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.3)
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(minilm(), model_max_length=64).save_pretrained(tmp_path / name)
        loaded = reranking.model_fn(str(tmp_path / name))
        assert loaded.way == (handler_exact.EQUAL if name == "FNet" else handler_exact.PADDED)
        pairs = [["rain", "sun"], ["the house is quiet", "word " * 40], ["sun", "rain"], ["a b", "c d e f"]]
        together = np.array(reranking.predict_fn(reranking.Ranking(pairs, False, {}), loaded)["scores"])
        for pair, scores in zip(pairs, together, strict=True):
            encoded = loaded.tokenizer(*pair, return_tensors="pt", truncation=True, max_length=64)
            encoded = {key: held for key, held in encoded.items() if key in loaded.arguments}
            with torch.inference_mode():
                expected = loaded.model(**encoded).logits[0].numpy()
            assert np.abs(scores - expected).max() < 1e-5
