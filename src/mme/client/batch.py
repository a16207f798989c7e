"""Cuts a list of inputs into requests that an endpoint accepts, and joins their answers to one answer for the list."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mme.client.endpoint import JSON, MAX_BODY, NPY, Answer
from mme.client.errors import AnswerError
from mme.errors import UsageError

if TYPE_CHECKING:
    import numpy

MAX_ITEMS = 32
"""Inputs in one request, at most: the smallest of the limits of this project's handlers."""

_PARSING = threading.Lock()
"""For numpy.load, which parses an array's header as Python: in CPython 3.11 threads that do so at once can fail with
"SystemError: AST constructor recursion depth mismatch"."""

NPY_HEADER = 128  # bytes at most for an array without fields, of any usual number of dimensions


class RequestTooLarge(UsageError):
    """A single input is larger than an endpoint takes. ``index`` is its place in the list, None where it is alone."""

    def __init__(self, size: int, index: int | None) -> None:
        which = "The input" if index is None else f"Input {index} (counted from 0)"
        super().__init__(
            f"{which} makes a request of {size:,} bytes; an endpoint takes at most {MAX_BODY:,}.",
            "Make it smaller, or cut it up.",
        )
        self.size = size
        self.index = index


@dataclass(frozen=True)
class Request:
    """One request: its body, and which inputs of the list are in it (None when the input is not a list)."""

    body: bytes
    inputs: range | None


@dataclass(frozen=True)
class Work:
    """What one call of ``predict`` sends."""

    requests: tuple[Request, ...]
    content_type: str


def cut(
    inputs: Any,
    parameters: Mapping[str, Any] | None = None,
    content_type: str | None = None,
    most: int | None = None,
) -> Work:
    """The requests for ``inputs``, each of at most ``most`` inputs and MAX_BODY bytes, in order.

    ``most`` left out: MAX_ITEMS of a list; of an array, as many as the bytes allow.

    A text, number or JSON value: ``{"inputs": ...}`` with the parameters. A list, tuple, generator or other iterable:
    the same, cut; but for a chat, a list of objects with a ``role`` each, which is one input. A mapping: the body as
    it is; where its ``inputs`` is a list, that is cut and the rest goes with each request. A numpy array of numbers:
    ``application/x-npy``, cut along its first axis. Bytes: as they are, with a
    ``content_type``. Raises UsageError for what cannot be sent.
    """
    if isinstance(inputs, (bytes, bytearray, memoryview)):
        if not content_type:
            raise UsageError("Bytes need a content type.", 'As in: predict(picture, content_type="image/png").')
        if parameters:
            raise UsageError("Parameters do not go with bytes.", "Put them into the body, or send JSON.")
        return Work((_alone(bytes(inputs)),), content_type)
    if content_type not in (None, JSON, NPY):
        raise UsageError(f"Only bytes can be sent as {content_type}.", "Encode the input first.")
    array = _array(inputs)
    if array is not None and array.dtype.kind in "US":
        inputs, array = array.tolist(), None
    if array is not None and content_type != JSON:
        if parameters:
            raise UsageError("Parameters do not go with an array.", 'Send it as JSON: content_type="application/json".')
        return Work(tuple(_cut_array(array, most)), NPY)
    if content_type == NPY:
        raise UsageError(f"Only a numpy array of numbers can be sent as {NPY}, not {type(inputs).__name__}.")
    if array is not None:
        inputs = array.tolist()
    return Work(tuple(_cut_json(inputs, parameters, most or MAX_ITEMS)), JSON)


def _cut_json(inputs: Any, parameters: Mapping[str, Any] | None, most: int) -> Iterable[Request]:
    rest: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        rest = dict(inputs)
        if parameters:
            if "parameters" in rest:
                raise UsageError("The parameters are given twice: in the input and beside it.")
            rest["parameters"] = parameters
        if not isinstance(rest.get("inputs"), (list, tuple)):
            return [_alone(_dumps(rest))]
        inputs = rest.pop("inputs")
    elif parameters:
        rest["parameters"] = parameters
    if inputs is None:
        raise UsageError("There is no input: it is None.")
    if isinstance(inputs, (set, frozenset)):
        raise UsageError("A set has no order, so its answers would be nobody's.", "Give a list.")
    if isinstance(inputs, str) or not isinstance(inputs, Iterable):
        return [_alone(_dumps({"inputs": inputs, **rest}))]
    listed = list(inputs)
    if not listed:
        raise UsageError("There is nothing to ask: the list of inputs is empty.")
    if all(isinstance(item, Mapping) and "role" in item for item in listed):
        return [_alone(_dumps({"inputs": listed, **rest}))]
    items = [_dumps(item, index) for index, item in enumerate(listed)]
    tail = b"]" + (b", " + _dumps(rest)[1:] if rest else b"}")
    requests = _fill(items, b'{"inputs": [', tail, most)
    beside = [key for key, value in rest.items() if isinstance(value, (list, tuple)) and len(value) == len(listed)]
    if len(requests) > 1 and beside:
        raise UsageError(
            f"The list of {len(listed)} inputs is too long for one request, and cannot be cut: {beside[0]!r} beside it "
            "is a list of the same length, and may belong to it item by item.",
            "Send them in several calls.",
        )
    return requests


def _fill(items: Sequence[bytes], head: bytes, tail: bytes, most: int) -> list[Request]:
    """As many encoded items in each request as go in, between ``head`` and ``tail``."""
    requests: list[Request] = []
    first, size = 0, 0
    room = MAX_BODY - len(head) - len(tail)
    for index, item in enumerate(items):
        if len(item) > room:
            raise RequestTooLarge(len(head) + len(item) + len(tail), index)
        grown = size + len(item) + (2 if index > first else 0)
        if grown > room or index - first == most:
            requests.append(Request(head + b", ".join(items[first:index]) + tail, range(first, index)))
            first, grown = index, len(item)
        size = grown
    requests.append(Request(head + b", ".join(items[first:]) + tail, range(first, len(items))))
    return requests


