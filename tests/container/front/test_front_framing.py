"""What a head says of how a request is to be read: answered as it was meant, or refused; never read otherwise."""

from __future__ import annotations

import asyncio

import pytest
from front_wire import Server, Wire, fed, statuses

from mme.container.front.http import Request

POST = b"POST /m HTTP/1.1\r\nHost: x\r\n"
BODY = b"2\r\nab\r\n0\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


def answered(data: bytes) -> tuple[list[int], list[tuple[str, str, bytes]], Wire]:
    """The statuses, what reached the server, and the wire; the same byte by byte and in one piece."""
    server, wire = asyncio.run(fed([data]))
    slowly, drips = asyncio.run(fed([data[at : at + 1] for at in range(len(data))]))
    assert server.requests == slowly.requests
    assert statuses(wire) == statuses(drips)
    return statuses(wire), server.requests, wire


CODINGS = {
    b"chunked": 200,
    b"Chunked": 200,
    b" , chunked": 200,
    b"gzip, chunked": 501,
    b"identity, chunked": 501,
    b"gzip\r\nTransfer-Encoding: chunked": 501,
    b"chunked, gzip": 400,
    b"chunked, chunked": 400,
    b"chunked\r\nTransfer-Encoding: chunked": 400,
    b"gzip": 400,
    b"identity": 400,
    b"xchunked": 400,
    b'"chunked"': 400,
    b"chunked;q=1": 400,
}


@pytest.mark.parametrize("upgrade", [b"", H2C], ids=["plain", "with an upgrade"])
@pytest.mark.parametrize("coding", CODINGS)
def test_a_coding_is_understood_or_refused(coding: bytes, upgrade: bytes) -> None:
    """Whoever sends gzip in chunks does not mean the bytes that the chunks hold."""
    codes, requests, _ = answered(POST + upgrade + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + BODY)
    assert codes == [CODINGS[coding]]
    assert requests == ([("POST", "/m", b"ab")] if CODINGS[coding] == 200 else [])


@pytest.mark.parametrize("more", [b"", b"Connection: keep-alive\r\n", b"Content-Length: 15\r\n"])
def test_http_1_0_has_no_chunks(more: bytes) -> None:
    """A server of that version would take the chunks' sizes for the body (RFC 9112, 6.1)."""
    data = b"POST /m HTTP/1.0\r\n" + more + b"Transfer-Encoding: chunked\r\n\r\n" + BODY + NEXT
    assert answered(data)[:2] == ([400], [])


@pytest.mark.parametrize("line", [b"GET /m", b"GET /m HTTP/0.9", b"GET /m HTTP/2.0", b"GET /m HTTP/3.0"])
def test_other_versions_are_refused(line: bytes) -> None:
    assert answered(line + b"\r\nHost: x\r\n\r\n")[:2] == ([400], [])


def test_http_1_0_never_gets_a_100_continue() -> None:
    head = b" HTTP/1.%d\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab"
    assert b"100 Continue" not in answered(b"POST /m" + head % 0)[2].sent
    assert answered(b"POST /m" + head % 1)[2].sent.count(b"100 Continue") == 1
    offered = POST + H2C + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nab"
    assert answered(offered)[2].sent.count(b"100 Continue") == 1


def test_what_cannot_be_expected_is_refused() -> None:
    assert answered(POST + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\nab")[:2] == ([417], [])


class Headers(Server):
    """Remembers the headers that it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: list[dict[str, str]] = []

    def handle(self, request: Request) -> None:
        self.headers.append(request.headers)
        super().handle(request)


def headers_of(data: bytes) -> list[dict[str, str]]:
    server = Headers()
    asyncio.run(fed([data], server))
    return server.headers


def test_a_trailer_is_no_header() -> None:
    trailer = b"Accept: evil/x\r\nX-Amzn-SageMaker-Target-Model: other\r\n"
    data = POST + b"Accept: a/b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n" + trailer + b"\r\n" + NEXT
    assert headers_of(data) == [{"host": "x", "accept": "a/b", "transfer-encoding": "chunked"}, {"host": "x"}]


def test_a_header_in_several_lines_is_one_list() -> None:
    (headers,) = headers_of(POST + H2C + b"Accept: a/b\r\nX-A: 1\r\naccept: c/d;q=0.5\r\nContent-Length: 0\r\n\r\n")
    assert headers["accept"] == "a/b, c/d;q=0.5"
    assert headers["x-a"] == "1"


@pytest.mark.parametrize("name", [b"Host", b"Content-Type", b"X-Amzn-SageMaker-Target-Model"])
def test_two_of_what_a_request_has_one_of_are_refused(name: bytes) -> None:
    line = name + b": text/plain\r\n"
    head = b"POST /m HTTP/1.1\r\nContent-Length: 0\r\n"
    assert answered(head + line + b"\r\n")[0] == [200]
    assert answered(head + line + line.lower() + b"\r\n")[:2] == ([400], [])
    assert answered(head + H2C + line + line.lower() + b"\r\n")[:2] == ([400], [])


def test_what_comes_behind_the_last_request_is_ignored() -> None:
    """A connection that is to be closed begins no further request: its answer could not be sent."""
    codes, requests, wire = answered(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT)
    assert (codes, [method for method, _, _ in requests], wire.closed) == ([200], ["CONNECT"], True)
