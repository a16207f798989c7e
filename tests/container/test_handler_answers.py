"""What a handler says of its answer reaches the client, and what a client accepts decides what it gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container

Make = Callable[..., Path]

SAYS = """
    def model_fn(model_dir): return None
    def predict_fn(data, model, context):
        said = {}
        exec(data["do"], {"context": context, "said": said})
        return said
"""


def said(container: Container, do: str, **headers: str) -> tuple[int, dict[str, str], object]:
    answer = container.invoke("says", json.dumps({"do": do}), **headers)
    return answer.status, answer.headers, answer.json()


@pytest.fixture
def says(container: Container, handler: Make) -> Container:
    assert container.load("says", handler("says", SAYS)).status == 200
    return container


@pytest.mark.parametrize(
    "call",
    [
        "context.set_response_status(422, 'No')",
        "context.set_response_status(code=422, phrase='No', idx=0)",
        "context.set_all_response_status(422, 'No')",
        "context.request_processor[0].report_status(422, reason_phrase='No')",
    ],
)
def test_a_status_by_any_of_the_contexts_ways(says: Container, call: str) -> None:
    do = f"{call}; said['got'] = context.get_response_status(0)"
    status, _, body = said(says, do)
    assert (status, body) == (422, {"got": [422, "No"]})
    assert said(says, "said['got'] = context.get_response_status(0)[0]")[::2] == (200, {"got": 200}), "its own alone"


@pytest.mark.parametrize(
    "call", ["context.set_response_header(0, {})", "context.request_processor[0].add_response_property({})"]
)
def test_headers_of_the_answer(says: Container, call: str) -> None:
    """Custom attributes are what InvokeEndpoint hands to its caller."""
    name = "X-Amzn-SageMaker-Custom-Attributes"
    do = call.format(f"'{name}', 'trace=1'") + "; " + call.format("'X-Own', 'v'") + "; " + call.format("'x-own', 'w'")
    status, headers, _ = said(says, f"{do}; said['all'] = context.get_response_headers(0)")
    assert (status, headers[name.lower()], headers["x-own"]) == (200, "trace=1", "w")
    assert "x-own" not in said(says, "pass")[1], "its own alone"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Length", "3"),
        ("transfer-encoding", "chunked"),
        ("Connection", "close"),
        ("X Own", "v"),
        ("X-Own:", "v"),
        ("X-Own", "a\r\nX-Forged: 1"),
        ("X-Own", "\u65e5"),
        ("X-Own", 3),
        ("X-Own", "x" * 20_000),
    ],
)
def test_a_header_that_cannot_be_sent_is_an_error(says: Container, name: str, value: object) -> None:
    status, headers, body = said(says, f"context.set_response_header(0, {name!r}, {value!r})")
    assert (status, "x-forged" in headers) == (500, False)
    assert isinstance(body, dict)
    assert "The handler set" in body["message"]
    assert said(says, "pass")[0] == 200


def test_each_request_has_an_id_of_its_own(says: Container) -> None:
    ids = [said(says, "said['id'] = context.get_request_id(0), context.request_ids[0]")[2] for _ in range(2)]
    assert ids[0] != ids[1]
    assert all(isinstance(pair, dict) and pair["id"][0] == pair["id"][1] != "" for pair in ids)


TABLE = """
    def model_fn(model_dir): return None
    def predict_fn(data, model): return [{"label": "a", "score": 0.5}]
"""


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/csv;q=0.1, application/json", "application/json"),
        ("application/json;q=0.2, text/csv;q=0.9", "text/csv"),
        ("text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", "application/json"),
        ("text/*", "text/csv"),
        ("application/json;q=0, */*", None),
        ("application/json;q=0", None),
        ("application/json; q=0, text/csv; q=0.1", "text/csv"),
        ("image/*, text/csv;q=0.5", "text/csv"),
        ("image/*", None),
        ("application/x-npy, application/json", "application/json"),
        (" , application/json", "application/json"),
        ("APPLICATION/JSON;Q=1", "application/json"),
    ],
)
def test_the_most_wanted_type_that_can_be_had(
    container: Container, handler: Make, accept: str, kind: str | None
) -> None:
    assert container.load("table", handler("table", TABLE)).status == 200
    answer = container.invoke("table", Accept=accept)
    if kind is None:
        assert answer.status == 406
    else:
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
        assert answer.body.startswith(b"label,score" if kind == "text/csv" else b'[{"label"')


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html;q=0.1, text/plain", "text/plain"),
        ("audio/*", "application/octet-stream"),
        ("text/x;q=0", "application/json"),
    ],
)
def test_what_an_answer_of_the_handlers_own_is_called(
    container: Container, handler: Make, accept: str, kind: str
) -> None:
    source = "def model_fn(d): return None\ndef predict_fn(d, m): return d\ndef output_fn(p, accept): return b'own'"
    assert container.load("own", handler("own", source)).status == 200
    answer = container.invoke("own", Accept=accept)
    assert (answer.body, answer.headers["content-type"]) == (b"own", kind)


def test_two_texts_are_no_body_with_its_type(container: Container, handler: Make) -> None:
    source = (
        "def model_fn(d): return None\ndef predict_fn(d, m): return d\ndef output_fn(p, accept): return 'a/b', 'and/or'"
    )
    assert container.load("two", handler("two", source)).status == 200
    assert container.invoke("two").json() == ["a/b", "and/or"]


@pytest.mark.parametrize(
    ("body", "content_type", "answer"),
    [
        (b'{"a": "\xc3\xa9"}', "application/json; charset=utf-8", {"a": "\u00e9"}),
        (b'{"a": "\xc3\xa9"}', "application/json; charset=iso-8859-1", {"a": "\u00c3\u00a9"}),
        (b'{"a": "\xe9"}', 'application/json; charset="ISO-8859-1"', {"a": "\u00e9"}),
        ('{"a": "\u00e9"}'.encode("utf-16"), "application/json; charset=utf-16", {"a": "\u00e9"}),
        (b"inputs\n\x80\n", "text/csv; charset=windows-1252", {"inputs": ["\u20ac"]}),
        (b'{"a": "\xe9"}', "application/json", 400),
        (b'{"a": "\xe9"}', "application/json; charset=us-ascii", 400),
        (b"{}", "application/json; charset=rot13", 415),
        (b"[" * 20_000 + b"]" * 20_000, "application/json", 400),
    ],
)
def test_a_body_is_read_in_its_charset(
    container: Container, handler: Make, body: bytes, content_type: str, answer: object
) -> None:
    source = "def model_fn(d): return None\ndef predict_fn(data, model): return data"
    assert container.load("same", handler("same", source)).status == 200
    reply = container.invoke("same", body, Content_Type=content_type)
    assert (reply.status if isinstance(answer, int) else reply.json()) == answer
