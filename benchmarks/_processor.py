"""What the figures were taken on: each table names its processor."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

if importlib.util.find_spec("mme") is None:  # in an environment of other engines; a clone is enough
    sys.path.append(str(Path(__file__).parents[1] / "src"))

from mme.processor import processor_family, processor_flags, processor_name

SHOWN = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8")


def processor() -> str:
    """The processor's name, its cores, and those of its instruction sets that matter for matrix products."""
    family, flags = processor_family(), processor_flags()
    parts = [
        processor_name() + (f" (family {family})" if family else ""),
        f"{os.cpu_count()} cores",
        " ".join(flag for flag in SHOWN if flag in flags),
    ]
    return ", ".join(part for part in parts if part)


def has_vnni() -> bool:
    return any("vnni" in flag for flag in processor_flags())
