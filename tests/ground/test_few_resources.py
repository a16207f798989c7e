"""A provider of whose schemas Terraform gets a few."""

from __future__ import annotations

import pytest
from few_resources import few


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(number: int, name: str, schema: bytes) -> bytes:
    return field(number, field(1, name.encode()) + field(2, schema))


def test_schemas_of_others_are_left_out_and_everything_else_stays_as_it_is() -> None:
    provider = field(1, b"the provider's own schema")
    bucket = entry(2, "aws_s3_bucket", b"b" * 300)  # its size takes two bytes
    region = entry(3, "aws_region", b"r")
    secret = entry(8, "aws_secret", b"s")
    function = entry(7, "arn_parse", b"f")
    entries = [
        provider,
        bucket,
        entry(2, "aws_s3_bucket_acl", b"a"),
        entry(3, "aws_vpc", b"v"),
        region,
        secret,
        function,
    ]
    assert few(b"".join(entries), {"aws_s3_bucket", "aws_region"}) == provider + bucket + region + function
    assert few(b"".join(entries), {"aws_secret"}) == provider + secret + function
    assert few(b"", {"aws_s3_bucket"}) == b""


def test_what_is_no_answer_of_that_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="wire type 0"):
        few(varint(2 << 3) + b"\x01", set())


def test_it_is_the_program_that_ends_where_there_is_no_provider() -> None:
    import subprocess
    import sys

    import few_resources

    done = subprocess.run(
        [sys.executable, "-I", few_resources.__file__, "unix:/nowhere", "aws_vpc"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert "UNAVAILABLE" in done.stderr
