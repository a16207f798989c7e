"""Small models as sentence-transformers saves them, in the form of its version 6 and of those until 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from handler_tools import minilm
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Transformer,
)
from transformers import (
    AutoTokenizer,
)

WORDS = 4600  # of MiniLM's 30,522: the most frequent ones, with all letters


def spread(model: Any) -> Any:
    """The model with numbers that are not near zero, so that nothing is equal by being small."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    return model.eval()


def raw(folder: Path, model: Any, **tokenizer: Any) -> Path:
    model.resize_token_embeddings(WORDS)
    spread(model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm(), model_max_length=10**30, **tokenizer).save_pretrained(folder)
    # Every load reads the words, which takes longer than all else. With fewer, rare ones fall into more pieces.
    described = json.loads((folder / "tokenizer.json").read_text())
    words = described["model"]["vocab"]
    described["model"]["vocab"] = {word: number for word, number in words.items() if number < WORDS}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder


def saved(folder: Path, tiny: Path, modules: list[Any], old: bool = False, length: int = 24, **options: Any) -> Path:
    """A model of these modules after the transformer in `tiny`, as sentence-transformers saves it; or, where `old`, as
    its versions until 5 did."""
    model = SentenceTransformer(modules=[Transformer(str(tiny), max_seq_length=length), *modules], **options)
    for module in modules:
        spread(module)
    model.save(str(folder), create_model_card=False)
    if old:
        older(folder, length)
    return folder


def older(folder: Path, length: int, lower: bool = False) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    for item in listed:
        kind = item["type"].rpartition(".")[2]
        item["type"] = f"sentence_transformers.models.{kind}"
        config = folder / item["path"] / "config.json"
        if kind == "Pooling":
            new = json.loads(config.read_text())
            modes = [new["pooling_mode"]] if isinstance(new["pooling_mode"], str) else new["pooling_mode"]
            names = {
                "cls": "cls_token",
                "max": "max_tokens",
                "mean": "mean_tokens",
                "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
                "weightedmean": "weightedmean_tokens",
                "lasttoken": "lasttoken",
            }
            written = {f"pooling_mode_{name}": mode in modes for mode, name in names.items()}
            size = new["embedding_dimension"]
            rest = {"word_embedding_dimension": size, "include_prompt": new["include_prompt"]}
            config.write_text(json.dumps(written | rest))
        elif kind == "Normalize":
            config.unlink()
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": lower}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 8}))
