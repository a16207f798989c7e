"""Tensors from file to file, without loading the model: the same bytes as by way of transformers, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from mme.catalog.spec import TASKS, ModelSpec, Source
from mme.snapshot import checkpoint, retrieve, weights
from mme.snapshot import tensors as snapshot_tensors
from mme.snapshot.tensors import INPUT_SCALES, INT8, LARGEST, SAFETENSORS, SCALES, cast, content, int8, read_tensor
from mme.snapshot.weights import Piece

ROOT = Path(__file__).parents[2]
FEATURES, TEXT, MASKED = "feature-extraction", "text-generation", "fill-mask"


def spec(folder: Path, task: str | None, **more: object) -> ModelSpec:
    return ModelSpec("model", Source("folder", "model", folder), task=task, **more)  # type: ignore[arg-type]


def match(folder: Path, task: str, pickled: bool = False) -> checkpoint.Matched | None:
    import transformers

    return checkpoint.match(folder, getattr(transformers, TASKS[task][0]), pickled)


def masked(folder: Path) -> Path:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=14, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForMaskedLM(config).save_pretrained(folder)
    tiny_models.wordpiece(folder)
    return folder


def half(folder: Path) -> Path:
    from transformers import AutoModel

    tiny_models.bert(folder)
    AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    return folder


def old_names(folder: Path) -> Path:
    tiny_models.bert(folder)
    tensors = load_file(folder / "model.safetensors")
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        tensors = {"bert." + name.replace(new, old).removeprefix("bert."): held for name, held in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def sharded(folder: Path) -> Path:
    from transformers import AutoModel

    tiny_models.bert(folder, hidden_size=32)
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / weights.INDEX).is_file()
    return folder


def llama(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_models.gpt2(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def pickled(folder: Path) -> Path:
    """With a tensor that lies the other way round in its storage, and two that share one."""
    tiny_models.bert(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name] = tensors[name].T.contiguous().T
    norms = [name for name in tensors if name.endswith("LayerNorm.bias")]
    both = torch.arange(float(len(norms) * 8)).reshape(len(norms), 8)
    tensors |= dict(zip(norms, both, strict=True))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def mixed(folder: Path) -> Path:
    """Its configuration says another number format than its tensors have: it is the one that counts."""
    tiny_models.bert(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return folder


def mixtral(folder: Path) -> Path:
    """transformers 5 has the experts of a layer in one tensor in memory, and each in its own on the disk."""
    from transformers import MixtralConfig, MixtralForCausalLM

    tiny_models.gpt2(folder)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, max_position_embeddings=64,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def legacy(folder: Path) -> Path:
    pickled(folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


Make = Callable[[Path], Path]
STREAMED: dict[str, tuple[Make, str]] = {
    "BERT": (tiny_models.bert, FEATURES),
    "the body of a BERT with a head": (masked, FEATURES),
    "a BERT with a head, whose weight is that of the words": (masked, MASKED),
    "float16": (half, FEATURES),
    "names of 2018": (old_names, FEATURES),
    "in shards": (sharded, FEATURES),
    "GPT-2": (tiny_models.gpt2, TEXT),
    "the body of a GPT-2": (tiny_models.gpt2, FEATURES),
    "a Llama in bfloat16": (llama, TEXT),
    "a pickle": (pickled, FEATURES),
    "another format than its configuration says": (mixed, FEATURES),
}
LOADED: dict[str, tuple[Make, str]] = {
    "experts": (mixtral, TEXT),
    "an old pickle": (legacy, FEATURES),
}


@pytest.mark.parametrize(("make", "task"), STREAMED.values(), ids=STREAMED.keys())
def test_the_same_bytes_as_by_way_of_transformers(
    make: Make, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model")
    assert match(folder, task, pickled=(folder / "pytorch_model.bin").exists())
    wanted = spec(folder, task, allow_pickle=True)

    def never(*_: object) -> None:
        raise AssertionError("it was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(retrieve, "load_model", never)
        streamed = retrieve.snapshot(wanted, tmp_path / "streamed")
    monkeypatch.setattr(retrieve, "match", lambda *_: None)
    loaded = retrieve.snapshot(wanted, tmp_path / "loaded")
    assert streamed.facts == loaded.facts
    assert streamed.digests == loaded.digests
    assert {p.name: p.read_bytes() for p in streamed.path.iterdir()} == {
        p.name: p.read_bytes() for p in loaded.path.iterdir()
    }


@pytest.mark.parametrize(("make", "task"), LOADED.values(), ids=LOADED.keys())
def test_what_takes_transformers_to_read_is_loaded(make: Make, task: str, tmp_path: Path) -> None:
    import transformers

    folder = make(tmp_path / "model")
    assert match(folder, task, pickled=make is legacy) is None
    taken = retrieve.snapshot(spec(folder, task, allow_pickle=True), tmp_path / "out").path
    factory = getattr(transformers, TASKS[task][0])
    before, after = (factory.from_pretrained(path, dtype="auto").state_dict() for path in (folder, taken))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_under_the_other_of_two_names_are_not_guessed_at(tmp_path: Path) -> None:
    folder = tiny_models.gpt2(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert match(folder, TEXT) is None


def test_a_pickle_whose_bytes_are_packed_is_not_read_in_place(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    packed = tmp_path / "packed.bin"
    with (
        zipfile.ZipFile(folder / "pytorch_model.bin") as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert checkpoint.pickled_pieces(folder / "pytorch_model.bin")
    assert checkpoint.pickled_pieces(packed) is None


# --- pieces ----------------------------------------------------------------------------------------------------------


def piece(tensor: torch.Tensor, step: int) -> Piece:
    data = bytes(content(tensor))
    kind = SAFETENSORS[str(tensor.dtype).removeprefix("torch.")]
    parts = [data[at : at + step] for at in range(0, len(data), step)]
    return Piece("x", kind, tuple(tensor.shape), lambda: iter(parts))


@pytest.mark.parametrize("step", [1, 3, 7, 4096])
def test_numbers_are_cast_wherever_the_bytes_are_cut(step: int) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(13, 5) * 1e3
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        assert torch.equal(read_tensor(cast(piece(tensor, step), name)), tensor.to(dtype))
    whole_numbers = piece(torch.arange(5), step)
    assert cast(whole_numbers, "float16") is whole_numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_rows_are_the_same_everywhere(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's, the handler's and packaging's, to the bit; with a row of noughts, and a few rows at a time."""
    sys.path.insert(0, str(ROOT / "model_code" / "common"))
    try:
        import handler_int8
    finally:
        sys.path.pop(0)
    named = (handler_int8.STORED, handler_int8.SCALES, handler_int8.INPUT_SCALES, handler_int8.LARGEST)
    assert named == (INT8, SCALES, INPUT_SCALES, LARGEST)
    monkeypatch.setattr(snapshot_tensors, "ROWS_AT_ONCE", 100)
    torch.manual_seed(0)
    weight = (torch.randn(23, 17) * torch.logspace(-6, 6, 23)[:, None]).to(dtype)
    weight[4] = 0
    exact = weight.float().numpy()
    scales = np.maximum(np.abs(exact).max(axis=1) / np.float32(63), np.float32(1e-30))
    rows = np.rint(exact / scales[:, None]).astype(np.int8)
    for transposed in (False, True):
        stored = piece(weight.T.contiguous() if transposed else weight, 64)
        numbers, scale = (read_tensor(part) for part in int8(stored, transposed))
        assert np.array_equal(numbers.numpy(), rows)
        assert np.array_equal(scale.numpy(), scales)
    numbers, scale = handler_int8.rows_to_int8(weight)
    assert np.array_equal(numbers.numpy(), rows)
    assert np.array_equal(scale.numpy(), scales)


