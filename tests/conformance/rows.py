"""The models of the conformance suite: one small random model for each architecture and task, made here, from a seed.

A row is plain: what builds the model's folder, what is asked, and what the answer must equal. Rows for another area go
into a module of their own beside this one, into a list, and the list into ``all_rows``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Reference = Callable[[Path, list[dict[str, Any]]], list[Any]]


@dataclass(frozen=True)
class Row:
    """One architecture with one task.

    ``build`` makes the model's folder. ``requests`` are JSON bodies; ``reference`` gives what the model's own library
    answers to each, in this process (reference.py). ``handler`` and ``settings`` are the catalogue's; without a
    handler, packaging chooses. ``batching`` is what docs/models.md says of it. ``tolerance`` is for numbers; texts are
    equal. ``everywhere``: in every run; else only where CI is set.
    """

    architecture: str
    task: str
    build: Callable[[Path], None]
    requests: list[dict[str, Any]]
    reference: Reference
    handler: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)  # further keys of the model's table
    batching: str = "one by one"
    quantize: bool = False
    adapters: bool = True
    tolerance: float = 1e-5
    everywhere: bool = False
    project: Callable[[Any], Any] = lambda answer: answer  # what of our answer is compared

    @property
    def id(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.architecture}-{self.task}".lower())


def all_rows() -> list[Row]:
    """Every row, in the order of docs/models.md."""
    import rows_decoders
    import rows_kinds
    import rows_media
    import rows_sentences
    import rows_texts

    rows = [*rows_texts.ROWS, *rows_media.ROWS, *rows_decoders.ROWS, *rows_sentences.ROWS, *rows_kinds.ROWS]
    assert len({row.id for row in rows}) == len(rows), "two rows have the same name"
    return rows
