"""A container as a process, a client for its contract, and a few ways to look at processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mme.runner import process
from mme.runner.errors import ContainerError

KIND = os.environ.get("MME_TEST_CONTAINER") or "ours"
"""The container that is tested, as ``mme.runner`` names it. `make image` gives the command that runs its image."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Container:
    """The container as a process, and what the tests ask of it. ``process`` is the container itself, not a guard."""

    def __init__(self, log: Path, environ: dict[str, str] | None = None, wait: bool = True) -> None:
        self.log_path = log
        work = log.with_name(f"{log.name}-work")
        work.mkdir()
        self._running = process.Container(KIND, work, environ or {}, log, grace_seconds=40, guarded=False)
        self.process = self._running.process
        self.port = self._running.port
        try:
            if wait:
                self.wait_healthy()
            else:
                self.wait_for_log(r'"event": "listening"')
        except BaseException:
            self.stop()
            raise

    def wait_for_log(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        def match() -> re.Match[str] | None:
            return re.search(pattern, self.log())

        return wait_until(match, seconds, self)

    def wait_healthy(self) -> None:
        wait_until(lambda: self.get("/ping").status == 200, 120, self)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        rows = [json.loads(row) for row in self.log().splitlines() if row.startswith("{") and row.endswith("}")]
        return [row for row in rows if row.get("event") == name]

    def call(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        data = body.encode() if isinstance(body, str) else body
        reply = self._running.request(method, path, body=data, headers=headers, timeout=120)
        return Reply(reply.status, dict(reply.headers), reply.body)

    def get(self, path: str) -> Reply:
        try:
            return self.call("GET", path)
        except ContainerError:
            return Reply(0, {}, b"")

    def load(self, name: str, folder: Path) -> Reply:
        if KIND != "ours":  # an image's server is another user, and safetensors writes files for its own alone
            for path in filter(Path.exists, (folder, *folder.rglob("*"))):
                path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
        return self.call("POST", "/models", json.dumps({"model_name": name, "url": str(folder)}))

    def unload(self, name: str) -> Reply:
        return self.call("DELETE", f"/models/{name}")

    def invoke(self, name: str, body: bytes | str = b"{}", **headers: str) -> Reply:
        named = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self.call("POST", f"/models/{name}/invoke", body, named)

    def names(self) -> list[str]:
        return [model["modelName"] for model in self.call("GET", "/models").json()["models"]]

    def metric(self, line: str) -> float:
        """The value of the metric that is written like this, labels included; 0 where it is not there."""
        match = re.search(rf"^{re.escape(line)} (\S+)$", self.call("GET", "/metrics").body.decode(), re.M)
        return float(match[1]) if match else 0.0

    def stop(self) -> int:
        self._running.stop()
        return self.process.wait()


def wait_until(condition: Callable[[], Any], seconds: float = 60, container: Container | None = None) -> Any:
    """Ask until the answer is true; fail after ``seconds``, which are only a bound."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        if container is not None and container.process.poll() is not None:
            pytest.fail(f"the container ended with {container.process.returncode}:\n{container.log()}")
        time.sleep(0.02)
    pytest.fail(f"did not come true within {seconds} s" + (f":\n{container.log()}" if container else ""))


@dataclass
class InBackground:
    """A call that runs in a thread; ``result`` waits for it."""

    thread: threading.Thread
    box: list[Any]

    def result(self, seconds: float = 120) -> Any:
        self.thread.join(seconds)
        assert self.box, "the call did not end"
        if isinstance(self.box[0], BaseException):
            raise self.box[0]
        return self.box[0]

    def done(self) -> bool:
        return not self.thread.is_alive()


def background(function: Callable[..., Any], *arguments: Any) -> InBackground:
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(function(*arguments))
        except BaseException as error:
            box.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return InBackground(thread, box)


def processes(tree_of: int) -> set[int]:
    """Process ids of all descendants of a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    pids = {tree_of}
    while True:
        more = {pid for pid, parent in parents.items() if parent in pids} - pids
        if not more:
            return pids - {tree_of}
        pids |= more


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
