"""The forward pass of BERT-like encoders over texts of different lengths, without padding.

In a batch that is padded every text costs as much as the longest one. Here all tokens of all texts stand in one long
row: the linear layers, which are nearly all of the work, see only real tokens, and attention goes text by text (texts
of one length together). The numbers are those of transformers' own forward pass up to the last bits, and the layers are
the model's own modules, int8 layers and adapters included.

Known are models whose blocks are built as in BERT (https://arxiv.org/abs/1810.04805): attention, add, norm, two linear
layers, add, norm, with a table of positions. `plan` returns None for any other, and those are padded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import handler_int8
import torch

Function = Callable[[torch.Tensor], torch.Tensor]
BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert")


@dataclass(frozen=True)
class Block:
    together: Function | None  # queries, keys and values side by side; None where each is computed apart
    query: Function
    key: Function
    value: Function
    out: Function
    attention_norm: Function
    up: Function
    activation: Function
    down: Function
    norm: Function


@dataclass(frozen=True)
class Plan:
    """The parts of a model in the order in which they are used."""

    words: Function
    positions: Function
    first_position: int
    types: torch.Tensor | None  # what every token gets for being of the first type
    norm: Function
    project: Function | None
    blocks: tuple[Block, ...]
    heads: int
    not_counted: int | None  # a token that has no position of its own


def known(model: Any) -> bool:
    """Whether the model is built as in BERT, and so masks padding wherever there is any."""
    return getattr(model.config, "model_type", "") in (*BERT_LIKE, "distilbert")


def plan(model: Any) -> Plan | None:
    """How to run `model`, or None where it is not built as expected."""
    config = model.config
    kind = getattr(config, "model_type", "")
    relative = getattr(config, "position_embedding_type", None) not in (None, "absolute")
    if relative or getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return None
    try:
        if kind == "distilbert":
            return _distilbert(model)
        return _bert(model, kind) if kind in BERT_LIKE else None
    except AttributeError:  # a version of transformers that builds it otherwise
        return None


def _bert(model: Any, kind: str) -> Plan:
    embeddings = model.embeddings
    roberta = kind in ROBERTA_LIKE
    padding = embeddings.padding_idx if roberta else None
    blocks = tuple(
        _joined_block(
            layer.attention.self.query,
            layer.attention.self.key,
            layer.attention.self.value,
            layer.attention.output.dense,
            layer.attention.output.LayerNorm,
            layer.intermediate.dense,
            layer.intermediate.intermediate_act_fn,
            layer.output.dense,
            layer.output.LayerNorm,
        )
        for layer in model.encoder.layer
    )
    return Plan(
        embeddings.word_embeddings,
        embeddings.position_embeddings,
        0 if padding is None else padding + 1,
        embeddings.token_type_embeddings.weight[0],
        embeddings.LayerNorm,
        getattr(model, "embeddings_project", None),
        blocks,
        model.config.num_attention_heads,
        padding,
    )


def _distilbert(model: Any) -> Plan:
    embeddings = model.embeddings
    blocks = tuple(
        _joined_block(
            layer.attention.q_lin,
            layer.attention.k_lin,
            layer.attention.v_lin,
            layer.attention.out_lin,
            layer.sa_layer_norm,
            layer.ffn.lin1,
            layer.ffn.activation,
            layer.ffn.lin2,
            layer.output_layer_norm,
        )
        for layer in model.transformer.layer
    )
    return Plan(
        embeddings.word_embeddings,
        embeddings.position_embeddings,
        0,
        None,
        embeddings.LayerNorm,
        None,
        blocks,
        model.config.n_heads,
        None,
    )


def _joined_block(query: Function, key: Function, value: Function, *others: Any) -> Block:
    return Block(handler_int8.joined([query, key, value]), query, key, value, *others)


def can_run(plan: Plan, rows: list[list[int]]) -> bool:
    """Whether these tokens have the positions that `run` gives them."""
    return plan.not_counted is None or not any(plan.not_counted in row for row in rows)


def run(plan: Plan, rows: list[list[int]], device: torch.device) -> torch.Tensor:
    """The last hidden states of all tokens of all texts, one after the other: (tokens, dimensions). Texts of the same
    length stand beside each other in `rows`."""
    ids = torch.tensor([token for row in rows for token in row], device=device)
    groups = _groups(rows)
    longest = torch.arange(plan.first_position, plan.first_position + max(map(len, rows)), device=device)
    places = plan.positions(longest)
    hidden = plan.words(ids)
    if plan.types is not None:
        hidden = hidden + plan.types
    hidden = hidden + torch.cat([places[: len(row)] for row in rows])
    hidden = plan.norm(hidden)
    if plan.project is not None:
        hidden = plan.project(hidden)
    for block in plan.blocks:
        hidden = _block(block, hidden, groups, plan.heads)
    return hidden


def _groups(rows: list[list[int]]) -> list[tuple[int, int, int]]:
    """Texts of one length that stand beside each other: where their tokens begin, the length, and how many texts."""
    groups = []
    start = 0
    for length, same in groupby(map(len, rows)):
        count = len(list(same))
        groups.append((start, length, count))
        start += length * count
    return groups


def _block(block: Block, hidden: torch.Tensor, groups: list[tuple[int, int, int]], heads: int) -> torch.Tensor:
    if block.together is not None:
        inputs = block.together(hidden).chunk(3, dim=1)
    else:
        inputs = block.query(hidden), block.key(hidden), block.value(hidden)
    # On the processor, attention over texts of this length is sooner done in float32, the conversions included.
    queries, keys, values = (part.float().view(1, len(hidden), heads, -1).transpose(1, 2) for part in inputs)
    parts = []
    for start, length, count in groups:
        tokens = length * count
        pieces = [part.narrow(2, start, tokens) for part in (queries, keys, values)]
        if count > 1:
            pieces = [piece.view(heads, count, length, -1).transpose(0, 1) for piece in pieces]
        attended = torch.nn.functional.scaled_dot_product_attention(*pieces)
        if count > 1:
            attended = attended.transpose(1, 2).reshape(1, tokens, heads, -1).transpose(1, 2)
        parts.append(attended)
    attended = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    attended = attended.transpose(1, 2).reshape(len(hidden), -1).to(hidden.dtype)
    hidden = block.attention_norm(block.out(attended) + hidden)
    return block.norm(block.down(block.activation(block.up(hidden))) + hidden)
