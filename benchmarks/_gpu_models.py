"""The models of gpu.py: as large as real ones, with random weights and a token for each word, so that nothing has to be
downloaded and a text shows its tokens; and transformers' answers to compare with, on the CPU in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks._servers import ROOT
from benchmarks._serving_models import SHORT, TEXT, handler, link

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12}
SMALL_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALL_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2}


def _vocabulary(size: int, special: tuple[str, ...]) -> list[str]:
    words = dict.fromkeys([*special, *SHORT.lower().replace(".", " .").split(), *TEXT.split()])
    return [*words, *(f"word{number}" for number in range(size - len(words)))]


def bert(folder: Path, seed: int, quick: bool, kind: str = "embedding", **settings: Any) -> Path:
    """A BERT of MiniLM's size (22.6M weights), or of a small one. ``kind`` is the handler, or "none" for a classifier
    without one."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    words = _vocabulary(300 if quick else 30_522, SPECIAL)
    torch.manual_seed(seed)
    size = SMALL_BERT if quick else MINILM
    labels = {"reranking": 1, "none": 3}.get(kind)
    config = BertConfig(vocab_size=len(words), **size, **({"num_labels": labels} if labels else {}))
    (BertForSequenceClassification if labels else BertModel)(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **named).save_pretrained(folder)
    return _finish(folder, kind, settings)


def gpt2(folder: Path, seed: int, quick: bool, **settings: Any) -> Path:
    """A model of GPT-2's size (124M weights), or a small one, whose texts never end by themselves."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = _vocabulary(300 if quick else 50_257, ())
    torch.manual_seed(seed)
    size = SMALL_GPT2 if quick else GPT2
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), bos_token_id=0, eos_token_id=None, **size))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1024).save_pretrained(folder)
    return _finish(folder, "generation", settings)


def _finish(folder: Path, kind: str, settings: dict[str, Any]) -> Path:
    # For every version of transformers that may read it.
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    if kind != "none":
        handler(kind, folder)
        (folder / "code" / "settings.json").write_text(json.dumps(settings))
    return folder


def with_settings(source: Path, folder: Path, **settings: Any) -> Path:
    """The same model (hard links to its files) with other settings of its handler."""
    link(source, folder)
    (folder / "code" / "settings.json").unlink()
    (folder / "code" / "settings.json").write_text(json.dumps(settings))
    return folder


def code_of(source: str, folder: Path) -> Path:
    """A model that consists of a handler and no weights."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "inference.py").write_text(source)
    return folder


def embeddings(folder: Path, texts: list[str]) -> Any:
    """Means of the last hidden states, (texts, dimensions) float32, by transformers on the CPU."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder)).eval()
    with torch.inference_mode():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    return torch.stack(states).numpy()


def logits_of_pairs(folder: Path, pairs: list[list[str]]) -> Any:
    """(pairs, labels) float32, by transformers on the CPU."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    with torch.inference_mode():
        return torch.stack([model(**tokenizer(*pair, return_tensors="pt")).logits[0] for pair in pairs]).numpy()


class Reader:
    """The language model on the CPU; it judges each token of a text that another model generated."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self._model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()

    def gap(self, prompt: str, text: str, count: int) -> float:
        """The farthest that a token of ``text``, which continues ``prompt``, lies below the token that this model takes
        for the most likely after the same beginning, as a part of the largest logit: 0 where they are the same. Raises
        ValueError unless there are ``count`` tokens."""
        import torch

        before = self._tokenizer(prompt)["input_ids"]
        ids = before + self._tokenizer(text)["input_ids"]
        if len(ids) - len(before) != count:
            raise ValueError(f"{text!r:.80} has {len(ids) - len(before)} tokens, not {count}")
        with torch.inference_mode():
            logits = self._model(torch.tensor([ids])).logits[0, len(before) - 1 : -1]
        taken = logits.gather(1, torch.tensor(ids[len(before) :])[:, None])[:, 0]
        return float(((logits.amax(1) - taken) / logits.abs().amax(1)).max())


HUNGRY = """
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

def model_fn(folder):
    return torch.ones(1, device=DEVICE)

def predict_fn(data, model):
    if data["bytes"] and DEVICE == "cpu":
        raise MemoryError("a machine without a card is not filled")
    return float((model + torch.zeros(data["bytes"] // 4 + 1, device=DEVICE)[0]).cpu())
"""
"""A handler that asks for as much of the device's memory as a request says."""


def prepare() -> None:
    """Have transformers say nothing of its progress. Raises SystemExit where this is no clone of the project: handlers
    come from its folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not (ROOT / "model_code").is_dir():
        raise SystemExit(f"There is no model_code in {ROOT}: run this in a clone of the project.")
