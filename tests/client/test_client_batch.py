"""What goes into a request and what comes of several answers."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy
import pytest

from mme.client import batch
from mme.client.endpoint import MAX_BODY, Answer
from mme.client.errors import AnswerError
from mme.errors import UsageError


def bodies(inputs: Any, **more: Any) -> list[Any]:
    return [json.loads(request.body) for request in batch.cut(inputs, **more).requests]


@pytest.mark.parametrize(
    ("inputs", "sent"),
    [
        ("a text", {"inputs": "a text"}),
        ("", {"inputs": ""}),
        (7, {"inputs": 7}),
        (["a"], {"inputs": ["a"]}),
        (("a", "b"), {"inputs": ["a", "b"]}),
        ((letter for letter in "ab"), {"inputs": ["a", "b"]}),
        ({"a": 1}.keys(), {"inputs": ["a"]}),
        ({"question": "who?", "context": "me"}, {"question": "who?", "context": "me"}),
        ({"inputs": "a", "parameters": {"top_k": 1}}, {"inputs": "a", "parameters": {"top_k": 1}}),
        ({"inputs": ["a"], "prompt_name": "query"}, {"inputs": ["a"], "prompt_name": "query"}),
        ([{"text": "a"}, {"text": "b"}], {"inputs": [{"text": "a"}, {"text": "b"}]}),
        ([numpy.float32(1.5), numpy.arange(2)], {"inputs": [1.5, [0, 1]]}),
        (numpy.array(["a", "b"]), {"inputs": ["a", "b"]}),
        (numpy.array("a"), {"inputs": "a"}),
    ],
)
def test_what_is_sent(inputs: Any, sent: Any) -> None:
    assert bodies(inputs) == [sent]


def test_parameters_go_with_every_part() -> None:
    assert bodies(["a", "b", "c"], parameters={"top_k": 1}, most=2) == [
        {"inputs": ["a", "b"], "parameters": {"top_k": 1}},
        {"inputs": ["c"], "parameters": {"top_k": 1}},
    ]
    assert bodies({"inputs": ["a", "b"], "prompt_name": "query"}, most=1) == [
        {"inputs": ["a"], "prompt_name": "query"},
        {"inputs": ["b"], "prompt_name": "query"},
    ]
    assert bodies("a", parameters={"top_k": 1}) == [{"inputs": "a", "parameters": {"top_k": 1}}]


def test_a_list_is_cut_by_number_and_by_bytes_and_fills_each_request() -> None:
    assert [request.inputs for request in batch.cut(["x"] * 70).requests] == [range(32), range(32, 64), range(64, 70)]
    texts = ["é" * 300_000] * 9  # 1.8 MB each once written as JSON
    work = batch.cut(texts)
    assert [request.inputs for request in work.requests] == [range(3), range(3, 6), range(6, 9)]
    assert all(len(request.body) <= MAX_BODY for request in work.requests)
    assert [text for request in work.requests for text in json.loads(request.body)["inputs"]] == texts


def test_a_request_may_have_exactly_the_limit() -> None:
    (request,) = batch.cut(["a", "x" * (MAX_BODY - len(b'{"inputs": ["a", ""]}'))]).requests
    assert len(request.body) == MAX_BODY
    assert len(batch.cut(["a", "x" * (MAX_BODY - len(b'{"inputs": ["a", ""]}') + 1)]).requests) == 2


def test_an_input_above_the_limit_is_named_before_anything_is_sent() -> None:
    with pytest.raises(batch.RequestTooLarge, match=r"Input 1 \(counted from 0\)") as caught:
        batch.cut(["a", "x" * MAX_BODY, "b"])
    assert caught.value.index == 1
    for alone in ("x" * MAX_BODY, {"inputs": "x" * MAX_BODY}):
        with pytest.raises(batch.RequestTooLarge, match="The input makes"):
            batch.cut(alone)
    with pytest.raises(batch.RequestTooLarge):
        batch.cut(b"x" * (MAX_BODY + 1), content_type="image/png")
    with pytest.raises(batch.RequestTooLarge):
        batch.cut(numpy.zeros((1, MAX_BODY)))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "list of inputs is empty"),
        ((), "list of inputs is empty"),
        (iter([]), "list of inputs is empty"),
        ({"inputs": []}, "list of inputs is empty"),
        (numpy.zeros((0, 3)), "array is empty"),
        (None, "None"),
        ({"a", "b"}, "no order"),
        (float("nan"), "cannot be sent as JSON"),
        (["a", float("inf")], r"Input 1 \(counted"),
        (["a", b"b"], r"Input 1 \(counted"),
        ([object()], "object is not a JSON value"),
        ({("a", 1): 2}, "cannot be sent as JSON"),
        (b"bytes", "need a content type"),
        (numpy.array([{"a": 1}], dtype=object), "takes numbers"),
        (numpy.array(["2026-01-01"], dtype="datetime64[D]"), "takes numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_sent_is_refused(inputs: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        batch.cut(inputs)


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UsageError, match="Circular"):
        batch.cut({"inputs": endless})


@pytest.mark.parametrize(
    "more",
    [
        {"inputs": b"x", "content_type": "image/png", "parameters": {"a": 1}},
        {"inputs": numpy.zeros(3), "parameters": {"a": 1}},
        {"inputs": {"inputs": "a", "parameters": {}}, "parameters": {"a": 1}},
        {"inputs": "a", "content_type": "text/plain"},
        {"inputs": ["a"], "content_type": "application/x-npy"},
    ],
)
def test_what_does_not_go_together_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        batch.cut(**more)


def test_a_chat_is_one_input() -> None:
    chat = [{"role": "user", "content": str(n)} for n in range(100)]
    assert bodies(chat) == [{"inputs": chat}]


def test_a_list_beside_the_inputs_keeps_them_together() -> None:
    pairs = {"inputs": ["a"] * 40, "text_pair": ["b"] * 40}
    with pytest.raises(UsageError, match="'text_pair'"):
        batch.cut(pairs)
    assert bodies(pairs, most=40) == [pairs]


def test_arrays_go_as_npy_cut_by_bytes() -> None:
    array = numpy.arange(3_000_000, dtype=numpy.float64).reshape(3000, 1000)
    work = batch.cut(array)
    assert work.content_type == "application/x-npy"
    assert len(work.requests) == 4
    assert all(len(request.body) <= MAX_BODY for request in work.requests)
    parts = [numpy.load(io.BytesIO(request.body)) for request in work.requests]
    assert numpy.array_equal(numpy.concatenate(parts), array)
    assert [part.shape[0] for part in parts] == [len(request.inputs or ()) for request in work.requests]
    (alone,) = batch.cut(numpy.float32(3)).requests
    assert numpy.load(io.BytesIO(alone.body)) == 3
    assert [request.inputs for request in batch.cut(numpy.zeros((5, 0)), most=3).requests] == [range(3), range(3, 5)]
    assert bodies(numpy.arange(4).reshape(2, 2), content_type="application/json") == [{"inputs": [[0, 1], [2, 3]]}]


# ---- answers ------------------------------------------------------------------------------------------------------


def test_answers_are_joined_in_order() -> None:
    ranges = [range(2), range(2, 3)]
    assert batch.join("t", [(ranges[0], [1, 2]), (ranges[1], [3])]) == [1, 2, 3]
    first = {"embeddings": [[1.0], [2.0]], "model": "m", "labels": ["x"]}
    second = {"embeddings": [[3.0]], "model": "m", "labels": ["x"]}
    parts = [(ranges[0], first), (ranges[1], {**second, "labels": ["x"]})]
    assert batch.join("t", parts) == {"embeddings": [[1.0], [2.0], [3.0]], "model": "m", "labels": ["x"]}
    arrays = [(ranges[0], numpy.ones((2, 3))), (ranges[1], numpy.zeros((1, 3)))]
    assert batch.join("t", arrays).shape == (3, 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1], [3]),
        ([1, 2], {"a": 1}),
        ({"a": 1}, {"b": 1}),
        ({"took": 1.0}, {"took": 2.0}),
        ("text", "text"),
        (numpy.ones((2, 3)), numpy.ones((1, 4))),
        (numpy.ones((3, 3)), numpy.ones((3, 3))),
        (numpy.float64(1), numpy.float64(1)),
    ],
)
def test_answers_that_belong_to_no_input_are_refused(first: Any, second: Any) -> None:
    with pytest.raises(AnswerError, match="make no answer to the list"):
        batch.join("t", [(range(2), first), (range(2, 3), second)])


def answer(body: bytes, kind: str) -> Answer:
    return Answer(body, kind, "t", "main", 0.1)


def test_answers_are_read_by_their_type() -> None:
    file = io.BytesIO()
    numpy.save(file, numpy.ones(2))
    assert batch.read(answer(file.getvalue(), "application/x-npy")).tolist() == [1, 1]
    assert batch.read(answer(b'{"a": 1}', "application/json; charset=utf-8")) == {"a": 1}
    assert batch.read(answer("ü".encode(), "text/plain")) == "ü"
    assert batch.read(answer(b"\x89PNG", "image/png")) == b"\x89PNG"
    assert batch.read(answer(b"\x89", "")) == b"\x89"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"),
        (b"[" * 200_000, "application/json"),
        (b"", "application/json"),
        (b"", "application/x-npy"),
        (b"\x93NUMPY", "application/x-npy"),
        (b"\xff", "text/plain"),
    ],
)
def test_an_answer_that_is_not_what_its_type_says(body: bytes, kind: str) -> None:
    with pytest.raises(AnswerError, match="that are not"):
        batch.read(answer(body, kind))


def test_a_pickled_answer_and_an_archive_of_arrays_are_not_opened() -> None:
    pickled, archive = io.BytesIO(), io.BytesIO()
    numpy.save(pickled, numpy.array([{}], dtype=object), allow_pickle=True)
    numpy.savez(archive, a=numpy.ones(1))
    for file in (pickled, archive):
        with pytest.raises(AnswerError):
            batch.read(answer(file.getvalue(), "application/x-npy"))
