"""Vectors against sentence-transformers' own, for everything that its files can say of a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from handler_tools import SMALL, load, request
from sentence_folders import older, raw, saved
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
    WeightedLayerPooling,
    WordWeights,
)
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

TEXTS = [
    "Rain.",
    "The house is quiet.",
    "  Spaces on BOTH sides  ",
    "Nobody is at home, and the garden gate stands open in the wind all day long.",
    "word " * 40,
    "",
    "Rain.",
]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
GPT2 = {"vocab_size": 30522, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
T5 = {"vocab_size": 30522, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw(tmp_path_factory.mktemp("tiny"), BertModel(BertConfig(**SMALL)))


def same(embedding: ModuleType, folder: Path, texts: list[str] = TEXTS, **parameters: Any) -> np.ndarray:
    """The handler's vectors, alone and together, after a comparison with sentence-transformers'."""
    named = {name: parameters[name] for name in ("prompt", "prompt_name") if name in parameters}
    peer = SentenceTransformer(str(folder))
    expected = np.stack([peer.encode([text], **named)[0] for text in texts])
    model = embedding.model_fn(str(folder))
    together = embedding.predict_fn(request(embedding, texts, **parameters), model)["embeddings"]
    assert together.shape == expected.shape
    assert np.abs(together - expected).max() < 1e-5
    for text, vector in zip(texts, expected, strict=True):
        alone = embedding.predict_fn(request(embedding, text, **parameters), model)["embeddings"][0]
        assert np.abs(alone - vector).max() < 1e-5
    return together


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_pooling(embedding: ModuleType, tiny: Path, tmp_path: Path, mode: str, old: bool) -> None:
    same(embedding, saved(tmp_path / "m", tiny, [Pooling(16, mode)], old))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("modes", [("cls", "mean"), ("cls", "max", "mean", "lasttoken"), tuple(MODES)])
def test_several_ways_of_pooling_stand_side_by_side(
    embedding: ModuleType, tiny: Path, tmp_path: Path, modes: tuple[str, ...], old: bool
) -> None:
    vectors = same(embedding, saved(tmp_path / "m", tiny, [Pooling(16, modes)], old))
    assert vectors.shape == (len(TEXTS), 16 * len(modes))


def test_newer_files_say_the_order_of_the_modes(embedding: ModuleType, tiny: Path, tmp_path: Path) -> None:
    same(embedding, saved(tmp_path / "m", tiny, [Pooling(16, ("mean", "cls"))]))


CHAINS: dict[str, Any] = {
    "dense": lambda: [Pooling(16, "mean"), Dense(16, 8)],
    "dense without bias": lambda: [Pooling(16, "mean"), Dense(16, 8, bias=False, activation_function=None)],
    "activations": lambda: [
        Pooling(16, "cls"),
        Dense(16, 16, activation_function=torch.nn.GELU()),
        Dense(16, 24, activation_function=torch.nn.ReLU()),
    ],
    "dense and normalize": lambda: [Pooling(16, "mean"), Dense(16, 8), Normalize()],
    "activation with weights": lambda: [
        Pooling(16, "mean"),
        Dense(16, 8, activation_function=torch.nn.PReLU(init=0.1)),
    ],
    "normalize within": lambda: [Pooling(16, "mean"), Normalize(), Dense(16, 8)],
    "layer norm": lambda: [Pooling(16, "mean"), Dropout(0.3), LayerNorm(16), Normalize()],
    "everything": lambda: [
        Pooling(16, ("cls", "mean")),
        LayerNorm(32),
        Dense(32, 8),
        Dropout(0.1),
        Dense(8, 4),
        Normalize(),
    ],
}
NEWER: dict[str, Any] = {
    "residual": lambda: [Pooling(16, "mean"), Dense(16, 16, use_residual=True), Dense(16, 8, use_residual=True)],
    "on tokens": lambda: [
        Dense(16, 8, module_input_name="token_embeddings"),
        Normalize("token_embeddings"),
        Pooling(8, ("max", "mean")),
    ],
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_every_module_is_computed(embedding: ModuleType, tiny: Path, tmp_path: Path, name: str, old: bool) -> None:
    same(embedding, saved(tmp_path / "m", tiny, CHAINS[name](), old))


@pytest.mark.parametrize("name", NEWER)
def test_modules_as_newer_versions_have_them(embedding: ModuleType, tiny: Path, tmp_path: Path, name: str) -> None:
    same(embedding, saved(tmp_path / "m", tiny, NEWER[name]()))


@pytest.mark.parametrize("states", [True, False])
def test_a_weighted_mean_of_layers(embedding: ModuleType, tiny: Path, tmp_path: Path, states: bool) -> None:
    modules = [WeightedLayerPooling(16, num_hidden_layers=2, layer_start=1), Pooling(16, "mean")]
    folder = saved(tmp_path / "m", tiny, modules)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"output_hidden_states": states}))
    same(embedding, folder)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_prompts(embedding: ModuleType, tiny: Path, tmp_path: Path, mode: str, include: bool, old: bool) -> None:
    prompts = {"query": "search for this: ", "passage": "passage: "}
    modules = [Pooling(16, mode, include_prompt=include)]
    folder = saved(tmp_path / "m", tiny, modules, old, prompts=prompts, default_prompt_name="query")
    plain = same(embedding, folder)
    named = same(embedding, folder, prompt_name="passage")
    same(embedding, folder, prompt="anything else ")
    none = same(embedding, folder, prompt="")
    same(embedding, folder, prompt_name="document")  # a name that every model has
    assert np.abs(plain - none).max() > 1e-3
    assert np.abs(plain - named).max() > 1e-3


def test_a_prompt_may_stand_beside_the_inputs(embedding: ModuleType, tiny: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", tiny, [Pooling(16, "mean")], prompts={"query": "find: "})
    model = embedding.model_fn(str(folder))
    body = {"inputs": ["Rain."], "prompt_name": "query"}
    beside = embedding.predict_fn(embedding.input_fn(json.dumps(body), "application/json"), model)["embeddings"]
    inside = embedding.predict_fn(request(embedding, ["Rain."], prompt="find: "), model)["embeddings"]
    assert np.array_equal(beside, inside)
    with pytest.raises(ValueError, match=r"no prompt called 'qery'. It has: query, document"):
        embedding.predict_fn(request(embedding, "Rain.", prompt_name="qery"), model)


def test_requests_with_other_prompts_and_pooling_share_a_batch(
    embedding: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    modules = [Pooling(16, "mean", include_prompt=False), Dense(16, 8)]
    folder = saved(tmp_path / "m", tiny, modules, prompts={"query": "find: "})
    model = embedding.model_fn(str(folder))
    asked = [
        request(embedding, TEXTS),
        request(embedding, TEXTS, prompt_name="query"),
        request(embedding, TEXTS[:2], pooling="cls", prompt="x y z "),
        request(embedding, TEXTS[:3], pooling=["max"], normalize=True, dimensions=5),
    ]
    for one, got in zip(asked, embedding.batch_fn(asked, model), strict=True):
        alone = embedding.predict_fn(one, model)["embeddings"]
        assert got["embeddings"].shape == alone.shape
        assert np.abs(got["embeddings"] - alone).max() < 1e-5


def test_no_text_left_after_a_prompt_that_is_not_pooled(embedding: ModuleType, tiny: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", tiny, [Pooling(16, "max", include_prompt=False)])
    tokens = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokens | {"post_processor": None}))  # no special tokens
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = embedding.model_fn(str(folder))
    with pytest.raises(ValueError, match="no tokens after the prompt"):
        embedding.predict_fn(request(embedding, "Rain.", prompt="word " * 60, max_length=3), model)


@pytest.mark.parametrize("lower", [False, True])
def test_the_length_and_the_case_of_what_is_read(
    embedding: ModuleType, tmp_path: Path, lower: bool, tiny: Path
) -> None:
    """The length is sentence_bert_config.json's, more than what the tokenizer says of itself (8) included."""
    cased = tmp_path / "cased"
    shutil.copytree(tiny, cased)
    tokens = json.loads((cased / "tokenizer.json").read_text())
    tokens["normalizer"]["lowercase"] = False
    (cased / "tokenizer.json").write_text(json.dumps(tokens))
    settings = json.loads((cased / "tokenizer_config.json").read_text())
    (cased / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    folder = saved(tmp_path / "m", cased, [Pooling(16, "mean")])
    older(folder, 24, lower)
    same(embedding, folder, ["The House IS Quiet", "the house is quiet", "word " * 40])
    result = embedding.predict_fn(request(embedding, "word " * 40), embedding.model_fn(str(folder)))
    assert (result["tokens"], result["truncated"]) == ([24], [True])


def test_fewer_dimensions(embedding: ModuleType, tiny: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", tiny, [Pooling(16, "mean"), Normalize()], truncate_dim=6)
    assert same(embedding, folder).shape[1] == 6
    model = embedding.model_fn(str(folder))
    asked = embedding.predict_fn(request(embedding, TEXTS, dimensions=4, normalize=True), model)["embeddings"]
    expected = SentenceTransformer(str(folder)).encode(TEXTS, truncate_dim=4, normalize_embeddings=True)
    assert np.abs(asked - expected).max() < 1e-5
    with pytest.raises(ValueError, match="dimensions is 17, and this model's vectors have 16 numbers"):
        embedding.predict_fn(request(embedding, "Rain.", dimensions=17), model)


@pytest.mark.parametrize("side", ["left", "right"])
def test_other_kinds_of_transformers(embedding: ModuleType, tmp_path: Path, side: str) -> None:
    """Not only those that run without padding; and padding on either side."""
    models = {
        "roberta": RobertaModel(RobertaConfig(**SMALL, pad_token_id=1, type_vocab_size=1)),
        "mpnet": MPNetModel(MPNetConfig(**SMALL | {"vocab_size": 30527})),
        "gpt2": GPT2Model(GPT2Config(**GPT2)),
        "t5": T5EncoderModel(T5Config(**T5)),
    }
    for name, model in models.items():
        folder = raw(tmp_path / name, model, padding_side=side)
        modes = ("weightedmean", "lasttoken", "cls")
        modules = [Pooling(16, modes, include_prompt=False), Dense(48, 4), Normalize()]
        same(embedding, saved(tmp_path / f"{name}-st", folder, modules), prompt="find: ")


def test_a_full_t5_is_embedded_by_its_encoder(embedding: ModuleType, tmp_path: Path) -> None:
    folder = raw(tmp_path / "t5", T5Model(T5Config(**T5)))
    same(embedding, saved(tmp_path / "m", folder, [Pooling(16, "mean")]))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a module of its own": (
        {"type": "custom_st.Pruner", "path": "2_Pruner"},
        "custom_st.Pruner is a module of its own",
    ),
    "words": ({"type": "sentence_transformers.models.WordWeights", "path": "2_WordWeights"}, "2_WordWeights is a"),
    "a second pooling": ({"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}, "is a Pooling"),
    "an escape": ({"type": "sentence_transformers.models.Dense", "path": "../other"}, "'../other' is not the path"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_is_not_computed_is_refused_by_name(
    embedding: ModuleType, tiny: Path, tmp_path: Path, name: str
) -> None:
    folder = saved(tmp_path / "m", tiny, [Pooling(16, "mean")])
    listed = json.loads((folder / "modules.json").read_text())
    module, reason = REFUSED[name]
    (folder / "modules.json").write_text(json.dumps([*listed, {"idx": 2, "name": "2", **module}]))
    with pytest.raises(ValueError, match=reason):
        embedding.model_fn(str(folder))


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "1_Pooling pools by 'median'"),
        ("1_Pooling/config.json", {"pooling_mode": None, "pooling_mode_first_and_last": True}, "first_and_last"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Softmax"}, "activation torch.nn.Softmax"),
        ("2_Dense/config.json", {"activation_function": "my_package.Swish"}, "activation my_package.Swish"),
        ("2_Dense/config.json", {"module_input_name": "scores"}, "reads scores"),
        ("2_Dense/config.json", {"out_features": 9}, "does not fit its config.json"),
        ("2_Dense/config.json", {"module_output_name": 0}, "writes 0"),
        ("2_Dense/config.json", {"out_features": "8"}, "out_features must be a whole number from 1 to 65536, not '8'"),
        ("2_Dense/config.json", {"in_features": 10**12}, "in_features must be a whole number"),
        ("2_Dense/config.json", {"in_features": None}, "in_features must be a whole number"),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}, "prompts must be an object of texts"),
        ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "prompts must be an object of texts"),
        ("config_sentence_transformers.json", {"default_prompt_name": ["query"]}, "default_prompt_name is"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "this is a SparseEncoder"),
        ("config_sentence_transformers.json", {"default_prompt_name": "qery"}, "default_prompt_name is 'qery'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "Transformer for fill-mask"),
        ("sentence_bert_config.json", {"tokenizer_args": {"add_eos_token": True}}, "tokenizer_args.add_eos_token"),
    ],
)
def test_what_else_would_change_the_answers_is_refused(
    embedding: ModuleType, tiny: Path, tmp_path: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    folder = saved(tmp_path / "m", tiny, [Pooling(16, "mean"), Dense(16, 8)])
    changed = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=reason):
        embedding.model_fn(str(folder))


