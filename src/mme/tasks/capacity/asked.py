"""The flags as they were given, and how a file is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from mme.errors import UsageError


@dataclass(frozen=True)
class Asked:
    """The flags, as they were given; their defaults."""

    what: str
    models: str | None = None
    catalog: str | None = None
    dist: str = "dist"
    needs: str | None = None
    container: str = "ours"
    trace: str | None = None
    access_log: str | None = None
    gaps: bool = False
    live: bool = False
    zipf: str | None = None
    rate: str | None = None
    hours: str | None = None
    swing: str = "0"
    bursts: str | None = None
    churn: str = "0"
    p99: str = "300"
    cold: str = "1%"
    type: Sequence[str] = ()
    count: str | None = None
    at_least: str = "1"
    volume_gb: str | None = None
    routing: str = "random"
    download: str = "250"
    extract: str = "500"
    processor_factor: str = "1"
    deployments: str | None = None
    warm: str = "0"
    autoscale: str | None = None
    prices: str | None = None
    seed: str = "1"
    tfvars: str | None = None
    page: str | None = None
    plots: str | None = None
    publish: str | None = None
    archive: Sequence[str] = ()
    out: str | None = None
    per_model: bool = False
    json: bool = False

    def check(self) -> None:
        """Raises UsageError for a flag that something else takes, which would be passed over."""
        given = [field.name for field in fields(self)[1:] if self._given(field)]
        for name in given:
            takers = next((takers for takers, names in TAKEN.items() if name in names), None)
            if takers is not None and self.what not in takers:
                raise UsageError(f"--{_flag(name)} is a flag of `capacity {' and '.join(takers)}`, not of {self.what}.")
        law = self.zipf is not None and not self.live
        for name, fits, words in (
            *((name, law, "--zipf") for name in ("rate", "swing", "bursts", "churn")),
            ("hours", self.live or law, "--live and --zipf"),
            ("gaps", self.trace is not None or self.access_log is not None, "--trace and --access-log"),
        ):
            if name in given and not fits:
                raise UsageError(f"--{_flag(name)} goes with {words}.")

    def _given(self, field: Field[Any]) -> bool:
        value = getattr(self, field.name)
        return bool(value) if field.name in ("type", "archive") else value != field.default


PLANNED, SIMULATED, MEASURED = "plan", "simulate", "measure"
TAKEN = {
    (PLANNED,): ("p99", "cold", "at_least", "tfvars", "page", "plots", "publish"),
    (SIMULATED,): ("count", "deployments", "warm", "autoscale", "per_model"),
    (MEASURED,): ("archive", "out"),
    (PLANNED, SIMULATED): (
        *("models", "catalog", "needs", "trace", "access_log", "gaps", "live", "zipf", "rate", "hours", "swing"),
        *("bursts", "churn", "type", "volume_gb", "routing", "download", "extract", "processor_factor", "prices"),
        "seed",
    ),
}
"""Which flags belong to some of the subcommands alone."""


def _flag(name: str) -> str:
    return name.replace("_", "-")


def number(flag: str, text: str, low: float = 0.0, high: float = 1e12) -> float:
    """The value of a flag as a number. Raises UsageError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UsageError(f"{flag} takes a number from {low:g} to {high:g}, not {text!r}.")
    return value


def whole(flag: str, text: str, low: int, high: int) -> int:
    """The value of a flag as a whole number. Raises UsageError."""
    value = number(flag, text, low, high)
    if value % 1:
        raise UsageError(f"{flag} takes a whole number from {low:,} to {high:,}, not {text!r}.")
    return int(value)


def counted(models: int) -> str:
    return "1 model" if models == 1 else f"{models:,} models"


def write(path: Path, text: str) -> None:
    """Write a complete file or none. Raises UsageError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None


def check_writable(path: Path) -> None:
    """Raises UsageError where a file could not be written: before work of minutes, not after it."""
    folder = next(above for above in path.absolute().parents if above.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: it is a folder, or its folder cannot be written to.")
