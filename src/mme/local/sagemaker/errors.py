"""The errors of InvokeEndpoint, as the runtime API answers them."""

from __future__ import annotations


class InvokeFailed(Exception):
    """An invocation that ends in one of SageMaker's errors."""


class ModelFailed(InvokeFailed):
    """The container answered an error, or did not answer. ``status`` is the container's (0: no answer)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BadTarget(InvokeFailed):
    """The target model cannot be had: no such object, no permission, or not an archive."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotReady(InvokeFailed):
    """The model is still loading."""


class Unavailable(InvokeFailed):
    """There is no healthy container to answer."""


class ArchiveUnavailable(Exception):
    """Raised by a ``Fetch``: the object does not exist, or the role may not read it."""
