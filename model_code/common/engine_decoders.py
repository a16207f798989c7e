"""Decoders as graphs for ONNX Runtime: GPT-2 and those that are described as it is. One pass reads the tokens that are
new, for all rows, with the keys and values of those before, and answers the last column's logits.

The inputs, which `inputs` makes:

- `ids`, `positions` (rows, columns): whole numbers;
- `bias` (rows, 1, columns, total): what is added to attention, so that no token sees padding or what comes after it;
- `keys0`, `values0`, ... (rows, heads, before, size) of each layer. The outputs `logits` (rows, vocabulary) and the
  longer `keys0`, ... come in this order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from engine_builder import GELU, MASKED, NO_ADAPTER, Adapter
from engine_graph import FLOAT, INT64, MICROSOFT, Graph, Stored, Unsupported


@dataclass(frozen=True)
class Decoder:
    """A graph and what its inputs are made of."""

    graph: bytes
    structure: bytes  # all of the graph but the weights' values
    layers: int
    heads: int
    size: int  # numbers of a head
    vocabulary: int
    packed_bytes: int  # what a copy of the linear layers' weights takes, in the order that suits the processor
    int8: bool = False


def decoder(config: Any, tensors: dict[str, Stored], adapter: Adapter = NO_ADAPTER) -> Decoder:
    """The graph of the model with this configuration (transformers') and these weights, with the `adapter` of linear
    layers. Raises Unsupported."""
    if getattr(config, "model_type", "") != "gpt2":
        raise Unsupported(f"no graph is known for {getattr(config, 'model_type', '') or 'a model without model_type'}")
    try:
        return _gpt2(config, tensors, adapter)
    except (AttributeError, KeyError, TypeError) as error:  # a version of transformers that describes it otherwise
        raise Unsupported(f"its configuration is not as expected ({error!r})") from None


def _gpt2(config: Any, tensors: dict[str, Stored], adapter: Adapter) -> Decoder:
    """https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf"""
    if config.add_cross_attention or config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        raise Unsupported("its attention is of another kind")
    if config.activation_function not in GELU:
        raise Unsupported(f"its activation is {config.activation_function}")
    prefix = "" if "wte.weight" in tensors else "transformer."
    width, heads, inner = config.n_embd, config.n_head, config.n_inner or 4 * config.n_embd
    graph, eps, packed = Graph(), float(config.layer_norm_epsilon), 0
    adapted: set[str] = set()

    def weight(name: str, *shape: int) -> str:
        where = tensors.get(prefix + name)
        if where is None or where.kind != "F32" or where.shape != shape or where.length != 4 * int(np.prod(shape)):
            raise Unsupported(f"its weights have no {prefix}{name} of {shape} float32 numbers")
        return graph.stored(prefix + name, where)

    def norm(x: str, name: str) -> str:
        inputs = (x, weight(f"{name}.weight", width), weight(f"{name}.bias", width))
        return graph.op("LayerNormalization", *inputs, epsilon=eps, axis=-1)

    def dense(x: str, name: str, size: int, out: int) -> str:
        nonlocal packed
        packed += 4 * size * out
        product = graph.op("MatMul", x, weight(f"{name}.weight", size, out))
        change = next((given for given in (name, f"transformer.{name}") if given in adapter), None)
        if change is not None:
            adapted.add(change)
            a, b = adapter[change]
            if a.shape[1:] != (size,) or b.shape != (out, len(a)):
                raise Unsupported(f"its adapter does not fit {change}")
            names = [f"{name} adapter {side} {len(a)}" for side in "ab"]
            for held, matrix in zip(names, (a, b), strict=True):
                graph.hold(held, matrix.T)
            narrow = graph.op("MatMul", x, names[0])
            product = graph.op("Add", product, graph.op("MatMul", narrow, names[1]))
        return graph.op("Add", product, weight(f"{name}.bias", out))

    ids = graph.input("ids", INT64, ["rows", "columns"])
    positions = graph.input("positions", INT64, ["rows", "columns"])
    bias = graph.input("bias", FLOAT, ["rows", 1, "columns", "total"])
    table = weight("wte.weight", config.vocab_size, width)
    places = weight("wpe.weight", config.n_positions, width)
    x = graph.op("Add", graph.op("Gather", table, ids), graph.op("Gather", places, positions))
    past: list[int | str] = ["rows", heads, "before", width // heads]
    after: list[int | str] = ["rows", heads, "total", width // heads]
    longer: list[tuple[str, str]] = []
    for layer in range(config.n_layer):
        at = f"h.{layer}."
        joined = dense(norm(x, f"{at}ln_1"), f"{at}attn.c_attn", width, 3 * width)
        query, key, value = graph.split(joined, 3)
        keys = graph.input(f"keys{layer}", FLOAT, past)
        values = graph.input(f"values{layer}", FLOAT, past)
        outs = (f"attended{layer}", f"longer keys{layer}", f"longer values{layer}")
        inputs = (query, key, value, "", "", bias, keys, values)
        graph.ops("MultiHeadAttention", *inputs, outs=outs, domain=MICROSOFT, num_heads=heads)
        longer += [(outs[1], f"new keys{layer}"), (outs[2], f"new values{layer}")]
        x = graph.op("Add", x, dense(outs[0], f"{at}attn.c_proj", width, width))
        inside = dense(norm(x, f"{at}ln_2"), f"{at}mlp.c_fc", width, inner)
        inside = graph.op("Gelu", inside, approximate=GELU[config.activation_function])
        x = graph.op("Add", x, dense(inside, f"{at}mlp.c_proj", inner, width))
    for change in sorted(adapter.keys() - adapted):
        raise Unsupported(f"its adapter changes {change}")
    last = graph.op("Gather", x, graph.constant(-1, "int64"), axis=1)
    head = table
    if "lm_head.weight" in tensors and not config.tie_word_embeddings:
        prefix = ""
        head = weight("lm_head.weight", config.vocab_size, width)
        prefix = "" if "wte.weight" in tensors else "transformer."
    packed += 4 * width * config.vocab_size
    graph.output(graph.op("Gemm", norm(last, "ln_f"), head, transB=1), "logits", FLOAT, ["rows", config.vocab_size])
    for value, name in longer:
        graph.output(value, name, FLOAT, after)
    graph_bytes, structure = graph.serialized(), graph.structure()
    return Decoder(graph_bytes, structure, config.n_layer, heads, width // heads, config.vocab_size, packed)


def inputs(
    decoder: Decoder, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: list[np.ndarray] | None
) -> dict[str, np.ndarray]:
    """The inputs of the graph: new tokens (rows, columns) with their positions, the mask of all tokens (rows, total),
    and the keys and values of those before, layer by layer, or None where there are none."""
    rows, columns = ids.shape
    total = mask.shape[1]
    before = total - columns
    made: dict[str, np.ndarray] = {"ids": ids, "positions": positions}
    hidden = np.where(mask != 0, np.float32(0), np.float32(MASKED))[:, None, None, :]
    if columns > 1:
        later = np.arange(total)[None, :] > np.arange(before, total)[:, None]
        hidden = np.where(later[None, None], np.float32(MASKED), hidden)
    made["bias"] = np.ascontiguousarray(np.broadcast_to(hidden, (rows, 1, columns, total)))
    empty = np.zeros((rows, decoder.heads, 0, decoder.size), np.float32) if cache is None else None
    for layer in range(decoder.layers):
        for part, name in enumerate(("keys", "values")):
            held = empty if cache is None else np.ascontiguousarray(cache[2 * layer + part])
            assert held is not None
            made[f"{name}{layer}"] = held
    return made
