"""Shows an archive's manifest, read from its end: of a file on disk, or of an object in the bucket."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mme import aws, console
from mme.archive import contents, read
from mme.errors import ArchiveError
from mme.settings import Settings
from mme.snapshot import accuracy

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

TRUST = "runs only on an endpoint whose environment says HF_TRUST_REMOTE_CODE=true"
"""A note for models that bring Python of their own (trust_remote_code)."""


def manifest(where: str, settings: Settings) -> Mapping[str, Any]:
    """The manifest of the archive at ``where``: a file, an s3:// URI, or a target model below the settings' prefix.

    Raises ArchiveError or ReleaseError.
    """
    if where.startswith("s3://"):
        bucket, _, key = where.removeprefix("s3://").partition("/")
        return from_object(aws.s3_client(settings.region), bucket, key)
    if Path(where).exists() or not contents.FILE_NAME.fullmatch(where) or not settings.knows_bucket:
        return read.read_manifest(Path(where))
    return from_object(aws.s3_client(settings.region), settings.bucket, settings.prefix + where)


def from_object(s3: S3Client, bucket: str, key: str) -> Mapping[str, Any]:
    """The manifest of the archive in the bucket; one request for its last 256 KiB."""
    uri = f"s3://{bucket}/{key}"
    with aws.explained(f"read {uri}", bucket=bucket):
        tail = s3.get_object(Bucket=bucket, Key=key, Range=f"bytes=-{read.TAIL}")["Body"].read()
    values = read.manifest_from_tail(tail)
    if values is None:
        raise ArchiveError(
            f"{uri} has no {contents.MANIFEST} at its end: mme did not make it, or it has very many files.",
            "Download it to look inside.",
        )
    return values


def text(manifest: Mapping[str, Any], with_files: bool) -> str:
    """The manifest for people."""
    files: Sequence[Mapping[str, Any]] = manifest.get("files", [])
    handler = manifest.get("handler") or {}
    libraries = manifest.get("libraries") or {}
    parameters = manifest.get("parameters")
    lines = [
        ("target", contents.target(str(manifest.get("name")), str(manifest.get("digest")))),
        ("digest", manifest.get("digest")),
        ("source", manifest.get("source")),
        ("revision", manifest.get("revision")),
        ("adapter", adapter_text(manifest)),
        ("architecture", manifest.get("architecture")),
        ("task", manifest.get("task")),
        ("own code", TRUST if manifest.get("trust_remote_code") else None),
        ("parameters", f"{parameters:,}" if isinstance(parameters, int) else None),
        ("unused", "; ".join(manifest.get("unused", ())) or None),
        ("dtype", manifest.get("dtype")),
        ("quantize", manifest.get("quantize")),
        ("accuracy", accuracy_text(manifest.get("accuracy"))),
        ("handler", f"{handler['name']} ({str(handler.get('digest'))[:12]})" if handler.get("name") else "none"),
        ("requires", ", ".join(manifest.get("requirements") or ()) or None),
        ("licence", manifest.get("licence")),
        ("made with", ", ".join(f"{name} {version}" for name, version in sorted(libraries.items())) or None),
        ("created by", manifest.get("created_by")),
        ("notes", manifest.get("notes")),
        ("files", f"{len(files)}, {console.size(sum(int(file.get('size', 0)) for file in files))}"),
    ]
    shown = [f"{name:<13}{value}" for name, value in lines if value]
    if with_files:
        rows = [(str(file["path"]), console.size(int(file["size"])), str(file["sha256"])[:12]) for file in files]
        shown += ["", console.table(("path", "size", "sha256"), rows)]
    # Control characters in someone else's text must not reach the terminal.
    return _CONTROL.sub("?", "\n".join(shown))


def adapter_text(manifest: Mapping[str, Any]) -> str | None:
    """The adapter, and whether it is part of the weights or lies beside them."""
    if "adapter" not in manifest:
        return None
    revision = f" at {manifest['adapter_revision']}" if "adapter_revision" in manifest else ""
    apart = manifest.get("adapter_apart")
    if not apart:
        return f"{manifest['adapter']}{revision}, merged"
    ranks = ", ".join(map(str, apart.get("ranks", ())))
    return (
        f"{manifest['adapter']}{revision}, kept apart: {apart.get('layers')} layers, rank {ranks}, "
        f"{int(apart.get('parameters', 0)):,} parameters"
    )


def accuracy_text(measured: Mapping[str, Any] | None) -> str | None:
    """The loss of accuracy that the manifest records, in words."""
    return accuracy.words(measured) if measured else None
