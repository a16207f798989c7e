"""Which models there are and how large: from a CSV file, from built archives, or from a bucket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mme.capacity import csvfile
from mme.capacity.cells import amount, finite, is_number
from mme.capacity.csvfile import fault
from mme.capacity.needs import MOST, SERVINGS, Models, models
from mme.errors import UsageError

COLUMNS = ("disk", "active", "parked", "load_seconds", "wake_seconds", "answer_seconds", "cores")
BYTES = ("disk", "active", "parked")
NEED_KEYS = (
    *("archive_bytes", "disk_bytes", "weights_bytes", "private_bytes", "parked_bytes"),
    *("load_seconds", "wake_seconds", "answer_seconds", "answer_cores"),
)


@dataclass(frozen=True)
class Row:
    """A model: its name, its archive's bytes, and its needs from its line (keys of COLUMNS)."""

    name: str
    size: int
    given: Mapping[str, float]
    line: int = 0


@dataclass(frozen=True)
class Needs:
    """Needs of one or more models, from ``measure`` or from flags, by NEED_KEYS."""

    container: str
    origin: str
    samples: Sequence[Mapping[str, float]]
    answer_spread: tuple[float, ...] = (1.0,)
    load_spread: tuple[float, ...] = (1.0,)
    wake_spread: tuple[float, ...] = (1.0,)
    load_cores: float = 1.0
    wake_cores: float = 1.0
    batch_shared: float | None = None
    base_bytes: int | None = None
    names: Mapping[str, int] | None = None


def read_csv(path: Path) -> list[Row]:
    """``name,size`` and any of COLUMNS, with a head line. Raises UsageError with the line at fault."""
    rows: dict[str, Row] = {}
    with csvfile.opened(path) as (head, lines):
        _check_head(path, head)
        for line, cells in lines:
            values = dict(zip(head, cells, strict=True))
            name = values.pop("name")
            if not name:
                raise fault(path, line, "the model has no name.")
            if name in rows:
                raise fault(path, line, f"the model {name!r} is there already, on line {rows[name].line}.")
            figures = {
                column: _figure(path, line, column, text) for column, text in values.items() if text or column == "size"
            }
            rows[name] = Row(name, int(figures.pop("size")), figures, line)
    if not rows:
        raise UsageError(f"{path} has a head and no model.")
    return list(rows.values())


def _check_head(path: Path, head: list[str]) -> None:
    """Raise UsageError unless the columns are known, each is there once, and ``name`` and ``size`` are among them."""
    if not head:
        raise UsageError(f"{path} is empty.", "Its first line is: name,size")
    for wanted in ("name", "size"):
        if wanted not in head:
            hint = f"The head is name,size and any of {', '.join(COLUMNS)}."
            raise fault(path, 1, f"there is no column {wanted!r}.", hint)
    for number, column in enumerate(head):
        if column not in ("name", "size", *COLUMNS):
            raise fault(path, 1, f"the column {column!r} is not known.", f"Known: name, size, {', '.join(COLUMNS)}.")
        if column in head[:number]:
            raise fault(path, 1, f"the column {column!r} is there twice.")


def _figure(path: Path, line: int, column: str, text: str) -> float:
    """The cell's bytes, seconds or cores. Raises UsageError."""
    in_bytes = column in ("size", *BYTES)
    figure = amount(text) if in_bytes else finite(text)
    if figure is None:
        form = "a size such as 90MB" if in_bytes else "a number of seconds or cores"
        raise fault(path, line, f"{column} is {text!r}; it must be {form}.")
    if figure < 0:
        raise fault(path, line, f"{column} is {text}; it cannot be below 0.")
    if figure == 0 and column in ("size", "active", "answer_seconds"):
        hint = None if column == "size" else "Leave the cell empty where it is not known."
        raise fault(path, line, f"{column} is {text}; every model takes some.", hint)
    return figure


def read_folder(folder: Path) -> list[Row]:
    """The archives in a folder, by their names below it."""
    rows = [
        Row(path.relative_to(folder).as_posix(), path.stat().st_size, {}) for path in sorted(folder.rglob("*.tar.gz"))
    ]
    if not rows:
        raise UsageError(f"There is no archive (*.tar.gz) in {folder}.", "Build them with `invoke package`.")
    return rows


def read_bucket(s3: Any, bucket: str, prefix: str) -> list[Row]:
    """The archives below a model prefix, by their target models."""
    rows = []
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            if item["Key"].endswith(".tar.gz"):
                rows.append(Row(item["Key"].removeprefix(prefix), int(item["Size"]), {}))
    if not rows:
        raise UsageError(f"There is no archive below s3://{bucket}/{prefix}.", "Is the prefix right? See --prefix.")
    return rows


