"""Vectors and scores against sentence-transformers' own, for everything that its files can say of a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from handler_tools import load, minilm, request
from sentence_transformers import CrossEncoder, SentenceTransformer
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
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForSequenceClassification,
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
SMALL = {
    "vocab_size": 30522,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 30522, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
T5 = {"vocab_size": 30522, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


def spread(model: Any) -> Any:
    """The model with numbers that are not near zero, so that nothing is equal by being small."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    return model.eval()


def raw(folder: Path, model: Any, **tokenizer: Any) -> Path:
    spread(model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm(), model_max_length=10**30, **tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw(tmp_path_factory.mktemp("tiny"), BertModel(BertConfig(**SMALL)))


def saved(folder: Path, tiny: Path, modules: list[Any], old: bool = False, length: int = 24, **options: Any) -> Path:
    """A model of these modules after the transformer in `tiny`, as sentence-transformers saves it; or, where `old`, as
    its versions until 5 did."""
    model = SentenceTransformer(modules=[Transformer(str(tiny), max_seq_length=length), *modules], **options)
    for module in modules:
        spread(module)
    model.save(str(folder))
    if old:
        older(folder, length)
    return folder


def older(folder: Path, length: int, lower: bool = False) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    for item in listed:
        kind = item["type"].rpartition(".")[2]
        item["type"] = f"sentence_transformers.models.{kind}"
        config = folder / item["path"] / "config.json"
        if kind == "Pooling":
            new = json.loads(config.read_text())
            modes = [new["pooling_mode"]] if isinstance(new["pooling_mode"], str) else new["pooling_mode"]
            names = {
                "cls": "cls_token",
                "max": "max_tokens",
                "mean": "mean_tokens",
                "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
                "weightedmean": "weightedmean_tokens",
                "lasttoken": "lasttoken",
            }
            written = {f"pooling_mode_{name}": mode in modes for mode, name in names.items()}
            size = new["embedding_dimension"]
            rest = {"word_embedding_dimension": size, "include_prompt": new["include_prompt"]}
            config.write_text(json.dumps(written | rest))
        elif kind == "Normalize":
            config.unlink()
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": lower}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 8}))


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


# --- cross-encoders --------------------------------------------------------------------------------------------------

QUERY = "Is anybody at home today?"
DOCUMENTS = [
    "Nobody.",
    "The house is quiet.",
    "Nobody is at home, and the garden gate stands open in the wind all day long.",
    "word " * 60,
]


@pytest.fixture(scope="module")
def reranking() -> ModuleType:
    return load("reranking")


def cross_encoder(folder: Path, kind: str = "bert", labels: int = 1, **options: Any) -> Path:
    if kind == "bert":
        model: Any = BertForSequenceClassification(BertConfig(**SMALL, num_labels=labels))
    else:
        config = RobertaConfig(**SMALL, pad_token_id=1, type_vocab_size=1, num_labels=labels)
        model = RobertaForSequenceClassification(config)
    plain = raw(folder.with_name(folder.name + "-raw"), model)
    CrossEncoder(str(plain), max_length=40, **options).save(str(folder))
    return folder


def ask(reranking: ModuleType, model: Any, **body: Any) -> dict[str, Any]:
    data = reranking.input_fn(json.dumps(body), "application/json")
    answer: dict[str, Any] = json.loads(reranking.output_fn(reranking.predict_fn(data, model), "application/json"))
    return answer


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("labels", "options"),
    [
        *[(1, {}), (1, {"activation_fn": torch.nn.Identity()}), (1, {"activation_fn": torch.nn.Tanh()}), (3, {})],
        *[(3, {"activation_fn": torch.nn.Softmax(dim=-1)}), (3, {"activation_fn": torch.nn.LogSoftmax(dim=-1)})],
        *[(2, {"activation_fn": torch.nn.Softmax(dim=1)}), (3, {"activation_fn": torch.nn.PReLU()})],
    ],
)
def test_scores_are_those_of_a_cross_encoder(
    reranking: ModuleType, tmp_path: Path, kind: str, labels: int, options: dict[str, Any]
) -> None:
    folder = cross_encoder(tmp_path / "m", kind, labels, **options)
    pairs = [[QUERY, document] for document in DOCUMENTS] + [[DOCUMENTS[3], DOCUMENTS[3]], ["", ""]]
    expected = CrossEncoder(str(folder)).predict(pairs, batch_size=1)
    model = reranking.model_fn(str(folder))
    assert np.abs(np.array(ask(reranking, model, inputs=pairs)["scores"]) - expected).max() < 1e-5
    for pair, score in zip(pairs, expected, strict=True):
        alone = ask(reranking, model, inputs=[{"text": pair[0], "text_pair": pair[1]}])["scores"][0]
        assert np.abs(np.array(alone) - score).max() < 1e-5
    if labels > 1 and not options:
        softmax = CrossEncoder(str(folder)).predict(pairs, apply_softmax=True)
        asked = ask(reranking, model, inputs=pairs, parameters={"activation": "softmax"})["scores"]
        assert np.abs(np.array(asked) - softmax).max() < 1e-5
        with pytest.raises(ValueError, match="gives 3 scores for a pair"):
            ask(reranking, model, query=QUERY, documents=DOCUMENTS)


