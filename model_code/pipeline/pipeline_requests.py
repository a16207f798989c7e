"""Turns a request's body into the inputs of a task's pipeline."""

import csv
import io
from dataclasses import dataclass
from typing import Any

import pipeline_media
from handler_common import JSON, TEXT, read_body

CSV = "text/csv"
BYTES = "application/octet-stream"


@dataclass(frozen=True)
class Request:
    """One request, its inputs not yet looked at. ``media`` is the body where it is a file: image, audio, video, or
    "any" where its type does not say which."""

    inputs: Any
    parameters: dict[str, Any]
    media: str | None = None


@dataclass(frozen=True)
class Limits:
    """The bounds of a request, from the settings."""

    max_inputs: int
    max_pixels: int
    max_audio_seconds: float


def read(data: Any, content_type: str | None) -> Request:
    """Raises ValueError with what is wrong with the body."""
    kind, _, rest = (content_type or JSON).partition(";")
    kind = kind.strip().lower()
    if kind == JSON:
        return _from_json(read_body(data, content_type))
    if kind == TEXT:
        return Request(read_body(data, content_type), {})
    if kind == CSV:
        return Request(_from_csv(read_body(data, f"{TEXT};{rest}")), {})
    raw = data.encode() if isinstance(data, str) else bytes(data)
    if kind == "audio/l16":
        return Request(pipeline_media.raw_audio(raw, *_l16(rest)), {}, "audio")
    medium = kind.partition("/")[0]
    if medium in ("image", "audio", "video"):
        return Request(raw, {}, medium)
    if kind == BYTES:
        return Request(raw, {}, "any")
    raise ValueError(
        f"Content type {kind!r} is not supported. Send {JSON}, {TEXT}, {CSV}, or an image, sound or a video as it is."
    )


def _l16(rest: str) -> tuple[int, int]:
    parameters = {"rate": 44100, "channels": 1}
    for part in rest.split(";"):
        name, _, value = part.strip().partition("=")
        if name.lower() in parameters:
            if not value.strip().isdigit():
                raise ValueError(f"audio/L16: {name} must be a whole number, not {value!r}.")
            parameters[name.lower()] = int(value)
    if not 1_000 <= parameters["rate"] <= 768_000 or not 1 <= parameters["channels"] <= 16:
        raise ValueError("audio/L16: the rate must be 1000 to 768000, and channels 1 to 16.")
    return parameters["rate"], parameters["channels"]


def _from_json(body: Any) -> Request:
    """{"inputs": ..., "parameters": {...}}; and, as the toolkit has it, the inputs' own fields without "inputs"."""
    if not isinstance(body, dict):
        return Request(body, {})
    parameters = body.pop("parameters", None)
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise ValueError('"parameters" must be a JSON object.')
    if "inputs" not in body:
        if not body:
            raise ValueError('The request has no "inputs".')
        return Request(body, parameters)
    inputs = body.pop("inputs")
    if body:
        raise ValueError(f'Unknown field {next(iter(body))!r}. A request is {{"inputs": ..., "parameters": {{...}}}}.')
    return Request(inputs, parameters)


def _from_csv(text: str) -> Any:
    """A column "inputs" of texts, or columns "question" and "context", as the toolkit has it."""
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise ValueError(f"The body is not valid CSV: {error}.") from None
    if rows and "inputs" in rows[0]:
        return [row["inputs"] for row in rows]
    if rows and {"question", "context"} <= set(rows[0]):
        return [{"question": row["question"], "context": row["context"]} for row in rows]
    raise ValueError('The CSV needs a header and rows below it: a column "inputs", or "question" and "context".')


# --- What a task takes -----------------------------------------------------------------------------------------------


