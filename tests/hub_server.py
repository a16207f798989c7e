"""A small Hugging Face Hub: enough of its HTTP for the real client to list and download a model.

It serves folders. Files are at /{repo}/resolve/{commit}/{path}, and like the real one it answers HEAD with
X-Repo-Commit and an ETag, and redirects large files elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 4096


class Hub:
    """What the server serves, and what it was asked for."""

    def __init__(self) -> None:
        self.models: dict[tuple[str, str], Path] = {}
        self.gated: set[str] = set()
        self.cut: set[str] = set()  # paths that break off in the middle
        self.broken = False  # answers 500 to everything
        self.requests: list[str] = []
        self.url = ""
        self.store_url = ""  # where large files are: another host, as in life

    def add(self, repository: str, commit: str, folder: Path) -> None:
        self.models[repository, commit] = folder

    def downloaded(self) -> list[str]:
        """The files whose bytes were asked for."""
        return [
            line.rsplit("/", 1)[1] for line in self.requests if line.startswith("GET /blob/") or " /resolve" in line
        ]


def etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.broken:
            self.send(500, b"", {})
        elif path.startswith("/api/models/"):
            self.api(path.removeprefix("/api/models/"))
        elif path.startswith("/blob/"):
            repository, commit, name = path.removeprefix("/blob/").split("@")
            self.file(hub.models[repository, commit] / name, {})
        else:
            self.resolve(path)

    def resolve(self, path: str) -> None:
        hub = self.hub
        repository, _, rest = path[1:].partition("/resolve/")
        commit, _, name = rest.partition("/")
        folder = self.folder(repository, commit)
        if folder is None:
            return
        if not (folder / name).is_file():
            self.error(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(folder / name)}"'}
        size = (folder / name).stat().st_size
        if size > LARGE:
            headers |= {
                "X-Linked-Size": str(size),
                "X-Linked-Etag": headers.pop("ETag"),
                "Location": f"{hub.store_url}/blob/{repository}@{commit}@{name}",
            }
            self.send(302, b"", headers)
        else:
            self.file(folder / name, headers)

    def folder(self, repository: str, commit: str) -> Path | None:
        if not any(known == repository for known, _ in self.hub.models):
            self.error(401, "RepoNotFound", "Invalid username or password.")
        elif repository in self.hub.gated:
            self.error(403, "GatedRepo", f"Access to model {repository} is restricted.")
        elif (repository, commit) not in self.hub.models:
            self.error(404, "RevisionNotFound", "Invalid rev id")
        else:
            return self.hub.models[repository, commit]
        return None

    def api(self, path: str) -> None:
        for kind in ("/revision/", "/tree/"):
            repository, separator, commit = path.partition(kind)
            if separator:
                folder = self.folder(repository, commit.rstrip("/"))
                if folder is None:
                    return
                files = sorted(item for item in folder.rglob("*") if item.is_file())
                names = [(item.relative_to(folder).as_posix(), item) for item in files]
                if kind == "/tree/":
                    body: object = [
                        {"type": "file", "path": name, "size": item.stat().st_size, "oid": etag(item)[:40]}
                        for name, item in names
                    ]
                else:
                    siblings = [{"rfilename": name} for name, _ in names]
                    body = {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings}
                self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
                return
        self.error(404, "RepoNotFound", "Repository not found")

    def file(self, path: Path, headers: dict[str, str]) -> None:
        data = path.read_bytes()
        if path.name in self.hub.cut and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.send(200, data, {"ETag": f'"{etag(path)}"', **headers})

    def error(self, status: int, code: str, message: str) -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.store_url = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
