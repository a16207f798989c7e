"""What a row of the conformance tests is tried on: its packaged model, and a container that serves it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from container_process import wait_until

from mme.runner.process import Container, Reply


@dataclass(frozen=True)
class Made:
    """A row's model: its source, the archive as the platform unpacks it, what it was made of, and the right answers."""

    source: Path
    folder: Path
    manifest: Any
    answers: list[Any]


@dataclass(frozen=True)
class Server:
    """A running container, which is asked by SageMaker's contract."""

    container: Container
    log: list[str]

    def load(self, name: str, folder: Path) -> None:
        body = json.dumps({"model_name": name, "url": str(folder)}).encode()
        reply = self._call("POST", "/models", body)
        assert reply.status == 200, (reply.body.decode(), "\n".join(self.log[-30:]))

    def unload(self, name: str) -> None:
        assert self._call("DELETE", f"/models/{name}", None).status == 200

    def ask(self, name: str, request: Any) -> Any:
        reply = self._call("POST", f"/models/{name}/invoke", json.dumps(request).encode())
        assert reply.status == 200, (reply.body.decode(), "\n".join(self.log[-30:]))
        return json.loads(reply.body)

    def logged(self, since: int, end: str) -> list[str]:
        """The lines of the log from number ``since`` to one that holds ``end``, which may still be on its way."""
        wait_until(lambda: any(end in line for line in self.log[since:]))
        return self.log[since:]

    def _call(self, method: str, path: str, body: bytes | None) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return self.container.request(method, path, body=body, headers=headers, timeout=180)
