"""Whether texts of different lengths can share a forward pass: tried with the model itself when it loads.

A text that stands beside a longer one is padded to its length. Most models mask what is padding and answer the same.
Some do not: a Fourier transform, a convolution or a pooling over positions (FNet, ConvBERT, Funnel, YOSO and others)
mixes the padding in. Those get texts of one length together, or one text at a time.
"""

from collections.abc import Callable, Sequence, Sized
from typing import Any

import numpy as np
import torch

PADDED = "padded"  # texts of any lengths together
EQUAL = "equal"  # texts of one length together
ALONE = "alone"  # one text at a time

# Two answers are the same if they differ by no more than this share of the largest number in them: another order of the
# same computation loses as much.
TOLERANCE = {"float32": 5e-6, "bfloat16": 0.05, "float16": 0.01, "int8": 0.05}
# These treat a text differently by its (padded) length, but only for texts longer than the probe.
BY_LENGTH = {
    "big_bird",
    "bigbird_pegasus",
    "canine",
    "convbert",
    "fnet",
    "funnel",
    "longt5",
    "mra",
    "nystromformer",
    "perceiver",
    "reformer",
    "yoso",
}

Answers = list[torch.Tensor]


def way(forward: Callable[[list[Any]], Answers], rows: list[Any], model_type: str, precision: str) -> str:
    """How to batch: PADDED, EQUAL or ALONE. `forward` answers rows together; `rows` are a short one, another of its
    length, and longer ones. Raises ValueError for a model whose answer changes from one call to the next."""
    short, other, *longer = rows
    try:
        alone = forward([short])
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"A {model_type} model cannot read a text of {len(short)} tokens by itself ({error}), so it cannot be "
            "served for texts of any length."
        ) from None
    if not _same(alone, forward([short]), precision):
        raise ValueError(
            "This model answers the same text differently from one call to the next (it draws random numbers), so no "
            "answer of it would be the right one. Look in its config.json for what makes it do so."
        )

    def together(answer: Answers, asked: list[Any]) -> bool:
        try:
            return _same(answer, forward(asked)[:1], precision)
        except (ValueError, RuntimeError):  # some read only one text at a time
            return False

    if model_type not in BY_LENGTH and all(
        together(forward([row]), [row, longer[-1]]) for row in (short, *longer[:-1])
    ):
        return PADDED
    return EQUAL if together(alone, [short, other]) else ALONE


def _same(one: Answers, other: Answers, precision: str) -> bool:
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return False
        a, b = a.double(), b.double()
        if not bool(((a - b).abs() <= TOLERANCE[precision] * max(1.0, float(a.abs().max()))).all()):
            return False
    return True


def probes(row: list[int], most: int) -> list[list[int]]:
    """From the tokens of a text, rows for `way`, none longer than `most`. The first and the last token stay where they
    are: they may be special ones."""
    if len(row) < 4:
        return [row, row, (row * 4)[:most], (row * 6)[:most]]
    first, inner, last = row[0], row[1:-1], row[-1]
    long = (inner * 4)[: max(1, most - 2)]
    return [row, [first, *inner[::-1], last], [first, *long[:-1], last], [first, *long, last]]


# Texts are sorted by length, and a batch that is not small ends before more than a quarter of it would be padding.
SMALL_BATCH_TOKENS = 256


def batches(order: list[int], rows: Sequence[Sized], most: int, packed: bool, way: str = PADDED) -> list[list[int]]:
    """Split `order` (longest row first) into batches of at most so many tokens; where texts are padded, with little
    padding, and with none where it would change the answers."""
    groups: list[list[int]] = []
    text_tokens = 0
    for row in order:
        length = len(rows[row])
        same = bool(groups) and length == len(rows[groups[-1][0]])
        if groups and (way == PADDED or (way == EQUAL and same)):
            tokens = text_tokens + length
            padded = tokens if packed else (len(groups[-1]) + 1) * len(rows[groups[-1][0]])
            wasteful = padded > SMALL_BATCH_TOKENS and padded - tokens > padded // 4
            if padded <= most and not wasteful:
                groups[-1].append(row)
                text_tokens += length
                continue
        groups.append([row])
        text_tokens = length
    return groups


def padded(
    ids: list[list[int]], types: list[list[int] | None], tokenizer: Any, arguments: frozenset[str], device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The inputs of a forward method with these `arguments` for texts with these tokens and types of tokens, and the
    mask: 1 for a token, 0 for padding."""
    longest = max(map(len, ids))
    right = getattr(tokenizer, "padding_side", "right") != "left"
    tokens = np.full((len(ids), longest), tokenizer.pad_token_id or 0, np.int64)
    kinds = np.zeros((len(ids), longest), np.int64)
    mask = np.zeros((len(ids), longest), np.int64)
    for place, (row, kind) in enumerate(zip(ids, types, strict=True)):
        span = slice(0, len(row)) if right else slice(longest - len(row), longest)
        tokens[place, span] = row
        kinds[place, span] = kind or 0
        mask[place, span] = 1
    attention = torch.from_numpy(mask).to(device)
    inputs = {"input_ids": torch.from_numpy(tokens).to(device), "attention_mask": attention}
    # Only where the tokenizer knows of them: to GPT-2, say, a type of 0 is a word that stands with every token.
    if "token_type_ids" in arguments and "token_type_ids" in tokenizer.model_input_names:
        inputs["token_type_ids"] = torch.from_numpy(kinds).to(device)
    if "kwargs" not in arguments:
        inputs = {name: held for name, held in inputs.items() if name in arguments}
    return inputs, attention
