"""The errors that a user can meet. Each says what happened, to what, and what to do next.

A task prints the message and exits with the class's ``exit_code``; nothing here ends in a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmeError(Exception):
    """The base of every error that the toolchain raises on purpose.

    ``message`` says what is wrong and where; ``hint`` says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


def nearest(name: str, known: Iterable[str], there_are: str, at_most: int = 10) -> str:
    """A hint for a name that is not among those ``known``: the nearest of them, and what there is.

    ``there_are`` begins the list, as in "The catalogue has". At most ``at_most`` names are listed, the nearest first.
    """
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    if not names:
        return f"{there_are}: none."
    if len(names) > at_most:
        ranked = difflib.get_close_matches(name, names, n=at_most, cutoff=0.0)
        return f"{guess}{there_are}: {', '.join(ranked)} and {len(names) - len(ranked)} others."
    return f"{guess}{there_are}: {', '.join(names)}."


class UsageError(MmeError):
    """A flag, an argument or a setting is missing or wrong."""

    exit_code = 2


class CatalogError(MmeError):
    """The catalogue (models.toml) says something that cannot be followed."""

    exit_code = 3


class SourceError(MmeError):
    """A model's source is missing, is not a model, or is not safe to load."""

    exit_code = 4


class HandlerError(MmeError):
    """A handler is missing, does not parse, or lacks what it must define."""

    exit_code = 5


class ArchiveError(MmeError):
    """An archive is broken, hostile, or could not be written."""

    exit_code = 6


class VerifyError(MmeError):
    """A finished archive does not load or does not answer its sample."""

    exit_code = 7


class ReleaseError(MmeError):
    """The bucket refused, lacks, or already holds something."""

    exit_code = 8


class EndpointError(MmeError):
    """The endpoint does not exist, cannot be reached, or answered with an error."""

    exit_code = 9


class TerraformError(MmeError):
    """Terraform is missing, too old, or failed."""

    exit_code = 10


class ConflictError(ReleaseError):
    """The same thing was changed elsewhere at the same time; nothing was changed here. Look, then run again."""

    exit_code = 11
