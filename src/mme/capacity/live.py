"""The traffic of a live endpoint, from its CloudWatch metrics: requests a minute, and how unevenly models are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np

from mme.capacity.caches import che_hit_ratio
from mme.capacity.simulate import Requests
from mme.capacity.state import Floats
from mme.capacity.trace import popularity
from mme.errors import EndpointError
from mme.operate.metrics import MACHINE, points

PERIOD = 60
METRICS = (
    ("AWS/SageMaker", "Invocations", "Sum"),
    ("AWS/SageMaker", "ModelCacheHit", "Sum"),
    ("AWS/SageMaker", "ModelCacheHit", "SampleCount"),
    (MACHINE, "LoadedModelCount", "Average"),
)


@dataclass(frozen=True)
class Live:
    """``per_minute``: requests of each minute. ``hit_ratio``: the share of all requests that found their model loaded.
    ``loaded``: models on an instance, the average of the minutes. None where the endpoint has reported none."""

    per_minute: Floats
    hit_ratio: float | None
    loaded: float | None


def read(cloudwatch: Any, endpoint: str, variants: Sequence[str], end: datetime, hours: float) -> Live:
    """The metrics of the last ``hours``. Raises EndpointError where there were no requests.

    No metric of SageMaker's is per model, so what they tell of popularity is the hit ratio alone (see ``exponent``).
    """
    minutes = max(1, round(hours * 60))
    # CloudWatch's minutes are those of the clock: the last one is the one that is running.
    end = datetime.fromtimestamp((end.timestamp() // PERIOD + 1) * PERIOD, timezone.utc)
    start = end - timedelta(seconds=minutes * PERIOD)
    counts = np.zeros(minutes)
    hits = asked = 0.0
    loaded: list[float] = []
    queries = [(variant, *metric) for variant in variants for metric in METRICS]
    for (_, _, name, statistic), values in points(cloudwatch, endpoint, queries, start, end, PERIOD).items():
        if name == "Invocations":
            for moment, value in values:
                counts[int((moment - start).total_seconds() // PERIOD)] += value
        elif name == "LoadedModelCount":
            loaded += [value for _, value in values]
        elif statistic == "Sum":
            hits += sum(value for _, value in values)
        else:
            asked += sum(value for _, value in values)
    if counts.sum() < 1:
        raise EndpointError(
            f"The endpoint {endpoint} had no invocations in the last {hours:g} hours.",
            "Take more hours (--hours), or describe the traffic with --zipf and --rate.",
        )
    return Live(counts, hits / asked if asked else None, float(np.mean(loaded)) if loaded else None)


def exponent(live: Live, count: int) -> float | None:
    """The exponent of Zipf's law for which an LRU cache of as many models as are loaded would have the reported hit
    ratio; None where it cannot be computed (all models are loaded, or nothing was reported)."""
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
