"""The checksums that S3 knows."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from typing import Protocol

from mme.local.s3.blobs import Blob

# -- checksums


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc:
    def __init__(self, step: Callable[[bytes, int], int], width: int) -> None:
        self._step = step
        self._width = width
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._step(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._width, "big")


def hasher(algorithm: str) -> Hash | None:
    """A hash object for S3's checksum ``algorithm`` (crc32, crc32c, crc64nvme, sha1, sha256); None where it is not
    available.

    CRC32C and CRC64NVME need the package awscrt; without it such a checksum is stored as it was sent.
    """
    name = algorithm.lower()
    if name == "sha256":
        return hashlib.sha256()
    if name == "sha1":
        return hashlib.sha1(usedforsecurity=False)
    if name == "crc32":
        from isal import isal_zlib

        return _Crc(isal_zlib.crc32, 4)
    if name in ("crc32c", "crc64nvme"):
        try:
            checksums = importlib.import_module("awscrt.checksums")
        except ImportError:
            return None
        return _Crc(getattr(checksums, name), 8 if name == "crc64nvme" else 4)
    return None


def digest(value: Blob | bytes, algorithm: str) -> bytes | None:
    """The checksum ``algorithm`` of the bytes, which are read only if it is not known; None where the algorithm is not
    available."""
    if isinstance(value, Blob) and algorithm.lower() in value.digests:
        return value.digests[algorithm.lower()]
    checksum = hasher(algorithm)
    if checksum is not None:
        for data in [value] if isinstance(value, bytes) else value.view():
            checksum.update(data)
    return None if checksum is None else checksum.digest()


def digest_of_all(parts: list[Blob | bytes], algorithm: str) -> bytes | None:
    """The checksum ``algorithm`` of all parts in a row; None where the algorithm is not available."""
    if algorithm.lower() == "crc32":
        from isal import isal_zlib

        total = 0
        for part in parts:  # out of the parts' own, without reading them
            one = int.from_bytes(digest(part, algorithm) or b"", "big")
            total = isal_zlib.crc32_combine(total, one, len(part))
        return total.to_bytes(4, "big")
    checksum = hasher(algorithm)
    if checksum is None:
        return None
    for part in parts:
        for data in [part] if isinstance(part, bytes) else part.view():
            checksum.update(data)
    return checksum.digest()
