"""Tokenizers of every form that transformers reads are packed so that texts are read as the source's reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from transformers import AutoTokenizer

from mme.catalog.spec import ModelSpec, Source
from mme.errors import SourceError
from mme.snapshot import portable, retrieve, sources

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ("the house is quiet", "Nobody, at home: 12!", "<s> a b </s>")


def spec(folder: Path, task: str = "text-classification", **more: Any) -> ModelSpec:
    return ModelSpec("m", Source("folder", "m", folder), task=task, **more)


def model(folder: Path, kind: str, config: str, **values: Any) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    small = {"vocab_size": 80, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 16, "max_position_embeddings": 32}
    getattr(transformers, kind)(getattr(transformers, config)(**{**small, **values})).save_pretrained(folder)
    return folder


def seq2seq(folder: Path, kind: str, config: str, **values: Any) -> Path:
    layers = {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    return model(folder, kind, config, d_model=8, encoder_ffn_dim=16, decoder_ffn_dim=16, **{**layers, **values})


def same(folder: Path, taken: Path) -> None:
    right, packed = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(taken)
    for text in TEXTS:
        assert packed(text)["input_ids"] == right(text)["input_ids"]


def trained(path: Path, **options: Any) -> Path:
    import sentencepiece

    text = path.with_name("text")
    text.write_text("\n".join(["the house is quiet", "nobody is at home", "12 dogs bark all night"] * 50))
    prefix = path.with_name("trained")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), vocab_size=60, hard_vocab_limit=False, minloglevel=2, **options
    )
    prefix.with_suffix(".model").rename(path)
    prefix.with_suffix(".vocab").unlink()
    text.unlink()
    return path


def test_a_vocabulary_of_the_target_alone(tmp_path: Path) -> None:
    import sentencepiece

    folder = tmp_path / "m"
    folder.mkdir()
    for file, name in (("source.spm", "vocab.json"), ("target.spm", "target_vocab.json")):
        processor = sentencepiece.SentencePieceProcessor(model_file=str(trained(folder / file)))
        words = [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
        listed = ["</s>", "<unk>", *words, "<pad>"]
        (folder / name).write_text(json.dumps({word: number for number, word in enumerate(listed)}))
    settings = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": True, "source_lang": "a", "target_lang": "b"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    seq2seq(folder, "MarianMTModel", "MarianConfig", pad_token_id=len(listed) - 1, decoder_start_token_id=1)
    taken = retrieve.snapshot(spec(folder, "translation"), tmp_path / "s").path
    same(folder, taken)
    right, packed = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(taken)
    assert packed(text_target="the house")["input_ids"] == right(text_target="the house")["input_ids"]


def test_byte_pairs_in_a_file_of_their_own(tmp_path: Path) -> None:
    folder = model(
        tmp_path / "m", "RobertaForSequenceClassification", "RobertaConfig", tokenizer_class="PhobertTokenizer"
    )
    (folder / "vocab.txt").write_text("".join(f"{letter} 1\n{letter}@@ 1\n" for letter in LETTERS))
    (folder / "bpe.codes").write_text("t h 10\nth e 5\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    same(folder, retrieve.snapshot(spec(folder), tmp_path / "s").path)


def test_a_tokenizer_json_that_reads_otherwise_is_not_packed(tmp_path: Path) -> None:
    """transformers makes one of this DeBERTa's pieces whose token for what is unknown is another's."""
    folder = model(tmp_path / "m", "DebertaV2ForSequenceClassification", "DebertaV2Config", vocab_size=120)
    trained(folder / "spm.model", pad_id=0, bos_id=1, eos_id=2, unk_id=3)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": false}')
    taken = retrieve.snapshot(spec(folder), tmp_path / "s")
    right, packed = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(taken.path)
    for text in (*TEXTS, "987 ÄÖÜ"):
        assert packed(text)["input_ids"] == right(text)["input_ids"]


def test_a_tokenizer_that_is_another_once_packed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    copy = portable.copy

    def spoiled(source: Path, saved: Path | None, into: Path) -> None:
        copy(source, saved, into)
        settings = json.loads((into / "tokenizer_config.json").read_text())
        (into / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
        (into / "tokenizer.json").unlink(missing_ok=True)

    monkeypatch.setattr(portable, "copy", spoiled)
    with pytest.raises(SourceError, match=r"another one once it is packed: .The house is QUIET"):
        retrieve.snapshot(spec(folder, "feature-extraction"), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("tekken.json", "{}", "tekken.json, which takes the library mistral-common"),
        ("tokenizer.model", "IQ== 0\nIg== 1\n", "in the format of tiktoken"),
    ],
)
def test_tokenizers_that_no_container_reads_are_named(tmp_path: Path, file: str, text: str, words: str) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    for name in ("vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / file).write_text(text)
    with pytest.raises(SourceError, match=words):
        retrieve.snapshot(spec(folder, "feature-extraction"), tmp_path / "s")


TEMPLATES = {"default": "D{{ messages[0].content }}", "tool_use": "T{{ tools | length }}{{ messages[0].content }}"}


@pytest.mark.parametrize("form", ["files", "list"])
def test_all_chat_templates_are_packed(tmp_path: Path, form: str) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    if form == "files":
        (folder / "chat_template.jinja").write_text(TEMPLATES["default"])
        (folder / portable.TEMPLATES).mkdir()
        (folder / portable.TEMPLATES / "tool_use.jinja").write_text(TEMPLATES["tool_use"])
    else:
        settings["chat_template"] = [{"name": name, "template": text} for name, text in TEMPLATES.items()]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    taken = retrieve.snapshot(spec(folder, "feature-extraction"), tmp_path / "s").path
    assert AutoTokenizer.from_pretrained(taken).chat_template == TEMPLATES
    listed = json.loads((taken / "tokenizer_config.json").read_text())["chat_template"]
    assert {item["name"]: item["template"] for item in listed} == TEMPLATES, "where version 4 looks"


def test_what_the_hub_has_of_these_is_downloaded() -> None:
    names = [
        "config.json",
        "model.safetensors",
        "vocab-src.json",
        "additional_chat_templates/tool_use.jinja",
        "a/b.jinja",
    ]
    assert sources.needed(names, False, False) == sorted(names[:-1])


OWN = "from transformers import BertTokenizer\n\n\nclass OwnTokenizer(BertTokenizer):\n    pass\n"


@pytest.mark.parametrize("part", ["tokenizer", "model", "processor"])
def test_classes_of_the_models_own_are_refused_without_leave(tmp_path: Path, part: str) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    file, auto, kind = {
        "tokenizer": ("tokenizer_config.json", "AutoTokenizer", ["own.OwnTokenizer", None]),
        "model": ("config.json", "AutoModel", "own.OwnBertModel"),
        "processor": ("preprocessor_config.json", "AutoImageProcessor", "own.OwnProcessor"),
    }[part]
    settings = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps({**settings, "auto_map": {auto: kind}}))
    (folder / "own.py").write_text(OWN)
    with pytest.raises(SourceError, match=r"needs Python code that comes with the model: .* \(Own"):
        retrieve.snapshot(spec(folder, "feature-extraction"), tmp_path / "s")


def test_classes_that_transformers_has_by_now_are_its_own(tmp_path: Path) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    for file, mapped in (
        ("config.json", {"AutoConfig": "x.BertConfig", "AutoModel": "modeling_bert.BERTModel"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["x.BertTokenizer", "x.BertTokenizerFast"]}),
    ):
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), "auto_map": mapped}))
    retrieve.snapshot(spec(folder, "feature-extraction"), tmp_path / "s")
