"""A handler that says things of its answer is answered alike by both servers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from stock_tools import Server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_stock")]

SOURCE = """
import json

def model_fn(model_dir, context):
    return context.system_properties["batch_size"]

def transform_fn(model, data, content_type, accept, context):
    exec(json.loads(data)["do"])
    processor = context.request_processor[0]
    context.set_response_header(0, "X-Own", "own")
    return json.dumps({
        "id": bool(context.get_request_id(0)) and context.get_request_id(0) == context.request_ids[0],
        "status": processor.get_response_status_code(),
        "header": processor.get_response_header("X-Own"),
        "headers": context.get_response_headers(0)["X-Own"],
        "batch": model,
        "accept": accept,
    })
"""
DONE = [
    "pass",
    "context.set_response_status(202, 'Taken')",
    "context.set_response_status(code=422, phrase='No', idx=0)",
    "context.set_all_response_status(418, 'Teapot')",
    "processor = context.request_processor[0]; processor.report_status(404, 'None')",
    "context.set_response_header(0, 'X-Amzn-SageMaker-Custom-Attributes', 'trace=1')",
    "context.request_processor[0].add_response_property('X-More', 'more')",
    "context.metrics.add_counter('n', 1); context.metrics.add_time('t', 2); context.metrics.add_size('s', 3)",
]


def test_what_a_handler_says_of_its_answer(serve: Callable[[str], Server], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "inference.py").write_text(SOURCE, encoding="utf-8")
    servers = [serve("stock"), serve("ours")]
    for server in servers:
        assert server.load("says", folder).status == 200
    for do in DONE:
        body = json.dumps({"do": do}).encode()
        answers = [server.invoke("says", body, "application/json") for server in servers]
        stock, ours = (
            (
                answer.status,
                json.loads(answer.body),
                {name.lower(): value for name, value in answer.headers.items() if name.lower().startswith("x-")},
            )
            for answer in answers
        )
        stock[2].pop("x-request-id", None)
        assert ours == stock, do
        assert ours[2]["x-own"] == "own"
