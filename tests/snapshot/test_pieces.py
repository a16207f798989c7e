"""Tokenizers that are only a SentencePiece model become fast ones, or the cause of why not is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from transformers import AutoTokenizer

from mme.catalog.spec import ModelSpec, Source
from mme.errors import SourceError
from mme.snapshot import pieces, retrieve

TEXTS = ["the house is quiet", "nobody is at home", "rain falls on the roof all day long"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text("\n".join(TEXTS * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "m"),
        vocab_size=45,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "m.model"


def t5(folder: Path, trained: Path) -> Path:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=45, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(trained.read_bytes())
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def spec(folder: Path) -> ModelSpec:
    return ModelSpec("m", Source("folder", "m", folder), task="feature-extraction")


def test_a_fast_tokenizer_is_made_and_reported(trained: Path, tmp_path: Path) -> None:
    import sentencepiece

    taken = retrieve.snapshot(spec(t5(tmp_path / "m", trained)), tmp_path / "s")
    assert taken.facts["tokenizer"] == "tokenizer.json made from spiece.model"
    assert (taken.path / "tokenizer.json").is_file()
    made = AutoTokenizer.from_pretrained(taken.path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained))
    for text in TEXTS:
        assert made.tokenize(text) == processor.encode(text, out_type=str)


def test_a_tokenizer_that_is_fast_already_is_not_spoken_of(tmp_path: Path) -> None:
    assert "tokenizer" not in retrieve.snapshot(spec(tiny_models.bert(tmp_path / "m")), tmp_path / "s").facts


@pytest.mark.parametrize(
    ("missing", "said"),
    [("sentencepiece", "takes the library sentencepiece"), ("sentencepiece.sentencepiece_model_pb2", "and protobuf ")],
)
def test_a_library_that_is_missing_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, said: str
) -> None:
    import sentencepiece

    monkeypatch.delattr(sentencepiece, "sentencepiece_model_pb2", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SourceError, match=r"only as a SentencePiece model \(spiece.model\)") as caught:
        retrieve.snapshot(spec(t5(tmp_path / "m", trained)), tmp_path / "s")
    assert said in caught.value.message
    assert "tiktoken" not in str(caught.value)
    assert "mme[package]" in (caught.value.hint or "")


def test_a_file_that_is_none_is_named(tmp_path: Path, trained: Path) -> None:
    folder = t5(tmp_path / "m", trained)
    (folder / "spiece.model").write_bytes(b"not at all")
    with pytest.raises(SourceError, match=r"spiece.model is not a SentencePiece model"):
        retrieve.snapshot(spec(folder), tmp_path / "s")


def test_a_tokenizer_without_the_models_pieces_is_refused(trained: Path) -> None:
    class Other:
        def get_vocab(self) -> dict[str, Any]:
            return {"the": 0}

    with pytest.raises(SourceError, match=r"lacks .* of its .* pieces"):
        pieces.check_whole("m", trained, Other())


@pytest.mark.parametrize("kind", ["ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"])
def test_a_tokenizer_of_bytes_or_characters_has_no_vocabulary(tmp_path: Path, kind: str) -> None:
    import transformers

    made = getattr(transformers, kind)()
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    spec = ModelSpec("m", Source("folder", "m", tmp_path), task="text-classification")
    assert pieces.load(spec, tmp_path)(TEXTS[0])["input_ids"] == made(TEXTS[0])["input_ids"]


def test_what_goes_without_a_vocabulary_is_known_by_its_class_or_model(tmp_path: Path) -> None:
    spec = ModelSpec("m", Source("folder", "m", tmp_path), task="text-classification")
    settings, config = tmp_path / "tokenizer_config.json", tmp_path / "config.json"
    config.write_text('{"model_type": "bert"}')
    for said in ({}, {"tokenizer_class": "BertTokenizer"}):
        settings.write_text(json.dumps(said))
        with pytest.raises(SourceError, match="has no tokenizer"):
            pieces.load(spec, tmp_path)
    config.write_text('{"model_type": "canine"}')
    settings.write_text('{"model_max_length": 2048}')  # as google/canine-s has it
    assert type(pieces.load(spec, tmp_path)).__name__ == "CanineTokenizer"
