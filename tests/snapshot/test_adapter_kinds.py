"""What PEFT writes of an adapter besides pairs of matrices: answered as PEFT does it, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_adapters
import tiny_models
import torch
from safetensors.torch import load_file

from mme.catalog.spec import ModelSpec, Source
from mme.errors import SourceError
from mme.snapshot import retrieve

WTE, HEAD = "base_model.model.transformer.wte.weight", "base_model.model.lm_head.weight"


def made(base: Path, adapter: Source, task: str, out: Path, merge: bool = True) -> Path:
    spec = ModelSpec("model", Source("folder", base.name, base), task=task, adapter=adapter, adapter_merge=merge)
    return retrieve.snapshot(spec, out).path


def adapted(folder: Path, base: Path, targets: tuple[str, ...] = ("query",), **config: object) -> Source:
    return tiny_adapters.lora(folder, base, targets, **config)  # type: ignore[arg-type]


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_newthing", True),
        ("scale_by", 3.5),
        ("enable_lora", [True, False]),
        ("use_dora", True),
        ("kasa_config", {"x": 1}),
    ],
)
def test_a_setting_that_is_not_known_is_refused(
    bert: Path, tmp_path: Path, setting: str, value: object, merge: bool
) -> None:
    """A later version of PEFT may write one that changes the answers."""
    adapter = adapted(tmp_path / "a", bert, **{setting: value})
    with pytest.raises(SourceError, match=setting):
        made(bert, adapter, "feature-extraction", tmp_path / "out", merge)
    assert not (tmp_path / "out").exists()


def test_settings_that_say_nothing_are_taken(bert: Path, tmp_path: Path) -> None:
    adapter = adapted(tmp_path / "a", bert, use_newthing=False, other=None, more={}, lora_dropout=0.1, peft_version="9")
    made(bert, adapter, "feature-extraction", tmp_path / "out")


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "16", None, [4]])
def test_an_alpha_that_is_no_number_is_refused(bert: Path, tmp_path: Path, alpha: object, merge: bool) -> None:
    adapter = adapted(tmp_path / "a", bert, lora_alpha=alpha)
    with pytest.raises(SourceError, match="alpha"):
        made(bert, adapter, "feature-extraction", tmp_path / "out", merge)


@pytest.mark.parametrize("name", [WTE, HEAD])
def test_one_of_two_layers_with_one_weight_is_not_replaced_alone(tmp_path: Path, name: str) -> None:
    """PEFT unties what is trained whole (modules_to_save): merged into the tied weight, both would change."""
    base = tiny_models.gpt2(tmp_path / "base")
    table = load_file(base / "model.safetensors")["transformer.wte.weight"]
    adapter = adapted(tmp_path / "a", base, ("c_attn",), extra={name: table * 2})
    with pytest.raises(SourceError, match=r"(?s)another layer's weight too.*Merge it with PEFT"):
        made(base, adapter, "text-generation", tmp_path / "out")


def test_both_layers_with_one_weight_are_replaced(tmp_path: Path) -> None:
    base = tiny_models.gpt2(tmp_path / "base")
    table = load_file(base / "model.safetensors")["transformer.wte.weight"]
    both = {WTE: table * 2, HEAD: table * 2}
    adapter = adapted(tmp_path / "a", base, ("c_attn",), extra=both)
    out = made(base, adapter, "text-generation", tmp_path / "out")
    assert torch.equal(load_file(out / "model.safetensors")["transformer.wte.weight"], table * 2)
    apart = adapted(tmp_path / "b", base, ("c_attn",), extra={**both, HEAD: table * 3})
    with pytest.raises(SourceError, match="another layer's weight too"):
        made(base, apart, "text-generation", tmp_path / "out2")


@pytest.mark.parametrize("merge", [True, False])
def test_the_bases_tokenizer_beside_the_adapter_is_no_matter(bert: Path, tmp_path: Path, merge: bool) -> None:
    from transformers import AutoTokenizer

    adapter = adapted(tmp_path / "a", bert)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "a")
    made(bert, adapter, "feature-extraction", tmp_path / "out", merge)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("change", ["tokens", "case", "template"])
def test_another_tokenizer_beside_the_adapter_is_refused(bert: Path, tmp_path: Path, change: str, merge: bool) -> None:
    """The archive has the base's: the adapter would be asked in other tokens than those it was trained on."""
    from transformers import AutoTokenizer

    adapter = adapted(tmp_path / "a", bert)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    if change == "tokens":
        tokenizer.add_tokens(["<mine>"])
    if change == "template":
        tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    tokenizer.save_pretrained(tmp_path / "a")
    if change == "case":
        file = tmp_path / "a" / "tokenizer.json"
        state = json.loads(file.read_text())
        state["normalizer"]["lowercase"] = False
        file.write_text(json.dumps(state))
        settings = tmp_path / "a" / "tokenizer_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_lower_case": False}))
    with pytest.raises(SourceError, match="has a tokenizer of its own"):
        made(bert, adapter, "feature-extraction", tmp_path / "out", merge)
