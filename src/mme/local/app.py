"""The WSGI application: every request passes here on its way to moto or to our own services."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from mme.local.answers import refusal, unknown_operation
from mme.local.clock import out_of_time
from mme.local.repeats import Repeats
from mme.local.requests import region_of, signed_service
from mme.local.s3 import blobs, receive
from mme.local.settings import PAGE, Settings

_NO_PAGES = "The local AWS does not answer web pages.\n"
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]", "::1")


class App:
    """The WSGI application: checks each request, then hands it to moto or to the runtime."""

    def __init__(
        self, settings: Settings, objects_folder: Path, moto: Any, runtime: Any, access: Any, page: Any = None
    ) -> None:
        """``page`` is the WSGI application below PAGE; without one there is none."""
        self._settings = settings
        self._objects = objects_folder
        self._moto = moto
        self._runtime = runtime
        self._access = access
        self._page = page
        # moto is not made for threads: it walks over dictionaries that another request may be changing.
        self._one_at_a_time = threading.Lock()
        self._repeats = Repeats()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        from mme.local import requests
        from mme.local.sagemaker.runtime import drop, matches

        unwanted = _not_for_browsers(environ)
        if unwanted is not None:
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [unwanted.encode()]
        if requests.content_length(environ) is None:
            return unknown_operation(environ, start_response, "InvalidRequest", "a Content-Length that is not a number")
        answer: Iterable[bytes]
        if self._page is not None and _for_the_page(environ):
            answer = self._page(environ, start_response)
            return answer
        if environ.get("HTTP_SEC_FETCH_SITE") == "cross-site":
            # An image or a link of another site carries no Origin, and some services are asked by a GET for anything.
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [_NO_PAGES.encode()]
        late = out_of_time(environ, datetime.now(timezone.utc)) if self._settings.iam else None
        if late is not None:
            drop(environ)
            return late(start_response)
        region = region_of(environ, self._settings.region)
        if matches(environ):
            answer = self._runtime(environ, start_response, region)
            return answer
        upload = requests.signed_service(environ) in ("s3", None) and receive.is_upload(environ)
        try:
            if not upload:
                requests.receive_body(environ)  # so that a client that is slow to send does not block the lock below
            with self._one_at_a_time:
                refused = self._access.gate(environ, region)
            if refused is not None:
                drop(environ)
                answer = refused(start_response)
                return answer
            requests.pin(environ)  # moto must read the same service in it that was authorized
            if _unknown_condition(environ):
                drop(environ)
                words = "A header you provided implies functionality that is not implemented"
                answer = refusal("s3", 501, "NotImplemented", words)(start_response)
                return answer
            if upload:
                return self._upload(environ, start_response)
            answer = self._ask_moto(environ, start_response)
        except NotImplementedError as problem:
            return unknown_operation(environ, start_response, "UnknownOperationException", str(problem))
        except Exception as problem:  # a fault of ours or of moto's: report it to the client, and go on serving
            traceback.print_exc()
            words = f"{type(problem).__name__}: {problem}"
            # Not a 500: it would fail again in the same way, and clients retry a 500 for minutes.
            return unknown_operation(environ, start_response, "LocalAwsFault", words)
        return answer

    def _ask_moto(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._one_at_a_time:
            return self._repeats.ask(self._moto, environ, start_response)

    def _upload(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Receives the content of an object into a file; moto gets a request without a body."""
        try:
            received = receive.receive(environ, self._objects)
        except receive.Refused as problem:
            body = f"<Error><Code>{problem.code}</Code><Message>{escape(str(problem))}</Message></Error>".encode()
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            start_response("400 Bad Request", headers)
            return [body]
        try:
            return self._ask_moto(receive.without_body(environ, received), start_response)
        finally:
            blobs.discard(received)


def _unknown_condition(environ: Mapping[str, Any]) -> bool:
    """Whether a write to S3 carries a condition that S3 does not know: If-None-Match takes a star alone."""
    if environ.get("REQUEST_METHOD") not in ("PUT", "POST") or signed_service(environ) not in ("s3", None):
        return False
    return str(environ.get("HTTP_IF_NONE_MATCH", "*")).strip() != "*"


def _for_the_page(environ: dict[str, Any]) -> bool:
    """Whether the request is for the page. A browser that asks for the server itself is sent there."""
    path = str(environ.get("PATH_INFO", ""))
    if path == "/" and environ.get("HTTP_SEC_FETCH_MODE") == "navigate" and not signed_service(environ):
        environ["PATH_INFO"] = PAGE.rstrip("/")
        return True
    return path == PAGE.rstrip("/") or path.startswith(PAGE)


def _not_for_browsers(environ: Mapping[str, Any]) -> str | None:
    """A web page that the user has open must not reach the local AWS; AWS clients send no Origin."""
    host = str(environ.get("HTTP_HOST", "")).rpartition(":")[0] or str(environ.get("HTTP_HOST", ""))
    if host not in _LOCAL_HOSTS:
        return f"The local AWS answers on 127.0.0.1 only, not for the host {host!r}. Use http://127.0.0.1:PORT.\n"
    origin = environ.get("HTTP_ORIGIN")
    if origin and (urlsplit(origin).hostname or "") not in ("127.0.0.1", "localhost", "::1"):
        return _NO_PAGES
    return None
