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


# The content type of a handler's answer where the client accepts any type of a kind (text/*).
_ANY = {"*/*": JSON, "application/*": JSON, "text/*": CSV, "image/*": "image/png"}
_CHARSETS = ("ascii", "cp1252", "iso-8859-1", "iso-8859-15", "latin-1", "latin1", "us-ascii", "utf-16", "utf-8", "utf8")


def acceptable(header: str | None) -> list[str]:
    """The types of an Accept header, the most wanted first (RFC 9110, 12.5.1): those of equal weight in the header's
    order, without those of weight 0; JSON for none."""
    weighed: list[tuple[float, str]] = []
    for part in (header or "").lower().split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        if kind:
            weighed.append((_weight(weight), _ANY.get(kind, kind)))
    if not weighed:
        return [JSON]
    refused = {kind for weight, kind in weighed if weight == 0}
    kinds = [kind for weight, kind in sorted(weighed, key=lambda pair: -pair[0]) if weight > 0 and kind not in refused]
    return list(dict.fromkeys(kinds))


def _weight(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 1.0


def accepted(header: str | None) -> str:
    """The most wanted type of an Accept header, JSON where it names none."""
    if header == JSON:  # the usual case, of which little is to be computed
        return JSON
    kind = next(iter(acceptable(header)), JSON)
    return "application/octet-stream" if "*" in kind else kind


def text(body: bytes, content_type: str) -> str:
    """A body of text in the charset that its content type names, UTF-8 where it names none. Raises ValueError where it
    is not, and 415 for a charset that is not known."""
    if ";" not in content_type:
        return body.decode()
    parameters = (part.partition("=") for part in content_type.split(";")[1:])
    named = next((value for name, _, value in parameters if name.strip().lower() == "charset"), "utf-8")
    charset = named.strip().strip("\"'").lower().replace("_", "-").replace("windows-", "cp")
    if charset not in _CHARSETS:
        raise ServingError(
            415, "UnsupportedMediaTypeException", f"The charset {named!r:.100} is not supported; send UTF-8"
        )
    return body.decode(charset)


def decode(data: bytes | str, content_type: str) -> Any:
    """A request's body as Python values. Raises ValueError for a malformed one, 415 for an unknown type."""
    kind = media_type(content_type)
    if kind == JSON:
        try:
            return json.loads(data)
        except RecursionError:
            raise ValueError("The body is JSON nested too deeply") from None
    if kind == CSV:
        return _decode_csv(data if isinstance(data, str) else text(data, content_type))
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


def _decode_csv(table: str) -> dict[str, Any]:
    rows = list(csv.DictReader(io.StringIO(table)))
    header = table.splitlines()[0].lower() if table else ""
    if not rows or not any(name in header for name in ("question", "context", "inputs")):
        raise ValueError("The CSV needs a header row with a column called inputs, or question and context")
    return {"inputs": [row["inputs"] for row in rows] if "inputs" in rows[0] else rows}


def encode(value: Any, accept: str) -> bytes:
    """A prediction as bytes of the most wanted type that can be produced. Raises 406 where there is none."""
    return negotiated(value, accept)[0]


def negotiated(value: Any, accept: str) -> tuple[bytes, str]:
    """The same, and its content type."""
    first: ServingError | None = None
    for kind in acceptable(accept):
        try:
            return _encode(value, kind), kind
        except ServingError as error:
            first = first or error
    raise first or ServingError(406, "NotAcceptableException", f"Accept {accept:.100} leaves nothing; accept {JSON}")


def _encode(value: Any, kind: str) -> bytes:
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
    """Values that JSON cannot hold: numpy's and torch's, dates, images."""
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
