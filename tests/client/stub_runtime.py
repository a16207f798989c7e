"""A SageMaker runtime on loopback that answers what a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from botocore.config import Config


@dataclass(frozen=True)
class Asked:
    target: str
    body: bytes
    content_type: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Said:
    """An answer: a status and a body; ``kind`` is the code of an error. ``None`` in its place hangs up."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    kind: str = ""


def error(status: int, kind: str, message: str = "no", **more: Any) -> Said:
    return Said(json.dumps({"Message": message, **more}).encode(), status, kind=kind)


def echo(asked: Asked) -> Said:
    """Each input's own text, and who answered."""
    inputs = asked.json["inputs"]
    named = [{"text": item, "target": asked.target} for item in (inputs if isinstance(inputs, list) else [inputs])]
    return Said(json.dumps(named if isinstance(inputs, list) else named[0]).encode())


@dataclass
class Stub:
    """``answer`` is called for each request, in threads."""

    answer: Callable[[Asked], Said | None] = echo
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def client(self, read_timeout: float = 60) -> Any:
        """The client that Endpoint makes, turned to this server."""
        return boto3.client(
            "sagemaker-runtime",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 1},
                max_pool_connections=64,
                read_timeout=read_timeout,
            ),
        )


@contextmanager
def serving(answer: Callable[[Asked], Said | None] = echo) -> Iterator[Stub]:
    stub = Stub(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            return

        def do_POST(self) -> None:
            asked = Asked(
                self.headers.get("X-Amzn-SageMaker-Target-Model", ""),
                self.rfile.read(int(self.headers["Content-Length"])),
                self.headers.get("Content-Type", ""),
            )
            with lock:
                stub.asked.append(asked)
            said = stub.answer(asked)
            if said is None:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(said.status)
            self.send_header("Content-Type", said.content_type)
            self.send_header("Content-Length", str(len(said.body)))
            self.send_header("x-Amzn-Invoked-Production-Variant", "main")
            if said.kind:
                self.send_header("x-amzn-ErrorType", said.kind)
            self.end_headers()
            self.wfile.write(said.body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
