"""From what a pipeline answers to the body of a response."""

import base64
import csv
import io
import json
from typing import Any

import numpy as np
import pipeline_media
import torch
from handler_common import JSON, NPY, negotiate
from pipeline_requests import CSV

PNG = "image/png"
WAV = ("audio/wav", "audio/x-wav", "audio/wave")


def write(prediction: Any, accept: str | None) -> Any:
    """The body, as `accept` has it. Raises ValueError for what this answer cannot be written as."""
    offered = [JSON]
    image, sound, table = _image_of(prediction), _sound_of(prediction), _table_of(prediction)
    if image is not None:
        offered.append(PNG)
    if sound is not None:
        offered += WAV
    if table is not None:
        offered.append(CSV)
    if isinstance(prediction, (list, np.ndarray, torch.Tensor)) and _depth(prediction) > 1:
        offered.append(NPY)
    kind = negotiate(accept, tuple(offered))
    if kind == PNG:
        return _png(image)
    if kind in WAV and sound is not None:
        return pipeline_media.wave_file(*sound)
    if kind == CSV and table is not None:
        numbers = [value for row in table for value in row.values() if isinstance(value, (float, np.floating))]
        _check_numbers("CSV", numbers)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
        return stream.getvalue().encode()
    if kind == NPY:
        buffer = io.BytesIO()
        array = np.asarray(prediction, np.float32)
        _check_numbers("npy", array)
        np.save(buffer, array, allow_pickle=False)
        return buffer.getvalue()
    try:
        return json.dumps(
            prediction, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
        ).encode()
    except ValueError as error:
        raise ArithmeticError(f"The model's answer cannot be written as JSON: {error}.") from None


def _check_numbers(form: str, numbers: Any) -> None:
    """As for JSON, which has no NaN: a model that answers it has answered nothing."""
    if not np.isfinite(numbers).all():
        raise ArithmeticError(f"The model's answer is not written as {form}: it holds NaN or infinite numbers.")


def picture(mask: Any) -> Any:
    from PIL import Image

    return Image.fromarray(np.asarray(mask).astype(bool))


def _image_of(prediction: Any) -> Any:
    image = prediction.get("depth") if isinstance(prediction, dict) else prediction
    return image if _is_image(image) else None


def _is_image(value: Any) -> bool:
    return hasattr(value, "save") and hasattr(value, "tobytes") and hasattr(value, "convert")


def _sound_of(prediction: Any) -> tuple[Any, int] | None:
    if isinstance(prediction, dict) and prediction.keys() == {"audio", "sampling_rate"}:
        return prediction["audio"], int(prediction["sampling_rate"])
    return None


def _table_of(prediction: Any) -> list[dict[str, Any]] | None:
    rows = [prediction] if isinstance(prediction, dict) else prediction
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    plain = (str, int, float, np.generic)
    alike = all(row.keys() == rows[0].keys() for row in rows)
    return rows if alike and all(isinstance(value, plain) for row in rows for value in row.values()) else None


def _depth(value: Any) -> int:
    """How deep lists of numbers are nested; 0 for what is no such list."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim
    if isinstance(value, list) and value:
        inner = _depth(value[0])
        return inner + 1 if inner or isinstance(value[0], (int, float)) else 0
    return 0


def _png(image: Any) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, format="PNG")
        return buffer.getvalue()


def _plain(value: Any) -> Any:
    """Values that JSON cannot hold: numpy's and torch's as numbers, images as PNG in base64."""
    if isinstance(value, torch.Tensor):
        return value.detach().float().tolist() if value.is_floating_point() else value.detach().tolist()
    if hasattr(value, "tolist"):
        return value.tolist()
    if _is_image(value):
        return base64.b64encode(_png(value)).decode()
    raise TypeError(f"the model's answer holds a {type(value).__name__}, which JSON does not know")
