"""What SageMaker tells CloudWatch about an endpoint: metrics, and the containers' output as logs."""

from __future__ import annotations

import threading
import time
import uuid
from datetime import datetime, timezone
from typing import Any

_MACHINE = ("LoadedModelCount",)
_LINES = 10_000
"""Log lines kept per container; moto keeps them in memory."""


class CloudWatch:
    """Writes into moto's CloudWatch and CloudWatch Logs. One for the whole local AWS."""

    def __init__(self, account: str) -> None:
        self._account = account
        self._lock = threading.Lock()
        self._datums: dict[tuple[str, ...], Any] = {}

    def of(self, region: str, endpoint: str) -> Endpoint:
        """The observer of one endpoint."""
        return Endpoint(self, region, endpoint)

    def metric(self, region: str, endpoint: str, variant: str, name: str, value: float, unit: str) -> None:
        """Adds to the metric's minute: one record a minute and metric, however many requests there are."""
        from moto.cloudwatch.models import MetricAggregatedDatum, cloudwatch_backends

        minute = int(time.time() // 60) * 60
        key = (region, endpoint, variant, name, str(minute))
        with self._lock:
            datum = self._datums.get(key)
            if datum is not None:
                datum.sum += value
                datum.min = min(datum.min, value)
                datum.max = max(datum.max, value)
                datum.sample_count += 1
                return
            dimensions = [
                {"Name": "EndpointName", "Value": endpoint},
                {"Name": "VariantName", "Value": variant},
            ]
            datum = MetricAggregatedDatum(
                namespace="/aws/sagemaker/Endpoints" if name in _MACHINE else "AWS/SageMaker",
                name=name,
                min_stat=value,
                max_stat=value,
                sample_count=1.0,
                sum_stat=value,
                dimensions=dimensions,
                timestamp=datetime.fromtimestamp(minute, timezone.utc).replace(tzinfo=None),
                unit=unit,
            )
            self._datums = {k: d for k, d in self._datums.items() if k[-1] == str(minute)}
            self._datums[key] = datum
            cloudwatch_backends[self._account][region].metric_data.append(datum)

    def output(self, region: str, endpoint: str, stream: str, line: str, *, first: bool) -> None:
        """Adds a line to a log stream of the endpoint's group.

        The group is made for the ``first`` line alone: one that was deleted since does not come back for the last
        words of a container.
        """
        from moto.logs.models import logs_backends

        group_name = f"/aws/sagemaker/Endpoints/{endpoint}"
        backend = logs_backends[self._account][region]
        with self._lock:
            if first:
                backend.ensure_log_group(group_name)
            group = backend.groups.get(group_name)
            if group is None:
                return
            if stream not in group.streams:
                group.create_log_stream(stream)
            group.put_log_events(stream, [{"timestamp": int(time.time() * 1000), "message": line}])
            events = group.streams[stream].events
            if len(events) > _LINES:
                del events[: _LINES // 10]


class Endpoint:
    """A ``variant.Observer``."""

    def __init__(self, cloudwatch: CloudWatch, region: str, name: str) -> None:
        self._cloudwatch = cloudwatch
        self._region = region
        self._name = name
        self._streams: dict[str, str] = {}

    def metric(self, variant: str, name: str, value: float, unit: str) -> None:
        self._cloudwatch.metric(self._region, self._name, variant, name, value, unit)

    def output(self, variant: str, line: str) -> None:
        first = variant not in self._streams
        stream = self._streams.setdefault(variant, f"{variant}/i-{uuid.uuid4().hex[:17]}")
        self._cloudwatch.output(self._region, self._name, stream, line, first=first)
