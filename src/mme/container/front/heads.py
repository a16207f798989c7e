"""The heads of HTTP answers."""

from __future__ import annotations

from http import HTTPStatus

JSON_TYPE = "application/json"
WITHOUT_BODY = (204, 304)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_REASONS = {status.value: status.phrase for status in HTTPStatus}


def head(
    status: int, length: int, content_type: str = JSON_TYPE, extra: str = "", *, keep_alive: bool = False
) -> bytes:
    """A status line and headers, up to the empty line. ``length`` is the body's, in bytes; ``extra``: further headers,
    each with its line's end."""
    described = "" if status in WITHOUT_BODY else f"Content-Type: {clean(content_type)}\r\nContent-Length: {length}\r\n"
    closing = "" if keep_alive else "Connection: close\r\n"
    text = f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n{described}{extra}{closing}\r\n"
    return text.encode("latin-1", "replace")


def clean(value: str) -> str:
    """A header's value without control characters: a line break would let a handler's answer add headers."""
    return value if value.isprintable() else "".join(char if char.isprintable() else " " for char in value)
