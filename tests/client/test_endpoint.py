"""Predictions: what goes out, what comes back, and whose words an error carries."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import boto3
import numpy
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from moto import mock_aws

from mme import aws
from mme.client import endpoint
from mme.client.endpoint import Answer
from mme.errors import EndpointError, UsageError

TARGET = "bert-0123456789ab.tar.gz"


def refusal(code: str, status: int, message: str = "", **more: Any) -> ClientError:
    answer = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
        **more,
    }
    return ClientError(answer, "InvokeEndpoint")  # type: ignore[arg-type]


class Runtime:
    """Stands for the client: gives the answers (bodies or errors) one after the other."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def invoke_endpoint(self, **given: Any) -> dict[str, Any]:
        self.asked.append(given)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"Body": io.BytesIO(answer), "ContentType": "application/json", "InvokedProductionVariant": "main"}


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def predict(runtime: Runtime, body: bytes = b'{"inputs": "hello"}', **more: Any) -> Answer:
    return endpoint.predict(runtime, "main-endpoint", TARGET, body, **more)  # type: ignore[arg-type]


def test_what_is_asked_and_answered() -> None:
    runtime = Runtime(b'{"embeddings": [[1.0]]}')
    answer = predict(runtime, accept="application/x-npy")
    assert runtime.asked == [
        {
            "EndpointName": "main-endpoint",
            "TargetModel": TARGET,
            "Body": b'{"inputs": "hello"}',
            "ContentType": "application/json",
            "Accept": "application/x-npy",
        }
    ]
    assert (answer.body, answer.target, answer.variant) == (b'{"embeddings": [[1.0]]}', TARGET, "main")
    assert answer.seconds >= 0
    assert endpoint.decode(answer) == {"embeddings": [[1.0]]}


def test_a_model_that_is_loading_is_asked_again_with_patience() -> None:
    loading = refusal("ModelNotReadyException", 429, "loading")
    clock, waits = Clock(), []
    runtime = Runtime(*[loading] * 5, b"{}")
    predict(runtime, sleep=clock.sleep, clock=clock, waiting=lambda: waits.append(clock.now))
    assert len(runtime.asked) == 6
    assert waits == [0, 1, 3, 7, 15]


def test_patience_ends() -> None:
    clock = Clock()
    runtime = Runtime(*[refusal("ModelNotReadyException", 429, "loading")] * 100)
    with pytest.raises(EndpointError, match="still loading after"):
        predict(runtime, sleep=clock.sleep, clock=clock)
    assert 300 < clock.now <= 360


@pytest.mark.parametrize(
    ("original", "shown"),
    [
        ('{"code": 400, "type": "BadRequestException", "message": "inputs is empty"}', "inputs is empty"),
        ('{"error": "no task"}', "no task"),
        ("plain words", "plain words"),
        ('["a list"]', '["a list"]'),
    ],
)
def test_a_model_error_carries_the_models_own_words(original: str, shown: str) -> None:
    error = refusal(
        "ModelError", 424, "Received client error (400) from main", OriginalStatusCode=400, OriginalMessage=original
    )
    with pytest.raises(EndpointError) as caught:
        predict(Runtime(error))
    assert str(caught.value) == f"{TARGET} answered 400: {shown}"


def test_a_model_that_fails_points_to_its_log() -> None:
    error = refusal(
        "ModelError", 424, "x", OriginalStatusCode=500, OriginalMessage="boom", LogStreamArn="arn:aws:logs:::log-group"
    )
    with pytest.raises(EndpointError, match="answered 500: boom") as caught:
        predict(Runtime(error))
    assert "arn:aws:logs:::log-group" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (refusal("ValidationError", 400, "Endpoint main-endpoint of account 1 not found."), "not found", "--endpoint"),
        (refusal("ValidationError", 400, "Failed to download model data from s3://b/models/x"), "Failed", "releases"),
        (refusal("ValidationError", 400, "Something else"), "Something else", ""),
        (
            refusal("ServiceUnavailable", 503, "busy"),
            "busy .ServiceUnavailable.",
            "invoke status --endpoint main-endpoint",
        ),
        (refusal("InvalidSignatureException", 403, "Signature expired: 1; it is 2"), "clock", "NTP"),
        (refusal("SignatureDoesNotMatch", 403, "Signature not yet current: 1"), "clock", "NTP"),
        (
            refusal("InvalidSignatureException", 403, "The request signature"),
            "not accept the credentials",
            "AWS_PROFILE",
        ),
        (refusal("AccessDeniedException", 403, "not for you"), "no permission for InvokeEndpoint", "not for you"),
        (refusal("ExpiredTokenException", 403, "expired"), "have expired", "Sign in again"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), "Could not connect", "AWS_ENDPOINT_URL"),
        (ReadTimeoutError(endpoint_url="http://127.0.0.1:1"), "no answer came in time", "again"),
    ],
)
def test_other_errors_say_what_to_do(error: Exception, message: str, hint: str) -> None:
    with pytest.raises(EndpointError, match=message) as caught:
        predict(Runtime(error))
    assert hint in str(caught.value)


