"""Whoever judges a request and whoever acts on it read the same service, action, object and condition in it."""

from __future__ import annotations

import http.client
from typing import Any

import pytest
from local_tools import Cloud, error_of

SERVICES = ("sts", "iam", "sagemaker", "sns")


def scope(key: str, service: str, region: str = "us-east-1") -> str:
    return f"{key}/20260101/{region}/{service}/aws4_request"


def send(cloud: Cloud, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(cloud.aws.url.rpartition(":")[2]), timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def forms(key: str, service: str) -> dict[str, dict[str, str]]:
    """A signature for a service in forms that different readers read differently."""
    rest = "SignedHeaders=host, Signature=0"
    return {
        "as clients write it": {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope(key, service)}, {rest}"},
        "in another order": {"Authorization": f"AWS4-HMAC-SHA256 SignedHeaders=host, Credential={scope(key, service)}"},
        "with another word before it": {"Authorization": f"AWS4 HMAC Credential={scope(key, service)}, {rest}"},
        "without a word before it": {"Authorization": f"Credential={scope(key, service)}, {rest}"},
        "twice": {"Authorization": f"X Credential={scope(key, 's3')}, Credential={scope(key, service)}, {rest}"},
        "with a part too many": {"Authorization": f"X Credential={scope(key, service)}/more, {rest}"},
        "with a part too few": {"Authorization": f"X Credential={key}/us-east-1/{service}/aws4_request, {rest}"},
        "with spaces": {"Authorization": f"AWS4-HMAC-SHA256  Credential= {scope(key, service)} , {rest}"},
    }


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("form", forms("k", "s"))
def test_a_key_without_rights_reaches_no_object(cloud: Cloud, service: str, form: str) -> None:
    """Everybody may call sts:GetCallerIdentity; that is no way into S3."""
    cloud.s3.put_object(Bucket=cloud.bucket, Key="models/a.tar.gz", Body=b"content")
    headers = forms(cloud.user()["AccessKeyId"], service)[form]
    for method in ("GET", "PUT", "DELETE"):
        path = f"/{cloud.bucket}/models/a.tar.gz?Action=GetCallerIdentity"
        status, said = send(cloud, method, path, headers, b"other" if method == "PUT" else b"")
        assert status >= 400, (method, said)
        assert b"content" not in said
    assert cloud.s3.get_object(Bucket=cloud.bucket, Key="models/a.tar.gz")["Body"].read() == b"content"


@pytest.mark.parametrize(
    ("headers", "query", "body"),
    [
        ({"X-Amz-Target": "X.GetCallerIdentity"}, "", b"Action=AssumeRole"),
        ({"X-Amz-Target": "X.GetUser"}, "", b"Action=CreateUser&UserName=intruder"),
        ({}, "?Action=GetUser", b"Action=CreateUser&UserName=intruder"),
        ({}, "", b"Action=GetUser&Action=CreateUser&UserName=intruder"),
        ({}, "", b"Action=CreateUser&Action=GetUser&UserName=intruder"),
    ],
)
def test_an_action_that_is_named_twice_is_not_done(
    cloud: Cloud, headers: dict[str, str], query: str, body: bytes
) -> None:
    keys = cloud.user({"Effect": "Allow", "Action": "iam:GetUser", "Resource": "*"})
    sent = {
        **headers,
        **forms(keys["AccessKeyId"], "iam")["as clients write it"],
        "Content-Type": "application/x-www-form-urlencoded",
    }
    status, said = send(cloud, "POST", f"/{query}", sent, body)
    assert status == 403, said
    assert "intruder" not in [user["UserName"] for user in cloud.iam.list_users()["Users"]]


DELETIONS = {
    "as clients write it": b"<Delete><Object><Key>models/a</Key></Object></Delete>",
    "a space in the tag": b"<Delete><Object><Key >models/a</Key ></Object></Delete>",
    "an attribute": b'<Delete><Object><Key x="1">models/a</Key></Object></Delete>',
    "a namespace": b'<d:Delete xmlns:d="u"><d:Object><d:Key>models/a</d:Key></d:Object></d:Delete>',
    "a section of characters": b"<Delete><Object><Key><![CDATA[models/a]]></Key></Object></Delete>",
    "escaped letters": b"<Delete><Object><Key>&#109;odels/a</Key></Object></Delete>",
    "an entity of its own": b'<!DOCTYPE d [<!ENTITY k "models/a">]><Delete><Object><Key>&k;</Key></Object></Delete>',
    "a comment inside": b"<Delete><Object><Key>models/<!-- -->a</Key></Object></Delete>",
    "no object": b"<Delete></Delete>",
    "not XML": b"models/a",
    "nothing": b"",
}


@pytest.mark.parametrize("body", DELETIONS.values(), ids=DELETIONS.keys())
def test_objects_are_deleted_with_rights_alone(cloud: Cloud, body: bytes) -> None:
    cloud.s3.put_object(Bucket=cloud.bucket, Key="models/a", Body=b"content")
    own = {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{cloud.bucket}/own/*"}
    headers = forms(cloud.user(own)["AccessKeyId"], "s3")["as clients write it"]
    status, said = send(cloud, "POST", f"/{cloud.bucket}?delete", headers, body)
    assert status == 403, said
    assert cloud.s3.get_object(Bucket=cloud.bucket, Key="models/a")["Body"].read() == b"content"


def test_a_slash_that_is_written_otherwise(cloud: Cloud) -> None:
    """A right to the bucket is none to its objects."""
    cloud.s3.put_object(Bucket=cloud.bucket, Key="a", Body=b"content")
    may_list = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}
    headers = forms(cloud.user(may_list)["AccessKeyId"], "s3")["as clients write it"]
    status, said = send(cloud, "GET", f"/{cloud.bucket}%2Fa", headers)
    assert status >= 400, said
    assert b"content" not in said


@pytest.mark.parametrize("condition", ["0", '"0"', "*, *", "W/*", "etag"])
@pytest.mark.parametrize("way", ["put", "complete"])
def test_a_condition_that_s3_does_not_know(cloud: Cloud, condition: str, way: str) -> None:
    key = {"Bucket": cloud.bucket, "Key": "models/a.tar.gz"}
    cloud.s3.put_object(**key, Body=b"content")
    call: Any = cloud.s3.put_object
    more: dict[str, Any] = {"Body": b"other"}
    if way == "complete":
        upload = cloud.s3.create_multipart_upload(**key)["UploadId"]
        tag = cloud.s3.upload_part(**key, UploadId=upload, PartNumber=1, Body=b"other")["ETag"]
        call = cloud.s3.complete_multipart_upload
        more = {"UploadId": upload, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": tag}]}}
    refusal = error_of(call, **key, **more, IfNoneMatch=condition)
    assert refusal["Error"]["Code"] == "NotImplemented"
    assert refusal["ResponseMetadata"]["HTTPStatusCode"] == 501
    assert cloud.s3.get_object(**key)["Body"].read() == b"content"


def test_a_copy_does_not_overwrite_where_it_says_so(cloud: Cloud) -> None:
    for key in ("a", "b"):
        cloud.s3.put_object(Bucket=cloud.bucket, Key=key, Body=key.encode())
    asked = {"Bucket": cloud.bucket, "Key": "b", "CopySource": f"{cloud.bucket}/a"}

    def only_if_new(request: Any, **_: Any) -> None:
        request.headers["If-None-Match"] = "*"

    s3 = cloud.client("s3")
    s3.meta.events.register("before-sign.s3.CopyObject", only_if_new)
    assert error_of(s3.copy_object, **asked)["Error"]["Code"] == "PreconditionFailed"
    assert cloud.s3.get_object(Bucket=cloud.bucket, Key="b")["Body"].read() == b"b"
    s3.copy_object(**{**asked, "Key": "c"})
    assert cloud.s3.get_object(Bucket=cloud.bucket, Key="c")["Body"].read() == b"a"


@pytest.mark.parametrize("length", ["x", "-1", "1e3", "٣", "99999999999999999999"])
def test_a_length_that_is_not_a_number(cloud: Cloud, length: str) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", int(cloud.aws.url.rpartition(":")[2])), 10) as client:
        head = f"POST /endpoints/x/invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
        client.sendall(head.encode())
        answer = client.recv(65536)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer[:200]
    assert b"<html" not in answer.lower()


def test_a_presigned_url_is_for_the_region_that_it_names(cloud: Cloud) -> None:
    from mme.local import requests

    query = f"X-Amz-Credential={scope('KEY', 's3', 'eu-west-1').replace('/', '%2F')}&X-Amz-Signature=0"
    assert requests.region_of({"QUERY_STRING": query}, "us-east-1") == "eu-west-1"
    assert requests.access_key({"QUERY_STRING": query}) == "KEY"
