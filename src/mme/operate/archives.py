"""Checks released archives in the bucket: files at the wrong level, libraries that no image has, versions too old.

Archives are not fetched in full: our own have a manifest at their end, and for others the beginning lists the first
files.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from mme.archive import read
from mme.archive.handler import SAMPLE
from mme.archive.untar import members
from mme.aws import CONNECTIONS, concerns_every_call, explained
from mme.errors import ArchiveError
from mme.operate import processors
from mme.operate.findings import Finding, error, ok, unknown, warning
from mme.packaging import imports

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

HEAD = 1 << 20  # bytes of an archive's beginning that are looked at
MOST_INFLATED = 16 << 20
MOST_CODE = 1 << 20  # bytes of a handler's file

_READ = (".py", ".txt", f"/{SAMPLE}")

# The version of transformers that first had the models whose classes begin so.
FIRST_IN: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("Gemma",), (4, 38)),
    **dict.fromkeys(("Mamba", "Starcoder2", "Cohere", "StableLm"), (4, 39)),
    **dict.fromkeys(("Olmo", "Jamba", "Dbrx", "RecurrentGemma", "GroundingDino", "Idefics2"), (4, 40)),
    **dict.fromkeys(("Phi3", "PaliGemma"), (4, 41)),
    **dict.fromkeys(("Gemma2", "RTDetr"), (4, 42)),
    **dict.fromkeys(("Mamba2", "Nemotron"), (4, 44)),
    **dict.fromkeys(("Granite", "Qwen2VL", "OlmoE", "Olmoe", "Mllama", "FalconMamba"), (4, 45)),
    **dict.fromkeys(("Glm", "Phimoe"), (4, 46)),
    **dict.fromkeys(("Olmo2", "IJepa"), (4, 47)),
    **dict.fromkeys(("ModernBert", "Cohere2", "Dinov2WithRegisters", "Bamba", "TimmWrapper"), (4, 48)),
    **dict.fromkeys(("Helium", "Siglip2", "Qwen2_5_VL", "RTDetrV2", "Zamba2"), (4, 49)),
    **dict.fromkeys(("Gemma3", "Mistral3"), (4, 50)),
    **dict.fromkeys(("Qwen3", "Llama4", "DeepseekV3", "Glm4"), (4, 51)),
    **dict.fromkeys(("SmolLM3", "Gemma3n", "Dia"), (4, 53)),
    **dict.fromkeys(("ModernBertDecoder", "Ernie4_5", "Lfm2", "Exaone4"), (4, 54)),
    **dict.fromkeys(("GptOss",), (4, 55)),
    **dict.fromkeys(("DINOv3",), (4, 56)),
    **dict.fromkeys(("Qwen3Next", "Qwen3VL", "VaultGemma"), (4, 57)),
}


@dataclass(frozen=True)
class Seen:
    """What was seen of an archive. ``names``: its files; ``complete``: whether these are all of them. ``code``: files
    of the handler."""

    target: str
    manifest: Mapping[str, Any] | None
    names: tuple[str, ...]
    complete: bool
    code: Mapping[str, bytes] = field(default_factory=dict)
    broken: str | None = None


@dataclass(frozen=True)
class Place:
    """Where archives are to run: the version of transformers in the image, where it is known, and the instance
    types."""

    transformers: tuple[int, ...] | None
    instance_types: tuple[str, ...]


def look(s3: S3Client, bucket: str, keys: Mapping[str, tuple[str, int]]) -> list[Seen]:
    """What is in each archive: ``keys`` gives key and size by target. Two requests for each at most, 16 at a time.

    Raises ReleaseError where the bucket cannot be read at all.
    """
    with explained(f"read archives of s3://{bucket}", bucket=bucket), ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(lambda item: _look(s3, bucket, item[0], *item[1]), keys.items()))


def _look(s3: S3Client, bucket: str, target: str, key: str, size: int) -> Seen:
    def part(span: str) -> bytes:
        return s3.get_object(Bucket=bucket, Key=key, Range=span)["Body"].read()

    try:
        if size == 0:
            return Seen(target, None, (), True, broken="it is empty")
        tail = part(f"bytes=-{read.TAIL}")
        manifest = read.manifest_from_tail(tail)
        head = tail if size <= len(tail) else part(f"bytes=0-{HEAD - 1}")
    except ClientError as problem:
        if concerns_every_call(problem):
            raise
        return Seen(target, None, (), False, broken=f"it cannot be read ({problem.response['Error'].get('Code')})")
    names, code, complete, broken = _beginning(head, size <= len(head))
    if manifest is not None:
        names, complete = tuple(str(file["path"]) for file in manifest.get("files", ())), True
    return Seen(target, manifest, names, complete, code, broken)


def _inflated(head: bytes) -> bytes:
    """The tar inside the beginning of a gzip file, as far as that goes and no further than MOST_INFLATED."""
    tar, left = b"", head
    while left and len(tar) < MOST_INFLATED:
        inflate = zlib.decompressobj(wbits=31)
        try:
            tar += inflate.decompress(left, MOST_INFLATED - len(tar))
        except zlib.error as problem:
            if tar:
                break
            raise ArchiveError(f"it is not a gzip file ({problem})") from None
        left = inflate.unused_data if inflate.eof else b""
    return tar


def _beginning(head: bytes, complete: bool) -> tuple[tuple[str, ...], dict[str, bytes], bool, str | None]:
    """Names and handler's files in the beginning of an archive, whether that is all, and what is broken about it."""
    names: list[str] = []
    code: dict[str, bytes] = {}
    if not head.startswith(b"\x1f\x8b"):
        return (), {}, True, "it is not a gzip file"
    try:
        for member in members(io.BytesIO(_inflated(head))):
            if member.is_folder:
                continue
            names.append(member.path)
            if member.path.startswith("code/") and member.size <= MOST_CODE and member.path.endswith(_READ):
                code[member.path] = b"".join(member.read())
    except ArchiveError as problem:
        # The beginning of a longer archive ends in the middle; only a complete one counts as broken then.
        return tuple(names), code, False, None if names and not complete else problem.message.rstrip(".")
    return tuple(names), code, True, None


