"""What loading makes of a model's weights in private memory, as its files let expect. All figures are bytes.

Weights in a safetensors file stay mapped where they lie in the format that the model computes in. In any other format
they are converted, which is a copy. The handlers that come with mme compute in float32 unless ``code/settings.json``
asks for another format (docs/handlers.md), and in float32 also where it does and the processor lacks that. What
other handlers do their files do not say: those take what they are seen to take (see admission.py).
"""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any

from mme.container import system
from mme.container.files import open_regular, read_regular

OURS = "handler_common.py"  # lies beside each handler that comes with mme
SETTINGS = "settings.json"
STORED = "model.int8.safetensors"  # weights that are int8 already
MAX_SETTINGS = 1024 * 1024
MAX_HEADER = 100_000_000  # the format's own bound
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}  # bytes of a number
FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
INSTRUCTIONS = {  # as Linux names them, of x86-64 and of arm64
    "BF16": {"avx512_bf16", "amx_bf16", "bf16"},
    "F16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
# Bytes for each number of a layer that computes in int8: what stays (the library that computes holds its weights twice)
# and what is there meanwhile (the graph with the weights in it, written and read), measured with both engines.
INT8, INT8_MEANWHILE = 2, 3
INT8_CONVERTED_MEANWHILE = 2  # where the file has neither float32 nor int8 numbers


def needs(folder: Path, mapped: Iterable[Path], copied: int) -> tuple[int, int, int]:
    """(what stays, what is taken beyond that while the model loads, how much larger the numbers are in the format that
    computes than in the files), given its files that can stay ``mapped`` and the bytes of its older files. Raises
    OSError where a file cannot be read."""
    settings = _settings(folder)
    if settings is None:
        return 0, 0, 0
    int8 = settings.get("quantize") == "int8" or settings.get("accuracy") == "small"
    asked = "bfloat16" if settings.get("accuracy") in ("close", "small") else settings.get("dtype")
    wanted = FORMATS.get(str(asked), "F32")
    formats = {wanted} if wanted in fast() else {"F32", wanted}
    paths = list(mapped)
    stored = [path for path in paths if path.name == STORED]
    if stored:
        paths = stored if int8 else [path for path in paths if path.name != STORED]
    kinds = _numbers(paths)
    stays = max(
        sum(count * FLOATS[one] for (kind, _), count in kinds.items() if kind in FLOATS and kind != one)
        for one in formats
    )
    grown = max(
        sum(count * (FLOATS[one] - FLOATS[kind]) for (kind, _), count in kinds.items() if kind in FLOATS)
        for one in formats
    )
    meanwhile = 0
    if int8:
        ours, passing = _int8(kinds)
        most = ours + passing
        stays = max(stays, ours)
        meanwhile = max(0, most - stays)
    # Which format older files have is not known without reading them; 32 bits for 16 are the most that is likely.
    return stays + copied, meanwhile, max(0, grown)


@functools.cache
def fast() -> frozenset[str]:
    """The formats of 16 bits that handlers do not leave for float32: those for which the processor has instructions, by
    its flags; all where there is a GPU, or where MME_FORMAT says so."""
    every = frozenset(("F16", "BF16"))
    gpu = os.environ.get("MME_DEVICE", "").strip().lower() != "cpu" and system.has_gpu()
    if gpu or os.environ.get("MME_FORMAT", "").strip().lower() == "asked":
        return every
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset()
    row = next((row for row in text.splitlines() if row.lower().startswith(("flags", "features"))), "")
    return frozenset(kind for kind, names in INSTRUCTIONS.items() if names & set(row.split()))


def _int8(kinds: dict[tuple[str, bool], int]) -> tuple[int, int]:
    """(what stays, what is there meanwhile) of linear layers in int8, all weights but tables taken for such."""
    stays = meanwhile = 0
    for (kind, table), count in kinds.items():
        if kind not in ("F32", "I8"):
            if kind in FLOATS:  # they are converted to float32 first, of which tables remain
                stays, meanwhile = stays + 4 * count, meanwhile + INT8_CONVERTED_MEANWHILE * count
        elif not table:
            stays, meanwhile = stays + INT8 * count, meanwhile + INT8_MEANWHILE * count
        elif kind == "F32":  # it stays mapped; a layer that has it, too, has an int8 copy
            stays, meanwhile = stays + count, meanwhile + count
    return stays, meanwhile


def _settings(folder: Path) -> dict[str, Any] | None:
    """What the settings say, where the handler goes by them; else None."""
    settings: Any = {}
    for place in (folder / "code", folder):
        try:
            settings = json.loads(read_regular(place / SETTINGS, MAX_SETTINGS))
            break
        except (OSError, ValueError, RecursionError):
            continue
    if not isinstance(settings, dict):
        settings = {}
    ours = any((place / OURS).is_file() for place in (folder / "code", folder))
    return settings if ours or settings.keys() & {"dtype", "quantize", "accuracy"} else None


def _numbers(paths: Iterable[Path]) -> dict[tuple[str, bool], int]:
    """How many numbers the files hold: by their kind, as the format names it, and whether they are in tables, of which
    a pass reads a row for each token."""
    counts: dict[tuple[str, bool], int] = {}
    for path in paths:
        header, size = _header(path)
        for name, entry in header.items():
            try:
                kind, (begin, end) = str(entry["dtype"]), entry["data_offsets"]
                if not 0 <= int(begin) <= int(end) <= size:
                    continue  # as with all else that is broken, the load will fail, and say so
            except (KeyError, TypeError, ValueError, OverflowError):
                continue  # the metadata, or no tensor
            key = kind, "embed" in name or ".wte." in f".{name}" or ".wpe." in f".{name}"
            counts[key] = counts.get(key, 0) + (int(end) - int(begin)) // FLOATS.get(kind, 1)
    return counts


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, empty where it is none, and the file's size."""
    with open_regular(path) as raw, BufferedReader(raw) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= min(size, MAX_HEADER) else {}
        except (ValueError, RecursionError, struct.error):
            header = {}
    return (header if isinstance(header, dict) else {}), size