def test_a_body_over_the_limit_is_not_sent() -> None:
    runtime = Runtime()
    with pytest.raises(UsageError, match="at most 6,291,456"):
        predict(runtime, b"x" * (endpoint.MAX_BODY + 1))
    assert runtime.asked == []


def test_the_client_waits_longer_than_sagemaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    config = aws.runtime_client("us-east-1").meta.config
    assert config.read_timeout > 60
    assert config.retries["mode"] == "standard"  # type: ignore[index]


# ---- decoding -----------------------------------------------------------------------------------------------------


def answer(body: bytes, content_type: str) -> Answer:
    return Answer(body, content_type, TARGET, "main", 0.1)


def test_an_array_becomes_lists() -> None:
    file = io.BytesIO()
    numpy.save(file, numpy.array([[1.5, 2.0]], dtype=numpy.float32))
    assert endpoint.decode(answer(file.getvalue(), "application/x-npy")) == [[1.5, 2.0]]


def test_a_pickled_array_is_not_opened() -> None:
    file = io.BytesIO()
    numpy.save(file, numpy.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(EndpointError, match="cannot be shown as JSON"):
        endpoint.decode(answer(file.getvalue(), "application/x-npy"))


@pytest.mark.parametrize(
    ("body", "kind", "shown"),
    [
        (json.dumps(["ü"]).encode(), "application/json; charset=utf-8", ["ü"]),
        (b'{"a": 1}', "application/problem+json", {"a": 1}),
        ("grüße".encode(), "text/plain", "grüße"),
        (b"words", "", "words"),
    ],
)
def test_json_and_text(body: bytes, kind: str, shown: Any) -> None:
    assert endpoint.decode(answer(body, kind)) == shown


@pytest.mark.parametrize(("body", "kind"), [(b"{", "application/json"), (b"\xff\xfe\xfd", "application/octet-stream")])
def test_what_cannot_be_shown_says_how_to_save_it(body: bytes, kind: str) -> None:
    with pytest.raises(EndpointError, match="--save"):
        endpoint.decode(answer(body, kind))


# ---- what live endpoints use --------------------------------------------------------------------------------------


@pytest.fixture
def sagemaker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("sagemaker", region_name="us-east-1")


def make_endpoint(sagemaker: Any, name: str, data: str, mode: str = "SingleModel") -> None:
    image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/serving:1"
    sagemaker.create_model(
        ModelName=name,
        ExecutionRoleArn="arn:aws:iam::123456789012:role/models",
        PrimaryContainer={"Image": image, "ModelDataUrl": data, "Mode": mode},
    )
    variant = {
        "VariantName": "main",
        "ModelName": name,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
        "InitialVariantWeight": 1.0,
    }
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)


def test_archives_that_live_endpoints_name(sagemaker: Any) -> None:
    assert endpoint.archives_in_use(sagemaker) == {}
    make_endpoint(sagemaker, "many", "s3://models-bucket/models/", "MultiModel")
    make_endpoint(sagemaker, "one", f"s3://models-bucket/models/{TARGET}")
    make_endpoint(sagemaker, "two", f"s3://models-bucket/models/{TARGET}")
    in_use = endpoint.archives_in_use(sagemaker)
    assert {uri: sorted(names) for uri, names in in_use.items()} == {
        f"s3://models-bucket/models/{TARGET}": ["one", "two"]
    }
