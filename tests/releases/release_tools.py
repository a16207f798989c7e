"""What the tests of releases share: a model to publish, and an S3 client that is watched."""

from __future__ import annotations

import base64
import hashlib
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from mme import releases
from mme.multipart import PART, first_part
from mme.releases import Store, Stream

STORE = Store("models-bucket", "models/")
DIGEST = hashlib.sha256(b"a model").hexdigest()
TARGET = f"bert-{DIGEST[:12]}.tar.gz"
FIRST = first_part(PART, {"mme-digest": DIGEST, "mme-author": "ada"})
"""Where the first part ends, of an upload by ada and without notes."""
BIG = random.Random(7).randbytes(FIRST + 2 * PART + 12345)


class Watched:
    """An S3 client that notes each call's name, and runs ``before[name]`` ahead of such a call."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls: list[str] = []
        self.before: dict[str, Callable[..., None]] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.client, name)
        if not callable(real) or name in ("get_paginator",):
            return real

        def call(**given: Any) -> Any:
            self.calls.append(name)
            if name in self.before:
                self.before[name](**given)
            return real(**given)

        return call


def refusal(code: str, status: int, operation: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        operation,
    )


def publish(s3: Any, content: Path | Stream | bytes, tmp_path: Path | None = None, **more: Any) -> releases.Published:
    if isinstance(content, bytes):
        assert tmp_path is not None
        path = tmp_path / "archive.tar.gz"
        path.write_bytes(content)
        content = path
    given = {"name": "bert", "digest": DIGEST, "author": "ada", **more}
    return releases.publish(s3, STORE, content=content, **given)


def body_of(s3: Any, target: str = TARGET) -> bytes:
    return bytes(s3.get_object(Bucket=STORE.bucket, Key=f"models/{target}")["Body"].read())


def crc_of(data: bytes) -> str:
    return base64.b64encode(struct.pack(">I", zlib.crc32(data))).decode()


def in_chunks(content: bytes, size: int) -> Stream:
    def send(write: Callable[[bytes], object]) -> None:
        for start in range(0, len(content), size):
            write(content[start : start + size])

    return Stream(send, len(content))


class Killed(BaseException):
    """Stands for the end of the process."""


def stop_at_part(s3: Any, number: int, error: BaseException) -> Watched:
    watched = Watched(s3)

    def check(**given: Any) -> None:
        if given["PartNumber"] >= number:
            raise error

    watched.before["upload_part"] = check
    return watched


def failing_pages(s3: Any, monkeypatch: pytest.MonkeyPatch, operation: str, error: Exception) -> None:
    """Make the listing ``operation`` of this client fail."""

    class Failing:
        def paginate(self, **_: Any) -> Any:
            raise error

    real = s3.get_paginator
    monkeypatch.setattr(s3, "get_paginator", lambda name: Failing() if name == operation else real(name))
