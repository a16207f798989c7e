"""The text of /metrics."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mme.container.front.hub import Hub
    from mme.container.front.models import Model
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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


def _escaped(text: str) -> str:
    """As the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _per_model(models: list[Model], out: list[str], head: object) -> None:
    series: dict[str, tuple[str, str, list[str]]] = {
        "mme_model_loads_total": ("counter", "Loads of a model", []),
        "mme_model_wakes_total": ("counter", "Times a parked model was brought back", []),
        "mme_model_parks_total": ("counter", "Times an idle model was parked", []),
        "mme_model_engine": (
            "gauge",
            "1, with the library and the number format that compute the model and why, where its handler says so",
            [],
        ),
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
        label = f'model="{_escaped(model.name)}"'
        metrics = model.metrics
        put("mme_model_loads_total", label, metrics.loads)
        put("mme_model_wakes_total", label, metrics.wakes)
        put("mme_model_parks_total", label, metrics.parks)
        notes = model.worker.notes if model.worker else {}
        if notes.get("engine"):
            put(
                "mme_model_engine",
                ",".join(
                    [label, *(f'{name}="{_escaped(notes.get(name, ""))}"' for name in ("engine", "format", "reason"))]
                ),
                1,
            )
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
