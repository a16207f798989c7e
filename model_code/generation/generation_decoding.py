"""Decoding: many prompts, each with its own parameters and seed, are continued together, one forward pass per token.

For one prompt the tokens are those that transformers' `generate` picks. Beam search, and models whose cache cannot be
cut by rows, are left to `generate`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import engine
import torch
from generation_options import MAX_SEED, Options
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

CACHES = ("past_key_values", "cache")  # the second is the name from transformers 5.24 on


@dataclass(frozen=True)
class Generator:
    """A loaded model with all that serving it needs."""

    model: Any
    tokenizer: Any
    device: torch.device
    settings: dict[str, Any]
    context: int  # tokens, prompt and new ones together
    end_tokens: frozenset[int]
    arguments: frozenset[str]  # of the model's forward method
    engine: engine.Decoding | None  # computes steps, where that is faster
    cache: str | None  # what transformers calls keys and values, given and answered; None: the model has none
    together: bool = True  # whether prompts of several lengths share a pass; else each is left to `generate`
    words: int | None = None  # tokens that the model knows, where its tokenizer has more
    same_rotation: int | None = None  # tokens; past them the longest text changes how all others are read


@dataclass
class Prompt:
    """One prompt of one request, ready to be read."""

    text: str
    tokens: list[int]
    truncated: bool
    options: Options
    limit: int  # new tokens that fit
    sequences: list["Sequence"] = field(default_factory=list)


@dataclass
class Sequence:
    """One continuation of a prompt while it is decoded."""

    prompt: Prompt
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""


def grow(prompts: list[Prompt], model: Generator) -> None:
    """Give every prompt its sequences, decoded to their end."""
    with torch.inference_mode():
        for batch in batches([prompt for prompt in prompts if is_ours(prompt, model)], model):
            rows = Rows(model)
            rows.join(batch)
            while rows:
                rows.step()
        for prompt in prompts:
            if not prompt.sequences:
                generate(prompt, model)


def text_of(tokens: list[int], model: Generator) -> str:
    text: str = model.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def is_ours(prompt: Prompt, model: Generator) -> bool:
    """Whether the prompt can be decoded in Rows, as far as is known before the model has read it."""
    if model.same_rotation is not None and len(prompt.tokens) + prompt.limit > model.same_rotation:
        return False
    return model.together and prompt.options.num_beams == 1 and model.cache is not None


def batches(prompts: list[Prompt], model: Generator) -> list[list[Prompt]]:
    """Split the prompts into batches that keep within batch_tokens. Those of like length go together, because all are
    padded to the longest."""
    batches: list[list[Prompt]] = []
    rows = tokens = 0
    for prompt in sorted(prompts, key=lambda prompt: len(prompt.tokens)):
        width = prompt.options.num_return_sequences
        longest = max(tokens, len(prompt.tokens) + prompt.limit)
        if batches and (rows + width) * longest <= model.settings["batch_tokens"]:
            batches[-1].append(prompt)
            rows, tokens = rows + width, longest
        else:
            batches.append([prompt])
            rows, tokens = width, len(prompt.tokens) + prompt.limit
    return batches


class Rows:
    """The sequences that are decoded together, one row of every tensor for each. Prompts may join between two tokens,
    and sequences that are done leave."""

    def __init__(self, model: Generator) -> None:
        self.model = model
        self.live: list[Sequence] = []
        self._last: list[int] = []  # each row's newest token, which the model has not read yet
        self._mask = torch.zeros((0, 0), dtype=torch.long)
        self._cache: Any = None

    def __bool__(self) -> bool:
        return bool(self.live)

    @property
    def open(self) -> bool:
        """Whether others can join: always where there are no rows, else where the cache can be put together by rows."""
        return not self.live or _tensors(self._cache) is not None

    def fits(self, prompts: list[Prompt]) -> bool:
        """Whether the rows keep within batch_tokens to their end with these prompts among them."""
        width = len(self.live) + sum(prompt.options.num_return_sequences for prompt in prompts)
        columns = max([self._mask.shape[1], *(len(prompt.tokens) for prompt in prompts)])
        left = [sequence.prompt.limit - len(sequence.tokens) for sequence in self.live]
        left.extend(prompt.limit for prompt in prompts)
        return width * (columns + max(left, default=0)) <= int(self.model.settings["batch_tokens"])

    def join(self, prompts: list[Prompt]) -> bool:
        """Read the prompts, and give each its sequences with their first token. False, and nothing done, for a model
        whose cache cannot be cut by rows."""
        model = self.model
        longest = max(len(prompt.tokens) for prompt in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            # On the left, so that the last column is every prompt's last token.
            ids[row, longest - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
            mask[row, longest - len(prompt.tokens) :] = 1
        mask = mask.to(model.device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits, cache = _forward(ids.to(model.device), mask, positions, None, model)
        if not can_select(cache):
            return False
        joined: list[Sequence] = []
        origin: list[int] = []
        for row, prompt in enumerate(prompts):
            prompt.sequences = [
                Sequence(prompt, _random(prompt, n, model)) for n in range(prompt.options.num_return_sequences)
            ]
            joined.extend(prompt.sequences)
            origin.extend([row] * len(prompt.sequences))
        if origin != list(range(len(prompts))):  # sequences of one prompt part here
            logits = logits[torch.tensor(origin, device=model.device)]
        tokens = _next_tokens(joined, logits, model)
        going_on = [
            row
            for row, (sequence, token) in enumerate(zip(joined, tokens, strict=True))
            if _grow(sequence, token, model)
        ]
        if not going_on:
            return True
        rows = [origin[row] for row in going_on]
        if rows != list(range(len(prompts))):
            chosen = torch.tensor(rows, device=model.device)
            mask, cache = mask[chosen], select(cache, chosen)
        if self.live:
            self._mask, self._cache = _merge(self._mask, self._cache, mask, cache)
        else:
            self._mask, self._cache = mask, cache
        self.live.extend(joined[row] for row in going_on)
        self._last.extend(tokens[row] for row in going_on)
        return True

    def step(self) -> None:
        """One more token for every row."""
        if not self.live:
            return
        model = self.model
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(self.live), 1))], dim=1)
        # The newest token is not read yet, so it stands at the number of all the others.
        places = [len(sequence.prompt.tokens) + len(sequence.tokens) - 1 for sequence in self.live]
        positions = torch.tensor(places, device=model.device)[:, None]
        fed = torch.tensor(self._last, device=model.device)[:, None]
        logits, self._cache = _forward(fed, self._mask, positions, self._cache, model)
        self._last = _next_tokens(self.live, logits, model)
        grown = zip(self.live, self._last, strict=True)
        self._keep([row for row, (sequence, token) in enumerate(grown) if _grow(sequence, token, model)])

    def leave(self, prompts: list[Prompt]) -> None:
        """End the sequences of these prompts: nobody waits for them any more."""
        gone = {id(prompt) for prompt in prompts}
        self._keep([row for row, sequence in enumerate(self.live) if id(sequence.prompt) not in gone])

    def _keep(self, rows: list[int]) -> None:
        if len(rows) == len(self.live):
            return
        if not rows:
            self.live, self._last, self._cache = [], [], None
            self._mask = self._mask[:0, :0]
            return
        chosen = torch.tensor(rows, device=self.model.device)
        self.live = [self.live[row] for row in rows]
        self._last = [self._last[row] for row in rows]
        self._mask, self._cache = self._mask[chosen], select(self._cache, chosen)
        # Columns that only sequences which have left used would be read for every further token, and in a batch that
        # never ends there would be more and more of them.
        longest = max(len(sequence.prompt.tokens) + len(sequence.tokens) - 1 for sequence in self.live)
        if longest < self._mask.shape[1] and _tensors(self._cache) is not None:
            self._mask = self._mask[:, -longest:]
            self._cache = _each(self._cache, lambda tensor: tensor[:, :, -longest:])


def _tensors(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """The keys and values of every layer, of shape (rows, heads, columns, size), or None where the cache holds anything
    else: a window of the last columns, or a state without columns."""
    if isinstance(cache, tuple):  # GPT-2 and others up to transformers 4.49
        pairs = [tuple(layer) for layer in cache]
    elif type(cache) is not DynamicCache:
        return None
    elif hasattr(cache, "key_cache") and not hasattr(cache, "layers"):  # up to transformers 4.53
        pairs = list(zip(cache.key_cache, cache.value_cache, strict=True))
    elif all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers):
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
    else:
        return None
    sound = all(len(pair) == 2 and pair[0].dim() == 4 and pair[1].dim() == 4 for pair in pairs)
    columns = {tensor.shape[2] for pair in pairs for tensor in pair} if sound else set()
    return pairs if len(columns) == 1 else None


def _each(cache: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The cache with every tensor of it changed."""
    pairs = _tensors(cache)
    assert pairs is not None
    return _with(cache, [(change(keys), change(values)) for keys, values in pairs])


