"""A number format that this processor is slow in is not computed in, and the choice is reported."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from handler_tools import TINY_GPT2, Context, linked, load, request

load("embedding")  # which puts its modules on the path
import handler_format  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(params=[0.6, 1.04, 1.06, 5.0, float("inf")])
def slowness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """A processor that takes so many times as long in any other format as in float32."""
    monkeypatch.delenv("MME_FORMAT")
    monkeypatch.setattr(handler_format, "slowness", lambda dtype: request.param)
    factor: float = request.param
    return factor


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_encoder_computes_in_what_is_fast(
    embedding: ModuleType, embedder: Any, bert: Path, tmp_path: Path, slowness: float, dtype: str
) -> None:
    context = Context()
    model = embedding.model_fn(str(linked(bert, tmp_path / "m", dtype=dtype)), context)
    wanted = "float32" if slowness > 1.05 else dtype
    assert next(model.model.parameters()).dtype == getattr(torch, wanted)
    assert context.notes["format"] == wanted
    assert ("times as long as float32 on this processor" in context.notes["reason"]) == (wanted == "float32")
    if wanted == "float32":
        exact, got = (
            embedding.predict_fn(request(embedding, "rain"), held)["embeddings"] for held in (embedder, model)
        )
        assert np.abs(exact - got).max() < 1e-5


def test_a_decoder_does_too(generation: ModuleType, tmp_path: Path, slowness: float) -> None:
    context = Context()
    model = generation.model_fn(str(linked(TINY_GPT2, tmp_path / "m", dtype="bfloat16")), context).model
    wanted = "float32" if slowness > 1.05 else "bfloat16"
    assert next(model.parameters()).dtype == getattr(torch, wanted)
    assert context.notes["format"] == wanted


@pytest.mark.parametrize("slowness", [5.0], indirect=True)
def test_the_environment_can_require_a_format(slowness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert handler_format.computing("bfloat16", CPU)[0] == "float32"
    assert handler_format.computing("bfloat16", torch.device("cuda"))[0] == "bfloat16"
    monkeypatch.setenv("MME_FORMAT", "asked")
    assert handler_format.computing("bfloat16", CPU) == ("bfloat16", "")


def test_it_is_tried_on_this_processor() -> None:
    before = torch.get_num_threads()
    handler_format.slowness.cache_clear()
    assert handler_format.slowness("bfloat16") > 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("accuracy", "format"), [("exact", "float32"), ("close", "bfloat16"), ("small", "int8"), (None, "float32")]
)
def test_accuracy_chooses_the_format(
    embedding: ModuleType, generation: ModuleType, bert: Path, tmp_path: Path, accuracy: str | None, format: str
) -> None:
    for number, (handler, source) in enumerate([(embedding, bert), (generation, TINY_GPT2)]):
        context = Context()
        handler.model_fn(str(linked(source, tmp_path / str(number), accuracy=accuracy)), context)
        assert context.notes["format"] == format


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"accuracy": "perfect"}, "code/settings.json: accuracy must be one of exact, close, small, not 'perfect'"),
        ({"accuracy": "close", "dtype": "bfloat16"}, "code/settings.json: accuracy chooses dtype. Leave one"),
        ({"accuracy": "small", "quantize": "int8"}, "code/settings.json: accuracy chooses quantize. Leave one"),
    ],
)
def test_wrong_accuracies_fail_the_load(
    embedding: ModuleType, generation: ModuleType, bert: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    for number, (handler, source) in enumerate([(embedding, bert), (generation, TINY_GPT2)]):
        with pytest.raises(ValueError, match=reason):
            handler.model_fn(str(linked(source, tmp_path / str(number), **settings)))
