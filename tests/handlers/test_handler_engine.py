"""Encoders computed by ONNX Runtime against transformers' own forward pass, and when they are left to torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from handler_tools import ROOT, Context, linked, load, minilm, request
from safetensors.torch import load_file, save_file
from small_encoders import BODIES, TEXTS, body
from transformers import AutoModel

load("embedding")  # which puts its modules on the path
import engine  # noqa: E402
import engine_builder  # noqa: E402
import engine_inputs  # noqa: E402


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_ENGINE")


def hidden(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        row = torch.tensor([ids])
        states: np.ndarray = model(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0].numpy()
    return states


def transformers_own(folder: Path, tokenizer: Any, pooling: str, texts: list[str], limit: int) -> np.ndarray:
    """The vectors by transformers' own forward pass, one text at a time."""
    model = AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        states = hidden(model, tokenizer(text, truncation=True, max_length=limit)["input_ids"])
        vectors.append(states.mean(axis=0) if pooling == "mean" else states[0])
    return np.stack(vectors)


def near(got: np.ndarray, want: np.ndarray) -> bool:
    return bool(np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", BODIES)
def test_vectors_are_transformers_own(
    embedding: ModuleType, bert: Path, tmp_path: Path, name: str, pooling: str
) -> None:
    context = Context()
    folder = body(name, bert, tmp_path / "m")
    model = embedding.model_fn(str(folder), context)
    assert context.notes["engine"] == "onnxruntime", context.notes
    assert model.model is None
    vectors = embedding.predict_fn(request(embedding, TEXTS, pooling=pooling), model)["embeddings"]
    assert near(vectors, transformers_own(folder, model.tokenizer, pooling, TEXTS, model.max_length))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Bert", "ForMaskedLM"),
        ("XLMRoberta", "ForSequenceClassification"),
        ("DistilBert", "ForMaskedLM"),
        ("MPNet", "ForMaskedLM"),
        ("ModernBert", "ForMaskedLM"),
        ("Electra", "ForSequenceClassification"),
        ("DebertaV2", "ForMaskedLM"),
    ],
)
def test_the_body_of_a_model_with_a_head(
    embedding: ModuleType, bert: Path, tmp_path: Path, name: str, kind: str
) -> None:
    folder = body(name, bert, tmp_path / "m", kind)
    model = embedding.model_fn(str(folder))
    assert model.engine is not None
    vectors = embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"]
    assert near(vectors, transformers_own(folder, model.tokenizer, "mean", TEXTS, model.max_length))


@pytest.mark.parametrize("name", BODIES)
def test_tokens_of_every_kind_stand_at_their_positions(bert: Path, tmp_path: Path, name: str) -> None:
    """The padding token as well, written in a text: RoBERTa's family and MPNet do not count it."""
    folder = body(name, bert, tmp_path / "m")
    encoding = engine.load(folder, transformers.AutoConfig.from_pretrained(folder))
    model = AutoModel.from_pretrained(folder).eval()
    rows = [[1, 1, 1], [101, 1, 0, 2000, 1, 102], [0, 5], [7], [1, 0, 3, 3, 3, 3]]
    got = np.split(encoding.run(rows), np.cumsum([len(row) for row in rows])[:-1])
    assert all(near(states, hidden(model, row)) for states, row in zip(got, rows, strict=True))


def test_types_of_tokens_are_taken(bert: Path, tmp_path: Path) -> None:
    folder = body("Bert", bert, tmp_path / "m")
    encoding = engine.load(folder, transformers.AutoConfig.from_pretrained(folder))
    model = AutoModel.from_pretrained(folder).eval()
    rows, types = [[101, 5, 102, 9, 102], [101, 8, 102]], [[0, 0, 0, 1, 1], [0, 0, 1]]
    got = np.split(encoding.run(rows, types=types), [5])
    for states, row, kinds in zip(got, rows, types, strict=True):
        with torch.inference_mode():
            want = model(input_ids=torch.tensor([row]), token_type_ids=torch.tensor([kinds])).last_hidden_state[0]
        assert near(states, want.numpy())


