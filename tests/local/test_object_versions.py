"""Versions of large objects can be listed and deleted (moto copies an object, bytes and parts, to list it)."""

from __future__ import annotations

import boto3

from mme.local import LocalAws


def test_versions_of_an_object_uploaded_in_parts(local_aws: LocalAws) -> None:
    session = boto3.Session(
        local_aws.env["AWS_ACCESS_KEY_ID"], local_aws.env["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1"
    )
    s3 = session.client("s3", endpoint_url=local_aws.url)
    bucket, key = "versions-in-parts", "models/a.tar.gz"
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = []
    for number in (1, 2):
        sent = s3.upload_part(
            Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=bytes([number]) * (6 << 20)
        )
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})

    (version,) = s3.list_object_versions(Bucket=bucket)["Versions"]
    assert version["Size"] == 12 << 20
    body = s3.get_object(Bucket=bucket, Key=key, VersionId=version["VersionId"])["Body"].read()
    assert body == bytes([1]) * (6 << 20) + bytes([2]) * (6 << 20), "listing must not take the bytes with it"
    s3.delete_object(Bucket=bucket, Key=key, VersionId=version["VersionId"])
    assert "Versions" not in s3.list_object_versions(Bucket=bucket)
    s3.delete_bucket(Bucket=bucket)
