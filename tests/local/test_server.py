"""Settings and refusals of the server that need no running one."""

from __future__ import annotations

import importlib.metadata

import pytest

from mme.errors import UsageError
from mme.local import requests, server


def test_another_moto_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corrections replace moto's insides, so they fit one minor version."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.9.0")
    with pytest.raises(UsageError, match=r"needs moto 5\.2\.5 or a later patch of it, not 5\.9\.0"):
        server._assembly()


def test_a_missing_moto_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UsageError) as caught:
        server._assembly()
    assert "pip install 'mme[local]'" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("AWS4-HMAC-SHA256 Credential=AKIA/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host", "eu-west-1"),
        ("AWS AKIA:signature", "us-east-1"),
        ("", "us-east-1"),
    ],
)
def test_the_region_is_the_one_that_was_signed_for(header: str, expected: str) -> None:
    assert requests.region_of({"HTTP_AUTHORIZATION": header}, "us-east-1") == expected
