"""The heads of encoders that classify texts, or pairs of them, as parts of the graph: what transformers'
`...ForSequenceClassification` computes after the body. One row of numbers for each text."""

from collections.abc import Callable
from typing import Any

from engine_graph import FLOAT, Unsupported


def classified(build: Any, x: str, width: int, labels: int) -> str:
    """(texts, labels) from the last hidden states (tokens, width). `build` is that of engine_builder.py."""
    kind = build.config.model_type
    if kind not in HEADS:
        raise Unsupported(f"no graph is known for the head of {kind}")
    pooled: str = HEADS[kind](build, x, width)
    return str(build.dense(pooled, OUTPUTS.get(kind, "classifier"), width, labels))


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
    inside = build.dense(pooled, "head.dense", width, width, config.classifier_bias)
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
OUTPUTS = dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet", "electra"), "classifier.out_proj")
