"""What the page shows, as plain JSON values: from SageMaker, CloudWatch, its logs and the bucket, through boto3.

Many browsers may poll at once: each answer is cached for some seconds and made once for all of them. A source that
cannot be read does not hide the others; ``unknown`` says what was not read and why.
"""

from __future__ import annotations

import threading
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from mme import channels, releases
from mme.aws import explained
from mme.capacity import published
from mme.errors import EndpointError, MmeError
from mme.operate import facts as endpoint_facts
from mme.operate import lines, logs, metrics, status
from mme.operate.facts import Facts
from mme.page import series
from mme.page.cache import Cache

if TYPE_CHECKING:
    from types_boto3_sagemaker_runtime import SageMakerRuntimeClient

T = TypeVar("T")

VERSIONS_SHOWN = 20
"""Versions shown of one model, at most; the number of the others is shown."""
LINES_AT_ONCE = 1_000
LINE_LENGTH = 4_000
LOG_MINUTES = 15
ENDPOINTS_SHOWN = 500

Instances = Callable[[str], "Sequence[Mapping[str, Any]] | None"]
"""What only the local AWS knows of an endpoint, by the endpoint's name; None where nothing is known. One mapping an
instance: ``variant``, ``config`` and ``traffic`` (its variant's share, 0 to 1), ``instance`` (its id), ``state``,
``memory`` and ``disk`` (bytes; None where unknown), and ``models``: a list of (target, state, requests under way,
seconds since it was last used)."""


@dataclass(frozen=True)
class Clients(status.Clients):
    """The clients of a status, and ``runtime`` for predictions; without it no model can be tried."""

    runtime: SageMakerRuntimeClient | None = None


@dataclass(frozen=True)
class Pace:
    """Seconds for which an answer is cached: facts of the endpoint, figures and alarms, the list of what is released;
    and ``poll``, how often a browser asks."""

    facts: float
    figures: float
    released: float
    poll: float
    late_ms: int
    """By how much CloudWatch may show a line after a later one."""


LOCAL = Pace(facts=0.5, figures=3.0, released=2.0, poll=2.0, late_ms=0)
AWS = Pace(facts=10.0, figures=60.0, released=60.0, poll=15.0, late_ms=1000 * logs.LATE_S)
"""On AWS each metric of a call to GetMetricData is paid for."""


@dataclass(frozen=True)
class Place:
    """Where the page looks. ``endpoint`` None: at all of the region, else at this one. ``store``: the bucket, where it
    is not the one that the endpoint itself names. ``exports``: lines for a shell to copy."""

    where: str
    region: str
    endpoint: str | None = None
    store: releases.Store | None = None
    exports: Sequence[str] = ()


