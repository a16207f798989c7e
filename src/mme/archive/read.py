"""Reading archives: the manifest from its end, or every file."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mme.archive.contents import MANIFEST, Archive, File, content_digest, load_manifest, target
from mme.archive.untar import extract as extract
from mme.archive.untar import reading
from mme.catalog.spec import NAME
from mme.errors import ArchiveError

# How much of an archive's end is enough to find the manifest of one with some 1,500 files.
TAIL = 256 * 1024


def open_archive(path: Path) -> Archive:
    """What the archive at ``path`` holds, by its manifest; the files themselves are not read.

    Raises ArchiveError when there is none, when it is not made by mme, or when its name is not that of its content.
    """
    manifest = read_manifest(path)
    try:
        content = tuple(File(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in manifest["files"])
        name, digest = str(manifest["name"]), str(manifest["digest"])
        size = path.stat().st_size
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArchiveError(f"The manifest of {path} is broken: {error!r}.", "Build the archive again.") from None
    if content_digest(content) != digest:
        raise ArchiveError(f"The manifest of {path} contradicts itself.", "Build the archive again.")
    if not NAME.fullmatch(name) or not path.name == Path(target(name, digest)).name:
        raise ArchiveError(f"{path} is the archive {target(name, digest)} under another name.", "Rename it back.")
    return Archive(path, name, digest, size, content, manifest)


def read_manifest(path: Path) -> Mapping[str, Any]:
    """The manifest of the archive at ``path``, from its last few kilobytes. Raises ArchiveError if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            manifest = manifest_from_tail(file.read())
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    if manifest is None:  # made by another tool, or very long: look through all of it
        for member in reading(path):
            if member.path == MANIFEST:
                manifest = load_manifest(b"".join(member.read()) if member.size < 64 << 20 else b"")
    if manifest is None:
        raise ArchiveError(
            f"{path} has no {MANIFEST} that can be read: mme did not make it.", "Only its list of files can be shown."
        )
    return manifest


def manifest_from_tail(tail: bytes) -> Mapping[str, Any] | None:
    """The manifest, given the last ``TAIL`` bytes of an archive (or fewer, when it is smaller); None if not there."""
    name = MANIFEST.encode().ljust(100, b"\0")
    at = tail.rfind(name)
    if at < 5:
        return None
    data, position = b"", at - 5
    while tail[position : position + 1] == b"\0":  # a stored block that is not the last
        size = int.from_bytes(tail[position + 1 : position + 3], "little")
        if size ^ int.from_bytes(tail[position + 3 : position + 5], "little") != 0xFFFF:
            return None
        data += tail[position + 5 : position + 5 + size]
        position += 5 + size
    try:
        header = tarfile.TarInfo.frombuf(data[:512], "utf-8", "strict")
    except (tarfile.TarError, UnicodeDecodeError):
        return None
    return load_manifest(data[512 : 512 + max(0, header.size)])


def contents(path: Path) -> tuple[File, ...]:
    """Every file of any archive, read and hashed, manifest included; of a file that comes twice, the last.

    Raises ArchiveError when it is broken or hostile.
    """
    files: dict[str, File] = {}
    for member in reading(path):
        digest = hashlib.sha256()
        for data in member.read():
            digest.update(data)
        if not member.is_folder:
            files[member.path] = File(member.path, member.size, digest.hexdigest())
    return tuple(files.values())


def check(path: Path) -> Archive:
    """Read all of the archive and compare every byte with its manifest and its name. Raises ArchiveError."""
    archive = open_archive(path)
    real = tuple(file for file in contents(path) if file.path != MANIFEST)
    if sorted(real, key=lambda file: file.path.encode()) != list(archive.files):
        raise ArchiveError(f"{path} does not hold what its manifest says.", "Build the archive again.")
    return archive
