"""A LoRA adapter and its base: merged into one ordinary model, or kept apart in one archive.

Merging is a sum for each layer, done here on the tensors alone. Kept apart, the base's weight files stay what they are
in every other archive of that base, so that a container has them in memory once, and the handler adds the adapter's
part to what each layer answers. No code of the adapter's is run, and packaging needs no library for it.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mme.errors import SourceError
from mme.snapshot import portable, weights
from mme.snapshot.sources import LICENCES, Located

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

# Where an adapter that is kept apart lies in the archive, in PEFT's own form. At the archive's root, transformers would
# pass it over where PEFT is not installed, and load it by itself where it is.
FOLDER = "adapter"

# Kinds of adapter that are more than the product of two matrices.
UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
# Ways to begin the training that change the base too, so that what is saved does not fit the base as it is.
REBASED = ("corda", "loftq", "lora_ga", "olora", "pissa")

# The keys of an adapter's configuration that its result depends on and that PEFT needs. The others record how it was
# trained, with paths of that machine among them.
KEPT = (
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_alpha",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_rslora",
)

# What two tokenizers are compared by, besides their tokens.
SAMPLES = ("The house is quiet; is nobody at home?", "  12.5% of Über\u00fcberg \u65e5\u672c \U0001f642\n\tx=1", "")

# The other keys that PEFT writes: how the adapter was trained, which no answer depends on.
NOTES = (
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "velora_config",
)

OTHER_MODEL = "An adapter fits the model that it was trained on, and no other."


@dataclass(frozen=True)
class Part:
    """What an adapter adds to one layer: ``scale`` times ``b @ a``. ``name`` is the adapter's own for the layer."""

    name: str
    module: Any
    a: Any
    b: Any
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter, read for a model: its parts, and the tensors that it replaces (PEFT's modules_to_save) by name."""

    parts: tuple[Part, ...]
    replaced: Mapping[str, Any]


def read(model: Any, folder: Path, what: str) -> Adapter:
    """The adapter in ``folder``, for ``model``. ``what`` names it in errors.

    Raises SourceError when it is of another kind, or for another model.
    """
    from safetensors.torch import load_file

    config = _config(folder, what)
    weights.read_header(folder / WEIGHTS)
    tensors = load_file(folder / WEIGHTS)
    if broken := next((key for key, tensor in sorted(tensors.items()) if tensor.isnan().any()), None):
        raise SourceError(
            f"{what}: {broken} holds NaN, which is not a number.", "Take one from before that training failed."
        )
    parts: list[Part] = []
    replaced: dict[str, Any] = {}
    done: set[str] = set()
    for key in sorted(tensors):
        name = key.removeprefix(PREFIX)
        if match := re.fullmatch(r"(.*)\.lora_(embedding_)?A(\.weight)?", name):
            other = key.replace("lora_embedding_A", "lora_embedding_B").replace("lora_A", "lora_B")
            if other not in tensors:
                raise SourceError(f"{what} has {key} without its other half.", "Download or copy it again.")
            module = _module(model, match[1], what)
            a, b = tensors[key], tensors[other]
            part = Part(match[1], module, a, b, _scale(config, match[1], a.shape[0], what))
            _check_shape(part, what)
            parts.append(part)
            done |= {key, other}
        elif ".lora_" not in name:
            replaced[name] = tensors[key]
            done.add(key)
    left = sorted(tensors.keys() - done)
    if left or not done:
        raise SourceError(
            f"{what} holds {left[0] if left else 'nothing'}, which is not part of a LoRA adapter.",
            "Merge it with PEFT by hand.",
        )
    return Adapter(tuple(parts), replaced)


def merge(model: Any, folder: Path, what: str) -> int:
    """Add the adapter in ``folder`` to ``model``, in place; return how many weights it changed.

    Raises SourceError when it is of another kind, is for another model, or changes a weight that another layer shares.
    """
    import torch

    made = changes(model, folder, what)
    with torch.no_grad():
        for parameter in [*model.parameters(), *model.buffers()]:
            if id(parameter) in made.by_id:
                parameter.copy_(made.by_id[id(parameter)](parameter))
    return made.count


@dataclass(frozen=True)
class Changes:
    """What merging does: from a parameter (its id) to what makes its new value of the old one. ``count`` is how many
    layers the adapter changes."""

    by_id: Mapping[int, Callable[[Any], Any]]
    count: int


def changes(model: Any, folder: Path, what: str) -> Changes:
    """What merging the adapter in ``folder`` does to ``model``, which may be one without weights (torch's meta device).

    Raises SourceError when it is of another kind, is for another model, or changes a weight that another layer shares.
    """
    import torch

    adapter = read(model, folder, what)
    tied = _tied(model)
    made: dict[int, Callable[[Any], Any]] = {}
    trained: dict[int, list[tuple[str, Any]]] = {}  # layers whose weights were trained themselves
    for name, tensor in adapter.replaced.items():
        place = id(_target(model, name, tensor, what))
        made[place] = _replacing(tensor)
        if ".base_layer." not in name:
            trained.setdefault(place, []).append((name, tensor))
    for place, given in trained.items():
        # PEFT gives a layer that was trained whole weights of its own, and leaves those that it was tied to.
        if place in tied and (len(given) < tied[place] or not all(torch.equal(given[0][1], one) for _, one in given)):
            raise SourceError(
                f"{what} replaces {given[0][0]}, another layer's weight too, and that layer is to stay as it is.",
                "Merge it with PEFT, untied (tie_word_embeddings false), and give that folder as the source.",
            )
    for part in adapter.parts:
        place = id(part.module.weight)
        if place in tied:
            raise SourceError(
                f"{what} changes {part.name}, whose weight is another layer's too, which must stay as it is.",
                "Keep it apart: adapter_merge = false.",
            )
        made[place] = _summing(part, made.get(place))
    return Changes(made, len(adapter.parts) + len(adapter.replaced))


def check_tokenizer(tokenizer: Any | None, folder: Path, what: str) -> None:
    """Raise SourceError where the adapter in ``folder`` brings a tokenizer that reads otherwise than the base's, which
    is the one that the archive has: the adapter was trained on other tokens, or on chats in another form."""
    if tokenizer is None or not portable.has_tokenizer(folder):
        return
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = AutoTokenizer if (folder / "tokenizer_config.json").is_file() else PreTrainedTokenizerFast
    own = kind.from_pretrained(folder, local_files_only=True)
    differs = None
    if own.get_vocab() != tokenizer.get_vocab():
        differs = "has other tokens"
    elif any(own(text)["input_ids"] != tokenizer(text)["input_ids"] for text in SAMPLES):
        differs = "reads texts otherwise"
    elif own.chat_template != tokenizer.chat_template and own.chat_template:
        differs = "has another chat template"
    if differs:
        raise SourceError(
            f"{what} has a tokenizer of its own, which {differs} than the base's.",
            "Merge it with PEFT (merge_and_unload, save_pretrained), put its tokenizer beside, and give that folder as "
            "the source.",
        )


def only_lora(folder: Path, what: str) -> bool:
    """Whether the adapter in ``folder`` replaces no layer of the model. Raises SourceError."""
    _config(folder, what)
    return all(".lora_" in tensor.name for tensor in weights.read_header(folder / WEIGHTS))


def fit(model: Any, folder: Path, what: str) -> Adapter:
    """The adapter in ``folder``, when it can be kept apart from ``model``: a handler adds what it says to each layer.

    Raises SourceError when it is of another kind, or for another model.
    """
    import torch

    adapter = read(model, folder, what)
    for name, tensor in adapter.replaced.items():
        layer, is_base, attribute = name.rpartition(".base_layer.")
        own = getattr(_module(model, layer, what), attribute, None) if is_base else None
        if own is None or own.shape != tensor.shape or not torch.equal(own, tensor.to(own.dtype)):
            raise SourceError(
                f"{what} has a layer that was trained whole ({name}), and cannot be kept apart.",
                "Merge it: leave adapter_merge out.",
            )
    if not adapter.parts:
        raise SourceError(f"{what} changes no layer.", "Download or copy it again.")
    # Mamba's blocks use the weights of their layers without calling the layers.
    closed = "mamba" in str(getattr(model.config, "model_type", ""))
    for part in adapter.parts:
        kind = type(part.module)
        if closed or (kind not in (torch.nn.Linear, torch.nn.Embedding) and kind.__name__ != "Conv1D"):
            raise SourceError(
                f"{what} changes {part.name} ({kind.__name__}): nothing can be added to what this layer of "
                f"{type(model).__name__} answers.",
                "Merge it: leave adapter_merge out.",
            )
    return adapter


@contextlib.contextmanager
def attached(adapter: Adapter | None) -> Iterator[None]:
    """Within the block, the layers of the model that ``adapter`` was read for answer as with the adapter."""
    hooks = [part.module.register_forward_hook(_adding(part)) for part in (adapter.parts if adapter else ())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def keep(adapter: Adapter, located: Located, into: Path) -> dict[str, Any]:
    """Write the adapter at ``located`` into the new folder ``into``, in PEFT's form; return facts for the manifest."""
    into.mkdir()
    config = portable.read_json(located.path / CONFIG)
    fields = {key: config[key] for key in KEPT if key in config}
    if isinstance(fields.get("target_modules"), list):
        fields["target_modules"] = sorted(fields["target_modules"], key=str)  # PEFT writes a set, in any order
    portable.write_json(into / CONFIG, {"peft_type": "LORA", "bias": "none", "inference_mode": True, **fields})
    names = {tensor.name for tensor in weights.read_header(located.path / WEIGHTS)}
    copies = frozenset(name for name in names if ".lora_" not in name)  # of the base's own weights
    weights.canonical(located.path / WEIGHTS, into / WEIGHTS, copies)
    for file in located.files:
        if "/" not in file.path and file.path.upper().startswith(LICENCES):
            shutil.copyfile(file.origin, into / file.path)
    return {
        "layers": len(adapter.parts),
        "ranks": sorted({part.a.shape[0] for part in adapter.parts}),
        "parameters": sum(part.a.numel() + part.b.numel() for part in adapter.parts),
        **({"licence": located.licence} if located.licence else {}),
    }


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
    strange = sorted(key for key, value in config.items() if value and key not in (*KEPT, *UNSUPPORTED, *NOTES))
    if strange:
        raise SourceError(
            f"{what} was saved with settings not known here ({', '.join(strange)}), and may change its answers.",
            "Merge it with PEFT (merge_and_unload, save_pretrained), and give that folder as the source.",
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REBASED):
        raise SourceError(
            f"{what} is for a base that was changed when the training began (init_lora_weights is {start!r}).",
            "Save it with PEFT's path_initial_model_for_weight_conversion, which makes it fit the base as it is.",
        )
    return config


def _scale(config: Mapping[str, Any], name: str, rank: int, what: str) -> float:
    """The first pattern that fits the end of the layer's name gives its alpha, as PEFT has it."""
    alpha = config.get("lora_alpha", 8)
    try:
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                alpha = value
                break
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        if not math.isfinite(scale):
            raise ValueError
        return float(scale)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError, re.error):
        raise SourceError(
            f"{what} has an alpha or a rank for {name} that is not a number.", "Download or copy it again."
        ) from None


def _module(model: Any, name: str, what: str) -> Any:
    """The layer called ``name``; the model may be the bare body of what the adapter was made for."""
    prefix = getattr(model, "base_model_prefix", "")
    for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        try:
            return model.get_submodule(candidate)
        except AttributeError:
            continue
    raise SourceError(f"{what} changes a layer {name}, which {type(model).__name__} does not have.", OTHER_MODEL)


def _check_shape(part: Part, what: str) -> None:
    shape = tuple(getattr(part.module, "weight", part.a).shape)
    given = (*part.b.shape[:1], *part.a.shape[1:])
    wanted = given[::-1] if _is_transposed(part.module) else given
    if shape != wanted or len(shape) != 2 or part.a.shape[0] != part.b.shape[-1]:
        raise SourceError(f"{what}: {part.name} has the shape {shape}, and the adapter's part {wanted}.", OTHER_MODEL)


def _is_transposed(module: Any) -> bool:
    """transformers' Conv1D and embeddings keep their weight the other way round."""
    return type(module).__name__ in ("Conv1D", "Embedding")


def _tied(model: Any) -> dict[int, int]:
    """The parameters that belong to several layers, and to how many."""
    counted = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {parameter: count for parameter, count in counted.items() if count > 1}


def _adding(part: Part) -> Any:
    import torch

    a, b, embeds = part.a, part.b, isinstance(part.module, torch.nn.Embedding)

    def add(_: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        left, right = a.to(output.dtype), b.to(output.dtype)
        inner = torch.nn.functional.embedding(arguments[0], left.T) if embeds else arguments[0] @ left.T
        return output + part.scale * (inner @ right.T)

    return add


def _replacing(tensor: Any) -> Callable[[Any], Any]:
    return lambda weight: tensor.to(weight.dtype)


def _summing(part: Part, before: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    def add(weight: Any) -> Any:
        weight = weight if before is None else before(weight)
        delta = (part.b.float() @ part.a.float()) * part.scale
        delta = delta.T if _is_transposed(part.module) else delta
        return (weight.float() + delta).to(weight.dtype)

    return add


def _target(model: Any, name: str, tensor: Any, what: str) -> Any:
    """A layer that was trained whole (modules_to_save), or the base's own as PEFT copies it beside an embedding."""
    layer, _, attribute = name.replace(".modules_to_save.default", "").replace(".base_layer", "").rpartition(".")
    target = getattr(_module(model, layer, what), attribute, None)
    if target is None or target.shape != tensor.shape:
        raise SourceError(f"{what} brings {name}, which does not fit the model.", "Merge it with PEFT by hand.")
    return target
