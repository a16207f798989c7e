"""From the tokens of texts to a vector for each: forward passes by ONNX Runtime (`engine.py`), by torch without padding
(`embedding_packed.py`), or by torch with it; then pooling and the modules of sentence-transformers."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import embedding_packed
import engine
import handler_exact
import handler_sentence
import numpy as np
import torch
from handler_sentence import Sentence

# Tokens, in a model whose vectors have 384 numbers; where they have more, a token is more work, and fewer will do. What
# each thread must have to do before every one of them gets texts of its own; with less they share each product.
SHARE_TOKENS = {"float32": 32, "bfloat16": 100, "float16": 100, "int8": 100}


@dataclass(frozen=True)
class Row:
    """One text's tokens and what becomes of their vectors."""

    ids: list[int]
    types: list[int] | None  # of the tokens; None: 0 for all
    pooling: tuple[str, ...]
    skip: int  # of how many first tokens the vectors are not pooled

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Embedder:
    """A loaded model with all that serving it needs."""

    model: Any  # transformers' own; None where `engine` stands in for it
    config: Any
    tokenizer: Any
    device: torch.device
    settings: dict[str, Any]
    sentence: Sentence
    max_length: int  # what the model can read
    arguments: frozenset[str]  # of the model's forward method
    plan: embedding_packed.Plan | None  # how torch runs it without padding
    engine: engine.Encoding | None
    typed: bool  # whether its tokenizer gives the tokens of one text different types
    lower: bool = False  # whether texts are made lower case before it reads them
    way: str = handler_exact.PADDED  # which texts can share a forward pass that pads
    similarity: str = "cosine"  # how two of its vectors are compared
    words: int | None = None  # tokens that the model knows, where its tokenizer has more
    reads: Any = None  # the tokenizer without what transformers has around it (handler_common.direct)
    usual: Any = None  # the options of a request without parameters


