"""Reading a request: who signed it, for which service and region, and what it asks for."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

# -- reading requests


def _credential(environ: Mapping[str, Any]) -> list[str]:
    """Access key, date, region, service of the signature: in the header, or in the query of a presigned URL."""
    header = str(environ.get("HTTP_AUTHORIZATION", ""))
    scope = header.partition("Credential=")[2].partition(",")[0]
    if scope:
        return scope.split("/")
    query = dict(parse_qsl(str(environ.get("QUERY_STRING", ""))))
    if "X-Amz-Credential" in query:
        return query["X-Amz-Credential"].split("/")
    if "AWSAccessKeyId" in query and "Signature" in query:  # the older kind, which boto3 still makes for S3
        return [query["AWSAccessKeyId"], "", "us-east-1", "s3", "aws2_request"]
    return []


def access_key(environ: Mapping[str, Any]) -> str:
    """The access key that signed the request; empty when it is not signed."""
    scope = _credential(environ)
    return scope[0] if scope else ""


def signed_service(environ: Mapping[str, Any]) -> str | None:
    """The service in the signature's scope; None when the request is not signed."""
    scope = _credential(environ)
    return scope[3].lower() if len(scope) >= 5 else None


_MAX_PEEK = 4 << 20


def peek(environ: dict[str, Any]) -> bytes:
    """The request's body, left in place for whoever handles the request."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(min(length, _MAX_PEEK)) if length else b""
    rest = environ["wsgi.input"]
    environ["wsgi.input"] = io.BytesIO(body) if length <= _MAX_PEEK else _Joined(body, rest)
    return bytes(body)


class _Joined(io.RawIOBase):
    """What was read already, then the rest of the stream."""

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first = io.BytesIO(first)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._first.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def action_name(environ: Mapping[str, Any], body: bytes) -> str | None:
    target = str(environ.get("HTTP_X_AMZ_TARGET", ""))
    if target:
        return target.rpartition(".")[2]
    match = re.search(r"/operation/(\w+)$", str(environ.get("PATH_INFO", "")))
    if match:
        return match[1]
    form = {**dict(parse_qsl(str(environ.get("QUERY_STRING", "")))), **dict(parse_qsl(body.decode("utf-8", "replace")))}
    return form.get("Action")


def region_of(environ: Mapping[str, Any], default: str) -> str:
    """The region that a request was signed for."""
    scope = _credential(environ)
    return scope[2] if len(scope) >= 5 and scope[2] else default
