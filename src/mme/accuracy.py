"""How far a model's outputs move when its weights take fewer bits: measured on a few texts, and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mme.errors import SourceError

# Prose, a question, numbers, code, another script: what a tokenizer treats differently.
TEXTS = (
    "The house was quiet, and nobody was at home.",
    "What is the capital of France, and how many people live there?",
    "In 2019, revenue rose by 12.5 % to $3,400,000; costs fell by 7 %.",
    "def add(a, b):\n    return a + b  # the sum",
    "Les élèves étaient déjà partis quand il est arrivé à l'école.",
    "今日は天気がいいですね。",
)
MOST_TOKENS = 128


@dataclass(frozen=True)
class Accuracy:
    """1 - cosine similarity of the outputs, for each token: the worst and the mean. 0 is the same, 1 unrelated.

    ``same_choice`` is the share of tokens after which the model's first choice stays the same; None for a model
    that chooses no token.
    """

    worst: float
    mean: float
    same_choice: float | None


def outputs(model: Any, tokenizer: Any | None) -> list[Any]:
    """What the model says to each of the texts, as float32 tensors of tokens by features."""
    import torch

    results = []
    with torch.inference_mode():
        for inputs in _inputs(model, tokenizer):
            output = model(**inputs)
            first = output[0] if not hasattr(output, "logits") else output.logits
            results.append(first.float().reshape(-1, first.shape[-1]))
    return results


def _inputs(model: Any, tokenizer: Any | None) -> list[dict[str, Any]]:
    if tokenizer is None:
        return [dict(model.dummy_inputs)]
    limit = min(MOST_TOKENS, int(getattr(model.config, "max_position_embeddings", None) or MOST_TOKENS))
    made = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)["input_ids"]
        if not ids.numel():
            continue
        made.append({"input_ids": ids})
        if getattr(model.config, "is_encoder_decoder", False):
            made[-1]["decoder_input_ids"] = ids
    return made


def compare(before: Sequence[Any], after: Sequence[Any], vocabulary: int | None) -> Accuracy:
    """``vocabulary`` is the number of tokens a language model chooses among. A NaN anywhere is as bad as can be."""
    import torch

    errors = torch.cat(
        [
            1 - torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
            for a, b in zip(before, after, strict=True)
        ]
    ).nan_to_num(nan=2.0)
    choices = None
    if vocabulary is not None and before[0].shape[-1] == vocabulary:
        same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(before, after, strict=True)])
        choices = float(same.double().mean())
    return Accuracy(max(0.0, float(errors.max())), max(0.0, float(errors.mean())), choices)


def convert(model: Any, tokenizer: Any | None, dtype: str, most: float, what: str) -> tuple[Any, Accuracy]:
    """The model with its weights as ``dtype`` (float32, bfloat16 or float16), and what that does to its outputs.

    Raises SourceError when the worst error is above ``most``.
    """
    import torch

    original = str(model.dtype).removeprefix("torch.")
    before = outputs(model, tokenizer)
    model = model.to(getattr(torch, dtype))
    try:
        after = outputs(model, tokenizer)
    except RuntimeError:  # some operation has no such number format on a CPU: look at the rounded weights alone
        after = outputs(model.float(), tokenizer)
        model = model.to(getattr(torch, dtype))
    measured = compare(before, after, getattr(model.config, "vocab_size", None))
    if measured.worst > most:
        raise SourceError(
            f"{what} in {dtype} is too far from what it says in {original}: 1 - cosine similarity is "
            f"{measured.worst:.2g} at worst, {measured.mean:.2g} on average, and max_error is {most:g}.",
            "Choose another dtype, or raise max_error if that is good enough.",
        )
    return model, measured
