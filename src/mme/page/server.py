"""Serving the page alone, on loopback: for an endpoint on AWS."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from mme.errors import UsageError
from mme.page.app import Page
from mme.page.sources import Sources

HOST = "127.0.0.1"


class _Handler(WSGIRequestHandler):
    timeout = 30  # seconds of silence before a connection is given up

    def log_message(self, format: str, *args: Any) -> None:
        return  # the address of each request has the token


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """As WSGIServer has it, but without asking the network for this machine's name."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, self.server_address[1]
        self.setup_environ()


def serve(sources: Sources, port: int, ready: Callable[[str], None]) -> None:
    """Serves the page until interrupted. Calls ``ready`` with its address once it answers.

    The address carries a token, without which every request is refused: other users of this machine reach the port,
    too, and the page reads with this user's rights. Raises UsageError when the port cannot be used.
    """
    token = secrets.token_urlsafe(24)
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as problem:
        raise UsageError(
            f"Port {port} on {HOST} cannot be used: {problem.strerror or problem}.",
            "Choose another one with --port, or leave it out for a free one.",
        ) from problem
    with server:
        server.set_app(Page(sources, token=token))
        ready(f"http://{HOST}:{server.server_port}/?token={token}")
        server.serve_forever()