def test_a_text_of_the_greatest_length(embedding: ModuleType, tmp_path: Path) -> None:
    folder = linked(minilm(), tmp_path / "m", max_length=512, normalize=False)
    model = embedding.model_fn(str(folder))
    texts = ["rain " * 600, "rain"]
    result = embedding.predict_fn(request(embedding, texts), model)
    assert result["tokens"] == [512, 3]
    assert near(result["embeddings"], transformers_own(folder, model.tokenizer, "mean", texts, 512))


def test_requests_with_different_poolings_share_a_batch(embedding: ModuleType, bert: Path) -> None:
    model = embedding.model_fn(str(bert))
    requests = [request(embedding, TEXTS, pooling=pooling) for pooling in ("mean", "cls")]
    results = embedding.batch_fn(requests, model)
    for result, pooling in zip(results, ("mean", "cls"), strict=True):
        want = transformers_own(bert, model.tokenizer, pooling, TEXTS, model.max_length)
        assert near(result["embeddings"], want)


def test_threads_share_a_batch(embedding: ModuleType, bert: Path) -> None:
    model = embedding.model_fn(str(bert))
    many = [f"{text} {number}" for number in range(20) for text in TEXTS]
    for texts in (many, many[:1]):  # texts for each thread, and one text for several
        alone = embedding.predict_fn(request(embedding, texts), model)["embeddings"]
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            for _ in range(engine.SEVERAL_AFTER + 2):
                shared = embedding.predict_fn(request(embedding, texts), model)["embeddings"]
                assert near(shared, alone)
        finally:
            torch.set_num_threads(before)


def test_weights_in_several_files(embedding: ModuleType, bert: Path, tmp_path: Path) -> None:
    folder = body("Bert", bert, tmp_path / "m")
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    context = Context()
    model = embedding.model_fn(str(folder), context)
    assert context.notes["engine"] == "onnxruntime", context.notes
    vectors = embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"]
    assert near(vectors, transformers_own(folder, model.tokenizer, "mean", TEXTS, model.max_length))