def _with(cache: Any, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    if isinstance(cache, tuple):
        return tuple(pairs)
    if hasattr(cache, "layers"):
        for layer, (keys, values) in zip(cache.layers, pairs, strict=True):
            layer.keys, layer.values = keys, values
    else:
        cache.key_cache, cache.value_cache = map(list, zip(*pairs, strict=True))
    return cache


def _merge(mask: torch.Tensor, cache: Any, other_mask: torch.Tensor, other: Any) -> tuple[torch.Tensor, Any]:
    """Both sets of rows as one. The shorter is padded on the left, so the newest tokens stand in the last column."""
    columns = max(mask.shape[1], other_mask.shape[1])
    pairs, others = _tensors(cache), _tensors(other)
    assert pairs is not None
    assert others is not None
    joined = [
        (_stack(keys, more_keys, columns), _stack(values, more_values, columns))
        for (keys, values), (more_keys, more_values) in zip(pairs, others, strict=True)
    ]
    masks = [pad(part, (columns - part.shape[1], 0)) for part in (mask, other_mask)]
    return torch.cat(masks), _with(cache, joined)


def _stack(upper: torch.Tensor, lower: torch.Tensor, columns: int) -> torch.Tensor:
    stacked = upper.new_zeros((len(upper) + len(lower), upper.shape[1], columns, upper.shape[3]))
    stacked[: len(upper), :, columns - upper.shape[2] :] = upper
    stacked[len(upper) :, :, columns - lower.shape[2] :] = lower
    return stacked


def forward(
    ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any, model: Generator
) -> tuple[torch.Tensor, Any]:
    """The last column's logits, in float32, and the cache with these tokens in it. All of shape (rows, columns)."""
    return _forward(ids, mask, positions, cache, model)


def _forward(
    ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any, model: Generator
) -> tuple[torch.Tensor, Any]:
    """The last column's logits, in float32, and the cache with these tokens in it."""
    pairs = _tensors(cache) if cache is not None and _by_engine(ids, model) else None
    if pairs is not None:
        return _step(ids, mask, positions, cache, pairs, model)
    name = model.cache or CACHES[0]
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, name: cache, "use_cache": True}
    if "position_ids" in model.arguments:
        arguments["position_ids"] = positions
    for keep in ("logits_to_keep", "num_logits_to_keep"):  # the second is the name up to transformers 4.49
        if keep in model.arguments:
            arguments[keep] = 1
            break
    output = model.model(**arguments)
    return output.logits[:, -1, :].float(), getattr(output, name)


