"""The one encoder for text that leaves the container: answers, the log, messages.

Python's strings can hold what no encoding of Unicode can: lone surrogates, which JSON brings in as ``"\\ud800"``. They
leave as they came in, as JSON's escape.
"""

from __future__ import annotations

import json
import re
from typing import Any

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
MAX_HEADERS = 16 * 1024
# Headers that say how an answer travels: they are the server's own.
_TRAVEL = ("connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding")
_OWN = frozenset([*_TRAVEL, "upgrade", "date", "server-timing"])


def json_bytes(value: Any, **options: Any) -> bytes:
    """A value as JSON in UTF-8. ``options`` are json.dumps's. Raises TypeError or ValueError as json.dumps does."""
    # A surrogate can stand nowhere but in a string, where Python's escape and JSON's are written alike.
    return json.dumps(value, ensure_ascii=False, **options).encode("utf-8", "backslashreplace")


def encodable(text: str) -> bool:
    """Whether the text can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def header_problem(headers: object) -> str | None:
    """Why these cannot be further headers of an answer. None where they can: names and values in ``latin-1``, without
    those that say how it travels."""
    if not isinstance(headers, dict):
        return "headers that are not names with values"
    size = 0
    for name, value in headers.items():
        if not (isinstance(name, str) and _TOKEN.fullmatch(name)):
            return f"a header that is called {str(name)[:100]!r}"
        if name.lower() in _OWN:
            return f"the header {name[:100]}, which is the server's own"
        if not isinstance(value, str) or not all(char.isprintable() and ord(char) < 256 for char in value):
            return f"the header {name[:100]} to a value that is not printable latin-1"
        size += len(name) + len(value) + 4
    return f"more than {MAX_HEADERS} bytes of headers" if size > MAX_HEADERS else None
