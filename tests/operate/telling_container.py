"""The fake container of the local AWS's tests, which writes the lines that our container writes: load, invoke,
unload."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "local"))

import fake_container

CALLED: set[str] = set()
LOCK = threading.Lock()


def tell(event: str, level: str = "info", **fields: object) -> None:
    fake_container.say(json.dumps({"level": level, "event": event, **fields}))


class Handler(fake_container.Handler):
    status = 0

    def _answer(self, status: int, body: object = None, **headers: str) -> None:
        self.status = status
        super()._answer(status, body, **headers)

    def do_DELETE(self) -> None:
        super().do_DELETE()
        name = self.path.removeprefix("/models/")
        CALLED.discard(name)
        tell("unload", model=name)

    def _load(self, asked: dict) -> None:
        super()._load(asked)
        if self.status == 200:
            tell("load", model=asked["model_name"], url=asked["url"])

    def _invoke(self, name: str, body: bytes) -> None:
        began = time.monotonic()
        with LOCK:
            cold = name not in CALLED
            CALLED.add(name)
        super()._invoke(name, body)
        took = round(1000 * (time.monotonic() - began), 2)
        line = {"model": name, "status": self.status, "target": self.headers.get("X-Amzn-SageMaker-Target-Model")}
        level = "info" if self.status < 400 else "warning"
        tell("invoke", level, **line, **({"cold": True} if cold else {}), total_ms=took, body=body[:100].decode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
