"""What sentence-transformers keeps beside a model is packed whole, or the model is refused by the module's name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from mme.catalog.reader import handler_roots
from mme.catalog.spec import ModelSpec, Source
from mme.errors import SourceError
from mme.snapshot import retrieve, sentence, sources

HANDLERS = handler_roots(Path("none"))[-1]
NEW = "sentence_transformers.sentence_transformer.modules"


def spec(folder: Path, handler: str | None = "embedding", **more: Any) -> ModelSpec:
    task = {"embedding": "feature-extraction", "reranking": "text-ranking"}.get(handler or "", "feature-extraction")
    handler_folder = HANDLERS / handler if handler else None
    return ModelSpec("m", Source("folder", "m", folder), handler=handler_folder, task=task, **more)


def built(folder: Path, *modules: tuple[str, str], first: str = "") -> Path:
    """A tiny BERT with these modules after it: (type, path). Their weights are those of a Dense from 8 to 4 numbers."""
    tiny_models.bert(folder / first if first else folder)
    listed = [("sentence_transformers.models.Transformer", first), *modules]
    items = [{"idx": n, "name": str(n), "type": kind, "path": path} for n, (kind, path) in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(items))
    for kind, path in modules:
        (folder / path).mkdir(exist_ok=True)
        config: dict[str, Any] = {"pooling_mode": "mean", "embedding_dimension": 8}
        if kind.endswith("Dense"):
            config = {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.modules.activation.Tanh"}
            weights = {"linear.weight": torch.ones(4, 8), "linear.bias": torch.zeros(4)}
            save_file(weights, folder / path / "model.safetensors")
        (folder / path / "config.json").write_text(json.dumps(config))
    return folder


POOLING = (f"{NEW}.pooling.Pooling", "1_Pooling")
DENSE = ("sentence_transformers.models.Dense", "2_Dense")


def test_all_modules_are_in_the_snapshot(tmp_path: Path) -> None:
    folder = built(tmp_path / "m", POOLING, DENSE, ("sentence_transformers.models.Normalize", "3_Normalize"))
    config = {"prompts": {"query": "find: "}, "similarity_fn_name": "dot", "__version__": {"pytorch": "2.13"}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    taken = retrieve.snapshot(spec(folder), tmp_path / "s")
    names = {item.relative_to(taken.path).as_posix() for item in taken.path.rglob("*") if item.is_file()}
    assert {
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "3_Normalize/config.json",
    } <= names
    assert load_file(taken.path / "2_Dense" / "model.safetensors")["linear.weight"].shape == (4, 8)
    assert taken.facts["similarity_fn_name"] == "dot"
    written = json.loads((taken.path / "config_sentence_transformers.json").read_text())
    assert written["prompts"] == {"query": "find: "}
    assert "__version__" not in written, "who saved it does not change an archive"


def test_how_vectors_are_compared_is_said_of_these_models_alone(tmp_path: Path) -> None:
    assert (
        retrieve.snapshot(spec(built(tmp_path / "m", POOLING)), tmp_path / "s").facts["similarity_fn_name"] == "cosine"
    )
    plain = tiny_models.bert(tmp_path / "plain")
    assert "similarity_fn_name" not in retrieve.snapshot(spec(plain), tmp_path / "t").facts


@pytest.mark.parametrize("path", ["0_Transformer", "0_BERT"])
def test_a_transformer_in_a_folder_of_its_own_comes_to_the_root(tmp_path: Path, path: str) -> None:
    folder = built(tmp_path / "m", POOLING, first=path)
    (folder / "LICENSE").write_text("as you like")
    taken = retrieve.snapshot(spec(folder), tmp_path / "s")
    assert json.loads((taken.path / "modules.json").read_text())[0]["path"] == ""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "LICENSE"):
        assert (taken.path / name).is_file()


REFUSED = {
    "WordWeights": ("sentence_transformers.models.WordWeights", "2_W"),
    "Router": ("sentence_transformers.base.modules.router.Router", "2_R"),
    "CNN": (f"{NEW}.cnn.CNN", "2_CNN"),
    "custom_st.Pruner": ("custom_st.Pruner", "2_Pruner"),
    "two_st.Transformer": ("sentence_transformers.models.Transformer", "2_T"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_the_handler_does_not_compute_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = built(tmp_path / "m", POOLING, REFUSED[name])
    with pytest.raises(SourceError, match=r"modules.json has .*" + name.rpartition(".")[2]) as caught:
        retrieve.snapshot(spec(folder), tmp_path / "s")
    assert "handler of your own" in (caught.value.hint or "")
    assert not (tmp_path / "s").exists()
    # A handler of one's own may compute it: it gets all there is.
    own = tiny_models.handler(tmp_path / "own")
    taken = retrieve.snapshot(ModelSpec("m", Source("folder", "m", folder), handler=own), tmp_path / "s")
    assert (taken.path / REFUSED[name][1] / "config.json").is_file()


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ([], "has no Pooling among its modules"),
        ([DENSE], "has no Pooling among its modules"),
        ([POOLING, (POOLING[0], "2_Pooling")], "has 2 Pooling among its modules"),
    ],
)
def test_a_list_that_gives_no_vector_is_refused(tmp_path: Path, modules: list[tuple[str, str]], reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        retrieve.snapshot(spec(built(tmp_path / "m", *modules)), tmp_path / "s")


def test_a_way_of_pooling_that_nobody_knows(tmp_path: Path) -> None:
    folder = built(tmp_path / "m", POOLING)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["mean", "median"]}')
    with pytest.raises(SourceError, match="pools by 'median'"):
        retrieve.snapshot(spec(folder), tmp_path / "s")


@pytest.mark.parametrize(
    ("kind", "handler", "hint"),
    [
        ("SparseEncoder", "embedding", "handler of your own"),
        ("CrossEncoder", "embedding", 'handler = "reranking"'),
        ("SentenceTransformer", "reranking", 'handler = "embedding"'),
    ],
)
def test_a_model_of_another_type_is_named(tmp_path: Path, kind: str, handler: str, hint: str) -> None:
    folder = built(tmp_path / "m", POOLING)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(SourceError, match=f"is a {kind} of sentence-transformers") as caught:
        retrieve.snapshot(spec(folder, handler), tmp_path / "s")
    assert hint in (caught.value.hint or "")


def test_weights_of_a_module_that_are_a_pickle(tmp_path: Path) -> None:
    folder = built(tmp_path / "m", POOLING, DENSE)
    tensors = load_file(folder / "2_Dense" / "model.safetensors")
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="2_Dense has no weights"):
        retrieve.snapshot(spec(folder), tmp_path / "s")
    torch.save(tensors, folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"2_Dense has its weights only as a pickle") as caught:
        retrieve.snapshot(spec(folder), tmp_path / "s")
    assert "allow_pickle = true" in (caught.value.hint or "")
    taken = retrieve.snapshot(spec(folder, allow_pickle=True), tmp_path / "s")
    assert torch.equal(
        load_file(taken.path / "2_Dense" / "model.safetensors")["linear.weight"], tensors["linear.weight"]
    )
    assert not list(taken.path.rglob("*.bin"))


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = built(tmp_path / "m", POOLING)
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["path"] = "../other"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(SourceError, match=r"names '\.\./other', which is not a folder beside it"):
        retrieve.snapshot(spec(folder), tmp_path / "s")


def test_from_the_hub_come_the_modules_and_one_format_of_their_weights() -> None:
    names = [
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "3_Dense/config.json",
        "3_Dense/pytorch_model.bin",
        "onnx/model.onnx",
        "0_Transformer/config.json",
        "0_Transformer/vocab.txt",
    ]
    assert set(names) - set(sources.needed(names, False, False)) == {
        "2_Dense/pytorch_model.bin",
        "3_Dense/pytorch_model.bin",
        "onnx/model.onnx",
    }
    assert "3_Dense/pytorch_model.bin" in sources.needed(names, True, False)
    assert "2_Dense/pytorch_model.bin" not in sources.needed(names, True, False)


def test_packaging_and_the_handler_know_the_same_modules(tmp_path: Path) -> None:
    code = (HANDLERS / "common" / "handler_sentence.py").read_text()
    for name in (*sentence.KINDS, *sentence.MODES):
        assert f'"{name}"' in code
    encoders = (HANDLERS / "common" / "handler_common.py").read_text()
    for kind, name in sentence.ENCODERS.items():
        assert f'"{kind}": "{name}"' in encoders


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.usefixtures("warm_accuracy")
def test_of_a_t5_the_encoder_is_embedded(tmp_path: Path, full: bool) -> None:
    """A folder of T5EncoderModel is whole, and of a T5 with a decoder only the encoder is packed."""
    from transformers import T5Config, T5EncoderModel, T5Model

    config = T5Config(vocab_size=14, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    (T5Model if full else T5EncoderModel)(config).save_pretrained(tmp_path / "t5")
    tiny_models.wordpiece(tmp_path / "t5")
    taken = retrieve.snapshot(spec(tmp_path / "t5"), tmp_path / "s")
    assert taken.facts["architecture"] == "T5EncoderModel"
    assert not any(name.startswith("decoder") for name in load_file(taken.path / "model.safetensors"))
    shutil.rmtree(taken.path)
    assert retrieve.snapshot(
        spec(tmp_path / "t5", quantize="int8", settings={"quantize": "int8"}, max_error=0.5), taken.path
    )


def test_a_model_that_begins_with_no_transformer_is_named(tmp_path: Path) -> None:
    """Its parts may be models of transformers: they are not the model."""
    for kind, where in (("StaticEmbedding", ""), ("Router", ""), ("BoW", ""), ("CLIPModel", "")):
        folder = tmp_path / kind
        tiny_models.bert(folder / "document_0_Transformer")
        listed = [{"idx": 0, "name": "0", "path": where, "type": f"sentence_transformers.models.{kind}"}]
        (folder / "modules.json").write_text(json.dumps(listed))
        with pytest.raises(SourceError, match=rf"sentence-transformers that begins with {kind} \(modules.json\)"):
            retrieve.snapshot(spec(folder), tmp_path / "s")


def test_settings_of_the_whole_that_are_no_object_are_refused(tmp_path: Path) -> None:
    folder = built(tmp_path / "m", POOLING)
    (folder / "config_sentence_transformers.json").write_text("[]")
    with pytest.raises(SourceError, match="is not a JSON object"):
        retrieve.snapshot(spec(folder), tmp_path / "s")


def test_modules_that_a_handler_does_not_follow_are_said(tmp_path: Path) -> None:
    folder = built(tmp_path / "m", POOLING, DENSE)
    (words,) = retrieve.snapshot(spec(folder, "pipeline"), tmp_path / "s").facts["unused"]
    assert words.startswith("it is a SentenceTransformer of sentence-transformers (Transformer, Pooling, Dense)")
    assert words.endswith('handler = "embedding" answers as sentence-transformers does')
    assert "unused" not in retrieve.snapshot(spec(folder), tmp_path / "t").facts
    plain = tiny_models.bert(tmp_path / "plain")
    assert "unused" not in retrieve.snapshot(spec(plain, "pipeline"), tmp_path / "u").facts
    (plain / "config_sentence_transformers.json").write_text('{"model_type": "SparseEncoder"}')
    (words,) = retrieve.snapshot(spec(plain, "pipeline"), tmp_path / "v").facts["unused"]
    assert words.startswith("it is a SparseEncoder")
    assert "handler =" not in words