def read_needs(path: Path) -> Needs:
    """The file that ``invoke capacity measure`` writes. Raises UsageError that says what is wrong in it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not JSON: {error}.", "Write it with `invoke capacity measure --out FILE`."
        ) from None
    hint = "Write it with `invoke capacity measure --out FILE`."
    if not isinstance(document, dict) or document.get("format") != 1 or not isinstance(document.get("models"), dict):
        raise UsageError(f"{path} is not a file of measured needs.", hint)
    if document.get("container") not in list(SERVINGS) or not document["models"]:
        raise UsageError(f"{path}: container must be one of {', '.join(SERVINGS)}, and models not empty.", hint)
    samples: list[dict[str, float]] = []
    for name, sample in document["models"].items():
        for key in NEED_KEYS:
            value = sample.get(key) if isinstance(sample, dict) else None
            if not is_number(value, MOST):
                raise UsageError(f"{path}: models.{name}.{key} is {value!r}; it must be a number, 0 or more.", hint)
        samples.append({key: float(sample[key]) for key in NEED_KEYS})
    spreads = {}
    for key in ("answer_spread", "load_spread", "wake_spread"):
        spread = document.get(key, [1.0])
        if not isinstance(spread, list) or not spread or not all(is_number(x, 1e6) for x in spread):
            raise UsageError(f"{path}: {key} must be a list of factors, 0 or more.", hint)
        spreads[key] = tuple(float(factor) for factor in spread)
    shared, base = document.get("batch_shared"), document.get("base_bytes")
    for key, value, most in (("batch_shared", shared, 1), ("base_bytes", base, MOST)):
        if value is not None and not is_number(value, most):
            raise UsageError(f"{path}: {key} is {value!r}; it must be a number from 0 to {most:g}.", hint)
    cores = {}
    for key in ("load_cores", "wake_cores"):
        value = document.get(key, 1.0)
        if not is_number(value, MOST) or value == 0:
            raise UsageError(f"{path}: {key} is {value!r}; it must be a number above 0.", hint)
        cores[key] = float(value)
    words = (
        f"measured {document.get('day', 'at an unknown time')} on {document.get('processor', 'an unknown processor')}"
    )
    return Needs(
        document["container"],
        words,
        samples,
        spreads["answer_spread"],
        spreads["load_spread"],
        spreads["wake_spread"],
        cores["load_cores"],
        cores["wake_cores"],
        None if shared is None else float(shared),
        None if base is None else int(base),
        {name: at for at, name in enumerate(document["models"])},
    )


def combine(rows: Sequence[Row], needs: Needs | None) -> Models:
    """Rows and measured needs as Models. A row's own columns come first; for what they leave out, the model of that
    name that was measured, else the measured one whose archive is nearest in size, with its bytes scaled by the sizes.

    Raises UsageError where neither says what a model needs.
    """
    columns: dict[str, list[float]] = {name: [] for name in (*COLUMNS, "archive")}
    sizes = np.array([sample["archive_bytes"] for sample in needs.samples]) if needs else np.zeros(0)
    for row in rows:
        filled: dict[str, float] = {"parked": 0.0, "wake_seconds": row.given.get("load_seconds", 0.0), "cores": 1.0}
        if needs is not None:
            at = (needs.names or {}).get(row.name)
            sample = needs.samples[int(np.argmin(np.abs(sizes - row.size))) if at is None else at]
            scale = row.size / sample["archive_bytes"] if sample["archive_bytes"] and at is None else 1.0
            filled.update(
                disk=sample["disk_bytes"] * scale,
                active=sample["private_bytes"] + sample["weights_bytes"] * scale,
                parked=sample["parked_bytes"],
                load_seconds=sample["load_seconds"],
                wake_seconds=sample["wake_seconds"],
                answer_seconds=sample["answer_seconds"],
                cores=sample["answer_cores"],
            )
        filled.setdefault("disk", float(row.size))
        filled.update(row.given)
        missing = [name for name in ("active", "load_seconds", "answer_seconds") if name not in filled]
        if missing:
            where = f" (line {row.line})" if row.line else ""
            raise UsageError(
                f"Nothing says {', '.join(missing)} of the model {row.name!r}{where}.",
                "Measure it: invoke capacity measure --archive FILE --out needs.json, then --needs needs.json. "
                "Or add the columns to the CSV file.",
            )
        columns["archive"].append(float(row.size))
        for name in COLUMNS:
            columns[name].append(filled[name])
    return models(
        [row.name for row in rows],
        archive=columns["archive"],
        disk=columns["disk"],
        active=columns["active"],
        parked=columns["parked"],
        load=columns["load_seconds"],
        wake=columns["wake_seconds"],
        answer=columns["answer_seconds"],
        cores=columns["cores"],
        answer_spread=needs.answer_spread if needs else (1.0,),
        load_spread=needs.load_spread if needs else (1.0,),
        wake_spread=needs.wake_spread if needs else (1.0,),
        load_cores=needs.load_cores if needs else 1.0,
        wake_cores=needs.wake_cores if needs else 1.0,
        origin=needs.origin if needs else "given with the models",
        batch_shared=needs.batch_shared if needs else None,
        base_bytes=needs.base_bytes if needs else None,
    )