def inputs_of(request: Request, kind: str, limits: Limits, rate: int = 0, frames: tuple[int, int] = (0, 0)) -> Any:
    """The request's inputs as the pipeline takes them: one, or a list. Raises ValueError.

    ``rate``: the model's samples a second. ``frames``: how many frames of a video it reads, and the step between them.
    """
    given = request.inputs
    if request.media is not None and request.media != "any" and request.media != kind:
        raise ValueError(f"The body is {_words(request.media)}; this model's inputs are {_words(kind)}.")
    if request.media == "any" and kind not in ("image", "audio", "video"):
        raise ValueError(f"The body is a file; this model's inputs are {_words(kind)}, as {JSON}.")
    if kind == "question" and isinstance(given, dict):
        given = _broadcast(given)
    if kind in ("text or messages", "image and text") and _is_messages(given):
        return _messages(given, "inputs", limits)
    if kind == "two images" and isinstance(given, list) and len(given) == 2 and not isinstance(given[0], list):
        return _one(given, "inputs", kind, limits, rate, frames)
    if not isinstance(given, list):
        return _one(given, "inputs", kind, limits, rate, frames)
    if not given:
        raise ValueError('"inputs" is an empty list.')
    if len(given) > limits.max_inputs:
        raise ValueError(f"inputs has {len(given)} entries; at most {limits.max_inputs} are taken in one request.")
    return [_one(item, f"inputs[{place}]", kind, limits, rate, frames) for place, item in enumerate(given)]


def _words(kind: str) -> str:
    return {
        "text": "texts",
        "text or pair": "texts",
        "audio": "sound",
        "question": 'questions: {"question": ..., "context": ...}',
        "table": 'tables: {"query": ..., "table": {...}}',
        "image": "an image",
        "video": "a video",
    }.get(kind, kind)


def _broadcast(given: dict[str, Any]) -> Any:
    """{"question": [...], "context": "..."} and the like, as one pair each."""
    question, context = given.get("question"), given.get("context")
    if not isinstance(question, list) and not isinstance(context, list):
        return given
    if set(given) != {"question", "context"}:
        return given
    questions = question if isinstance(question, list) else [question] * len(context)
    contexts = context if isinstance(context, list) else [context] * len(questions)
    if len(questions) != len(contexts):
        raise ValueError(f"inputs has {len(questions)} questions and {len(contexts)} contexts.")
    return [{"question": one, "context": other} for one, other in zip(questions, contexts, strict=True)]


def _one(item: Any, name: str, kind: str, limits: Limits, rate: int, frames: tuple[int, int]) -> Any:
    if kind == "text":
        return _check_text(name, item)
    if kind == "text or pair":
        if isinstance(item, dict):
            _fields(item, name, ("text",), ("text_pair",))
            return {key: _check_text(f"{name}.{key}", value) for key, value in item.items()}
        return _check_text(name, item)
    if kind == "text or messages":
        return _messages(item, name, limits) if _is_messages(item) else _text(name, item)
    if kind == "question":
        _fields(item, name, ("question", "context"))
        return {key: _text(f"{name}.{key}", value) for key, value in item.items()}
    if kind == "table":
        return _table(item, name)
    if kind == "image":
        return pipeline_media.image(item, name, limits.max_pixels)
    if kind == "two images":
        if not isinstance(item, list) or len(item) != 2:
            raise ValueError(f"{name} must be a list of two images.")
        return [pipeline_media.image(part, f"{name}[{n}]", limits.max_pixels) for n, part in enumerate(item)]
    if kind == "image and question":
        _fields(item, name, ("image", "question"))
        _text(f"{name}.question", item["question"])
        return {**item, "image": pipeline_media.image(item["image"], f"{name}.image", limits.max_pixels)}
    if kind == "image and text":
        return _image_and_text(item, name, limits)
    if kind == "document":
        return _document(item, name, limits)
    if kind == "audio":
        return pipeline_media.audio(item, name, rate, limits.max_audio_seconds)
    return tuple(pipeline_media.frames(item, name, *frames, limits.max_pixels))


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "null" if value is None else "a file")


