"""The metrics that SageMaker gives CloudWatch of an endpoint, added up over some hours.

What they mean is in AWS's developer guide, "CloudWatch metrics for multi-model endpoint deployments". None of them is
per model. CloudWatch has times in microseconds; these functions return seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mme.aws import explained
from mme.errors import EndpointError

if TYPE_CHECKING:
    from types_boto3_cloudwatch import CloudWatchClient

MOST_HOURS = 14 * 24  # CloudWatch keeps minutes for 15 days
QUERIES = 500  # that one call of GetMetricData takes
PARTS = 12  # data points of each metric: CloudWatch adds up as many minutes as that makes

MACHINE = "/aws/sagemaker/Endpoints"
_COUNTS = ("Invocations", "Invocation4XXErrors", "Invocation5XXErrors", "InvocationModelErrors")
_TIMES = ("ModelLatency", "OverheadLatency", "ModelLoadingWaitTime", "ModelDownloadingTime", "ModelLoadingTime")
_USED = ("CPUUtilization", "MemoryUtilization", "DiskUtilization")

STATISTICS: tuple[tuple[str, str, str], ...] = (
    *(("AWS/SageMaker", name, "Sum") for name in _COUNTS),
    *(("AWS/SageMaker", name, statistic) for name in _TIMES for statistic in ("Sum", "SampleCount", "Maximum")),
    *(("AWS/SageMaker", "ModelCacheHit", statistic) for statistic in ("Sum", "SampleCount")),
    ("AWS/SageMaker", "ModelUnloadingTime", "SampleCount"),
    (MACHINE, "LoadedModelCount", "Maximum"),
    *((MACHINE, name, "Maximum") for name in _USED),
)
"""Namespace, metric and statistic of each query that is made for a variant."""


@dataclass(frozen=True)
class Timing:
    """How often something was measured, and its mean and longest time in seconds."""

    count: int
    mean: float
    longest: float


@dataclass(frozen=True)
class Figures:
    """What the metrics say of one variant since ``since`` (UTC). None where none was reported.

    ``hit_ratio`` is the share of requests that found their model loaded. ``loaded`` is how many models the fullest
    instance has, as it was last reported; ``cpu`` (100 for each core), ``memory`` and ``disk`` are percentages, the
    highest of any instance.
    """

    since: datetime
    requests: int
    client_errors: int
    server_errors: int
    model_errors: int
    hit_ratio: float | None
    loaded: int | None
    latency: Timing | None
    overhead: Timing | None
    load_wait: Timing | None
    download: Timing | None
    load: Timing | None
    unloads: int
    cpu: float | None
    memory: float | None
    disk: float | None


Asked = tuple[str, str, str, str]
"""A query: variant, namespace, metric, statistic."""
Values = dict[tuple[str, str], list[float]]  # (metric, statistic) -> values, oldest first


def points(
    cloudwatch: CloudWatchClient, endpoint: str, asked: Sequence[Asked], since: datetime, until: datetime, period: int
) -> dict[Asked, list[tuple[datetime, float]]]:
    """What was reported for each query from ``since`` to ``until``: the begin of each ``period`` (seconds, a multiple
    of 60) that has a value, and the value, oldest first. One call for each 500 queries. Raises EndpointError."""
    values: dict[Asked, list[tuple[datetime, float]]] = {one: [] for one in asked}
    for start in range(0, len(asked), QUERIES):
        batch = asked[start : start + QUERIES]
        with explained(f"read the metrics of endpoint {endpoint}", error=EndpointError):
            pages = cloudwatch.get_paginator("get_metric_data").paginate(
                MetricDataQueries=[_query(f"m{at}", endpoint, period, *item) for at, item in enumerate(batch)],
                StartTime=since,
                EndTime=until,
                ScanBy="TimestampAscending",
            )
            for page in pages:
                for result in page["MetricDataResults"]:
                    values[batch[int(result["Id"][1:])]] += zip(
                        result["Timestamps"], map(float, result["Values"]), strict=True
                    )
    return values


def read(
    cloudwatch: CloudWatchClient, endpoint: str, variants: Sequence[str], end: datetime, hours: float
) -> dict[str, Figures]:
    """The figures of each variant in the last ``hours``, by name; one call for each 500 queries. Raises
    EndpointError."""
    period = 60 * max(1, math.ceil(hours * 60 / PARTS))
    last = math.ceil(end.timestamp() / period) * period
    since = datetime.fromtimestamp(last - period * (PARTS + 1), timezone.utc)
    asked = [(variant, *statistic) for variant in variants for statistic in STATISTICS]
    series: dict[str, Values] = {variant: {} for variant in variants}
    until = datetime.fromtimestamp(last, timezone.utc)
    for (variant, _, metric, statistic), values in points(cloudwatch, endpoint, asked, since, until, period).items():
        series[variant][metric, statistic] = [value for _, value in values]
    return {variant: _figures(since, values) for variant, values in series.items()}


def _query(id: str, endpoint: str, period: int, variant: str, space: str, metric: str, statistic: str) -> Any:
    dimensions = [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": variant}]
    stat = {"Metric": {"Namespace": space, "MetricName": metric, "Dimensions": dimensions}}
    return {"Id": id, "MetricStat": {**stat, "Period": period, "Stat": statistic}, "ReturnData": True}


def _figures(since: datetime, values: Values) -> Figures:
    def total(metric: str, statistic: str = "Sum") -> float:
        return sum(values.get((metric, statistic), ()))

    def highest(metric: str) -> float | None:
        return max(values.get((metric, "Maximum"), ()), default=None)

    def timing(metric: str) -> Timing | None:
        count = total(metric, "SampleCount")
        return Timing(round(count), total(metric) / count / 1e6, (highest(metric) or 0) / 1e6) if count else None

    asked = total("ModelCacheHit", "SampleCount")
    loaded = values.get(("LoadedModelCount", "Maximum"), ())
    return Figures(
        since=since,
        requests=round(total("Invocations")),
        client_errors=round(total("Invocation4XXErrors")),
        server_errors=round(total("Invocation5XXErrors")),
        model_errors=round(total("InvocationModelErrors")),
        hit_ratio=total("ModelCacheHit") / asked if asked else None,
        loaded=round(loaded[-1]) if loaded else None,
        latency=timing("ModelLatency"),
        overhead=timing("OverheadLatency"),
        load_wait=timing("ModelLoadingWaitTime"),
        download=timing("ModelDownloadingTime"),
        load=timing("ModelLoadingTime"),
        unloads=round(total("ModelUnloadingTime", "SampleCount")),
        cpu=highest("CPUUtilization"),
        memory=highest("MemoryUtilization"),
        disk=highest("DiskUtilization"),
    )
