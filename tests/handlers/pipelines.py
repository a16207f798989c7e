"""Small models for the pipelines that the engine computes, and what they are asked."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from small_encoders import HEADS, model
from transformers import AutoTokenizer

AUTO = {
    "text-classification": "ForSequenceClassification",
    "zero-shot-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "feature-extraction": "Model",
    "fill-mask": "ForMaskedLM",
}
LABELS = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
TEXTS = [
    "the house is quiet",
    "rain",
    "nobody is at home and the gate stands open , said Anna of Berlin",
    "word " * 60,
    "Paris is a city in France .",
]
MASKED = ["the [MASK] is quiet", "nobody is at [MASK] and the [MASK] stands open", "[MASK]"]
LONG = "Anna went from Berlin to Paris with the boat that her brother had built . " * 30  # more than the model reads
QUESTION = {"question": "who went to Paris ?", "context": "Anna went to Paris . Nobody saw her ."}


def saved(task: str, name: str, bert: Path, folder: Path, labels: int = 3, **changes: Any) -> Path:
    labels = 2 if task == "question-answering" else labels
    if task == "zero-shot-classification":
        changes |= LABELS
    folder = model(name, bert, folder, labels, head=AUTO[task], **changes)
    if HEADS[name][0] in ("DistilBert", "ModernBert", "MPNet") or HEADS[name][1].get("type_vocab_size") == 1:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(folder)
    return task_of(folder, task)


def task_of(folder: Path, task: str, **settings: Any) -> Path:
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "settings.json").write_text(json.dumps({"task": task, **settings}))
    return folder


def near(got: Any, want: Any) -> bool:
    """Equal but for the numbers, which are within 1e-5."""
    return got == pytest.approx(want, abs=1e-5, rel=1e-5) if isinstance(want, float) else _near(got, want)


def _near(got: Any, want: Any) -> bool:
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(near(got[key], want[key]) for key in want)
    if isinstance(want, list):
        return len(got) == len(want) and all(map(near, got, want))
    return bool(got == want)


ASKED: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "text-classification": [
        (TEXTS[0], {}),
        (TEXTS, {}),
        (TEXTS[2], {"top_k": 2}),
        (TEXTS, {"top_k": None}),
        (TEXTS, {"top_k": 1, "function_to_apply": "sigmoid"}),
        (TEXTS, {"function_to_apply": "none"}),
        ([{"text": one, "text_pair": two} for one, two in itertools.pairwise(TEXTS)], {"top_k": 3}),
        ({"text": TEXTS[0], "text_pair": TEXTS[4]}, {}),
        ([LONG, TEXTS[1]], {"truncation": True, "top_k": None}),
        ([LONG, TEXTS[1]], {"truncation": True, "max_length": 12}),
    ],
    "zero-shot-classification": [
        (TEXTS[0], {"candidate_labels": ["a house", "weather", "politics"]}),
        (TEXTS, {"candidate_labels": "a house, weather, politics"}),
        (TEXTS, {"candidate_labels": ["one"]}),
        (TEXTS[2], {"candidate_labels": [f"label {number}" for number in range(40)]}),
        (TEXTS, {"candidate_labels": ["a house", "weather"], "multi_label": True}),
        (LONG, {"candidate_labels": ["a house", "weather"], "hypothesis_template": "It is about {} ."}),
    ],
    "token-classification": [
        (TEXTS[2], {}),
        (TEXTS, {}),
        *((TEXTS, {"aggregation_strategy": way}) for way in ("none", "simple", "first", "average", "max")),
        (TEXTS, {"ignore_labels": []}),
        (TEXTS, {"ignore_labels": ["LABEL_1"]}),
        (LONG, {"aggregation_strategy": "simple", "stride": 20}),
        ([TEXTS[0], LONG], {"aggregation_strategy": "max", "stride": 7}),
    ],
    "question-answering": [
        (QUESTION, {}),
        (QUESTION, {"top_k": 4, "handle_impossible_answer": True}),
        ([QUESTION, {"question": "where ?", "context": TEXTS[4]}], {"max_answer_len": 3, "align_to_words": False}),
        ({"question": "who went to Paris ?", "context": LONG}, {"doc_stride": 30, "max_seq_len": 90, "top_k": 3}),
    ],
    "fill-mask": [
        (MASKED[0], {}),
        (MASKED, {}),
        (MASKED, {"top_k": 12}),
        (MASKED[1], {"targets": ["house", "rain", "boat"]}),
        ([f"{LONG} {MASKED[0]}", f"{MASKED[1]} {LONG}"][1], {"truncation": True, "top_k": 2}),
    ],
    "feature-extraction": [
        (TEXTS[0], {}),
        (TEXTS, {}),
        ([TEXTS[0], LONG], {"truncation": True}),
    ],
}
