"""A source that is not a model of transformers is named for what it is; and files beside a model are taken or
reported."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from mme.catalog import reader
from mme.catalog.spec import ModelSpec, Source
from mme.errors import CatalogError, SourceError
from mme.snapshot import extra, retrieve

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 90868376\n"


def spec(folder: Path, **more: Any) -> ModelSpec:
    return ModelSpec("m", Source("folder", "m", folder), task="feature-extraction", **more)


def refused(folder: Path, **more: Any) -> tuple[str, str]:
    with pytest.raises(SourceError) as caught:
        retrieve.snapshot(spec(folder, **more), folder.parent / "s")
    assert not (folder.parent / "s").exists()
    return caught.value.message, caught.value.hint or ""


@pytest.mark.parametrize(
    ("files", "said", "hint"),
    [
        (["llama-7b.Q4_K_M.gguf"], "GGUF, the format of llama.cpp", "config.json and model.safetensors"),
        (
            ["onnx/model.onnx", "tokenizer.json"],
            "onnx/model.onnx is ONNX",
            "folder or repository that it was made from",
        ),
        (["model.pkl"], "a pickle, as scikit-learn saves", "models of transformers alone"),
        (["model.joblib"], "scikit-learn", "models of transformers alone"),
        (["saved_model.pb", "variables/variables.index"], "TensorFlow (SavedModel)", "made from"),
        (["openvino_model.xml", "openvino_model.bin"], "OpenVINO", "made from"),
        (["epoch=3.ckpt"], "a training checkpoint", "save_pretrained"),
        (["config.json", "pytorch_model_fsdp_0/__0_0.distcp"], "(FSDP)", "accelerate merge-weights"),
        (["model.pt"], "PyTorch, saved as a whole", "save_pretrained"),
        (["readme.txt"], "is not a model: there is no config.json", "A model's folder has config.json"),
        (["inner/config.json"], "is not a model: there is no config.json", "Is it in inner?"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, files: list[str], said: str, hint: str) -> None:
    for name in files:
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_bytes(pickle.dumps([1]) if name.endswith("pkl") else b"{}")
    message, way_out = refused(tmp_path / "m")
    assert said in message
    assert hint in way_out


@pytest.mark.parametrize("name", ["model.gguf", "onnx/model.onnx", "tf_model.h5", "flax_model.msgpack"])
def test_weights_in_another_format_beside_a_configuration(tmp_path: Path, name: str) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    message, way_out = refused(folder)
    assert f"has its weights only in another format: {name}" in message
    assert way_out


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_named_with_its_base(tmp_path: Path, with_config: bool) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    if with_config:
        (folder / "config.json").write_text("{}")
    message, way_out = refused(folder)
    assert "LoRA adapter" in message
    assert "it says owner/base" in way_out
    assert "as adapter" in way_out


def test_an_mlflow_model_is_named_with_the_folder_that_is_in_it(tmp_path: Path) -> None:
    tiny_models.bert(tmp_path / "m" / "model")
    (tmp_path / "m" / "MLmodel").write_text("flavors:\n  transformers: {}\n")
    message, way_out = refused(tmp_path / "m")
    assert "is an MLflow model" in message
    assert "is the folder model" in way_out


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vocab.txt", "config.json"])
def test_pointers_of_git_lfs_are_named(tmp_path: Path, name: str) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    (folder / name).write_text(POINTER)
    message, way_out = refused(folder)
    assert f"{name} is a git-lfs pointer" in message
    assert "git lfs pull" in way_out


def test_a_pointer_that_nothing_needs_is_no_matter(tmp_path: Path) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    for name in ("pytorch_model.bin", "tf_model.h5", "logo.png"):
        (folder / name).write_text(POINTER)
    taken = retrieve.snapshot(spec(folder), tmp_path / "s")
    assert "left_out" not in taken.facts, "all of these are known not to be meant"


# --- files beside the weights ----------------------------------------------------------------------------------------


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    folder = tiny_models.bert(tmp_path / "m")
    for name in ("label_map.json", "extra/a.txt", "extra/deep/b.txt", "words.txt", "runs/events.1", "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_files_are_taken_along(beside: Path, tmp_path: Path) -> None:
    taken = retrieve.snapshot(spec(beside, files=("label_map.json", "extra/**")), tmp_path / "s")
    for name in ("label_map.json", "extra/a.txt", "extra/deep/b.txt"):
        assert (taken.path / name).read_text() == "{}"
    assert not (taken.path / "words.txt").exists()
    assert taken.facts["left_out"] == ["words.txt"]


def test_what_is_left_out_is_reported_and_junk_is_not(beside: Path, tmp_path: Path) -> None:
    facts = retrieve.snapshot(spec(beside), tmp_path / "s").facts
    assert facts["left_out"] == ["extra/a.txt", "extra/deep/b.txt", "label_map.json", "words.txt"]
    assert extra.words(facts["left_out"]).startswith("left out: extra/a.txt, extra/deep/b.txt, label_map.json")
    assert "left_out" not in retrieve.snapshot(spec(beside, files=("**",)), tmp_path / "t").facts


def test_a_pattern_that_names_nothing_is_refused(beside: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no file that is 'labelmap.json'") as caught:
        retrieve.snapshot(spec(beside, files=("labelmap.json",)), tmp_path / "s")
    assert "Did you mean 'label_map.json'?" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.json", ["a.json"]),
        ("**", ["a.json", "x/b.json", "x/y/c.txt"]),
        ("**/*.json", ["a.json", "x/b.json"]),
        ("x/**", ["x/b.json", "x/y/c.txt"]),
        ("x/*", ["x/b.json"]),
        ("?.json", ["a.json"]),
        ("a.jso[n]", []),
    ],
)
def test_patterns(pattern: str, names: list[str]) -> None:
    assert extra.chosen([pattern], ["a.json", "x/b.json", "x/y/c.txt"]) == names


@pytest.mark.parametrize("files", ['["../other"]', '["/etc/passwd"]', "[1]", '[""]', '"label_map.json"'])
def test_files_that_cannot_be_meant(tmp_path: Path, files: str) -> None:
    table = f'[models.m]\nsource = "folder:m"\nhandler = "embedding"\nfiles = {files}\n'
    (tmp_path / "models.toml").write_text(table)
    with pytest.raises(CatalogError, match=r"models.toml:4: files must be a list of"):
        reader.load(tmp_path / "models.toml")


@pytest.mark.parametrize("rest", ["", 'task = "fill-mask"\n'])
def test_a_folders_own_handler_is_used(tmp_path: Path, rest: str) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    tiny_models.handler(folder / "code")
    (tmp_path / "models.toml").write_text(f'[models.m]\nsource = "folder:m"\n{rest}')
    [model] = reader.load(tmp_path / "models.toml").models
    assert model.handler == folder / "code"
    assert model.task == ("fill-mask" if rest else None)
    facts = retrieve.snapshot(ModelSpec("m", model.source, handler=model.handler), tmp_path / "s").facts
    assert "left_out" not in facts


def test_the_handler_of_the_table_wins_and_that_is_reported(tmp_path: Path) -> None:
    folder = tiny_models.bert(tmp_path / "m")
    tiny_models.handler(folder / "code")
    (tmp_path / "models.toml").write_text('[models.m]\nsource = "folder:m"\nhandler = "embedding"\n')
    [model] = reader.load(tmp_path / "models.toml").models
    assert model.handler is not None
    assert model.handler.name == "embedding"
    names = retrieve.snapshot(model, tmp_path / "s").facts["left_out"]
    assert "its own code/inference.py is left out: the handler of its table is used" in extra.words(names)
