"""Traces and metrics of predictions by OpenTelemetry: ``Endpoint("…", on_request=OpenTelemetry())``.

Needs the package ``opentelemetry-api``; without an SDK that is set up it does nothing. The names are those of the
semantic conventions for calls of AWS's SDKs and for HTTP clients where they have one, and ``mme.*`` otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from mme import __version__
from mme.client.errors import ModelError
from mme.client.hooks import Call
from mme.errors import UsageError

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


class OpenTelemetry:
    """A hook for ``Endpoint(on_request=…)``: a span of kind client for each request, a child of the caller's own span,
    and the histogram ``mme.client.request.duration`` (seconds).

    The providers are the global ones unless given. Inputs and answers are in neither.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError as error:
            raise UsageError("OpenTelemetry is not installed.", "pip install opentelemetry-api") from error
        self._trace = trace
        self._tracer = trace.get_tracer("mme.client", __version__, tracer_provider)
        self._duration = metrics.get_meter("mme.client", __version__, meter_provider).create_histogram(
            "mme.client.request.duration", "s", "How long a prediction took, its further tries included."
        )

    def __call__(self, call: Call) -> AbstractContextManager[None]:
        return self._around(call)

    @contextmanager
    def _around(self, call: Call) -> Iterator[None]:
        known = {"mme.endpoint": call.endpoint, "mme.model": call.model, "mme.target": call.target}
        named: dict[str, Any] = {
            "rpc.system": "aws-api",
            "rpc.service": "SageMaker Runtime",
            "rpc.method": "InvokeEndpoint",
            "http.request.body.size": call.sent,
            **known,
        }
        if call.inputs is not None:
            named["mme.inputs"] = len(call.inputs)
        trace = self._trace
        with self._tracer.start_as_current_span(
            f"predict {call.model}", kind=trace.SpanKind.CLIENT, attributes=named
        ) as span:
            yield
            failed = {} if call.error is None else {"error.type": type(call.error).__name__}
            if call.error is not None:
                span.record_exception(call.error)
                span.set_status(trace.Status(trace.StatusCode.ERROR, str(call.error)))
                span.set_attributes(failed)
                if isinstance(call.error, ModelError):
                    span.set_attribute("http.response.status_code", call.error.status)
            else:
                span.set_attributes(
                    {
                        "http.response.body.size": call.received,
                        "mme.tries": call.tries,
                        "mme.variant": call.variant,
                    }
                )
            self._duration.record(call.seconds, {**known, **failed})
