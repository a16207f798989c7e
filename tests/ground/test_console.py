"""What the tasks print: tables, sizes, times, and progress."""

from __future__ import annotations

import io
from datetime import datetime, timezone

import pytest

from mme import console
from mme.errors import nearest


def test_columns_stand_in_line() -> None:
    shown = console.table(("model", "versions", "note"), [("bert", "7", "x"), ("team-a/bert", "12", "")])
    assert shown.splitlines() == [
        "model        versions  note",
        "-----------  --------  ----",
        "bert                7  x",
        "team-a/bert        12",
    ]


def test_a_table_without_rows_is_its_head() -> None:
    assert console.table(("model", "size"), []).splitlines() == ["model  size", "-----  ----"]


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (94_321_000, "94.3 MB"), (497_800_000, "498 MB"), (8e9, "8.00 GB")],
)
def test_sizes_are_for_people(count: float, shown: str) -> None:
    assert console.size(count) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (65.4, "1:05"), (3601, "1:00:01")])
def test_durations(seconds: float, shown: str) -> None:
    assert console.duration(seconds) == shown


def test_times_are_utc() -> None:
    assert console.when(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)) == "2026-01-02 03:04:05Z"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_tells_share_rate_and_time_left() -> None:
    now = 0.0
    terminal = Terminal()
    with console.progress(terminal, "bert", 100_000_000, clock=lambda: now) as count:
        now = 1.0
        count(25_000_000)
        now = 1.05
        count(1)  # too soon after the last line
        now = 2.0
        count(24_999_999)
    lines = terminal.getvalue().split("\r\x1b[K")
    assert lines == [
        "",
        "bert   25 %  25.0 MB of 100 MB  25.0 MB/s  0:03 left",
        "bert   50 %  50.0 MB of 100 MB  25.0 MB/s  0:02 left",
        "",
    ]


def test_progress_writes_nothing_to_a_file() -> None:
    file = io.StringIO()
    with console.progress(file, "bert", 10) as count:
        count(10)
    assert file.getvalue() == ""


def test_progress_leaves_a_clean_line_after_an_error() -> None:
    terminal = Terminal()
    with pytest.raises(KeyError), console.progress(terminal, "bert", 10):
        raise KeyError
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_the_nearest_name_is_offered_and_long_lists_are_cut() -> None:
    assert nearest("distilbrt", ["gpt2", "distilbert"], "There are") == (
        "Did you mean 'distilbert'? There are: gpt2, distilbert."
    )
    many = nearest("model-7", [f"model-{number}" for number in range(40)], "There are")
    assert many.startswith("Did you mean 'model-7")
    assert many.endswith(" and 30 others.")
    assert nearest("x", [], "There are") == "There are: none."


def test_a_title_that_changes_is_asked_for_each_line() -> None:
    stream, done = Terminal(), iter(range(10))
    with console.progress(
        stream, lambda: f"{next(done)} of 10 models done", 100, clock=iter(range(100)).__next__
    ) as count:
        count(10)
        count(10)
    assert "0 of 10 models done" in stream.getvalue()
    assert "1 of 10 models done" in stream.getvalue()
