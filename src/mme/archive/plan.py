"""What an archive will hold, before it is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

from mme import __version__
from mme.archive import handler
from mme.archive.contents import FORMAT, MANIFEST, File, content_digest, target
from mme.archive.gzipstream import CHUNK
from mme.archive.untar import extract as extract
from mme.catalog.spec import ModelSpec
from mme.errors import ArchiveError
from mme.folder import files

Progress = Callable[[int], object]
"""Called with the number of bytes read since the last call."""


@dataclass(frozen=True)
class Item:
    """A file to be packed: from a file on disk, or from bytes at hand."""

    path: str
    origin: Path | bytes
    size: int


@dataclass(frozen=True)
class Plan:
    """What an archive will hold, before it is made. ``files`` are the items' digests, in the same order."""

    name: str
    digest: str
    items: tuple[Item, ...]
    files: tuple[File, ...]
    manifest: Mapping[str, Any]

    @property
    def target(self) -> str:
        return target(self.name, self.digest)

    @property
    def content_size(self) -> int:
        """The bytes of all files together; a stored archive is a few parts in ten thousand larger."""
        return sum(item.size for item in self.items)


def collect(spec: ModelSpec, snapshot: Path, vendored: Path | None = None) -> tuple[Item, ...]:
    """What goes into the archive, in order of path: the model at the root, the handler below code/.

    ``vendored`` is a folder of libraries that go into code/ beside the handler. Raises SourceError,
    HandlerError or ArchiveError when something may not be packed.
    """
    items = {file.path: Item(file.path, file.origin, file.size) for file in files(snapshot)}
    items.pop(MANIFEST, None)
    code: list[Item] = []
    if spec.handler is not None:
        if any(path == "code" or path.startswith("code/") for path in items):
            raise ArchiveError(
                f"The snapshot of {spec.name} has a code folder, where the handler goes.", "Remove it from the source."
            )
        settings = json.dumps(spec.settings, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        code = [
            Item(f"code/{file.path}", file.origin, file.size)
            for file in handler.check(spec.handler)
            if file.path != handler.REQUIREMENTS
        ]
        code.append(Item(f"code/{handler.SETTINGS}", settings.encode(), len(settings.encode())))
        if vendored is not None:
            code += [Item(f"code/{file.path}", file.origin, file.size) for file in files(vendored)]
    for item in code:
        if item.path in items:
            raise ArchiveError(
                f"{item.path} comes both with the handler and with a library it requires.", "Rename the handler's file."
            )
        items[item.path] = item
    if "config.json" not in items:
        raise ArchiveError(f"The snapshot of {spec.name} in {snapshot} has no config.json.", "It is not a model.")
    return tuple(sorted(items.values(), key=lambda item: item.path.encode()))


def plan(
    spec: ModelSpec,
    snapshot: Path,
    *,
    vendored: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    known: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Hash everything that goes into an archive, so that its name is known before it is made.

    ``known`` gives the sha256 of files, by path, that were hashed when they were written. Such a digest is
    not believed blindly: making the archive hashes each file again and compares.
    """
    items = collect(spec, snapshot, vendored)
    content = []
    for item in items:
        sha256 = (known or {}).get(item.path)
        if sha256 is None:
            digest = hashlib.sha256()
            size = 0
            for data in _chunks(item):
                digest.update(data)
                size += len(data)
                if progress:
                    progress(len(data))
            check_size(item, size)
            sha256 = digest.hexdigest()
        content.append(File(item.path, item.size, sha256))
    digest_ = content_digest(content)
    return Plan(spec.name, digest_, items, tuple(content), manifest_of(spec, digest_, content, facts))


# --- writing -------------------------------------------------------------------------------------------------


def manifest_of(
    spec: ModelSpec, digest: str, content: Sequence[File], facts: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    ordered = sorted(content, key=lambda file: file.path.encode())
    code = [replace(file, path=file.path.removeprefix("code/")) for file in ordered if file.path.startswith("code/")]
    return {
        "format": FORMAT,
        "name": spec.name,
        "digest": digest,
        "source": str(spec.source),
        **({"revision": spec.revision} if spec.revision else {}),
        **({"adapter": str(spec.adapter)} if spec.adapter else {}),
        **({"adapter_revision": spec.adapter_revision} if spec.adapter_revision else {}),
        **({"task": spec.task} if spec.task else {}),
        **({"trust_remote_code": True} if spec.trust_remote_code else {}),
        **({"handler": {"name": spec.handler.name, "digest": content_digest(code)}} if spec.handler else {}),
        **({"notes": spec.notes} if spec.notes else {}),
        **(facts or {}),
        "created_by": f"mme {__version__}",
        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in ordered],
    }


def open_item(path: str, origin: Path) -> FileIO:
    try:
        return FileIO(origin)
    except OSError as error:
        raise ArchiveError(f"{path} ({origin}) cannot be read: {error.strerror}.", "Check the file.") from None


def _chunks(item: Item) -> Iterator[bytes]:
    if isinstance(item.origin, bytes):
        yield item.origin
        return
    with open_item(item.path, item.origin) as file:
        while data := file.read(CHUNK):
            yield data


def check_size(item: Item, size: int) -> None:
    if size != item.size:
        raise ArchiveError(
            f"{item.path} changed while it was packed: it had {item.size:,} bytes, and {size:,} were read.",
            "Run the command again when nothing writes to it.",
        )
