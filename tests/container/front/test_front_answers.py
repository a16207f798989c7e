"""What a handler says reaches its own caller alone, and never the wire as it is."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container

Make = Callable[..., Path]

SAYS = """
    import json
    def model_fn(d): return d
    def input_fn(data, c): return json.loads(data)
    def predict_fn(data, model): return data
    def output_fn(data, accept, context):
        exec(data["do"], {"context": context})
        return data["body"]
"""
OTHER = "def model_fn(d): return 'other'\ndef predict_fn(data, model): return [model, data]"


@pytest.mark.parametrize(
    "status",
    [
        "'200 OK\\r\\nContent-Length: 0\\r\\n\\r\\nHTTP/1.1 200 OK\\r\\nContent-Length: 6\\r\\n\\r\\nforged'",
        "99",
        "199",
        "600",
        "-1",
        "10**30",
        "200.0",
        "True",
        "[]",
        "{'a': object()}",
        "'201'",
        "float('nan')",
    ],
)
def test_a_status_that_is_none_is_a_500_and_the_next_answer_is_its_own(
    container: Container, handler: Make, status: str
) -> None:
    assert container.load("says", handler("says", SAYS)).status == 200
    assert container.load("other", handler("other", OTHER)).status == 200
    wire = http.client.HTTPConnection("127.0.0.1", container.port, timeout=60)
    for _ in range(2):
        body = json.dumps({"do": f"context.set_response_status({status})", "body": "x"})
        wire.request("POST", "/models/says/invoke", body, {"Content-Type": "application/json"})
        answer = wire.getresponse()
        assert (answer.status, b"whole number from 200 to 599" in answer.read()) == (500, True)
        wire.request("POST", "/models/other/invoke", "1", {"Content-Type": "application/json"})
        answer = wire.getresponse()
        assert (answer.status, answer.read()) == (200, b'["other",1]')
    wire.close()
    metrics = container.call("GET", "/metrics")
    assert metrics.status == 200
    assert container.metric('mme_model_answers_total{model="says",status="500"}') == 2


@pytest.mark.parametrize("status", [200, 201, 204, 304, 404, 599])
def test_a_status_that_http_knows_passes_and_has_no_body_where_it_can_have_none(
    container: Container, handler: Make, status: int
) -> None:
    assert container.load("says", handler("says", SAYS)).status == 200
    assert container.load("other", handler("other", OTHER)).status == 200
    wire = http.client.HTTPConnection("127.0.0.1", container.port, timeout=60)
    body = json.dumps({"do": f"context.set_response_status({status})", "body": "HTTP/1.1 200 OK\r\n\r\nforged"})
    wire.request("POST", "/models/says/invoke", body, {"Content-Type": "application/json"})
    answer = wire.getresponse()
    text = answer.read()
    assert answer.status == status
    assert text == (b"" if status in (204, 304) else b"HTTP/1.1 200 OK\r\n\r\nforged")
    wire.request("POST", "/models/other/invoke", "2", {"Content-Type": "application/json"})
    assert wire.getresponse().read() == b'["other",2]'
    wire.close()


@pytest.mark.parametrize("kind", ["'text/plain\\r\\nX-Forged: 1'", "'a\\x00b'", "'日本'"])
def test_a_content_type_adds_no_header(container: Container, handler: Make, kind: str) -> None:
    assert container.load("says", handler("says", SAYS)).status == 200
    body = json.dumps({"do": f"context.set_response_content_type(0, {kind})", "body": "x"})
    answer = container.invoke("says", body)
    assert (answer.status, answer.body) == (200, b"x")
    assert "x-forged" not in answer.headers


@pytest.mark.parametrize(
    "body",
    [
        '{"model_name": "\\ud800", "url": "/tmp"}',
        '{"model_name": "m", "url": "/tmp/\\udfff"}',
        '{"model_name": "m\\u0000", "url": "/tmp"}',
        '{"model_name": "m", "url": "/tmp\\u0000"}',
        json.dumps({"model_name": "m" * 5000, "url": "/tmp"}),
        "[" * 100_000,
    ],
    ids=["surrogate", "surrogate-url", "zero", "zero-url", "long", "deep"],
)
def test_load_refuses_a_name_that_cannot_be_written(container: Container, body: str) -> None:
    answer = container.call("POST", "/models", body)
    assert answer.status == 400
    assert "model_name" in answer.json()["message"] or "url" in answer.json()["message"]
    assert container.names() == []
    assert container.get("/metrics").status == 200


def test_a_model_called_like_a_route_hides_none(container: Container, handler: Make) -> None:
    source = "import pathlib\ndef model_fn(d): return pathlib.Path(d).name\ndef predict_fn(data, m): return m"
    assert container.load("x", handler("plain", source)).status == 200
    assert container.load("x/invoke", handler("slash", source)).status == 200
    assert container.invoke("x").json() == "plain"
    assert container.call("POST", "/models/x%2Finvoke/invoke", "{}").json() == "slash"
    assert container.call("GET", "/models/x%2Finvoke").json()["modelName"] == "x/invoke"
    assert container.call("DELETE", "/models/x%2Finvoke").status == 200
    assert container.invoke("x").json() == "plain"
    assert container.names() == ["x"]
