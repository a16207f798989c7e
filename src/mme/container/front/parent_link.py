"""The front's end of the socket to the parent, which forks the workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from mme.container import errors, memory
from mme.container.config import Settings
from mme.container.errors import ServingError
from mme.container.front.blocking import Blocking
from mme.container.front.log import Log
from mme.container.front.models import WorkerLink
from mme.container.wire import Lines, line

RESTART_SECONDS = 1.0
END_SECONDS = 3.0  # how long the end of the parent is waited for
# For the parent and so for every worker. A value that the user has set stays.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # models come from their folders; nothing is looked up
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # nothing is reported to anyone, and no thread for it starts before the forks
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU must not begin CUDA before the forks
    "CUDA_MODULE_LOADING": "LAZY",  # the default of CUDA from 12.2 on: kernels take memory once they are used
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",  # threads of a tokenizer fight with those that compute
    "OPENBLAS_NUM_THREADS": "1",  # numpy's threads would start at import, before the forks
    # Threads that wait must not burn the cores of other models, as they would for milliseconds. But to sleep and be
    # woken takes longer than the pause between two layers, so they watch for as long as that: about 50 microseconds.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "5000",
    "MALLOC_ARENA_MAX": "2",
    "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",  # macOS: the parent uses none of what this would protect
}


class Listener(Protocol):
    """Receives what the parent reports."""

    def worker_forked(self, worker: WorkerLink) -> None:
        """A worker's process runs."""

    def worker_exited(self, pid: int, code: int, by_signal: int) -> None:
        """A process has ended, and its memory is free."""

    def made(self, key: str, error: str | None) -> None:
        """What the parent was asked to share is there, or the reason why it is not."""

    def parent_died(self) -> None:
        """The parent has ended, and every worker with it. Another one starts."""


class ParentLink:
    """Starts the parent, starts it again if it dies, and passes commands to it."""

    def __init__(self, listener: Listener, settings: Settings, log: Log) -> None:
        self._listener = listener
        self._settings = settings
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lines = Lines()
        self._outbox: deque[tuple[bytes, int | None]] = deque()
        self._forks: dict[int, tuple[WorkerLink, asyncio.Future[None]]] = {}
        self._fork_ids = 0
        self._closing = False
        self.warm = asyncio.Event()
        self.starts = 0
        self.base_bytes = 0  # memory of the parent and the front themselves

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = {**ENVIRONMENT, **os.environ}
        package_root = str(Path(__file__).resolve().parents[3])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        command = [sys.executable, "-m", "mme.container.workers.parent", str(theirs.fileno()), str(os.getpid())]
        command += self._settings.preload
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self.starts += 1
        self._control = ours
        self._lines = Lines()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)

    def _readable(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            data = b""
        if not data:
            self._died()
            return
        for message in self._lines.feed(data):
            self._message(message)

    def _message(self, message: dict[str, Any]) -> None:
        if message["op"] == "warm":
            self.base_bytes = memory.private(message["pid"]) + memory.private()
            self.warm.set()
        elif message["op"] == "imported":
            self._log("info", "ready", seconds=round(message["seconds"], 3))
        elif message["op"] == "shared":
            self.base_bytes = message["private"] + memory.private()
            self._listener.made(message["key"], message["error"])
        elif message["op"] == "exit":
            self._listener.worker_exited(message["pid"], message["code"], message["signal"])
        elif message["op"] in ("forked", "failed"):
            worker, future = self._forks.pop(message["id"])
            if message["op"] == "forked":
                worker.pid = message["pid"]
                self._listener.worker_forked(worker)
                if not future.done():
                    future.set_result(None)
            elif not future.done():
                text = f"No process could be started for model {worker.model.name}: {message['message']}"
                future.set_exception(
                    errors.out_of_memory(text) if message["kind"] == "memory" else errors.internal(text)
                )

    def _died(self) -> None:
        """The parent has gone, and its workers with it. Begin again, with every model parked."""
        self._disconnect()
        if self._closing:
            return
        self._log("error", "parent ended", restarts=self.starts)
        self._listener.parent_died()
        asyncio.get_running_loop().call_later(RESTART_SECONDS, self._restart)

    def _restart(self) -> None:
        if not self._closing:
            self.start()

    def _disconnect(self) -> None:
        self.warm.clear()
        for _, future in self._forks.values():
            if not future.done():
                future.set_exception(errors.internal("The parent process ended"))
        self._forks.clear()
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        for _, fd in self._outbox:
            if fd is not None:
                os.close(fd)
        self._outbox.clear()
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:  # stuck in the kernel: what it holds goes when it does
                self._log("error", "parent does not end", pid=self._process.pid)
            self._process = None

    async def fork(self, worker: WorkerLink) -> None:
        """Start a process for the worker's model and connect to it."""
        settings = self._settings
        ours, theirs = socket.socketpair()
        self._fork_ids += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forks[self._fork_ids] = (worker, future)
        message = {
            "op": "fork",
            "id": self._fork_ids,
            # Before CUDA begins in the worker, so that it sees this one GPU, as its first, or none.
            "env": {"CUDA_VISIBLE_DEVICES": worker.gpu or "", "MME_ENGINE_CHECKED": " ".join(worker.checked)},
            "spec": {
                "name": worker.model.name,
                "model_dir": worker.model.path,
                "program": settings.program,
                "device": 0 if worker.gpu else -1,
                "threads": 1,
                "batch_requests": settings.batch_requests,
                "batch_tokens": settings.batch_tokens,
            },
        }
        try:
            ours.setblocking(False)
            await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            del self._forks[self._fork_ids]
            raise
        self._send(message, theirs.detach())
        await future

    def kill(self, pid: int) -> None:
        self._send({"op": "kill", "pid": pid})

    def share(self, recipe: dict[str, Any]) -> None:
        self._send({"op": "share", "recipe": recipe})

    def unshare(self, key: str) -> None:
        self._send({"op": "unshare", "key": key})

    def _send(self, message: dict[str, Any], fd: int | None = None) -> None:
        if self._control is None:
            if fd is not None:
                os.close(fd)
            return
        self._outbox.append((line(message), fd))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._outbox and self._control is not None:
            data, fd = self._outbox[0]
            try:
                sent = socket.send_fds(self._control, [data], [fd] if fd is not None else [])
            except (BlockingIOError, InterruptedError):
                asyncio.get_running_loop().call_later(0.005, self._flush)
                return
            except OSError:
                return  # the parent is gone: its reader says so in a moment
            if fd is not None:
                os.close(fd)
            if sent < len(data):
                self._outbox[0] = (data[sent:], None)
                continue
            self._outbox.popleft()

    async def close(self) -> None:
        """End the parent and, through it, every worker."""
        self._closing = True
        if self._control is not None:
            self._control.shutdown(socket.SHUT_WR)
            process = self._process
            if process is not None and self.warm.is_set():  # while it imports, it reads no commands
                with contextlib.suppress(subprocess.TimeoutExpired, ServingError):
                    await Blocking().run(process.wait, END_SECONDS)
        self._disconnect()
