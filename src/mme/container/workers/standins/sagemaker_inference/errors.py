"""Errors that handlers raise; their ``status_code`` is the answer's."""

from __future__ import annotations


class UnsupportedFormatError(Exception):
    """A content type that nobody here can read or write: 415."""

    status_code = 415

    def __init__(self, content_type: str, **kwargs: object) -> None:
        self.message = f"Content type {content_type} is not supported; an input_fn or an output_fn can read or write it"
        super().__init__(self.message)


class BaseInferenceToolkitError(Exception):
    """An error with the HTTP status, the message and the phrase that the caller is to see."""

    def __init__(self, status_code: int, message: str, phrase: str) -> None:
        self.status_code = status_code
        self.message = message
        self.phrase = phrase
        super().__init__(status_code, message, phrase)


class GenericInferenceToolkitError(BaseInferenceToolkitError):
    """The same, with a message that need not be given."""

    def __init__(self, status_code: int, message: str | None = None, phrase: str | None = None) -> None:
        message = message or "Invalid Request"
        super().__init__(status_code, message, phrase or message)
