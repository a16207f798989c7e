"""Trying a model from the page: a name or a target and an input, to what came back."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from mme import channels, releases
from mme.aws import code_of, explained
from mme.errors import EndpointError, UsageError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_sagemaker_runtime import SageMakerRuntimeClient

_TEXT = ("text/", "application/json", "application/xml")


def resolve(s3: S3Client, store: releases.Store, name: str) -> str:
    """The target model that a name means now: its channel's, drawn by weight, else its newest version's."""
    split, _ = channels.current_split(s3, store, name)
    return channels.pick(split)


def predict(
    runtime: SageMakerRuntimeClient,
    endpoint: str,
    target: str,
    body: bytes,
    content_type: str,
    accept: str,
    variant: str | None = None,
) -> dict[str, Any]:
    """One request, and the answer as JSON values.

    ``seconds`` is the time that this took here. An answer of text is ``text``, another one ``base64``; one that is no
    answer has ``error``: a ``code``, a ``message``, and for a model's own error its ``status``.
    """
    more: Any = {"TargetVariant": variant} if variant else {}
    began = time.monotonic()
    shown: dict[str, Any] = {"target": target}
    try:
        with explained(f"ask {target} on endpoint {endpoint}", error=EndpointError):
            try:
                answer = runtime.invoke_endpoint(
                    EndpointName=endpoint,
                    TargetModel=target,
                    Body=body,
                    ContentType=content_type,
                    Accept=accept,
                    **more,
                )
                data = answer["Body"].read()
            except ClientError as error:
                if code_of(error) not in ("ModelError", "ModelNotReadyException", "ValidationError"):
                    raise
                return {**shown, "seconds": time.monotonic() - began, "error": _said(error)}
    except EndpointError as error:
        said = {"code": "", "message": str(error)}
        return {**shown, "seconds": time.monotonic() - began, "error": said}
    shown["seconds"] = time.monotonic() - began
    shown["variant"] = answer.get("InvokedProductionVariant", "")
    shown["content_type"] = answer.get("ContentType", "")
    shown["bytes"] = len(data)
    kind = shown["content_type"].partition(";")[0].strip().lower()
    if kind.startswith(_TEXT) or kind.endswith("+json"):
        shown["text"] = data.decode("utf-8", "replace")
    else:
        shown["base64"] = base64.b64encode(data).decode()
    return shown


def check_type(text: str) -> str:
    """A content type as it may stand in a header. Raises UsageError."""
    if not (0 < len(text) <= 200 and text.isascii() and text.isprintable() and "/" in text):
        raise UsageError(f"{text[:80]!r} is not a content type, as in application/json.")
    return text


def _said(error: ClientError) -> dict[str, Any]:
    response: Any = error.response
    original = str(response.get("OriginalMessage") or "").strip()
    message = original or str(response.get("Error", {}).get("Message") or response.get("Message") or error)
    said: dict[str, Any] = {"code": code_of(error), "message": message[:20_000]}
    if response.get("OriginalStatusCode"):
        said["status"] = int(response["OriginalStatusCode"])
    return said
