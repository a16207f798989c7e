"""The heads of encoders as parts of the graph: what transformers' `...ForSequenceClassification`,
`...ForTokenClassification` and `...ForQuestionAnswering` compute after the body."""

from collections.abc import Callable
from typing import Any

from engine_graph import FLOAT, Unsupported

# What a graph answers: the last hidden states; or what its head makes of them.
NONE = ""  # (tokens, width)
TEXTS = "texts"  # (texts, labels)
TOKENS = "tokens"  # (tokens, labels)
WORDS = "words"  # (asked tokens, vocabulary): what stands in the place of a mask
SPANS = "spans"  # (tokens, 2): whether an answer starts there, and whether it ends there


def headed(build: Any, head: str, x: str, width: int) -> tuple[str, int]:
    """What this head makes of the last hidden states (tokens, width), and how many numbers a row has. `build` is that
    of engine_builder.py."""
    if head == WORDS:
        return _words(build, x, width)
    labels = int(build.config.num_labels)
    if head == TEXTS:
        return classified(build, x, width, labels), labels
    if head == SPANS and labels != 2:
        raise Unsupported(f"it has {labels} numbers for a token, not those of a start and an end")
    build.from_root()
    name = "qa_outputs" if head == SPANS else "classifier"
    if build.config.model_type == "modernbert":
        x, name = _modernbert_layer(build, x, width), "classifier"
    return str(build.dense(x, name, width, labels)), labels


def classified(build: Any, x: str, width: int, labels: int) -> str:
    """(texts, labels) from the last hidden states (tokens, width). `build` is that of engine_builder.py."""
    kind = build.config.model_type
    if kind not in HEADS:
        raise Unsupported(f"no graph is known for the head of {kind}")
    pooled: str = HEADS[kind](build, x, width)
    return str(build.dense(pooled, OUTPUTS.get(kind, "classifier"), width, labels))


def _words(build: Any, x: str, width: int) -> tuple[str, int]:
    """A layer, an activation, a norm, and the product with the table of words."""
    config = build.config
    if not getattr(config, "tie_word_embeddings", True):
        raise Unsupported("its words have a second table")
    name = "tok_embeddings" if config.model_type == "modernbert" else "word_embeddings"
    size = getattr(config, "embedding_size", width) if config.model_type in ("albert", "electra") else width
    vocabulary = int(config.vocab_size)
    table = build.weight(f"embeddings.{name}.weight", vocabulary, size)
    build.dense_weight(table)
    x = build.op("Gather", x, build.given("asked", shape=("asked",)))
    build.from_root()
    if config.model_type == "modernbert":
        inside, bias = _modernbert_layer(build, x, width), "decoder.bias"
    elif config.model_type in WORDS_OF:
        dense, norm, bias, activation, eps = WORDS_OF[config.model_type]
        activation, eps = activation or config.hidden_act, eps or config.layer_norm_eps
        inside = build.activation(build.dense(x, dense, width, size), activation)
        inside = build.norm(inside, norm, size, eps)
    else:
        raise Unsupported(f"no graph is known for the words of {config.model_type}")
    return str(build.op("Gemm", inside, table, build.weight(bias, vocabulary), transB=1)), vocabulary


def _first(build: Any, x: str) -> str:
    """The first token of each text."""
    return str(build.op("Gather", x, build.given("firsts", shape=("texts",))))


def _pooler(build: Any, x: str, width: int) -> str:
    """What the model's body has at its end."""
    name = "pooler" if build.config.model_type == "albert" else "pooler.dense"
    pooled = build.op("Tanh", build.dense(_first(build, x), name, width, width))
    build.from_root()
    return str(pooled)


def _own(activation: str, name: str) -> Callable[[Any, str, int], str]:
    """A layer of the head's own, and an activation."""

    def layer(build: Any, x: str, width: int) -> str:
        build.from_root()
        inside = build.dense(_first(build, x), name, width, width)
        return str(build.activation(inside, activation))

    return layer


def _deberta(build: Any, x: str, width: int) -> str:
    build.from_root()
    inside = build.dense(_first(build, x), "pooler.dense", width, width)
    return str(build.activation(inside, build.config.pooler_hidden_act))


def _modernbert(build: Any, x: str, width: int) -> str:
    config = build.config
    if config.classifier_pooling == "mean":
        pooled = build.op("MatMul", build.given("averages", FLOAT, ("texts", "tokens")), x)
    elif config.classifier_pooling == "cls":
        pooled = _first(build, x)
    else:
        raise Unsupported(f"its classifier_pooling is {config.classifier_pooling}")
    build.from_root()
    return _modernbert_layer(build, pooled, width)


def _modernbert_layer(build: Any, x: str, width: int) -> str:
    config = build.config
    inside = build.dense(x, "head.dense", width, width, config.classifier_bias)
    return str(build.norm(build.activation(inside, config.classifier_activation), "head.norm", width, config.norm_eps))


HEADS: dict[str, Callable[[Any, str, int], str]] = {
    "bert": _pooler,
    "albert": _pooler,
    "nomic_bert": _pooler,
    "roberta": _own("tanh", "classifier.dense"),
    "xlm-roberta": _own("tanh", "classifier.dense"),
    "camembert": _own("tanh", "classifier.dense"),
    "mpnet": _own("tanh", "classifier.dense"),
    "electra": _own("gelu", "classifier.dense"),
    "distilbert": _own("relu", "pre_classifier"),
    "deberta": _deberta,
    "deberta-v2": _deberta,
    "modernbert": _modernbert,
}
_BERTS = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias", "", 0.0)
_ROBERTAS = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "gelu", 0.0)
# Of heads that fill masks: the layer, the norm, the bias of words; activation and epsilon where they are no settings.
WORDS_OF: dict[str, tuple[str, str, str, str, float]] = {
    "bert": _BERTS,
    "deberta": _BERTS,
    "deberta-v2": _BERTS,
    "roberta": _ROBERTAS,
    "xlm-roberta": _ROBERTAS,
    "camembert": _ROBERTAS,
    "mpnet": _ROBERTAS,
    "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "gelu", 1e-12),
    "albert": ("predictions.dense", "predictions.LayerNorm", "predictions.bias", "", 0.0),
    "electra": (
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head.bias",
        "gelu",
        0.0,
    ),
}
OUTPUTS = dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet", "electra"), "classifier.out_proj")
