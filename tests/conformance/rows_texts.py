"""Models that read texts, or read one and write another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reference
from rows import Row
from small import WORDS, maker, word_tokenizer

TEXTS = ("the house is quiet and nobody is at home.", "a good film, not bad", "rain falls on the old garden gate")
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
POSITIONS = {"vocab_size": len(WORDS), "max_position_embeddings": 64}
ROBERTA = {**BERT, "vocab_size": len(WORDS), "max_position_embeddings": 65, "pad_token_id": 0}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, **POSITIONS}
LABELS = {"num_labels": 3, "id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
ENTAILS = {
    "num_labels": 3,
    "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
    "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
}
DEBERTA = {**BERT, **POSITIONS, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
MODERN = {**BERT, **POSITIONS, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2}
MODERN |= {"eos_token_id": 3, "reference_compile": False, "local_attention": 16}
T5 = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 3}
BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, **POSITIONS}
BART |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": 3}
TABLE = {
    "vocab_size": len(WORDS),
    **BERT,
    "max_position_embeddings": 256,
    "type_vocab_sizes": [3, 32, 32, 2, 32, 32, 4],
}


def words(pairs: bool = True) -> Callable[[], list[Any]]:
    return lambda: [word_tokenizer(pairs=pairs)]


def asked(**parameters: Any) -> list[dict[str, Any]]:
    more = {"parameters": parameters} if parameters else {}
    return [*({"inputs": text, **more} for text in TEXTS), {"inputs": list(TEXTS), **more}]


def row(architecture: str, task: str, kind: str, config: str, requests: list[dict[str, Any]], **more: Any) -> Row:
    """A row whose reference is transformers' own pipeline, unless ``more`` has one."""
    pairs, values = more.pop("pairs", True), more.pop("values")
    expected = more.pop("reference", None) or reference.pipeline(task)
    return Row(architecture, task, maker(kind, config, words(pairs), **values), requests, expected, **more)


CLASSIFIERS = [
    ("BERT", "Bert", {**BERT, **POSITIONS}, True),
    ("RoBERTa", "Roberta", ROBERTA, False),
    ("XLM-RoBERTa", "XLMRoberta", ROBERTA, False),
    ("DistilBERT", "DistilBert", DISTIL, False),
    ("ELECTRA", "Electra", {**BERT, **POSITIONS, "embedding_size": 16}, True),
    ("ALBERT", "Albert", {**BERT, **POSITIONS, "embedding_size": 16}, True),
    ("DeBERTa-v2", "DebertaV2", DEBERTA, False),
    ("MPNet", "MPNet", {**ROBERTA, "pad_token_id": 1}, False),
    ("ModernBERT", "ModernBert", MODERN, False),
    ("MobileBERT", "MobileBert", {**BERT, **POSITIONS, "embedding_size": 16, "intra_bottleneck_size": 16}, True),
    ("FNet", "FNet", {**BERT, **POSITIONS, "tpu_short_seq_length": 64}, True),
    ("Nystromformer", "Nystromformer", {**BERT, **POSITIONS}, True),
    ("RoFormer", "RoFormer", {**BERT, **POSITIONS, "embedding_size": 16}, True),
    ("RemBERT", "RemBert", {**BERT, **POSITIONS, "input_embedding_size": 8, "output_embedding_size": 8}, True),
    ("MegatronBERT", "MegatronBert", {**BERT, **POSITIONS}, True),
    ("CamemBERT", "Camembert", ROBERTA, False),
    ("Data2Vec", "Data2VecText", ROBERTA, False),
    ("DeBERTa", "Deberta", DEBERTA, True),
    ("ConvBERT", "ConvBert", {**BERT, **POSITIONS, "embedding_size": 16}, True),
]
MASKED = [{"inputs": "the [MASK] is quiet."}, {"inputs": ["nobody is at [MASK].", "rain falls on the [MASK] gate"]}]
QUESTIONS = [
    {"inputs": {"question": "who is at home?", "context": TEXTS[0]}},
    {
        "inputs": {
            "question": "where is the rain?",
            "context": "rain falls on the old garden gate, and the gate stands open.",
        }
    },
]
SEQ2SEQ = [
    *({"inputs": text, "parameters": {"max_new_tokens": 8}} for text in TEXTS),
    {"inputs": list(TEXTS[:2]), "parameters": {"max_new_tokens": 6, "num_beams": 1}},
]
CELLS = {"city": ["old", "garden"], "rain": ["good", "bad"]}


def tapas(folder: Path) -> None:
    """A tokenizer of its own, which reads vocab.txt."""
    from transformers import TapasTokenizer

    lines = folder / "vocab.txt"
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[EMPTY]", *WORDS]
    lines.write_text("".join(f"{word}\n" for word in special), encoding="utf-8")
    build = maker(
        "TapasForQuestionAnswering", "TapasConfig", lambda: [], **{**TABLE, "vocab_size": len(special)}, pad_token_id=1
    )
    build(folder)
    TapasTokenizer(str(lines), model_max_length=128).save_pretrained(folder)
    lines.write_text("".join(f"{word}\n" for word in special), encoding="utf-8")


def mt5(folder: Path) -> None:
    """As the checkpoints on the Hub are: the layer that writes words is not the table of words, and nothing is scaled.
    (What transformers 5 saves of a new one says that the two are one: 4 then scales before that layer, 5 does not.)
    """
    import torch
    from safetensors.torch import load_file, save_file

    maker("MT5ForConditionalGeneration", "MT5Config", words(pairs=False), **T5)(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(tensors["shared.weight"].shape)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), encoding="utf-8")


