"""Files that lie beside a model: those that the catalogue takes along, and those that are left out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mme.catalog.spec import ModelSpec
from mme.errors import SourceError, nearest
from mme.folder import FolderFile
from mme.snapshot import foreign

MOST_NAMED = 20
CODE = "code/"
OWN_HANDLER = "code/inference.py"


def matcher(pattern: str) -> re.Pattern[str]:
    """What a pattern of the catalogue's ``files`` matches: ``*`` and ``?`` within a name, ``**`` across folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    meant = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meant.get(part, re.escape(part)) for part in parts))


def chosen(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that one of the patterns matches."""
    compiled = [matcher(pattern) for pattern in patterns]
    return [name for name in names if any(one.fullmatch(name) for one in compiled)]


def write(spec: ModelSpec, files: Sequence[FolderFile], into: Path) -> None:
    """Copy what the catalogue's ``files`` name, but for what the snapshot has already. Raises SourceError for a pattern
    that names nothing."""
    names = [item.path for item in files]
    for pattern in spec.files:
        taken = chosen([pattern], names)
        if not taken:
            raise SourceError(
                f"{spec.name} ({spec.source}) has no file that is {pattern!r}, which its files name.",
                nearest(pattern, names, "There are"),
            )
        inside = [name for name in taken if name.startswith(CODE)]
        if inside:
            raise SourceError(
                f"{spec.name} ({spec.source}): files names {inside[0]}, and code/ is where the handler's files go.",
                'Make it a handler: handler = "PATH/code".',
            )
    wanted = set(chosen(spec.files, names))
    for item in files:
        target = into / item.path
        if item.path in wanted and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(item.origin, target)


def left_out(spec: ModelSpec, files: Sequence[FolderFile], into: Path) -> Mapping[str, Any]:
    """For the manifest: the files of the source that the archive leaves out, except those that are never part of a
    model."""
    handler = spec.handler.resolve() if spec.handler is not None else None
    missing = [
        item.path
        for item in files
        if not (into / item.path).exists()
        and not foreign.is_junk(item.path)
        and (handler is None or handler not in item.origin.resolve().parents)
    ]
    if not missing:
        return {}
    more = len(missing) - MOST_NAMED
    return {"left_out": missing[:MOST_NAMED] + ([f"and {more} more"] if more > 0 else [])}


def words(names: Sequence[str]) -> str:
    """What a manifest says of the files that were left out, for people."""
    rest = [name for name in names if not name.startswith(CODE)]
    said = []
    if any(name == OWN_HANDLER for name in names):
        said.append("its own code/inference.py is left out: the handler of its table is used")
    elif len(rest) < len(names):
        said.append("its own code/ is left out")
    if rest:
        said.append(f"left out: {', '.join(rest)} (files in its table takes more along)")
    return "; ".join(said)
