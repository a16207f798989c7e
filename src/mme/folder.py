"""The files of a folder that may be read and packed: nothing stray, nothing special, no way out of the folder."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mme.errors import SourceError

# What editors, notebooks, version control and Python leave behind. Names that start with a dot are left out
# altogether: that covers .git, .ipynb_checkpoints, .DS_Store and, not least, .env.
STRAY = ("__pycache__", "__MACOSX", "*.pyc", "*.pyo", "*.egg-info", "*~", "#*#", "Thumbs.db", "desktop.ini")
_STRAY = re.compile("|".join(fnmatch.translate(pattern) for pattern in STRAY))
_ODD = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class FolderFile:
    """One regular file: its path inside the folder, with slashes, where to read it, and its size in bytes."""

    path: str
    origin: Path
    size: int


def is_stray(name: str) -> bool:
    """Whether a file or folder of this name is left out, since it is never part of a model or of its code."""
    return name.startswith(".") or _STRAY.match(name) is not None


def is_safe(path: str) -> bool:
    """Whether ``path``, relative and with slashes, stays inside whatever folder it is put in."""
    return not _ODD.search(path) and not {"", ".", ".."} & set(path.split("/"))


def files(folder: Path) -> list[FolderFile]:
    """Every file below ``folder`` that is not stray, by path. Links are followed as long as they stay inside.

    A snapshot in the Hub's cache is made of links to the blobs beside it, which count as inside.
    Raises SourceError for a link that leads out, a broken link, a pipe, socket or device, or an odd name.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise SourceError(f"{folder} is not a folder.", "Check the path.")
    allowed = [root]
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        allowed.append(root.parent.parent / "blobs")
    try:
        return sorted(_walk(folder, root, "", allowed, frozenset({root})), key=lambda file: file.path.encode())
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder} cannot be read: {error.strerror}.", "Check the folder."
        ) from None


def _walk(folder: Path, at: Path, inside: str, allowed: list[Path], above: frozenset[Path]) -> Iterator[FolderFile]:
    with os.scandir(at) as entries:
        for entry in entries:
            if is_stray(entry.name):
                continue
            path = inside + entry.name
            real = Path(entry.path)
            if entry.is_symlink():
                real = _followed(folder, path, real, allowed)
            if not is_safe(path) or not _encodes(path):
                raise SourceError(
                    f"{folder} holds a file with the name {path!r}, which is not safe to pack.", "Rename it."
                )
            try:
                status = real.stat() if entry.is_symlink() else entry.stat()
            except OSError as error:
                raise SourceError(f"{path} in {folder} cannot be read: {error.strerror}.", "Check it.") from None
            if stat.S_ISDIR(status.st_mode):
                if real in above:
                    raise SourceError(
                        f"{path} in {folder} is a link to a folder that it is itself inside of.", "Remove the link."
                    )
                yield from _walk(folder, real, path + "/", allowed, above | {real})
            elif stat.S_ISREG(status.st_mode):
                yield FolderFile(path, real, status.st_size)
            else:
                raise SourceError(
                    f"{path} in {folder} is neither a file nor a folder.", "Remove the pipe, socket or device."
                )


def _followed(folder: Path, path: str, link: Path, allowed: list[Path]) -> Path:
    try:
        real = link.resolve(strict=True)
    except (OSError, RuntimeError):
        raise SourceError(
            f"{path} in {folder} is a link to something that does not exist.", "Put the file itself there."
        ) from None
    if not any(real == root or root in real.parents for root in allowed):
        raise SourceError(
            f"{path} in {folder} is a link that leads out of the folder.",
            "Put the file itself there: what is packed must be what the folder shows.",
        )
    return real


def _encodes(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
