"""What can go wrong with a prediction, by what a program does about it.

All are ``EndpointError``s, so that one ``except`` takes them all. Each has ``message`` and ``hint`` as every error of
``mme.errors`` has; AWS's own error is its ``__cause__``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
)

from mme.aws import code_of, concerns_every_call, explain, status_of
from mme.errors import EndpointError, MmeError


class ModelError(EndpointError):
    """The container answered with an error: the model refused the input, or failed.

    ``status`` is the container's HTTP status (0 when SageMaker did not say), ``said`` its own message, ``log`` the ARN
    of the endpoint's log in CloudWatch or None, ``target`` the archive that was asked.
    """

    def __init__(self, target: str, status: int, said: str, log: str | None) -> None:
        hint = f"The model's log: {log}" if log and status != 400 else None
        super().__init__(f"{target} answered {status or 'an error'}: {said}", hint)
        self.target = target
        self.status = status
        self.said = said
        self.log = log


class ModelNotReady(EndpointError):
    """The endpoint was still loading the model when the caller's patience ended."""


class Throttled(EndpointError):
    """AWS asked to slow down, at every try."""


class EndpointUnavailable(EndpointError):
    """The endpoint cannot be reached, or answered 503 at every try."""


class NoAnswer(EndpointError):
    """The request was sent and no answer came: too late, or the connection broke. The model may have seen it."""


class EndpointNotFound(EndpointError):
    """There is no endpoint of this name in this account and region."""


class TargetNotFound(EndpointError):
    """The endpoint's model prefix holds no such archive."""


class AccessDenied(EndpointError):
    """AWS does not accept the credentials, or they do not allow this call."""


class AnswerError(EndpointError):
    """The model answered, but not what its content type or the number of inputs calls for."""


@dataclass(frozen=True)
class Failure:
    """One request of several that failed: which inputs were in it (their places in the list), and why."""

    inputs: range
    error: MmeError


class PartialFailure(EndpointError):
    """A list was cut into several requests, and not all were answered.

    ``failures`` says which inputs and why, ``not_tried`` which inputs were never sent, and ``answers`` what was
    answered: the inputs' places, and the answer as the model gave it.
    """

    def __init__(
        self, target: str, failures: Sequence[Failure], not_tried: Sequence[range], answers: Sequence[tuple[range, Any]]
    ) -> None:
        failed = ", ".join(_places(failure.inputs) for failure in failures)
        answered = sum(len(inputs) for inputs, _ in answers)
        rest = f"; never sent: {', '.join(map(_places, not_tried))}" if not_tried else ""
        first = failures[0].error
        super().__init__(
            f"{target} did not answer for inputs {failed} (counted from 0){rest}; {answered} were answered. "
            f"The first failure: {first.message}",
            first.hint,
        )
        self.target = target
        self.failures = tuple(failures)
        self.not_tried = tuple(not_tried)
        self.answers = tuple(answers)


def _places(inputs: range) -> str:
    return str(inputs.start) if len(inputs) == 1 else f"{inputs.start} to {inputs.stop - 1}"


THROTTLING = frozenset(
    {
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
"""The codes with which AWS asks to slow down (AWS SDKs and Tools Reference Guide, "Retry behavior")."""

_NEVER_SENT = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError)


def typed(caught: Exception, endpoint: str, target: str) -> MmeError:
    """The error for what boto3 raised when ``target`` on ``endpoint`` was asked: one of these, or a UsageError."""
    doing = f"ask {target} on endpoint {endpoint}"
    if isinstance(caught, ClientError):
        code, status = code_of(caught), status_of(caught)
        if code == "ModelError":
            return _model_error(caught, target)
        if code in ("ValidationError", "ValidationException"):
            return _not_valid(caught, endpoint, target)
        if code == "ModelNotReadyException":
            return ModelNotReady(f"{target} is still loading.", "Ask again in a minute.")
        if code in THROTTLING:
            kind: type[EndpointError] = Throttled
        elif code == "ServiceUnavailable" or status == 503:
            kind = EndpointUnavailable
        elif status in (401, 403) or concerns_every_call(caught):
            kind = AccessDenied
        else:
            kind = EndpointError
    elif isinstance(caught, (NoCredentialsError, PartialCredentialsError)):
        kind = AccessDenied
    elif isinstance(caught, _NEVER_SENT):
        kind = EndpointUnavailable
    elif isinstance(caught, ReadTimeoutError) or was_sent(caught):
        kind = NoAnswer
    else:
        kind = EndpointError
    error = explain(caught, doing, error=kind)
    if isinstance(error, EndpointUnavailable) and error.hint is None:
        return EndpointUnavailable(
            error.message, f"See what it is doing, and why: invoke status --endpoint {endpoint}."
        )
    if isinstance(error, NoAnswer) and error.hint is None:
        return NoAnswer(
            error.message, "The model may have seen the request. Ask again where asking twice does no harm."
        )
    return error


def was_sent(caught: Exception) -> bool:
    """Whether the connection broke after the request, or part of it, was on its way."""
    return type(caught).__name__ in ("ConnectionClosedError", "ResponseStreamingError", "IncompleteReadError")


def _model_error(error: ClientError, target: str) -> ModelError:
    """The container's own message out of SageMaker's ModelError."""
    response: Any = error.response
    try:
        status = int(response.get("OriginalStatusCode") or 0)
    except (TypeError, ValueError):
        status = 0
    original = str(response.get("OriginalMessage") or "").strip()
    if not original:
        original = str(response.get("Error", {}).get("Message", "")).strip()
    said = original
    try:
        parsed = json.loads(original)
        if isinstance(parsed, dict):
            said = str(parsed.get("message") or parsed.get("error") or original)
    except (ValueError, RecursionError):
        pass
    log = response.get("LogStreamArn")
    return ModelError(target, status, said, str(log) if log else None)


def _not_valid(error: ClientError, endpoint: str, target: str) -> EndpointError:
    message = str(error.response.get("Error", {}).get("Message", "")).strip()
    lower = message.lower()
    kind, hint = EndpointError, None
    if "validation error" in lower or lower.startswith("variant "):
        pass  # what is asked for is malformed, or a variant is missing: neither endpoint nor target is
    elif "endpoint" in lower and "not found" in lower:
        kind = EndpointNotFound
        hint = "Check --endpoint, MME_ENDPOINT and the region; terraform apply creates the endpoint."
    elif "model data" in lower or "target" in lower or "s3" in lower:
        kind = TargetNotFound
        hint = "See what is released: invoke releases. The endpoint reads the model prefix of its own bucket only."
    return kind(f"Endpoint {endpoint} refused the request for {target}: {message}", hint)
