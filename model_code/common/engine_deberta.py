"""DeBERTa as a graph: the first version (https://arxiv.org/abs/2006.03654), the second, and the third
(https://arxiv.org/abs/2111.09543), which has the second's layers.

Attention has two numbers for each two tokens besides the product of query and key. Both depend on how far apart the two
are: the product of the query with a key of that distance ("c2p"), and of the key with a query of that distance ("p2c").
transformers makes the keys and queries of all distances that the model knows, 512 mostly, in each layer of each pass.
Here only those that occur between tokens of the pass are made.
"""

import math
from typing import Any

from engine_builder import BERT, Builder, Encoder, Relative
from engine_graph import FLOAT, INT64, Unsupported

TO_END = 2**62  # an end of a slice beyond any


def deberta(build: Builder) -> Encoder:
    config = build.config
    build.look_for("embeddings.word_embeddings.weight", ("deberta.",))
    width, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
    relative, table = None, ""
    if config.relative_attention and {"c2p", "p2c"} & set(config.pos_att_type or ()):
        relative = _relative(config)
        table = _table(build, relative, width, eps)
    x = start = _embeddings(build, width, eps)
    first = config.model_type == "deberta"
    for layer in range(config.num_hidden_layers):
        at = f"encoder.layer.{layer}."
        attended = (_attention_of_first if first else _attention)(build, x, f"{at}attention.self.", table, heads, width)
        x = build.rest_of_block(attended, x, at, BERT, width, config.intermediate_size, config.hidden_act, eps)
        if layer == 0 and not first and getattr(config, "conv_kernel_size", 0) > 0:
            x = _convolved(build, start, x, width, eps)
    return build.finished(x, width, config.vocab_size, relative=relative)


def _relative(config: Any) -> Relative:
    most = config.max_relative_positions
    if most < 1:
        most = config.max_position_embeddings
    buckets = getattr(config, "position_buckets", -1) if config.model_type == "deberta-v2" else -1
    if buckets <= 0:
        return Relative(most)
    if not 1 <= buckets // 2 < most - 1:
        raise Unsupported(f"its {buckets} buckets are for distances up to {most}")
    return Relative(buckets, buckets, most)


def _embeddings(build: Builder, width: int, eps: float) -> str:
    config = build.config
    size = getattr(config, "embedding_size", width)
    x = build.look_up("embeddings.word_embeddings.weight", size, build.given("ids"))
    if config.position_biased_input:
        x = build.op("Add", x, build.look_up("embeddings.position_embeddings.weight", size, build.given("positions")))
    if config.type_vocab_size > 0:
        x = build.op("Add", x, build.look_up("embeddings.token_type_embeddings.weight", size, build.given("types")))
    if size != width:
        x = build.dense(x, "embeddings.embed_proj", size, width, bias=False)
    return build.norm(x, "embeddings.LayerNorm", width, eps)


def _table(build: Builder, relative: Relative, width: int, eps: float) -> str:
    """The vectors of the distances that occur: (distances, width)."""
    rows = build.given("relative", INT64, ("distances",))
    table = build.op("Gather", build.weight("encoder.rel_embeddings.weight", 2 * relative.span, width), rows)
    norms = str(getattr(build.config, "norm_rel_ebd", "none")).lower().split("|")
    if build.config.model_type == "deberta-v2" and "layer_norm" in map(str.strip, norms):
        table = build.norm(table, "encoder.LayerNorm", width, eps)
    return build.of_rows(table, rows)


def _attention(build: Builder, x: str, at: str, table: str, heads: int, width: int) -> str:
    """Of the second version."""
    names = [f"{at}{part}_proj" for part in ("query", "key", "value")]
    kinds = build.config.pos_att_type or ()
    scale = 1 / math.sqrt(width / heads * (1 + ("c2p" in kinds) + ("p2c" in kinds)))
    joined = build.int8_together(x, names, width)
    if joined:
        parts = build.graph.split(build.spread(joined), 3)
    else:
        parts = tuple(build.spread(build.dense(x, name, width, width)) for name in names)
    keys = queries = ""  # of distances
    if table and getattr(build.config, "share_att_key", False):
        both = build.int8_together(table, names, width) if kinds else ""  # with the values, to share their weights
        if both:
            queries, keys, _ = build.graph.split(both, 3)
        else:
            keys = build.dense(table, names[1], width, width) if "c2p" in kinds else ""
            queries = build.dense(table, names[0], width, width) if "p2c" in kinds else ""
    elif table:
        keys = build.dense(table, f"{at}pos_key_proj", width, width) if "c2p" in kinds else ""
        queries = build.dense(table, f"{at}pos_query_proj", width, width) if "p2c" in kinds else ""
    if "c2p" not in kinds:
        keys = ""
    if "p2c" not in kinds:
        queries = ""
    bias = _bias(build, parts, keys, queries, scale, heads, width)
    return build.attention_of_spread(parts, heads, width, bias, scale=scale)


