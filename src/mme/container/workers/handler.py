"""A model's handler: the functions of ``code/inference.py``, with defaults for those that are not there.

The rules are the Hugging Face inference toolkit's, so that a handler written for it runs here unchanged:
``model_fn``, ``input_fn``, ``predict_fn``, ``output_fn``, each optional and each with an optional trailing ``context``;
``transform_fn`` instead of the middle three; no handler at all is a transformers pipeline for the task that
``HF_TASK`` or the architecture in config.json names.

Beyond the toolkit, a handler may define ``batch_fn(inputs, model)`` (and ``tokens_fn(data, model)``) to answer several
requests in one go; see docs/container.md.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import inspect
import operator
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

from mme.container.errors import HandlerError, ServingError
from mme.container.text import header_problem
from mme.container.workers import codec, cuda, vendored
from mme.container.workers.context import Context
from mme.container.workers.pipeline import default_pipeline, pipeline_predict
from mme.container.workers.shipped import Shipped

FUNCTIONS = (
    *("model_fn", "input_fn", "predict_fn", "output_fn", "transform_fn"),  # the toolkit's
    *("batch_fn", "tokens_fn", "decoder_fn", "busy_fn"),  # ours (docs/handlers.md)
)

MOST_WORDS = 10_000  # characters of an exception's message that a client and the log get
# Flags of the code of functions that take any number of arguments, or have to be awaited.
NOT_PLAIN = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)


# The second of a pair that is a body and its content type, and not just two texts.
MEDIA_TYPE = re.compile(
    r"(application|audio|font|image|message|model|multipart|text|video|x-[\w-]+)/[\w.+-]+ *(;|$)", re.I
)


@dataclass(frozen=True)
class Answer:
    """An encoded answer."""

    body: bytes
    content_type: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)  # further ones, that the handler has set


class Steps(Protocol):
    """What decoder_fn returns: a batch that requests join and leave between steps (docs/handlers.md)."""

    def add(self, key: int, data: Any) -> None: ...

    def step(self) -> list[tuple[int, Any]]: ...

    def drop(self, key: int) -> None: ...

    def __len__(self) -> int: ...


class Offer(Protocol):
    """What busy_fn returns: more memory makes the model faster (docs/handlers.md). Other threads may compute."""

    @property
    def bytes(self) -> int: ...

    def begin(self) -> None: ...

    def end(self) -> None: ...


class Handler:
    """A loaded model with its functions. Every method may raise whatever the handler raises."""

    def __init__(self, name: str, model_dir: str, program: str, device: int, shipped: Shipped) -> None:
        self.context = Context(name, model_dir, device if device >= 0 else None)
        self.adopted = _enter(model_dir, shipped)
        module = _import(program)
        functions = {key: getattr(module, key, None) for key in FUNCTIONS}
        if functions["transform_fn"] and (functions["input_fn"] or functions["predict_fn"] or functions["output_fn"]):
            raise HandlerError(
                "transform_fn cannot stand beside input_fn, predict_fn or output_fn; keep one or the others"
            )
        self._input = _bind(functions["input_fn"], 2, self.context) or codec.decode
        self._predict = _bind(functions["predict_fn"], 2, self.context) or pipeline_predict
        self._output = _bind(functions["output_fn"], 2, self.context) or codec.negotiated
        self._transform = _bind(functions["transform_fn"], 4, self.context)
        self.batch_fn: Callable[[list[Any], Any], Sequence[Any]] | None = functions["batch_fn"]
        self._tokens_fn: Callable[[Any, Any], int] | None = functions["tokens_fn"]
        self._decoder_fn: Callable[[Any], Steps] | None = functions["decoder_fn"]
        if (self.batch_fn or self._decoder_fn) and self._transform:
            raise HandlerError(
                "batch_fn and decoder_fn cannot stand beside transform_fn: they need input_fn and output_fn around them"
            )
        load = _bind(functions["model_fn"], 1, self.context) or (lambda path: default_pipeline(path, device))
        self.model = load(model_dir)
        self.offer: Offer | None = functions["busy_fn"](self.model) if functions["busy_fn"] else None

    @property
    def transforms(self) -> bool:
        """True where one function does it all (transform_fn)."""
        return self._transform is not None

    def decode(self, body: bytes, headers: dict[str, str]) -> Any:
        self.context.begin(headers)
        content_type = _content_type(headers)
        return self._input(_text(body, content_type), content_type)

    def tokens(self, data: Any) -> int:
        """What the request costs of a batch; 0: it shares none."""
        return max(0, int(self._tokens_fn(data, self.model))) if self._tokens_fn else 1

    def predict(self, data: Any) -> Any:
        return self._predict(data, self.model)

    def batch(self, inputs: list[Any]) -> list[Any]:
        """One result for each input, in order; an exception instance as a result fails that one alone."""
        assert self.batch_fn is not None
        results = list(self.batch_fn(inputs, self.model))
        if len(results) != len(inputs):
            raise HandlerError(f"batch_fn returned {len(results)} results for {len(inputs)} inputs")
        return results

    @property
    def stepwise(self) -> bool:
        """True where requests join and leave the work in hand (decoder_fn)."""
        return self._decoder_fn is not None

    def steps(self) -> Steps:
        """A new object that works on requests a step at a time."""
        assert self._decoder_fn is not None
        return self._decoder_fn(self.model)

    def encode(self, prediction: Any, headers: dict[str, str]) -> Answer:
        self.context.begin(headers)
        accept = _accept(headers)
        return self._answer(self._output(prediction, accept), accept)

    def transform(self, body: bytes, headers: dict[str, str]) -> Answer:
        assert self._transform is not None
        self.context.begin(headers)
        content_type = _content_type(headers)
        accept = _accept(headers)
        result = self._transform(self.model, _text(body, content_type), content_type, accept)
        return self._answer(result, accept)

    def _answer(self, result: Any, accept: str) -> Answer:
        if isinstance(result, tuple) and len(result) == 2 and MEDIA_TYPE.match(str(result[1])):
            result, content_type = result
        else:
            content_type = codec.accepted(accept)
        said = self.context.request_processor[0]
        status = _status(said.get_response_status_code())
        headers = {name: value for name, value in said.get_response_headers().items() if name.lower() != "content-type"}
        if (problem := header_problem(headers)) is not None:
            raise HandlerError(f"The handler set {problem}")
        if said.get_response_header("content-type"):
            content_type = str(said.get_response_header("content-type"))
        if isinstance(result, bytes):
            body = result
        elif isinstance(result, str):
            body = result.encode("utf-8", "backslashreplace")  # a lone surrogate has no other form
        elif isinstance(result, (bytearray, memoryview)):
            body = bytes(result)
        else:
            body = codec.encode(result, codec.JSON)
            content_type = codec.JSON
        return Answer(body, content_type, status, headers)


def _status(value: Any) -> int:
    """The status that a handler has set. Raises HandlerError where HTTP knows none such."""
    try:
        status = operator.index(value)
    except TypeError:
        status = 0
    if not 200 <= status <= 599 or isinstance(value, bool):
        raise HandlerError(f"The handler set the status {value!r:.100}; a status is a whole number from 200 to 599")
    return status


def _text(body: bytes, content_type: str) -> bytes | str:
    """JSON and CSV reach a handler as text, everything else as bytes (as the toolkit does it)."""
    return codec.text(body, content_type) if codec.media_type(content_type) in codec.TEXT_TYPES else body


def _content_type(headers: dict[str, str]) -> str:
    """The Content-Type as it was sent: the default codec takes its parameters off, a handler may want them."""
    return headers.get("Content-Type", "").strip() or codec.JSON


def _accept(headers: dict[str, str]) -> str:
    """The Accept header as it was sent; JSON where the client takes anything."""
    text = headers.get("Accept", "").strip()
    return codec.JSON if text in ("", "*/*") else text


STANDINS = str(Path(__file__).with_name("standins"))
"""Packages with what handlers import of the stock container's own, for where those are not installed."""