def embed(rows: list[Row], model: Embedder) -> list[np.ndarray]:
    """One float32 vector per row, in the order of `rows`."""
    if not rows:
        raise ValueError("There is nothing to embed.")
    order = [0]
    if len(rows) > 1:
        order = sorted(
            range(len(rows)), key=lambda row: (len(rows[row]), rows[row].pooling, rows[row].skip), reverse=True
        )
    most = model.settings["batch_tokens"]
    if model.engine is not None:
        batches, pooled = _by_engine(order, rows, model)
    elif model.plan is None or not embedding_packed.can_run(model.plan, [row.ids for row in rows]):
        batches = handler_exact.batches(order, rows, most, packed=False, way=model.way)
        pooled = [_padded([rows[row] for row in batch], model) for batch in batches]
    else:
        threads = torch.get_num_threads()
        shares, each = _threads(threads, rows, model)
        batches = [
            batch
            for share in _shares(order, rows, shares)
            for batch in handler_exact.batches(share, rows, max(1, most // shares), packed=True)
        ]

        def compute(batch: list[int]) -> list[np.ndarray]:
            if torch.get_num_threads() != each:  # which is a setting of the thread
                torch.set_num_threads(each)
            return _packed([rows[row] for row in batch], model)

        try:
            pooled = list((map if shares == 1 else _executor().map)(compute, batches))
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
    vectors: list[Any] = [None] * len(rows)
    for batch, part in zip(batches, pooled, strict=True):
        for row, vector in zip(batch, part, strict=True):
            vectors[row] = vector
    return vectors


def _by_engine(order: list[int], rows: list[Row], model: Embedder) -> tuple[list[list[int]], list[list[np.ndarray]]]:
    """The batches into which the rows are split, and the vectors of each."""
    encoding = model.engine
    assert encoding is not None
    shares, each = _threads(torch.get_num_threads(), rows, model)
    most = max(1, model.settings["batch_tokens"] // shares)
    batches = [batch for share in _shares(order, rows, shares) for batch in engine.batches(share, rows, most)]
    # The usual case, for which numpy takes a tenth of the time that torch needs to begin.
    plain = not model.sentence.before and not model.sentence.after
    plain = plain and all(row.pooling == ("mean",) and not row.skip for row in rows)

    def compute(batch: list[int]) -> list[np.ndarray]:
        texts = [rows[row] for row in batch]
        types = [row.types or [0] * len(row) for row in texts] if model.typed else None
        if plain:
            return _means(encoding.run([row.ids for row in texts], each, types), texts)
        with torch.inference_mode():
            hidden = torch.from_numpy(encoding.run([row.ids for row in texts], each, types))
            return _pooled(hidden, [len(row) for row in texts], texts, model)

    return batches, list((map if shares == 1 else _executor().map)(compute, batches))


def _means(hidden: np.ndarray, rows: list[Row]) -> list[np.ndarray]:
    """The mean of each text's tokens, which stand one after the other in `hidden` (tokens, dimensions)."""
    vectors = []
    start = 0
    for row in rows:
        total: np.ndarray = np.add.reduce(hidden[start : start + len(row)], axis=0)
        vectors.append(total / np.float32(len(row)))
        start += len(row)
    return vectors


def _threads(threads: int, rows: list[Row], model: Embedder) -> tuple[int, int]:
    """Into how many shares to split the rows, and how many threads each gets."""
    if threads == 1 or len(rows) == 1:
        return 1, threads
    kind = model.settings["quantize"] or model.settings["dtype"]
    tokens = sum(map(len, rows)) * (model.config.hidden_size / 384) ** 2
    shares = max(1, min(threads, len(rows), int(tokens / SHARE_TOKENS[kind])))
    return shares, max(1, threads // shares)


def _shares(order: list[int], rows: Sequence[Row | list[int]], count: int) -> list[list[int]]:
    """Split `order` (longest row first) into shares that are done at about the same time: each row goes to the one that
    has the least."""
    shares: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for row in order:
        least = tokens.index(min(tokens))
        shares[least].append(row)
        tokens[least] += len(rows[row])
    return shares


@functools.cache
def _executor() -> ThreadPoolExecutor:
    """Threads for the shares of a batch. They start when they are first needed."""
    return ThreadPoolExecutor(os.cpu_count(), "embed")


def _packed(rows: list[Row], model: Embedder) -> list[np.ndarray]:
    assert model.plan is not None
    with torch.inference_mode():
        hidden = embedding_packed.run(model.plan, [row.ids for row in rows], model.device)
        return _pooled(hidden, [len(row) for row in rows], rows, model)


def _padded(rows: list[Row], model: Embedder) -> list[np.ndarray]:
    with torch.inference_mode():
        hidden, lengths = hidden_states(rows, model)
        return _pooled(hidden, lengths, rows, model)


def hidden_states(rows: list[Row], model: Embedder) -> tuple[torch.Tensor, list[int]]:
    """The vectors of all tokens of all texts, one after the other, without those of padding; and how many each text
    has."""
    arguments, mask = handler_exact.padded(
        [row.ids for row in rows], [row.types for row in rows], model.tokenizer, model.arguments, model.device
    )
    if hasattr(model.model, "set_attention_type"):  # BigBird forgets its own after the first short text
        model.model.set_attention_type(model.model.config.attention_type)
    if model.sentence.layers is None:
        hidden = model.model(**arguments).last_hidden_state
    else:
        hidden = model.sentence.layers(model.model(**arguments, output_hidden_states=True).hidden_states)
    if hidden.shape[1] != mask.shape[1]:  # a model that makes fewer vectors of its tokens, or always as many
        return hidden.flatten(0, 1), [hidden.shape[1]] * len(rows)
    return hidden[mask.bool()], [len(row) for row in rows]


def _pooled(hidden: torch.Tensor, lengths: list[int], rows: list[Row], model: Embedder) -> list[np.ndarray]:
    """The vector of each text, from those of its tokens (tokens of all texts, dimensions)."""
    for step in model.sentence.before:
        hidden = step(hidden.float())
    parts: list[tuple[tuple[str, ...], torch.Tensor]] = []
    start = 0
    for (length, pooling, skip), same in groupby(
        zip(lengths, rows, strict=True), key=lambda pair: (pair[0], pair[1].pooling, pair[1].skip)
    ):
        count = len(list(same))
        tokens = hidden[start : start + length * count].view(count, length, -1)
        parts.append((pooling, handler_sentence.pool(tokens, pooling, skip)))
        start += length * count
    vectors: list[np.ndarray] = []
    for _, alike in groupby(parts, key=lambda part: part[0]):
        together = torch.cat([part for _, part in alike])
        for step in model.sentence.after:
            together = step(together)
        vectors.extend(together.cpu().numpy())
    return vectors
