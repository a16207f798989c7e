"""An ONNX graph, written as the bytes that ONNX Runtime reads, without the `onnx` package.

The bytes are those of a protocol buffer (https://protobuf.dev/programming-guides/encoding/), of which three kinds of
field are enough: a whole number, a float32 and a run of bytes. The numbers of the fields are those of onnx.proto
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Weights are not in the graph: it names their file, and where
in it each lies, so that they are mapped into memory once for all processes, as they lie there.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FLOAT, INT8, INT32, INT64 = 1, 3, 6, 7  # TensorProto.DataType
KINDS = {"float32": FLOAT, "int8": INT8, "uint8": 2, "int32": INT32, "int64": INT64}
STORED = {"F32": FLOAT, "I8": INT8}  # as a safetensors file calls them
OPSET = 20  # of ONNX 1.15: the first with Gelu
MICROSOFT = "com.microsoft"  # operators that ONNX Runtime has beyond ONNX
MAX_HEADER = 100_000_000  # bytes of a safetensors file's header: the format's own bound


class Unsupported(Exception):
    """No graph can be had for this model; the message says why."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `offset` and `length` in bytes of the file `file`, a name in the model's folder."""

    file: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    length: int


def stored_tensors(folder: Path, name: str) -> dict[str, Stored]:
    """The tensors of a safetensors file by name. Raises Unsupported where it is none."""
    try:
        with (folder / name).open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            if size > MAX_HEADER:
                raise Unsupported(f"{name} has a header of {size} bytes")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        return {
            tensor: Stored(
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                8 + size + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for tensor, entry in header.items()
        }
    except (OSError, ValueError, struct.error, KeyError, TypeError, IndexError) as error:
        raise Unsupported(f"{name} cannot be read ({type(error).__name__})") from None


class Graph:
    """Collects operations in the order in which they are to be carried out. Values are named, as ONNX has it."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._values: dict[str, bytes] = {}
        self._own: dict[str, bytes] = {}  # weights that are part of the graph
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._count = 0

    def input(self, name: str, kind: int, shape: list[int | str]) -> str:
        """A value that is given for each run. A dimension is a size or a name."""
        self._inputs.append(_described(name, kind, shape))
        return name

    def output(self, value: str, name: str, kind: int, shape: list[int | str]) -> None:
        self.op("Identity", value, out=name)
        self._outputs.append(_described(name, kind, shape))

    def stored(self, name: str, where: Stored) -> str:
        """A tensor that stays in its file."""
        if name not in self._values:
            body = b"".join(_number(1, size) for size in where.shape) + _number(2, STORED[where.kind]) + _run(8, name)
            for key, value in (("location", where.file), ("offset", where.offset), ("length", where.length)):
                body += _run(13, _run(1, key) + _run(2, str(value)))
            self._values[name] = body + _number(14, 1)
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        """A tensor that is part of the graph."""
        array = np.ascontiguousarray(np.asarray(value, dtype))
        name = f"constant {len(self._values)}"
        body = b"".join(_number(1, size) for size in np.shape(value)) + _number(2, KINDS[str(array.dtype)])
        self._values[name] = body + _run(8, name) + _run(9, array.tobytes())
        return name

    def hold(self, name: str, value: np.ndarray) -> None:
        """A weight that is part of the graph, since its file has it in another form."""
        array = np.ascontiguousarray(value)
        body = b"".join(_number(1, size) for size in array.shape) + _number(2, KINDS[str(array.dtype)])
        self._own[name] = body + _run(8, name) + _run(9, array.tobytes())

    def holds(self, name: str) -> bool:
        return name in self._own

    def op(self, kind: str, *inputs: str, domain: str = "", out: str = "", **attributes: Any) -> str:
        """One operation with one result, whose name is returned. An input that is left out is an empty name."""
        return self.ops(kind, *inputs, outs=(out or self._fresh(),), domain=domain, **attributes)[0]

    def split(self, value: str, count: int, axis: int = -1) -> tuple[str, ...]:
        """The parts of equal size along an axis."""
        return self.ops("Split", value, outs=tuple(self._fresh() for _ in range(count)), num_outputs=count, axis=axis)

    def ops(
        self, kind: str, *inputs: str, outs: tuple[str, ...], domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        node = b"".join(_run(1, name) for name in inputs) + b"".join(_run(2, name) for name in outs) + _run(4, kind)
        node += b"".join(_run(5, _attribute(name, value)) for name, value in attributes.items())
        self._nodes.append(node + (_run(7, domain) if domain else b""))
        return outs

    def structure(self) -> bytes:
        """What says all of the graph but the weights' values."""
        parts = (*self._nodes, *self._values.values(), *map(str.encode, self._own), *self._inputs, *self._outputs)
        return b"".join(_run(1, part) for part in parts)

    def serialized(self) -> bytes:
        graph = b"".join(_run(1, node) for node in self._nodes) + _run(2, "model")
        graph += b"".join(_run(5, value) for value in (*self._values.values(), *self._own.values()))
        graph += b"".join(_run(11, value) for value in self._inputs)
        graph += b"".join(_run(12, value) for value in self._outputs)
        opsets = (("", OPSET), (MICROSOFT, 1))
        versions = b"".join(_run(8, _run(1, domain) + _number(2, version)) for domain, version in opsets)
        return _number(1, 10) + _run(7, graph) + versions  # IR version 10, of ONNX 1.16

    def _fresh(self) -> str:
        self._count += 1
        return f"t{self._count}"


# --- The wire format -------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as 64 bits in two's complement
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _run(field: int, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, float):
        return _run(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, 1)
    if isinstance(value, int):
        return _run(1, name) + _number(3, value) + _number(20, 2)
    if isinstance(value, str):
        return _run(1, name) + _run(4, value) + _number(20, 3)
    return _run(1, name) + b"".join(_number(8, item) for item in value) + _number(20, 7)


def _described(name: str, kind: int, shape: list[int | str]) -> bytes:
    sizes = b"".join(_run(1, _number(1, size) if isinstance(size, int) else _run(2, size)) for size in shape)
    return _run(1, name) + _run(2, _run(1, _number(1, kind) + _run(2, sizes)))