def _enter(model_dir: str, shipped: Shipped) -> list[str]:
    """Run the handler where the stock server does: in the model's folder, with code/ and then that folder on the path.
    Returns the names of the modules that are imported already."""
    os.chdir(model_dir)
    sys.path[:0] = [f"{model_dir}/code", model_dir]
    sys.path.append(STANDINS)  # last, so that the real packages are preferred wherever they are
    # importlib.invalidate_caches would do as well, and write to every page that has a finder of the hundreds of folders
    # that the parent imported from: 5 MB that would be shared no longer.
    for entry in sys.path[:2]:
        sys.path_importer_cache.pop(entry, None)
    # Modules that were imported with another transformers would go on with that one.
    return [] if vendored.bring_in(Path(model_dir, "code")) else shipped.adopt(model_dir)


def _import(program: str) -> Any:
    """The handler's module, or None where the model has none. Other models' modules are in other processes."""
    return importlib.import_module(program) if importlib.util.find_spec(program) is not None else None


def _bind(function: Callable[..., Any] | None, needs: int, context: Context) -> Callable[..., Any] | None:
    """The function with its context, where it takes one."""
    if function is None:
        return None
    if (count := _positional(function)) in (needs, needs + 1):
        return function if count == needs else lambda *arguments: function(*arguments, context)
    name = getattr(function, "__name__", function)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise HandlerError(f"{name} is asynchronous (async def), and nothing awaits it; make it a plain function")
    signature = inspect.signature(function)
    count = len(signature.parameters)
    alone, with_context = _takes(signature, needs), _takes(signature, needs + 1)
    if count == needs + 1 and with_context:
        return lambda *arguments: function(*arguments, context)
    # Those by name alone (*, name=value) and **options are counted as well, and take no context.
    if alone and (count == needs or (count > needs and not with_context)):
        return function
    raise HandlerError(
        f"{name} takes {count} arguments; it must take {needs}, or {needs + 1} with context, none of them by name alone"
    )


