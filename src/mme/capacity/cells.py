"""Reads values from cells of CSV files and fields of JSON documents."""

from __future__ import annotations

import re

import numpy as np

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 1 << shift for unit, shift in (("k", 10), ("m", 20), ("g", 30), ("t", 40))}


def amount(text: str) -> float | None:
    """Bytes: ``90MB``, ``1.2 GiB``, ``94371840``. None where it is not a size."""
    match = re.fullmatch(r"(-?[0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([kmgt]i?)?b?", text.strip(), re.IGNORECASE)
    if not match:
        return None
    return float(match[1]) * UNITS[(match[2] or "").lower()]


def finite(text: str) -> float | None:
    """A finite number; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def is_number(value: object, most: float) -> bool:
    """Whether it is a number from 0 to ``most``."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most
