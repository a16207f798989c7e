"""The local AWS as one process: moto's services and the SageMaker runtime behind one port on loopback."""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.metadata
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import ModuleType

import botocore.session

from mme.errors import UsageError
from mme.local.console import log
from mme.local.data_dir import DataDir
from mme.local.settings import Settings
from mme.runner.errors import ContainerError
from mme.runner.kinds import check


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
    # moto asks a new session for the regions of each service. What sessions read is read once, a third of the start.
    botocore.session.create_loader = functools.cache(botocore.session.create_loader)
    # moto's many objects stay. To look for garbage among them took four tenths of all that the server does.
    gc.disable()
    assembly = _assembly()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    built = assembly.build(settings, data.path, url)
    gc.freeze()
    gc.enable()
    server = assembly.http_server(listener, built.app)
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    built.ticker.start()
    if settings.exit_with_parent:
        threading.Thread(target=_stop_at_eof, args=(stop,), name="parent", daemon=True).start()
    ready(url)
    while not stop.wait(0.5):
        pass
    log("stopping")
    began = time.monotonic()
    server.shutdown()
    built.close()
    log(f"stopped ({time.monotonic() - began:.1f} s)")


def _assembly() -> ModuleType:
    """The module that needs moto. Raises UsageError where moto is missing, or not one that the corrections fit."""
    from mme.local.corrections.apply import MOTO_VERSION

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
    """Sets ``stop`` when standard input is closed, which also happens when its other end's process dies."""
    while True:
        try:
            if not os.read(sys.stdin.fileno(), 4096):
                break
        except OSError:
            break
    stop.set()
