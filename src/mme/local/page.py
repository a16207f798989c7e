"""The page of the local AWS: its clients call this server, and hosting adds what no call of AWS returns."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import boto3
from botocore.config import Config

from mme.local.processes import memory
from mme.local.sagemaker.hosting import Hosting
from mme.local.settings import ACCESS_KEY, PAGE, SECRET_KEY, Settings, exports
from mme.page.app import Page
from mme.page.sources import LOCAL, Clients, Place, Sources

_MEMORY_SECONDS = 3.0
"""Seconds for which a container's memory figure is reused: to count it, the kernel walks over all its pages."""


def page(settings: Settings, hosting: Hosting, url: str) -> Page:
    """The page as a WSGI application, below PAGE. ``url`` is where this server answers."""
    place = Place("local", settings.region, exports=exports(url, settings.region))
    inside = Inside(settings.region, hosting)
    return Page(Sources(lambda: _clients(settings, url), place, LOCAL, inside), PAGE)


def _clients(settings: Settings, url: str) -> Clients:
    session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=settings.region)
    config = Config(connect_timeout=10, read_timeout=70, retries={"total_max_attempts": 1}, max_pool_connections=32)

    def client(service: str) -> Any:
        return session.client(service, endpoint_url=url, config=config)  # type: ignore[call-overload]

    return Clients(
        client("sagemaker"),
        client("cloudwatch"),
        client("s3"),
        client("logs"),
        client("application-autoscaling"),
        client("sagemaker-runtime"),
    )


class Inside:
    """The models in an endpoint's containers now, in the form of ``mme.page.sources.Instances``."""

    def __init__(self, region: str, hosting: Hosting) -> None:
        self._region = region
        self._hosting = hosting
        self._lock = threading.Lock()
        self._memory: dict[int, tuple[float, int | None]] = {}

    def __call__(self, endpoint: str) -> Sequence[Mapping[str, Any]] | None:
        now = time.time()
        for one in self._hosting.state():
            if (one.region, one.name) == (self._region, endpoint):
                return [
                    {
                        "variant": variant.name,
                        "config": variant.config,
                        "traffic": variant.traffic,
                        "instance": instance.id,
                        "state": instance.state,
                        "memory": None if instance.pid is None else self._memory_of(instance.pid),
                        "disk": instance.disk_bytes,
                        "models": [
                            (model.target, model.state, model.requests, round(max(0.0, now - model.last_used), 1))
                            for model in instance.models
                        ],
                    }
                    for variant in one.variants
                    for instance in variant.instances
                ]
        return None

    def _memory_of(self, pid: int) -> int | None:
        with self._lock:
            until, value = self._memory.get(pid, (0.0, None))
            if time.monotonic() < until:
                return value
            value = memory(pid)
            self._memory = {k: v for k, v in self._memory.items() if v[0] > time.monotonic()}
            self._memory[pid] = (time.monotonic() + _MEMORY_SECONDS, value)
            return value