def _by_engine(ids: torch.Tensor, model: Generator) -> bool:
    """Whether the engine is faster: for one row, since the weights are all that is waited for; for several with packed
    weights. Prompts, which are many rows for the linear layers, are torch's."""
    return model.engine is not None and ids.shape[1] == 1 and (len(ids) == 1 or model.engine.packed)


def _step(
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: Any,
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
    model: Generator,
) -> tuple[torch.Tensor, Any]:
    assert model.engine is not None
    before = [tensor.numpy() for pair in pairs for tensor in pair]
    logits, after = model.engine.step(
        ids.numpy(), mask.numpy(), positions.numpy(), before, min(torch.get_num_threads(), ids.numel())
    )
    longer = [torch.from_numpy(array) for array in after]
    return torch.from_numpy(logits), _with(cache, list(zip(longer[::2], longer[1::2], strict=True)))


def can_select(cache: Any) -> bool:
    """Whether `select` can take rows of it."""
    if isinstance(cache, tuple):
        return True
    layers = getattr(cache, "layers", None)
    # A cache may have the method and hold layers that do not: a state of linear attention among keys and values.
    return hasattr(cache, "batch_select_indices") and all(
        hasattr(layer, "batch_select_indices") for layer in layers or ()
    )


def select(cache: Any, rows: torch.Tensor) -> Any:
    """The cache of these rows alone; a row may be taken more than once."""
    if isinstance(cache, tuple):  # GPT-2 and others up to transformers 4.49
        return tuple(tuple(tensor.index_select(0, rows) for tensor in layer) for layer in cache)
    cache.batch_select_indices(rows)
    return cache


def _random(prompt: Prompt, number: int, model: Generator) -> torch.Generator | None:
    if not prompt.options.do_sample:
        return None
    generator = torch.Generator(device=model.device)
    if prompt.options.seed is None:
        generator.seed()
    else:
        generator.manual_seed((prompt.options.seed + number) & MAX_SEED)
    return generator


