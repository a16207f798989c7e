"""Stands in for NVIDIA's management library where `benchmarks/gpu.py` has no GPU: a container that finds this file on
its path sees one GPU, on which each of its models' processes takes some memory. Models still compute on the CPU.

MADE_UP_CARD names a JSON file: {"total": bytes, "each": bytes that a process takes, "others": bytes that others take}.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

UUID = "GPU-made-up"


class NVMLError(Exception):
    """The library's own errors."""


def nvmlInit() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetUUID(_: int) -> str:
    return UUID


def nvmlDeviceGetMemoryInfo(_: int) -> SimpleNamespace:
    card = json.loads(Path(os.environ["MADE_UP_CARD"]).read_text())
    used = card["others"] + card["each"] * sum(name == "mme-model" for name in _names(os.getpid()))
    return SimpleNamespace(total=card["total"], free=max(0, card["total"] - used))


def _names(pid: int) -> Iterator[str]:
    """The names of all processes below this one that have not ended."""
    for child in _children(pid):
        try:
            status = Path(f"/proc/{child}/stat").read_text()
        except OSError:
            continue
        if status.rpartition(")")[2].split()[0] != "Z":
            yield status[status.index("(") + 1 : status.rindex(")")]
            yield from _names(child)


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has just ended
                children += map(int, (thread / "children").read_text().split())
    except OSError:
        pass
    return children
