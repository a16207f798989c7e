"""Requests as numpy arrays. npy is read without pickled objects, and npz, which needs SciPy, is not read at all."""

from __future__ import annotations

import io
import json
from typing import Any

from . import content_types, errors


def decode(obj: Any, content_type: str) -> Any:
    """The array that ``obj``, a body of this content type, holds. Raises UnsupportedFormatError."""
    import numpy as np

    if content_type == content_types.JSON:
        return np.array(json.loads(obj))
    if content_type == content_types.CSV:
        text = obj.decode("utf-8") if isinstance(obj, (bytes, bytearray)) else obj
        return np.genfromtxt(io.StringIO(text), dtype=None, delimiter=",", encoding="utf-8")
    if content_type == content_types.NPY:
        return np.load(io.BytesIO(obj), allow_pickle=False)
    raise errors.UnsupportedFormatError(content_type)
