"""Runs calls that may block in threads of their own: a model's files may lie on a network, or not be files at all.

asyncio's own executor will not do: its few threads are shared by all, and the interpreter waits for each of them before
it ends. Here each call has a thread, nobody waits for one that is stuck, and the container ends without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from mme.container import errors

MAX_THREADS = 256

T = TypeVar("T")


class Blocking:
    def __init__(self, bound: int = MAX_THREADS) -> None:
        self._bound = bound
        self._running = 0

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call the function in a thread and wait for it. A cancelled caller leaves the thread running.

        Raises 503 where too many threads are stuck already.
        """
        if self._running >= self._bound:
            raise errors.unavailable(f"{self._running} looks at models' files have not come back; try again later")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def finish(value: Any, error: BaseException | None) -> None:
            self._running -= 1
            if result.cancelled():
                return
            if error is None:
                result.set_result(value)
            else:
                result.set_exception(error)

        def call() -> None:
            value, error = None, None
            try:
                value = function(*arguments)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                loop.call_soon_threadsafe(finish, value, error)

        thread = threading.Thread(target=call, name="blocking", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise errors.out_of_memory(f"No thread could be started: {error}") from None
        self._running += 1
        return await result
