"""One container of one endpoint variant: a process on this machine that keeps SageMaker's multi-model contract.

Starts the process under ``guard.py``, waits until it is healthy, and sends it HTTP requests.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mme.runner.environment import container_environment
from mme.runner.errors import ContainerError, ContainerRefused, ContainerTimeout
from mme.runner.kinds import command_for

GRACE_SECONDS = 5.0
"""How long a container has after SIGTERM. SageMaker gives 30 s; nobody wants to wait that long for Ctrl-C."""

_GUARD = Path(__file__).with_name("guard.py")
_POOL = 32
_ENDING_SECONDS = 2.0


@dataclass(frozen=True)
class Finished:
    """A program that has ended: its exit code (128 plus the number of the signal that ended it), and its standard
    error."""

    returncode: int
    stderr: str


@dataclass(frozen=True)
class Reply:
    """What the container answered; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def run_guarded(words: Sequence[str], work_dir: Path, environment: Mapping[str, str]) -> Finished:
    """Run a program as a container is run: with its environment, and ended when this process dies. Waits for its end.

    Standard output is dropped.
    """
    scratch = work_dir / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(_GUARD), str(GRACE_SECONDS), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**container_environment(scratch), **environment},
    ) as process:
        said = process.stderr.read() if process.stderr else b""
        return Finished(process.wait(), said.decode("utf-8", "replace"))


class Container:
    """One running (or ended) container process. Started once; a new one takes its place when it dies."""

    def __init__(
        self,
        container: str | Sequence[str],
        work_dir: Path,
        environment: Mapping[str, str],
        output: Callable[[str], None] | Path,
        *,
        grace_seconds: float = GRACE_SECONDS,
        guarded: bool = True,
    ) -> None:
        """Starts the container: a kind (see ``command_for``), or the words of a command line.

        ``environment`` adds to what every container gets (``container_environment``). ``output`` gets what it prints,
        line by line, or is the file for it. The guard ends the container when this process dies; without it,
        ``process`` is the container itself. Raises ContainerError.
        """
        self.port = _free_port()
        scratch = work_dir / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        words, extra = command_for(container, self.port, work_dir)
        env = {
            **container_environment(scratch),
            **extra,
            "SAGEMAKER_MULTI_MODEL": "true",
            **environment,
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            "SAGEMAKER_SAFE_PORT_RANGE": f"{self.port}-{self.port}",
        }
        self._grace = grace_seconds
        self._guarded = guarded
        self._tail: deque[str] = deque(maxlen=20)
        self._output = output
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()
        guard = [sys.executable, "-I", "-S", str(_GUARD), str(grace_seconds)] if guarded else []
        with contextlib.ExitStack() as opened:
            try:
                file = opened.enter_context(output.open("wb")) if isinstance(output, Path) else None
                self.process = subprocess.Popen(
                    [*guard, *words],
                    stdin=subprocess.PIPE,
                    stdout=file or subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    cwd=work_dir,
                    env=env,
                    start_new_session=True,
                )
            except OSError as problem:
                raise ContainerError(f"The container cannot be started: {words[0]}: {problem.strerror}") from problem
        self._reader = threading.Thread(target=self._read_output, name="container-output", daemon=True)
        self._reader.start()

    def _read_output(self) -> None:
        stream = self.process.stdout
        if stream is None or isinstance(self._output, Path):
            return
        for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self._tail.append(line)
            self._output(line)

    @property
    def pid(self) -> int:
        """The guard's process; the container is below it."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> None:
        """Returns when the process has ended."""
        self.process.wait()

    def wait_healthy(self, timeout: float) -> None:
        """Returns once ``GET /ping`` answers 200. Raises ContainerError if it ends first, ContainerTimeout if late."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while True:
            if not self.alive:
                raise ContainerError(self.epitaph())
            try:
                if self.request("GET", "/ping", timeout=2.0).status == 200:
                    return
            except ContainerError:
                pass
            if time.monotonic() > deadline:
                raise ContainerTimeout(
                    f"The container did not answer GET /ping with 200 within {timeout:.0f} s.{self._last_words()}"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    def epitaph(self) -> str:
        """The error for a container that has ended."""
        self._reader.join(timeout=1.0)
        code = self.process.poll()
        return f"The container ended with exit code {code}.{self._last_words()}"

    def last_output(self) -> str:
        """The last lines that it printed."""
        if isinstance(self._output, Path):
            with contextlib.suppress(OSError):
                return self._output.read_bytes()[-20_000:].decode("utf-8", "replace").strip()
        return "\n".join(self._tail).strip()

    def _last_words(self) -> str:
        words = self.last_output()
        return f" Its last output:\n{words[-1500:]}" if words else " It printed nothing."

    def load(self, name: str, folder: Path, *, timeout: float) -> Reply:
        """LOAD: the model in ``folder``, an unpacked archive, under this name."""
        body = json.dumps({"model_name": name, "url": str(folder)}).encode()
        return self.request("POST", "/models", body=body, headers={"Content-Type": "application/json"}, timeout=timeout)

    def unload(self, name: str, *, timeout: float) -> Reply:
        return self.request("DELETE", f"/models/{quote(name)}", timeout=timeout)

    def invoke(self, name: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> Reply:
        return self.request("POST", f"/models/{quote(name)}/invoke", body=body, headers=headers, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float,
    ) -> Reply:
        """One HTTP exchange. Raises ContainerTimeout after ``timeout`` seconds of silence, else ContainerError.

        What was sent is never sent a second time: a model that ends its container would end the next one too.
        """
        connection = self._connection(timeout)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            reply = Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        except TimeoutError as problem:
            connection.close()
            raise ContainerTimeout(f"The container did not answer within {timeout:.0f} s.") from problem
        except (OSError, http.client.HTTPException) as problem:
            connection.close()
            # Most likely the process is ending. The caller's next request must not reach it, and for a moment some of
            # its connections are still open.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_ENDING_SECONDS)
            raise ContainerError(f"The container broke off: {problem or type(problem).__name__}") from problem
        if answer.will_close or self._idle.qsize() >= _POOL:
            connection.close()
        else:
            self._idle.put(connection)
        return reply

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        """An open connection: an idle one that the container has not closed meanwhile, else a new one."""
        with contextlib.suppress(queue.Empty):
            while True:
                idle = self._idle.get_nowait()
                with selectors.DefaultSelector() as selector:
                    selector.register(idle.sock, selectors.EVENT_READ)
                    closed = bool(selector.select(0))  # no answer is due, so readable means closed
                if not closed:
                    idle.sock.settimeout(timeout)
                    return idle
                idle.close()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.connect()
        except OSError as problem:
            raise ContainerRefused(f"The container does not accept connections: {problem}") from problem
        return connection

    def stop(self) -> None:
        """Ends the process and everything that it started; returns when it is gone. Never fails."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()  # the guard sees it and ends the container
        if not self._guarded:
            self.process.terminate()
        try:
            self.process.wait(self._grace + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if not self._guarded:  # whatever is left of its session, workers included
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join(timeout=1.0)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()


_recent_ports: deque[int] = deque(maxlen=64)
_ports_lock = threading.Lock()


def _free_port() -> int:
    # From below the range that the system hands out: multi-model-server refuses a port of 32767 and up, and no outgoing
    # connection can take the port before the container does. Two containers that start at once must not share one.
    with _ports_lock:
        while True:
            port = random.randint(12_000, 32_000)  # noqa: S311 (no secret)
            if port in _recent_ports:
                continue
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                _recent_ports.append(port)
                return port
