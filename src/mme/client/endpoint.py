"""Predictions: a target model and an input in, the model's answer out."""

from __future__ import annotations

import functools
import io
import json
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from mme.aws import code_of, explained
from mme.client import errors
from mme.errors import EndpointError, UsageError

if TYPE_CHECKING:
    from types_boto3_sagemaker import SageMakerClient
    from types_boto3_sagemaker_runtime import SageMakerRuntimeClient

MAX_BODY = 6_291_456  # bytes, SageMaker's limit for a request and for an answer
PATIENCE_S = 360.0  # as long as SageMaker goes on loading a model

ENDPOINTS_AT_ONCE = 8  # SageMaker soon asks a client to slow down that describes more at the same time

JSON = "application/json"
NPY = "application/x-npy"


@dataclass(frozen=True)
class Answer:
    """What came back: the body as the model sent it, its type, who answered, and how long it took in seconds.

    ``seconds`` is the time of the try that was answered, and ``tries`` how many there were.
    """

    body: bytes
    content_type: str
    target: str
    variant: str
    seconds: float
    tries: int = 1


def predict(
    runtime: SageMakerRuntimeClient,
    endpoint: str,
    target: str,
    body: bytes,
    *,
    content_type: str = JSON,
    accept: str = JSON,
    more: Mapping[str, Any] | None = None,
    patience: float = PATIENCE_S,
    attempts: int = 1,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    chance: Callable[[], float] = random.random,
    waiting: Callable[[], None] = lambda: None,
) -> Answer:
    """Ask one target model on the endpoint; ``more`` are further arguments of InvokeEndpoint.

    While the endpoint is still loading the model it is asked again, for ``patience`` seconds in all; ``waiting`` is
    called before each further try. What else is worth another try gets ``attempts`` in all: throttling, 503 and
    ServiceUnavailable ("try your call again", says InvokeEndpoint's reference), and a connection that was never made.
    They are ``chance() * min(20, 2 ** n)`` seconds apart, as AWS's SDKs do it ("Retry behavior" in the AWS SDKs and
    Tools Reference Guide). Not tried again: what the model itself answered, and a request that was sent and not
    answered; the model may still be at work on it, and a second one would add to what made it slow. ``attempts`` is 1
    by default because a client of boto3 has tries of its own: give more only with one that has them turned off, as
    ``aws.runtime_client(region, retries=False)``.

    Raises the errors of ``mme.client.errors``; when the model itself refused or failed, with its own words.
    """
    if len(body) > MAX_BODY:
        raise UsageError(
            f"The input has {len(body):,} bytes; an endpoint takes at most {MAX_BODY:,}.",
            "Send it in several requests.",
        )
    start = clock()
    pause = 1.0
    failed = backoff = 0
    while True:
        asked = clock()
        try:
            answer = runtime.invoke_endpoint(
                EndpointName=endpoint,
                TargetModel=target,
                Body=body,
                ContentType=content_type,
                Accept=accept,
                **(more or {}),
            )
            return Answer(
                answer["Body"].read(),
                answer.get("ContentType", ""),
                target,
                answer.get("InvokedProductionVariant", ""),
                clock() - asked,
                failed + 1,
            )
        except (ClientError, BotoCoreError, HTTPClientError) as caught:
            error = errors.typed(caught, endpoint, target)
            failed += 1
            if isinstance(error, errors.ModelNotReady):
                if clock() - start + pause > patience:
                    raise errors.ModelNotReady(
                        f"{target} was still loading after {clock() - start:.0f} s.",
                        "Ask again in a minute. If it stays so, the model may be too large for the instances: see "
                        "the endpoint's log.",
                    ) from caught
                wait, pause = pause, min(2 * pause, 10.0)
            else:
                attempts -= 1
                if attempts < 1 or not isinstance(error, (errors.Throttled, errors.EndpointUnavailable)):
                    raise error from caught
                wait = chance() * min(20.0, 2.0**backoff)
                backoff += 1
        waiting()
        sleep(wait)


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
        raise errors.AnswerError(
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


def archives_in_use(sagemaker: SageMakerClient) -> dict[str, list[str]]:
    """For each archive that a live endpoint names itself (``s3://`` URI): the endpoints.

    A multi-model endpoint names a prefix, not archives: no call of AWS says which of them its clients ask for.
    """
    users: dict[str, list[str]] = {}
    with explained("see what the live endpoints use", error=EndpointError):
        pages = sagemaker.get_paginator("list_endpoints").paginate()
        names = [endpoint["EndpointName"] for page in pages for endpoint in page["Endpoints"]]
        with ThreadPoolExecutor(ENDPOINTS_AT_ONCE) as pool:
            for name, archives in zip(names, pool.map(functools.partial(_archives_of, sagemaker), names), strict=True):
                for uri in archives:
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
    archives: set[str] = set()
    for model in {variant["ModelName"] for variant in variants if variant.get("ModelName")}:
        try:
            answer: Any = sagemaker.describe_model(ModelName=model)
        except ClientError as error:
            if code_of(error) == "ValidationException":
                continue
            raise
        for container in [answer.get("PrimaryContainer") or {}, *(answer.get("Containers") or [])]:
            source = (container.get("ModelDataSource") or {}).get("S3DataSource") or {}
            archives.update(uri for uri in (container.get("ModelDataUrl"), source.get("S3Uri")) if uri)
    return {uri for uri in archives if not uri.endswith("/")}
