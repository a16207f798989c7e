"""Answers of the local AWS itself, in the shape that the caller's protocol reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any
from xml.sax.saxutils import escape

from mme.local.console import log
from mme.local.requests import signed_service

# -- saying no


def json_or_query(environ: Mapping[str, Any], json_code: str, query_code: str) -> str:
    return (
        json_code if environ.get("HTTP_X_AMZ_TARGET") or "json" in str(environ.get("CONTENT_TYPE", "")) else query_code
    )


def refusal(service: str, status: int, code: str, message: str) -> Callable[[Callable[..., Any]], Iterable[bytes]]:
    """A finished answer in the shape that clients of the service read."""
    words = escape(message)
    if service == "s3":
        kind, text = "application/xml", f"<Error><Code>{code}</Code><Message>{words}</Message></Error>"
    elif service == "ec2":
        kind = "application/xml"
        text = f"<Response><Errors><Error><Code>{code}</Code><Message>{words}</Message></Error></Errors></Response>"
    elif service in ("iam", "sts", "sns", "autoscaling"):
        kind = "application/xml"
        error = f"<Type>Sender</Type><Code>{code}</Code><Message>{words}</Message>"
        text = f"<ErrorResponse><Error>{error}</Error></ErrorResponse>"
    else:
        kind, text = "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message})
    body = text.encode()

    def answer(start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("x-amzn-ErrorType", code)]
        start_response(f"{status} {HTTPStatus(status).phrase}", headers)
        return [body]

    return answer


def unknown_operation(
    environ: Mapping[str, Any], start_response: Callable[..., Any], code: str, words: str
) -> Iterable[bytes]:
    """An error of the local AWS itself, in the shape that the caller's protocol reads."""
    message = f"The local AWS cannot do this: {words}"
    log(f"{environ.get('REQUEST_METHOD')} {environ.get('PATH_INFO')} {environ.get('HTTP_X_AMZ_TARGET', '')}: {words}")
    if environ.get("HTTP_X_AMZ_TARGET") or "json" in str(environ.get("CONTENT_TYPE", "")):
        kind, body = "application/json", json.dumps({"__type": code, "message": message})
    else:
        error = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
        s3 = signed_service(environ) == "s3"
        body = f"<Error>{error}</Error>" if s3 else f"<ErrorResponse><Error>{error}</Error></ErrorResponse>"
        kind = "application/xml"
    data = body.encode()
    headers = [("Content-Type", kind), ("Content-Length", str(len(data))), ("x-amzn-ErrorType", code)]
    start_response("400 Bad Request", headers)
    return [data]
