"""How much memory a container has: that of its process and of all below it."""

from __future__ import annotations

import contextlib
from pathlib import Path


def memory(pid: int) -> int | None:
    """Bytes of memory of the process and its descendants, what they share counted once (PSS); None where the system
    does not tell (it is Linux that does)."""
    total, known = 0, False
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        waiting += _children(each)
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            total += 1024 * int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
            known = True
    return total if known else None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(word) for word in (thread / "children").read_text().split()]
    return found