def three_ends() -> list[Any]:
    """RoBERTa's way of putting two texts together, which Longformer counts on."""
    from tokenizers import processors

    tokenizer = word_tokenizer(pairs=False)
    special = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=special
    )
    return [tokenizer]


ROWS = [
    *(
        row(
            name,
            "text-classification",
            f"{kind}ForSequenceClassification",
            f"{kind}Config",
            [*asked(), {"inputs": TEXTS[0], "parameters": {"top_k": 2}}],
            values={**values, **LABELS},
            pairs=pairs,
            everywhere=name in ("BERT", "RoBERTa"),
        )
        for name, kind, values, pairs in CLASSIFIERS
    ),
    row(
        *("BERT", "token-classification", "BertForTokenClassification", "BertConfig"),
        [*asked(), *asked(aggregation_strategy="simple")],
        values={**BERT, **POSITIONS, "num_labels": 3, "id2label": {0: "O", 1: "B-X", 2: "I-X"}},
        everywhere=True,
    ),
    row(
        *("XLM-RoBERTa", "token-classification", "XLMRobertaForTokenClassification", "XLMRobertaConfig", asked()),
        values={**ROBERTA, "num_labels": 3},
        pairs=False,
    ),
    row(
        *("BERT", "fill-mask", "BertForMaskedLM", "BertConfig"),
        [*MASKED, {"inputs": "the [MASK] is quiet.", "parameters": {"targets": ["house", "dog"]}}],
        values={**BERT, **POSITIONS},
        everywhere=True,
    ),
    row(
        *("RoBERTa", "fill-mask", "RobertaForMaskedLM", "RobertaConfig", MASKED),
        values=ROBERTA,
        pairs=False,
    ),
    row(
        *("ModernBERT", "fill-mask", "ModernBertForMaskedLM", "ModernBertConfig", MASKED),
        values=MODERN,
        pairs=False,
    ),
    row(
        *("BERT", "question-answering", "BertForQuestionAnswering", "BertConfig", QUESTIONS),
        values={**BERT, **POSITIONS},
        reference=reference.spans,
        everywhere=True,
    ),
    row(
        *("RoBERTa", "question-answering", "RobertaForQuestionAnswering", "RobertaConfig", QUESTIONS),
        values=ROBERTA,
        pairs=False,
        reference=reference.spans,
    ),
    row(
        *("DistilBERT", "question-answering", "DistilBertForQuestionAnswering", "DistilBertConfig", QUESTIONS),
        values=DISTIL,
        pairs=False,
        reference=reference.spans,
    ),
    row(
        *("BART", "zero-shot-classification", "BartForSequenceClassification", "BartConfig"),
        [
            *asked(candidate_labels=["house", "film", "rain"]),
            {"inputs": TEXTS[0], "parameters": {"candidate_labels": "good,bad", "multi_label": True}},
        ],
        values={**BART, **ENTAILS},
        pairs=False,
        everywhere=True,
    ),
    row(
        *("DeBERTa-v2", "zero-shot-classification", "DebertaV2ForSequenceClassification", "DebertaV2Config"),
        asked(candidate_labels=["house", "film"], hypothesis_template="the text is about {}."),
        values={**DEBERTA, **ENTAILS},
        pairs=False,
    ),
    row(
        *("BERT", "feature-extraction", "BertModel", "BertConfig", asked()),
        values={**BERT, **POSITIONS},
        everywhere=True,
    ),
    Row(
        *("TAPAS", "table-question-answering", tapas),
        [{"inputs": {"query": "where is the rain good?", "table": CELLS}}],
        reference.pipeline("table-question-answering"),
    ),
    row(
        *("T5", "text2text-generation", "T5ForConditionalGeneration", "T5Config", SEQ2SEQ),
        values=T5,
        pairs=False,
        reference=reference.writing("generated_text"),
        everywhere=True,
    ),
    row(
        *("T5", "translation_en_to_de", "T5ForConditionalGeneration", "T5Config", SEQ2SEQ),
        values={**T5, "task_specific_params": {"translation_en_to_de": {"prefix": "translate : "}}},
        pairs=False,
        reference=reference.writing("translation_text", prefix="translate : "),
    ),
    Row("mT5", "summarization", mt5, SEQ2SEQ, reference.writing("summary_text")),
    row(
        *("Switch", "text2text-generation", "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig"),
        SEQ2SEQ,
        values={**T5, "num_decoder_layers": 2, "num_experts": 2}
        | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        pairs=False,
        reference=reference.writing("generated_text"),
    ),
    Row(
        *("Longformer", "question-answering"),
        maker(
            *("LongformerForQuestionAnswering", "LongformerConfig", three_ends),
            **{**ROBERTA, "attention_window": 8, "sep_token_id": WORDS.index("[SEP]")},
        ),
        QUESTIONS,
        reference.spans,
    ),
    row(
        *("BART", "summarization", "BartForConditionalGeneration", "BartConfig", SEQ2SEQ),
        values=BART,
        pairs=False,
        reference=reference.writing("summary_text"),
        everywhere=True,
    ),
    row(
        *("Pegasus", "summarization", "PegasusForConditionalGeneration", "PegasusConfig", SEQ2SEQ),
        values=BART,
        pairs=False,
        reference=reference.writing("summary_text"),
    ),
    row(
        *("Marian", "translation", "MarianMTModel", "MarianConfig", SEQ2SEQ),
        values=BART,
        pairs=False,
        reference=reference.writing("translation_text"),
        everywhere=True,
    ),
    row(
        *("LED", "text2text-generation", "LEDForConditionalGeneration", "LEDConfig", SEQ2SEQ),
        values={
            **{key: value for key, value in BART.items() if key != "max_position_embeddings"},
            **{"attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
        },
        pairs=False,
        reference=reference.writing("generated_text"),
    ),
]
