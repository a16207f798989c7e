"""The client as a program uses it: names, lists, threads, errors, hooks, against a runtime on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import pytest
import stub_runtime
from stub_runtime import Asked, Said, Stub, error

from mme import aws
from mme.client import Endpoint, RequestTooLarge, errors
from mme.client import endpoint as one_request
from mme.client.hooks import Call
from mme.errors import UsageError

TARGET = "bert-0123456789ab.tar.gz"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_runtime.serving() as stub:
        yield stub


def endpoint(stub: Stub, **more: Any) -> Endpoint:
    return Endpoint("main", runtime=stub.client(), **more)


def texts(answers: list[dict[str, str]]) -> list[str]:
    return [answer["text"] for answer in answers]


def test_one_text_and_a_list(stub: Stub) -> None:
    with endpoint(stub) as main:
        model = main.target(TARGET)
        assert model.predict("a") == {"text": "a", "target": TARGET}
        assert texts(model.predict(["a", "b"])) == ["a", "b"]
        assert [asked.json for asked in stub.asked] == [{"inputs": "a"}, {"inputs": ["a", "b"]}]


def test_a_long_list_runs_at_the_same_time_with_a_bound_and_keeps_its_order(stub: Stub) -> None:
    running, most, lock = 0, 0, threading.Lock()
    full = threading.Event()

    def slow(asked: Asked) -> Said:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 3:
                full.set()
        full.wait(10)  # until as many are here as may be
        with lock:
            running -= 1
        return stub_runtime.echo(asked)

    stub.answer = slow
    with endpoint(stub, concurrency=3) as main:
        wanted = [str(n) for n in range(320)]
        assert texts(main.target(TARGET).predict(iter(wanted))) == wanted
    assert most == 3
    assert len(stub.asked) == 10


def test_arrays_in_and_out(stub: Stub) -> None:
    parsing = threading.Lock()  # threads that parse Python at once can fail in CPython 3.11

    def double(asked: Asked) -> Said:
        file = io.BytesIO()
        with parsing:
            array = numpy.load(io.BytesIO(asked.body))
        numpy.save(file, 2 * array)
        return Said(file.getvalue(), content_type=asked.content_type)

    stub.answer = double
    with endpoint(stub) as main:
        array = numpy.arange(30.0).reshape(10, 3)
        assert numpy.array_equal(main.target(TARGET).predict(array, max_items=3), 2 * array)
        assert main.target(TARGET).predict(numpy.float64(2)) == 4
    assert len(stub.asked) == 5


def test_some_parts_that_fail_are_named_with_their_inputs(stub: Stub) -> None:
    def picky(asked: Asked) -> Said:
        if "bad" in asked.json["inputs"]:
            said = json.dumps({"message": "bad is no text"})
            return error(424, "ModelError", OriginalStatusCode=400, OriginalMessage=said)
        return stub_runtime.echo(asked)

    stub.answer = picky
    with endpoint(stub) as main, pytest.raises(errors.PartialFailure) as caught:
        main.target(TARGET).predict(["a", "bad", "c", "d", "bad"], max_items=1)
    failed = caught.value
    assert [failure.inputs for failure in failed.failures] == [range(1, 2), range(4, 5)]
    assert all(isinstance(failure.error, errors.ModelError) for failure in failed.failures)
    assert [(inputs, texts(answer)) for inputs, answer in failed.answers] == [
        (range(1), ["a"]),
        (range(2, 3), ["c"]),
        (range(3, 4), ["d"]),
    ]
    assert failed.not_tried == ()
    assert "inputs 1, 4 (counted from 0); 3 were answered" in str(failed)
    assert "bad is no text" in str(failed)


def test_what_would_stop_every_part_stops_the_rest(stub: Stub) -> None:
    stub.answer = lambda asked: error(400, "ValidationError", "Endpoint main of account 1 not found.")
    with endpoint(stub, concurrency=2) as main, pytest.raises(errors.EndpointNotFound):
        main.target(TARGET).predict(["a"] * 100, max_items=1)
    assert len(stub.asked) <= 4


def test_inputs_that_were_never_sent_are_named(stub: Stub) -> None:
    def until_c(asked: Asked) -> Said:
        return stub_runtime.echo(asked) if asked.json["inputs"] < ["c"] else error(403, "AccessDeniedException")

    stub.answer = until_c
    with endpoint(stub, concurrency=1) as main, pytest.raises(errors.PartialFailure) as caught:
        main.target(TARGET).predict(["a", "b", "c", "d", "e"], max_items=1)
    assert caught.value.not_tried == (range(3, 4), range(4, 5))
    assert [inputs for inputs, _ in caught.value.answers] == [range(1), range(1, 2)]
    assert "never sent: 3, 4" in str(caught.value)


# ---- what is tried again ------------------------------------------------------------------------------------------


class Runtime:
    """A single request against the stub server, without real pauses."""

    def __init__(self, stub: Stub) -> None:
        self.pauses: list[float] = []
        self.stub = stub

    def ask(self, *answers: Said | None, **more: Any) -> Any:
        given = list(answers)
        self.stub.answer = lambda asked: given.pop(0) if given else stub_runtime.echo(asked)
        self.stub.asked.clear()
        self.pauses.clear()
        return one_request.predict(
            self.stub.client(),
            "main",
            TARGET,
            b'{"inputs": "a"}',
            sleep=self.pauses.append,
            chance=lambda: 1.0,
            **{"attempts": 4, **more},
        )


@pytest.fixture
def runtime(stub: Stub) -> Runtime:
    return Runtime(stub)


@pytest.mark.parametrize(
    "refusal",
    [
        error(503, "ServiceUnavailable"),
        error(400, "ThrottlingException"),
        error(429, "TooManyRequestsException"),
        Said(b"<html>", 503, "text/html"),
    ],
    ids=lambda said: f"{said.status} {said.kind}",
)
def test_a_refusal_that_passes_is_tried_again(runtime: Runtime, refusal: Said) -> None:
    answer = runtime.ask(refusal, refusal, refusal)
    assert (answer.tries, len(runtime.stub.asked), runtime.pauses) == (4, 4, [1, 2, 4])
    with pytest.raises((errors.Throttled, errors.EndpointUnavailable)):
        runtime.ask(*[refusal] * 4)
    assert len(runtime.stub.asked) == 4


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (error(424, "ModelError", OriginalStatusCode=503, OriginalMessage="busy"), errors.ModelError),
        (error(400, "ValidationError", "Endpoint main of account 1 not found."), errors.EndpointNotFound),
        (error(400, "ValidationError", "Failed to download model data"), errors.TargetNotFound),
        (error(400, "ValidationError", "Variant blue of endpoint main not found."), errors.EndpointError),
        (error(400, "ValidationError", "1 validation error detected: … at 'targetVariant' …"), errors.EndpointError),
        (error(403, "InvalidSignatureException", "Signature expired: …"), errors.AccessDenied),
        (error(403, "AccessDeniedException"), errors.AccessDenied),
        (error(403, "ExpiredTokenException"), errors.AccessDenied),
        (error(403, "UnrecognizedClientException"), errors.AccessDenied),
        (error(500, "InternalFailure"), errors.EndpointError),
        (error(530, "InternalDependencyException"), errors.EndpointError),
        (None, errors.NoAnswer),  # it hung up: the model may have seen the request
    ],
    ids=str,
)
def test_everything_else_is_asked_once(runtime: Runtime, refusal: Said | None, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        runtime.ask(refusal)
    assert type(caught.value) is kind
    if refusal is None:
        assert "The model may have seen the request" in str(caught.value)
    assert (len(runtime.stub.asked), runtime.pauses) == (1, [])


def test_a_model_that_is_loading_has_its_own_patience_beside_the_tries(runtime: Runtime) -> None:
    loading, busy = error(429, "ModelNotReadyException"), error(503, "ServiceUnavailable")
    answer = runtime.ask(loading, busy, loading, loading, busy, loading, attempts=3)
    assert answer.tries == 7
    with pytest.raises(errors.ModelNotReady, match="still loading"):
        runtime.ask(loading, patience=0)


def test_a_request_that_is_sent_and_not_answered_in_time_is_asked_once(stub: Stub) -> None:
    hold = threading.Event()

    def silent(asked: Asked) -> Said:
        hold.wait(20)
        return stub_runtime.echo(asked)

    stub.answer = silent
    try:
        with Endpoint("main", runtime=stub.client(read_timeout=0.2)) as main, pytest.raises(errors.NoAnswer):
            main.target(TARGET).predict("a")
    finally:
        hold.set()
    assert len(stub.asked) == 1


def test_a_connection_that_was_never_made_is_tried_again() -> None:
    with stub_runtime.serving() as stub:
        client = stub.client()
    pauses: list[float] = []
    with pytest.raises(errors.EndpointUnavailable, match="Could not connect"):
        one_request.predict(client, "main", TARGET, b"{}", attempts=3, sleep=pauses.append)
    assert len(pauses) == 2


def test_the_clients_own_retries_are_off_and_its_patience_above_sagemakers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    config = Endpoint("main", region="us-east-1").client().meta.config
    assert config.retries["total_max_attempts"] == 1  # type: ignore[index]
    assert config.read_timeout == 70
    assert aws.runtime_client("us-east-1").meta.config.retries["total_max_attempts"] == 5  # type: ignore[index]


# ---- errors -------------------------------------------------------------------------------------------------------


def test_a_model_error_has_its_parts(stub: Stub) -> None:
    log = "arn:aws:logs:us-east-1:123456789012:log-group:/aws/sagemaker/Endpoints/main"
    stub.answer = lambda asked: error(
        424, "ModelError", OriginalStatusCode=500, OriginalMessage='{"message": "boom"}', LogStreamArn=log
    )
    with endpoint(stub) as main, pytest.raises(errors.ModelError) as caught:
        main.target(TARGET).predict("a")
    assert (caught.value.status, caught.value.said, caught.value.log, caught.value.target) == (500, "boom", log, TARGET)
    assert log in str(caught.value)


def test_what_cannot_be_sent_sends_nothing(stub: Stub) -> None:
    with endpoint(stub) as main:
        model = main.target(TARGET)
        for inputs in ([], None, {"a"}, b"x"):
            with pytest.raises(UsageError):
                model.predict(inputs)
        with pytest.raises(RequestTooLarge):
            model.predict(["a", "x" * 6_300_000])
        for most in (0, -1, 1.5, "3"):
            with pytest.raises(UsageError, match="max_items"):
                model.predict(["a"], max_items=most)  # type: ignore[arg-type]
    assert stub.asked == []


@pytest.mark.parametrize("more", [{"concurrency": 0}, {"attempts": 0}, {"concurrency": 1.5}])
def test_settings_that_cannot_be(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Endpoint("main", **more)


def test_names_that_cannot_be(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_ENDPOINT", raising=False)
    with pytest.raises(UsageError, match="No endpoint is known"):
        Endpoint()
    monkeypatch.setenv("MME_ENDPOINT", "of-the-environment")
    assert Endpoint().name == "of-the-environment"
    main = endpoint(stub)
    with pytest.raises(UsageError, match="not the name of a model or channel"):
        main.model("Bert!")
    with pytest.raises(UsageError, match=r"endpoint\.target"):
        main.model(TARGET)
    with pytest.raises(UsageError, match="not a target model"):
        main.target("")


# ---- asyncio ------------------------------------------------------------------------------------------------------


def test_awaited_predictions_run_at_the_same_time_with_a_bound(stub: Stub) -> None:
    full = threading.Barrier(4, timeout=20)

    def together(asked: Asked) -> Said:
        full.wait()
        return stub_runtime.echo(asked)

    stub.answer = together

    async def ask() -> list[Any]:
        with endpoint(stub, concurrency=4) as main:
            model = main.target(TARGET)
            return await asyncio.gather(*(model.apredict(str(n)) for n in range(16)))

    assert texts(asyncio.run(ask())) == [str(n) for n in range(16)]


def test_awaited_long_lists_do_not_wait_for_each_other_for_ever(stub: Stub) -> None:
    async def ask() -> list[Any]:
        with endpoint(stub, concurrency=2) as main:
            model = main.target(TARGET)
            return await asyncio.gather(*(model.apredict([str(n)] * 10, max_items=1) for n in range(8)))

    assert [texts(one) for one in asyncio.run(ask())] == [[str(n)] * 10 for n in range(8)]


def test_an_awaited_error_is_the_same_error(stub: Stub) -> None:
    stub.answer = lambda asked: error(403, "AccessDeniedException")

    async def ask() -> None:
        with endpoint(stub) as main:
            await main.target(TARGET).apredict("a")

    with pytest.raises(errors.AccessDenied):
        asyncio.run(ask())


def test_many_threads_share_one_endpoint(stub: Stub) -> None:
    with endpoint(stub) as main, ThreadPoolExecutor(24) as pool:
        model = main.target(TARGET)
        answers = list(pool.map(lambda n: texts(model.predict([f"{n}-{i}" for i in range(5)], max_items=2)), range(60)))
    assert answers == [[f"{n}-{i}" for i in range(5)] for n in range(60)]


# ---- hooks --------------------------------------------------------------------------------------------------------


def test_a_hook_sees_each_request_and_what_came_of_it(stub: Stub) -> None:
    seen: list[Call] = []

    @contextlib.contextmanager
    def hook(call: Call) -> Iterator[None]:
        yield
        seen.append(call)

    with endpoint(stub, on_request=hook) as main:
        main.target(TARGET).predict(["a", "b", "c"], max_items=2)
        stub.answer = lambda asked: error(403, "AccessDeniedException")
        with pytest.raises(errors.AccessDenied):
            main.target(TARGET).predict("a")
    parts = sorted(seen[:2], key=lambda call: (call.inputs or range(0)).start)
    assert [call.inputs for call in parts] == [range(2), range(2, 3)]
    assert all((call.endpoint, call.target, call.tries, call.variant) == ("main", TARGET, 1, "main") for call in parts)
    assert all(call.seconds > 0 and call.sent > 0 and call.received > 0 and call.error is None for call in parts)
    assert isinstance(seen[2].error, errors.AccessDenied)
    assert seen[2].inputs is None


@pytest.mark.parametrize("where", ["call", "enter", "exit"])
def test_a_hook_that_fails_changes_nothing(stub: Stub, where: str, caplog: pytest.LogCaptureFixture) -> None:
    def hook(call: Call) -> Any:
        if where == "call":
            raise RuntimeError("hook")

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            if where == "enter":
                raise RuntimeError("hook")
            yield
            raise RuntimeError("hook")

        return around()

    with endpoint(stub, on_request=hook) as main:
        assert main.target(TARGET).predict("a")["text"] == "a"
    assert "the hook on_request failed" in caplog.text


def test_opentelemetry_gets_spans_and_durations(stub: Stub) -> None:
    metrics = pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind, StatusCode

    from mme.client.telemetry import OpenTelemetry

    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    hook = OpenTelemetry(provider, metrics.MeterProvider([reader]))
    with endpoint(stub, on_request=hook) as main:
        with provider.get_tracer("test").start_as_current_span("the caller's") as outer:
            main.target(TARGET).predict(["a", "b", "c"], max_items=2)  # in other threads, and yet its children
        stub.answer = lambda asked: error(424, "ModelError", OriginalStatusCode=500, OriginalMessage="boom")
        with pytest.raises(errors.ModelError):
            main.target(TARGET).predict("a")
    first, second, _, failed = exporter.get_finished_spans()
    for span in (first, second):
        assert span.name == f"predict {TARGET}"
        assert span.kind is SpanKind.CLIENT
        assert span.parent is not None
        assert span.parent.span_id == outer.get_span_context().span_id
        assert span.attributes["mme.target"] == TARGET
        assert span.attributes["rpc.method"] == "InvokeEndpoint"
    assert sorted(span.attributes["mme.inputs"] for span in (first, second)) == [1, 2]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "ModelError"
    assert failed.attributes["http.response.status_code"] == 500
    assert "boom" in failed.events[0].attributes["exception.message"]
    data = reader.get_metrics_data()
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == "mme.client.request.duration"
    assert sorted(point.count for point in metric.data.data_points) == [1, 2]


# ---- what it needs ------------------------------------------------------------------------------------------------


def test_importing_the_client_is_light() -> None:
    heavy = ["torch", "transformers", "numpy", "moto", "invoke", "opentelemetry", "sagemaker", "mme.packaging"]
    code = f"import sys, mme.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
