"""Frames between the front and a worker: whatever is said arrives as it was."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from mme.container.wire import Decoder, Kind, pack

SAID: list[dict[str, Any]] = [
    {},
    {"times": [1.5, 2.0], "status": 200, "headers": {"x-é": "ü\x00\x1f"}, "type": "application/json"},
    {"message": "half a pair: \ud800, 日本語"},  # a handler's exception can say so
    {"left": 2**70, "extra": -(2**70)},
    {"ids": [2**64 - 1, 0], "none": None, "flag": True},
]


@pytest.mark.parametrize("meta", SAID)
def test_what_is_said_arrives(meta: dict[str, Any]) -> None:
    data = pack(Kind.RESULT, 3, meta, b"body \xff") * 2
    for size in (1, 7, len(data)):
        decoder = Decoder()
        frames = [frame for at in range(0, len(data), size) for frame in decoder.feed(data[at : at + size])]
        assert frames == [(Kind.RESULT, 3, meta, b"body \xff")] * 2


@pytest.mark.parametrize("text", [b"{", b"\xff", b'{"a": }', b"nul"])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        list(Decoder().feed(struct.pack("<BQII", Kind.RESULT, 1, len(text), 0) + text))
