"""The text of /metrics: a fixed number of series, whatever the number of models.

Each series is one that somebody stores and pays for (AWS scrapes /metrics and publishes it to CloudWatch). So at most
MME_METRICS_MODELS models have series of their own: those with most answers since they were loaded. All others are one,
called ``other``. What a model has counted while it was among the others stays there, so that no counter ever falls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from mme.container.front.counters import OTHER, Histogram, ModelMetrics, Totals
from mme.container.front.models import Model

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TOTALS = {
    "loads": "Models loaded",
    "failed_loads": "Loads that ended in an error",
    "unloads": "Models unloaded",
    "wakes": "Parked models brought back for a request",
    "parks": "Idle models whose process was ended",
    "died": "Model processes that ended by themselves",
    "killed": "Model processes ended for a time-out, for work nobody waits for, or for memory",
    "no_memory": "Loads and requests refused or ended for want of memory (507)",
    "refused": "Requests refused because too many wait (503)",
    "cancelled": "Requests whose client left before the answer",
    "batches": "Batches computed",
    "shared_bytes": "Bytes of weights that were equal to those of a loaded model and are there once",
    "busy_begun": "Times a busy model was given more memory to be faster",
    "busy_ended": "Times a model gave such memory back",
    "parted": "Shared weights given to each model as its own, because a handler wanted to write them",
}
MODEL_COUNTERS = {
    "loads": "Loads of a model",
    "wakes": "Times a parked model was brought back",
    "parks": "Times an idle model was parked",
    "tokens": "Tokens (or units of tokens_fn) worked on",
    "batched": "Sum over answers of the size of their batch",
}


class Source(Protocol):
    """Where the numbers come from."""

    models: dict[str, Model]
    totals: Totals

    @property
    def parent_starts(self) -> int: ...

    @property
    def threads(self) -> int: ...


class Exposition:
    """Writes the metrics of a source. ``cap`` is how many models have series of their own."""

    def __init__(self, source: Source, cap: int) -> None:
        self._source = source
        self._cap = cap
        self._named: set[Model] = set()
        self._others = ModelMetrics()  # what was counted for models without series of their own
        self._counted: dict[Model, ModelMetrics] = {}  # as of the last look, of those models
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        source, totals = self._source, self._source.totals
        for name, text in TOTALS.items():
            yield CounterMetricFamily(f"mme_{name}", text, value=getattr(totals, name))
        answers = CounterMetricFamily("mme_answers", "Answers to requests, by status", labels=["status"])
        for status, count in sorted(totals.answers.by_status.items()):
            answers.add_metric([status], count)
        yield answers
        yield _histogram("mme_load_seconds", "From LOAD to the model being ready", {"": totals.load_seconds})
        text = "From a request for a parked model to its process being ready"
        yield _histogram("mme_wake_seconds", text, {"": totals.wake_seconds})
        text = "Requests in the batch that a request was answered with"
        yield _histogram("mme_batch_size", text, {"": totals.batch_size})
        yield _histogram("mme_stage_seconds", "Time of a request by stage", totals.stages, "stage")
        states = GaugeMetricFamily("mme_models", "Models by state", labels=["state"])
        for state, count in sorted(Counter(model.state.value for model in source.models.values()).items()):
            states.add_metric([state], count)
        yield states
        text = "Starts of the parent process (more than one: it died)"
        yield CounterMetricFamily("mme_parent_starts", text, value=source.parent_starts)
        text = "Threads that a model computing alone may have: the cores that other work leaves"
        yield GaugeMetricFamily("mme_threads", text, value=source.threads)
        yield from self._per_model()

    # -- by model -----------------------------------------------------------------------------------------------

    def _deal(self) -> None:
        """Say which models have series of their own, and count the others together."""
        models = list(self._source.models.values())
        busiest = sorted(
            models, key=lambda model: (-model.metrics.answers.all, model not in self._named, model.number)
        )[: self._cap]
        for model in models:
            if model not in self._named and (model in self._counted or model not in busiest):
                _add(self._others, model.metrics, self._counted.get(model))
        # One that has just got series of its own has them from its load on; one that has lost them counts from here.
        self._named = set(busiest)
        self._counted = {model: _copy(model.metrics) for model in models if model not in self._named}

    def gone(self, model: Model) -> None:
        """The model is not loaded any more. What it counted since the last look is not lost, if it was one of many."""
        if model not in self._named and (model in self._counted or len(self._named) >= self._cap):
            _add(self._others, model.metrics, self._counted.pop(model, None))

    def _per_model(self) -> Iterable[Metric]:
        self._deal()
        models = list(self._source.models.values())
        rows = [(_labels(model), model.metrics) for model in sorted(self._named, key=lambda model: model.number)]
        rest = {"model": OTHER, "target": OTHER}
        unnamed = [model for model in models if model not in self._named]
        if unnamed or self._others.answers.all or self._others.loads:
            rows.append((rest, self._others))
        for name, text in MODEL_COUNTERS.items():
            counter = CounterMetricFamily(f"mme_model_{name}", text)
            for labels, metrics in rows:
                counter.add_sample(f"mme_model_{name}_total", labels, getattr(metrics, name))
            yield counter
        answers = CounterMetricFamily("mme_model_answers", "Answers by status")
        seconds = CounterMetricFamily("mme_model_seconds", "Time of requests by stage")
        for labels, metrics in rows:
            for status, count in sorted(metrics.answers.by_status.items()):
                answers.add_sample("mme_model_answers_total", {**labels, "status": status}, count)
            for stage, value in metrics.seconds.items():
                seconds.add_sample("mme_model_seconds_total", {**labels, "stage": stage}, value)
        yield answers
        yield seconds
        load = GaugeMetricFamily("mme_model_load_seconds", "Seconds from LOAD to ready (cold start)")
        private = GaugeMetricFamily(
            "mme_model_private_bytes", "Private memory of a model's process, 0 while it is parked"
        )
        extra = GaugeMetricFamily("mme_model_extra_bytes", "Memory that a busy model has beyond its need, to be faster")
        waiting = GaugeMetricFamily("mme_model_open_requests", "Requests that wait or are worked on")
        engine = GaugeMetricFamily(
            "mme_model_engine", "1, with the library that computes the model and why, where its handler says so"
        )
        for model in sorted(self._named, key=lambda model: model.number):
            labels = _labels(model)
            load.add_sample("mme_model_load_seconds", labels, model.load_seconds)
            private.add_sample("mme_model_private_bytes", labels, _private(model))
            extra.add_sample("mme_model_extra_bytes", labels, _extra(model))
            waiting.add_sample("mme_model_open_requests", labels, model.open)
            notes = model.worker.notes if model.worker else {}
            if notes.get("engine"):
                said = {name: _text(notes.get(name, "")) for name in ("engine", "format", "reason")}
                engine.add_sample("mme_model_engine", {**labels, **said}, 1)
        if unnamed:
            private.add_sample("mme_model_private_bytes", rest, sum(map(_private, unnamed)))
            extra.add_sample("mme_model_extra_bytes", rest, sum(map(_extra, unnamed)))
            waiting.add_sample("mme_model_open_requests", rest, sum(model.open for model in unnamed))
        yield from (load, private, extra, waiting, engine)


def _labels(model: Model) -> dict[str, str]:
    """A model called ``other`` must not be taken for the others: those have a target too, of the same name."""
    if model.name == OTHER and model.target == OTHER:
        return {"model": OTHER}
    return {"model": _text(model.name), **({"target": _text(model.target)} if model.target else {})}


def _text(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode()


def _private(model: Model) -> int:
    return model.private if model.worker else 0


def _extra(model: Model) -> int:
    return model.worker.extra.held if model.worker else 0


def _histogram(name: str, text: str, histograms: dict[str, Histogram], label: str = "") -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=[label] if label else [])
    for value, histogram in histograms.items():
        family.add_metric([value] if label else [], histogram.buckets(), histogram.sum)
    return family


def _add(total: ModelMetrics, now: ModelMetrics, before: ModelMetrics | None) -> None:
    """Add what has been counted since ``before``."""
    before = before or ModelMetrics()
    for name in MODEL_COUNTERS:
        setattr(total, name, getattr(total, name) + getattr(now, name) - getattr(before, name))
    for status, count in now.answers.by_status.items():
        total.answers.by_status[status] += count - before.answers.by_status[status]
    total.answers.all += now.answers.all - before.answers.all
    for stage, value in now.seconds.items():
        total.seconds[stage] = total.seconds.get(stage, 0.0) + value - before.seconds.get(stage, 0.0)


def _copy(metrics: ModelMetrics) -> ModelMetrics:
    copy = ModelMetrics()
    _add(copy, metrics, None)
    return copy
