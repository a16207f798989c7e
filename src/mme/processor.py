"""The processor of this machine, which figures that were measured on it name."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def processor_name() -> str:
    """The processor's model, such as "AMD EPYC 9R14"; the architecture where the system does not say."""
    return _field("model name") or platform.processor() or platform.machine()


def processor_family() -> str | None:
    """The vendor's number of the processor's family; None where the system does not say."""
    return _field("cpu family")


def processor_flags() -> frozenset[str]:
    """The instruction sets by Linux's names, such as ``avx512_vnni``; empty where the system does not say."""
    return frozenset((_field("flags") or "").split())


def _field(name: str) -> str | None:
    """The first value of a field of /proc/cpuinfo (proc_cpuinfo(5)); None where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^{name}\s*:\s*(.*\S)", text, re.MULTILINE)
    return match[1] if match else None
