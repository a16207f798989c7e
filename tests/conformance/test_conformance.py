"""Every architecture and task, from a table of a catalogue to both containers: the answers are those of the model's own
library, alone and in company.

A part of the rows runs always, which holds one of each kind; all of them where CI is set or MME_CONFORMANCE=all, and
those alone whose names hold a word where MME_CONFORMANCE is that word.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from rows import Row, all_rows
from served import Made, Server

pytestmark = pytest.mark.slow

AT_ONCE = 24
WANTED = os.environ.get("MME_CONFORMANCE") or ("all" if os.environ.get("CI") else "")
ROWS = [row for row in all_rows() if (WANTED == "all" or row.everywhere if WANTED in ("", "all") else WANTED in row.id)]


def close(ours: Any, theirs: Any, tolerance: float) -> bool:
    """Equal, with numbers that are not whole as near as this: absolutely, or for large ones relatively."""
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return abs(ours - theirs) <= tolerance * max(1.0, abs(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(close(ours[key], theirs[key], tolerance) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(close(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    return type(ours) is type(theirs) and ours == theirs


def check(row: Row, answer: Any, right: Any) -> None:
    projected = row.project(answer)
    assert close(projected, right, row.tolerance), f"{str(projected)[:800]}\n is not\n{str(right)[:800]}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_our_container_answers_as_the_library_does(row: Row, made: Callable[[Row], Made], ours: Server) -> None:
    model = made(row)
    said = len(ours.log)
    ours.load(row.id, model.folder)
    if row.task == "text-generation":
        logged = ours.logged(said, f'"event": "load", "model": "{row.id}"')
        alone = any("each prompt runs alone" in line for line in logged)
        assert alone == (row.batching == "one by one"), "the log says what docs/models.md does"
    try:
        for request, right in zip(row.requests, model.answers, strict=True):
            check(row, ours.ask(row.id, request), right)
        numbers = [number % len(row.requests) for number in range(AT_ONCE)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda number: ours.ask(row.id, row.requests[number]), numbers))
        for number, answer in zip(numbers, answers, strict=True):
            check(row, answer, model.answers[number])
    finally:
        ours.unload(row.id)


# What the stock stack's own version of transformers (4.57) does otherwise with these, or cannot do. Ours answers them.
OTHERWISE_ON_STOCK = {
    "llava-image-text-to-text": "5 writes names of weights that 4.57 does not find; loading it is refused there",
    "fnet-text-classification": "4.57's class takes no attention mask, which its tokenizer gives",
    "tapas-table-question-answering": "pandas is not among what `make stock` installs",
    "videomae-video-classification": "5 writes names of weights that 4.57 does not find; loading it is refused there",
    "vits-text-to-audio": "the same sound, which 4.57 puts into one more list, of channels",
    "qwen3-moe-text-generation": "5 writes the number of experts under another name",
    "gemma-3-text-generation": "5 writes the rotary settings under other names",
    "mamba-2-text-generation": "5 writes the limits of the time step in another form",
}


@pytest.mark.parametrize("row", [row for row in ROWS if row.id not in OTHERWISE_ON_STOCK], ids=lambda row: row.id)
def test_the_stock_server_answers_as_the_library_does(row: Row, made: Callable[[Row], Made], stock: Server) -> None:
    model = made(row)
    stock.load(row.id, model.folder)
    try:
        for request, right in zip(row.requests, model.answers, strict=True):
            check(row, stock.ask(row.id, request), right)
    finally:
        stock.unload(row.id)
