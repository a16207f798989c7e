"""Reading a request: who signed it, for which service and region, and what it asks for."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

# -- reading requests


_SCOPE = re.compile(r"([^/\s]+)/(\d{8})/([a-z0-9-]+)/([A-Za-z0-9._-]+)/aws4_request")


def _credential(environ: Mapping[str, Any]) -> list[str]:
    """Access key, date, region, service of the signature: in the header, or in the query of a presigned URL.

    Empty where there is none, or one that can be read in more ways than one.
    """
    header = str(environ.get("HTTP_AUTHORIZATION", ""))
    query = parse_qsl(str(environ.get("QUERY_STRING", "")))
    presigned = [value for name, value in query if name.lower() == "x-amz-credential"]
    if header:
        credentials = re.findall(r"Credential=([^,\s]*)", header)
    else:
        credentials = presigned
        older = dict(query)
        if not credentials and "AWSAccessKeyId" in older and "Signature" in older:  # which boto3 still makes for S3
            credentials = [f"{older['AWSAccessKeyId']}/20000101/us-east-1/s3/aws4_request"]
    match = _SCOPE.fullmatch(credentials[0]) if len(credentials) == 1 else None
    return [*match.groups()] if match else []


def pin(environ: dict[str, Any]) -> None:
    """Rewrite the signature so that moto reads the same key, region and service in it."""
    scope = _credential(environ)
    if scope:
        environ["HTTP_AUTHORIZATION"] = (
            f"AWS4-HMAC-SHA256 Credential={'/'.join(scope)}/aws4_request, SignedHeaders=host, Signature=0"
        )


def access_key(environ: Mapping[str, Any]) -> str:
    """The access key that signed the request; empty when it is not signed."""
    scope = _credential(environ)
    return scope[0] if scope else ""


def signed_service(environ: Mapping[str, Any]) -> str | None:
    """The service in the signature's scope; None when the request is not signed."""
    scope = _credential(environ)
    return scope[3].lower() if scope else None


def content_length(environ: Mapping[str, Any]) -> int | None:
    """The announced length of the body in bytes, 0 where there is none; None for one that is not a number."""
    text = str(environ.get("CONTENT_LENGTH") or "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


_MAX_PEEK = 4 << 20


def peek(environ: dict[str, Any]) -> bytes:
    """The request's body, which the request's handler can read again."""
    length = content_length(environ) or 0
    body = environ["wsgi.input"].read(min(length, _MAX_PEEK)) if length else b""
    rest = environ["wsgi.input"]
    environ["wsgi.input"] = io.BytesIO(body) if length <= _MAX_PEEK else _Joined(body, rest)
    return bytes(body)


def receive_body(environ: dict[str, Any]) -> None:
    """Read the request's body to its end; the request's handler can read it again.

    Bodies above the size of requests other than an object's content go to a temporary file.
    """
    stream, ends = environ["wsgi.input"], bool(environ.get("wsgi.input_terminated"))  # where it came in chunks
    left = 1 << 62 if ends else content_length(environ) or 0
    received = tempfile.SpooledTemporaryFile(_MAX_PEEK)  # noqa: SIM115 (closed with the request)
    while left:
        data = stream.read(min(left, 1 << 20))
        if not data:
            break
        received.write(data)
        left -= len(data)
    received.seek(0)
    environ["wsgi.input"] = received


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
    """The action that the request names; None where it names none, or more than one in different places.

    Services look for it in different places and in a different order, so what would be read in two ways is not read.
    """
    named: list[str] = []
    target = str(environ.get("HTTP_X_AMZ_TARGET", ""))
    if target:
        named.append(target.rpartition(".")[2])
    match = re.search(r"/operation/(\w+)$", str(environ.get("PATH_INFO", "")))
    if match:
        named.append(match[1])
    query = str(environ.get("QUERY_STRING", ""))
    for text in (query, body.decode("utf-8", "replace")):
        named += [value for name, value in parse_qsl(text) if name == "Action"]
    return named[0] if len(set(named)) == 1 else None


def region_of(environ: Mapping[str, Any], default: str) -> str:
    """The region that a request was signed for."""
    scope = _credential(environ)
    return scope[2] if scope else default
