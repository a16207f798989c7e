"""The flags as they were given, and how a file is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mme.errors import UsageError


@dataclass(frozen=True)
class Asked:
    """The flags, as they were given."""

    what: str | None
    models: str | None
    catalog: str | None
    dist: str
    needs: str | None
    container: str
    trace: str | None
    access_log: str | None
    gaps: bool
    live: bool
    zipf: str | None
    rate: str | None
    hours: str | None
    swing: str
    bursts: str | None
    churn: str
    p99: str
    cold: str
    type: Sequence[str]
    count: str | None
    at_least: str
    volume_gb: str | None
    routing: str
    download: str
    extract: str
    processor_factor: str
    deployments: str | None
    warm: str
    autoscale: str | None
    prices: str | None
    seed: str
    tfvars: str | None
    page: str | None
    plots: str | None
    publish: str | None
    archive: Sequence[str]
    out: str | None
    per_model: bool
    json: bool


def number(flag: str, text: str, low: float = 0.0, high: float = 1e12) -> float:
    """The value of a flag as a number. Raises UsageError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UsageError(f"{flag} takes a number from {low:g} to {high:g}, not {text!r}.")
    return value


def counted(models: int) -> str:
    return "1 model" if models == 1 else f"{models:,} models"


def write(path: Path, text: str) -> None:
    """Write a complete file or none."""
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
