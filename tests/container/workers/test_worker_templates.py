"""What a worker finds finished, until its model is loaded."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
from transformers import AutoConfig, BertConfig

from mme.container import recipes
from mme.container.workers.templates import Template, Templates, carry_out


class Thing:
    """Something that was made before the fork."""


def test_after_close_nothing_is_found_and_nothing_is_freed() -> None:
    families = Templates()
    families.root = "/models/a/"
    made = Thing()
    seen = weakref.ref(made)
    families.templates["key"] = Template(made, "/models/b")
    del made
    families.close()
    gc.collect()
    assert (families.templates, families.root) == ({}, "")
    assert seen() is not None  # to free what is shared with the parent would be to copy it


def test_a_configuration_is_made_once_for_models_that_have_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        BertConfig(hidden_size=24, num_attention_heads=2).save_pretrained(tmp_path / name)
    options = {"local_files_only": True, "trust_remote_code": False}
    one, other = (recipes.recipe("config", "AutoConfig", (str(tmp_path / name),), dict(options)) for name in ("a", "b"))
    assert one is not None
    assert other is not None
    assert one.key == other.key
    assert recipes.foresee([(one.plain(), str(tmp_path / "a"))], str(tmp_path / "b")) == [other.plain()]
    got = carry_out(one.plain()).make(str(tmp_path / "b"))
    want = AutoConfig.from_pretrained(str(tmp_path / "b"))
    assert (type(got), got.to_dict(), got.name_or_path) == (type(want), want.to_dict(), str(tmp_path / "b"))


@pytest.mark.parametrize(("path", "same"), [("config.json", False), ("config.4.0.0.json", False), ("other.json", True)])
def test_a_configuration_depends_on_its_files_alone(tmp_path: Path, path: str, same: bool) -> None:
    def key() -> str:
        recipe = recipes.recipe("config", "AutoConfig", (str(tmp_path),), {})
        assert recipe is not None
        return recipe.key

    BertConfig().save_pretrained(tmp_path)
    before = key()
    (tmp_path / path).write_text('{"model_type": "bert", "hidden_size": 12}')
    assert (key() == before) is same


def test_what_is_no_configuration_is_not_shared(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    for options in ({"return_unused_kwargs": True}, {"trust_remote_code": True}):
        assert recipes.recipe("config", "AutoConfig", (str(tmp_path),), options) is None
