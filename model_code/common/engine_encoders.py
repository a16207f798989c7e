"""Encoders as graphs for ONNX Runtime: BERT and those built like it, DistilBERT, MPNet, ALBERT, NomicBERT, ModernBERT,
and DeBERTa (`engine_deberta.py`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_deberta
import engine_heads
from engine_builder import BERT, NO_ADAPTER, Adapter, Builder, Encoder, Names, Rotation
from engine_graph import FLOAT, INT64, Stored, Unsupported


def encoder(
    config: Any,
    tensors: dict[str, Stored],
    folder: Path,
    head: str = engine_heads.NONE,
    int8: bool = False,
    adapter: Adapter = NO_ADAPTER,
) -> Encoder:
    """The graph of the model with this configuration (transformers') and these weights, whose files lie in `folder`;
    with this `head` (engine_heads.py). With `int8`, linear layers compute in
    int8 also where their weights are float32; what the `adapter` adds is float32. Raises Unsupported."""
    kind = getattr(config, "model_type", "")
    if kind not in BUILDERS:
        raise Unsupported(f"no graph is known for {kind or 'a model without model_type'}")
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise Unsupported("it is a decoder")
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        raise Unsupported(f"its positions are {config.position_embedding_type}")
    try:
        return BUILDERS[kind](Builder(config, tensors, folder, head, int8, adapter))
    except (AttributeError, KeyError, TypeError) as error:  # a version of transformers that describes it otherwise
        raise Unsupported(f"its configuration is not as expected ({error!r})") from None


MPNET = Names(
    "attention.attn.q",
    "attention.attn.k",
    "attention.attn.v",
    "attention.attn.o",
    "attention.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
DISTILBERT = Names(
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
ALBERT = Names(
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
    build: Builder,
    x: str,
    at: str,
    names: Names,
    heads: int,
    width: int,
    inner: int,
    act: Any,
    eps: float,
    bias: str = "",
) -> str:
    layers = [at + name for name in (names.query, names.key, names.value)]
    joined = build.int8_together(x, layers, width)
    if joined:
        attended = build.attention_of_spread(build.graph.split(build.spread(joined), 3), heads, width, bias)
    else:
        query, key, value = (build.dense(x, name, width, width) for name in layers)
        attended = build.attention(query, key, value, heads, width, bias)
    return build.rest_of_block(attended, x, at, names, width, inner, act, eps)


def _bert_embeddings(build: Builder, size: int, eps: float, types: bool) -> str:
    x = build.look_up("embeddings.word_embeddings.weight", size, build.given("ids"))
    x = build.op("Add", x, build.look_up("embeddings.position_embeddings.weight", size, build.given("positions")))
    if types:
        x = build.op("Add", x, build.look_up("embeddings.token_type_embeddings.weight", size, build.given("types")))
    return build.norm(x, "embeddings.LayerNorm", size, eps)


def _bert(build: Builder) -> Encoder:
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


def _distilbert(build: Builder) -> Encoder:
    config = build.config
    build.look_for("embeddings.word_embeddings.weight", ("distilbert.",))
    width, eps = config.dim, 1e-12
    x = _bert_embeddings(build, width, eps, types=False)
    for layer in range(config.n_layers):
        at = f"transformer.layer.{layer}."
        x = _block(build, x, at, DISTILBERT, config.n_heads, width, config.hidden_dim, config.activation, eps)
    return build.finished(x, width, config.vocab_size)


def _mpnet(build: Builder) -> Encoder:
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


def _albert(build: Builder) -> Encoder:
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


def _nomic_bert(build: Builder) -> Encoder:
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


def _modernbert(build: Builder) -> Encoder:
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


BUILDERS: dict[str, Callable[[Builder], Encoder]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "camembert": _bert,
    "electra": _bert,
    "distilbert": _distilbert,
    "mpnet": _mpnet,
    "albert": _albert,
    "deberta": engine_deberta.deberta,
    "deberta-v2": engine_deberta.deberta,
    "nomic_bert": _nomic_bert,
    "modernbert": _modernbert,
}
