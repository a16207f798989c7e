"""The handler that docs/handlers.md shows works as it stands there."""

import json
import re
from pathlib import Path

import pytest
import torch
from handler_tools import ROOT
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from mme.archive.handler import check

DOCS = (ROOT / "docs" / "handlers.md").read_text()


def test_the_example_is_a_handler_that_answers(bert: Path, tmp_path: Path) -> None:
    [source] = [code for code in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "def model_fn" in code]
    code = tmp_path / "handler"
    code.mkdir()
    (code / "inference.py").write_text(source)
    check(code)  # as `invoke package` would

    model = tmp_path / "model"
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, id2label={0: "no", 1: "yes"}
    )
    BertForSequenceClassification(config).save_pretrained(model)
    AutoTokenizer.from_pretrained(bert).save_pretrained(model)
    (model / "code").mkdir()
    (model / "code" / "settings.json").write_text("{}")

    names: dict = {}
    exec(compile(source, "inference.py", "exec"), names)
    loaded = names["model_fn"](str(model))
    data = names["input_fn"]('{"inputs": "The house is quiet."}', "application/json")
    answer = json.loads(names["output_fn"](names["predict_fn"](data, loaded), "application/json"))
    assert answer["label"] in ("no", "yes")
    assert 0.5 <= answer["score"] <= 1
    with pytest.raises(ValueError, match='The request has no "inputs"'):
        names["input_fn"]('{"inputs": 3}', "application/json")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("embedding", ("SETTINGS", "PARAMETERS")),
        ("generation", ("LIMITS", "PARAMETERS")),
        ("reranking", ("SETTINGS", "PARAMETERS", "ACTIVATIONS")),
    ],
)
def test_every_parameter_and_setting_is_documented(kind: str, names: tuple[str, ...]) -> None:
    from handler_tools import load

    handler = load(kind)
    for name in names:
        for word in getattr(handler, name):
            assert f"`{word}`" in DOCS, f"docs/handlers.md says nothing of {word}"


def test_the_requests_that_are_shown_are_taken() -> None:
    from handler_tools import load

    rows = re.findall(r"^\| `(.+?)` \| `(text/plain|application/json)`", DOCS, re.MULTILINE)
    assert len(rows) >= 4
    for body, content_type in rows:
        assert load("embedding").input_fn(body, content_type).texts[0] == "The house is quiet."
