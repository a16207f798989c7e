"""The local AWS in another partition: ARNs, roles and policies are that partition's."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from local_tools import FAKE_CONTAINER

from mme.local import LocalAws
from mme.local.settings import partition_of


@pytest.mark.parametrize(
    ("region", "partition"), [("us-east-1", "aws"), ("us-gov-west-1", "aws-us-gov"), ("us-gov-east-1", "aws-us-gov")]
)
def test_a_region_has_its_partition(region: str, partition: str) -> None:
    assert partition_of(region) == partition


def test_a_role_is_held_to_its_policies_in_govcloud(tmp_path: Path) -> None:
    with LocalAws(tmp_path / "data", container=FAKE_CONTAINER, region="us-gov-west-1") as aws:
        own = {
            "endpoint_url": aws.url,
            "region_name": "us-gov-west-1",
            "aws_access_key_id": aws.env["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": aws.env["AWS_SECRET_ACCESS_KEY"],
        }
        iam, s3, sts = boto3.client("iam", **own), boto3.client("s3", **own), boto3.client("sts", **own)
        assert sts.get_caller_identity()["Arn"].startswith("arn:aws-us-gov:")
        where = {"LocationConstraint": "us-gov-west-1"}
        s3.create_bucket(Bucket="archives", CreateBucketConfiguration=where)
        for key in ("models/a.tar.gz", "channels/a.json"):
            s3.put_object(Bucket="archives", Key=key, Body=b"1")
        trust = {"Effect": "Allow", "Principal": {"AWS": "arn:aws-us-gov:iam::123456789012:root"}}
        document = json.dumps({"Version": "2012-10-17", "Statement": [{**trust, "Action": "sts:AssumeRole"}]})
        role = iam.create_role(RoleName="reader", AssumeRolePolicyDocument=document)["Role"]["Arn"]
        allowed = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws-us-gov:s3:::archives/models/*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_role_policy(RoleName="reader", PolicyName="read", PolicyDocument=policy)
        keys = sts.assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
        reader = boto3.client(
            "s3",
            endpoint_url=aws.url,
            region_name="us-gov-west-1",
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys["SessionToken"],
        )
        assert reader.get_object(Bucket="archives", Key="models/a.tar.gz")["Body"].read() == b"1"
        with pytest.raises(ClientError, match="AccessDenied"):
            reader.get_object(Bucket="archives", Key="channels/a.json")
