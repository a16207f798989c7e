"""The one encoder for text that leaves the container: answers, the log, messages.

Python's strings can hold what no encoding of Unicode can: lone surrogates, which JSON brings in as ``"\\ud800"``. They
leave as they came in, as JSON's escape.
"""

from __future__ import annotations

import json
from typing import Any


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
