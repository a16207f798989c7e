"""A checkpoint's tensors, matched to the class that is to load them without loading them.

The class is built without memory for its weights, which gives the names and shapes that it needs. Where the checkpoint
has these tensors, under the same names or with the prefix of a base model inside a model with a head, they can go from
file to file one after the other, with one of them in memory at a time. Where they are not (layouts that transformers
converts on loading, number formats of several kinds, code of the model's own), ``match`` returns None, and transformers
has to load the model.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mme.snapshot import weights
from mme.snapshot.tensors import FLOATS, SAFETENSORS, TORCH, cast, content, read_exactly
from mme.snapshot.weights import Piece


@dataclass(frozen=True)
class Skeleton:
    """A model's class, built without its weights.

    ``tensors`` are those that a file of it holds, by name, on torch's meta device; of a tensor with several names,
    the one that is saved. ``aliases`` leads from each name of a tensor to the one that is saved.
    """

    model: Any
    tensors: Mapping[str, Any]
    aliases: Mapping[str, str]


@dataclass(frozen=True)
class Matched:
    """``pieces`` are the model's tensors, in its own order. ``dtype`` is torch's name of its number format, which they
    are cast to where the checkpoint has another."""

    skeleton: Skeleton
    pieces: tuple[Piece, ...]
    dtype: str


def skeleton(path: Path, kind: Any) -> Skeleton | None:
    """``kind`` (a class of transformers, or an Auto class) as ``path``/config.json describes it; None when it cannot
    be built this way. Runs no code of the model's own."""
    import torch

    try:
        from transformers import AutoConfig
        from transformers.modeling_utils import _get_tied_weight_keys

        config = AutoConfig.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            model = kind.from_config(config) if hasattr(kind, "from_config") else kind._from_config(config)
        model.tie_weights()
        if _converts(model):
            return None
        tied = _matcher(_get_tied_weight_keys(model))
    except Exception:
        return None  # whatever it is, loading the model finds it too, and says so
    names: dict[int, list[str]] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    aliases: dict[str, str] = {}
    for same in names.values():
        # Of several names, the ones that the class calls tied to another are not saved.
        untied = [name for name in same if not tied(name)] if len(same) > 1 else same
        if len(untied) != 1:
            return None
        aliases.update(dict.fromkeys(same, untied[0]))
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    tensors = {name: state[name] for name in state if aliases[name] == name and name not in ignored}
    return Skeleton(model, tensors, aliases)


def _converts(model: Any) -> bool:
    """Whether transformers has another layout of this model's weights on disk than in memory."""
    if getattr(model, "_checkpoint_conversion_mapping", None) or getattr(model.config, "quantization_config", None):
        return True
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # transformers 4 has no such layouts
        return False
    return bool(get_model_conversion_mapping(model, add_legacy=False))


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda name: any(pattern.search(name) for pattern in compiled)


def match(path: Path, kind: Any, pickled: bool) -> Matched | None:
    """The checkpoint in ``path`` as the tensors of ``kind``, or None when it takes transformers to load it."""
    built = skeleton(path, kind)
    stored = checkpoint(path, pickled) if built is not None else None
    if built is None or stored is None:
        return None
    placed: dict[str, Piece] = {}
    for piece in stored:
        name = _name(piece.name, built)
        if name is None:
            continue  # a part that this class does not have
        if built.aliases[name] != name or name in placed:
            return None  # a tensor of two names, stored under the other one or twice
        if name in built.tensors:
            if piece.shape != tuple(built.tensors[name].shape):
                return None
            placed[name] = replace(piece, name=name)
    # Other parts than a pooler would be random: loading the model says which.
    if any("pooler." not in name for name in built.tensors.keys() - placed.keys()):
        return None
    formats = {piece.dtype for piece in placed.values() if piece.dtype in FLOATS}
    config = built.model.config
    stated = config.dtype if hasattr(config, "dtype") else config.torch_dtype  # transformers 5 and 4
    dtype = str(stated).removeprefix("torch.") if stated is not None else TORCH[min(formats, default="F32")]
    as_it_is = formats == {SAFETENSORS.get(dtype)}
    if dtype not in SAFETENSORS or len(formats) > 1 or (not as_it_is and _has_float_buffers(built)):
        return None
    if getattr(built.model, "_keep_in_fp32_modules", None) and dtype != "float32":
        return None
    pieces = (placed[name] for name in built.tensors if name in placed)
    return Matched(built, tuple(cast(piece, dtype) for piece in pieces), dtype)


