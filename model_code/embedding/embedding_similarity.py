"""Sentences compared with one: {"inputs": {"source_sentence": "...", "sentences": ["...", ...]}}, the Hub's task
sentence-similarity. The answer is a list of numbers, one for each of the sentences, in their order."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from handler_common import JSON, Request, read_body, read_json, read_request

FIELDS = ("source_sentence", "sentences")
# As sentence-transformers computes them: a distance is negative, so that more is nearer.
FUNCTIONS = ("cosine", "dot", "euclidean", "manhattan")


@dataclass
class Comparison(Request):
    """A request whose first text is compared with each of the others."""


def read(data: Any, content_type: str | None, known: tuple[str, ...], fields: tuple[str, ...]) -> Request:
    """A request of either kind. Raises ValueError with what is wrong with it."""
    mark: Any = '"source_sentence"' if isinstance(data, str) else b'"source_sentence"'
    if mark not in data:
        return read_request(data, content_type, known, fields)
    body = read_body(data, content_type)
    inputs = body.get("inputs", body) if isinstance(body, dict) else body
    if not isinstance(inputs, dict) or FIELDS[0] not in inputs:
        return read_request(data, content_type, known, fields)
    rest = {key: value for key, value in body.items() if key not in ("inputs", *FIELDS)}
    for name in inputs:
        if inputs is not body and name not in FIELDS:
            raise ValueError(f"inputs: unknown field {name!r}. Known: {', '.join(FIELDS)}.")
    source, sentences = inputs[FIELDS[0]], inputs.get(FIELDS[1])
    if not isinstance(source, str):
        raise ValueError("inputs.source_sentence must be a text.")
    if not isinstance(sentences, list) or not sentences:
        raise ValueError("inputs.sentences must be a list of texts, one at least.")
    request = read_request(json.dumps({**rest, "inputs": [source, *sentences]}), JSON, known, fields)
    return Comparison(request.texts, False, request.parameters)


def function_of(folder: Path) -> str:
    """How the model's vectors are meant to be compared. Raises ValueError for an unknown function."""
    noted = read_json(folder / "config_sentence_transformers.json")
    name = (noted.get("similarity_fn_name") if isinstance(noted, dict) else None) or "cosine"
    if name not in FUNCTIONS:
        raise ValueError(f"similarity_fn_name is {name!r}; known are {', '.join(FUNCTIONS)}.")
    return str(name)


def compared(vectors: np.ndarray, function: str) -> list[float]:
    """The first row of `vectors`, of shape (texts, dimensions), with each of the others."""
    rows = np.asarray(vectors, np.float32)
    first, others = rows[0], rows[1:]
    if function == "euclidean":
        scores = -np.linalg.norm(others - first, axis=1)
    elif function == "manhattan":
        scores = -np.abs(others - first).sum(axis=1)
    else:
        if function == "cosine":
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        scores = rows[1:] @ rows[0]
    if not np.isfinite(scores).all():
        raise ArithmeticError("The model's vectors are too large to be compared: the result is NaN or infinite.")
    return [float(number) for number in scores]
