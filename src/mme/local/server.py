"""The local AWS as one process: moto's services and the SageMaker runtime behind one port on loopback."""

from __future__ import annotations

import fcntl
import importlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from mme.errors import UsageError
from mme.local import objects
from mme.local.container import ContainerError, check
from mme.local.variant import log

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # noqa: S105 (AWS's own example, known to everybody)
"""The credentials of the account's root in the local AWS. They open nothing anywhere else."""

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]", "::1")
_MARKER = "mme-local"
_OURS = ("endpoints", "objects", "tmp")


@dataclass(frozen=True)
class Settings:
    """What the local AWS is started with. ``port`` 0 takes a free one."""

    data_dir: Path
    port: int = 0
    container: str = "ours"
    region: str = "us-east-1"
    account: str = "123456789012"
    iam: bool = True
    exit_with_parent: bool = False


def exports(url: str, region: str) -> list[str]:
    """The lines for another shell."""
    return [
        f"export AWS_ENDPOINT_URL={url}",
        f"export AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={SECRET_KEY}",
        f"export AWS_REGION={region} AWS_DEFAULT_REGION={region}",
    ]


class DataDir:
    """The folder that holds everything: locked while in use, and never a folder that is somebody else's."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            marker = self.path / _MARKER
            if not marker.exists() and any(self.path.iterdir()):
                raise UsageError(
                    f"The data folder {self.path} is not empty and was not made by the local AWS.",
                    "Name an empty folder, or one that does not exist yet.",
                )
            self._lock: IO[str] = marker.open("a+")
        except OSError as problem:
            raise UsageError(
                f"The data folder {self.path} cannot be used: {problem.strerror or problem}.",
                "Name a folder that you may write to.",
            ) from problem
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise UsageError(
                f"The data folder {self.path} is in use by another local AWS{f' (process {owner})' if owner else ''}.",
                "Stop that one, or name another folder.",
            ) from problem
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self.clear()
        for name in _OURS:
            (self.path / name).mkdir()

    def clear(self) -> None:
        """Removes what a run keeps on disk; the marker stays."""
        for name in _OURS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def close(self) -> None:
        self.clear()
        self._lock.close()


def _bind(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as problem:
        listener.close()
        raise UsageError(
            f"Port {port} on 127.0.0.1 cannot be used: {problem.strerror or problem}.",
            "Choose another one with --port, or leave it at 0 for a free one.",
        ) from problem
    listener.listen(256)
    return listener


class App:
    """The WSGI application: guards the door, then moto or the runtime."""

    def __init__(self, settings: Settings, objects_folder: Path, moto: Any, runtime: Any, access: Any) -> None:
        self._settings = settings
        self._objects = objects_folder
        self._moto = moto
        self._runtime = runtime
        self._access = access

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        from mme.local import access, invoke

        refusal = _not_for_browsers(environ)
        if refusal is not None:
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [refusal.encode()]
        region = region_of(environ, self._settings.region)
        answer: Iterable[bytes]
        if invoke.matches(environ):
            answer = self._runtime(environ, start_response, region)
            return answer
        try:
            refused = self._access.gate(environ, region)
            if refused is not None:
                invoke.drop(environ)
                answer = refused(start_response)
                return answer
            if access.signed_service(environ) in ("s3", None) and objects.is_upload(environ):
                return self._upload(environ, start_response)
            answer = self._moto(environ, start_response)
        except NotImplementedError as problem:
            return _unknown(environ, start_response, "UnknownOperationException", str(problem))
        except Exception as problem:  # a fault of ours or of moto's: say it to the client, and keep serving
            traceback.print_exc()
            words = f"{type(problem).__name__}: {problem}"
            # Not a 500: it would fail again in the same way, and clients retry a 500 for minutes.
            return _unknown(environ, start_response, "LocalAwsFault", words)
        return answer

    def _upload(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The content of an object goes to a file here; moto sees a request without a body."""
        try:
            received = objects.receive(environ, self._objects)
        except objects.Refused as problem:
            body = f"<Error><Code>{problem.code}</Code><Message>{escape(str(problem))}</Message></Error>".encode()
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            start_response("400 Bad Request", headers)
            return [body]
        try:
            answer: Iterable[bytes] = self._moto(objects.without_body(environ, received), start_response)
            return answer
        finally:
            objects.discard(received)


