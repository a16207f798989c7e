"""Verification asks a handler that answers requests together its sample in company, too."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from mme.archive import write
from mme.catalog.spec import ModelSpec, Source
from mme.packaging import company, verify
from mme.runner.errors import ContainerTimeout
from mme.runner.process import Reply

SAMPLE = b'{"inputs": "the house is quiet", "parameters": {"mode": "not to change"}}'


def reply(answer: Any, status: int = 200) -> Reply:
    return Reply(status, {"content-type": "application/json"}, json.dumps(answer).encode())


class Batches:
    """Answers with `alone`, and with `among` where as many are asked at the same time as `doubt` asks."""

    def __init__(self, alone: Any, among: Any) -> None:
        self.alone, self.among = alone, among
        self.asked: list[bytes] = []
        self.all_here = threading.Barrier(2 * company.OF_EACH)
        self.lock = threading.Lock()

    def __call__(self, body: bytes) -> Reply:
        with self.lock:
            self.asked.append(body)
            together = len(self.asked) <= 2 * company.OF_EACH
        if together:
            self.all_here.wait(30)
        given = self.among if together else self.alone
        answer = given() if callable(given) else given
        return answer if isinstance(answer, Reply) else reply(answer)


def doubt(tmp_path: Path, alone: Any, among: Any) -> str | None:
    return company.doubt(Batches(alone, among), SAMPLE, reply(alone() if callable(alone) else alone), tmp_path)


def test_half_of_the_requests_are_longer_and_ask_the_same_otherwise(tmp_path: Path) -> None:
    ask = Batches([0.5], [0.5])
    assert company.doubt(ask, SAMPLE, reply([0.5]), tmp_path) is None
    assert sorted(map(len, ask.asked))[: company.OF_EACH] == [len(SAMPLE)] * company.OF_EACH
    longer = json.loads(max(ask.asked, key=len))
    assert longer["inputs"].count("quiet") == company.LONGER
    assert longer["parameters"] == {"mode": "not to change"}


@pytest.mark.parametrize(
    ("alone", "among"),
    [
        ([[0.5, -0.25]], [[0.5, -0.26]]),
        ({"label": "good", "score": 0.5}, {"label": "bad", "score": 0.5}),
        ([{"generated_text": "a"}], [{"generated_text": "b"}]),
        ([0.5, 0.25], [0.5]),
        ({"a": 0.5}, {"b": 0.5}),
        ([0.5], reply({"message": "no"}, 500)),
        ({"class": 3}, {"class": 4}),
    ],
)
def test_what_is_another_answer_in_company(tmp_path: Path, alone: Any, among: Any) -> None:
    said = doubt(tmp_path, alone, among)
    assert said is not None
    assert "differently than alone" in said
    assert "batch_fn" in said


@pytest.mark.parametrize(
    ("alone", "among"),
    [
        ([[0.5, -0.25]], [[0.5000004, -0.2500001]]),
        ({"label": "good", "score": 1}, {"label": "good", "score": 1.0}),
        ([0.5, None, "text"], [0.5, None, "text"]),
        ([0.5], reply({"message": "too many"}, 503)),
    ],
)
def test_what_is_the_same(tmp_path: Path, alone: Any, among: Any) -> None:
    assert doubt(tmp_path, alone, among) is None


def test_a_handler_that_draws_random_numbers_is_not_doubted(tmp_path: Path) -> None:
    numbers = iter(range(1000))
    assert doubt(tmp_path, lambda: [next(numbers) / 7], lambda: [next(numbers) / 7]) is None


def test_nor_one_that_differs_now_and_then(tmp_path: Path) -> None:
    numbers = iter(range(1000))  # 3 of the 16 asked together differ: fewer than half of the samples, in any order
    assert doubt(tmp_path, [0.5], lambda: [0.5 if next(numbers) % 6 else 0.9]) is None


def test_nor_one_that_takes_too_long(tmp_path: Path) -> None:
    def ask(body: bytes) -> Reply:
        raise ContainerTimeout("slow")

    assert company.doubt(ask, SAMPLE, reply([0.5]), tmp_path) is None


def test_fewer_bits_may_differ_more(tmp_path: Path) -> None:
    assert doubt(tmp_path, [0.5], [0.51]) is not None
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    assert doubt(tmp_path, [0.5], [0.51]) is None
    assert doubt(tmp_path, [0.5], [0.6]) is not None


def test_only_handlers_of_others_that_batch_are_asked(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "inference.py").write_text("def predict_fn(data, model): ...\n")
    assert not company.batches(tmp_path)
    (code / "own_batches.py").write_text("def batch_fn(inputs, model): ...\n")
    assert company.batches(tmp_path)
    (code / "handler_exact.py").write_text("")
    assert not company.batches(tmp_path)


LEAKS = """
import json
import os
import time
import urllib.request

calls = 0


def model_fn(model_dir):
    return {}


def input_fn(data, content_type):
    return json.loads(data)["inputs"]


def predict_fn(data, model):
    return batch_fn([data], model)[0]


def batch_fn(inputs, model):
    global calls
    calls += 1
    if calls == 2:  # the first among others: they gather while it computes
        while waiting() < TOGETHER:
            time.sleep(0.01)
    longest = max(map(len, inputs))
    return [[WHAT] for text in inputs]


def waiting():
    metrics = f"http://127.0.0.1:{os.environ['SAGEMAKER_BIND_TO_PORT']}/metrics"
    for line in urllib.request.urlopen(metrics).read().decode().splitlines():
        if line.startswith("mme_model_open_requests{"):
            return float(line.rpartition(" ")[2])
    return 0


def output_fn(prediction, accept):
    return json.dumps(prediction)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_in_our_container(tmp_path: Path) -> None:
    """A mean over the padding too is seen; one over the text alone is not doubted."""

    def seen(name: str, what: str) -> str | None:
        snapshot = tmp_path / name / "snapshot"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        source = LEAKS.replace("WHAT", what).replace("TOGETHER", str(2 * company.OF_EACH))
        handler = tiny_models.handler(tmp_path / name / "handler", source, SAMPLE.decode())
        spec = ModelSpec(name, Source("folder", "x"), handler=handler)
        return real.verify(write.build(spec, snapshot, tmp_path / name / "dist")).doubt

    with verify.Verifier() as real:
        assert seen("exact", "sum(map(ord, text)) / len(text)") is None
        said = seen("leaks", "sum(map(ord, text)) / longest")
    assert said is not None
    assert "asked at the same time as longer requests" in said