def _next_tokens(live: list[Sequence], logits: torch.Tensor, model: Generator) -> list[int]:
    for row, sequence in enumerate(live):
        processors = _processors(sequence.prompt.options)
        if processors:
            seen = torch.tensor([sequence.prompt.tokens + sequence.tokens], device=logits.device)
            logits[row] = processors(seen, logits[row : row + 1])[0]
        if len(sequence.tokens) < sequence.prompt.options.min_new_tokens:
            logits[row, list(model.end_tokens)] = -math.inf
    tokens: list[int] = logits.argmax(dim=1).tolist()
    # Rows that are sampled with the same numbers are filtered together; each draws from a generator of its own.
    alike: dict[tuple[float, ...], list[int]] = {}
    for row, sequence in enumerate(live):
        if sequence.generator is not None:
            o = sequence.prompt.options
            alike.setdefault((o.temperature, o.top_k, o.top_p, o.min_p, o.typical_p), []).append(row)
    for rows in alike.values():
        warped = _warpers(live[rows[0]].prompt.options)(None, logits[rows])
        for probabilities, row in zip(warped.softmax(dim=-1), rows, strict=True):
            tokens[row] = int(torch.multinomial(probabilities, 1, generator=live[row].generator))
    return tokens


def _processors(o: Options) -> LogitsProcessorList:
    """Changes of the logits that depend on the tokens so far. In the order in which `generate` applies them, here and
    below."""
    chain = LogitsProcessorList()
    if o.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(o.repetition_penalty))
    if o.no_repeat_ngram_size > 0:
        chain.append(NoRepeatNGramLogitsProcessor(o.no_repeat_ngram_size))
    return chain


def _warpers(o: Options) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if o.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(o.temperature))
    if o.top_k > 0:
        chain.append(TopKLogitsWarper(o.top_k))
    if o.top_p < 1.0:
        chain.append(TopPLogitsWarper(o.top_p))
    if o.min_p > 0.0:
        chain.append(MinPLogitsWarper(o.min_p))
    if o.typical_p < 1.0:
        chain.append(TypicalLogitsWarper(o.typical_p))
    return chain


def _grow(sequence: Sequence, token: int, model: Generator) -> bool:
    """Add the token. False when the sequence is done, and then it says why."""
    if token in model.end_tokens:
        sequence.finish_reason = "eos_token"
        return False
    sequence.tokens.append(token)
    stop = sequence.prompt.options.stop
    if stop:
        # A token is at least one byte and a character at most four, so a stop text lies within so many last tokens.
        tail = sequence.tokens[-4 * max(map(len, stop)) - 1 :]
        text = text_of(tail, model)
        if any(wanted in text for wanted in stop):
            sequence.finish_reason = "stop_sequence"
            return False
    if len(sequence.tokens) >= sequence.prompt.limit:
        sequence.finish_reason = "length"
        return False
    return True


def generate(prompt: Prompt, model: Generator) -> None:
    """Decode one prompt's sequences with `generate`."""
    o = prompt.options
    ids = torch.tensor([prompt.tokens], device=model.device)
    arguments: dict[str, Any] = {
        "tokenizer": model.tokenizer,
        "stop_strings": list(o.stop) or None,
        "eos_token_id": sorted(model.end_tokens) or None,
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": prompt.limit,
        "min_new_tokens": min(o.min_new_tokens, prompt.limit),
        "do_sample": o.do_sample,
        "num_beams": o.num_beams,
        "num_return_sequences": o.num_return_sequences,
        "repetition_penalty": o.repetition_penalty,
        "no_repeat_ngram_size": o.no_repeat_ngram_size,
        "pad_token_id": min(model.end_tokens, default=0),
    }
    if o.num_beams > 1:
        arguments |= {"length_penalty": o.length_penalty, "early_stopping": o.early_stopping}
    if o.do_sample:
        arguments |= {"temperature": o.temperature, "top_k": o.top_k, "top_p": o.top_p}
        arguments |= {"min_p": o.min_p or None, "typical_p": o.typical_p}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if o.seed is None:
            torch.seed()
        else:
            torch.manual_seed(o.seed)
        rows = model.model.generate(ids, **arguments)
    prompt.sequences = []
    for row in rows[:, len(prompt.tokens) :].tolist():
        sequence = Sequence(prompt, None)
        prompt.sequences.append(sequence)
        for token in row:
            if not _grow(sequence, token, model):
                break
        sequence.finish_reason = sequence.finish_reason or "length"
