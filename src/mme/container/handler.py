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
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mme.container import codec
from mme.container.errors import ServingError

ARCHITECTURE_TASKS = {
    "TapasForQuestionAnswering": "table-question-answering",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
    "ForSequenceClassification": "text-classification",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "MTModel": "text2text-generation",
    "EncoderDecoderModel": "text2text-generation",
    "GPT2LMHeadModel": "text-generation",
    "T5WithLMHeadModel": "text2text-generation",
}
# Tasks whose pipeline takes a feature extractor where others take a tokenizer.
FEATURE_TASKS = {
    "automatic-speech-recognition",
    "image-segmentation",
    "image-classification",
    "audio-classification",
    "object-detection",
    "zero-shot-image-classification",
}


FUNCTIONS = (
    *("model_fn", "input_fn", "predict_fn", "output_fn", "transform_fn"),  # the toolkit's
    *("batch_fn", "tokens_fn", "decoder_fn"),  # ours (docs/handlers.md)
)


class HandlerError(Exception):
    """The handler cannot be used as it is; the message says why."""


class Metrics:
    """The part of multi-model-server's metrics object that handlers call; the container measures by itself."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("add_"):
            return lambda *_args, **_kwargs: None
        raise AttributeError(name)


class RequestProcessor:
    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def get_request_properties(self) -> dict[str, str]:
        return self._headers

    def get_request_property(self, key: str) -> str | None:
        return self._headers.get(key)


class Context:
    """What a handler gets as its trailing ``context``: the members of multi-model-server's that handlers use."""

    def __init__(self, name: str, model_dir: str, gpu_id: int | None) -> None:
        self.model_name = name
        self.manifest: dict[str, Any] | None = None
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu_id,
            "batch_size": 1,
            "server_name": "mme",
            "server_version": "1",
        }
        self.metrics = Metrics()
        self.headers: dict[str, str] = {}
        self.response_content_type: str | None = None
        self.response_status: int | None = None
        self.response_message = ""

    def begin(self, headers: dict[str, str]) -> None:
        self.headers = headers
        self.response_content_type = None
        self.response_status = None
        self.response_message = ""

    @property
    def request_processor(self) -> list[RequestProcessor]:
        return [RequestProcessor(self.headers)]

    def get_all_request_header(self, idx: int = 0) -> dict[str, str]:
        return self.headers

    def get_request_header(self, idx: int, key: str) -> str | None:
        lowered = key.lower()
        return next((value for name, value in self.headers.items() if name.lower() == lowered), None)

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.response_content_type = value

    def get_response_content_type(self, idx: int = 0) -> str | None:
        return self.response_content_type

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.response_status = code
        self.response_message = phrase

    def get_response_status(self, idx: int = 0) -> tuple[int | None, str]:
        return self.response_status, self.response_message

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        if key.lower() == "content-type":
            self.response_content_type = value


@dataclass(frozen=True)
class Answer:
    """An encoded answer."""

    body: bytes
    content_type: str
    status: int = 200


class Steps(Protocol):
    """What decoder_fn returns: a batch that requests join and leave between steps (docs/handlers.md)."""

    def add(self, key: int, data: Any) -> None: ...

    def step(self) -> list[tuple[int, Any]]: ...

    def drop(self, key: int) -> None: ...

    def __len__(self) -> int: ...


class Handler:
    """A loaded model with its functions. Every method may raise whatever the handler raises."""

    def __init__(self, name: str, model_dir: str, program: str, device: int) -> None:
        self.context = Context(name, model_dir, device if device >= 0 else None)
        self._device = device
        code_dir = str(Path(model_dir, "code"))
        sys.path.insert(0, code_dir)
        module = _import(code_dir, program)
        found = {key: getattr(module, key, None) for key in FUNCTIONS}
        if found["transform_fn"] and (found["input_fn"] or found["predict_fn"] or found["output_fn"]):
            raise HandlerError(
                "transform_fn cannot stand beside input_fn, predict_fn or output_fn; keep one or the others"
            )
        self._input = _bind(found["input_fn"], 2, self.context) or codec.decode
        self._predict = _bind(found["predict_fn"], 2, self.context) or _pipeline_predict
        self._output = _bind(found["output_fn"], 2, self.context) or codec.encode
        self._transform = _bind(found["transform_fn"], 4, self.context)
        self.batch_fn: Callable[[list[Any], Any], Sequence[Any]] | None = found["batch_fn"]
        self._tokens_fn: Callable[[Any, Any], int] | None = found["tokens_fn"]
        self._decoder_fn: Callable[[Any], Steps] | None = found["decoder_fn"]
        if (self.batch_fn or self._decoder_fn) and self._transform:
            raise HandlerError(
                "batch_fn and decoder_fn cannot stand beside transform_fn: they need input_fn and output_fn around them"
            )
        load = _bind(found["model_fn"], 1, self.context) or (lambda path: default_pipeline(path, device))
        self.model = load(model_dir)

    @property
    def whole(self) -> bool:
        """True where one function does it all (transform_fn)."""
        return self._transform is not None

    def decode(self, body: bytes, headers: dict[str, str]) -> Any:
        self.context.begin(headers)
        content_type = codec.media_type(headers.get("Content-Type"))
        return self._input(_text(body, content_type), content_type)

    def tokens(self, data: Any) -> int:
        return max(1, int(self._tokens_fn(data, self.model))) if self._tokens_fn else 1

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
        self.context.headers = headers
        accept = codec.accepted(headers.get("Accept"))
        return self._answer(self._output(prediction, accept), accept)

    def transform(self, body: bytes, headers: dict[str, str]) -> Answer:
        assert self._transform is not None
        self.context.begin(headers)
        content_type = codec.media_type(headers.get("Content-Type"))
        accept = codec.accepted(headers.get("Accept"))
        result = self._transform(self.model, _text(body, content_type), content_type, accept)
        return self._answer(result, accept)

    def _answer(self, result: Any, accept: str) -> Answer:
        content_type = accept
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str) and "/" in result[1]:
            result, content_type = result
        content_type = self.context.response_content_type or content_type
        status = self.context.response_status or 200
        self.context.response_content_type = self.context.response_status = None
        if isinstance(result, bytes):
            body = result
        elif isinstance(result, str):
            body = result.encode()
        elif isinstance(result, (bytearray, memoryview)):
            body = bytes(result)
        else:
            body = codec.encode(result, codec.JSON)
            content_type = codec.JSON
        return Answer(body, content_type, status)


