"""The HTTP server against clients that are slow, endless, silent or hostile, in this process and without models.

Every client is a socket that says exactly what a test wants; times are short, so that nothing is waited for long.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from front_echo import Client, MiB, quick, serving, until

from mme.container.front.http import MAX_HEAD

# -- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [
        b"GET /ping HTTP/1.1\r\nX: ",
        b"GET /ping HTTP/1.1\r\n",
        b"GET /",
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nTrailer: ",
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1;extension=",
    ],
    ids=["value", "name", "path", "trailer", "extension"],
)
def test_an_endless_line_is_refused_at_64_kb(run: Any, start: bytes) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            client.say(start)
            sent = 0
            while sent < 4 * MAX_HEAD and not client.reader._buffer:  # type: ignore[attr-defined]
                client.say(b"y" * 4096)
                sent += 4096
                await asyncio.sleep(0.002)
            assert (await client.answer())[0] == 431
            assert sent <= MAX_HEAD + 32 * 1024
            assert echo.handled == []
            assert await client.ended() == b""
            await quick(echo, 1)

    run(work)


@pytest.mark.parametrize("size", [1000, MAX_HEAD - 200])
def test_a_long_head_is_read_whatever_it_comes_behind(run: Any, size: int) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            head = b"GET /long HTTP/1.1\r\nHost: x\r\nX: " + b"y" * size + b"\r\n\r\n"
            body = b"POST /body HTTP/1.1\r\nContent-Length: 40000\r\n\r\n" + b"z" * 40000
            client.say(body + head + body + head)
            paths = [json.loads((await client.answer())[1])[1] for _ in range(4)]
            assert paths == ["/body", "/long"] * 2

    run(work)


def test_many_header_lines_count_together(run: Any) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            client.say(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 40_000)
            assert (await client.answer())[0] == 431

    run(work)


# -- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HT",
        b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n",
    ],
)
def test_a_request_that_stalls_is_a_408(run: Any, start: bytes) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            client.say(start)
            assert (await client.answer())[0] == 408
            assert await client.ended() == b""
            await until(lambda: not echo.connections)
            assert echo.budget.used == 0

    run(work)


def test_a_request_that_drips_is_a_408_too(run: Any) -> None:
    async def work() -> None:
        async with serving(request_seconds=0.6, stall_seconds=10) as echo:
            client = await Client.connect(echo)
            client.say(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
            drip = asyncio.create_task(_drip(client))
            assert (await client.answer())[0] == 408
            drip.cancel()

    async def _drip(client: Client) -> None:
        while True:
            client.say(b"x")
            await asyncio.sleep(0.02)

    run(work)


def test_a_client_that_thinks_between_requests_is_left_alone(run: Any) -> None:
    async def work() -> None:
        async with serving(stall_seconds=0.1, request_seconds=0.1) as echo:
            client = await Client.connect(echo)
            for _ in range(2):
                client.say(b"GET /ping HTTP/1.1\r\n\r\n")
                assert (await client.answer())[0] == 200
                await asyncio.sleep(0.4)

    run(work)


def test_bodies_under_way_are_counted_and_too_many_are_a_503(run: Any) -> None:
    async def work() -> None:
        async with serving(budget=4 * MiB, stall_seconds=30) as echo:
            clients = [await Client.connect(echo) for _ in range(16)]
            for client in clients:
                client.say(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 999_999)
            refused = 0
            for client in clients:
                with_answer = asyncio.create_task(client.answer())
                done, _ = await asyncio.wait([with_answer], timeout=0.1)
                if done:
                    status, body = with_answer.result()
                    assert (status, json.loads(body)["type"]) == (503, "ServiceUnavailableException")
                    refused += 1
                else:
                    with_answer.cancel()
            assert echo.budget.used <= 4 * MiB
            assert refused >= 12
            await quick(echo, 2)

    run(work)


def test_slow_bodies_give_way_to_one_that_comes(run: Any) -> None:
    async def work() -> None:
        async with serving(budget=4 * MiB, stall_seconds=60) as echo:
            slow = [await Client.connect(echo) for _ in range(4)]
            for client in slow:
                client.say(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 990_000)
            await until(lambda: echo.budget.used == 4 * 990_000)
            await asyncio.sleep(1.2)
            client = await Client.connect(echo)
            client.say(b"POST /in-a-hurry HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
            assert await client.answer() == (200, b'["POST", "/in-a-hurry", 1000000]')
            assert (await slow[0].answer())[0] == 408

    run(work)


def test_a_body_in_chunks_of_one_byte_arrives_and_holds_nobody_up(run: Any) -> None:
    async def work() -> None:
        async with serving(stall_seconds=30, request_seconds=60) as echo:
            client = await Client.connect(echo)
            size = MiB
            client.say(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.say(b"1\r\nx\r\n" * size + b"0\r\n\r\n")
            waits = asyncio.create_task(quick(echo, 40))
            assert await client.answer() == (200, b'["POST", "/", %d]' % size)
            await waits
            assert echo.budget.used == 0

    run(work)


def test_tiny_chunks_are_parsed_in_turns(run: Any) -> None:
    """Counted, not timed: between two requests of another client, no connection is parsed more than a turn's worth."""

    async def work() -> None:
        async with serving(max_body=64 * MiB, stall_seconds=30) as echo:
            hostile = [await Client.connect(echo) for _ in range(4)]
            for client in hostile:
                client.say(b"POST /hostile HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (2 * MiB))
            await until(lambda: echo.budget.used > 0)
            client = await Client.connect(echo)
            for _ in range(20):
                client.say(b"GET /ping HTTP/1.1\r\n\r\n")
                assert (await client.answer())[0] == 200
            assert "/hostile" not in echo.handled
            assert echo.budget.used < 8 * MiB, "twenty answers came before the hostile bodies were through"

    run(work)


# -- answers --------------------------------------------------------------------------------------------------------


def test_who_does_not_read_gets_no_more_worked_on_and_is_cut_off(run: Any) -> None:
    async def work() -> None:
        async with serving() as echo:
            raw = socket.create_connection(("127.0.0.1", echo.port))
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            sending = asyncio.create_task(loop.sock_sendall(raw, b"GET /big/1000000 HTTP/1.1\r\n\r\n" * 5000))
            await until(lambda: echo.handled)
            await quick(echo)
            await until(lambda: not echo.connections)  # the hostile one, too
            assert len([path for path in echo.handled if path != "/ping"]) < 50
            assert echo.budget.used == 0
            sending.cancel()
            raw.close()

    run(work)


def test_pipelined_requests_are_answered_in_order_and_held_back(run: Any) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            count = 20_000
            client.say(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(count)))
            for number in range(count):
                assert json.loads((await client.answer())[1])[1] == f"/{number}"

    run(work)


