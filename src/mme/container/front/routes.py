"""The front: SageMaker's multi-model contract over HTTP. It never imports torch."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import Any
from urllib.parse import parse_qs, unquote

from mme.container import errors, system
from mme.container.config import Settings
from mme.container.errors import ServingError
from mme.container.front.exposition import CONTENT_TYPE, Exposition
from mme.container.front.http import Connection, Limits, Request, look_after
from mme.container.front.hub import Hub
from mme.container.front.log import Log
from mme.container.front.models import Invocation
from mme.container.front.turns import Turns
from mme.container.text import encodable, json_bytes

MAX_TEXT = 4096  # characters of a model's name, and of its folder's
SINGLE_NAME = "model"  # the one model's name where the platform runs the container for one model alone
# What a handler may read of a request, spelt as SageMaker spells it.
HEADERS = {
    "content-type": "Content-Type",
    "accept": "Accept",
    "x-amzn-sagemaker-custom-attributes": "X-Amzn-SageMaker-Custom-Attributes",
    "x-amzn-sagemaker-target-model": "X-Amzn-SageMaker-Target-Model",
    "x-amzn-sagemaker-inference-id": "X-Amzn-SageMaker-Inference-Id",
}


class _MethodError(ServingError):
    """The answer to it says which methods there are (RFC 9110, 15.5.6)."""

    def __init__(self, request: Request, allowed: str) -> None:
        super().__init__(405, "MethodNotAllowedException", f"{request.path} takes {allowed}, not {request.method}")
        self.allowed = allowed


class Front:
    """Calls the function that answers each HTTP request."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self.settings = settings
        self.log = log
        self.hub = Hub(settings, log)
        self.metrics = Exposition(self.hub, settings.metrics_models)
        self.hub.gone = self.metrics.gone
        self.budget = self.hub.budget
        self.limits = Limits(
            settings.max_body, settings.max_connections, settings.stall_timeout, settings.invoke_timeout
        )
        self.connections: set[Connection] = set()
        self.turns = Turns()
        self.single_ready = settings.multi_model
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def closing(self) -> bool:
        return self.hub.stopping

    def handle(self, request: Request) -> None:
        try:
            self._route(request)
        except ServingError as error:
            self._fail(request, error)
        except Exception as error:
            self.log("error", "request", path=request.path, message=repr(error))
            self._fail(request, errors.internal("The container failed on this request; its log says more"))

    def _route(self, request: Request) -> None:
        method, path = request.method, request.path
        if path == "/ping":
            self._need(request, "GET", "HEAD")
            healthy = self.hub.healthy and self.single_ready
            request.answer(200 if healthy else 503, b'{"status": "Healthy"}' if healthy else b'{"status": "Starting"}')
        elif path == "/models":
            self._need(request, "GET", "POST")
            if method == "POST":
                self._later(request, self._load(request))
            else:
                self._list(request)
        elif path.startswith("/models/"):
            self._model(request, path.removeprefix("/models/"))
        elif path == "/metrics":
            self._need(request, "GET")
            request.answer(200, self.metrics.render(), CONTENT_TYPE)
        elif path == "/invocations" and not self.settings.multi_model:
            self._need(request, "POST")
            self._invoke(request, SINGLE_NAME)
        else:
            raise ServingError(404, "ResourceNotFoundException", f"There is nothing at {path}")

    def _model(self, request: Request, rest: str) -> None:
        if rest.endswith("/invoke"):  # as it was sent: a slash that belongs to a name comes as %2F
            self._need(request, "POST")
            self._invoke(request, _decoded(rest.removesuffix("/invoke")))
            return
        name = _decoded(rest)
        self._need(request, "GET", "DELETE")
        if request.method == "DELETE":
            self._later(request, self._unload(request, name))
        else:
            model = self.hub.get(name)
            request.answer(200, json_bytes({"modelName": model.name, "modelUrl": model.url}))

    def _need(self, request: Request, *methods: str) -> None:
        if request.method not in methods:
            raise _MethodError(request, ", ".join(methods))

    def _later(self, request: Request, work: Any) -> None:
        """Answer when the coroutine has ended; end it if the client leaves."""
        task = asyncio.create_task(self._guarded(request, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        request.gone = lambda: _cancel(task)

    async def _guarded(self, request: Request, work: Any) -> None:
        try:
            await work
        except ServingError as error:
            self._fail(request, error)
        except Exception as error:
            self.log("error", "request", path=request.path, message=repr(error))
            self._fail(request, errors.internal("The container failed on this request; its log says more"))

    def _fail(self, request: Request, error: ServingError) -> None:
        self.log(
            "warning" if error.status < 500 else "error",
            "error",
            method=request.method,
            path=request.path,
            status=error.status,
            type=error.kind,
            message=error.message,
            target=request.headers.get("x-amzn-sagemaker-target-model"),
        )
        request.answer(
            error.status, error.body(), extra=f"Allow: {error.allowed}\r\n" if isinstance(error, _MethodError) else ""
        )

    # -- models -------------------------------------------------------------------------------------------------

    async def _load(self, request: Request) -> None:
        try:
            wanted = json.loads(request.body)
            name, url = wanted["model_name"], wanted["url"]
        except (ValueError, KeyError, TypeError, RecursionError):
            name = url = None
        if not (isinstance(name, str) and name and isinstance(url, str) and url):
            raise errors.bad_request('LOAD takes {"model_name": "...", "url": "/folder/of/the/model"}')
        for field, text in (("model_name", name), ("url", url)):
            if not encodable(text) or "\0" in text or len(text) > MAX_TEXT:
                raise errors.bad_request(
                    f"{field} is not a text of at most {MAX_TEXT} characters that can be written in UTF-8"
                )
        await self.hub.load(name, url)
        request.answer(200, json_bytes({"status": f"Model {name} loaded"}))

    async def _unload(self, request: Request, name: str) -> None:
        began = time.monotonic()
        # Once begun, an unload is carried through even if its caller goes.
        await asyncio.shield(asyncio.ensure_future(self.hub.unload(name)))
        self.log("info", "unload", model=name, seconds=round(time.monotonic() - began, 4))
        request.answer(200, json_bytes({"status": f"Model {name} unloaded"}))

    def _list(self, request: Request) -> None:
        query = parse_qs(request.query)
        token = query.get("next_page_token", ["0"])[-1] or "0"
        limit = query.get("limit", [str(self.settings.page_size)])[-1]
        if not (token.isascii() and token.isdigit() and len(token) < 19):
            raise errors.bad_request("next_page_token is not one that this server has given")
        if not (limit.isascii() and limit.isdigit() and 0 < int(limit[:10]) <= 100_000):
            raise errors.bad_request("limit must lie between 1 and 100000")
        models, following = self.hub.page(int(token), int(limit))
        answer: dict[str, Any] = {"models": [{"modelName": m.name, "modelUrl": m.url} for m in models]}
        if following is not None:
            answer["nextPageToken"] = str(following)
        request.answer(200, json_bytes(answer))

    # -- predictions --------------------------------------------------------------------------------------------

    def _invoke(self, request: Request, name: str) -> None:
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ServingError(
                415,
                "UnsupportedMediaTypeException",
                f"Bodies with Content-Encoding {encoding:.100} are not read here; send the body as it is",
            )
        headers = {HEADERS[key]: value for key, value in request.headers.items() if key in HEADERS}
        target = headers.get("X-Amzn-SageMaker-Target-Model", "")

        def done(invocation: Invocation, status: int, body: bytes, content_type: str, times: dict[str, Any]) -> None:
            timing = ", ".join(f"{stage};dur={times[stage] * 1000:.2f}" for stage in times if stage != "batch")
            further = "".join(f"{name}: {value}\r\n" for name, value in invocation.headers_out.items())
            request.answer(status, body, content_type, f"{further}Server-Timing: {timing}\r\n")
            if self.settings.access_log:
                self._access(invocation, status, body, times)

        invocation = self.hub.invoke(name, headers, request.body, done, target)
        request.gone = lambda: self.hub.cancel(invocation)

    def _access(self, invocation: Invocation, status: int, body: bytes, times: dict[str, Any]) -> None:
        line: dict[str, Any] = {"model": invocation.model.name, "status": status}
        if invocation.target:
            line["target"] = invocation.target
        if not invocation.model.logged:  # the first since it was loaded: its caller waited for the load
            invocation.model.logged = line["cold"] = True
        line["bytes_in"], line["bytes_out"] = len(invocation.body), len(body)
        for stage, value in times.items():
            line[stage if stage == "batch" else f"{stage}_ms"] = value if stage == "batch" else round(value * 1000, 2)
        if status >= 400:
            line["message"] = body[:500].decode("utf-8", "replace")
        self.log("info" if status < 400 else "warning", "invoke", **line)

    # -- life ---------------------------------------------------------------------------------------------------

    async def _load_single(self) -> None:
        """Outside multi-model mode: the one model that lies in the base folder."""
        await self.hub.load(SINGLE_NAME, f"{self.settings.base_dir}/model")
        self.single_ready = True

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT. Returns the exit code."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        server = await loop.create_server(
            lambda: Connection(self), self.settings.host, self.settings.port, backlog=1024, reuse_address=True
        )
        port = server.sockets[0].getsockname()[1]
        self.log("info", "listening", host=self.settings.host, port=port, cpus=self.settings.cpus)
        for note in self.settings.notes:
            self.log("warning", "setting", message=note)
        await self.hub.start()
        looking = asyncio.create_task(look_after(self))
        code = 0
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
        if not self.settings.multi_model:
            single = asyncio.create_task(self._load_single())
            await asyncio.wait([waits[0], single], return_when=asyncio.FIRST_COMPLETED)
            if single.done() and single.exception() is not None:
                self.log("error", "load", message=str(single.exception()))
                code = 1
                stop.set()
        await stop.wait()
        self.log("info", "draining")
        server.close()
        await self.hub.drain()
        await self.hub.close()
        if self._tasks:  # loads that were under way: their callers are told
            await asyncio.wait(self._tasks, timeout=1)
        looking.cancel()
        for connection in list(self.connections):
            connection.close_if_idle()
        self.log("info", "stopped")
        return code


def _decoded(name: str) -> str:
    """A model's name out of a path. Raises ServingError where its percent signs do not make UTF-8: one name would
    pass for another."""
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        raise errors.bad_request(f"The model's name {name:.200} is not UTF-8, percent-encoded") from None


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def main(settings: Settings) -> int:
    """Run the container until it is told to stop. Returns the exit code."""
    system.raise_file_limit()
    log = Log(settings.log_level)
    runner: Any = asyncio.run
    try:
        import uvloop
    except ImportError:
        log("info", "uvloop is not installed; using asyncio's own loop")
    else:
        runner = uvloop.run
    try:
        code: int = runner(Front(settings, log).run())
    except OSError as error:
        log("error", "start", message=f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}")
        code = 1
    log.close()
    return code
