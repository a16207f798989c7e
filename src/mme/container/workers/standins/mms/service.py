"""The exception by which a handler tells a status of its own."""

from __future__ import annotations


class PredictionException(Exception):
    """An answer that is an error, with the HTTP status ``error_code``."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        self.message = message
        self.error_code = error_code
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"