def test_a_slow_reader_that_reads_gets_everything(run: Any) -> None:
    async def work() -> None:
        async with serving(request_seconds=30) as echo:
            client = await Client.connect(echo)
            client.say(b"GET /big/3000000 HTTP/1.1\r\n\r\n" * 3)
            for _ in range(3):
                await asyncio.sleep(0.2)
                assert (await client.answer()) == (200, b"x" * 3_000_000)
            assert echo.budget.used == 0

    run(work)


@pytest.mark.parametrize("status", [204, 304])
def test_no_body_where_there_can_be_none(run: Any, status: int) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            client.say(b"GET /status/%d HTTP/1.1\r\n\r\nGET /next HTTP/1.1\r\nConnection: close\r\n\r\n" % status)
            assert await client.answer() == (status, b"")
            assert (await client.answer())[0] == 200

    run(work)


def test_what_is_malformed_behind_a_request_does_not_cost_it_its_answer(run: Any) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            client.say(b"GET /hold HTTP/1.1\r\n\r\nGET /second HTTP/1.1\r\n\r\nnot http\r\n\r\n")
            await until(lambda: echo.held)
            echo.held[0].answer(200, b"first")
            assert await client.answer() == (200, b"first")
            assert (await client.answer())[1].startswith(b'["GET", "/second"')
            assert (await client.answer())[0] == 400
            assert await client.ended() == b""

    run(work)


def test_a_client_that_leaves_cancels_its_request(run: Any) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            client.say(b"POST /hold HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
            await until(lambda: echo.held)
            client.writer.close()
            await until(lambda: echo.gone)
            assert echo.budget.used == 0

    run(work)


# -- other protocols ------------------------------------------------------------------------------------------------

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET /x HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n", b'["GET", "/x", 0]'),
        (b"POST /x HTTP/1.1\r\nHost: x\r\n" + H2C + b"Content-Length: 4\r\n\r\nabcd", b'["POST", "/x", 4]'),
        (
            b"POST /x HTTP/1.1\r\n" + H2C + b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n",
            b'["POST", "/x", 6]',
        ),
        (b"POST /x HTTP/1.1\r\n" + H2C + b"Content-Length: 0\r\n\r\n", b'["POST", "/x", 0]'),
        (b"GET /x HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b'["GET", "/x", 0]'),
    ],
    ids=["get", "post", "chunked", "empty", "websocket"],
)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_an_offer_to_upgrade_is_ignored(run: Any, sent: bytes, answer: bytes, step: int) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            wire = sent * 2 + b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n"
            for at in range(0, len(wire), step):
                client.say(wire[at : at + step])
                await client.writer.drain()
                if step < 100:
                    await asyncio.sleep(0)
            assert [await client.answer() for _ in range(2)] == [(200, answer)] * 2
            assert (await client.answer())[1] == b'["GET", "/last", 0]'
            assert await client.ended() == b"", "one answer for each request"

    run(work)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://x/models/m/invoke", "/models/m/invoke"),
        (b"HTTP://x:8080/ping?a=http://y/z", "/ping"),
        (b"http://x", "/"),
        (b"/models/http://x", "/models/http://x"),
    ],
)
def test_a_target_may_be_absolute(run: Any, target: bytes, path: str) -> None:
    async def work() -> None:
        async with serving() as echo:
            client = await Client.connect(echo)
            client.say(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" % target)
            assert json.loads((await client.answer())[1]) == ["POST", path, 2]

    run(work)
