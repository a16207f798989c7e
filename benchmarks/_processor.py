"""What the figures were taken on: each table names its processor."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def processor() -> str:
    """What this processor is called, and which instructions for these products it has."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    name = re.search(r"^model name\s*: (.*)$", info, re.M)
    family = re.search(r"^cpu family\s*: (.*)$", info, re.M)
    flags = set((re.search(r"^flags\s*: (.*)$", info, re.M) or ["", ""])[1].split())
    known = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8")
    has = " ".join(flag for flag in known if flag in flags)
    family_text = f" (family {family[1]})" if family else ""
    return f"{name[1] if name else platform.machine()}{family_text}, {os.cpu_count()} cores, {has}"


def has_vnni() -> bool:
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