def _unknown(environ: Mapping[str, Any], start_response: Callable[..., Any], code: str, words: str) -> Iterable[bytes]:
    """An error of the local AWS itself, in the shape that the caller's protocol reads."""
    message = f"The local AWS cannot do this: {words}"
    log(f"{environ.get('REQUEST_METHOD')} {environ.get('PATH_INFO')} {environ.get('HTTP_X_AMZ_TARGET', '')}: {words}")
    if environ.get("HTTP_X_AMZ_TARGET") or "json" in str(environ.get("CONTENT_TYPE", "")):
        kind, body = "application/json", json.dumps({"__type": code, "message": message})
    else:
        error = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
        s3 = "/s3/aws4_request" in str(environ.get("HTTP_AUTHORIZATION", ""))
        body = f"<Error>{error}</Error>" if s3 else f"<ErrorResponse><Error>{error}</Error></ErrorResponse>"
        kind = "application/xml"
    data = body.encode()
    headers = [("Content-Type", kind), ("Content-Length", str(len(data))), ("x-amzn-ErrorType", code)]
    start_response("400 Bad Request", headers)
    return [data]


def region_of(environ: Mapping[str, Any], default: str) -> str:
    """The region that a request was signed for."""
    scope = str(environ.get("HTTP_AUTHORIZATION", "")).partition("Credential=")[2].partition(",")[0].split("/")
    return scope[2] if len(scope) >= 5 and scope[2] else default


def _not_for_browsers(environ: Mapping[str, Any]) -> str | None:
    """A web page that the user has open must not reach the local AWS; AWS clients send no Origin."""
    host = str(environ.get("HTTP_HOST", "")).rpartition(":")[0] or str(environ.get("HTTP_HOST", ""))
    if host not in _LOCAL_HOSTS:
        return f"The local AWS answers on 127.0.0.1 only, not for the host {host!r}. Use http://127.0.0.1:PORT.\n"
    origin = environ.get("HTTP_ORIGIN")
    if origin and (urlsplit(origin).hostname or "") not in ("127.0.0.1", "localhost", "::1"):
        return "The local AWS does not answer web pages.\n"
    return None


def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Runs the local AWS until SIGINT, SIGTERM or SIGHUP. Calls ``ready`` with the URL once it answers.

    Raises UsageError when the port, the data folder or the container cannot be used, or when moto is not installed.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        check(settings.container)
    except ContainerError as problem:
        raise UsageError(str(problem)) from problem
    data = DataDir(settings.data_dir)
    try:
        listener = _bind(settings.port)
    except UsageError:
        data.close()
        raise
    try:
        _serve(settings, data, listener, ready, stop)
    finally:
        listener.close()
        data.close()


def _serve(
    settings: Settings, data: DataDir, listener: socket.socket, ready: Callable[[str], None], stop: threading.Event
) -> None:
    # Everything that spools to disk, moto's objects above all, does so in the data folder.
    tempfile.tempdir = str(data.path / "tmp")
    os.environ["MOTO_ACCOUNT_ID"] = settings.account
    os.environ["MOTO_DISABLE_GLOBAL_CORS"] = "true"
    os.environ.setdefault("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    assembly = _assembly()
    built = assembly.build(settings, data.path)
    server = assembly.http_server(listener, built.app)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    if settings.exit_with_parent:
        threading.Thread(target=_stop_at_eof, args=(stop,), name="parent", daemon=True).start()
    ready(url)
    while not stop.wait(0.5):
        pass
    log("stopping")
    began = time.monotonic()
    server.shutdown()
    built.hosting.close()
    log(f"stopped ({time.monotonic() - began:.1f} s)")


def _assembly() -> ModuleType:
    """The module that needs moto. Raises UsageError where moto is missing, or not one that the corrections fit."""
    from mme.local.corrections import MOTO_VERSION

    advice = "Install it with `pip install 'mme[local]'`."
    try:
        installed = importlib.metadata.version("moto")
    except importlib.metadata.PackageNotFoundError:
        raise UsageError("The local AWS needs moto, which is not installed.", advice) from None
    if installed.split(".")[:2] != MOTO_VERSION.split(".")[:2]:
        raise UsageError(f"The local AWS needs moto {MOTO_VERSION} or a later patch of it, not {installed}.", advice)
    try:
        return importlib.import_module("mme.local.assembly")
    except ImportError as problem:
        words = f"The local AWS needs a package that is not installed: {problem.name}."
        raise UsageError(words, advice) from problem


def _stop_at_eof(stop: threading.Event) -> None:
    """Sets ``stop`` when whoever holds the other end of standard input closes it or ends."""
    while True:
        try:
            if not os.read(sys.stdin.fileno(), 4096):
                break
        except OSError:
            break
    stop.set()
