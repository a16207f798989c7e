"""Tensors of a checkpoint one at a time: read, cast to another number format, quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from mme.errors import SourceError
from mme.snapshot import weights
from mme.snapshot.weights import Piece

# As safetensors writes a number format -> as torch calls it.
TORCH = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
SAFETENSORS = {torch: name for name, torch in TORCH.items()}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

# The form in which handler_int8.py reads weights; see there.
INT8 = "model.int8.safetensors"
SCALES = "_scale"
INPUT_SCALES = "_input_scale"
LARGEST = 63
SMALLEST = 1e-30
ROWS_AT_ONCE = 1 << 22  # numbers; it bounds the memory


# --- pieces that are changed on their way ------------------------------------------------------------------------


def content(tensor: Any) -> memoryview:
    """A tensor's bytes, as they lie in memory."""
    import torch

    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def read_tensor(piece: Piece) -> Any:
    """The piece as a tensor of its own."""
    import torch

    if not piece.size:
        return torch.zeros(piece.shape, dtype=getattr(torch, TORCH[piece.dtype]))
    return torch.frombuffer(read_exactly(piece.chunks), dtype=getattr(torch, TORCH[piece.dtype])).reshape(piece.shape)


def read_exactly(chunks: Callable[[], Iterable[bytes | memoryview]]) -> bytearray:
    data = bytearray()
    for chunk in chunks():
        data += chunk
    return data


def changed(piece: Piece, change: Callable[[Any], Any]) -> Piece:
    """The piece with ``change`` done to its tensor, which keeps its shape and its number format."""

    def chunks() -> Iterator[memoryview]:
        import torch

        with torch.no_grad():
            tensor = change(read_tensor(piece))
        if tuple(tensor.shape) != piece.shape:
            raise SourceError(f"{piece.name} would change its shape to {tuple(tensor.shape)}.")
        yield content(tensor.to(getattr(torch, TORCH[piece.dtype])))

    return replace(piece, chunks=chunks)


def cast(piece: Piece, dtype: str) -> Piece:
    """The piece in torch's number format ``dtype``, if it holds numbers with a fraction at all. A MiB at a time."""
    if piece.dtype not in FLOATS or piece.dtype == SAFETENSORS[dtype]:
        return piece

    def chunks() -> Iterator[memoryview]:
        import torch

        width = weights.BITS[piece.dtype] // 8
        left = b""
        for chunk in piece.chunks():
            data = bytearray(left) + chunk
            usable = len(data) - len(data) % width
            left = bytes(data[usable:])
            if usable:
                numbers = torch.frombuffer(data, dtype=getattr(torch, TORCH[piece.dtype]), count=usable // width)
                yield content(numbers.to(getattr(torch, dtype)))

    return Piece(piece.name, SAFETENSORS[dtype], piece.shape, chunks)


# Of a number format: the unsigned integer of its width, all its bits but the sign, and the bits of infinity. What is
# above these is not a number (IEEE 754, 3.4; bfloat16 alike).
_NAN = {
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000),
    "F64": ("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


def without_nan(piece: Piece, what: str) -> Piece:
    """The piece, whose bytes are looked through on their way. Reading it raises SourceError where it holds NaN."""
    if piece.dtype not in _NAN:
        return piece
    kind, but_the_sign, infinity = _NAN[piece.dtype]

    def chunks() -> Iterator[bytes | memoryview]:
        import numpy as np

        left = b""
        for chunk in piece.chunks():
            data = left + bytes(chunk) if left else chunk
            usable = len(data) - len(data) % np.dtype(kind).itemsize
            numbers = np.frombuffer(data, dtype=kind, count=usable // np.dtype(kind).itemsize)
            if numbers.size and (numbers & numbers.dtype.type(but_the_sign)).max() > infinity:
                raise SourceError(
                    f"{what}: {piece.name} holds NaN, and so would every answer that uses it.",
                    "Take a checkpoint from before the training failed, or download this one again.",
                )
            left = bytes(data[usable:])
            yield chunk

    return replace(piece, chunks=chunks)


def int8(piece: Piece, transposed: bool, divisor: Any | None = None) -> tuple[Piece, ...]:
    """The layer's weight as int8, a row for each output, and the float32 scale of each row; and where the inputs are to
    be divided by something (see ``mme.snapshot.smoothing``), what they are to be multiplied with."""
    rows, columns = piece.shape[::-1] if transposed else piece.shape

    def numbers() -> Iterator[memoryview]:
        for whole_numbers, _ in _rows_to_int8(piece, transposed, divisor):
            yield content(whole_numbers)

    def scales() -> Iterator[memoryview]:
        for _, scale in _rows_to_int8(piece, transposed, divisor):
            yield content(scale)

    made = (Piece(piece.name, "I8", (rows, columns), numbers), Piece(piece.name + SCALES, "F32", (rows,), scales))
    if divisor is None:
        return made
    factors = divisor.new_ones(divisor.shape) / divisor
    return (*made, Piece(piece.name + INPUT_SCALES, "F32", (columns,), lambda: [content(factors)]))


def _rows_to_int8(piece: Piece, transposed: bool, divisor: Any | None) -> Iterator[tuple[Any, Any]]:
    """Some rows at a time. As rows_to_int8 of handler_int8.py: the same bits on every processor, since every step is
    one operation that IEEE 754 defines to the last bit."""
    import torch

    weight = read_tensor(piece).T if transposed else read_tensor(piece)
    step = max(1, ROWS_AT_ONCE // max(1, weight.shape[1]))
    for first in range(0, len(weight), step):
        rows = weight[first : first + step].float()
        rows = rows if divisor is None else rows * divisor
        peaks = rows.abs().amax(dim=1)
        scale = torch.div(peaks, torch.full_like(peaks, LARGEST)).clamp_(min=SMALLEST)
        yield torch.div(rows, scale[:, None]).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scale
