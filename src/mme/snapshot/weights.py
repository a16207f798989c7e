"""safetensors files as bytes: whether they are complete, and one canonical form of their content.

Different versions of transformers write the same tensors in different order and with different headers. The
canonical form depends on the tensors alone, so that a version's digest does not depend on who wrote the file.
Tensors go from file to file as pieces, and nothing here holds more than 1 MiB of weights in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from mme.errors import SourceError
from mme.folder import is_safe

MAX_HEADER = 100_000_000  # the limit that safetensors itself sets
CHUNK = 1 << 20

# Bits of one element.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """Where one tensor is: ``begin`` and ``end`` are bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


def read_header(path: Path) -> tuple[Tensor, ...]:
    """The tensors of the safetensors file at ``path``, in the file's order.

    Raises SourceError when the file is cut short, is not safetensors, or has holes or overlaps.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _parse(path, file, size)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.", "Check the file.") from None


def _parse(path: Path, file: BinaryIO, size: int) -> tuple[Tensor, ...]:
    broken = "Download or copy it again; Git LFS leaves a small text file where the weights were not fetched."
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
        raise SourceError(f"{path} is not a safetensors file, or only the beginning of one.", broken)
    try:
        header = json.loads(file.read(length))
        tensors = sorted(
            (_tensor(str(name), entry, 8 + length) for name, entry in header.items() if name != "__metadata__"),
            key=lambda tensor: (tensor.begin, tensor.end),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path} has a header that is not safetensors: {error}.", broken) from None
    at = 8 + length
    for tensor in tensors:
        if tensor.begin != at or (tensor.end - tensor.begin) * 8 != tensor.elements * BITS[tensor.dtype]:
            raise SourceError(f"{path}: the place of {tensor.name} in the file is wrong.", broken)
        at = tensor.end
    if at != size:
        missing = f"{at - size:,} bytes are missing at its end" if at > size else "it has bytes that belong to nothing"
        raise SourceError(f"{path} is broken: {missing}.", broken)
    return tuple(tensors)


def _tensor(name: str, entry: Mapping[str, Any], base: int) -> Tensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    if begin < 0 or end < begin or any(size < 0 for size in shape) or entry["dtype"] not in BITS:
        raise ValueError(f"tensor {name} is of no known kind")
    return Tensor(name, str(entry["dtype"]), shape, base + begin, base + end)


def files(folder: Path) -> tuple[Path, ...]:
    """The safetensors of the model in ``folder``: one, or the shards of its index. Raises SourceError as ``shards``."""
    whole = folder / WHOLE
    return (whole,) if whole.is_file() else tuple(folder / name for name in shards(folder / INDEX))


def shards(index: Path) -> tuple[str, ...]:
    """The files that a safetensors or PyTorch index names. Raises SourceError when it names others than its own."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise SourceError(f"{index} is not an index of weights.", "Download or copy it again.") from None
    for name in names:
        if not isinstance(name, str) or not is_safe(name) or "/" in name:
            raise SourceError(f"{index} names {name!r}, which is not a file beside it.", "Do not use this model.")
        if not (index.parent / name).is_file():
            raise SourceError(f"{index} names {name}, which is not there.", "Download or copy it again.")
    return tuple(names)


def modern(name: str) -> str:
    """The name of a tensor as models have had it since 2019: transformers 5 saves the older one where it read it."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


@dataclass(frozen=True)
class Piece:
    """A tensor to be written. ``chunks`` gives its bytes, in order, when they are wanted and not before."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def pieces(path: Path) -> tuple[Piece, ...]:
    """The tensors of the safetensors file at ``path``, to be written elsewhere. Raises SourceError."""
    return tuple(
        Piece(tensor.name, tensor.dtype, tensor.shape, span(path, tensor.begin, tensor.end))
        for tensor in read_header(path)
    )


def span(path: Path, begin: int, end: int) -> Callable[[], Iterator[bytes]]:
    """What reads the bytes from ``begin`` to ``end`` of a file, 1 MiB at a time."""

    def chunks() -> Iterator[bytes]:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            left = end - begin
            while left:
                data = file.read(min(CHUNK, left))
                if not data:
                    raise SourceError(f"{path} was cut short while it was read.", "Run the command again.")
                yield data
                left -= len(data)

    return chunks


def shared_out(pieces: Sequence[Piece], most: int) -> dict[str, list[Piece]]:
    """Which pieces go into which file: one, or several of at most ``most`` bytes each, filled in order."""
    groups: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if groups[-1] and size + piece.size > most:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.size
    if len(groups) == 1:
        return {WHOLE: groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, start=1)
    }


def write(target: Path, wanted: Iterable[Piece]) -> str:
    """Write the pieces to ``target``, in the canonical form; return the sha256 of that file.

    Widest elements first, then by name, so that every tensor is aligned, as safetensors itself does.
    """
    ordered = sorted(wanted, key=lambda piece: (-BITS[piece.dtype], piece.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for piece in ordered:
        header[piece.name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": [at, at + piece.size]}
        at += piece.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with target.open("wb", buffering=0) as file:
        start = len(text).to_bytes(8, "little") + text
        file.write(start)
        digest.update(start)
        for piece in ordered:
            for data in piece.chunks():
                file.write(data)
                digest.update(data)
        if file.tell() != len(start) + at:
            raise SourceError(f"{target.name} did not become as long as its tensors are.", "Run the command again.")
    return digest.hexdigest()


def canonical(source: Path, target: Path, leave_out: frozenset[str] = frozenset()) -> str:
    """Write the tensors of ``source`` to ``target``, in the canonical form; return the sha256 of that file."""
    chosen = [replace(piece, name=modern(piece.name)) for piece in pieces(source) if piece.name not in leave_out]
    return write(target, chosen)
