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


@pytest.mark.parametrize("scales", [None, torch.linspace(0.1, 4.0, 40)])
def test_a_row_is_computed_by_itself_whatever_its_size(int8: ModuleType, scales: torch.Tensor | None) -> None:
    """Rows a million times larger or smaller, and rows of zeros, change nothing for their neighbours."""
    torch.manual_seed(3)
    layer = int8.Int8Linear(torch.randn(24, 40), torch.randn(24), input_scales=scales)
    rows = torch.randn(6, 40) * torch.tensor([1.0, 1e6, 1e-6, 0.0, 3.0, 0.5])[:, None]
    before = rows.clone()
    together = layer(rows)
    assert torch.equal(rows, before), "others read them too"
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
        layer = int8.Int8Linear(linear.weight, linear.bias)
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

    folder = stored_int8(bert, tmp_path / "m", "AutoModel", smooth=False)
    hollow = int8._hollow(AutoModel, folder)
    layers = [module for module in hollow.modules() if type(module) is torch.nn.Linear]
    assert len(layers) == 6 * 6 + 1
    assert all(layer.weight.is_meta for layer in layers)
    assert torch.empty(1).device.type == "cpu", "only while the model is made"
    assert torch.equal(hollow.embeddings.position_ids, torch.arange(512)[None])
    stored = embedding.model_fn(str(folder))
    assert np.array_equal(vectors(embedding, stored, SENTENCES), vectors(embedding, quantized, SENTENCES))


def test_stored_weights_keep_more_of_the_vectors(
    embedding: ModuleType, embedder: Any, bert: Path, quantized: Any, tmp_path: Path
) -> None:
    """Packaging has found which inputs are always large."""
    stored = embedding.model_fn(str(stored_int8(bert, tmp_path / "m", "AutoModel")))
    exact = vectors(embedding, embedder, SENTENCES)
    made = cosines(exact, vectors(embedding, quantized, SENTENCES))
    alone = cosines(exact, np.concatenate([vectors(embedding, stored, [text]) for text in SENTENCES]))
    together = cosines(exact, vectors(embedding, stored, SENTENCES))
    assert min(alone.min(), together.min()) >= 0.995
    assert alone.mean() > made.mean()


@pytest.mark.parametrize("saturates", [False, True])
def test_archives_of_eight_bits_go_on_answering(
    embedding: ModuleType,
    embedder: Any,
    int8: ModuleType,
    bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saturates: bool,
) -> None:
    """As they were made before weights had seven: where the processor would saturate, activations have seven bits."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {}
    with safe_open(bert / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is not a dictionary
            weight = file.get_tensor(name)
            if name.endswith(".weight") and weight.dim() == 2 and "embeddings" not in name:
                scale = weight.abs().amax(dim=1) / 127
                tensors[name + int8.SCALES] = scale
                weight = (weight / scale[:, None]).round().to(torch.int8)
            if name != "embeddings.position_ids":
                tensors[name] = weight
    linked(bert, tmp_path / "m", ("model.safetensors",), quantize="int8")
    save_file(tensors, tmp_path / "m" / int8.STORED)
    saturates = saturates or int8._saturates()
    monkeypatch.setattr(int8, "_saturates", lambda: saturates)
    old = embedding.model_fn(str(tmp_path / "m"))
    layers = [module for module in old.model.modules() if type(module) is int8.Int8Linear]
    assert len(layers) == 6 * 6 + 1
    assert {layer.reduce_range for layer in layers} == {saturates}
    exact = vectors(embedding, embedder, SENTENCES)
    assert cosines(exact, vectors(embedding, old, SENTENCES)).min() >= 0.98


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


def test_the_sums_of_whole_numbers_cannot_saturate(int8: ModuleType) -> None:
    """Without VNNI, products of an activation (0 to 255) and a weight are added two by two in 16 bits. Both ends are
    within these, so the sums are the same on every processor, and one that has VNNI can prove it for all."""
    assert int8.LARGEST == 63
    assert 2 * 255 * -int8.LARGEST >= -(2**15)
    assert 2 * 255 * int8.LARGEST <= 2**15 - 1
    torch.manual_seed(0)
    for scale in (1e-6, 1.0, 1e6):
        for weight in (
            torch.randn(64, 256) * scale,
            torch.ones(8, 8) * scale,
            -torch.eye(8) * scale,
            torch.zeros(3, 4),
        ):
            quantised, _ = int8.rows_to_int8(weight)
            assert quantised.dtype == torch.int8
            assert quantised.abs().max() <= int8.LARGEST
    layer = int8.Int8Linear(torch.randn(8, 64), None)
    assert (layer.zero, layer.reduce_range) == (128, False), "activations have all their bits"


@pytest.mark.parametrize("inputs", [64, 384, 1536, 2047])
def test_extremes_through_the_real_kernel_give_the_exact_sums(int8: ModuleType, inputs: int) -> None:
    torch.manual_seed(0)
    weight = torch.randint(-63, 64, (48, inputs), dtype=torch.int8)
    weight[0], weight[1] = 63, -63
    weight[2, ::2], weight[2, 1::2] = 63, -63
    rows = torch.randint(-127, 128, (16, inputs)).float()
    rows[0], rows[1] = 127, -127
    rows[2, ::2], rows[2, 1::2] = 127, -127
    rows[:, 0] = 127  # so that each row's scale is 1
    exact = rows.double() @ weight.double().T
    assert exact.abs().max() > 63 * 126 * inputs
    layer = int8.Int8Linear(weight, None, scales=torch.ones(48))
    assert torch.equal(layer(rows).double().round(), exact)


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
    for layer in layers:
        layer.input_scales = torch.linspace(0.5, 2.0, 64)
    apart = torch.cat([layer(values) for layer in layers], dim=1)
    assert torch.equal(int8.joined(layers)(values), apart)
    layers[1].input_scales = torch.ones(64)
    assert int8.joined(layers) is None, "they make other int8 of the values"
