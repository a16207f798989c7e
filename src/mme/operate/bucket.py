"""Lists what the bucket holds, beside released versions, for doctor's checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from mme import channels, releases
from mme.archive.contents import SUFFIX
from mme.aws import explained
from mme.operate.findings import Finding, error, ok

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

Keys = dict[str, tuple[str, int]]
"""Archives below a prefix: key and size in bytes, by target."""


def key_of(s3: S3Client, bucket: str) -> str | None:
    """The key of its own that a bucket encrypts with, where it has one and that may be read."""
    try:
        rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    except ClientError:
        return None
    for rule in rules:
        default: Any = rule.get("ApplyServerSideEncryptionByDefault") or {}
        key = str(default.get("KMSMasterKeyID") or "")
        if str(default.get("SSEAlgorithm", "")).startswith("aws:kms") and key.startswith("arn:"):
            return key
    return None


def keys(s3: S3Client, store: releases.Store) -> tuple[Keys, list[str], list[str]]:
    """Archives below the prefix by target (key, size), newest first; what else lies there; where else archives lie."""
    archives: list[tuple[Any, str, int]] = []
    others = []
    with explained(f"list {store.uri()}", bucket=store.bucket):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=store.prefix):
            for item in page.get("Contents", []):
                if item["Key"].endswith(SUFFIX):
                    archives.append((item["LastModified"], item["Key"], item["Size"]))
                elif not item["Key"].endswith("/"):
                    others.append(item["Key"])
        elsewhere: list[str] = []
        if not archives:
            try:
                contents = s3.list_objects_v2(Bucket=store.bucket).get("Contents", [])
                elsewhere = [f"s3://{store.bucket}/{item['Key']}" for item in contents if item["Key"].endswith(SUFFIX)]
            except ClientError:
                pass  # without the right to list the whole bucket there is no guess
    archives.sort(reverse=True)
    return {key[len(store.prefix) :]: (key, size) for _, key, size in archives}, others, elsewhere


def worth(every: Sequence[channels.Channel], released: Keys) -> list[str]:
    """The archives that clients may ask for: what channels mean, the newest of each model, and those without a
    version."""
    newest: dict[str, str] = {}
    for target in released:
        parsed = releases.parse_target(target)
        newest.setdefault(parsed[0] if parsed else target, target)
    meant = [target for channel in every for target in channel.split if target in released]
    return list(dict.fromkeys([*meant, *newest.values()]))


def meanings(every: Sequence[channels.Channel], released: Keys) -> Iterator[Finding]:
    """Channels that name a version which is gone."""
    for channel in every:
        gone = [target for target in channel.split if target not in released]
        if gone:
            yield error(
                "channels",
                f"Channel {channel.name} means {', '.join(gone)}, which is not there.",
                "Let it mean a version that is there, or upload that one again.",
                f"invoke promote --model {channel.name}",
            )
    if every and all(target in released for channel in every for target in channel.split):
        yield ok("channels", f"{len(every)} channels mean versions that are there")
