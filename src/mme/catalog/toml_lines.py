"""Which line of a TOML file a table or a key stands on, for messages."""

from __future__ import annotations

import re
import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the tests run on 3.11 and later
    import tomli as tomllib

_KEY = r"""(?:[\w-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_HEADER = re.compile(rf"\s*\[\[?\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]\]?")
_ASSIGN = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=(.*)")


def line_numbers(text: str) -> dict[tuple[str, ...], int]:
    """(table, …, key) -> the line, from 1, on which it is first written. The text is known to be valid TOML."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    closing = ""
    for number, line in enumerate(text.splitlines(), 1):
        if closing:  # inside a string of several lines
            closing = "" if closing in line else closing
            continue
        if header := _HEADER.match(line):
            table = _split(header[1])
            _note(lines, table, number)
        elif assign := _ASSIGN.match(line):
            _note(lines, table + _split(assign[1]), number)
            for quote in ('"""', "'''"):
                if assign[2].lstrip().startswith(quote) and assign[2].count(quote) == 1:
                    closing = quote
    return lines


def _note(lines: dict[tuple[str, ...], int], keys: tuple[str, ...], number: int) -> None:
    for length in range(1, len(keys) + 1):
        lines.setdefault(keys[:length], number)


def _split(dotted: str) -> tuple[str, ...]:
    try:
        document: Any = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()  # a line inside of a value that only looks like a key
    keys = []
    while isinstance(document, dict):
        ((key, document),) = document.items()
        keys.append(key)
    return tuple(keys)
