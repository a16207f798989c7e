"""Arrays and what can be made one, as bodies of answers."""

from __future__ import annotations

import io
import json
from typing import Any

from . import content_types, errors

SUPPORTED_CONTENT_TYPES = {content_types.NPY, content_types.CSV, content_types.JSON}


def encode(array_like: Any, content_type: str) -> str | bytes:
    """The body of an answer of this content type. Raises UnsupportedFormatError."""
    import numpy as np

    if content_type == content_types.JSON:
        return json.dumps(array_like, default=_plain)
    if content_type == content_types.CSV:
        text = io.StringIO()
        np.savetxt(text, array_like, delimiter=",", fmt="%s")
        return text.getvalue()
    if content_type == content_types.NPY:
        buffer = io.BytesIO()
        np.save(buffer, array_like, allow_pickle=False)
        return buffer.getvalue()
    raise errors.UnsupportedFormatError(content_type)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
