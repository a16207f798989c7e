"""More connections than the HTTP server holds: who is refused, and who gives way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from front_echo import Client, quick, serving, until

from mme.container.front import http as front


def test_beyond_the_bound_a_connection_is_refused_while_all_others_have_work(run: Any) -> None:
    async def work() -> None:
        async with serving(max_connections=3) as echo:
            busy = [await Client.connect(echo) for _ in range(3)]
            for client in busy:
                client.say(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: len(echo.held) == 3)
            status, body = await (refused := await Client.connect(echo)).answer()
            assert status == 503
            assert b"3 connections are open" in body
            assert await refused.ended() == b""
            assert echo.gone == 0, "nobody's work was given up"
            for request in list(echo.held):
                request.answer(200, b"done")
            assert [await client.answer() for client in busy] == [(200, b"done")] * 3

    run(work)


@pytest.mark.parametrize(
    "start", [b"", b"GET /ping HTTP/1.1\r\nX: ", b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"]
)
def test_beyond_the_bound_the_longest_quiet_gives_way(run: Any, start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "SLOW_SECONDS", 0.2)

    async def work() -> None:
        async with serving(max_connections=3, stall_seconds=30) as echo:
            held = await Client.connect(echo)
            held.say(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: echo.held)
            quiet = []
            for _ in range(2):
                quiet.append(await Client.connect(echo))
                quiet[-1].say(start)
                await until(lambda: len(echo.connections) == len(quiet) + 1)
                await asyncio.sleep(0.25)
            await quick(echo)
            assert await quiet[0].ended() == b""
            echo.held[0].answer(200, b"done")
            assert await held.answer() == (200, b"done")
            assert len(echo.connections) <= 3

    run(work)


def test_no_more_refusals_are_open_than_there_is_room_for(run: Any) -> None:
    async def work() -> None:
        async with serving(max_connections=2) as echo:
            busy = [await Client.connect(echo) for _ in range(2)]
            for client in busy:
                client.say(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: len(echo.held) == 2)
            many = [await Client.connect(echo) for _ in range(100)]
            answers = [await client.ended() for client in many]
            assert len([answer for answer in answers if b" 503 " in answer]) >= 64
            assert len(echo.connections) <= 2 + front.SPARE_CONNECTIONS + 1
            assert echo.gone == 0

    run(work)
