"""Counters and their text for Prometheus. Plain numbers that the event loop alone touches."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mme.container.hub import Hub, Model

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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


_COUNTERS = (
    ("loads", "Models loaded"),
    ("failed_loads", "Loads that ended in an error"),
    ("unloads", "Models unloaded"),
    ("wakes", "Parked models brought back for a request"),
    ("parks", "Idle models whose process was ended"),
    ("died", "Model processes that ended by themselves"),
    ("killed", "Model processes ended for a time-out, for work nobody waits for, or for memory"),
    ("no_memory", "Loads and requests refused or ended for want of memory (507)"),
    ("refused", "Requests refused because too many wait (503)"),
    ("cancelled", "Requests whose client left before the answer"),
    ("batches", "Batches computed"),
    ("shared_bytes", "Bytes of weights found equal to those of a loaded model and kept once"),
)


def render(hub: Hub, per_model: bool = True) -> str:
    """The metrics in Prometheus's text format."""
    out: list[str] = []

    def head(name: str, kind: str, text: str) -> None:
        out.append(f"# HELP {name} {text}\n# TYPE {name} {kind}")

    totals = hub.totals
    for attribute, text in _COUNTERS:
        head(f"mme_{attribute}_total", "counter", text)
        out.append(f"mme_{attribute}_total {getattr(totals, attribute)}")
    head("mme_answers_total", "counter", "Answers to requests, by status")
    out += [f'mme_answers_total{{status="{status}"}} {count}' for status, count in sorted(totals.answers.items())]
    head("mme_load_seconds", "histogram", "From LOAD to the model being ready")
    out += totals.load_seconds.lines("mme_load_seconds")
    head("mme_wake_seconds", "histogram", "From a request for a parked model to its process being ready")
    out += totals.wake_seconds.lines("mme_wake_seconds")
    head("mme_batch_size", "histogram", "Requests in the batch that a request was answered with")
    out += totals.batch_size.lines("mme_batch_size")
    head("mme_stage_seconds", "histogram", "Time of a request by stage")
    for stage, histogram in totals.stages.items():
        out += histogram.lines("mme_stage_seconds", f'stage="{stage}"')
    states = Counter(model.state.value for model in hub.models.values())
    head("mme_models", "gauge", "Models by state")
    out += [f'mme_models{{state="{state}"}} {count}' for state, count in sorted(states.items())]
    head("mme_parent_starts_total", "counter", "Starts of the parent process (more than one: it died)")
    out.append(f"mme_parent_starts_total {hub.parent.starts}")
    if per_model:
        _per_model(list(hub.models.values()), out, head)
    return "\n".join(out) + "\n"


def _per_model(models: list[Model], out: list[str], head: object) -> None:
    series: dict[str, tuple[str, str, list[str]]] = {
        "mme_model_loads_total": ("counter", "Loads of a model", []),
        "mme_model_wakes_total": ("counter", "Times a parked model was brought back", []),
        "mme_model_parks_total": ("counter", "Times an idle model was parked", []),
        "mme_model_load_seconds": ("gauge", "Seconds from LOAD to ready (cold start)", []),
        "mme_model_private_bytes": ("gauge", "Private memory of a model's process, 0 while it is parked", []),
        "mme_model_open_requests": ("gauge", "Requests that wait or are worked on", []),
        "mme_model_tokens_total": ("counter", "Tokens (or units of tokens_fn) worked on", []),
        "mme_model_batched_total": ("counter", "Sum over answers of the size of their batch", []),
        "mme_model_answers_total": ("counter", "Answers by status", []),
        "mme_model_seconds_total": ("counter", "Time of requests by stage", []),
    }

    def put(name: str, labels: str, value: float) -> None:
        series[name][2].append(f"{name}{{{labels}}} {value:.10g}")

    for model in models:
        label = 'model="' + model.name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        metrics = model.metrics
        put("mme_model_loads_total", label, metrics.loads)
        put("mme_model_wakes_total", label, metrics.wakes)
        put("mme_model_parks_total", label, metrics.parks)
        put("mme_model_load_seconds", label, model.load_seconds)
        put("mme_model_private_bytes", label, model.private if model.worker else 0)
        put("mme_model_open_requests", label, model.open)
        put("mme_model_tokens_total", label, metrics.tokens)
        put("mme_model_batched_total", label, metrics.batched)
        for status, count in sorted(metrics.answers.items()):
            put("mme_model_answers_total", f'{label},status="{status}"', count)
        for stage, seconds in metrics.seconds.items():
            put("mme_model_seconds_total", f'{label},stage="{stage}"', seconds)
    for name, (kind, text, lines) in series.items():
        if lines:
            out.append(f"# HELP {name} {text}\n# TYPE {name} {kind}")
            out += lines
