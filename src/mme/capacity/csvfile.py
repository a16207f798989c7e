"""CSV files with a header line, compressed with gzip or not, read row by row; errors name the file and the line."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mme.capacity import textfile
from mme.errors import UsageError

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def fault(path: Path, line: int, words: str, hint: str | None = None) -> UsageError:
    """The error for a mistake in this line."""
    return UsageError(f"{path}, line {line}: {words}", hint)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[list[str], Iterator[tuple[int, list[str]]]]]:
    """The header's cells (none in an empty file), and the rows: the line's number, and as many cells as the header has.

    Cells come without white space around them, and rows without any text are left out. Raises UsageError for a file
    that is not CSV in UTF-8, here or while rows are read.
    """
    try:
        with textfile.opened(path) as file:
            reader = csv.reader(file)
            head = [cell.strip() for cell in next(reader, [])]
            if len(head) == 1 and (other := next((SEPARATORS[sign] for sign in SEPARATORS if sign in head[0]), None)):
                raise fault(path, 1, f"the cells are separated by {other}.", "Separate them with commas.")
            yield head, _rows(path, reader, len(head))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not a CSV file in UTF-8: {error}.") from None


def _rows(path: Path, reader: Any, columns: int) -> Iterator[tuple[int, list[str]]]:
    for cells in reader:
        stripped = [cell.strip() for cell in cells]
        if not any(stripped):
            continue
        if len(stripped) != columns:
            raise fault(path, reader.line_num, f"{len(stripped)} cells where the head has {columns}.")
        yield reader.line_num, stripped
