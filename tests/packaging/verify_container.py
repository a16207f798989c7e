"""A container that keeps the contract and runs a model's handler in its own process, plainly. For the tests alone.

``python verify_container.py MODE [FILE]``, where FILE is for process ids. MODE: serve; silent (never ready); dies (ends
at once); stubborn (ignores SIGTERM).
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

LOADED: dict[str, tuple[Any, Any]] = {}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        self.answer(200, "{}")

    def do_DELETE(self) -> None:
        LOADED.pop(self.path.split("/")[2])
        self.answer(200, "{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            if self.path == "/models":
                request = json.loads(body)
                script = Path(request["url"]) / "code" / "inference.py"
                spec = importlib.util.spec_from_file_location("inference", script)
                assert spec
                assert spec.loader
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                LOADED[request["model_name"]] = (module, module.model_fn(request["url"]))
                self.answer(200, "{}")
            else:
                module, model = LOADED[self.path.split("/")[2]]
                self.answer(200, module.output_fn(module.predict_fn(json.loads(body), model), "application/json"))
        except Exception as error:
            print(f"handler: {error!r}", flush=True)
            self.answer(500, json.dumps({"code": 500, "type": "InternalServerException", "message": str(error)}))


if __name__ == "__main__":
    mode = sys.argv[1]
    if mode == "dies":
        sys.exit("no libraries here")
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"])
        Path(sys.argv[2]).write_text(f"{os.getpid()} {child.pid}")
    elif len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(str(os.getpid()))
    if mode == "silent":
        time.sleep(600)
    HTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
