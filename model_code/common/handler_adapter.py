"""A LoRA adapter that lies beside its base in the model's folder, in PEFT's own form: `adapter/adapter_config.json` and
`adapter/adapter_model.safetensors`. PEFT itself is not needed.

Every layer that the adapter changes is wrapped: what it answers, and the product of two narrow matrices besides. The
base's weights stay as they are, mapped from their file, so a container has them in memory once for all adapters.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import embedding, linear
from transformers.pytorch_utils import Conv1D

FOLDER = "adapter"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


class Adapted(torch.nn.Module):
    """A layer with an adapter. It has the attributes of the layer."""

    def __init__(self, layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        """`a` has a row for each of the adapter's ranks, `b` a column."""
        super().__init__()
        self.layer = layer
        self.scale = scale
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def _plus(self, answer: torch.Tensor, narrow: torch.Tensor) -> torch.Tensor:
        # The answer is this layer's alone, so the product is added where it lies.
        rows = answer.reshape(-1, answer.shape[-1])
        rows.addmm_(narrow.reshape(-1, narrow.shape[-1]), self.b.t(), alpha=self.scale)
        return rows.view(answer.shape)


class AdaptedLinear(Adapted):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self._plus(self.layer(values), linear(values, self.a))


class AdaptedEmbedding(Adapted):
    @property
    def weight(self) -> torch.Tensor:
        """The table as if merged, computed at each call: for code that reads the table by itself."""
        return self.layer.weight + self.scale * (self.b @ self.a).t()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self._plus(self.layer(ids), embedding(ids, self.a.t()))


@dataclass(frozen=True)
class Change:
    """An adapter's part of one layer: the two narrow matrices, of which `a` has a row for each of the adapter's ranks,
    and `b` a column; and the factor of their product."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


def changes(folder: Path) -> dict[str, Change]:
    """The adapter in the model's folder, by the layers' names; empty where there is none. Raises
    ValueError for one that is not made of pairs of narrow matrices alone."""
    if not (folder / FOLDER / CONFIG).is_file():
        return {}
    config = json.loads((folder / FOLDER / CONFIG).read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{FOLDER}/{CONFIG}: peft_type must be LORA, not {config.get('peft_type')!r}.")
    tensors = load_file(folder / FOLDER / WEIGHTS)
    read = {}
    while tensors:
        key = next(iter(tensors))
        match = re.fullmatch(r"(.*)\.lora_(embedding_)?[AB](\.weight)?", key.removeprefix(PREFIX))
        if match is None:
            raise ValueError(f"{FOLDER}/{WEIGHTS}: {key} is no part of a LoRA adapter.")
        first, second = (f"lora_{match[2] or ''}{side}{match[3] or ''}" for side in "AB")
        start = key[: key.rindex("lora_")]
        if start + first not in tensors or start + second not in tensors:
            raise ValueError(f"{FOLDER}/{WEIGHTS}: {key} is without its other half.")
        a, b = tensors.pop(start + first), tensors.pop(start + second)
        read[match[1]] = Change(a, b, _scale(config, match[1], len(a)))
    return read


def matrices(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same as `changes`, as the engine takes them: the second matrix is already scaled."""
    return {
        name: (change.a.float().numpy(), change.scale * change.b.float().numpy())
        for name, change in changes(folder).items()
    }


def adapt(model: Any, folder: Path) -> int:
    """Apply the adapter in the model's folder, if there is one. Returns how many layers it changes. Raises ValueError
    for one that does not fit the model, or is not made of pairs of narrow matrices alone."""
    wanted = changes(folder)
    for name, change in wanted.items():
        _wrap(model, name, change.a, change.b, change.scale)
    return len(wanted)


def _scale(config: dict[str, Any], name: str, rank: int) -> float:
    """The first pattern that fits the end of the layer's name gives its alpha, as PEFT has it."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return float(alpha) / float(rank**0.5 if config.get("use_rslora") else rank)


def _wrap(model: Any, name: str, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    parent, last, layer = _find(model, name)
    shape, given = tuple(layer.weight.shape), (len(b), a.shape[1])
    if type(layer) is torch.nn.Linear:
        wrapper: type[Adapted] = AdaptedLinear
    elif type(layer) is Conv1D:  # GPT-2's linear layers, whose weights have a row for each input
        wrapper, given = AdaptedLinear, given[::-1]
    elif type(layer) is torch.nn.Embedding:
        wrapper, given = AdaptedEmbedding, given[::-1]
    elif type(layer).__name__ == "Int8Linear":  # handler_int8.py's, whose weights are packed out of sight
        wrapper, shape = AdaptedLinear, given
    else:
        raise ValueError(f"{FOLDER}: {name} is a {type(layer).__name__}, to which no adapter can be applied.")
    if shape != given:
        raise ValueError(f"{FOLDER}: {name} has the shape {shape}, and the adapter's part {given}.")
    kind, device = layer.weight.dtype, layer.weight.device
    setattr(parent, last, wrapper(layer, a.to(device, kind), b.to(device, kind), scale))


def _find(model: Any, name: str) -> tuple[Any, str, Any]:
    """The layer of this name, and where it stands; the model may be the bare body of what the adapter was made for."""
    prefix = getattr(model, "base_model_prefix", "")
    for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        parent, _, last = candidate.rpartition(".")
        try:
            return model.get_submodule(parent), last, model.get_submodule(candidate)
        except AttributeError:
            continue
    raise ValueError(f"{FOLDER}: {type(model).__name__} has no layer {name}. An adapter fits the base it was made for.")
