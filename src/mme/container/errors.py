"""What the container answers when something is wrong, in the shape that multi-model-server uses."""

from __future__ import annotations

from mme.container.text import json_bytes


class ServingError(Exception):
    """An error with the HTTP status, the type and the message that the caller is to see."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message

    def body(self) -> bytes:
        return error_body(self.status, self.kind, self.message)


def error_body(status: int, kind: str, message: str) -> bytes:
    """``{"code", "type", "message"}`` as JSON bytes."""
    return json_bytes({"code": status, "type": kind, "message": message})


def bad_request(message: str) -> ServingError:
    return ServingError(400, "BadRequestException", message)


def not_found(name: str) -> ServingError:
    return ServingError(404, "ModelNotFoundException", f"Model not found: {name}. Load it first.")


def conflict(message: str) -> ServingError:
    return ServingError(409, "ConflictStatusException", message)


def internal(message: str) -> ServingError:
    return ServingError(500, "InternalServerException", message)


def unavailable(message: str) -> ServingError:
    return ServingError(503, "ServiceUnavailableException", message)


def timed_out(message: str) -> ServingError:
    return ServingError(504, "TimeoutException", message)


def out_of_memory(message: str) -> ServingError:
    """507 tells the platform to unload a model that is not in use and to try again."""
    return ServingError(507, "InsufficientMemoryException", message)


class HandlerError(Exception):
    """The handler cannot be used as it is; the message says why."""
