"""Encoders by onnxruntime in the container: chosen, compared once for each kind of model, and reported."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from container_process import Container, processes, wait_until

from mme import handler_files

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("onnxruntime")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    import tiny_models

    folders = []
    for number in range(2):
        folder = tiny_models.bert(tmp_path / f"m{number}", seed=number)
        handler_files.copy_handler(ROOT / "model_code" / "embedding", folder / "code")
        folders.append(folder)
    return folders


def loads(container: Container, count: int) -> list[dict[str, Any]]:
    """What the log says of the loads, once it has said so much."""
    lines: list[dict[str, Any]] = wait_until(
        lambda: container.events("load") if len(container.events("load")) >= count else None
    )
    return lines


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


@pytest.mark.usefixtures("forked")
def test_the_log_and_the_metrics_say_what_computes(start: Any, models: list[Path]) -> None:
    container = start(MME_PRELOAD="torch,transformers,onnxruntime")
    for number, folder in enumerate(models):
        assert container.load(f"m{number}", folder).status == 200
    for event in loads(container, 2):
        assert (event["engine"], event["engine_reason"]) == ("onnxruntime", "")
    assert container.metric('mme_model_engine{engine="onnxruntime",format="float32",model="m1",reason=""}') == 1
    # The second is of the same kind: nothing is compared, so transformers' model is not loaded.
    assert "model" not in loads(container, 2)[1]["shared"]


@pytest.mark.usefixtures("forked")
def test_a_busy_model_is_given_more_memory_and_gives_it_back(start: Any, models: list[Path]) -> None:
    container = start(MME_PRELOAD="torch,transformers,onnxruntime", MME_BUSY_ANSWERS="1")
    for number, folder in enumerate(models):
        assert container.load(f"m{number}", folder).status == 200
    text = json.dumps(["the house is quiet", "nobody"])

    def ask(name: str = "m0") -> list[list[float]]:
        reply = container.call("POST", f"/models/{name}/invoke", text, {"Content-Type": "application/json"})
        assert reply.status == 200
        embeddings: list[list[float]] = reply.json()["embeddings"]
        return embeddings

    before = ask()

    def begun() -> bool:
        assert near(ask(), before)
        return bool(container.metric("mme_busy_begun_total"))

    wait_until(begun)
    [event] = wait_until(lambda: container.events("busy"))
    assert event["model"] == "m0"
    assert container.metric('mme_model_extra_bytes{model="m0"}') == event["bytes"] > 0
    assert container.metric('mme_model_extra_bytes{model="m1"}') == 0
    assert near(ask(), before)
    wait_until(lambda: container.metric('mme_model_extra_bytes{model="m0"}') == 0)
    assert [event["reason"] for event in wait_until(lambda: container.events("busy over"))] == ["quiet"]
    assert container.metric("mme_busy_ended_total") == 1
    assert near(ask(), before)


def near(got: list[list[float]], want: list[list[float]]) -> bool:
    pairs = zip((number for row in got for number in row), (number for row in want for number in row), strict=True)
    return max(abs(one - other) for one, other in pairs) < 1e-5


@pytest.mark.usefixtures("forked")
def test_answers_are_torchs(start: Any, models: list[Path]) -> None:
    texts = json.dumps(["the house is quiet", "nobody", "home and nobody at the house ."])
    answers = []
    for engine in ("", "torch"):
        container = start(MME_PRELOAD="torch,transformers,onnxruntime", MME_ENGINE=engine)
        assert container.load("m0", models[0]).status == 200
        assert loads(container, 1)[0]["engine"] == (engine or "onnxruntime")
        reply = container.call("POST", "/models/m0/invoke", texts, {"Content-Type": "application/json"})
        assert reply.status == 200
        answers.append([number for vector in reply.json()["embeddings"] for number in vector])
    assert max(abs(one - other) for one, other in zip(*answers, strict=True)) < 1e-5


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_the_parent_has_one_thread(start: Any, models: list[Path]) -> None:
    """A fork of a process with threads is not clean: the library is imported, and used once, without starting any."""
    container = start(MME_PRELOAD="torch,transformers,onnxruntime")
    assert container.load("m0", models[0]).status == 200
    [parent] = [
        pid for pid in processes(container.process.pid) if Path(f"/proc/{pid}/comm").read_text().strip() == "mme-parent"
    ]
    assert threads(parent) == 1


def test_pipelines_are_the_engines_too_and_concurrent_requests_share_passes(start: Any, tmp_path: Path) -> None:
    import tiny_models
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    container = start(MME_PRELOAD="torch,transformers,onnxruntime")
    for number in range(2):
        folder = tmp_path / f"c{number}"
        torch.manual_seed(number)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        config = BertConfig(vocab_size=len(tiny_models.WORDS), num_labels=3, **sizes)
        BertForSequenceClassification(config).save_pretrained(folder)
        tiny_models.wordpiece(folder)
        handler_files.copy_handler(ROOT / "model_code" / "pipeline", folder / "code")
        (folder / "code" / "settings.json").write_text('{"task": "text-classification"}')
        assert container.load(f"c{number}", folder).status == 200
    for event in loads(container, 2):
        assert (event["engine"], event["engine_reason"]) == ("onnxruntime", "")
    assert "model" not in loads(container, 2)[1]["shared"]
    words = [" ".join(tiny_models.WORDS[-count:]) for count in range(1, 9)]

    def ask(text: str) -> Any:
        body = json.dumps({"inputs": text, "parameters": {"top_k": None}})
        reply = container.call("POST", "/models/c1/invoke", body, {"Content-Type": "application/json"})
        assert reply.status == 200
        return sorted((entry["label"], entry["score"]) for entry in reply.json())

    alone = [ask(text) for text in words]
    with ThreadPoolExecutor(len(words)) as pool:
        for got, want in zip(pool.map(ask, words * 3), alone * 3, strict=True):
            assert [label for label, _ in got] == [label for label, _ in want]
            assert [score for _, score in got] == pytest.approx([score for _, score in want], abs=1e-5)
