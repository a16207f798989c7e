"""A LoRA adapter, merged into the weights of its base: the archive then holds one ordinary model.

What PEFT does on merging is a sum for each layer, done here on the tensors alone: no code of the adapter's is run,
and packaging needs no library for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mme import portable, weights
from mme.errors import SourceError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

# Other kinds of adapter, which this sum does not do justice to.
UNSUPPORTED = ("use_dora", "lora_bias", "layer_replication", "target_parameters", "megatron_config", "use_qalora")


def merge(model: Any, folder: Path, what: str) -> int:
    """Add the adapter in ``folder`` to ``model``, in place; return how many weights it changed.

    ``what`` names the adapter in errors. Raises SourceError when it is of another kind, or for another model.
    """
    import torch
    from safetensors.torch import load_file

    config = _config(folder, what)
    weights.read_header(folder / WEIGHTS)
    tensors = load_file(folder / WEIGHTS)
    changed = 0
    done: set[str] = set()
    with torch.no_grad():
        for key in sorted(tensors):
            name = key.removeprefix(PREFIX)
            if found := re.fullmatch(r"(.*)\.lora_(embedding_)?A(\.weight)?", name):
                other = key.replace("lora_embedding_A", "lora_embedding_B").replace("lora_A", "lora_B")
                if other not in tensors:
                    raise SourceError(f"{what} has {key} without its other half.", "Download or copy it again.")
                module = _module(model, found[1], what)
                _add(
                    module,
                    tensors[key],
                    tensors[other],
                    _scale(config, found[1], tensors[key].shape[0]),
                    what,
                    found[1],
                )
                done |= {key, other}
            elif ".lora_" not in name:
                _replace(model, name, tensors[key], what)
                done.add(key)
            else:
                continue
            changed += 1
    left = sorted(tensors.keys() - done)
    if left or not changed:
        raise SourceError(
            f"{what} holds {left[0] if left else 'nothing'}, which is no part of a LoRA adapter.",
            "Merge it with PEFT by hand.",
        )
    return changed


def _config(folder: Path, what: str) -> Mapping[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise SourceError(f"{what} has no {name} in {folder}.", "Save the adapter with PEFT's save_pretrained.")
    config = portable.read_json(folder / CONFIG)
    odd = next((key for key in UNSUPPORTED if config.get(key)), None)
    if config.get("peft_type") != "LORA" or odd or config.get("bias", "none") != "none":
        kind = config.get("peft_type") if config.get("peft_type") != "LORA" else odd or "a bias of its own"
        raise SourceError(
            f"{what} is not a plain LoRA adapter ({kind}).",
            "Merge it with PEFT (merge_and_unload, save_pretrained), and give that folder as the source.",
        )
    return config


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?{pattern}", name):
            alpha = float(value)
            break
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _module(model: Any, name: str, what: str) -> Any:
    """The layer called ``name``; the model may be the bare body of what the adapter was made for."""
    prefix = getattr(model, "base_model_prefix", "")
    for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        try:
            return model.get_submodule(candidate)
        except AttributeError:
            continue
    raise SourceError(
        f"{what} changes a layer {name}, which {type(model).__name__} does not have.",
        "An adapter fits the model that it was trained on, and no other.",
    )


def _add(module: Any, a: Any, b: Any, scale: float, what: str, name: str) -> None:
    weight = module.weight
    delta = (b.float() @ a.float()) * scale
    # transformers' Conv1D and embeddings keep their weight the other way round.
    if type(module).__name__ in ("Conv1D", "Embedding"):
        delta = delta.T
    if delta.shape != weight.shape:
        raise SourceError(
            f"{what}: {name} has the shape {tuple(weight.shape)}, and the adapter's part {tuple(delta.shape)}.",
            "An adapter fits the model that it was trained on, and no other.",
        )
    weight.copy_((weight.float() + delta).to(weight.dtype))


def _replace(model: Any, name: str, tensor: Any, what: str) -> None:
    """A layer that was trained whole (modules_to_save)."""
    layer, _, attribute = name.replace(".modules_to_save.default", "").rpartition(".")
    target = getattr(_module(model, layer, what), attribute, None)
    if target is None or target.shape != tensor.shape:
        raise SourceError(f"{what} brings {name}, which does not fit the model.", "Merge it with PEFT by hand.")
    target.copy_(tensor.to(target.dtype))
