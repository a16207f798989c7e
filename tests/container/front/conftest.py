"""What several tests of the front need."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Runs a test on each of the event loops that serve."""
    loop = pytest.importorskip("uvloop") if request.param == "uvloop" else asyncio

    def go(work: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(work(), 60)

        loop.run(bounded())

    return go
