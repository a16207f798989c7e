"""The page as a WSGI application: its files, and what it shows as JSON.

Only a browser on this machine that has this page open is answered. Another site's page is refused by what it cannot
forge: the name by which it reaches this server (Host; so also where a name of its own points to 127.0.0.1), its origin
(Origin, Sec-Fetch-Site), and a header of our own, which a browser sends to another origin only after a preflight
request, which is refused here. All data is untrusted text, and is sent as JSON.
"""

from __future__ import annotations

import gzip
import hmac
import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from mme.errors import EndpointError, MmeError, UsageError
from mme.page import trying
from mme.page.sources import Sources

MAX_BODY = 6_291_456
"""Bytes; SageMaker refuses a larger request."""
HEADER = "X-Mme-Page"
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    **{
        name: (name, "text/javascript; charset=utf-8")
        for name in ("page.js", "dom.js", "charts.js", "log.js", "plans.js", "try.js")
    },
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_ALWAYS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Vary", "Accept-Encoding"),
)
_REASONS = {
    200: "OK",
    302: "Found",
    304: "Not Modified",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
}
_SMALL = 2_000  # bytes that are not worth compressing


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Page:
    """The application, below ``base`` ("/" or "/_mme/").

    ``token`` is what ``HEADER`` must say; the page's own address carries it (``?token=…``). Without one, the header
    must be there all the same.
    """

    def __init__(self, sources: Sources, base: str = "/", token: str | None = None) -> None:
        self._sources = sources
        self._base = base
        self._token = token
        folder = resources.files("mme.page") / "static"
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            answer = self._answer(environ)
        except _Refused as refused:
            _drop(environ)
            answer = _json({"error": refused.message}, refused.status)
        except UsageError as error:
            answer = _json({"error": str(error)}, 400)
        except MmeError as error:
            answer = _json({"error": str(error)}, 502)
        except Exception:  # a fault of ours: it is in the server's log, and the page goes on
            traceback.print_exc()
            answer = _json({"error": "The page has a fault; its server's output says which."}, 500)
        body = answer.body
        headers = [*_ALWAYS, *answer.headers.items()]
        if answer.status not in (304, 302):
            headers.append(("Content-Type", answer.kind))
        if len(body) > _SMALL and "gzip" in str(environ.get("HTTP_ACCEPT_ENCODING", "")):
            body = gzip.compress(body, 1, mtime=0)
            headers.append(("Content-Encoding", "gzip"))
        if answer.status != 304:
            headers.append(("Content-Length", str(len(body))))
        if "Cache-Control" not in answer.headers:
            headers.append(("Cache-Control", "no-store"))
        start_response(f"{answer.status} {_REASONS[answer.status]}", headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def _answer(self, environ: Mapping[str, Any]) -> _Answer:
        path = str(environ.get("PATH_INFO", ""))
        if path == self._base.rstrip("/") and path:
            return _Answer(302, b"", headers={"Location": self._base})
        if not path.startswith(self._base):
            raise _Refused(404, "There is no such page.")
        path = path[len(self._base) :]
        method = str(environ.get("REQUEST_METHOD"))
        self._check_sender(environ, api=path.startswith("api/"))
        if path == "api/predict":
            if method != "POST":
                raise _Refused(405, "This takes a POST.")
            return self._predict(environ)
        if method not in ("GET", "HEAD"):
            raise _Refused(405, "This takes a GET.")
        if path in self._files:
            return self._file(environ, path)
        return self._data(environ, path)

    def _check_sender(self, environ: Mapping[str, Any], *, api: bool) -> None:
        host = str(environ.get("HTTP_HOST", ""))
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in _HOSTS:
            raise _Refused(403, f"This page answers on 127.0.0.1 only, not for the host {host[:200]!r}.")
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin != f"http://{host}":
            raise _Refused(403, "This does not answer pages from elsewhere.")
        site = environ.get("HTTP_SEC_FETCH_SITE", "same-origin")
        mode = environ.get("HTTP_SEC_FETCH_MODE")
        if not api:
            if site not in ("same-origin", "none") and mode != "navigate":
                raise _Refused(403, "This does not answer pages from elsewhere.")
            return
        if site != "same-origin":
            raise _Refused(403, "This does not answer pages from elsewhere.")
        given = environ.get(f"HTTP_{HEADER.upper().replace('-', '_')}")
        if given is None:
            raise _Refused(403, f"The header {HEADER} is missing.")
        if self._token is not None and not hmac.compare_digest(given.encode(), self._token.encode()):
            raise _Refused(403, "Open this page by the whole address that was printed: it ends with a token.")

    def _file(self, environ: Mapping[str, Any], path: str) -> _Answer:
        body, kind = self._files[path]
        return _tagged(environ, _Answer(200, body, kind))

    def _data(self, environ: Mapping[str, Any], path: str) -> _Answer:
        query = _query(environ)
        name = query.get("endpoint") or None
        if path == "api/state":
            return _json(self._sources.state(name))
        if path not in ("api/models", "api/series", "api/log", "api/plans", "api/plan"):
            raise _Refused(404, "There is no such page.")
        if name is None:
            raise UsageError("Which endpoint? The query lacks it.")
        if path == "api/models":
            return _tagged(environ, _json(self._sources.models(name)))
        if path == "api/plans":
            return _tagged(environ, _json(self._sources.plans(name)))
        if path == "api/plan":
            return _tagged(environ, _json(self._sources.plan(name, query.get("plan", ""))))
        if path == "api/series":
            return _tagged(environ, _json(self._sources.series(name)))
        since = query.get("since")
        if since is not None and not (since.isascii() and since.isdigit() and len(since) < 16):
            raise UsageError("since is milliseconds since 1970.")
        return _json(self._sources.log(name, int(since) if since else None))

    def _predict(self, environ: Mapping[str, Any]) -> _Answer:
        runtime = self._sources.clients.runtime
        if runtime is None:
            raise _Refused(403, "This page is read only.")
        query = _query(environ)
        endpoint, name, target = (query.get(key, "") for key in ("endpoint", "name", "target"))
        if not endpoint or bool(name) == bool(target):
            raise UsageError("Give an endpoint, and either a name or a target.")
        kind = trying.check_type(str(environ.get("CONTENT_TYPE") or "application/json"))
        accept = trying.check_type(query.get("accept") or "application/json")
        body = _read(environ)
        self._sources.facts(endpoint)  # raises where the page does not show it
        if name:
            target = trying.resolve(self._sources.clients.s3, self._sources.store(endpoint), name)
        return _json(trying.predict(runtime, endpoint, target, body, kind, accept, query.get("variant") or None))


def _json(value: Any, status: int = 200) -> _Answer:
    # Lone surrogates (they come in log lines) cannot be encoded as they are, so everything but ASCII is escaped.
    return _Answer(status, json.dumps(value, separators=(",", ":"), allow_nan=False).encode())


def _tagged(environ: Mapping[str, Any], answer: _Answer) -> _Answer:
    """The answer with its ETag; without a body where the browser has it already."""
    tag = f'"{sha256(answer.body).hexdigest()[:24]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if tag in str(environ.get("HTTP_IF_NONE_MATCH", "")):
        return _Answer(304, b"", headers=headers)
    return _Answer(200, answer.body, answer.kind, headers)


def _query(environ: Mapping[str, Any]) -> dict[str, str]:
    try:
        fields = parse_qs(str(environ.get("QUERY_STRING", "")), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise UsageError("The query cannot be read.") from error
    return {key: values[-1] for key, values in fields.items()}


def _read(environ: Mapping[str, Any]) -> bytes:
    length = str(environ.get("CONTENT_LENGTH") or "")
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise _Refused(411, "The request does not say how long it is.")
    if int(length) > MAX_BODY:
        raise _Refused(413, f"The input has {int(length):,} bytes; an endpoint takes at most {MAX_BODY:,}.")
    body: bytes = environ["wsgi.input"].read(int(length))
    if len(body) < int(length):
        raise EndpointError("The request was cut off.")
    return body


def _drop(environ: Mapping[str, Any]) -> None:
    """Reads what is left of a refused request, so that the browser gets to see the answer."""
    length = str(environ.get("CONTENT_LENGTH") or "0")
    left = min(int(length), 1 << 26) if length.isascii() and length.isdigit() and len(length) < 19 else 0
    while left > 0:
        chunk = environ["wsgi.input"].read(min(left, 1 << 20))
        if not chunk:
            return
        left -= len(chunk)
