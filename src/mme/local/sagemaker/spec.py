"""What an endpoint gives a variant: plain values, and the functions that it calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

INVOKE_SECONDS = 60.0
"""How long a caller waits: for a model to load, and for the container to answer."""
LOAD_SECONDS = 360.0
"""How long the platform gives the download, the extraction and LOAD together."""


class Fetch(Protocol):
    def __call__(self, *, bucket: str, key: str, role_arn: str, into: Path) -> Path:
        """Brings the object to a file below ``into`` as the role would. Raises ArchiveUnavailable."""


@dataclass(frozen=True)
class VariantSpec:
    """A production variant, as far as hosting needs it."""

    name: str
    model_name: str
    image: str
    role_arn: str
    environment: Mapping[str, str]
    bucket: str
    prefix: str
    weight: float = 1.0
    startup_seconds: float = 600.0
    volume_bytes: int = 30 << 30
    """Bytes that extracted archives may take before those that are not loaded are removed."""
    config: str = ""
    """The endpoint configuration that it belongs to."""
    instances: int = 1
    routing: str = "RANDOM"
    """``RANDOM`` or ``LEAST_OUTSTANDING_REQUESTS``."""


class Observer(Protocol):
    """Receives metrics and log lines."""

    def metric(self, variant: str, name: str, value: float, unit: str) -> None:
        """Counts a value of something that happens, such as a request."""

    def gauge(self, variant: str, instance: str, name: str, value: float, unit: str) -> None:
        """Says what an instance's value is now; in one minute the last one counts."""

    def output(self, variant: str, instance: str, line: str) -> None:
        """A line that the instance's container printed."""