# --- memory ----------------------------------------------------------------------------------------------------------

GROWTH = """
import re, sys
from pathlib import Path
from mme.catalog.spec import ModelSpec, Source
from mme.snapshot import retrieve

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def take(name):
    folder = Path(sys.argv[1]) / name
    more = {"dtype": "bfloat16"} if sys.argv[2] == "dtype" else {}
    if sys.argv[2] == "adapter":
        more["adapter"] = Source("folder", "adapter", Path(sys.argv[1]) / ("adapter-" + name))
    spec = ModelSpec(name, Source("folder", name, folder), task="feature-extraction", allow_pickle=True, **more)
    return retrieve.snapshot(spec, Path(sys.argv[1]) / ("out-" + name))

take("small")
before = peak()
take("large")
print(peak() - before)
"""


def lora(folder: Path, size: int) -> None:
    folder.mkdir()
    name = "base_model.model.encoder.layer.0.attention.self.query"
    halves = {f"{name}.lora_A.weight": torch.ones(2, size), f"{name}.lora_B.weight": torch.ones(size, 2)}
    save_file(halves, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("how", ["plain", "dtype", "adapter", "pickle"])
def test_memory_is_that_of_a_tensor_and_not_of_the_model(how: str, tmp_path: Path) -> None:
    """A model of 71 MB, whose largest tensor has 4 MB. The first, small model brings all that is imported."""
    for name, size, layers in (("small", 8, 1), ("large", 512, 6)):
        tiny_models.bert(
            tmp_path / name, hidden_size=size, num_hidden_layers=layers, intermediate_size=4 * size if size > 8 else 16
        )
        lora(tmp_path / f"adapter-{name}", size)
        if how == "pickle":
            file = tmp_path / name / "model.safetensors"
            torch.save(load_file(file), tmp_path / name / "pytorch_model.bin")
            file.unlink()
    assert sum(path.stat().st_size for path in (tmp_path / "large").iterdir()) > 70e6
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path), how], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) < 30e6