class Sources:
    """All that the page shows of a place. Methods may be called from any thread; each raises MmeError."""

    def __init__(
        self, clients: Callable[[], Clients], place: Place, pace: Pace, instances: Instances = lambda _: None
    ) -> None:
        """``clients`` is called once, when the first browser asks: making clients takes a second."""
        self._make_clients = clients
        self._clients: Clients | None = None
        self._making = threading.Lock()
        self.place = place
        self._pace = pace
        self._instances = instances
        self._cache = Cache()
        self._channels: dict[releases.Store, dict[str, tuple[str, channels.Channel]]] = {}
        self._channels_lock = threading.Lock()

    @property
    def clients(self) -> Clients:
        """boto3's clients."""
        with self._making:
            if self._clients is None:
                self._clients = self._make_clients()
            return self._clients

    def state(self, name: str | None) -> dict[str, Any]:
        """The endpoints, and all about one of them: ``name``, else the first. The one answer that is polled."""
        unknown: dict[str, str] = {}
        known = _tried(unknown, "endpoints", self._endpoints) or []
        if name is None and known:
            name = known[0]["name"]
        endpoint = _tried(unknown, f"endpoint {name}", lambda: self._endpoint(name, unknown)) if name else None
        if name and endpoint is not None and all(one["name"] != name for one in known):
            # Made since the list was asked for, or beyond what it shows.
            known = sorted([*known, _shown(self.facts(name))], key=lambda one: str(one["name"]))
        return {
            "time": status.stamp(datetime.now(timezone.utc)),
            "where": self.place.where,
            "region": self.place.region,
            "can_predict": self.clients.runtime is not None,
            "poll_seconds": self._pace.poll,
            "exports": list(self.place.exports),
            "endpoints": known,
            "endpoint": endpoint,
            "unknown": unknown,
        }

    def _endpoints(self) -> list[dict[str, Any]]:
        if self.place.endpoint is not None:
            return [_shown(self.facts(self.place.endpoint))]

        def ask() -> list[dict[str, Any]]:
            endpoints: list[dict[str, Any]] = []
            with explained("list the endpoints", error=EndpointError):
                pages = self.clients.sagemaker.get_paginator("list_endpoints").paginate(
                    SortBy="Name", SortOrder="Ascending"
                )
                for page in pages:
                    for item in page["Endpoints"]:
                        created = status.stamp(item["CreationTime"].astimezone(timezone.utc))
                        state = item["EndpointStatus"]
                        endpoints.append({"name": item["EndpointName"], "status": state, "created": created})
                    if len(endpoints) >= ENDPOINTS_SHOWN:
                        break
            return endpoints[:ENDPOINTS_SHOWN]

        return self._cache.get("endpoints", self._pace.facts, ask)

    def facts(self, name: str) -> Facts:
        """What SageMaker says of the endpoint."""
        if self.place.endpoint not in (None, name):
            raise EndpointError(f"This page shows endpoint {self.place.endpoint} only.")
        return self._cache.get(
            ("facts", name), self._pace.facts, lambda: endpoint_facts.read(self.clients.sagemaker, name)
        )

    def _endpoint(self, name: str, unknown: dict[str, str]) -> dict[str, Any]:
        facts = self.facts(name)
        names = [variant.name for variant in facts.variants]
        clients, pace = self.clients, self._pace
        now = datetime.now(timezone.utc)
        figures = _tried(
            unknown,
            "metrics",
            lambda: self._cache.get(
                ("figures", name, *names),
                pace.figures,
                lambda: metrics.read(clients.cloudwatch, name, names, now, 1.0),
            ),
        )
        scaling = _tried(
            unknown,
            "autoscaling",
            lambda: self._cache.get(
                ("scaling", name, *names),
                pace.figures,
                lambda: status.read_scaling(clients.autoscaling, name, names),
            ),
        )
        owned = [alarm for item in scaling or () for policy in item.policies for alarm in policy.alarms]
        alarms = _tried(
            unknown,
            "alarms",
            lambda: self._cache.get(
                ("alarms", name),
                pace.figures,
                lambda: status.read_alarms(clients.cloudwatch, name, owned, facts.rollback_alarms),
            ),
        )
        instances = self._instances(name)
        limits = {item.variant: {"minimum": item.minimum, "maximum": item.maximum} for item in scaling or ()}
        return {
            "name": facts.name,
            "status": facts.status,
            "failure": facts.failure,
            "update": facts.update,
            "config": facts.config,
            "created": status.stamp(facts.created),
            "modified": status.stamp(facts.modified),
            "variants": [
                {
                    "name": item.name,
                    "shadow": item.shadow,
                    "instance_type": item.instance_type,
                    "current": item.current,
                    "desired": item.desired,
                    "weight": item.weight,
                    "image": item.container.image if item.container else None,
                    "models_at": item.container.data if item.container else None,
                    "scaling": limits.get(item.name),
                    "figures": _plain(figures.get(item.name)) if figures else None,
                }
                for item in facts.variants
            ],
            "instances": None if instances is None else [dict(item) for item in instances],
            "alarms": None
            if alarms is None
            else [
                {"name": item.name, "state": item.state, "reason": item.reason, "scaling": item.scaling}
                for item in alarms
            ],
        }

    # -- metrics over time

    def series(self, name: str) -> dict[str, Any]:
        """The metrics of the last hours over time, as ``mme.page.series`` has them."""
        facts = self.facts(name)
        return self._cache.get(
            ("series", name), self._pace.figures, lambda: series.read(self.clients.cloudwatch, name, facts.variants)
        )

    # -- what is released

    def store(self, name: str) -> releases.Store:
        """The bucket and prefix that the endpoint reads models from. Raises EndpointError where it is none."""
        if self.place.store is not None:
            return self.place.store
        store = next((s for data in self.facts(name).data if (s := endpoint_facts.store_of(data))), None)
        if store is None:
            raise EndpointError(f"No variant of endpoint {name} reads models from a folder in a bucket.")
        return store

    def models(self, name: str) -> dict[str, Any]:
        """What is released to the endpoint: each model with its newest versions, and what each channel means.

        Compact, for it may be thousands: a version is [digest, bytes, seconds since 1970].
        """
        store = self.store(name)
        return self._cache.get(("models", store), self._pace.released, lambda: self._models(store))

    def plans(self, name: str) -> dict[str, Any]:
        """The plans beside the models of the endpoint, the newest first."""
        store = self.store(name)

        def ask() -> dict[str, Any]:
            plans = published.names(self.clients.s3, store)
            return {"plans": [{"name": plan, "put": status.stamp(moment)} for plan, moment in plans]}

        return self._cache.get(("plans", store), self._pace.released, ask)

    def plan(self, name: str, plan: str) -> dict[str, Any]:
        """One of them: its tables and plots."""
        made, shown = published.read(self.clients.s3, self.store(name), plan)
        return {"name": plan, "made": made, **asdict(shown)}

    def _models(self, store: releases.Store) -> dict[str, Any]:
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._read_channels, store)
            versions = releases.list_versions(self.clients.s3, store)
            named = reading.result()
        models: dict[str, list[releases.Version]] = {}
        for version in versions:
            models.setdefault(version.name, []).append(version)
        return {
            "bucket": store.bucket,
            "prefix": store.prefix,
            "versions": len(versions),
            "bytes": sum(version.size for version in versions),
            "models": [
                {
                    "name": model,
                    "versions": [[v.digest, v.size, int(v.time.timestamp())] for v in own[:VERSIONS_SHOWN]],
                    "more": max(0, len(own) - VERSIONS_SHOWN),
                }
                for model, own in sorted(models.items())
            ],
            "channels": [
                {
                    "name": channel.name,
                    "model": channel.model,
                    "revision": channel.revision,
                    "targets": dict(channel.split),
                }
                for channel in named
            ],
        }

    def _read_channels(self, store: releases.Store) -> list[channels.Channel]:
        """Every channel; only those are read whose object has changed since."""
        folder = f"{store.root}channels/"
        with explained(f"list the channels of {store.uri()}", bucket=store.bucket):
            pages = self.clients.s3.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=folder)
            tags = {item["Key"]: item["ETag"] for page in pages for item in page.get("Contents", [])}
        with self._channels_lock:
            before = self._channels.get(store, {})
        names = {key[len(folder) : -len(".json")]: tag for key, tag in sorted(tags.items()) if key.endswith(".json")}

        def read(name: str) -> channels.Channel | None:
            earlier = before.get(name)
            if earlier is not None and earlier[0] == names[name]:
                return earlier[1]
            try:
                return channels.read(self.clients.s3, store, name)
            except MmeError:  # an object that is no channel: invoke channels says what is wrong with it
                return None

        with ThreadPoolExecutor(8) as pool:
            answers = dict(zip(names, pool.map(read, names), strict=True))
        with self._channels_lock:
            self._channels[store] = {name: (names[name], item) for name, item in answers.items() if item is not None}
        return [item for item in answers.values() if item is not None and item.history]

    # -- the log

    def log(self, name: str, since_ms: int | None) -> dict[str, Any]:
        """The log's lines from ``since_ms`` (milliseconds since 1970) on, else of the last minutes; the last ones where
        they are many. ``next`` is where to go on: lines of that moment come again, and ``id`` tells them apart."""
        self.facts(name)  # an endpoint that is not there has no log
        now = datetime.now(timezone.utc)
        earliest = now - timedelta(minutes=LOG_MINUTES)
        since = max(earliest, _moment(since_ms)) if since_ms is not None else earliest
        shown: list[dict[str, Any]] = []
        seen: Counter[tuple[int, str, str]] = Counter()
        cut = False
        last = int(since.timestamp() * 1000)
        try:
            for line in logs.read(self.clients.logs, name, since):
                moment = round(line.time.timestamp() * 1000)
                same = (moment, line.stream, line.text)
                seen[same] += 1
                last = max(last, moment)
                shown.append(_line(line, moment, seen[same]))
                if len(shown) > 2 * LINES_AT_ONCE:
                    shown = shown[-LINES_AT_ONCE:]
                    cut = True
        except logs.NoLog:
            pass
        cut = cut or len(shown) > LINES_AT_ONCE
        return {"lines": shown[-LINES_AT_ONCE:], "next": last - self._pace.late_ms, "cut": cut}


