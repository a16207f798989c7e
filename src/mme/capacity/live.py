"""The traffic of a live endpoint, from its CloudWatch metrics: requests a minute, and how popular the popular are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from mme.capacity.caches import che_hit_ratio
from mme.capacity.simulate import Requests
from mme.capacity.state import Floats
from mme.capacity.trace import popularity
from mme.errors import EndpointError

PERIOD = 60
METRICS = (("Invocations", "Sum"), ("ModelCacheHit", "Average"), ("LoadedModelCount", "Average"))


@dataclass(frozen=True)
class Live:
    """``per_minute``: requests of each minute. ``hit_ratio`` and ``loaded`` (models on an instance): averages; None
    where the endpoint has reported none."""

    per_minute: Floats
    hit_ratio: float | None
    loaded: float | None


def read(cloudwatch: Any, endpoint: str, variants: Sequence[str], end: datetime, hours: float) -> Live:
    """The metrics of the last ``hours``. Raises EndpointError where there were no requests.

    No metric of SageMaker's is per model, so what they tell of popularity is the hit ratio alone (see ``exponent``).
    """
    start = end - timedelta(hours=hours)
    minutes = max(1, round(hours * 60))
    counts = np.zeros(minutes)
    series: dict[str, list[float]] = {name: [] for name, _ in METRICS}
    queries = []
    for at, variant in enumerate(variants):
        for name, statistic in METRICS:
            space = "/aws/sagemaker/Endpoints" if name == "LoadedModelCount" else "AWS/SageMaker"
            dimensions = [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": variant}]
            metric = {"Namespace": space, "MetricName": name, "Dimensions": dimensions}
            queries.append(
                {"Id": f"{name.lower()}{at}", "MetricStat": {"Metric": metric, "Period": PERIOD, "Stat": statistic}}
            )
    pages = cloudwatch.get_paginator("get_metric_data").paginate(
        MetricDataQueries=queries, StartTime=start, EndTime=end, ScanBy="TimestampAscending"
    )
    for page in pages:
        for result in page["MetricDataResults"]:
            name = next(name for name, _ in METRICS if result["Id"].startswith(name.lower()))
            for moment, value in zip(result["Timestamps"], result["Values"], strict=True):
                if name == "Invocations":
                    minute = int((moment - start).total_seconds() // PERIOD)
                    if 0 <= minute < minutes:
                        counts[minute] += value
                else:
                    series[name].append(float(value))
    if counts.sum() < 1:
        raise EndpointError(
            f"The endpoint {endpoint} had no invocations in the last {hours:g} hours.",
            "Take more hours (--hours), or describe the traffic with --zipf and --rate.",
        )
    hits, loaded = series["ModelCacheHit"], series["LoadedModelCount"]
    return Live(counts, float(np.mean(hits)) if hits else None, float(np.mean(loaded)) if loaded else None)


def exponent(live: Live, count: int) -> float | None:
    """The exponent of Zipf's law under which an LRU cache of as many models as are loaded would have the hit ratio that
    was seen; None where that cannot be told (all models are loaded, or nothing was reported)."""
    if live.hit_ratio is None or live.loaded is None or not 1 <= live.loaded < count:
        return None

    def hit(power: float) -> float:
        weights = 1.0 / np.arange(1, count + 1) ** power
        return che_hit_ratio(weights / weights.sum(), np.ones(count), float(live.loaded or 1))

    low, high = 0.0, 4.0
    if not hit(low) <= live.hit_ratio <= hit(high):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if hit(middle) < live.hit_ratio else (low, middle)
    return (low + high) / 2


def requests(live: Live, count: int, power: float, seed: int = 1) -> tuple[Requests, Floats]:
    """As many requests in each minute as there were, for models by Zipf's law; and each model's requests a second."""
    random = np.random.default_rng(seed)
    shares = popularity(count, power, random)
    number = live.per_minute.round().astype(int)
    times = np.repeat(np.arange(len(number)) * float(PERIOD), number) + random.uniform(0, PERIOD, int(number.sum()))
    edges = np.cumsum(shares)
    edges[-1] = 1.0
    model = np.searchsorted(edges, random.random(len(times)), side="right").astype(np.int32)
    seconds = len(number) * float(PERIOD)
    return Requests(np.sort(times), np.minimum(model, count - 1)), shares * len(times) / seconds