def test_documents_are_ranked_as_a_cross_encoder_ranks_them(reranking: ModuleType, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path / "m")
    expected = CrossEncoder(str(folder)).rank(QUERY, DOCUMENTS, top_k=3, return_documents=True)
    model = reranking.model_fn(str(folder))
    answer = ask(reranking, model, query=QUERY, documents=DOCUMENTS, top_k=3, return_documents=True)
    assert [item["index"] for item in answer["results"]] == [item["corpus_id"] for item in expected]
    assert [item["document"] for item in answer["results"]] == [item["text"] for item in expected]
    for ours, theirs in zip(answer["results"], expected, strict=True):
        assert abs(ours["score"] - theirs["score"]) < 1e-5
    assert answer["truncated"] == [False, False, False, True]
    assert answer["tokens"][3] == 40
    asked = [
        reranking.input_fn(json.dumps({"query": QUERY, "documents": DOCUMENTS}), "application/json"),
        reranking.input_fn(json.dumps({"inputs": [["a", "b"]]}), "application/json"),
        reranking.input_fn(json.dumps({"query": QUERY, "documents": ["x"], "top_k": 0}), "application/json"),
    ]
    together = reranking.batch_fn(asked, model)
    assert [item["index"] for item in together[0]["results"]][:3] == [item["corpus_id"] for item in expected]
    assert len(together[1]["scores"]) == 1
    assert isinstance(together[2], ValueError)
    assert reranking.tokens_fn(asked[1], model) == 5


def test_activations_in_older_configurations(reranking: ModuleType, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path / "m")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    for more in (
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh", "version": "4.1.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Softmax"},
        {},
    ):
        (folder / "config.json").write_text(json.dumps(config | more))
        expected = CrossEncoder(str(folder)).predict([[QUERY, document] for document in DOCUMENTS])
        answer = ask(reranking, reranking.model_fn(str(folder)), inputs=[[QUERY, item] for item in DOCUMENTS])
        assert np.abs(np.array(answer["scores"]) - expected).max() < 1e-5
    (folder / "config.json").write_text(json.dumps(config | {"sentence_transformers": {"activation_fn": "mine.Swish"}}))
    with pytest.raises(ValueError, match=r"configuration has the activation mine.Swish, .* LogSoftmax"):
        reranking.model_fn(str(folder))


def test_a_cross_encoders_prompt_goes_before_the_first_text(reranking: ModuleType, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path / "m", prompts={"q": "find: "}, default_prompt_name="q")
    model = reranking.model_fn(str(folder))
    pairs = [[QUERY, document] for document in DOCUMENTS]
    for named in ({}, {"prompt": "other "}, {"prompt_name": "q"}):
        expected = CrossEncoder(str(folder)).predict(pairs, **named)
        assert np.abs(np.array(ask(reranking, model, inputs=pairs, **named)["scores"]) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, 'has "query", a text, and "documents"'),
        ({"query": "a"}, 'has "query", a text, and "documents"'),
        ({"query": 1, "documents": ["b"]}, "query.0. is a number"),
        ({"query": "a", "documents": []}, "not an empty one"),
        ({"query": "a", "documents": "b"}, "must be a list of texts"),
        ({"query": "a", "documents": ["b", None]}, r"documents\[1\] is null"),
        ({"query": "a", "documents": ["b"], "inputs": [["a", "b"]]}, "not both"),
        ({"query": "a", "documents": ["b"], "top_n": 1}, "Unknown field 'top_n'. Known: query, documents"),
        ({"query": "a", "documents": ["b"], "parameters": {"top_n": 1}}, "Unknown parameter 'top_n'"),
        ({"query": "a", "documents": ["b"], "top_k": 0}, "top_k must be a whole number from 1"),
        ({"query": "a", "documents": ["b"] * 257}, "There are 257 pairs; at most 256"),
        ({"inputs": []}, "not an empty one"),
        ({"inputs": [["a"]]}, r"inputs\[0\] must be a pair"),
        ({"inputs": [["a", 1]]}, r"inputs\[0\]\[1\] is a number"),
        ({"inputs": [["a", "b"]], "top_k": 1}, 'go with "query" and "documents"'),
        ({"inputs": [["a", "b"]], "parameters": {"activation": "relu"}}, "activation must be one of identity, sigmoid"),
        ({"inputs": [["word " * 99, "b"]], "parameters": {"truncate": False}}, r"inputs\[0\] has 103 tokens"),
    ],
)
def test_a_request_that_is_wrong(
    reranking: ModuleType, tmp_path_factory: pytest.TempPathFactory, body: dict[str, Any], reason: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "wrong-requests"
    model = reranking.model_fn(str(folder if folder.is_dir() else cross_encoder(folder)))
    with pytest.raises(ValueError, match=reason):
        ask(reranking, model, **body)


def test_a_chain_of_modules_is_no_cross_encoder(reranking: ModuleType, tiny: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", tiny, [Pooling(16, "mean")])
    with pytest.raises(ValueError, match="Transformer, Pooling is not computed here"):
        reranking.model_fn(str(folder))