def _cut_array(array: numpy.ndarray[Any, Any], most: int | None) -> list[Request]:
    if array.dtype.hasobject or array.dtype.kind not in "biufc":
        raise UsageError(
            f"An array of {array.dtype} cannot be sent: {NPY} takes numbers.", "Send a list, which goes as JSON."
        )
    if array.ndim == 0:
        return [_alone(_npy(array))]
    if array.shape[0] == 0:
        raise UsageError("There is nothing to ask: the array is empty.")
    row = array.nbytes // array.shape[0]
    if row + NPY_HEADER > MAX_BODY:
        raise RequestTooLarge(row + NPY_HEADER, 0)
    fitting = (MAX_BODY - NPY_HEADER) // row if row else array.shape[0]
    step = min(most or fitting, fitting)
    starts = range(0, array.shape[0], step)
    return [
        Request(_npy(array[start : start + step]), range(start, min(start + step, array.shape[0]))) for start in starts
    ]


def _alone(body: bytes) -> Request:
    if len(body) > MAX_BODY:
        raise RequestTooLarge(len(body), None)
    return Request(body, None)


def _dumps(value: Any, index: int | None = None) -> bytes:
    try:
        return json.dumps(value, default=_plain, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        which = "The input" if index is None else f"Input {index} (counted from 0)"
        raise UsageError(
            f"{which} cannot be sent as JSON: {error}.",
            "JSON has texts, finite numbers, lists and objects; bytes go alone, with a content_type.",
        ) from error


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays inside a list, as values that JSON has."""
    if hasattr(value, "__array__") and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _array(inputs: Any) -> numpy.ndarray[Any, Any] | None:
    """``inputs`` as a numpy array if it is one, or converts to one by numpy's protocol (a tensor on the CPU); else
    None."""
    if not hasattr(inputs, "__array__") or isinstance(inputs, Mapping):
        return None
    import numpy

    return numpy.asarray(inputs)


def _npy(array: numpy.ndarray[Any, Any]) -> bytes:
    import numpy

    file = io.BytesIO()
    numpy.save(file, array, allow_pickle=False)
    return file.getvalue()


# ---- answers ------------------------------------------------------------------------------------------------------


def read(answer: Answer) -> Any:
    """What the model answered: parsed JSON, a numpy array, a text, or the bytes of any other type.

    Raises AnswerError for a body that is not what its type says.
    """
    kind = answer.content_type.partition(";")[0].strip().lower()
    try:
        if kind == JSON or kind.endswith("+json"):
            return json.loads(answer.body)
        if kind == NPY:
            return _load(answer.body)
        if kind.startswith("text/"):
            return answer.body.decode("utf-8")
    except (ValueError, RecursionError, EOFError) as error:
        raise AnswerError(
            f"{answer.target} answered {len(answer.body):,} bytes that are not {kind}: {error}."
        ) from error
    return answer.body


def _load(body: bytes) -> numpy.ndarray[Any, Any]:
    try:
        import numpy
    except ImportError as error:
        raise UsageError(
            f"Reading {NPY} needs numpy.", 'pip install numpy, or ask for JSON: accept="application/json".'
        ) from error
    with _PARSING:
        loaded = numpy.load(io.BytesIO(body), allow_pickle=False)
    if not isinstance(loaded, numpy.ndarray):
        raise ValueError("it is an archive of arrays")
    return loaded


def join(target: str, parts: Sequence[tuple[range, Any]]) -> Any:
    """The answers to the parts of a list as the answer to the list.

    Arrays are laid one after the other, and so are lists with one answer for each input. Objects are joined value by
    value: lists with one answer for each input are joined, and values that are equal in every part are taken once.
    Raises AnswerError for anything else, since then no answer can be assigned to an input.
    """
    if len(parts) == 1:
        return parts[0][1]
    answers = [answer for _, answer in parts]
    counts = [len(inputs) for inputs, _ in parts]
    if all(isinstance(answer, list) for answer in answers):
        if [len(answer) for answer in answers] == counts:
            return [item for answer in answers for item in answer]
    elif all(isinstance(answer, dict) for answer in answers):
        return _join_objects(target, answers, counts)
    elif all(hasattr(answer, "dtype") and answer.shape[:1] == (n,) for answer, n in zip(answers, counts, strict=True)):
        import numpy

        try:
            return numpy.concatenate(answers)
        except ValueError as error:
            raise _not_joined(target, f"arrays of other shapes ({error})") from error
    raise _not_joined(target, "something else than one answer for each input")


def _join_objects(target: str, answers: Sequence[dict[str, Any]], counts: Sequence[int]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    if any(answer.keys() != answers[0].keys() for answer in answers):
        raise _not_joined(target, "objects with other keys")
    for key in answers[0]:
        values = [answer[key] for answer in answers]
        if all(isinstance(value, list) for value in values) and [len(value) for value in values] == counts:
            joined[key] = [item for value in values for item in value]
        elif all(value == values[0] for value in values):
            joined[key] = values[0]
        else:
            raise _not_joined(target, f"a {key!r} that is neither one for each input nor the same in each")
    return joined


def _not_joined(target: str, what: str) -> AnswerError:
    return AnswerError(
        f"{target} answered the parts of the list with {what}; they make no answer to the list.",
        "Ask for one request at a time, with lists of at most max_items inputs.",
    )
