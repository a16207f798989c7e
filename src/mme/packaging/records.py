"""What is known of a model's last archive: OUT/NAME.json."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mme.archive.contents import FILE_NAME, Archive
from mme.archive.read import open_archive
from mme.archive.untar import extract as extract
from mme.errors import ArchiveError

# --- what was built last, for each model: OUT/NAME.json ------------------------------------------------------


def record_path(out: Path, name: str) -> Path:
    """Where ``note`` keeps what is known of a model's last archive. A name has no dot, so it hides no archive."""
    return out / f"{name}.json"


def note(out: Path, archive: Archive, **more: Any) -> None:
    """Remember ``archive`` as the last one built for its model; ``more`` is for ``mme.packaging`` alone."""
    record = {
        "target": archive.target,
        "digest": archive.digest,
        "size": archive.size,
        "crc32": archive.crc32,
        **more,
    }
    path = record_path(out, archive.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{os.getpid()}.new")
    partial.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def recorded(out: Path, name: str) -> Mapping[str, Any] | None:
    """What ``note`` wrote for this model, or None."""
    try:
        record = json.loads(record_path(out, name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True)
class Latest:
    """The archive of a model that was built last; ``size`` in bytes is that of the file as it is now."""

    name: str
    target: str
    digest: str
    size: int


def latest(out: Path, name: str) -> Latest | None:
    """The record of the archive of ``name`` that was built last in ``out``; None when that archive is not there.

    Nothing of the archive is read, and nothing compared: ``built`` does that.
    """
    record = recorded(out, name)
    if record is None or not FILE_NAME.fullmatch(str(record.get("target"))):
        return None
    target = str(record["target"])
    try:
        status = os.stat(out / target)  # noqa: PTH116 - pathlib would look twice
    except OSError:
        return None
    return Latest(name, target, str(record.get("digest")), status.st_size) if stat.S_ISREG(status.st_mode) else None


def built(out: Path, name: str) -> Archive | None:
    """The archive of the model ``name`` that was built last in ``out``, or None when there is none.

    Its manifest is read, and its size compared with what was noted, so that a file cut short is not taken.
    Raises ArchiveError when the file is there but broken.
    """
    record = recorded(out, name)
    if record is None or not FILE_NAME.fullmatch(str(record.get("target"))):
        return None
    path = out / str(record["target"])
    if not path.is_file():
        return None
    archive = open_archive(path)
    if archive.name != name or archive.digest != record.get("digest") or archive.size != record.get("size"):
        raise ArchiveError(f"{path} is not the archive that was built.", "Package the model again.")
    crc32 = record.get("crc32")
    return replace(archive, crc32=crc32 if isinstance(crc32, int) else None)


def superseded(out: Path) -> dict[str, int]:
    """The archives in ``out`` that are not the last build of their model, with their sizes in bytes, by path.

    An archive of a model without a record is left out: it may be the newest.
    """
    sizes: dict[str, int] = {}
    for path in sorted(out.rglob("*.tar.gz")):
        target = path.relative_to(out).as_posix()
        match = FILE_NAME.fullmatch(target)
        record = recorded(out, match["name"]) if match else None
        if record is not None and record.get("target") != target and path.is_file() and not path.is_symlink():
            sizes[target] = path.stat().st_size
    return sizes
