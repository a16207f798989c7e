"""LoRA adapters as PEFT saves them, made by hand: real in every respect but that nothing was trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mme.catalog.spec import Source

PREFIX = "base_model.model."


def lora(
    folder: Path,
    base: Path,
    targets: tuple[str, ...],
    *,
    rank: int = 4,
    strength: float = 0.3,
    seed: int = 0,
    extra: dict[str, torch.Tensor] | None = None,
    **config: object,
) -> Source:
    """An adapter for the model in ``base``, on every layer whose name ends with one of ``targets``.

    ``strength`` is that of the change beside the layer's own weights. ``extra`` are further tensors of its file.
    """
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(base / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if name == layer or not layer.endswith(targets):
            continue
        embeds = "embeddings" in layer or layer.endswith(("wte", "wpe"))
        transposed = embeds or layer.endswith(("c_attn", "c_proj", "c_fc"))
        out, into = reversed(weight.shape) if transposed else weight.shape
        a = torch.randn(rank, into, generator=random)
        b = torch.randn(out, rank, generator=random)
        b *= strength * weight.float().norm() / (b @ a).norm()
        halves = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{PREFIX}{layer}.{halves[0]}": a, f"{PREFIX}{layer}.{halves[1]}": b}
    assert tensors, "the base has such layers"
    return written(folder, {**tensors, **(extra or {})}, r=rank, target_modules=list(targets), **config)


def written(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = config.get("r", 4)
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "base_model_name_or_path": "/home/me/base",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return Source("folder", folder.name, folder)