def _check_text(name: str, value: Any) -> str:
    """The text, which may be empty: most models have an answer to that, from their special tokens."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {_named(value)}.")
    # JSON can spell half of a surrogate pair, which is no text in any encoding: tokenizers fail on it.
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), which is not text.")
    return value


def _text(name: str, value: Any) -> str:
    if not _check_text(name, value).strip():
        raise ValueError(f"{name} is empty.")
    text: str = value
    return text


def _fields(item: Any, name: str, needed: tuple[str, ...], others: tuple[str, ...] = ()) -> None:
    shape = ", ".join(f'"{key}": ...' for key in needed)
    if not isinstance(item, dict):
        raise ValueError(f"{name} must be {{{shape}}}, not {_named(item)}.")
    for key in needed:
        if key not in item:
            raise ValueError(f'{name} has no "{key}". It must be {{{shape}}}.')
    for key in item:
        if key not in (*needed, *others):
            raise ValueError(f"{name}: unknown field {key!r}. Known: {', '.join((*needed, *others))}.")


def _table(item: Any, name: str) -> dict[str, Any]:
    _fields(item, name, ("query", "table"))
    queries = item["query"] if isinstance(item["query"], list) else [item["query"]]
    if not queries:
        raise ValueError(f"{name}.query is an empty list.")
    for query in queries:
        _text(f"{name}.query", query)
    table = item["table"]
    if (
        isinstance(table, list)
        and table
        and all(isinstance(row, dict) and row.keys() == table[0].keys() for row in table)
    ):
        table = {column: [row[column] for row in table] for column in table[0]}
    if not isinstance(table, dict) or not table or not all(isinstance(cells, list) for cells in table.values()):
        raise ValueError(f'{name}.table must be {{"column": ["cell", ...], ...}}.')
    if len({len(cells) for cells in table.values()}) != 1 or not next(iter(table.values())):
        raise ValueError(f"{name}.table must have as many cells in each column, and one at least.")
    for column, cells in table.items():
        for cell in cells:
            if not isinstance(cell, (str, int, float)):
                raise ValueError(f"{name}.table.{column} must hold texts and numbers, not {_named(cell)}.")
    # These models read text; numbers are written as JSON writes them.
    return {"query": item["query"], "table": {column: [str(cell) for cell in cells] for column, cells in table.items()}}


def _document(item: Any, name: str, limits: Limits) -> dict[str, Any]:
    _fields(item, name, ("question",), ("image", "word_boxes"))
    _text(f"{name}.question", item["question"])
    document = {"question": item["question"]}
    if item.get("image") is not None:
        document["image"] = pipeline_media.image(item["image"], f"{name}.image", limits.max_pixels)
    boxes = item.get("word_boxes")
    if boxes is not None:
        for place, pair in enumerate(boxes if isinstance(boxes, list) else [None]):
            sound = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], list)
            if (
                not sound
                or len(pair[1]) != 4
                or not all(_is_whole(number) and 0 <= number <= 1000 for number in pair[1])
            ):
                raise ValueError(
                    f'{name}.word_boxes[{place}] must be ["word", [left, top, right, bottom]], numbers from 0 to 1000.'
                )
        document["word_boxes"] = [(word, [int(number) for number in box]) for word, box in boxes]
    if len(document) == 1:
        raise ValueError(f"{name} must have an image, word_boxes, or both.")
    return document


def _is_whole(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and number == int(number)


def _image_and_text(item: Any, name: str, limits: Limits) -> Any:
    if _is_messages(item):
        return _messages(item, name, limits)
    _fields(item, name, ("text",), ("image", "images"))
    _text(f"{name}.text", item["text"])
    given = item.get("images", item.get("image"))
    many = given if isinstance(given, list) else [given]
    if given is None or not many:
        raise ValueError(f"{name} has no image.")
    images = [pipeline_media.image(one, f"{name}.images[{place}]", limits.max_pixels) for place, one in enumerate(many)]
    return {"images": images if len(images) > 1 else images[0], "text": item["text"]}


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "role" in item for item in value)


def _messages(value: list[dict[str, Any]], name: str, limits: Limits) -> list[dict[str, Any]]:
    """A chat: [{"role": ..., "content": text or parts}]. The images in it are read here, so that no library fetches."""
    messages = []
    for place, message in enumerate(value):
        here = f"{name}[{place}]"
        content = message.get("content")
        if isinstance(content, list):
            content = [_part(part, f"{here}.content[{n}]", limits) for n, part in enumerate(content)]
        else:
            _check_text(f"{here}.content", content)
        messages.append({**message, "content": content})
    return messages


def _part(part: Any, name: str, limits: Limits) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        _check_text(f"{name}.text", part.get("text"))
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "image_url"):
        given = part.get("image", part.get("url", part.get("image_url")))
        given = given.get("url") if isinstance(given, dict) else given
        return {"type": "image", "image": pipeline_media.image(given, name, limits.max_pixels)}
    raise ValueError(f'{name} must be {{"type": "text", "text": ...}} or {{"type": "image", "image": ...}}.')
