"""Small models that the tests make for themselves: whole in every respect but their size."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "house",
    "is",
    "quiet",
    "and",
    "nobody",
    "at",
    "home",
    ".",
)

HANDLER = """
import json
from pathlib import Path


def model_fn(model_dir):
    return {"files": sorted(path.name for path in Path(model_dir).iterdir())}


def predict_fn(data, model):
    return {"got": data, **model}


def output_fn(prediction, accept):
    return json.dumps(prediction)
"""


def bert(folder: Path, seed: int = 0, **changes: object) -> Path:
    """A BERT of two layers with a word-piece tokenizer, as save_pretrained leaves it."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **{**config, **changes}))
    model.save_pretrained(folder)
    wordpiece(folder)
    return folder


def wordpiece(folder: Path) -> None:
    """The files of a word-piece tokenizer as the Hub's older models have them: no tokenizer.json."""
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def gpt2(folder: Path, seed: int = 0, **changes: int) -> Path:
    """A GPT-2 of two layers with a byte-level tokenizer, saved as transformers 5 saves."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, "th", "the", "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    end = len(vocabulary) - 1
    size = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 512, **changes}
    config = GPT2Config(vocab_size=len(vocabulary), bos_token_id=end, eos_token_id=end, **size)
    GPT2LMHeadModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def handler(folder: Path, code: str = HANDLER, sample: str | None = '{"inputs": "the house"}') -> Path:
    """A handler that tells what it got."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inference.py").write_text(code, encoding="utf-8")
    if sample is not None:
        (folder / "sample.json").write_text(sample, encoding="utf-8")
    return folder
