"""Small encoders of every kind that the engine knows."""

from pathlib import Path
from typing import Any

import torch
import transformers

TEXTS = ["rain", "the house is quiet", "word " * 70, "rain", "nobody is at home and the gate stands open", "a b c"]
CLASSIFIER = "ForSequenceClassification"
SMALL: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
}
DISTIL = {"vocab_size": 30522, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 160}
SPECIAL = {"pad_token_id": 0, "cls_token_id": 101, "bos_token_id": 101, "sep_token_id": 102, "eos_token_id": 102}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("Bert", SMALL),
    "Roberta": ("Roberta", SMALL | {"pad_token_id": 1, "type_vocab_size": 1}),
    "XLMRoberta": ("XLMRoberta", SMALL | {"pad_token_id": 1, "type_vocab_size": 1}),
    "Camembert": ("Camembert", SMALL | {"pad_token_id": 1}),
    "Electra": ("Electra", SMALL | {"embedding_size": 8}),
    "DistilBert": ("DistilBert", DISTIL),
    "MPNet": ("MPNet", SMALL | {"pad_token_id": 1}),
    "Albert": ("Albert", SMALL | {"embedding_size": 8}),
    "ModernBert, first token": (
        "ModernBert",
        SMALL | SPECIAL | {"local_attention": 12, "classifier_pooling": "cls", "classifier_bias": True},
    ),
    "ModernBert, mean": (
        "ModernBert",
        SMALL | SPECIAL | {"local_attention": 12, "classifier_pooling": "mean", "classifier_activation": "silu"},
    ),
}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
HEADS |= {
    "DebertaV2": ("DebertaV2", SMALL | DISENTANGLED | {"type_vocab_size": 2, "position_buckets": 12}),
    "DebertaV2 with a convolution": (
        "DebertaV2",
        SMALL | DISENTANGLED | {"conv_kernel_size": 3, "pooler_hidden_act": "tanh", "position_biased_input": False},
    ),
    "Deberta": ("Deberta", SMALL | DISENTANGLED),
}

# Without a head.
BY_DISTANCE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
BODIES: dict[str, dict[str, Any]] = {
    "Bert": SMALL,
    "Roberta": SMALL | {"pad_token_id": 1, "type_vocab_size": 1, "hidden_act": "relu"},
    "XLMRoberta": SMALL | {"pad_token_id": 1, "type_vocab_size": 1},
    "Camembert": SMALL | {"pad_token_id": 1},
    "Electra": SMALL | {"embedding_size": 8, "hidden_act": "gelu_new"},
    "DistilBert": DISTIL,
    "MPNet": SMALL | {"pad_token_id": 1},
    "Albert": SMALL | {"embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    "ModernBert": SMALL | SPECIAL | {"local_attention": 12, "num_hidden_layers": 4},
    "NomicBert": SMALL,
    "DebertaV2": SMALL | BY_DISTANCE | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 16},
    "Deberta": SMALL | BY_DISTANCE | {"max_relative_positions": 24, "type_vocab_size": 2},
}


def model(
    name: str, bert: Path, folder: Path, labels: int = 1, seed: int = 0, head: str = CLASSIFIER, **changes: Any
) -> Path:
    """The folder of a model of this kind with random weights, this head, and the tokenizer of `bert`."""
    kind, config = HEADS[name]
    torch.manual_seed(seed)
    made = getattr(transformers, f"{kind}Config")(**config | {"num_labels": labels} | changes)
    encoder = getattr(transformers, f"{kind}{head}")(made)
    for parameter in encoder.parameters():
        parameter.data.normal_(0, 0.2)
    encoder.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


def body(name: str, bert: Path, folder: Path, kind: str = "Model", **changes: Any) -> Path:
    """The folder of an encoder of this kind without a head, with random weights and the tokenizer of `bert`."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**BODIES[name] | changes)
    model = getattr(transformers, f"{name}{kind}")(config)
    for parameter in model.parameters():  # so that what is near zero at first, biases above all, is not
        parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder
