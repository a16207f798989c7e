"""The embedding handler against transformers' own forward pass, on the real all-MiniLM-L6-v2."""

import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from handler_tools import linked, load, minilm, request
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

TEXTS = [
    "The house is quiet.",
    "Nobody is at home, and the garden gate stands open in the wind.",
    "Rain.",
    "",
    "Über den Dächern 🌧 日本語 " * 3,
    "word " * 300,
]


@pytest.fixture(scope="module")
def reference(bert: Path) -> Any:
    """The vectors as one would compute them by hand: one text at a time, nothing padded, mean pooling."""
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()

    def compute(text: str, pooling: str = "mean", max_length: int = 512) -> np.ndarray:
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**encoded).last_hidden_state[0]
        vector: np.ndarray = (hidden.mean(dim=0) if pooling == "mean" else hidden[0]).numpy()
        return vector

    return compute


def answer(handler: ModuleType, model: Any, inputs: Any, **parameters: Any) -> dict[str, Any]:
    body = handler.output_fn(handler.predict_fn(request(handler, inputs, **parameters), model), "application/json")
    result: dict[str, Any] = json.loads(body)
    return result


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_the_models_own_forward_pass(
    embedding: ModuleType, embedder: Any, reference: Any, pooling: str
) -> None:
    together = answer(embedding, embedder, TEXTS, pooling=pooling)["embeddings"]
    for text, vector in zip(TEXTS, together, strict=True):
        alone = answer(embedding, embedder, text, pooling=pooling)["embeddings"]
        assert np.abs(np.array(alone[0]) - reference(text, pooling)).max() < 1e-5
        assert np.abs(np.array(vector) - reference(text, pooling)).max() < 1e-5


def test_truncation_is_said_and_cuts_where_the_tokenizer_would(
    embedding: ModuleType, embedder: Any, reference: Any
) -> None:
    result = answer(embedding, embedder, ["one two three four five six", "one"], max_length=5)
    assert result["truncated"] == [True, False]
    assert result["tokens"] == [5, 3]
    expected = reference("one two three four five six", max_length=5)
    assert np.abs(np.array(result["embeddings"][0]) - expected).max() < 1e-5


def test_a_text_too_long_is_refused_where_truncation_is_not_wanted(embedding: ModuleType, embedder: Any) -> None:
    with pytest.raises(ValueError, match=r"inputs\[1\] has 602 tokens; at most 512 are read"):
        answer(embedding, embedder, ["fine", "word " * 600], truncate=False)
    with pytest.raises(ValueError, match=r"^inputs has 602 tokens"):
        answer(embedding, embedder, "word " * 600, truncate=False)


def test_normalized_vectors_have_length_one(embedding: ModuleType, embedder: Any) -> None:
    plain = np.array(answer(embedding, embedder, TEXTS)["embeddings"])
    unit = np.array(answer(embedding, embedder, TEXTS, normalize=True)["embeddings"])
    assert np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert np.allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)


def test_npy_holds_the_same_vectors_without_pickle(embedding: ModuleType, embedder: Any) -> None:
    prediction = embedding.predict_fn(request(embedding, TEXTS), embedder)
    array = np.load(io.BytesIO(embedding.output_fn(prediction, "application/x-npy")), allow_pickle=False)
    assert array.dtype == np.float32
    assert array.shape == (len(TEXTS), 384)
    in_json = json.loads(embedding.output_fn(prediction, "application/json"))["embeddings"]
    assert np.array_equal(array, np.array(in_json, np.float32)), "JSON keeps every bit of a float32"


def test_json_is_the_same_without_orjson(embedding: ModuleType, embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction = embedding.predict_fn(request(embedding, TEXTS), embedder)
    fast = json.loads(embedding.output_fn(prediction, "application/json"))
    monkeypatch.setattr(embedding, "orjson", None)
    assert json.loads(embedding.output_fn(prediction, "application/json")) == fast


def test_a_batch_gives_each_request_what_it_would_get_alone(embedding: ModuleType, embedder: Any) -> None:
    asked = [
        request(embedding, TEXTS, pooling="cls"),
        request(embedding, "word " * 30, max_length=4),
        request(embedding, "short", truncate="yes"),
        request(embedding, TEXTS[::-1], normalize=True),
        request(embedding, "word " * 600, truncate=False),
        request(embedding, ["a", "b"], pooling="mean"),
    ]
    for _ in range(2):  # the second time the tokens are there already
        together = embedding.batch_fn(asked, embedder)
        for one, got in zip(asked, together, strict=True):
            if isinstance(got, Exception):
                with pytest.raises(type(got), match=str(got)[:20].replace("[", r"\[")):
                    embedding.predict_fn(one, embedder)
                continue
            alone = embedding.predict_fn(one, embedder)
            assert np.abs(got["embeddings"] - alone["embeddings"]).max() < 1e-5
            assert (got["tokens"], got["truncated"]) == (alone["tokens"], alone["truncated"])
        assert [isinstance(got, ValueError) for got in together] == [False, False, True, False, True, False]


def test_an_empty_batch_is_no_trouble(embedding: ModuleType, embedder: Any) -> None:
    assert embedding.batch_fn([], embedder) == []


def test_tokens_fn_counts_what_is_read(embedding: ModuleType, embedder: Any) -> None:
    assert embedding.tokens_fn(request(embedding, "one"), embedder) == 3
    assert embedding.tokens_fn(request(embedding, ["one", "word " * 600]), embedder) == 3 + 512
    assert embedding.tokens_fn(request(embedding, "one", pooling="no such"), embedder) == 1


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"pooling": "median"}, "parameters.pooling must be one of cls, max, mean, .*, not 'median'"),
        ({"normalize": 1}, "parameters.normalize must be true or false, not 1"),
        ({"max_length": 0}, "parameters.max_length must be a whole number from 3 to 512, not 0"),
        ({"max_length": 513}, "from 3 to 512, not 513"),
        ({"max_length": 8.0}, "not 8.0"),
        ({"max_length": True}, "not True"),
    ],
)
def test_parameters_out_of_bounds(
    embedding: ModuleType, embedder: Any, parameters: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        answer(embedding, embedder, "hi", **parameters)


def test_too_many_texts_are_refused(embedding: ModuleType, embedder: Any) -> None:
    with pytest.raises(ValueError, match="inputs has 257 texts; at most 256"):
        answer(embedding, embedder, ["hi"] * 257)


def test_settings_are_defaults_that_a_request_may_change(embedding: ModuleType, bert: Path, tmp_path: Path) -> None:
    model = embedding.model_fn(str(linked(bert, tmp_path / "m", pooling="cls", normalize=True, max_length=8)))
    plain = embedding.model_fn(str(bert))
    asked = answer(embedding, plain, "word " * 20, pooling="cls", normalize=True, max_length=8)
    assert answer(embedding, model, "word " * 20) == asked
    assert answer(embedding, model, "word " * 20, max_length=16)["tokens"] == [16]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"poling": "cls"}, "unknown setting 'poling'. Known: pooling"),
        ({"pooling": "median"}, "code/settings.json: pooling must be one of cls, max, mean"),
        ({"max_length": 1000}, "code/settings.json: max_length must be a whole number from 3 to 512, not 1000"),
        ({"dtype": "int8"}, "code/settings.json: dtype must be one of"),
        ({"max_inputs": 0}, "code/settings.json: max_inputs"),
        ({"quantize": "int4"}, "code/settings.json: quantize must be one of int8, not 'int4'"),
        ({"quantize": "int8", "dtype": "bfloat16"}, "quantize needs dtype float32, not bfloat16"),
    ],
)
def test_wrong_settings_fail_the_load_and_say_why(
    embedding: ModuleType, bert: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        embedding.model_fn(str(linked(bert, tmp_path / "m", **settings)))


def test_settings_that_are_no_object_are_refused(embedding: ModuleType, bert: Path, tmp_path: Path) -> None:
    folder = linked(bert, tmp_path / "m")
    (folder / "code" / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        embedding.model_fn(str(folder))
    (folder / "code" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is not valid JSON"):
        embedding.model_fn(str(folder))


def test_what_sentence_transformers_noted_is_the_default(embedding: ModuleType, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 is mean pooling, normalised, 256 tokens; settings still come first."""
    model = embedding.model_fn(str(minilm()))
    result = answer(embedding, model, "word " * 400)
    assert result["tokens"] == [256]
    assert np.isclose(np.linalg.norm(result["embeddings"][0]), 1, atol=1e-6)
    own = embedding.model_fn(str(linked(minilm(), tmp_path / "m", normalize=False, max_length=300)))
    result = answer(embedding, own, "word " * 400)
    assert result["tokens"] == [300]
    assert not np.isclose(np.linalg.norm(result["embeddings"][0]), 1, atol=1e-3)


def test_half_precision_weights_answer_in_float32(
    embedding: ModuleType, embedder: Any, bert: Path, tmp_path: Path
) -> None:
    model = embedding.model_fn(str(linked(bert, tmp_path / "m", dtype="bfloat16")))
    assert next(model.model.parameters()).dtype == torch.bfloat16
    half = embedding.predict_fn(request(embedding, TEXTS[:3]), model)["embeddings"]
    full = embedding.predict_fn(request(embedding, TEXTS[:3]), embedder)["embeddings"]
    assert half.dtype == np.float32
    cosine = (half * full).sum(axis=1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
    assert cosine.min() > 0.999


def test_a_roberta_reads_to_the_end_of_its_positions_and_not_beyond(
    embedding: ModuleType, bert: Path, tmp_path: Path
) -> None:
    """RoBERTa's positions begin behind its padding index: of a table of 20 it can read 18 tokens."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=30522,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        pad_token_id=1,
        type_vocab_size=1,
    )
    RobertaModel(config).save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "m")
    model = embedding.model_fn(str(tmp_path / "m"))
    assert answer(embedding, model, "word " * 50)["tokens"] == [18]


@settings(max_examples=200)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=80), st.integers(1, 4096), st.booleans())
def test_batches_hold_every_row_once_and_keep_within_the_budget(lengths: list[int], most: int, packed: bool) -> None:
    rows = [[0] * length for length in lengths]
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
    batches = load("embedding").handler_exact.batches(order, rows, most, packed)
    assert [row for batch in batches for row in batch] == order
    for batch in batches:
        if packed:
            assert len(batch) == 1 or sum(lengths[row] for row in batch) <= most
            continue
        padded = len(batch) * max(lengths[row] for row in batch)
        assert len(batch) == 1 or padded <= most
        assert padded <= 256 or len(batch) == 1 or padded - sum(lengths[row] for row in batch) <= padded // 4


MODEL_WITH_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, 4)
        self.post_init()
    def forward(self, input_ids, attention_mask=None):
        return BaseModelOutput(last_hidden_state=self.table(input_ids))
"""


def test_a_models_own_code_runs_only_where_the_operator_says_so(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.delenv("HF_TRUST_REMOTE_CODE", raising=False)
    folder = tmp_path / "own"
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    (folder / "own.py").write_text(MODEL_WITH_CODE)
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    config = {"model_type": "own", "vocab_size": 30522, "architectures": ["OwnModel"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    table = torch.arange(30522 * 4, dtype=torch.float32).reshape(30522, 4)
    save_file({"table.weight": table}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trust_remote_code"):
        embedding.model_fn(str(folder))
    monkeypatch.setenv("HF_TRUST_REMOTE_CODE", "true")
    model = embedding.model_fn(str(folder))
    vectors = embedding.predict_fn(request(embedding, "a"), model)["embeddings"]
    ids = model.tokenizer("a")["input_ids"]
    assert np.allclose(vectors[0], table[ids].mean(dim=0).numpy())


def test_texts_are_read_as_transformers_reads_them(embedding: ModuleType, embedder: Any) -> None:
    assert embedder.reads is not None, "of this tokenizer the library alone makes the tokens"
    embedding.predict_fn(request(embedding, TEXTS[-1], max_length=5), embedder)
    assert embedder.reads.truncation is not None, "a text that was cut leaves that behind"
    for typed in (False, True):
        data = request(embedding, TEXTS)
        embedding.tokenize([data], embedder.tokenizer, typed, embedder.reads)
        wanted = embedder.tokenizer(TEXTS, verbose=False)
        assert data.tokens == wanted["input_ids"]
        assert data.types == (wanted["token_type_ids"] if typed else None)


def test_a_tokenizer_that_changes_what_the_library_makes_is_asked_itself(embedding: ModuleType, embedder: Any) -> None:
    kind = type(embedder.tokenizer)

    class Reversed(kind):  # type: ignore[misc, valid-type]
        def __call__(self, *texts: Any, **options: Any) -> Any:
            encoded = super().__call__(*texts, **options)
            return {name: [row[::-1] for row in rows] for name, rows in encoded.items()}

    class Splitting(kind):  # type: ignore[misc, valid-type]
        """Whose vocabulary changes after it was read, so that only its tokens tell."""

        @property
        def backend_tokenizer(self) -> Any:
            other = type(super().backend_tokenizer).from_str(super().backend_tokenizer.to_str())
            other.add_tokens(["The house"])
            return other

    for other in (Reversed, Splitting):
        made = other.from_pretrained(embedder.tokenizer.name_or_path)
        assert embedding.direct(made) is None
        data = request(embedding, TEXTS)
        embedding.tokenize([data], made, False, embedding.direct(made))
        assert data.tokens == [list(ids) for ids in made(TEXTS, verbose=False)["input_ids"]]
    assert embedding.direct(object()) is None
