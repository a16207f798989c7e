"""The context that a handler's functions may take, as the stock server gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
        self.notes: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.response_content_type: str | None = None
        self.response_status: int | None = None
        self.response_message = ""

    def note(self, **notes: str) -> None:
        """What the handler says of how it runs the model, for the log and ``/metrics``: ``engine`` is the library that
        computes, ``format`` the number format, and ``reason`` says why they are not others; ``key`` names what has been
        compared with transformers' own answers, so that the next model of the same kind need not be. The stock server's
        context has no such method."""
        self.notes.update({name: str(text) for name, text in notes.items()})

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
