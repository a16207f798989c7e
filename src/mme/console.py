"""What the tasks print, as text: tables, sizes, and a progress line that only a terminal sees."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TextIO

EVERY_S = 0.1

FIGURES = ("size", "sent", "versions", "revision", "requests", "p50 ms", "p95 ms", "p99 ms", "cold ms", "warm ms")
"""Columns that hold figures, where every row has one."""


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it: control characters, and those that turn the direction of text."""


def plain(text: str) -> str:
    """Somebody else's text as a terminal may show it: in lines and tabs, and without control characters."""
    return CONTROL.sub("?", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in line, with a rule below the head. A column of figures goes to the right.

    Each row is one line, whatever is in its cells, and none of it is a control character.
    """
    rows = [[plain(re.sub(r"\s*[\t\n\r\v\f\x85\u2028\u2029]\s*", " ", cell)) for cell in row] for row in rows]
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    right = [
        name in FIGURES and bool(rows) and all(row[i][:1].isdigit() for row in rows) for i, name in enumerate(head)
    ]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(widths[i]) if right[i] else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *(line(row) for row in rows)])


def size(count: float) -> str:
    """A number of bytes for people: 94.3 MB (decimal units, as S3 bills them)."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def shares(split: Mapping[str, float]) -> str:
    """The versions that a name means, with their shares: ``bert-0123….tar.gz 90 %, bert-4567….tar.gz 10 %``."""
    if len(split) == 1:
        return next(iter(split))
    total = sum(split.values())
    return ", ".join(f"{target} {100 * weight / total:g} %" for target, weight in split.items())


def short_shares(split: Mapping[str, float]) -> str:
    """The same where the model's name stands beside it: digests alone, ``0123456789ab 90 %, 456789abcdef 10 %``."""
    return shares({target.removesuffix(".tar.gz").rpartition("-")[2]: weight for target, weight in split.items()})


def when(time: datetime) -> str:
    """A time in UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ")


def duration(seconds: float) -> str:
    """Minutes and seconds: 1:05."""
    rounded = max(0, round(seconds))
    hours, rest = divmod(rounded, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


@contextmanager
def progress(
    stream: TextIO, title: str | Callable[[], str], total: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """A line with share, rate and time left, rewritten in place; gives the function that counts bytes.

    A ``title`` that is a function is asked each time the line is written. Nothing is written unless ``stream`` is a
    terminal.
    """
    if not stream.isatty():
        yield lambda _: None
        return
    start = clock()
    shown = start - EVERY_S  # the first bytes are shown at once
    done = 0

    def count(new: int) -> None:
        nonlocal done, shown
        done += new
        now = clock()
        if now - shown >= EVERY_S:
            shown = now
            shown_title = title if isinstance(title, str) else title()
            stream.write(f"\r\x1b[K{progress_line(shown_title, done, total, now - start)}")
            stream.flush()

    try:
        yield count
    finally:
        stream.write("\r\x1b[K")
        stream.flush()


def progress_line(title: str, done: int, total: int, seconds: float) -> str:
    """``bert  45 %  212.0 MB of 471.1 MB  310.2 MB/s  0:01 left``."""
    rate = done / seconds if seconds > 0 else 0.0
    share = f"{min(100, 100 * done // total):3} %" if total else "  - %"
    left = f"{duration((total - done) / rate)} left" if rate and total > done else ""
    return f"{title}  {share}  {size(done)} of {size(total)}  {size(rate)}/s  {left}".rstrip()