def check(seen: Sequence[Seen], place: Place) -> list[Finding]:
    """What is wrong with the archives, and one finding for all that is not."""
    findings: list[Finding] = []
    for item in seen:
        findings += [*_levels(item), *_libraries(item), *_version(item, place), *_format(item, place)]
    if seen and not any(finding.wrong for finding in findings):
        findings.append(ok("archives", f"{len(seen)} archives: nothing wrong was seen in them"))
    return findings


# ---- files at the wrong level -------------------------------------------------------------------------------------


def _levels(item: Seen) -> Iterator[Finding]:
    check = "archive: files"
    if item.broken:
        yield error(
            "archive",
            f"{item.target}: {item.broken}.",
            "Upload it again; an archive is a tar in gzip with the model's files at its root.",
            f"invoke delete --target {item.target}",
        )
        return
    tops = {name.partition("/")[0] for name in item.names if "/" in name}
    at_root = [name for name in item.names if "/" not in name]
    again = "tar -czf model.tar.gz -C FOLDER ."
    if not at_root and len(tops) == 1 and tops != {"code"}:
        (top,) = tops
        what = f"{item.target}: everything in it lies in the folder {top}/, where no container looks"
        if item.complete:
            yield error(check, f"{what}.", "Pack the folder's content, not the folder.", again.replace("FOLDER", top))
        else:
            yield warning(check, f"{what}, as far as its beginning tells.", "Pack the folder's content.", again)
        return
    if "inference.py" in at_root and "code/inference.py" not in item.names and item.complete:
        yield error(
            check,
            f"{item.target}: inference.py lies at the root, and containers look for code/inference.py.",
            "Move the handler into code/ and pack again.",
            again,
        )
    if "code" in tops and "code/inference.py" not in item.names and item.complete:
        nested = next((name for name in item.names if name.endswith("/inference.py")), None)
        why = f"it is at {nested}" if nested else "there is none"
        yield error(check, f"{item.target}: it has a folder code/ without inference.py: {why}.", "Put it there.", again)
    if item.complete and "config.json" not in at_root and "code/inference.py" not in item.names:
        yield error(
            check,
            f"{item.target}: it has neither config.json at its root nor code/inference.py: no container can load it.",
            "Pack the files that save_pretrained wrote, at the root.",
            again,
        )


