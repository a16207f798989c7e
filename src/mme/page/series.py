"""The metrics of the last hours over time, for the page's plots."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mme.operate import metrics
from mme.operate.facts import Variant

if TYPE_CHECKING:
    from types_boto3_cloudwatch import CloudWatchClient

HOURS = 3

_ASKED = (
    ("AWS/SageMaker", "Invocations", "Sum"),
    ("AWS/SageMaker", "Invocation4XXErrors", "Sum"),
    ("AWS/SageMaker", "Invocation5XXErrors", "Sum"),
    *(
        ("AWS/SageMaker", name, statistic)
        for name in ("ModelLatency", "ModelLoadingTime", "ModelDownloadingTime", "ModelCacheHit")
        for statistic in ("Sum", "SampleCount")
    ),
    *(
        (metrics.MACHINE, name, "Maximum")
        for name in ("LoadedModelCount", "CPUUtilization", "MemoryUtilization", "DiskUtilization")
    ),
)


def read(cloudwatch: CloudWatchClient, endpoint: str, variants: Iterable[Variant]) -> dict[str, Any]:
    """Minute by minute: ``start`` (seconds since 1970), ``step`` (seconds), and for each variant the values of each
    metric, None where nothing was reported. Times are milliseconds, use is in percent. Raises EndpointError."""
    step = 60
    end = (int(time.time()) // step + 1) * step
    count = HOURS * 3600 // step
    start = end - count * step
    asked = [(variant.name, *item) for variant in variants for item in _ASKED]
    since, until = (datetime.fromtimestamp(moment, timezone.utc) for moment in (start, end))
    values: dict[tuple[str, str, str], dict[int, float]] = {
        (variant, metric, statistic): {(int(moment.timestamp()) - start) // step: value for moment, value in points}
        for (variant, _, metric, statistic), points in metrics.points(
            cloudwatch, endpoint, asked, since, until, step
        ).items()
    }

    def row(variant: str, metric: str, statistic: str) -> list[float | None]:
        points = values.get((variant, metric, statistic), {})
        return [points.get(place) for place in range(count)]

    def mean(variant: str, metric: str, scale: float = 1.0) -> list[float | None]:
        pairs = zip(row(variant, metric, "Sum"), row(variant, metric, "SampleCount"), strict=True)
        return [total / number * scale if total is not None and number else None for total, number in pairs]

    return {
        "start": start,
        "step": step,
        "variants": {
            name: {
                "requests": row(name, "Invocations", "Sum"),
                "errors": [
                    None if one is None and two is None else (one or 0) + (two or 0)
                    for one, two in zip(
                        row(name, "Invocation4XXErrors", "Sum"), row(name, "Invocation5XXErrors", "Sum"), strict=True
                    )
                ],
                "latency_ms": mean(name, "ModelLatency", 1e-3),
                "load_ms": mean(name, "ModelLoadingTime", 1e-3),
                "download_ms": mean(name, "ModelDownloadingTime", 1e-3),
                "hit_ratio": mean(name, "ModelCacheHit"),
                "loaded": row(name, "LoadedModelCount", "Maximum"),
                "cpu": row(name, "CPUUtilization", "Maximum"),
                "memory": row(name, "MemoryUtilization", "Maximum"),
                "disk": row(name, "DiskUtilization", "Maximum"),
            }
            for name in dict.fromkeys(variant for variant, *_ in asked)
        },
    }
