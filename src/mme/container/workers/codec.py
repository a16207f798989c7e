"""Default decoding of requests and encoding of answers: what the Hugging Face toolkit does, without its gaps.

Differences on purpose: parameters of a content type (``; charset=utf-8``) are understood, and npy is read and written
without pickled objects (a pickle in a request would run code of the sender's choice).
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from mme.container.errors import ServingError
from mme.container.text import json_bytes

JSON = "application/json"
CSV = "text/csv"
NPY = "application/x-npy"
TEXT_TYPES = (JSON, CSV)
IMAGES = ("image/jpeg", "image/png", "image/tiff", "image/bmp", "image/gif", "image/webp", "image/x-image")
AUDIO = ("audio/x-flac", "audio/mpeg", "audio/wave", "audio/ogg", "audio/x-audio")


def media_type(header: str | None) -> str:
    """``application/json; charset=utf-8`` -> ``application/json``; JSON where there is no header."""
    return (header or "").split(";")[0].strip().lower() or JSON


def accepted(header: str | None) -> str:
    """The first type of an Accept header, JSON for none and for ``*/*``."""
    first = (header or "").split(",")[0].split(";")[0].strip().lower()
    return JSON if first in ("", "*/*", "application/*") else first


def decode(data: bytes | str, content_type: str) -> Any:
    """A request's body as Python values. Raises ValueError for a malformed one, 415 for an unknown type."""
    kind = media_type(content_type)
    if kind == JSON:
        return json.loads(data)
    if kind == CSV:
        return _decode_csv(data if isinstance(data, str) else data.decode("utf-8"))
    raw = data if isinstance(data, bytes) else data.encode()
    if kind == NPY:
        import numpy as np

        return np.load(io.BytesIO(raw), allow_pickle=False)
    if kind in IMAGES:
        from PIL import Image  # type: ignore[import-not-found,unused-ignore]

        return {"inputs": Image.open(io.BytesIO(raw)).convert("RGB")}
    if kind in AUDIO:
        return {"inputs": raw}
    raise ServingError(
        415, "UnsupportedMediaTypeException", f"Content type {kind} is not supported; send {JSON}, {CSV} or {NPY}"
    )


def _decode_csv(text: str) -> dict[str, Any]:
    rows = list(csv.DictReader(io.StringIO(text)))
    header = text.splitlines()[0].lower() if text else ""
    if not rows or not any(name in header for name in ("question", "context", "inputs")):
        raise ValueError("The CSV needs a header row with a column called inputs, or question and context")
    return {"inputs": [row["inputs"] for row in rows] if "inputs" in rows[0] else rows}


def encode(value: Any, accept: str) -> bytes:
    """A prediction as bytes of the accepted type. Raises 406 for a type that cannot be produced."""
    kind = accepted(accept)
    if kind == JSON:
        return json_bytes(value, allow_nan=False, separators=(",", ":"), default=_plain)
    if kind == NPY:
        import numpy as np

        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if array.dtype.hasobject:
            raise ServingError(406, "NotAcceptableException", f"This answer is no array; accept {JSON} instead")
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return buffer.getvalue()
    if kind == CSV:
        rows = value if isinstance(value, list) else [value]
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise ServingError(406, "NotAcceptableException", f"This answer is no table; accept {JSON} instead")
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue().encode()
    if kind in IMAGES and hasattr(value, "save"):
        with io.BytesIO() as out:
            value.save(out, format="PNG" if kind == "image/x-image" else kind.split("/")[1].upper())
            return out.getvalue()
    raise ServingError(406, "NotAcceptableException", f"Cannot answer as {kind}; accept {JSON}, {CSV} or {NPY}")


def _plain(value: Any) -> Any:
    """What JSON does not know: numpy and torch values, dates, images."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return str(value)
    if hasattr(value, "save") and hasattr(value, "tobytes"):
        import base64

        with io.BytesIO() as out:
            value.save(out, format="PNG")
            return base64.b64encode(out.getvalue()).decode()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON; give an output_fn that does it")
