"""SageMaker's metrics of an endpoint, and its containers' output as logs, in CloudWatch."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from mme.local.sagemaker.minutes import Minutes

_MACHINE = ("LoadedModelCount", "CPUUtilization", "MemoryUtilization", "DiskUtilization")
_LINES = 10_000
"""Log lines per container at most; moto holds them in memory."""
_RECORDS = 100_000
"""Records of metrics per region at most, one a minute and metric: some days of an endpoint that has traffic."""
_STEP = math.log(1.02)
"""Values are counted in steps of two percent, for percentiles: few numbers, however many requests."""


class CloudWatch:
    """Writes into moto's CloudWatch and CloudWatch Logs. One for the whole local AWS."""

    def __init__(self, account: str, minutes: Minutes) -> None:
        self._account = account
        self._minutes = minutes
        self._lock = threading.Lock()
        self._minute = 0
        self._datums: dict[tuple[str, ...], Any] = {}
        """This minute's record of each metric."""

    def of(self, region: str, endpoint: str, config: str) -> Endpoint:
        """The observer of one endpoint under one configuration."""
        return Endpoint(self, region, endpoint, config)

    def metric(self, region: str, dimensions: Mapping[str, str], name: str, value: float, unit: str) -> None:
        """Adds to the metric's minute: one record a minute and metric, however many requests there are."""
        with self._lock:
            datum = self._datum(region, dimensions, name, unit)
            datum.sum += value
            datum.min = min(datum.min, value)
            datum.max = max(datum.max, value)
            datum.sample_count += 1
            datum.mme_counts[round(math.log(value) / _STEP) if value > 0 else None] += 1

    def gauge(
        self, region: str, dimensions: Mapping[str, str], instance: str, name: str, value: float, unit: str
    ) -> None:
        """Sets an instance's value in this minute; the metric has one sample of each instance."""
        with self._lock:
            datum = self._datum(region, dimensions, name, unit)
            datum.mme_instances[instance] = value
            values = datum.mme_instances.values()
            datum.sum, datum.min, datum.max, datum.sample_count = sum(values), min(values), max(values), len(values)

    def _datum(self, region: str, dimensions: Mapping[str, str], name: str, unit: str) -> Any:
        from moto.cloudwatch.models import MetricAggregatedDatum, cloudwatch_backends

        minute = self._minutes.number(time.time())
        key = (region, name, *dimensions.values())
        if minute != self._minute:
            self._minute, self._datums = minute, {}
        datum = self._datums.get(key)
        if datum is None:
            datum = MetricAggregatedDatum(
                namespace="/aws/sagemaker/Endpoints" if name in _MACHINE else "AWS/SageMaker",
                name=name,
                min_stat=math.inf,
                max_stat=-math.inf,
                sample_count=0.0,
                sum_stat=0.0,
                dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
                timestamp=_utc(self._minutes.start(minute)),
                unit=unit,
            )
            datum.mme_counts = Counter()
            datum.mme_instances = {}
            self._datums[key] = datum
            records = cloudwatch_backends[self._account][region].metric_data
            records.append(datum)
            if len(records) > _RECORDS:
                del records[: _RECORDS // 10]
        return datum

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
    """A ``spec.Observer``. Each event is counted twice: for the variant, and for the variant under one
    configuration."""

    def __init__(self, cloudwatch: CloudWatch, region: str, name: str, config: str) -> None:
        self._cloudwatch = cloudwatch
        self._region = region
        self._name = name
        self._config = config
        self._spoken = False

    def _dimensions(self, variant: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        plain = {"EndpointName": self._name, "VariantName": variant}
        return plain, {**plain, "EndpointConfigName": self._config}

    def metric(self, variant: str, name: str, value: float, unit: str) -> None:
        for dimensions in self._dimensions(variant):
            self._cloudwatch.metric(self._region, dimensions, name, value, unit)

    def gauge(self, variant: str, instance: str, name: str, value: float, unit: str) -> None:
        dimensions, _ = self._dimensions(variant)
        self._cloudwatch.gauge(self._region, dimensions, instance, name, value, unit)

    def output(self, variant: str, instance: str, line: str) -> None:
        first, self._spoken = not self._spoken, True
        self._cloudwatch.output(self._region, self._name, f"{variant}/{instance}", line, first=first)


def percentile(counts: Mapping[int | None, int], part: float) -> float:
    """The value below which ``part`` of the counted values lie, 0 to 1, within a percent; 0 for none."""
    wanted = part * sum(counts.values())
    seen = 0
    value = 0.0
    for step in sorted(counts, key=lambda step: -math.inf if step is None else step):
        value = 0.0 if step is None else math.exp(step * _STEP)
        seen += counts[step]
        if seen >= wanted:
            break
    return value


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None)
