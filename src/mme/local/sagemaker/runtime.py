"""The SageMaker runtime: ``POST /endpoints/NAME/invocations``, answered by the endpoint's container.

Speaks WSGI. Every refusal has the status, the code and the text that SageMaker's own has, so that boto3 raises the
same exception for it.
"""

from __future__ import annotations

import functools
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from mme.local.requests import signed_service
from mme.local.sagemaker import constraints
from mme.local.sagemaker.errors import BadTarget, InvokeFailed, ModelFailed, NotReady, Unavailable
from mme.local.sagemaker.hosting import Chosen, Hosting
from mme.local.settings import partition_of

MAX_BODY = 6_291_456
"""Bytes. SageMaker refuses a larger request before any container sees it."""

_PATH = re.compile(r"^/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations)$")
_NOT_FOR_MANY_MODELS = ("TargetContainerHostname", "InferenceComponentName", "EnableExplanations")


@dataclass(frozen=True)
class Answer:
    """A finished HTTP response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class EndpointFacts:
    """What the records say about an endpoint at this moment."""

    name: str
    status: str
    multi_model: bool


def matches(environ: Mapping[str, Any]) -> bool:
    """Whether this request is for the SageMaker runtime (and not for a bucket that is called ``endpoints``)."""
    if environ.get("REQUEST_METHOD") != "POST" or not _PATH.match(str(environ.get("PATH_INFO", ""))):
        return False
    return signed_service(environ) != "s3"


class Runtime:
    """Answers invocations."""

    def __init__(
        self,
        hosting: Hosting,
        account: str,
        find: Callable[[str, str], EndpointFacts | None],
        authorize: Callable[[Mapping[str, Any], str, str, str | None], str | None],
    ) -> None:
        """``find`` looks an endpoint up by (region, name).

        ``authorize(environ, region, endpoint, target)`` answers None, or the message of AccessDeniedException.
        """
        self._hosting = hosting
        self._account = account
        self._find = find
        self._authorize = authorize

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any], region: str) -> Iterable[bytes]:
        answer = self.answer(environ, region)
        headers = [
            *answer.headers,
            ("x-amzn-RequestId", str(uuid.uuid4())),
            ("Content-Length", str(len(answer.body))),
        ]
        start_response(f"{answer.status} {_REASONS.get(answer.status, 'Error')}", headers)
        return [answer.body]

    def answer(self, environ: Mapping[str, Any], region: str) -> Answer:
        """One request from start to end; never raises for what the client or the model did."""
        match = _PATH.match(environ["PATH_INFO"])
        if match is None:
            return _error(404, "UnknownOperationException", {})
        name, operation = unquote(match[1]), match[2]
        asked = {"EndpointName": name, **_parameters(environ)}
        target = asked.get("TargetModel")
        body = _read(environ)

        denied = self._authorize(environ, region, name, target)
        if denied is not None:
            return _error(403, "AccessDeniedException", {"Message": denied})
        if body is None:
            return Answer(
                413,
                (("Content-Type", "application/json"),),
                json.dumps({"message": f"HTTP content length exceeded {MAX_BODY} bytes."}).encode(),
            )
        words = constraints.problem(_input_shape(), {**asked, "Body": body}) if operation == "invocations" else None
        if words is not None:
            return _invalid(None, words)
        endpoint = self._find(region, name)
        if endpoint is None or endpoint.status == "Deleting":
            return _invalid(None, f"Endpoint {name} of account {self._account} not found.")
        if operation != "invocations":
            return _invalid(None, f"Endpoint {name} is a multi-model endpoint and supports InvokeEndpoint only.")
        if not endpoint.multi_model and target is not None:
            return _invalid(
                "TARGET_MODEL_HEADER_NOT_SUPPORTED",
                f"Endpoint {name} is not a multi-model endpoint and does not support target model header.",
            )
        if endpoint.status in ("Creating", "Failed"):
            return _error(
                503,
                "ServiceUnavailable",
                {"Message": f"Endpoint {name} is not in service; its status is {endpoint.status}."},
            )
        if target is None:
            return _invalid("TARGET_MODEL_HEADER_MISSING", f"Request {uuid.uuid4()} is missing a target model header.")
        for parameter in _NOT_FOR_MANY_MODELS:
            if asked.get(parameter):
                return _invalid(None, f"Endpoint {name} is a multi-model endpoint and does not support {parameter}.")
        return self._invoke(environ, region, name, target, body)

    def _invoke(self, environ: Mapping[str, Any], region: str, name: str, target: str, body: bytes) -> Answer:
        wanted = environ.get("HTTP_X_AMZN_SAGEMAKER_TARGET_VARIANT")
        with self._hosting.chosen(region, name, wanted) as chosen:
            if chosen is None and wanted is not None:
                return _invalid(None, f"Variant {wanted} of endpoint {name} not found.")
            if chosen is None:
                words = f"No variant of endpoint {name} takes traffic."
                return _error(503, "ServiceUnavailable", {"Message": words})
            return self._ask(chosen, environ, region, name, target, body)

    def _ask(
        self, chosen: Chosen, environ: Mapping[str, Any], region: str, name: str, target: str, body: bytes
    ) -> Answer:
        variant = chosen.fleet.spec.name
        counted, by_model = 200, True
        try:
            reply = chosen.instance.invoke(target, body, _container_headers(environ, target))
        except InvokeFailed as problem:
            answer = self._failure(problem, region, name, variant)
            by_model = isinstance(problem, ModelFailed)
            counted = problem.status or 500 if isinstance(problem, ModelFailed) else answer.status
        else:
            headers = [
                ("Content-Type", reply.headers.get("content-type", "application/octet-stream")),
                ("x-Amzn-Invoked-Production-Variant", variant),
            ]
            for header in _ANSWERED:
                if reply.headers.get(header.lower()) is not None:
                    headers.append((header, reply.headers[header.lower()]))
            answer = Answer(200, tuple(headers), reply.body)
        chosen.fleet.answered(counted, by_model)
        return answer

    def _failure(self, problem: InvokeFailed, region: str, name: str, variant: str) -> Answer:
        if isinstance(problem, BadTarget):
            return _invalid(problem.code, str(problem))
        if isinstance(problem, NotReady):
            return _error(429, "ModelNotReadyException", {"Message": str(problem)})
        if isinstance(problem, Unavailable):
            return _error(503, "ServiceUnavailable", {"Message": str(problem)})
        status = problem.status if isinstance(problem, ModelFailed) else 500
        side = "client" if 400 <= status < 500 else "server"
        group = f"/aws/sagemaker/Endpoints/{name}"
        message = (
            f'Received {side} error ({status}) from primary with message "{problem}". See https://{region}.console.aws.'
            f"amazon.com/cloudwatch/home?region={region}#logEventViewer:group={group} in account {self._account} for "
            "more information."
        )
        return _error(
            424,
            "ModelError",
            {
                "ErrorCode": "CLIENT_ERROR_FROM_MODEL" if side == "client" else "INTERNAL_FAILURE_FROM_MODEL",
                "LogStreamArn": f"arn:{partition_of(region)}:logs:{region}:{self._account}:log-group:{group}",
                "Message": message,
                "OriginalMessage": str(problem),
                "OriginalStatusCode": status,
            },
        )


@functools.cache
def _input_shape() -> Any:
    """What InvokeEndpoint takes, as botocore has it."""
    from moto.core.utils import get_service_model

    return get_service_model("sagemaker-runtime").operation_model("InvokeEndpoint").input_shape


def _parameters(environ: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of InvokeEndpoint that come as headers."""
    parameters = {}
    for parameter, shape in _input_shape().members.items():
        header = str(shape.serialization.get("name", "")).upper().replace("-", "_")
        value = environ.get(header if header == "CONTENT_TYPE" else f"HTTP_{header}")
        if shape.serialization.get("location") == "header" and value:
            parameters[parameter] = str(value)
    return parameters


