"""Puts the parts together: moto with its corrections, hosting, the runtime, the HTTP server."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.sagemaker.models import sagemaker_backends
from werkzeug.serving import ThreadedWSGIServer

from mme.local.app import App
from mme.local.corrections import apply
from mme.local.iam.access import Access
from mme.local.iam.directory import Directory
from mme.local.page import page
from mme.local.sagemaker.alarms import Alarms
from mme.local.sagemaker.autoscaling import Autoscaling
from mme.local.sagemaker.cloudwatch import CloudWatch
from mme.local.sagemaker.endpoints import Endpoints, container_of
from mme.local.sagemaker.fetch import Archives
from mme.local.sagemaker.hosting import Hosting
from mme.local.sagemaker.minutes import Minutes
from mme.local.sagemaker.runtime import EndpointFacts, Runtime
from mme.local.sagemaker.ticker import Ticker
from mme.local.settings import ACCESS_KEY, Settings


@dataclass(frozen=True)
class Built:
    app: App
    hosting: Hosting
    ticker: Ticker
    """Made, but not started."""

    def close(self) -> None:
        """Ends every container."""
        self.ticker.stop()
        self.hosting.close()


def build(settings: Settings, folder: Path, url: str) -> Built:
    """The application, with nothing running yet. ``url`` is where it will answer."""
    access = Access(
        Directory(settings.account, ACCESS_KEY, settings.partition),
        settings.account,
        settings.partition,
        enforced=settings.iam,
    )
    archives = Archives(settings.account, settings.partition, access.role_may_read)
    hosting = Hosting(folder / "endpoints", settings.container, archives, settings.max_instances)
    minutes = Minutes(settings.minute)
    alarms = Alarms(settings.account, minutes)
    endpoints = Endpoints(hosting, CloudWatch(settings.account, minutes).of, alarms.ringing, minutes)
    apply.apply(endpoints, access.role_for_sagemaker, folder / "objects")

    def find(region: str, name: str) -> EndpointFacts | None:
        backend = sagemaker_backends[settings.account][region]
        endpoint = backend.endpoints.get(name)
        if endpoint is None:
            return None
        config = backend.endpoint_configs.get(endpoint.endpoint_config_name)
        variants = config.production_variants if config else []
        models = [backend._models.get(variant.get("ModelName")) for variant in variants]
        modes = [container_of(model).get("Mode") for model in models if model is not None]
        return EndpointFacts(name, endpoint.endpoint_status, all(mode == "MultiModel" for mode in modes))

    def record(region: str, name: str) -> Any:
        return sagemaker_backends[settings.account][region].endpoints.get(name)

    scaling = Autoscaling(settings.account, minutes, endpoints, alarms, record)
    ticker = Ticker(minutes, (hosting.measure, alarms.judge_all, scaling.act))
    runtime = Runtime(hosting, settings.account, find, access.invoke)
    moto = _Dispatcher(_moto_app)
    app = App(settings, folder / "objects", moto, runtime, access, page(settings, hosting, url))
    return Built(app, hosting, ticker)


class _Dispatcher(DomainDispatcherApplication):  # type: ignore[misc]
    """Finds the service of a host once. moto lists the files of its package for each request, which takes four tenths
    of what most answers do."""

    def __init__(self, create_app: Callable[[Any], Any]) -> None:
        super().__init__(create_app)
        self.get_backend_for_host = functools.lru_cache(maxsize=1024)(super().get_backend_for_host)


def _moto_app(service: Any) -> Any:
    app = create_backend_app(service)
    app.config["PROPAGATE_EXCEPTIONS"] = True  # App turns them into answers that AWS clients can read
    return app


class _Handler(MotoRequestHandler):  # type: ignore[misc]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        return


class _Server(ThreadedWSGIServer):
    daemon_threads = True
    request_queue_size = 256


def http_server(listener: socket.socket, app: App) -> ThreadedWSGIServer:
    """The threaded HTTP server on a socket that already listens."""
    host, port = listener.getsockname()[:2]
    return _Server(host, port, app, handler=_Handler, fd=listener.fileno())
