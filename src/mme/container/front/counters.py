"""The front's counters: plain numbers that only the event loop changes; exposition.py writes them out."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

# Few bounds: each is a series that somebody stores, for each stage of a request.
SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
SIZES = (1.0, 4.0, 16.0, 64.0)
MAX_STATUSES = 12  # handlers may set any of 400; after this many different ones, the others are counted together
OTHER = "other"


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many were at most that), the last of them ``+Inf``."""
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((bound, total))
        return rows


class Answers:
    """How many answers had which status."""

    def __init__(self) -> None:
        self.by_status: Counter[str] = Counter()
        self.all = 0

    def add(self, status: int) -> None:
        key = str(status)
        self.by_status[key if key in self.by_status or len(self.by_status) < MAX_STATUSES else OTHER] += 1
        self.all += 1


@dataclass
class ModelMetrics:
    """One model's counters; they go with the model."""

    loads: int = 0
    wakes: int = 0
    parks: int = 0
    tokens: int = 0
    batched: int = 0
    answers: Answers = field(default_factory=Answers)
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

    def observe(self, stages: dict[str, float], status: int, batch: int, tokens: int) -> None:
        self.answers.add(status)
        self.batched += batch
        self.tokens += tokens
        for stage, seconds in stages.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


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
    parted: int = 0
    busy_begun: int = 0
    busy_ended: int = 0
    answers: Answers = field(default_factory=Answers)
    load_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    wake_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batch_size: Histogram = field(default_factory=lambda: Histogram(SIZES))
    stages: dict[str, Histogram] = field(default_factory=dict)

    def observe(self, stages: dict[str, float], status: int, batch: int) -> None:
        self.answers.add(status)
        if batch:
            self.batch_size.add(batch)
        for stage, seconds in stages.items():
            histogram = self.stages.get(stage)
            if histogram is None:
                histogram = self.stages[stage] = Histogram(SECONDS)
            histogram.add(seconds)
