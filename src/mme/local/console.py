"""The local AWS's lines on standard error."""

from __future__ import annotations

import sys


def log(message: str) -> None:
    """One line of progress on stderr."""
    print(f"[local] {message}", file=sys.stderr, flush=True)
