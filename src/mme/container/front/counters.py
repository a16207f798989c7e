"""Counters and their text for Prometheus. Plain numbers that the event loop alone touches."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str = "") -> Iterable[str]:
        total = 0
        comma = "," if labels else ""
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {self.sum:.6f}"
        yield f"{name}_count{braces} {total}"


@dataclass
class ModelMetrics:
    """One model's counters; they go with the model."""

    loads: int = 0
    wakes: int = 0
    parks: int = 0
    tokens: int = 0
    batched: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def observe(self, stages: dict[str, float], status: int, batch: int, tokens: int) -> None:
        self.answers[status] += 1
        self.batched += batch
        self.tokens += tokens
        for stage, seconds in stages.items():
            self.seconds[stage] += seconds  # type: ignore[assignment]


@dataclass
class Totals:
    """Counters of the whole container."""

    loads: int = 0
    failed_loads: int = 0
    unloads: int = 0
    wakes: int = 0
    parks: int = 0
    died: int = 0
    killed: int = 0
    no_memory: int = 0
    refused: int = 0
    cancelled: int = 0
    batches: int = 0
    shared_bytes: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    load_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    wake_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batch_size: Histogram = field(default_factory=lambda: Histogram(SIZES))
    stages: dict[str, Histogram] = field(default_factory=dict)

    def observe(self, stages: dict[str, float], status: int, batch: int) -> None:
        self.answers[status] += 1
        if batch:
            self.batch_size.add(batch)
        for stage, seconds in stages.items():
            histogram = self.stages.get(stage)
            if histogram is None:
                histogram = self.stages[stage] = Histogram(SECONDS)
            histogram.add(seconds)