def _takes(signature: inspect.Signature, count: int) -> bool:
    """Whether a function with this signature can be called with so many arguments."""
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _positional(function: Callable[..., Any]) -> int | None:
    """How many arguments it takes, where it is a plain function with nothing but positional ones; else None. To ask
    `inspect` would touch a quarter of a megabyte of pages that are shared with the parent."""
    if type(function) is not FunctionType or function.__dict__.keys() & {"__wrapped__", "__signature__"}:
        return None
    code = function.__code__
    return None if code.co_kwonlyargcount or code.co_flags & NOT_PLAIN else code.co_argcount


def _words(said: object) -> str:
    """An exception's message. Its ``__str__`` is the handler's own code and may fail itself, or say a whole request."""
    try:
        words = str(said)
    except Exception:
        return f"{type(said).__name__}, which cannot say more: its __str__ fails"
    if len(words) <= MOST_WORDS:
        return words
    return f"{words[:MOST_WORDS]} … ({len(words):,} characters in all)"


def ruins_process(error: BaseException) -> bool:
    """Whether the process can use its GPU no longer after the error."""
    return not isinstance(error, ServingError) and cuda.ruins(error, _words(error))


def client_error(error: BaseException) -> ServingError:
    """The error that the client gets for an exception of the handler's."""
    name = type(error).__name__
    text = _words(error) or name
    if isinstance(error, ServingError):
        return error
    if cuda.out_of_memory(error, text):
        return ServingError(507, "InsufficientMemoryException", f"Out of memory: {text}")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left on device" in text.lower():
        return ServingError(507, "InsufficientStorageException", f"The disk is full: {text}")
    for attribute in ("status_code", "error_code"):  # SageMaker's toolkits; multi-model-server's PredictionException
        status = getattr(error, attribute, None)
        if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
            return ServingError(int(status), name, _words(getattr(error, "message", text)) or name)
    if isinstance(error, ValueError):
        return ServingError(400, "BadRequestException", text)
    if isinstance(error, HandlerError):
        return ServingError(500, "HandlerException", text)
    return ServingError(500, "PredictionException", f"{name}: {text}")