def test_a_graph_that_answers_otherwise_is_not_used(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here because its norm adds another number than the model's. torch computes, and the reason is reported."""
    monkeypatch.setitem(engine_builder.GELU, "gelu", "tanh")
    folder = body("Bert", bert, tmp_path / "m")
    context = Context()
    model = embedding.model_fn(str(folder), context)
    assert (model.engine, context.notes["engine"]) == (None, "torch")
    assert "its answers differ by" in context.notes["reason"]
    vectors = embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"]
    assert near(vectors, transformers_own(folder, model.tokenizer, "mean", TEXTS, model.max_length))


def test_a_graph_known_to_be_equal_is_used_without_torchs_model(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context()
    embedding.model_fn(str(body("Bert", bert, tmp_path / "one")), context)
    monkeypatch.setenv("MME_ENGINE_CHECKED", f"0123 {context.notes['key']}")
    other = body("Bert", bert, tmp_path / "two")  # of the same kind, so the same graph
    monkeypatch.setattr(embedding, "_model", lambda *_: pytest.fail("transformers' model was loaded"))
    assert embedding.model_fn(str(other)).engine is not None


def test_numbers_that_are_none_do_not_pass_as_equal(
    embedding: ModuleType, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = body("Bert", bert, tmp_path / "m")
    monkeypatch.setattr(engine.Encoding, "run", lambda self, rows, *_: np.full((sum(map(len, rows)), 32), np.nan))
    assert embedding.model_fn(str(folder)).engine is None


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("Bert", {"is_decoder": True}, "decoder"),
        ("Bert", {"hidden_act": "mish"}, "activation is mish"),
        ("ModernBert", {"norm_bias": True}, None),
        ("Deberta", {"talking_head": True}, "talking_head"),
        ("DebertaV2", {"position_buckets": 64, "max_relative_positions": 32}, "64 buckets"),
    ],
)
def test_what_a_graph_is_had_for(
    embedding: ModuleType, bert: Path, tmp_path: Path, name: str, changes: dict[str, Any], reason: str | None
) -> None:
    context = Context()
    model = embedding.model_fn(str(body(name, bert, tmp_path / "m", **changes)), context)
    assert (model.engine is None) == (reason is not None)
    assert (reason or "") in context.notes["reason"]


def test_another_format_is_torchs(embedding: ModuleType, tmp_path: Path) -> None:
    context = Context()
    model = embedding.model_fn(str(linked(minilm(), tmp_path / "m", dtype="bfloat16")), context)
    assert model.engine is None
    assert "bfloat16" in context.notes["reason"]


def test_weights_of_another_format_are_torchs(embedding: ModuleType, bert: Path, tmp_path: Path) -> None:
    folder = body("Bert", bert, tmp_path / "m")
    halves = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    context = Context()
    model = embedding.model_fn(str(folder), context)
    assert model.engine is None
    assert "F16" in context.notes["reason"]
    want = transformers_own(folder, model.tokenizer, "mean", TEXTS, model.max_length)
    assert near(embedding.predict_fn(request(embedding, TEXTS), model)["embeddings"], want)


@pytest.mark.parametrize("damage", ["header", "short", "offsets"])
def test_a_damaged_file_is_left_to_transformers_to_refuse(bert: Path, tmp_path: Path, damage: str) -> None:
    folder = body("Bert", bert, tmp_path / "m")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if damage == "header":
        path.write_bytes(b"\xff" * 8 + data[8:])
    elif damage == "short":
        path.write_bytes(data[: len(data) // 2])
    else:
        header = json.loads(data[8 : 8 + size])
        header["embeddings.LayerNorm.weight"]["data_offsets"] = [10**9, 10**9 + 128]
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(engine.Unsupported):
        engine.load(folder, transformers.AutoConfig.from_pretrained(folder))


def test_without_onnxruntime_torch_computes(embedding: ModuleType, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "onnxruntime", None)
    context = Context()
    assert embedding.model_fn(str(bert), context).engine is None
    assert context.notes["reason"] == "onnxruntime is not installed"


@pytest.mark.parametrize("name", sorted(BODIES))
def test_packed_weights_answer_alike_and_are_given_back(bert: Path, tmp_path: Path, name: str) -> None:
    folder = body(name, bert, tmp_path / "model")
    encoding = engine.load(folder, transformers.AutoConfig.from_pretrained(folder))
    if name == "Albert":  # its layers share weights, of which each would have a copy
        assert encoding.bytes == 0
        return
    assert 0 < encoding.bytes < (folder / "model.safetensors").stat().st_size
    rows = [[101, 7, 8, 9, 102], [101, 102], list(range(200, 290))]
    before = encoding.run(rows)
    encoding.begin()
    assert encoding._session(1) is not encoding._one
    assert near(encoding.run(rows), before)
    encoding.end()
    assert encoding._session(1) is encoding._one
    assert near(encoding.run(rows), before)


def test_packed_weights_that_answer_otherwise_are_refused(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = body("Bert", bert, tmp_path / "model")
    encoding = engine.load(folder, transformers.AutoConfig.from_pretrained(folder))
    other = body("Bert", bert, tmp_path / "other", layer_norm_eps=0.3)
    unlike = engine.load(other, transformers.AutoConfig.from_pretrained(other))
    monkeypatch.setattr(engine, "_session", lambda *_, **__: unlike._one)
    with pytest.raises(engine.Unsupported, match="otherwise"):
        encoding.begin()
    assert encoding._session(1) is encoding._one


def test_importing_it_starts_no_thread() -> None:
    """A fork of a process with threads is not clean; and the thread would report to the library's maker."""
    code = "import sys, os; sys.path.insert(0, sys.argv[1]); import engine; print(len(os.listdir('/proc/self/task')))"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads are counted in /proc")
    command = [sys.executable, "-c", code, str(ROOT / "model_code" / "common")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_distances_fall_into_mpnets_buckets() -> None:
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = np.arange(-600, 601)
    want = MPNetEncoder.relative_position_bucket(torch.from_numpy(distances)).numpy()
    assert (engine_inputs._buckets(distances, 32) == want).all()


def test_passes_have_tokens_of_like_lengths() -> None:
    lengths = [200, 60, 50, 20, 20, 10, 5, 5, 5]
    rows = [[0] * length for length in lengths]
    made = engine.batches(list(range(9)), rows, 8192)
    assert sorted(row for batch in made for row in batch) == list(range(9))
    for batch in made:
        sizes = [lengths[row] for row in batch]
        spread, needed = len(batch) * max(sizes) ** 2, sum(size**2 for size in sizes)
        assert spread <= max(engine.SMALL_SPREAD, engine.SPREAD * needed)
        assert len(batch) == 1 or sum(sizes) <= engine.PASS_TOKENS
    assert engine.batches([0, 1], [[0] * 600, [0] * 2], 8192) == [[0], [1]]


def test_a_model_that_is_asked_now_and_then_has_no_session_of_several_threads(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    session = engine._session
    monkeypatch.setattr(engine, "_session", lambda *args, **more: made.append(args[2]) or session(*args, **more))
    now = [0.0]
    monkeypatch.setattr(engine.time, "perf_counter", lambda: now[0])
    encoder = engine.load(bert, AutoModel.from_pretrained(bert).config)

    def passes(count: int, pause: float) -> list[int]:
        for _ in range(count):
            now[0] += pause
            encoder.run([[101, 7592, 102]], threads=2)
        return made

    assert passes(3 * engine.SEVERAL_AFTER, engine.PAUSE + 0.1) == [1]
    assert passes(engine.SEVERAL_AFTER - 1, 0.01) == [1]
    assert passes(1, 0.01) == [1, 2]


def test_one_thread_computes_where_several_are_slower() -> None:
    """As on a machine where another process has one of the cores; and the other way is tried now and then."""
    pace = engine.Pace()
    for chosen, seconds in [(2, 0.02), (1, 0.01)]:
        assert engine._choose(pace, 2) == chosen
        engine._note(pace, chosen, seconds)
    passes = round(1 / engine.TRY_COST)  # it takes twice as long, so that it costs one pass in so many
    tried = [engine._choose(pace, 2) for _ in range(passes)]
    assert tried == [1] * (passes - 1) + [2]
    for _ in range(5):
        engine._note(pace, 2, 0.005)  # the other process has ended
    assert engine._choose(pace, 2) == 2
    engine._note(pace, 2, 0.03)  # and is there again: once is enough
    assert engine._choose(pace, 2) == 1


@pytest.mark.parametrize(
    ("one", "two", "every"),
    [
        (0.010, 0.010, engine.TRY_EVERY),
        (0.010, 0.011, engine.TRY_EVERY),
        (0.010, 0.015, 0.5 / engine.TRY_COST),
        (0.015, 0.010, 0.5 / engine.TRY_COST),
        (0.030, 0.010, 2 / engine.TRY_COST),
        (0.010, 1.000, engine.TRY_EVERY_MOST),
        (0.010, 0.000, engine.TRY_EVERY),
    ],
)
def test_the_slower_way_is_tried_the_less_the_slower_it_is(one: float, two: float, every: float) -> None:
    """Or it would be in the slowest hundredth of all answers, on a quiet machine and on a busy one."""
    pace = engine.Pace({1: one, 2: two})
    best = 2 if two < one else 1
    tries = [engine._choose(pace, 2) for _ in range(3 * engine.TRY_EVERY_MOST)]
    places = [place for place, chosen in enumerate(tries, 1) if chosen != best]
    assert places[0] == pytest.approx(every, abs=1)
    assert len(places) == int(len(tries) // places[0])
