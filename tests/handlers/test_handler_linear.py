"""The generation handler's linear layers for a few rows, beside the layers that they stand for."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from handler_tools import TINY_GPT2, linked
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


@pytest.mark.parametrize("rows", [1, 2, 8, 64, 65])
def test_logits_are_those_of_the_plain_model(generator: Any, rows: int) -> None:
    plain = AutoModelForCausalLM.from_pretrained(TINY_GPT2).float().eval()
    torch.manual_seed(rows)
    ids = torch.randint(0, plain.config.vocab_size, (rows, 1))
    with torch.inference_mode():
        assert (generator.model(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max() < 1e-4
    kinds = {type(module).__name__ for module in generator.model.modules()}
    assert ("FewRowsLinear" in kinds) == torch.backends.mkldnn.is_available()


def test_weights_stay_where_they_are(generation: ModuleType, generator: Any) -> None:
    """No copy of them, which would be memory of the model's own, and the head still shares the embeddings' table."""
    model = generator.model
    for module in model.modules():
        if type(module).__name__ == "FewRowsLinear":
            assert module.rows.data_ptr() == module.layer.weight.data_ptr()
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_other_types_are_left_alone(generation: ModuleType, tmp_path: Path) -> None:
    half = generation.model_fn(str(linked(TINY_GPT2, tmp_path / "half", dtype="bfloat16"))).model
    assert any(isinstance(module, Conv1D) for module in half.modules())
    assert not any(type(module).__name__ == "FewRowsLinear" for module in half.modules())
