"""Whether prompts of different lengths can share a pass through the model, each getting what it would get alone.

Most decoders keep keys and values of every token, which can be padded, put together and cut by rows. Others have states
(Mamba, RWKV, linear attention, RecurrentGemma), into which padding leaks and which cannot be moved by rows; or they
number positions from the batch's first column. New kinds appear every month, so this is tried when a model loads: two
prompts, padded and alone, and one more token. A model for which the two differ runs one prompt after the other.
"""

import logging
from typing import Any

import torch
from generation_decoding import Generator, can_select, forward, select

# These are known to join, so loading them does not touch their weights.
KNOWN = frozenset(
    (
        *(
            "bloom",
            "codegen",
            "cohere",
            "falcon",
            "gemma",
            "gpt2",
            "gpt_bigcode",
            "gpt_neo",
            "gpt_neox",
            "gptj",
            "granite",
        ),
        *("llama", "mistral", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "stablelm", "starcoder2"),
    )
)
SHORT, LONG = 3, 7  # tokens
# Of the largest logit: what float32, or fewer bits, lose where the same is computed in another order.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}


def joins(model: Generator) -> bool:
    """Whether the model gives a padded prompt in a batch what it gives it alone. The reason is logged where it does
    not."""
    config = model.model.config
    if model.cache is None:
        return alone(model, "it keeps a state instead of keys and values")
    if config.model_type in KNOWN:
        return True
    try:
        with torch.inference_mode():
            reason = _difference(model)
    except Exception as error:  # a cache of its own kind, an argument that it does not take: `generate` knows them
        reason = f"prompts cannot be batched ({type(error).__name__}: {str(error)[:200]})"
    return True if reason is None else alone(model, reason)


def same_rotation(config: Any) -> int | None:
    """Up to how many tokens a text is read as it would be in any company; None where that is always so.

    Two kinds of rotary embedding choose their frequencies by the longest text of a pass, past the length for which the
    model was trained at first: those of all texts in it, and those of tokens that were read before."""
    for name in ("rope_parameters", "rope_scaling"):
        stated = getattr(config, name, None)
        if not isinstance(stated, dict):
            continue
        for part in (stated, *(value for value in stated.values() if isinstance(value, dict))):
            if part.get("rope_type", part.get("type")) in ("longrope", "su", "dynamic"):
                places = (part, vars(config))
                lengths = [place.get(f"{w}max_position_embeddings") for w in ("original_", "") for place in places]
                return next((int(length) for length in lengths if length), 0)
    return None


def alone(model: Generator, reason: str) -> bool:
    """False, and the log says why."""
    name = type(model.model).__name__
    logging.getLogger(__name__).warning("%s: %s, so each prompt runs alone, one after the other.", name, reason)
    return False


def _difference(model: Generator) -> str | None:
    """What goes wrong with two prompts in one batch; None where nothing does."""
    size = model.model.get_input_embeddings().weight.shape[0]
    prompts = [[(7 * place + 11) % size for place in range(length)] for length in (LONG, SHORT)]
    following = [(5 * row + 3) % size for row in range(2)]
    alone = []
    for prompt, token in zip(prompts, following, strict=True):
        ids = torch.tensor([prompt], device=model.device)
        ones = torch.ones_like(ids)
        first, cache = forward(ids, ones, _positions(ones), None, model)
        longer = torch.ones((1, len(prompt) + 1), dtype=torch.long, device=model.device)
        second, _ = forward(
            torch.tensor([[token]], device=model.device), longer, _positions(longer)[:, -1:], cache, model
        )
        alone.append((first[0].clone(), second[0].clone()))
    ids = torch.zeros((2, LONG), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, LONG - len(prompt) :] = torch.tensor(prompt)
        mask[row, LONG - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    first, cache = forward(ids, mask, _positions(mask), None, model)
    first = first.clone()
    if not can_select(cache):
        return "its cache cannot be cut by rows"
    cache = select(cache, torch.tensor([1, 0], device=model.device))
    mask = torch.cat([mask[[1, 0]], mask.new_ones((2, 1))], dim=1)
    fed = torch.tensor([following[::-1]], device=model.device).T
    second, _ = forward(fed, mask, _positions(mask)[:, -1:], cache, model)
    together = ((first[0], second[1]), (first[1], second[0]))
    for one, other in zip(alone, together, strict=True):
        for apart, joined in zip(one, other, strict=True):
            if _far(apart, joined, model.model.dtype):
                return "what it answers depends on the prompts beside"
    return None


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _far(one: torch.Tensor, other: torch.Tensor, dtype: Any) -> bool:
    most = max(1e-6, float(one.abs().max()))
    return not float((one - other).abs().max()) <= TOLERANCE.get(dtype, 1e-4) * most
