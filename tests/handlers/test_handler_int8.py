"""Linear layers in int8, beside the same layers in float32, on real models and sentences."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from handler_tools import cosines, linked, stored_int8, vectors
from sentences import SENTENCES


@pytest.fixture(scope="module")
def int8(embedding: ModuleType) -> ModuleType:
    return sys.modules["handler_int8"]


@pytest.fixture(scope="module")
def quantized(embedding: ModuleType, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("int8") / "model"
    return embedding.model_fn(str(linked(bert, folder, quantize="int8")))


def test_real_sentences_keep_their_vectors(embedding: ModuleType, embedder: Any, quantized: Any) -> None:
    exact = vectors(embedding, embedder, SENTENCES)
    alone = np.concatenate([vectors(embedding, quantized, [text]) for text in SENTENCES])
    together = vectors(embedding, quantized, SENTENCES)
    assert cosines(exact, alone).min() >= 0.99
    assert cosines(exact, together).min() >= 0.99
    assert alone.dtype == np.float32
    assert np.abs(exact - alone).max() > 1e-4, "it did compute in int8"


def test_what_a_text_gets_hardly_depends_on_its_company(embedding: ModuleType, quantized: Any) -> None:
    alone = np.concatenate([vectors(embedding, quantized, [text]) for text in SENTENCES])
    company = ["word " * 200, "!!! ??? ,,,", "日本語 " * 20]
    together = vectors(embedding, quantized, SENTENCES + company)[: len(SENTENCES)]
    assert cosines(alone, together).min() > 0.9995


def test_no_weight_of_a_linear_layer_stays_in_float32(int8: ModuleType, quantized: Any) -> None:
    kinds = [type(module) for module in quantized.model.modules()]
    assert torch.nn.Linear not in kinds
    assert kinds.count(int8.Int8Linear) == 6 * 6 + 1
    left = {name for name, tensor in quantized.model.named_parameters() if tensor.dim() == 2}
    assert left
    assert all("embeddings" in name for name in left)


def test_a_row_is_computed_by_itself_whatever_its_size(int8: ModuleType) -> None:
    """Rows a million times larger or smaller, and rows of zeros, change nothing for their neighbours."""
    torch.manual_seed(3)
    layer = int8.Int8Linear(torch.randn(24, 40), torch.randn(24), reduce_range=int8._saturates())
    rows = torch.randn(6, 40) * torch.tensor([1.0, 1e6, 1e-6, 0.0, 3.0, 0.5])[:, None]
    together = layer(rows)
    for place in range(6):
        assert torch.equal(layer(rows[place : place + 1])[0], together[place])
    assert torch.equal(together[3], layer.bias)
    assert layer(rows.view(2, 3, 40)).shape == (2, 3, 24)


@pytest.mark.parametrize("engine", sorted({*torch.backends.quantized.supported_engines} - {"none", "onednn"}))
def test_a_layer_is_near_its_float32(int8: ModuleType, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    torch.manual_seed(4)
    for bias in (True, False):
        linear = torch.nn.Linear(64, 48, bias=bias).requires_grad_(False)
        layer = int8.Int8Linear(linear.weight, linear.bias, reduce_range=int8._saturates())
        rows = torch.randn(10, 64)
        error = (layer(rows) - linear(rows)).norm() / linear(rows).norm()
        assert 0 < error < 0.02
    gpt2 = torch.nn.Sequential(int8.Conv1D(48, 64)).requires_grad_(False)
    torch.nn.init.normal_(gpt2[0].weight)
    exact = gpt2(rows)
    int8.quantize(gpt2)
    assert 0 < (gpt2(rows) - exact).norm() / exact.norm() < 0.03


def test_a_torch_without_int8_says_so(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(linked(bert, tmp_path / "m", quantize="int8"))
    engine = torch.backends.quantized.engine
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    with pytest.raises(RuntimeError, match=r'quantize is "int8", .* no engine .*Leave the setting out'):
        embedding.model_fn(folder)
    monkeypatch.undo()
    assert torch.backends.quantized.engine == engine
    embedding.model_fn(folder)
    assert torch.backends.quantized.engine == engine


def test_what_is_stored_as_int8_never_exists_in_float32(
    embedding: ModuleType, int8: ModuleType, bert: Path, quantized: Any, tmp_path: Path
) -> None:
    from transformers import AutoModel

    folder = stored_int8(bert, tmp_path / "m", "AutoModel")
    hollow = int8._hollow(AutoModel, folder)
    layers = [module for module in hollow.modules() if type(module) is torch.nn.Linear]
    assert len(layers) == 6 * 6 + 1
    assert all(layer.weight.is_meta for layer in layers)
    assert torch.empty(1).device.type == "cpu", "only while the model is made"
    assert torch.equal(hollow.embeddings.position_ids, torch.arange(512)[None])
    stored = embedding.model_fn(str(folder))
    assert np.array_equal(vectors(embedding, stored, SENTENCES), vectors(embedding, quantized, SENTENCES))


def test_a_stored_file_of_another_model_is_refused(int8: ModuleType, bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModel

    linked(bert, tmp_path / "m", ("model.safetensors",), quantize="int8")
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "m" / int8.STORED)
    with pytest.raises(RuntimeError, match=r"model\.int8\.safetensors does not fit BertModel: "):
        int8.load(AutoModel, tmp_path / "m", {})


def test_bfloat16_keeps_the_vectors_too(embedding: ModuleType, embedder: Any, bert: Path, tmp_path: Path) -> None:
    half = embedding.model_fn(str(linked(bert, tmp_path / "m", dtype="bfloat16")))
    exact = vectors(embedding, embedder, SENTENCES)
    together = vectors(embedding, half, SENTENCES)
    alone = np.concatenate([vectors(embedding, half, [text]) for text in SENTENCES])
    assert cosines(exact, together).min() >= 0.999
    assert cosines(exact, alone).min() >= 0.999


def test_layers_that_read_the_same_values_are_joined(int8: ModuleType) -> None:
    torch.manual_seed(0)
    plain = [torch.nn.Linear(64, outputs).requires_grad_(False) for outputs in (16, 24, 32)]
    stack = torch.nn.ModuleList(plain)
    int8.quantize(stack)
    layers = list(stack)
    values = torch.randn(10, 64)
    apart = torch.cat([layer(values) for layer in layers], dim=1)
    assert torch.equal(int8.joined(layers)(values), apart)
    assert int8.joined([*layers[:2], plain[2]]) is None
