"""Requests that come too late: presigned URLs that are over, clocks that differ."""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime, timedelta, timezone
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from local_tools import Cloud

from mme.local.clock import out_of_time

NOW = datetime(2026, 11, 27, 5, 0, tzinfo=timezone.utc)


def scope(service: str) -> str:
    return f"AKIAIOSFODNN7EXAMPLE/20261127/us-east-1/{service}/aws4_request"


def in_header(service: str, signed: datetime) -> dict[str, Any]:
    return {
        "HTTP_AUTHORIZATION": f"AWS4-HMAC-SHA256 Credential={scope(service)}, SignedHeaders=host, Signature=0",
        "HTTP_X_AMZ_DATE": signed.strftime("%Y%m%dT%H%M%SZ"),
    }


def in_query(**more: str) -> dict[str, Any]:
    named = {"X-Amz-Credential": scope("s3"), "X-Amz-Signature": "0", "X-Amz-Date": "20261127T050000Z", **more}
    return {"QUERY_STRING": urllib.parse.urlencode(named)}


@pytest.mark.parametrize(
    ("environ", "after", "refused"),
    [
        (in_header("s3", NOW), 14 * 60, False),
        (in_header("s3", NOW), 16 * 60, True),
        (in_header("s3", NOW), -16 * 60, True),
        (in_header("sagemaker", NOW), 4 * 60, False),
        (in_header("sagemaker", NOW), 6 * 60, True),
        (in_header("sagemaker", NOW), -6 * 60, True),
        ({**in_header("s3", NOW), "HTTP_X_AMZ_DATE": "yesterday"}, 1e6, False),
        (in_query(**{"X-Amz-Expires": "3600"}), 3599, False),
        (in_query(**{"X-Amz-Expires": "3600"}), 3601, True),
        (in_query(**{"X-Amz-Expires": "604801"}), 0, True),
        (in_query(**{"X-Amz-Expires": "-1"}), 0, True),
        ({"QUERY_STRING": "AWSAccessKeyId=AKIA&Signature=0&Expires=1795755600"}, 0, False),
        ({"QUERY_STRING": "AWSAccessKeyId=AKIA&Signature=0&Expires=1795755599"}, 1, True),
        ({"QUERY_STRING": "Expires=1"}, 0, False),
        ({}, 0, False),
    ],
)
def test_what_is_in_time(environ: dict[str, Any], after: float, refused: bool) -> None:
    assert (out_of_time(environ, NOW + timedelta(seconds=after)) is not None) is refused


@pytest.mark.parametrize(
    ("signature", "now", "earlier"),
    [("s3", r"Expires=\d+", "Expires=1700000000"), ("s3v4", r"X-Amz-Date=\d{8}T", "X-Amz-Date=20200101T")],
)
def test_a_presigned_url_ends(cloud: Cloud, signature: str, now: str, earlier: str) -> None:
    cloud.s3.put_object(Bucket=cloud.bucket, Key="x", Body=b"1")
    env = cloud.aws.env
    s3 = boto3.client(
        "s3",
        endpoint_url=cloud.aws.url,
        region_name="us-east-1",
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        config=Config(signature_version=signature),
    )
    url = s3.generate_presigned_url("get_object", Params={"Bucket": cloud.bucket, "Key": "x"})
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"1"
    over, changed = re.subn(now, earlier, url)
    assert changed == 1
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(over)
    assert caught.value.code == 403
    assert b"<Code>AccessDenied</Code><Message>Request has expired" in caught.value.read()


@pytest.mark.parametrize(
    ("service", "path", "code"),
    [("s3", "/", b"RequestTimeTooSkewed"), ("sagemaker", "/endpoints/none/invocations", b"InvalidSignatureException")],
)
def test_a_clock_that_is_an_hour_late(cloud: Cloud, service: str, path: str, code: bytes) -> None:
    env = cloud.aws.env
    request = AWSRequest("POST" if service == "sagemaker" else "GET", cloud.aws.url + path, data=b"")
    request.headers["Content-Type"] = "application/json"
    signer = SigV4Auth(Credentials(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]), service, "us-east-1")
    signer.add_auth(request)
    late = datetime.now(timezone.utc) - timedelta(hours=1)
    headers = {**dict(request.headers.items()), "X-Amz-Date": late.strftime("%Y%m%dT%H%M%SZ")}
    asked = urllib.request.Request(cloud.aws.url + path, headers=headers, method=request.method)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked)
    assert caught.value.code == 403
    assert code in caught.value.read()


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"X-Amz-Target": "SageMaker.ListEndpoints"}, 400, b'"__type": "MissingAuthenticationTokenException"'),
        ({}, 403, b"<Code>AccessDenied</Code>"),
    ],
)
def test_a_request_that_is_not_signed(cloud: Cloud, headers: dict[str, str], status: int, code: bytes) -> None:
    """Refused in the words of the protocol that it speaks."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(cloud.aws.url + "/", data=b"{}", headers=headers))
    assert caught.value.code == status
    assert code in caught.value.read()
