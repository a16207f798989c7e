"""What an archive is: its files, its name, and the digest of its content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mme.archive.untar import extract as extract
from mme.catalog.spec import NAME

MANIFEST = "mme-manifest.json"
FORMAT = 1
DIGITS = 12
SUFFIX = ".tar.gz"
FILE_NAME = re.compile(rf"(?P<name>{NAME.pattern})-(?P<digest>[0-9a-f]{{{DIGITS}}}){re.escape(SUFFIX)}")


@dataclass(frozen=True)
class File:
    """One file of an archive: its path, its size in bytes, the sha256 of its content in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Archive:
    """A finished archive. ``digest`` is of the content (64 hexadecimal digits), ``size`` of the gzip file in bytes.

    ``path`` is None when it was streamed and never written here. ``files`` leaves the manifest out. ``crc32`` is of
    the gzip file as it was written, where that is known: a later reader of the file can check that it is unchanged.
    """

    path: Path | None
    name: str
    digest: str
    size: int
    files: tuple[File, ...]
    manifest: Mapping[str, Any]
    crc32: int | None = field(default=None, compare=False)

    @property
    def target(self) -> str:
        """The target model: the archive's path below the model prefix, and below the folder it is built in."""
        return target(self.name, self.digest)


def target(name: str, digest: str) -> str:
    return f"{name}-{digest[:DIGITS]}{SUFFIX}"


def content_digest(content: Sequence[File]) -> str:
    """The digest that names a version: of every file's path, size and sha256, in order of path."""
    digest = hashlib.sha256(b"mme archive 1\n")
    for file in sorted(content, key=lambda file: file.path.encode()):
        digest.update(f"{file.sha256} {file.size} {file.path}\n".encode())
    return digest.hexdigest()


def load_manifest(data: bytes) -> Mapping[str, Any] | None:
    """The manifest in ``data``; None when it is not a manifest of this format."""
    try:
        manifest = json.loads(data)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            return None
        json.dumps(manifest, ensure_ascii=False, allow_nan=False).encode()  # a lone surrogate cannot be shown
    except (ValueError, RecursionError):
        return None
    return manifest if _is_sound(manifest) else None


def _is_sound(manifest: Mapping[str, Any]) -> bool:
    """Whether the values that are read have the types that they are written with."""
    shapes = {"handler": dict, "libraries": dict, "requirements": list, "accuracy": dict, "adapter_apart": dict}
    if not all(isinstance(manifest.get(key) or kind(), kind) for key, kind in shapes.items()):
        return False
    files, accuracy, apart = manifest.get("files", []), manifest.get("accuracy") or {}, manifest.get("adapter_apart")
    return (
        isinstance(files, list)
        and all(map(_is_file, files))
        and all(isinstance(item, str) for item in manifest.get("requirements") or ())
        and all(_is_number(accuracy.get(key, 0)) for key in ("worst", "mean", "bound"))
        and (accuracy.get("same_choice") is None or _is_number(accuracy["same_choice"]))
        and isinstance((apart or {}).get("ranks", []), list)
        and _is_number((apart or {}).get("parameters", 0))
    )


def _is_file(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("path"), str)
        and isinstance(item.get("sha256"), str)
        and type(item.get("size")) is int
        and 0 <= item["size"] < 1 << 63
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1 << 63
