"""Reads an endpoint's archives from moto's S3 in this process, with the permissions of the execution role."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mme.local.s3 import blobs
from mme.local.sagemaker.errors import ArchiveUnavailable


class Archives:
    """A ``variant.Fetch`` over moto's S3."""

    def __init__(self, account: str, partition: str, may_read: Callable[[str, str, str], str | None]) -> None:
        """``may_read(role_arn, bucket, key)`` answers None, or why the role may not read the object."""
        self._account = account
        self._partition = partition
        self._may_read = may_read

    def __call__(self, *, bucket: str, key: str, role_arn: str, into: Path) -> Path:
        denied = self._may_read(role_arn, bucket, key)
        if denied is not None:
            raise ArchiveUnavailable(denied)
        item = self._find(bucket, key)
        if item is None:
            raise ArchiveUnavailable(f"There is no object s3://{bucket}/{key}.")
        archive = into / "archive.tar.gz"
        blobs.place(item.mme_blob or item.value, archive)
        return archive

    def _find(self, bucket: str, key: str) -> Any:
        from moto.s3.exceptions import S3ClientError
        from moto.s3.models import s3_backends

        backend = s3_backends[self._account][self._partition]
        try:
            return backend.get_object(bucket, key)
        except S3ClientError:
            return None
