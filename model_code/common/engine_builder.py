"""The pieces that graphs of encoders are made of (`engine_encoders.py`), and what a finished one is described by.

All tokens of all texts stand in one long row: the linear layers, which are nearly all of the work, see real tokens
only. For attention alone they are spread out, a row for each text, and gathered again. That is exact: a place that
holds no token has no weight in any sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import engine_heads
import numpy as np
from engine_graph import FLOAT, INT32, INT64, MICROSOFT, Graph, Stored, Unsupported

GELU = {"gelu": "none", "gelu_python": "none"}
GELU |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), "tanh")
LARGEST = 63  # of int8 weights, and the smallest scale of their rows: those of handler_int8.py
SMALLEST = 1e-30
PLAIN = {"relu": "Relu", "tanh": "Tanh"}
# What an adapter changes, by the layers' names: a row for each of its ranks, and a column for each, already scaled.
Adapter = Mapping[str, tuple[np.ndarray, np.ndarray]]
NO_ADAPTER: Adapter = MappingProxyType({})
MASKED = -1e30  # added to what must have no weight in a softmax: e to this power is 0


@dataclass(frozen=True)
class Rotation:
    """How positions are marked by a rotation: `theta` is its base, `size` the numbers of a head."""

    theta: float
    size: int


@dataclass(frozen=True)
class Relative:
    """The distances between two tokens that DeBERTa tells from each other: from -`span` to `span` - 1, a row of its
    table each. With `buckets`, the farther ones share rows by their logarithm, up to the distance `most`."""

    span: int
    buckets: int = 0
    most: int = 0

    @property
    def exact(self) -> int:
        """The farthest distance that has a row of its own."""
        return self.buckets // 2 or self.span - 1


@dataclass(frozen=True)
class Names:
    """Where the parts of a BERT-like block lie below it."""

    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    norm: str


BERT = Names(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


@dataclass(frozen=True)
class Encoder:
    """A graph and what its inputs are made of."""

    graph: bytes
    structure: bytes  # all of the graph but the weights' values
    int8: bool  # whether linear layers compute in int8
    width: int  # numbers in a row of what it answers
    vocabulary: int
    inputs: frozenset[str]
    first_position: int = 0
    not_counted: int | None = None  # a token that has no position of its own
    buckets: int = 0  # of distances
    relative: Relative | None = None
    rotations: tuple[Rotation, ...] = ()  # the inputs cosines0, sines0, cosines1, ...
    window: int = 0  # how far a token sees in most layers
    head: str = engine_heads.NONE  # what it answers
    positions: int | None = None  # how many tokens of a text it has a position for; None: any number
    packed_bytes: int = 0  # what a copy of the linear layers' weights takes, in the order that suits the processor


class Builder:
    """The pieces that encoders are made of. Values (names) of tokens are (tokens, width) unless said otherwise."""

    def __init__(
        self, config: Any, tensors: dict[str, Stored], folder: Path, head: str, int8: bool, adapter: Adapter
    ) -> None:
        """`int8`: linear layers compute in int8 also where their weights are float32."""
        self._adapter = dict(adapter)
        self._adapted: set[str] = set()
        self._used: set[str] = set()  # of the stored tensors
        self.config = config
        self._make_int8 = int8
        self._head = head
        self.graph = Graph()
        self.op = self.graph.op
        self._tensors = tensors
        self._folder = folder
        self._zeros: dict[str, str] = {}
        self._rows: dict[str, str] = {}  # of values that are not of tokens: an input with as many rows
        self._in_int8: dict[tuple[str, bytes], tuple[str, str]] = {}
        self._prefix = ""
        self._prefixes: tuple[str, ...] = ("",)  # that names may have
        self._inputs: set[str] = set()
        self._constants: dict[tuple[Any, str, bool], str] = {}
        self._dense: list[str] = []  # the weights of linear layers

    # -- values -----------------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        return self._stored(name) is not None

    def look_for(self, name: str, prefixes: tuple[str, ...]) -> None:
        """Which prefix the names have: that of a model with a head, or none."""
        self._prefixes = ("", *prefixes)
        for prefix in self._prefixes:
            if prefix + name in self._tensors:
                self._prefix = prefix
                return
        raise Unsupported(f"its weights have no {name}")

    def from_root(self) -> None:
        """What follows has names without the prefix of the body."""
        self._prefix = ""

    def weight(self, name: str, *shape: int) -> str:
        """A stored tensor of this shape; -1 stands for any size."""
        stored, where = self._where(name)
        if where.kind != "F32":
            raise Unsupported(f"its weights are {where.kind}, not float32")
        sizes = 1
        for size in where.shape:
            sizes *= size
        fits = len(where.shape) == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, where.shape, strict=True)
        )
        if not fits or where.length != 4 * sizes:
            raise Unsupported(f"{name} has the shape {where.shape}")
        return self.graph.stored(stored, where)

    def _where(self, name: str) -> tuple[str, Stored]:
        stored = self._stored(name)
        if stored is None:
            raise Unsupported(f"its weights have no {name}")
        self._used.add(stored)
        return stored, self._tensors[stored]

    def _stored(self, name: str) -> str | None:
        """What the file calls it. The norms of the oldest checkpoints, BERT's own, have a gamma and a beta."""
        layer, _, part = name.rpartition(".")
        for own in (part, {"weight": "gamma", "bias": "beta"}.get(part, part)):
            if f"{self._prefix}{layer}.{own}" in self._tensors:
                return f"{self._prefix}{layer}.{own}"
        return None

    def given(self, name: str, kind: int = INT64, shape: tuple[int | str, ...] = ("tokens",)) -> str:
        """An input of the graph."""
        if name not in self._inputs:
            self._inputs.add(name)
            self.graph.input(name, kind, list(shape))
        return name

    def whole(self, *numbers: int) -> str:
        return self._constant(numbers, "int64")

    def number(self, value: float) -> str:
        return self._constant((value,), "float32", scalar=True)

    def _constant(self, value: tuple[Any, ...], dtype: str, scalar: bool = False) -> str:
        key = (value, dtype, scalar)
        if key not in self._constants:
            self._constants[key] = self.graph.constant(value[0] if scalar else list(value), dtype)
        return self._constants[key]

    def of_rows(self, x: str, rows: str) -> str:
        """`x`, whose rows are not tokens but as many as the input `rows` has."""
        self._rows[x] = rows
        return x

    # -- layers -----------------------------------------------------------------------------------------------------

    def look_up(self, table: str, width: int, ids: str) -> str:
        return self.op("Gather", self.weight(table, -1, width), ids)

    def dense(self, x: str, name: str, size: int, out: int, bias: bool = True) -> str:
        answer, missing = self.nearly_dense(x, name, size, out, bias)
        return self.op("Add", answer, missing) if missing else answer

    def nearly_dense(self, x: str, name: str, size: int, out: int, bias: bool = True) -> tuple[str, str]:
        """A linear layer's answer and what is still to be added to it: nothing (an empty name), or its bias, which what
        comes next can mostly add in passing."""
        stored, where = self._where(f"{name}.weight")
        missing = ""
        if self._is_int8(where):
            answer = self._int8_dense(x, stored, where, out)
            missing = self.weight(f"{name}.bias", out) if bias else ""
        else:
            inputs = [x, self.weight(f"{name}.weight", out, size)]
            self._dense.append(stored)
            if bias:
                inputs.append(self.weight(f"{name}.bias", out))
            answer = self.op("Gemm", *inputs, transB=1)
        change = self._change(name)
        return (self._with_change(answer, x, stored, change, size, out) if change else answer), missing

    def dense_weight(self, stored: str) -> None:
        """Count a weight that is multiplied with as a linear layer's."""
        self._dense.append(stored)

    def _change(self, name: str) -> str:
        """The name that the adapter has for a layer; an empty one where it leaves the layer as it is."""
        return next((prefix + name for prefix in self._prefixes if prefix + name in self._adapter), "")

    def _with_change(self, answer: str, x: str, stored: str, change: str, size: int, out: int) -> str:
        """A layer's answer and the product of the adapter's two narrow matrices."""
        a, b = self._adapter[change]
        self._adapted.add(change)
        if a.shape[1:] != (size,) or b.shape != (out, len(a)):
            raise Unsupported(f"its adapter does not fit {change}")
        names = [f"{stored} adapter {side} {len(a)}" for side in "ab"]
        for name, matrix in zip(names, (a, b), strict=True):
            if not self.graph.holds(name):
                self.graph.hold(name, matrix)
        return self.op("Gemm", self.op("Gemm", x, names[0], transB=1), names[1], answer, transB=1)

    def _is_int8(self, where: Stored) -> bool:
        return where.kind == "I8" or self._make_int8

    def _int8_dense(self, x: str, stored: str, where: Stored, out: int) -> str:
        """As handler_int8.py computes it: whole numbers, with a scale for each token's values and one for each output's
        weights."""
        size = where.shape[-1]
        values, own_scale = self._int8_of(x, self._input_scales(stored, size))
        return self._int8_product(values, own_scale, *self._int8_weights([(stored, where)], size, out))

    def _int8_weights(self, tensors: list[tuple[str, Stored]], size: int, out: int) -> tuple[str, str]:
        """The weights of these layers side by side, a column for each output, and the outputs' scales."""
        name = " and ".join(stored for stored, _ in tensors)
        columns, scales = f"{name} as columns", f"{name} scales"
        if not self.graph.holds(columns):
            made = [self._int8_weight(stored, where, size, out) for stored, where in tensors]
            self.graph.hold(columns, np.concatenate([rows.T for rows, _ in made], 1))
            self.graph.hold(scales, np.concatenate([own for _, own in made]))
        return columns, scales

    def _int8_product(self, values: str, own_scale: str, weights: str, scales: str) -> str:
        """Without a bias, which the operation would multiply with each token's scale, too."""
        zero = self._constant((128,), "uint8", scalar=True)
        return self.op("MatMulIntegerToFloat", values, weights, own_scale, scales, zero, domain=MICROSOFT)

    def int8_together(self, x: str, names: list[str], out: int) -> str:
        """(rows, names times out): what several layers of int8 weights answer to the same, biases added. An empty
        name where they do not compute alike."""
        tensors = [self._where(f"{name}.weight") for name in names]
        alike = len({where.shape for _, where in tensors}) == 1 and all(self._is_int8(where) for _, where in tensors)
        if not alike or not all(self.has(f"{name}.bias") and not self._change(name) for name in names):
            return ""
        size = tensors[0][1].shape[-1]
        input_scales = {self._input_scales(stored, size) for stored, _ in tensors}
        if len(input_scales) != 1:
            return ""
        values, own_scale = self._int8_of(x, input_scales.pop())
        biases = [self._stored(f"{name}.bias") or "" for name in names]
        bias = " and ".join(biases)
        if not self.graph.holds(bias):
            self.graph.hold(bias, np.concatenate([self._numbers(stored, out) for stored in biases]))
        product = self._int8_product(values, own_scale, *self._int8_weights(tensors, size, out))
        return self.op("Add", product, bias)

    def _int8_of(self, x: str, input_scales: bytes) -> tuple[str, str]:
        """Values as whole numbers from 1 to 255, and what each token's are to be multiplied with."""
        if (x, input_scales) not in self._in_int8:
            scaled = x
            if input_scales:
                factors = f"{x} input scale {len(self._in_int8)}"
                self.graph.hold(factors, np.frombuffer(input_scales, np.float32))
                scaled = self.op("Mul", x, factors)
            largest = self.op("ReduceMax", self.op("Abs", scaled), self.whole(1), keepdims=0)
            # Of a token whose values are all 0 the step is 0, and so is what its whole numbers are multiplied with.
            step = self.op("Mul", largest, self.number(1 / 127))
            rows = self._rows.get(x, "") or self.given("ids")
            if rows not in self._zeros:  # 128 for every row
                zero = self._constant((128,), "uint8", scalar=True)
                self._zeros[rows] = self.op("Expand", zero, self.op("Shape", rows))
            values = self.op("QuantizeLinear", scaled, step, self._zeros[rows], axis=0)
            self._in_int8[x, input_scales] = values, self.op("Unsqueeze", step, self.whole(1))
        return self._in_int8[x, input_scales]

    def _int8_weight(self, stored: str, where: Stored, size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
        """A row for each output, and the rows' scales: as they are stored, or made as handler_int8.py makes them."""
        if where.shape != (out, size):
            raise Unsupported(f"a layer of {out} outputs has the shape {where.shape}")
        if where.kind == "I8":
            rows = np.frombuffer(self._bytes(where, size * out), np.int8).reshape(out, size)
            if np.abs(rows.astype(np.int16)).max(initial=0) > LARGEST:
                raise Unsupported("its int8 weights have eight bits, of an archive from before they had seven")
            return rows, self._numbers(f"{stored}_scale", out)
        if where.kind != "F32":
            raise Unsupported(f"its weights are {where.kind}, not float32")
        exact = np.frombuffer(self._bytes(where, 4 * size * out), np.float32).reshape(out, size)
        if not np.isfinite(exact).all():
            raise Unsupported(f"{stored} has numbers that are not finite")
        scales = np.maximum(np.abs(exact).max(axis=1) / np.float32(LARGEST), np.float32(SMALLEST))
        made = np.clip(np.rint(exact / scales[:, None]), -LARGEST, LARGEST)
        return made.astype(np.int8), scales

    def _input_scales(self, name: str, size: int) -> bytes:
        return self._numbers(f"{name}_input_scale", size).tobytes() if f"{name}_input_scale" in self._tensors else b""

    def _numbers(self, stored: str, size: int) -> np.ndarray:
        where = self._tensors.get(stored)
        if where is None or where.kind != "F32" or where.shape != (size,):
            raise Unsupported(f"its weights have no {stored} of {size} float32 numbers")
        return np.frombuffer(self._bytes(where, 4 * size), np.float32)

    def _bytes(self, where: Stored, size: int) -> bytes:
        if where.length != size:
            raise Unsupported(f"{where.file} is damaged")
        with (self._folder / where.file).open("rb") as file:
            file.seek(where.offset)
            data = file.read(size)
        if len(data) != size:
            raise Unsupported(f"{where.file} ends too early")
        return data

    def norm(self, x: str, name: str, width: int, eps: float) -> str:
        inputs = [x, self.weight(f"{name}.weight", width)]
        if self.has(f"{name}.bias"):
            inputs.append(self.weight(f"{name}.bias", width))
        return self.op("LayerNormalization", *inputs, epsilon=float(eps), axis=-1)

    def added_norm(self, x: tuple[str, str], residual: str, name: str, width: int, eps: float) -> str:
        """The norm of the sum of a layer's answer (of `nearly_dense`) and what went in before it. The one operation for
        both, SkipLayerNormalization, takes several times as long as these two."""
        answer, missing = x
        total = self.op("Add", answer, residual)
        return self.norm(self.op("Add", total, missing) if missing else total, name, width, eps)

    def activated(self, x: tuple[str, str], name: Any) -> str:
        """The activation of a layer's answer (of `nearly_dense`)."""
        answer, missing = x
        if missing and GELU.get(name) == "none":
            return self.op("BiasGelu", answer, missing, domain=MICROSOFT)
        return self.activation(self.op("Add", answer, missing) if missing else answer, name)

    def activation(self, x: str, name: Any) -> str:
        if name in GELU:
            return self.op("Gelu", x, approximate=GELU[name])
        if name in PLAIN:
            return self.op(PLAIN[name], x)
        if name in ("silu", "swish"):
            return self.op("Mul", x, self.op("Sigmoid", x))
        raise Unsupported(f"its activation is {name}")

    def spread(self, x: str) -> str:
        """(texts, longest, width)"""
        return self.op("Gather", x, self.given("spread", INT64, ("texts", "longest")))

    def attention(
        self, query: str, key: str, value: str, heads: int, width: int, bias: str = "", rotation: int | None = None
    ) -> str:
        """`bias` (1 or texts, 1 or heads, longest, longest) is added before the softmax; `rotation` is the number of
        that which marks positions."""
        parts = tuple(self.spread(part) for part in (query, key, value))
        return self.attention_of_spread(parts, heads, width, bias, rotation)

    def attention_of_spread(
        self,
        parts: tuple[str, ...],
        heads: int,
        width: int,
        bias: str = "",
        rotation: int | None = None,
        scale: float | None = None,
    ) -> str:
        """`scale` is what products of queries and keys are multiplied with; None: one by the root of a head's size."""
        if width % heads:
            raise Unsupported(f"{width} numbers do not divide into {heads} heads")
        queries, keys, values = parts
        if rotation is not None:
            queries, keys = (self._rotated(part, heads, rotation) for part in (queries, keys))
        lengths = self.given("lengths", INT32, ("texts",))
        inputs = [queries, keys, values, "", lengths] + ([bias] if bias else [])
        own: dict[str, float] = {} if scale is None else {"scale": scale}
        attended = self.op(
            "MultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=heads, mask_filter_value=MASKED, **own
        )
        return self.gathered(attended, width)

    def gathered(self, spread: str, width: int) -> str:
        """(tokens, width) from (texts, longest, width)."""
        rows = self.op("Reshape", spread, self.whole(-1, width))
        return self.op("Gather", rows, self.given("places"))

    def _rotated(self, x: str, heads: int, number: int) -> str:
        tables = [self.given(f"{part}{number}", FLOAT, ("longest", "half")) for part in ("cosines", "sines")]
        first = self.whole(0)  # the position of each text's first place
        return self.op("RotaryEmbedding", x, first, *tables, domain=MICROSOFT, num_heads=heads)

    def rest_of_block(
        self, attended: str, x: str, at: str, names: Names, width: int, inner: int, act: Any, eps: float
    ) -> str:
        """What follows attention in a block of BERT's: a linear layer, add, norm, two linear layers, add, norm."""
        out = self.nearly_dense(attended, at + names.out, width, width)
        x = self.added_norm(out, x, at + names.attention_norm, width, eps)
        inside = self.activated(self.nearly_dense(x, at + names.up, width, inner), act)
        return self.added_norm(self.nearly_dense(inside, at + names.down, inner, width), x, at + names.norm, width, eps)

    def finished(self, x: str, width: int, vocabulary: int, **facts: Any) -> Encoder:
        if self._head:
            x, width = engine_heads.headed(self, self._head, x, width)
        for change in sorted(self._adapter.keys() - self._adapted):
            if not self._is_beside(change):
                raise Unsupported(f"its adapter changes {change}")
        rows = {engine_heads.TEXTS: "texts", engine_heads.WORDS: "asked"}.get(self._head, "tokens")
        self.graph.output(x, "hidden", FLOAT, [rows, width])
        if "positions" in self._inputs:
            facts["positions"] = self.config.max_position_embeddings - facts.get("first_position", 0)
        graph, int8 = self.graph, bool(self._in_int8)
        facts |= {"packed_bytes": self._packed_bytes(), "head": self._head}
        return Encoder(graph.serialized(), graph.structure(), int8, width, vocabulary, frozenset(self._inputs), **facts)

    def _is_beside(self, layer: str) -> bool:
        """Whether no answer depends on this layer of the model, such as the pooler of a model whose hidden states are
        wanted."""
        bare = next(
            (layer.removeprefix(prefix) for prefix in self._prefixes if prefix and layer.startswith(prefix)), layer
        )
        stored = {f"{prefix}{bare}.weight" for prefix in self._prefixes} & self._tensors.keys()
        return bool(stored) and not stored & self._used

    def _packed_bytes(self) -> int:
        """Each use of a weight has a copy of its own. 0 where that is much more than the weights, as in ALBERT, whose
        layers share them."""
        once = sum(self._tensors[name].length for name in set(self._dense))
        copies = sum(self._tensors[name].length for name in self._dense)
        return copies if copies < 1.5 * once else 0