def _attention_of_first(build: Builder, x: str, at: str, table: str, heads: int, width: int) -> str:
    """Of the first version, whose queries, keys and values lie head by head, and whose keys have no bias."""
    if getattr(build.config, "talking_head", False):
        raise Unsupported("its heads are mixed (talking_head)")
    kinds = build.config.pos_att_type or ()
    size = width // heads
    scale = 1 / math.sqrt(size * (1 + len(kinds)))
    joined = build.spread(build.dense(x, f"{at}in_proj", width, 3 * width, bias=False))
    by_head = build.graph.split(build.op("Reshape", joined, build.whole(0, 0, heads, 3 * size)), 3)
    query, key, value = (build.op("Reshape", part, build.whole(0, 0, width)) for part in by_head)
    query = build.op("Add", query, build.weight(f"{at}q_bias", width))
    value = build.op("Add", value, build.weight(f"{at}v_bias", width))
    keys = queries = ""
    if table and "c2p" in kinds:
        keys = build.dense(table, f"{at}pos_proj", width, width, bias=False)
    if table and "p2c" in kinds:
        queries = build.dense(table, f"{at}pos_q_proj", width, width)
    parts = (query, key, value)
    return build.attention_of_spread(
        parts, heads, width, _bias(build, parts, keys, queries, scale, heads, width), scale=scale
    )


def _bias(build: Builder, parts: tuple[str, ...], keys: str, queries: str, scale: float, heads: int, width: int) -> str:
    """(texts, heads, longest, longest): what is added to attention for distances, whose `keys` and `queries` are
    (distances, width), or empty where the model has none."""
    sums = []
    if keys:
        from_last = build.given("longest", INT64, (1,))
        sums.append(_skewed(build, parts[0], keys, "behind", (from_last, build.whole(TO_END)), scale, heads, width))
    if queries:
        from_last = build.given("before", INT64, (1,))
        skewed = _skewed(build, parts[1], queries, "ahead", (from_last, build.whole(-1)), scale, heads, width)
        sums.append(build.op("Transpose", skewed, perm=[0, 1, 3, 2]))
    return build.op("Add", *sums) if len(sums) == 2 else "".join(sums)


def _skewed(
    build: Builder, x: str, of_distances: str, order: str, ends: tuple[str, str], scale: float, heads: int, width: int
) -> str:
    """(texts, heads, longest, longest): the product of what stands at a place of `x` (texts, longest, width) with what
    belongs to its distance to each other place.

    The products with all distances in their order are a row of twice `longest` for each place. In each row those that
    are wanted stand side by side, and begin one earlier than in the row above. So they are columns once the rows are
    taken for one shorter each, from the place where the first row's begin."""
    size = width // heads
    scaled = build.op("Mul", of_distances, build.number(scale))
    rows = build.op("Gather", scaled, build.given(order, INT64, ("steps",)))
    rows = build.op("Reshape", rows, build.whole(-1, heads, size))
    tokens = build.op("Transpose", build.op("Reshape", x, build.whole(0, 0, heads, size)), perm=[0, 2, 1, 3])
    products = build.op("MatMul", tokens, build.op("Transpose", rows, perm=[1, 2, 0]))
    flat = build.op("Reshape", products, build.whole(0, 0, -1))
    wanted = build.op("Slice", flat, *ends, build.whole(2))
    columns = build.op("Reshape", wanted, build.given("skewed", INT64, (4,)))
    return build.op("Slice", columns, build.whole(0), build.given("longest", INT64, (1,)), build.whole(3))


def _convolved(build: Builder, start: str, x: str, width: int, eps: float) -> str:
    """The norm of the first block's answer and of a convolution over what went into it."""
    config = build.config
    kernel, groups = config.conv_kernel_size, getattr(config, "conv_groups", 1)
    if kernel % 2 == 0:
        raise Unsupported(f"its convolution is over {kernel} tokens")
    real = build.given("real", FLOAT, ("texts", "longest", 1))
    rows = build.op("Transpose", build.op("Mul", build.spread(start), real), perm=[0, 2, 1])
    weights = build.weight("encoder.conv.conv.weight", width, width // groups, kernel)
    bias = build.weight("encoder.conv.conv.bias", width)
    made = build.op(
        "Conv", rows, weights, bias, kernel_shape=[kernel], pads=[kernel // 2] * 2, strides=[1], group=groups
    )
    made = build.gathered(build.op("Transpose", made, perm=[0, 2, 1]), width)
    made = build.activation(made, getattr(config, "conv_act", "tanh"))
    return build.norm(build.op("Add", x, made), "encoder.conv.LayerNorm", width, eps)
