"""What leaves the front: JSON for any text, and a log that survives any line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mme.container.errors import error_body
from mme.container.front.heads import clean
from mme.container.front.log import Log
from mme.container.text import encodable, json_bytes

SURROGATE = "label \ud800 and \udfff"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def written(*lines: dict[str, Any]) -> list[dict[str, Any]]:
    read, write = os.pipe()
    log = Log("debug", write)
    for line in lines:
        log("info", **line)
    log("info", "last")
    log.close()
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        return [json.loads(row) for row in pipe.read().splitlines()]


@pytest.mark.parametrize("text", [SURROGATE, "ünïcode 日本 😀", 'quotes " and \\ and \n', "\x00\x7f\u2028"])
def test_any_text_leaves_as_json_and_means_the_same(text: str) -> None:
    for encoded, key in ((json_bytes({"message": text}), "message"), (error_body(400, "Bad", text), "message")):
        encoded.decode("utf-8")
        assert json.loads(encoded)[key] == text


def test_what_can_be_encoded() -> None:
    assert encodable("ünïcode 😀")
    assert not encodable(SURROGATE)


def test_the_log_survives_any_line() -> None:
    circle: list[Any] = []
    circle.append(circle)
    lines = written(
        {"event": "surrogate", "message": SURROGATE},
        {"event": "unprintable", "value": Unprintable()},
        {"event": "circle", "value": circle},
        {"event": "keys", "value": {(1, 2): 3}},
        {"event": "bytes", "value": b"\xff"},
        {"event": "path", "value": Path("/x")},
    )
    assert [line["event"] for line in lines] == ["surrogate", "unprintable", "log", "log", "bytes", "path", "last"]
    assert lines[0]["message"] == SURROGATE
    assert "Unprintable" in lines[1]["value"]
    assert all("A line is lost" in line["message"] for line in lines[2:4])


def test_a_log_that_nobody_reads_for_a_while_and_must_not_block_loses_nothing() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    log = Log("info", write)
    for number in range(200):
        log("info", "line", number=number, text="x" * 1000)
    with os.fdopen(read, "rb") as pipe:
        numbers = [json.loads(pipe.readline())["number"] for _ in range(200)]
    log.close()
    os.close(write)
    assert numbers == list(range(200))


def test_a_header_value_has_no_line_breaks() -> None:
    assert clean("text/plain") == "text/plain"
    assert clean("a\r\nb: c\x00\x1fd") == "a  b: c  d"