def test_weights_of_modules_that_are_missing(embedding: ModuleType, tiny: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", tiny, [Pooling(16, "mean"), Dense(16, 8)])
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"2_Dense has no model.safetensors"):
        embedding.model_fn(str(folder))


def test_a_module_without_weights_of_that_name(tiny: Path, tmp_path: Path) -> None:
    """WordWeights is a module of sentence-transformers that no handler here computes: the list above is not made up."""
    vocabulary = list(AutoTokenizer.from_pretrained(tiny).get_vocab())
    modules = [WordWeights(vocabulary, {"rain": 2.0}), Pooling(16, "mean")]
    SentenceTransformer(modules=[Transformer(str(tiny)), *modules]).save(str(tmp_path / "m"))
    with pytest.raises(ValueError, match="1_WordWeights is a WordWeights"):
        load("embedding").model_fn(str(tmp_path / "m"))


def test_a_token_that_the_model_does_not_know_is_refused_alone(
    embedding: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    """Tokenizers may have more tokens than the model has embeddings: looking one up fails the whole batch."""
    folder = saved(tmp_path / "m", tiny, [Pooling(16, "mean")])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<beyond>"])
    tokenizer.save_pretrained(folder)
    model = embedding.model_fn(str(folder))
    first, refused, last = embedding.batch_fn(
        [request(embedding, t) for t in ("Rain.", "a <beyond> b", "Rain.")], model
    )
    assert isinstance(refused, ValueError)
    assert "inputs has the token '<beyond>', which the model does not know" in str(refused)
    assert np.array_equal(first["embeddings"], last["embeddings"])
