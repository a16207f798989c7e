"""What mme.client adds to a bare call of boto3: the same request to the same server on loopback, taking turns.

    python -m benchmarks.client [--requests 2000] [--json]

The server answers at once, so that what is measured is the client. Both sides use one client of boto3 with the same
settings; ours also resolves a (cached) name; both write and read JSON. Time and
processor time, medians; then the difference.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

import boto3
from botocore.config import Config

from benchmarks._processor import processor
from mme.client import Endpoint

BODY = b'{"embeddings": [[0.25, 0.5]], "tokens": [7], "truncated": [false]}'
TARGET = "bert-0123456789ab.tar.gz"
CHANNEL = {
    "format": 1,
    "channel": "bert",
    "prefix": "models/",
    "revision": 1,
    "versions": {TARGET: 100},
    "history": [
        {
            "revision": 1,
            "time": "2026-11-27T00:00:00Z",
            "author": "benchmark",
            "action": "promote",
            "notes": "",
            "versions": {TARGET: 100},
            "id": "1",
        }
    ],
}


class Handler(BaseHTTPRequestHandler):
    """Answers every request at once: a channel to a GET, embeddings to a POST."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self._answer(json.dumps(CHANNEL).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(BODY)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def serve(ready: Connection) -> None:
    """A server in a process of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_port)
    server.serve_forever()


def timed(do: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of wall and of this process's processor time."""
    wall, working = time.perf_counter(), time.process_time()
    do()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - working)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="of each side")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    ours_end, theirs_end = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs_end,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours_end.recv()}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    config = Config(retries={"mode": "standard", "total_max_attempts": 1}, tcp_keepalive=True)
    runtime: Any = boto3.client("sagemaker-runtime", endpoint_url=url, config=config, **keys)
    s3: Any = boto3.client("s3", endpoint_url=url, config=config, **keys)
    model = Endpoint("main", bucket="models-bucket", prefix="models/", runtime=runtime, s3=s3).model("bert")
    texts = ["One endpoint, many models."]

    def bare() -> Any:
        answer = runtime.invoke_endpoint(
            EndpointName="main",
            TargetModel=TARGET,
            Body=json.dumps({"inputs": texts}).encode(),
            ContentType="application/json",
            Accept="application/json",
        )
        return json.loads(answer["Body"].read())

    def ours() -> Any:
        return model.predict(texts)

    assert bare() == ours()
    sides: dict[str, Callable[[], Any]] = {"boto3": bare, "mme.client": ours}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(given.requests):
        for name in sorted(sides, reverse=bool(number % 2)):
            took[name].append(timed(sides[name]))
    server.terminate()
    result = {
        name: {
            "wall_ms": round(statistics.median(wall for wall, _ in times), 4),
            "processor_ms": round(statistics.median(working for _, working in times), 4),
        }
        for name, times in took.items()
    }
    more = {key: round(result["mme.client"][key] - result["boto3"][key], 4) for key in ("wall_ms", "processor_ms")}
    if given.json:
        print(json.dumps({"processor": processor(), "requests": given.requests, **result, "added": more}, indent=2))
        return
    print(f"{processor()}; {given.requests} requests each, medians")
    for name, values in [*result.items(), ("added", more)]:
        print(f"{name:12} {values['wall_ms']:8.3f} ms   {values['processor_ms']:8.3f} ms of processor time")


if __name__ == "__main__":
    main()