def _has_float_buffers(built: Skeleton) -> bool:
    """Whether the model has floating-point tensors that are not parameters: these may keep a format of their own."""
    buffers = {id(buffer) for buffer in built.model.buffers()}
    return any(id(held) in buffers and held.is_floating_point() for held in built.tensors.values())


def _name(stored: str, built: Skeleton) -> str | None:
    """What the class calls the tensor ``stored``; None when it has none of this name."""
    prefix = f"{built.model.base_model_prefix}."
    name = weights.modern(stored)
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if candidate in built.aliases:
            return candidate
    return None


def checkpoint(path: Path, pickled: bool) -> tuple[Piece, ...] | None:
    """All tensors of the checkpoint in ``path``; None when it has to be loaded to know them."""
    index, single = (
        (path / "pytorch_model.bin.index.json", path / "pytorch_model.bin")
        if pickled
        else (path / weights.INDEX, path / weights.WHOLE)
    )
    files = [single] if single.is_file() else [path / name for name in weights.shards(index)]
    tensors: list[Piece] = []
    for file in files:
        part = pickled_pieces(file) if pickled else weights.pieces(file)
        if part is None:
            return None
        tensors += part
    if len({piece.name for piece in tensors}) < len(tensors) or any(piece.dtype not in TORCH for piece in tensors):
        return None
    return tuple(tensors)


def pickled_pieces(path: Path) -> tuple[Piece, ...] | None:
    """The tensors of a file that torch.save wrote, read where they lie in it. None for an older kind of file.

    The pickle itself is read without running what is in it, and without its tensors' bytes.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return None
            order = next((name for name in archive.namelist() if name.endswith("/byteorder")), None)
            if order is not None and archive.read(order) != b"little":
                return None
        state = torch.load(path, map_location="meta", weights_only=True)
        return tuple(_pickled_piece(path, name, tensor) for name, tensor in state.items())
    except Exception:
        return None  # whatever it is, loading the model finds it too, and says so


def _pickled_piece(path: Path, name: str, tensor: Any) -> Piece:
    dtype = SAFETENSORS[str(tensor.dtype).removeprefix("torch.")]
    storage = tensor.untyped_storage()
    begin = storage._checkpoint_offset  # torch notes on its meta device where a tensor's bytes are in the file
    if tensor.is_contiguous():
        begin += tensor.storage_offset() * tensor.itemsize
        return Piece(name, dtype, tuple(tensor.shape), weights.span(path, begin, begin + tensor.nbytes))

    def chunks() -> Iterator[memoryview]:
        import torch

        single = torch.frombuffer(read_exactly(weights.span(path, begin, begin + storage.nbytes())), dtype=tensor.dtype)
        yield content(single.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()))

    return Piece(name, dtype, tuple(tensor.shape), chunks)


def linear_layers(built: Skeleton) -> dict[str, bool]:
    """The weights that handler_int8.py computes with in int8, by name; and whether they have a row for each input.

    Not those that another layer shares, such as a table of words: they are needed as they are, too. None of a model
    with layers of experts: versions of transformers name and stack these in different ways.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if any(".experts." in name for name in built.tensors):
        return {}
    owners: dict[int, int] = {}
    for _, parameter in built.model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        f"{name}.weight": type(module) is Conv1D
        for name, module in built.model.named_modules()
        if (type(module) is Conv1D or (type(module) is torch.nn.Linear and module.in_features > 1))
        and owners[id(module.weight)] == 1
    }
