"""Encoders as graphs for ONNX Runtime: BERT and those built like it, DistilBERT, MPNet, ALBERT, NomicBERT, ModernBERT.

All tokens of all texts stand in one long row: the linear layers, which are nearly all of the work, see real tokens
only. For attention alone they are spread out, a row for each text, and gathered again. That is exact: a place that
holds no token has no weight in any sum.

What a graph asks for (its inputs) depends on the model; `engine.py` makes them:

- `ids`, `types`, `positions`: whole numbers, one for each token;
- `spread` (texts, longest): which token stands at each place; `lengths` (texts): how many of them are real;
  `places` (tokens): where in the spread-out texts each token stands;
- `firsts` (texts): the first token of each, and `averages` (texts, tokens), which a head takes;
- `distances` (longest, longest): for each two places the bucket of their distance, which MPNet has a number for;
- `cosines`, `sines` (longest, half a head) of the rotation by which ModernBERT and NomicBERT mark positions, and
  `window` (1, 1, longest, longest): what ModernBERT adds to attention so that most of its layers see near tokens only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine_heads
import numpy as np
from engine_graph import FLOAT, INT32, INT64, MICROSOFT, Graph, Stored, Unsupported

GELU = {"gelu": "none", "gelu_python": "none"}
GELU |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), "tanh")
MASKED = -1e30  # added to what must have no weight in a softmax: e to this power is 0


@dataclass(frozen=True)
class Rotation:
    """How positions are marked by a rotation: `theta` is its base, `size` the numbers of a head."""

    theta: float
    size: int


@dataclass(frozen=True)
class Encoder:
    """A graph and what its inputs are made of."""

    graph: bytes
    structure: bytes  # all of the graph but the weights' values
    int8: bool  # whether linear layers compute in int8
    width: int  # numbers of a token's vector, or of a text where there is a head
    vocabulary: int
    inputs: frozenset[str]
    first_position: int = 0
    not_counted: int | None = None  # a token that has no position of its own
    buckets: int = 0  # of distances
    rotations: tuple[Rotation, ...] = ()  # the inputs cosines0, sines0, cosines1, ...
    window: int = 0  # how far a token sees in most layers
    head: bool = False  # whether it answers a row for each text, of a classifier
    packed_bytes: int = 0  # what a copy of the linear layers' weights takes, in the order that suits the processor


def encoder(config: Any, tensors: dict[str, Stored], folder: Path, head: bool = False) -> Encoder:
    """The graph of the model with this configuration (transformers') and these weights, whose files lie in `folder`;
    with the `head` that classifies texts, or else up to the last hidden states. Raises Unsupported."""
    kind = getattr(config, "model_type", "")
    if kind not in BUILDERS:
        raise Unsupported(f"no graph is known for {kind or 'a model without model_type'}")
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise Unsupported("it is a decoder")
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        raise Unsupported(f"its positions are {config.position_embedding_type}")
    try:
        return BUILDERS[kind](_Builder(config, tensors, folder, head))
    except (AttributeError, KeyError, TypeError) as error:  # a version of transformers that describes it otherwise
        raise Unsupported(f"its configuration is not as expected ({error!r})") from None


class _Builder:
    """The pieces that encoders are made of. Values (names) of tokens are (tokens, width) unless said otherwise."""

    def __init__(self, config: Any, tensors: dict[str, Stored], folder: Path, head: bool) -> None:
        self.config = config
        self._head = head
        self.graph = Graph()
        self.op = self.graph.op
        self._tensors = tensors
        self._folder = folder
        self._zeros = ""
        self._in_int8: dict[tuple[str, bytes], tuple[str, str]] = {}
        self._prefix = ""
        self._inputs: set[str] = set()
        self._constants: dict[tuple[Any, str, bool], str] = {}
        self._dense: list[str] = []  # the weights of linear layers

    # -- values -----------------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        return self._stored(name) is not None

    def look_for(self, name: str, prefixes: tuple[str, ...]) -> None:
        """Which prefix the names have: that of a model with a head, or none."""
        for prefix in ("", *prefixes):
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

    def _constant(self, value: tuple[Any, ...], dtype: str, scalar: bool = False) -> str:
        key = (value, dtype, scalar)
        if key not in self._constants:
            self._constants[key] = self.graph.constant(value[0] if scalar else list(value), dtype)
        return self._constants[key]

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
        if where.kind == "I8":
            return self._int8_dense(x, stored, where, out), self.weight(f"{name}.bias", out) if bias else ""
        inputs = [x, self.weight(f"{name}.weight", out, size)]
        self._dense.append(stored)
        if bias:
            inputs.append(self.weight(f"{name}.bias", out))
        return self.op("Gemm", *inputs, transB=1), ""

    def _int8_dense(self, x: str, stored: str, where: Stored, out: int) -> str:
        """As handler_int8.py computes it: whole numbers, with a scale for each token's values and one for each output's
        weights."""
        size = where.shape[-1]
        values, own_scale = self._int8_of(x, self._input_scales(stored, size))
        weights = self.graph.held(f"{stored} as columns", lambda: self._int8_weight(where, size, out))
        scales = self.graph.held(f"{stored} scales", lambda: self._numbers(f"{stored}_scale", out))
        return self._int8_product(values, own_scale, weights, scales)

    def _int8_product(self, values: str, own_scale: str, weights: str, scales: str) -> str:
        """Without a bias, which the operation would multiply with each token's scale, too."""
        zero = self._constant((128,), "uint8", scalar=True)
        return self.op("MatMulIntegerToFloat", values, weights, own_scale, scales, zero, domain=MICROSOFT)

    def int8_together(self, x: str, names: list[str], out: int) -> str:
        """(tokens, names times out): what several layers of int8 weights answer to the same, biases added. An empty
        name where they do not compute alike."""
        tensors = [self._where(f"{name}.weight") for name in names]
        kinds = {where.kind for _, where in tensors}
        shapes = {where.shape for _, where in tensors}
        if kinds != {"I8"} or len(shapes) != 1 or not all(self.has(f"{name}.bias") for name in names):
            return ""
        size = tensors[0][1].shape[-1]
        input_scales = {self._input_scales(stored, size) for stored, _ in tensors}
        if len(input_scales) != 1:
            return ""
        values, own_scale = self._int8_of(x, input_scales.pop())
        at = tensors[0][0]
        weights = self.graph.held(
            f"{at} and beside it", lambda: np.concatenate([self._int8_weight(it, size, out) for _, it in tensors], 1)
        )
        scales = self.graph.held(
            f"{at} scales and beside", lambda: np.concatenate([self._numbers(f"{it}_scale", out) for it, _ in tensors])
        )
        biases = [self._stored(f"{name}.bias") or "" for name in names]
        bias = self.graph.held(
            f"{at} biases", lambda: np.concatenate([self._numbers(stored, out) for stored in biases])
        )
        return self.op("Add", self._int8_product(values, own_scale, weights, scales), bias)

    def _int8_of(self, x: str, input_scales: bytes) -> tuple[str, str]:
        """Values as whole numbers from 1 to 255, and what each token's are to be multiplied with."""
        if (x, input_scales) not in self._in_int8:
            scaled = x
            if input_scales:
                factors = np.frombuffer(input_scales, np.float32)
                scaled = self.op("Mul", x, self.graph.held(f"{x} input scale {len(self._in_int8)}", lambda: factors))
            largest = self.op("ReduceMax", self.op("Abs", scaled), self.whole(1), keepdims=0)
            # Of a token whose values are all 0 the step is 0, and so is what its whole numbers are multiplied with.
            step = self.op("Mul", largest, self._constant((1 / 127,), "float32", scalar=True))
            if not self._zeros:  # 128 for every token
                zero = self._constant((128,), "uint8", scalar=True)
                self._zeros = self.op("Expand", zero, self.op("Shape", self.given("ids")))
            values = self.op("QuantizeLinear", scaled, step, self._zeros, axis=0)
            self._in_int8[x, input_scales] = values, self.op("Unsqueeze", step, self.whole(1))
        return self._in_int8[x, input_scales]

    def _int8_weight(self, where: Stored, size: int, out: int) -> np.ndarray:
        """A column for each output."""
        if where.shape != (out, size):
            raise Unsupported(f"a layer of {out} outputs has the shape {where.shape}")
        weight = np.frombuffer(self._bytes(where, size * out), np.int8).reshape(out, size)
        if np.abs(weight.astype(np.int16)).max(initial=0) > 63:
            raise Unsupported("its int8 weights have eight bits, of an archive from before they had seven")
        return weight.T

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
        if name == "relu":
            return self.op("Relu", x)
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
        self, parts: tuple[str, ...], heads: int, width: int, bias: str = "", rotation: int | None = None
    ) -> str:
        if width % heads:
            raise Unsupported(f"{width} numbers do not divide into {heads} heads")
        queries, keys, values = parts
        if rotation is not None:
            queries, keys = (self._rotated(part, heads, rotation) for part in (queries, keys))
        lengths = self.given("lengths", INT32, ("texts",))
        inputs = [queries, keys, values, "", lengths] + ([bias] if bias else [])
        attended = self.op("MultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=heads, mask_filter_value=MASKED)
        rows = self.op("Reshape", attended, self.whole(-1, width))
        return self.op("Gather", rows, self.given("places"))

    def _rotated(self, x: str, heads: int, number: int) -> str:
        tables = [self.given(f"{part}{number}", FLOAT, ("longest", "half")) for part in ("cosines", "sines")]
        first = self.whole(0)  # the position of each text's first place
        return self.op("RotaryEmbedding", x, first, *tables, domain=MICROSOFT, num_heads=heads)

    def finished(self, x: str, width: int, vocabulary: int, **facts: Any) -> Encoder:
        if self._head:
            labels = int(self.config.num_labels)
            x, width = engine_heads.classified(self, x, width, labels), labels
        self.graph.output(x, "hidden", FLOAT, ["texts" if self._head else "tokens", width])
        graph, int8 = self.graph, bool(self._in_int8)
        facts |= {"packed_bytes": self._packed_bytes(), "head": self._head}
        return Encoder(graph.serialized(), graph.structure(), int8, width, vocabulary, frozenset(self._inputs), **facts)

    def _packed_bytes(self) -> int:
        """0 where layers share weights, as ALBERT's do: each would have a copy of its own."""
        if len(set(self._dense)) < len(self._dense):
            return 0
        return sum(self._tensors[name].length for name in self._dense)


# --- The families ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """Where the parts of a BERT-like block lie below it."""

    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    norm: str


BERT = _Names(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
MPNET = _Names(
    "attention.attn.q",
    "attention.attn.k",
    "attention.attn.v",
    "attention.attn.o",
    "attention.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
DISTILBERT = _Names(
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
ALBERT = _Names(
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.dense",
    "attention.LayerNorm",
    "ffn",
    "ffn_output",
    "full_layer_layer_norm",
)


def _block(
    build: _Builder,
    x: str,
    at: str,
    names: _Names,
    heads: int,
    width: int,
    inner: int,
    act: Any,
    eps: float,
    bias: str = "",
) -> str:
    """A block of BERT's: attention, add, norm, two linear layers, add, norm."""
    layers = [at + name for name in (names.query, names.key, names.value)]
    joined = build.int8_together(x, layers, width)
    if joined:
        attended = build.attention_of_spread(build.graph.split(build.spread(joined), 3), heads, width, bias)
    else:
        query, key, value = (build.dense(x, name, width, width) for name in layers)
        attended = build.attention(query, key, value, heads, width, bias)
    x = build.added_norm(
        build.nearly_dense(attended, at + names.out, width, width), x, at + names.attention_norm, width, eps
    )
    inside = build.activated(build.nearly_dense(x, at + names.up, width, inner), act)
    return build.added_norm(build.nearly_dense(inside, at + names.down, inner, width), x, at + names.norm, width, eps)


def _bert_embeddings(build: _Builder, size: int, eps: float, types: bool) -> str:
    x = build.look_up("embeddings.word_embeddings.weight", size, build.given("ids"))
    x = build.op("Add", x, build.look_up("embeddings.position_embeddings.weight", size, build.given("positions")))
    if types:
        x = build.op("Add", x, build.look_up("embeddings.token_type_embeddings.weight", size, build.given("types")))
    return build.norm(x, "embeddings.LayerNorm", size, eps)


def _bert(build: _Builder) -> Encoder:
    """BERT, ELECTRA, and RoBERTa's family, which number positions from the one after the padding token's."""
    config = build.config
    kind = config.model_type
    build.look_for("embeddings.word_embeddings.weight", (f"{kind.replace('xlm-', '')}.", "bert.", "roberta.", "model."))
    width, eps = config.hidden_size, config.layer_norm_eps
    size = getattr(config, "embedding_size", width) if kind == "electra" else width
    x = _bert_embeddings(build, size, eps, types=True)
    if size != width:
        x = build.dense(x, "embeddings_project", size, width)
    for layer in range(config.num_hidden_layers):
        at = f"encoder.layer.{layer}."
        heads, inner = config.num_attention_heads, config.intermediate_size
        x = _block(build, x, at, BERT, heads, width, inner, config.hidden_act, eps)
    padding = config.pad_token_id if kind in ("roberta", "xlm-roberta", "camembert") else None
    first = 0 if padding is None else padding + 1
    return build.finished(x, width, config.vocab_size, first_position=first, not_counted=padding)


def _distilbert(build: _Builder) -> Encoder:
    config = build.config
    build.look_for("embeddings.word_embeddings.weight", ("distilbert.",))
    width, eps = config.dim, 1e-12
    x = _bert_embeddings(build, width, eps, types=False)
    for layer in range(config.n_layers):
        at = f"transformer.layer.{layer}."
        x = _block(build, x, at, DISTILBERT, config.n_heads, width, config.hidden_dim, config.activation, eps)
    return build.finished(x, width, config.vocab_size)


def _mpnet(build: _Builder) -> Encoder:
    """Attention has a number besides for each distance between two tokens, the same in all layers."""
    config = build.config
    build.look_for("embeddings.word_embeddings.weight", ("mpnet.",))
    width, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
    table = build.weight("encoder.relative_attention_bias.weight", config.relative_attention_num_buckets, heads)
    distances = build.given("distances", INT64, ("longest", "longest"))
    bias = build.op("Transpose", build.op("Gather", table, distances), perm=[2, 0, 1])
    bias = build.op("Unsqueeze", bias, build.whole(0))
    x = _bert_embeddings(build, width, eps, types=False)
    for layer in range(config.num_hidden_layers):
        at = f"encoder.layer.{layer}."
        x = _block(build, x, at, MPNET, heads, width, config.intermediate_size, config.hidden_act, eps, bias)
    # transformers has these two as numbers, whatever the configuration says.
    return build.finished(x, width, config.vocab_size, first_position=2, not_counted=1, buckets=32)


def _albert(build: _Builder) -> Encoder:
    """Its layers share their weights, in groups."""
    config = build.config
    build.look_for("embeddings.word_embeddings.weight", ("albert.",))
    width, size, eps = config.hidden_size, config.embedding_size, config.layer_norm_eps
    x = _bert_embeddings(build, size, eps, types=True)
    x = build.dense(x, "encoder.embedding_hidden_mapping_in", size, width)
    for layer in range(config.num_hidden_layers):
        group = int(layer / (config.num_hidden_layers / config.num_hidden_groups))
        for inner in range(config.inner_group_num):
            at = f"encoder.albert_layer_groups.{group}.albert_layers.{inner}."
            heads = config.num_attention_heads
            x = _block(build, x, at, ALBERT, heads, width, config.intermediate_size, config.hidden_act, eps)
    return build.finished(x, width, config.vocab_size)


def _nomic_bert(build: _Builder) -> Encoder:
    """BERT with rotations for positions and a gate in each block. Its files keep the names of its authors' own code."""
    config = build.config
    build.look_for("embeddings.word_embeddings.weight", ("nomic_bert.", "model."))
    width, heads = config.hidden_size, config.num_attention_heads
    inner, eps = config.intermediate_size, config.layer_norm_eps
    rotation = _rotation(config.rope_parameters, config)
    if rotation.size * heads != width:
        raise Unsupported("its heads are not parts of its width")
    x = build.look_up("embeddings.word_embeddings.weight", width, build.given("ids"))
    x = build.op("Add", x, build.look_up("embeddings.token_type_embeddings.weight", width, build.given("types")))
    x = build.norm(x, "emb_ln", width, eps)
    for layer in range(config.num_hidden_layers):
        at = f"encoder.layers.{layer}."
        joined = build.dense(x, f"{at}attn.Wqkv", width, 3 * width, bias=False)
        query, key, value = build.graph.split(joined, 3)
        attended = build.attention(query, key, value, heads, width, rotation=0)
        x = build.added_norm(
            build.nearly_dense(attended, f"{at}attn.out_proj", width, width, False), x, f"{at}norm1", width, eps
        )
        up, gate = (build.dense(x, f"{at}mlp.{part}", width, inner, bias=False) for part in ("fc11", "fc12"))
        inside = build.op("Mul", build.activation(gate, config.hidden_act), up)
        x = build.added_norm(
            build.nearly_dense(inside, f"{at}mlp.fc2", inner, width, False), x, f"{at}norm2", width, eps
        )
    return build.finished(x, width, config.vocab_size, rotations=(rotation,))


def _modernbert(build: _Builder) -> Encoder:
    """Norms come first, positions are rotations, two layers of three see near tokens: https://arxiv.org/abs/2412.13663"""
    config = build.config
    build.look_for("embeddings.tok_embeddings.weight", ("model.",))
    width, heads, inner, eps = (
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.norm_eps,
    )
    kinds = ("full_attention", "sliding_attention")
    rotations = tuple(_rotation(config.rope_parameters[kind], config) for kind in kinds)
    x = build.look_up("embeddings.tok_embeddings.weight", width, build.given("ids"))
    x = build.norm(x, "embeddings.norm", width, eps)
    for layer in range(config.num_hidden_layers):
        at = f"layers.{layer}."
        near = kinds.index(config.layer_types[layer])
        start = build.norm(x, f"{at}attn_norm", width, eps) if layer else x
        joined = build.dense(start, f"{at}attn.Wqkv", width, 3 * width, config.attention_bias)
        query, key, value = build.graph.split(joined, 3)
        bias = build.given("window", FLOAT, (1, 1, "longest", "longest")) if near else ""
        attended = build.attention(query, key, value, heads, width, bias, rotation=near)
        x = build.op("Add", x, build.dense(attended, f"{at}attn.Wo", width, width, config.attention_bias))
        inside = build.dense(
            build.norm(x, f"{at}mlp_norm", width, eps), f"{at}mlp.Wi", width, 2 * inner, config.mlp_bias
        )
        first, gate = build.graph.split(inside, 2)
        inside = build.op("Mul", build.activation(first, config.hidden_activation), gate)
        x = build.op("Add", x, build.dense(inside, f"{at}mlp.Wo", inner, width, config.mlp_bias))
    x = build.norm(x, "final_norm", width, eps)
    return build.finished(x, width, config.vocab_size, rotations=rotations, window=config.local_attention // 2)


def _rotation(parameters: dict[str, Any], config: Any) -> Rotation:
    if parameters.get("rope_type", "default") != "default" or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise Unsupported(f"its rotation is {parameters.get('rope_type')}")
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Rotation(float(parameters["rope_theta"]), size)


BUILDERS: dict[str, Callable[[_Builder], Encoder]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "camembert": _bert,
    "electra": _bert,
    "distilbert": _distilbert,
    "mpnet": _mpnet,
    "albert": _albert,
    "nomic_bert": _nomic_bert,
    "modernbert": _modernbert,
}


# --- What the inputs are ---------------------------------------------------------------------------------------------


def inputs(encoder: Encoder, rows: list[list[int]], types: list[list[int]] | None = None) -> dict[str, np.ndarray]:
    """The inputs of the graph for these texts (their tokens; `types`: their token_type_ids, else all 0)."""
    lengths = np.fromiter(map(len, rows), np.int32, len(rows))
    longest, tokens = int(lengths.max()), int(lengths.sum())
    ids = np.fromiter((token for row in rows for token in row), np.int64, tokens)
    starts = np.cumsum(lengths) - lengths
    places = np.arange(tokens) - np.repeat(starts, lengths)  # of each token in its text
    rank = np.arange(longest)
    made: dict[str, np.ndarray] = {"ids": ids, "lengths": lengths}
    if tokens == len(rows) * longest:  # nothing is spread out
        made["places"] = np.arange(tokens)
        made["spread"] = made["places"].reshape(len(rows), longest)
    else:
        real = rank < lengths[:, None]
        made["places"] = np.flatnonzero(real)
        made["spread"] = np.where(real, starts[:, None] + rank, 0)
    if "firsts" in encoder.inputs:
        made["firsts"] = starts.astype(np.int64)
    if "averages" in encoder.inputs:
        text = np.repeat(np.arange(len(rows)), lengths)
        made["averages"] = np.zeros((len(rows), tokens), np.float32)
        made["averages"][text, np.arange(tokens)] = (np.float32(1) / lengths.astype(np.float32))[text]
    if "positions" in encoder.inputs:
        made["positions"] = places + encoder.first_position
        if encoder.not_counted is not None and (ids == encoder.not_counted).any():
            made["positions"] = _counted(ids, starts, lengths, encoder)
    if "types" in encoder.inputs:
        flat = (kind for row in types for kind in row) if types is not None else None
        made["types"] = np.zeros(tokens, np.int64) if flat is None else np.fromiter(flat, np.int64, tokens)
    if "distances" in encoder.inputs:
        made["distances"] = _buckets(rank[None, :] - rank[:, None], encoder.buckets)
    for number, rotation in enumerate(encoder.rotations):
        exponents = np.arange(0, rotation.size, 2, dtype=np.float32) / np.float32(rotation.size)
        frequencies = np.float32(1) / np.float32(rotation.theta) ** exponents
        angles = rank.astype(np.float32)[:, None] * frequencies
        made[f"cosines{number}"], made[f"sines{number}"] = np.cos(angles), np.sin(angles)
    if "window" in encoder.inputs:
        near = np.abs(rank[None, :] - rank[:, None]) <= encoder.window
        made["window"] = np.where(near, np.float32(0), np.float32(MASKED))[None, None]
    return made


def _counted(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Positions where a token that is not counted stands among the others: it has the one before the first."""
    counted = (ids != encoder.not_counted).astype(np.int64)
    before = np.cumsum(counted)
    offsets = np.repeat(before[starts] - counted[starts], lengths)
    return (before - offsets) * counted + encoder.first_position - 1


def _buckets(distances: np.ndarray, buckets: int) -> np.ndarray:
    """MPNet's (and T5's) buckets of distances: near ones have their own, far ones share one by their logarithm, from
    both sides (https://arxiv.org/abs/1910.10683)."""
    half = buckets // 2
    exact = half // 2
    apart = np.abs(distances)
    far = np.log(np.maximum(apart, 1).astype(np.float32) / np.float32(exact)) / np.log(np.float32(128 / exact))
    coarse = np.minimum(exact + (far * (half - exact)).astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(apart < exact, apart, coarse)
