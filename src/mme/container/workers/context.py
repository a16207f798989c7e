"""The context that a handler's functions may take, as the stock server gives it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any


class Metrics:
    """The part of multi-model-server's metrics object that handlers call; the container measures by itself."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("add_"):
            return lambda *_args, **_kwargs: None
        raise AttributeError(name)


class RequestProcessor:
    """One request: its headers, and what the handler says of the answer."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers
        self._status: int | None = None
        self._phrase = ""
        self._answer: dict[str, str] = {}

    def get_request_properties(self) -> dict[str, str]:
        return self._headers

    def get_request_property(self, key: str) -> str | None:
        return self._headers.get(key)

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        self._status = code
        self._phrase = reason_phrase or ""

    def get_response_status_code(self) -> int:
        return 200 if self._status is None else self._status

    def get_response_status_phrase(self) -> str:
        return self._phrase

    def add_response_property(self, key: str, value: str) -> None:
        """Set a header of the answer. Names are compared without regard to case."""
        self._answer = {name: text for name, text in self._answer.items() if name.lower() != key.lower()}
        self._answer[key] = value

    def get_response_headers(self) -> dict[str, str]:
        return self._answer

    def get_response_header(self, key: str) -> str | None:
        return next((value for name, value in self._answer.items() if name.lower() == key.lower()), None)


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
        self.notes: dict[str, str] = {}
        self.request_ids: dict[int, str] = {0: ""}
        self.request_processor = [RequestProcessor({})]
        self._first_half = uuid.uuid4().hex[:16]
        self._requests = 0

    def note(self, **notes: str) -> None:
        """What the handler says of how it runs the model, for the log and ``/metrics``: ``engine`` is the library that
        computes, ``format`` the number format, and ``reason`` says why they are not others; ``key`` names what has been
        compared with transformers' own answers, so that the next model of the same kind need not be. The stock server's
        context has no such method."""
        self.notes.update({name: str(text) for name, text in notes.items()})

    def begin(self, headers: dict[str, str]) -> None:
        """A request's turn begins. ``headers`` are its own object: with the same one its turn goes on."""
        if self.request_processor[0].get_request_properties() is not headers:
            self.request_processor = [RequestProcessor(headers)]
            self._requests += 1
            self.request_ids = {0: f"{self._first_half}{self._requests:016x}"}

    def get_request_id(self, idx: int = 0) -> str | None:
        return self.request_ids.get(idx)

    def get_all_request_header(self, idx: int = 0) -> dict[str, str]:
        return self.request_processor[idx].get_request_properties()

    def get_request_header(self, idx: int, key: str) -> str | None:
        lowered = key.lower()
        headers = self.get_all_request_header(idx)
        return next((value for name, value in headers.items() if name.lower() == lowered), None)

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "Content-Type", value)

    def get_response_content_type(self, idx: int = 0) -> str | None:
        return self.request_processor[idx].get_response_header("content-type")

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        for processor in self.request_processor:
            processor.report_status(code, phrase)

    def get_response_status(self, idx: int = 0) -> tuple[int, str]:
        processor = self.request_processor[idx]
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    def get_response_headers(self, idx: int = 0) -> dict[str, str]:
        return self.request_processor[idx].get_response_headers()

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.request_processor[idx].add_response_property(key, value)
