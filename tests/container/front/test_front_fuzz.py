"""Hypothesis against the HTTP server: whatever arrives, in whatever pieces, it answers, refuses or waits, and nothing
is left counted. More examples: ``HYPOTHESIS_EXAMPLES=5000 pytest …``."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from front_wire import fed, statuses
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st

bodies = st.binary(max_size=300)
names = st.text("abcdefgh-", min_size=1, max_size=12).map(lambda name: f"x-{name}")
values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)


@st.composite
def requests(draw: Any) -> tuple[tuple[str, str, bytes], bytes]:
    """A well-formed request: what it is, and its bytes."""
    method, body = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE"])), draw(bodies)
    path = "/" + draw(st.text("abc/%20", max_size=20))
    rows = [f"{method} {path} HTTP/1.1", "Host: x"]
    rows += [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(names, values), max_size=4))]
    if draw(st.booleans()):
        rows += ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]
    if draw(st.booleans()) and body:
        rows.append("Transfer-Encoding: chunked")
        size = draw(st.integers(1, 300))
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    else:
        rows.append(f"Content-Length: {len(body)}")
        data = body
    return (method, path, body), "\r\n".join([*rows, "", ""]).encode() + data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[one:two] for one, two in itertools.pairwise(marks)]


@bounded
@given(st.lists(requests(), min_size=1, max_size=6), st.lists(st.integers(0, 10**6), max_size=30))
def test_well_formed_requests_mean_the_same_in_any_pieces(
    sent: list[tuple[tuple[str, str, bytes], bytes]], places: list[int]
) -> None:
    server, wire = asyncio.run(fed(cut(b"".join(data for _, data in sent), places)))
    assert server.requests == [meaning for meaning, _ in sent]
    assert statuses(wire) == [200] * len(sent)


@bounded
@given(st.lists(requests(), max_size=3), st.binary(max_size=400), st.lists(st.integers(0, 10**6), max_size=20))
def test_garbage_behind_requests_costs_them_nothing(
    sent: list[tuple[tuple[str, str, bytes], bytes]], garbage: bytes, places: list[int]
) -> None:
    server, wire = asyncio.run(fed(cut(b"".join(data for _, data in sent) + garbage, places)))
    assert server.requests[: len(sent)] == [meaning for meaning, _ in sent]
    assert statuses(wire)[: len(sent)] == [200] * len(sent)


@bounded
@given(requests(), st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), min_size=1, max_size=5))
def test_a_request_with_bytes_changed_is_answered_refused_or_waited_for(
    sent: tuple[tuple[str, str, bytes], bytes], changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(sent[1])
    for place, new in changes:
        at = place % (len(data) + 1)
        data[at : at + 1] = new
    _, wire = asyncio.run(fed([bytes(data)]))
    assert set(statuses(wire)) <= {200, 400, 408, 413, 431, 501, 503}
