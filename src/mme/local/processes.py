"""A container's processes, descendants included, and how much memory they have."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psutil import Process


def tree(pid: int) -> list[Process]:
    """The process and its descendants; none where it has ended."""
    import psutil

    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.Error:
        return []


def memory(pid: int) -> int | None:
    """Bytes of memory of the process and its descendants, what they share counted once (PSS); None on systems other
    than Linux."""
    import psutil

    parts: list[int] = []
    for process in tree(pid):
        with contextlib.suppress(psutil.Error, AttributeError):
            parts.append(process.memory_full_info().pss)
    return sum(parts) if parts else None