def _line(line: lines.Line, moment: int, number: int) -> dict[str, Any]:
    """A line for the browser: no longer than LINE_LENGTH, with what a request cost where it is one of ours.

    ``number`` tells equal lines of one millisecond apart.
    """
    check = zlib.crc32(f"{line.stream}\0{line.text}".encode("utf-8", "replace"))
    fields: dict[str, Any] = {
        "id": f"{moment}-{check:x}-{number}",
        "ms": moment,
        "stream": line.stream,
        "level": line.level,
        "event": line.event,
        "target": line.target,
        "status": line.status,
        "text": line.text[:LINE_LENGTH],
    }
    if line.event == "invoke":
        total, cold = line.fields.get("total_ms"), line.fields.get("cold")
        fields["total_ms"] = total if isinstance(total, (int, float)) else None
        fields["cold"] = cold is True
    elif line.event == "load":
        for ours, key in (("load_s", "seconds"), ("private", "private")):
            value = line.fields.get(key)
            fields[ours] = value if isinstance(value, (int, float)) else None
    return {key: value for key, value in fields.items() if value not in (None, "")}


def _tried(unknown: dict[str, str], what: str, work: Callable[[], T]) -> T | None:
    try:
        return work()
    except MmeError as error:
        unknown[what] = str(error)
        return None


def _plain(figures: metrics.Figures | None) -> dict[str, Any] | None:
    return None if figures is None else {**asdict(figures), "since": status.stamp(figures.since)}


def _shown(facts: Facts) -> dict[str, Any]:
    """An endpoint's entry in the list of endpoints."""
    return {"name": facts.name, "status": facts.status, "created": status.stamp(facts.created)}


def _moment(milliseconds: int) -> datetime:
    """The time; 1970 for an invalid number."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, timezone.utc)
