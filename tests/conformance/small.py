"""What the models of the suite are made of: tokenizers, configurations of a few thousand numbers, saved folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "!"),
    *("the", "house", "is", "quiet", "and", "nobody", "at", "home", "what", "a", "dog", "cat", "this", "example"),
    *("where", "who", "lives", "in", "rain", "falls", "on", "old", "garden", "gate", "wind", "stands", "open"),
    *("##s", "##ing", "##ed", "not", "good", "bad", "film", "summarize", "translate", ":", "text", "about"),
)


def seed() -> None:
    import torch

    torch.manual_seed(7)


def word_tokenizer(pad: str = "[PAD]", maximum: int = 64, pairs: bool = True) -> Any:
    """A word-piece tokenizer with [CLS] and [SEP], as encoders have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    second = ":1" if pairs else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=f"[CLS] $A [SEP] $B{second} [SEP]{second}", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=maximum,
        pad_token=pad,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        if pairs
        else ["input_ids", "attention_mask"],
    )


def byte_tokenizer(template: str | None = None, extra: tuple[str, ...] = ()) -> Any:
    """A byte-level tokenizer without merges: every text can be written, a token is a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *extra]
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(extra) or None,
        model_input_names=["input_ids", "attention_mask"],
    )
    if template:
        wrapped.chat_template = template
    return wrapped


BYTES = 259  # how many tokens byte_tokenizer has, without further ones


def lively(model: Any) -> Any:
    """The model with larger weights: with those that it starts with, every answer is nearly the same. The tables of
    positions and the norms stay."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and parameter.is_floating_point():
                parameter.mul_(4.0)
    return model.eval()


def saved(folder: Path, model: Any, *parts: Any) -> None:
    lively(model).save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)


def maker(kind: str, config: str, parts: Callable[[], list[Any]], **values: Any) -> Callable[[Path], None]:
    """A function that saves a new ``kind`` (a class of transformers) with this configuration, and its parts."""

    def build(folder: Path) -> None:
        import transformers

        seed()
        model = getattr(transformers, kind)(getattr(transformers, config)(**values))
        saved(folder, model, *parts())

    return build