def _text(body: bytes, content_type: str) -> bytes | str:
    """JSON and CSV reach a handler as text, everything else as bytes (as the toolkit does it)."""
    return body.decode("utf-8") if content_type in codec.TEXT_TYPES else body


def _import(code_dir: str, program: str) -> Any:
    """The handler's module, or None where the model has none. Other models' modules are in other processes."""
    if not Path(code_dir, f"{program}.py").is_file() and not Path(code_dir, program, "__init__.py").is_file():
        return None
    return importlib.import_module(program)


def _bind(function: Callable[..., Any] | None, needs: int, context: Context) -> Callable[..., Any] | None:
    """The function with its context, where it takes one."""
    if function is None:
        return None
    count = len(inspect.signature(function).parameters)
    if count == needs:
        return function
    if count == needs + 1:
        return lambda *arguments: function(*arguments, context)
    raise HandlerError(
        f"{function.__name__} takes {count} arguments; it must take {needs}, or {needs + 1} with context"
    )


def infer_task(model_dir: str) -> str:
    """The pipeline's task, from HF_TASK or from the architecture that config.json names."""
    if os.environ.get("HF_TASK"):
        return os.environ["HF_TASK"]
    try:
        config = json.loads(Path(model_dir, "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HandlerError(
            "The model has neither code/inference.py nor config.json at its root. Check that the archive has no extra "
            "top folder, or set HF_TASK"
        ) from None
    architecture = (config.get("architectures") or ["none"])[0]
    task = None
    for ending, name in ARCHITECTURE_TASKS.items():
        if architecture.endswith(ending):
            task = name
    if task is None:
        raise HandlerError(
            f"No task follows from the architecture {architecture}. Add a handler in code/inference.py, or set HF_TASK"
        )
    return task


def default_pipeline(model_dir: str, device: int) -> Any:
    """The transformers pipeline of a model without a model_fn."""
    from transformers import pipeline

    task = infer_task(model_dir)
    part = "feature_extractor" if task in FEATURE_TASKS else "tokenizer"
    trust = os.environ.get("HF_TRUST_REMOTE_CODE", "").lower() in ("y", "yes", "t", "true", "on", "1")
    return pipeline(
        task=task,  # type: ignore[call-overload,unused-ignore]
        model=model_dir,
        device=device,
        trust_remote_code=trust,
        **{part: model_dir},
    )


def _pipeline_predict(data: Any, model: Any) -> Any:
    """The toolkit's predict_fn: ``{"inputs": …, "parameters": {…}}`` spread over the model's call."""
    inputs, parameters = data, None
    if isinstance(data, dict):
        parameters = data.pop("parameters", None)
        inputs = data.pop("inputs", data)
    return model(inputs, **parameters) if parameters is not None else model(inputs)


def client_error(error: BaseException) -> ServingError:
    """What the client is told about an exception of the handler's."""
    text = str(error) or type(error).__name__
    if isinstance(error, ServingError):
        return error
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "out of memory" in text.lower():
        return ServingError(507, "InsufficientMemoryException", f"Out of memory: {text}")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left on device" in text.lower():
        return ServingError(507, "InsufficientStorageException", f"The disk is full: {text}")
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and 400 <= status < 600:
        return ServingError(status, name, str(getattr(error, "message", text)))
    if isinstance(error, ValueError):
        return ServingError(400, "BadRequestException", text)
    if isinstance(error, HandlerError):
        return ServingError(500, "HandlerException", text)
    return ServingError(500, "PredictionException", f"{name}: {text}")
