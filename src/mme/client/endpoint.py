"""Predictions: a target model and an input, to what the model answered."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from mme.aws import code_of, explained
from mme.errors import EndpointError, UsageError

if TYPE_CHECKING:
    from types_boto3_sagemaker import SageMakerClient
    from types_boto3_sagemaker_runtime import SageMakerRuntimeClient

MAX_BODY = 6_291_456  # bytes, SageMaker's limit for a request and for an answer
PATIENCE_S = 360.0  # as long as SageMaker goes on loading a model

JSON = "application/json"
NPY = "application/x-npy"


@dataclass(frozen=True)
class Answer:
    """What came back: the body as the model sent it, its type, who answered, and how long it took in seconds."""

    body: bytes
    content_type: str
    target: str
    variant: str
    seconds: float


def predict(
    runtime: SageMakerRuntimeClient,
    endpoint: str,
    target: str,
    body: bytes,
    *,
    content_type: str = JSON,
    accept: str = JSON,
    patience: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    waiting: Callable[[], None] = lambda: None,
) -> Answer:
    """Ask one target model on the endpoint.

    While the endpoint is still loading the model it is asked again, for ``patience`` seconds in all; ``waiting`` is
    called before each further try. Raises EndpointError; when the model itself refused or failed, with its own words.
    """
    if len(body) > MAX_BODY:
        raise UsageError(
            f"The input has {len(body):,} bytes; an endpoint takes at most {MAX_BODY:,}.",
            "Send it in several requests.",
        )
    start = clock()
    pause = 1.0
    while True:
        asked = clock()
        with explained(f"ask {target} on endpoint {endpoint}", error=EndpointError):
            try:
                answer = runtime.invoke_endpoint(
                    EndpointName=endpoint,
                    TargetModel=target,
                    Body=body,
                    ContentType=content_type,
                    Accept=accept,
                )
                return Answer(
                    answer["Body"].read(),
                    answer.get("ContentType", ""),
                    target,
                    answer.get("InvokedProductionVariant", ""),
                    clock() - asked,
                )
            except ClientError as error:
                if code_of(error) == "ModelError":
                    raise _model_error(error, target) from error
                if code_of(error) in ("ValidationError", "ValidationException"):
                    raise _not_valid(error, endpoint, target) from error
                if code_of(error) != "ModelNotReadyException":
                    raise
                if clock() - start + pause > patience:
                    raise EndpointError(
                        f"{target} was still loading after {clock() - start:.0f} s.",
                        "Ask again in a minute. If it stays so, the model may be too large for the instances: see "
                        "the endpoint's log.",
                    ) from error
        waiting()
        sleep(pause)
        pause = min(2 * pause, 10.0)


def decode(answer: Answer) -> Any:
    """The answer as plain values: parsed JSON, an array as nested lists, or text.

    Raises EndpointError for a body that is not what its type says, or that only a program can use.
    """
    kind = answer.content_type.partition(";")[0].strip().lower()
    try:
        if kind == JSON or kind.endswith("+json"):
            return json.loads(answer.body)
        if kind == NPY:
            return _read_array(answer.body)
        return answer.body.decode("utf-8")
    except ValueError as error:
        raise EndpointError(
            f"{answer.target} answered {len(answer.body):,} bytes of {kind or 'no type'} that cannot be shown as JSON.",
            "Write them to a file with --save FILE.",
        ) from error


def _read_array(body: bytes) -> Any:
    try:
        import numpy
    except ImportError as error:
        raise UsageError(
            f"Showing {NPY} needs numpy.", "pip install numpy, or write the answer to a file with --save FILE."
        ) from error
    return numpy.load(io.BytesIO(body), allow_pickle=False).tolist()


def _model_error(error: ClientError, target: str) -> EndpointError:
    """The container's own message out of SageMaker's ModelError."""
    status = error.response.get("OriginalStatusCode", "an error")
    original = str(error.response.get("OriginalMessage") or "").strip()
    if not original:
        original = str(error.response.get("Error", {}).get("Message", "")).strip()
    message = original
    try:
        parsed = json.loads(original)
        if isinstance(parsed, dict):
            message = str(parsed.get("message") or parsed.get("error") or original)
    except ValueError:
        pass
    log = error.response.get("LogStreamArn")
    hint = f"The model's log: {log}" if log and str(status) != "400" else None
    return EndpointError(f"{target} answered {status}: {message}", hint)


def _not_valid(error: ClientError, endpoint: str, target: str) -> EndpointError:
    message = str(error.response.get("Error", {}).get("Message", "")).strip()
    lower = message.lower()
    if "endpoint" in lower and "not found" in lower:
        hint = "Check --endpoint, MME_ENDPOINT and the region; terraform apply creates the endpoint."
    elif "model data" in lower or "target" in lower or "s3" in lower:
        hint = "See what is released: invoke releases. The endpoint reads the model prefix of its own bucket only."
    else:
        hint = None
    return EndpointError(f"Endpoint {endpoint} refused the request for {target}: {message}", hint)


def archives_in_use(sagemaker: SageMakerClient) -> dict[str, list[str]]:
    """For each archive that a live endpoint names itself (``s3://`` URI): the endpoints.

    A multi-model endpoint names a prefix, not archives: which of them its clients ask for, no call tells.
    """
    users: dict[str, list[str]] = {}
    with explained("see what the live endpoints use", error=EndpointError):
        for page in sagemaker.get_paginator("list_endpoints").paginate():
            for endpoint in page["Endpoints"]:
                name = endpoint["EndpointName"]
                for uri in _archives_of(sagemaker, name):
                    users.setdefault(uri, []).append(name)
    return users


def _archives_of(sagemaker: SageMakerClient, endpoint: str) -> set[str]:
    try:
        config = sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
        described: Any = sagemaker.describe_endpoint_config(EndpointConfigName=config)
    except ClientError as error:
        if code_of(error) == "ValidationException":  # deleted since it was listed
            return set()
        raise
    variants = [*described.get("ProductionVariants", []), *described.get("ShadowProductionVariants", [])]
    found: set[str] = set()
    for model in {variant["ModelName"] for variant in variants if variant.get("ModelName")}:
        try:
            answer: Any = sagemaker.describe_model(ModelName=model)
        except ClientError as error:
            if code_of(error) == "ValidationException":
                continue
            raise
        for container in [answer.get("PrimaryContainer") or {}, *(answer.get("Containers") or [])]:
            source = (container.get("ModelDataSource") or {}).get("S3DataSource") or {}
            found.update(uri for uri in (container.get("ModelDataUrl"), source.get("S3Uri")) if uri)
    return {uri for uri in found if not uri.endswith("/")}
