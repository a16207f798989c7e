"""Reading requests and writing answers by the toolkit's names, done by the container's own codec."""

from __future__ import annotations

import json
from typing import Any

from mme.container.workers import codec

from . import content_types


def decode(content: bytes | str, content_type: str = content_types.JSON) -> Any:
    """The values in a request's body."""
    return codec.decode(content, content_type)


def encode(content: Any, accept_type: str = content_types.JSON) -> str | bytes:
    """An answer's body: text for JSON and CSV, bytes for everything else, as the toolkit has it."""
    body, kind = codec.negotiated(content, accept_type)
    return body.decode("utf-8") if kind in codec.TEXT_TYPES else body


def decode_json(content: bytes | str) -> Any:
    return json.loads(content)


def decode_csv(string_like: bytes | str) -> Any:
    return codec.decode(string_like, content_types.CSV)


def decode_image(bpayload: bytes) -> Any:
    return codec.decode(bytes(bpayload), content_types.X_IMAGE)


def decode_audio(bpayload: bytes) -> Any:
    return codec.decode(bytes(bpayload), content_types.X_AUDIO)


def encode_json(content: Any, accept_type: str | None = None) -> str:
    return codec.encode(content, content_types.JSON).decode("utf-8")


def encode_csv(content: Any, accept_type: str | None = None) -> str:
    return codec.encode(content, content_types.CSV).decode("utf-8")


def encode_image(image: Any, accept_type: str = content_types.PNG) -> bytes:
    return codec.encode(image, accept_type)