# ---- libraries ----------------------------------------------------------------------------------------------------


def _libraries(item: Seen) -> Iterator[Finding]:
    check = "handler: libraries"
    has = {
        name.removeprefix("code/").partition("/")[0].partition(".")[0]
        for name in item.names
        if name.startswith("code/")
    }
    for name, source in item.code.items():
        if name.endswith("requirements.txt") and name.count("/") == 1 and item.manifest is None:
            wanted = [line.strip() for line in source.decode("utf-8", "replace").splitlines()]
            wanted = [line for line in wanted if line and not line.startswith(("#", "-"))]
            lacking = [line for line in wanted if imports.name_of(line) not in imports.IMAGE_IMPORTS | has]
            if lacking:
                yield error(
                    check,
                    f"{item.target}: code/requirements.txt asks for {', '.join(lacking)}, and a container in "
                    "multi-model mode "
                    "installs nothing.",
                    "Package it with mme, which lays the libraries into the archive, or build an image that has them.",
                    f"invoke package --model {item.target.rpartition('-')[0] or 'NAME'}",
                )
                return
    lacking_imports = imports.lacking(
        {name: source for name, source in item.code.items() if name.endswith(".py") and name.count("/") == 1}, has
    )
    if lacking_imports and item.complete:
        words = ", ".join(f"{imported} ({name})" for imported, name in lacking_imports.items())
        yield error(
            check,
            f"{item.target}: its handler imports {words}, which neither the archive nor an image has.",
            "Name it in requirements.txt beside the handler, with its version, and package again; or build an image "
            "that has "
            "it.",
            f"invoke package --model {item.target.rpartition('-')[0] or 'NAME'}",
        )


# ---- versions and formats -----------------------------------------------------------------------------------------


def first_version(architecture: str) -> tuple[int, int] | None:
    """The version of transformers that first had a model class of this name, where it is a late one."""
    fitting = [
        prefix
        for prefix in FIRST_IN
        if architecture.startswith(prefix) and not architecture[len(prefix) :][:1].islower()
    ]
    return FIRST_IN[max(fitting, key=len)] if fitting else None


def _version(item: Seen, place: Place) -> Iterator[Finding]:
    architecture = (item.manifest or {}).get("architecture")
    if not isinstance(architecture, str) or (item.manifest or {}).get("trust_remote_code"):
        return
    first = first_version(architecture)
    if first is None:
        return
    if place.transformers is None:
        yield unknown(
            "transformers",
            f"{item.target} is a {architecture}, which transformers has since {first[0]}.{first[1]}; the image's "
            "name does not "
            "say which version it has.",
        )
    elif place.transformers[:2] < first:
        has = ".".join(map(str, place.transformers))
        yield error(
            "transformers",
            f"{item.target} is a {architecture}, which transformers has since {first[0]}.{first[1]}; the image has "
            f"{has}.",
            "Take an image with a later version, as the module's default is.",
            "terraform apply",
        )


def _format(item: Seen, place: Place) -> Iterator[Finding]:
    manifest = item.manifest or {}
    dtype, quantize = manifest.get("dtype"), manifest.get("quantize")
    for kind in dict.fromkeys(place.instance_types):
        lacking = processors.lacks(
            kind, dtype if isinstance(dtype, str) else None, quantize if isinstance(quantize, str) else None
        )
        if lacking:
            better = "m7i, c7i or r7i, or a GPU" if "float" in lacking else "m6i, c6i or r6i, or a later one"
            yield warning(
                "processor",
                f"{item.target} is stored as {quantize or dtype}, and {kind} has no {lacking}: it takes less memory, "
                "but "
                "answers no faster, or slower.",
                f"Take instances of {better}, or package it in float32.",
            )
