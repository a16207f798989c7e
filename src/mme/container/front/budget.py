"""How many bytes are on their way through the front, and how many may be."""

from __future__ import annotations


class Budget:
    """Counts the bodies of requests, from their first byte to their answer, and answers that their clients do not
    read. ``limit`` is in bytes (MME_MAX_QUEUE_BYTES)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def fits(self, size: int) -> bool:
        return self.used + size <= self.limit

    def take(self, size: int) -> bool:
        """Count so many bytes more. False, and nothing is counted, if that would be too many."""
        if not self.fits(size):
            return False
        self.used += size
        return True

    def force(self, size: int) -> None:
        """Count what is there already."""
        self.used += size

    def give(self, size: int) -> None:
        self.used -= size