_PASSED_ON = ("ContentType", "Accept", "CustomAttributes", "InferenceId", "SessionId")
_ANSWERED = (
    "X-Amzn-SageMaker-Custom-Attributes",
    "X-Amzn-SageMaker-New-Session-Id",
    "X-Amzn-SageMaker-Closed-Session-Id",
)
"""What a container may say besides its answer."""


def _container_headers(environ: Mapping[str, Any], target: str) -> dict[str, str]:
    asked, members = _parameters(environ), _input_shape().members
    passed = {members[name].serialization["name"]: asked[name] for name in _PASSED_ON if name in asked}
    return {"X-Amzn-SageMaker-Target-Model": target, **passed}


def _read(environ: Mapping[str, Any]) -> bytes | None:
    """The request's body; None when it is too large (it is then read and dropped, so that the answer arrives)."""
    stream = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH")
    left = int(length) if length else (2**62 if environ.get("wsgi.input_terminated") else 0)
    if left > MAX_BODY and length:
        _drop(stream, left)
        return None
    chunks = []
    total = 0
    while left > 0:
        chunk = stream.read(min(left, 1 << 20))
        if not chunk:
            break
        total += len(chunk)
        left -= len(chunk)
        if total > MAX_BODY:
            _drop(stream, left)
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def drop(environ: Mapping[str, Any]) -> None:
    """Reads what is left of a refused request, so that its sender gets to see the answer."""
    length = environ.get("CONTENT_LENGTH")
    _drop(environ["wsgi.input"], int(length) if length else 0)


def _drop(stream: Any, left: int) -> None:
    left = min(left, 1 << 30)
    while left > 0:
        chunk = stream.read(min(left, 1 << 20))
        if not chunk:
            return
        left -= len(chunk)


def _invalid(code: str | None, message: str) -> Answer:
    return _error(400, "ValidationError", {"ErrorCode": code, "Message": message} if code else {"Message": message})


def _error(status: int, kind: str, body: Mapping[str, Any]) -> Answer:
    return Answer(
        status,
        (("Content-Type", "application/json"), ("x-amzn-ErrorType", kind)),
        json.dumps(body).encode(),
    )


_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    413: "Request Entity Too Large",
    424: "Failed Dependency",
    429: "Too Many Requests",
    503: "Service Unavailable",
}
