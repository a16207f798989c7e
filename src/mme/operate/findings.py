"""The result of a check: how bad it is, what is wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "unknown", "ok"]

ORDER: tuple[Severity, ...] = ("error", "warning", "unknown", "ok")


@dataclass(frozen=True)
class Finding:
    """The result of the check ``check``.

    ``severity``: "error", it does not work; "warning", it works, but not as it should; "unknown", the check could not
    be made, which is not a pass; "ok". ``fix`` says what to do, ``command`` what to type, where there is something to
    type.
    """

    check: str
    severity: Severity
    what: str
    fix: str = ""
    command: str = ""

    @property
    def wrong(self) -> bool:
        return self.severity in ("error", "warning")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def error(check: str, what: str, fix: str, command: str = "") -> Finding:
    return Finding(check, "error", what, fix, command)


def warning(check: str, what: str, fix: str, command: str = "") -> Finding:
    return Finding(check, "warning", what, fix, command)


def unknown(check: str, what: str, fix: str = "") -> Finding:
    return Finding(check, "unknown", what, fix)


def ok(check: str, what: str) -> Finding:
    return Finding(check, "ok", what)
