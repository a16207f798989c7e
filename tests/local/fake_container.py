"""A small container that keeps SageMaker's multi-model contract, and fails on demand. Standard library only.

It is what most tests host models in: it starts in a tenth of a second. A model's folder decides how it behaves, by
files at the archive's root:
    model.json  {"times": 3}         invoke multiplies the number in the body
                {"size": 40}         how much of the container's room (FAKE_ROOM, default 100) the model takes
                {"load_seconds": 2}  LOAD takes so long
                {"answer_seconds": 1} the answer to LOAD takes so long, with the model loaded
                {"load_status": 500} LOAD answers this
                {"status": 400}      invoke answers this, with the words of "message"
                {"seconds": 1}       invoke takes so long
                {"die": "load"} or {"die": "invoke"}  the process ends there
Of the process: FAKE_BROKEN ends it at once, FAKE_START_SECONDS and FAKE_STOP_SECONDS are how long it takes to listen
and to end, FAKE_STATUS is what every invoke answers.
The body "forget" makes it forget the model and answer 404, as a container does whose model's process died.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOM = float(os.environ.get("FAKE_ROOM", "100"))
LOADED: dict[str, dict] = {}
LOCK = threading.Lock()
OUTPUT = threading.Lock()
LOADS = [0]


def say(line: str) -> None:
    """Write a line to the log in one piece: threads that print write the ends of their lines by themselves."""
    with OUTPUT:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_args: object) -> None:
        return

    def _answer(self, status: int, body: object = None, **headers: str) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        headers.setdefault("Content_Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def do_GET(self) -> None:
        if self.path == "/ping":
            self._answer(200)
        elif self.path.startswith("/models/"):
            name = self.path.removeprefix("/models/")
            if name in LOADED:
                self._answer(200, {"modelName": name, "modelUrl": LOADED[name]["url"]})
            else:
                self._answer(404, {"code": 404, "type": "ModelNotFoundException", "message": "not loaded"})
        else:
            self._answer(200, {"models": [{"modelName": n, "modelUrl": m["url"]} for n, m in LOADED.items()]})

    def do_DELETE(self) -> None:
        name = self.path.removeprefix("/models/")
        with LOCK:
            known = LOADED.pop(name, None)
        say(f"unload {name}")
        self._answer(200 if known else 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/models":
            self._load(json.loads(body))
        else:
            self._invoke(self.path.split("/")[2], body)

    def _load(self, asked: dict) -> None:
        LOADS[0] += 1
        name, folder = asked["model_name"], Path(asked["url"])
        settings = json.loads((folder / "model.json").read_text()) if (folder / "model.json").exists() else {}
        say(f"load {name} {json.dumps(settings)}")
        time.sleep(settings.get("load_seconds", 0))
        if settings.get("die") == "load":
            os._exit(9)
        if "load_status" in settings:
            self._answer(settings["load_status"], {"message": settings.get("message", "cannot load")})
            return
        with LOCK:
            if name in LOADED:
                self._answer(409, {"message": "already loaded"})
                return
            used = sum(model.get("size", 1) for model in LOADED.values())
            if used + settings.get("size", 1) > ROOM:
                self._answer(507, {"code": 507, "type": "InsufficientStorageException", "message": "no room left"})
                return
            LOADED[name] = {**settings, "url": asked["url"], "files": sorted(p.name for p in folder.rglob("*"))}
        time.sleep(settings.get("answer_seconds", 0))
        self._answer(200, {"status": "loaded"})

    def _invoke(self, name: str, body: bytes) -> None:
        model = LOADED.get(name)
        if model is None or body == b"forget":
            LOADED.pop(name, None)
            self._answer(404, {"code": 404, "type": "ModelNotFoundException", "message": "not loaded"})
            return
        time.sleep(model.get("seconds", 0))
        if model.get("die") == "invoke":
            os._exit(9)
        if "FAKE_STATUS" in os.environ:
            self._answer(int(os.environ["FAKE_STATUS"]), {"message": "refused"})
            return
        if "status" in model:
            self._answer(model["status"], {"message": model.get("message", "refused")})
            return
        answer = {
            "pid": os.getpid(),
            "body": body.decode("utf-8", "replace")[:1000],
            "length": len(body),
            "files": model["files"],
            "target": self.headers.get("X-Amzn-SageMaker-Target-Model"),
            "content_type": self.headers.get("Content-Type"),
            "accept": self.headers.get("Accept"),
            "custom": self.headers.get("X-Amzn-SageMaker-Custom-Attributes"),
            "session": self.headers.get("X-Amzn-SageMaker-Session-Id"),
            "environment": {k: v for k, v in os.environ.items() if k.startswith(("SAGEMAKER_", "TEST_", "AWS_"))},
            "loads": LOADS[0],
        }
        if "times" in model:
            answer["result"] = float(body) * model["times"]
        headers = {"X_Amzn_SageMaker_Custom_Attributes": "said=yes"} if answer["custom"] else {}
        if answer["session"] == "NEW_SESSION":
            headers["X-Amzn-SageMaker-New-Session-Id"] = "session-1; Expires=2030-01-01T00:00:00Z"
        if answer["accept"] == "application/octet-stream":
            self._answer(200, body, Content_Type="application/octet-stream", **headers)
        else:
            self._answer(200, answer, **headers)


def end(*_: object) -> None:
    time.sleep(float(os.environ["FAKE_STOP_SECONDS"]))
    os._exit(0)


if __name__ == "__main__":
    if "FAKE_STOP_SECONDS" in os.environ:
        signal.signal(signal.SIGTERM, end)
    say("fake container starts")
    if os.environ.get("FAKE_BROKEN"):
        sys.exit(3)
    time.sleep(float(os.environ.get("FAKE_START_SECONDS", "0")))
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
