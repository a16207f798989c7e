"""IAM, enforced: what roles and policies promise can only be shown where a policy really holds."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from local_tools import Cloud, error_of

ROOT_TRUST = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::123456789012:root"}, "Action": "sts:AssumeRole"}


def may(*actions: str, on: str | list[str] = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": on, **more}


def code(call: Any, **named: Any) -> str:
    return str(error_of(call, **named)["Error"]["Code"])


def test_an_execution_role_reads_only_its_prefix(cloud: Cloud) -> None:
    arn = f"arn:aws:s3:::{cloud.bucket}"
    role = cloud.role(
        may("s3:GetObject", on=f"{arn}/models/*"),
        may("s3:ListBucket", on=arn, Condition={"StringLike": {"s3:prefix": ["models/*"]}}),
    )
    for key in ("models/a.tar.gz", "channels/a.json"):
        cloud.s3.put_object(Bucket=cloud.bucket, Key=key, Body=b"x")
    s3 = cloud.client("s3", cloud.assume(role))
    assert s3.get_object(Bucket=cloud.bucket, Key="models/a.tar.gz")["Body"].read() == b"x"
    assert s3.list_objects_v2(Bucket=cloud.bucket, Prefix="models/")["KeyCount"] == 1
    assert code(s3.get_object, Bucket=cloud.bucket, Key="channels/a.json") == "AccessDenied"
    assert code(s3.list_objects_v2, Bucket=cloud.bucket, Prefix="channels/") == "AccessDenied"
    assert code(s3.list_objects_v2, Bucket=cloud.bucket) == "AccessDenied"
    assert code(s3.put_object, Bucket=cloud.bucket, Key="models/a.tar.gz", Body=b"y") == "AccessDenied"
    assert code(s3.delete_object, Bucket=cloud.bucket, Key="models/a.tar.gz") == "AccessDenied"
    assert code(s3.list_buckets) == "AccessDenied"


def test_an_endpoint_reads_with_its_roles_rights(cloud: Cloud) -> None:
    """The role may read team-a only: team-b's archive cannot be loaded, and SageMaker does not say why."""
    role = cloud.role(may("s3:GetObject", on=f"arn:aws:s3:::{cloud.bucket}/models/team-a/*"))
    cloud.publish("team-a/m.tar.gz", times=2)
    cloud.publish("team-b/m.tar.gz", times=2)
    endpoint = cloud.endpoint(cloud.config({"ModelName": cloud.model(role=role)}))
    assert cloud.invoke(endpoint, "team-a/m.tar.gz")["result"] == 2
    refusal = error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel="team-b/m.tar.gz", Body=b"1")
    assert "has permissions to download the model" in refusal["Error"]["Message"]


def test_a_role_that_sagemaker_may_not_assume(cloud: Cloud) -> None:
    container = {"Image": "x", "Mode": "MultiModel", "ModelDataUrl": f"s3://{cloud.bucket}/models/"}
    for role in ("arn:aws:iam::123456789012:role/nobody", cloud.role(trust=ROOT_TRUST)):
        refusal = error_of(
            cloud.sagemaker.create_model, ModelName=cloud.name, ExecutionRoleArn=role, PrimaryContainer=container
        )
        assert refusal["Error"]["Code"] == "ValidationException"
        assert f"Could not assume role {role}" in refusal["Error"]["Message"]


def test_an_invoke_policy_calls_only_its_targets(cloud: Cloud) -> None:
    for team in ("team-a", "team-b"):
        cloud.publish(f"{team}/m.tar.gz", times=2)
    endpoint = cloud.endpoint()
    arn = f"arn:aws:sagemaker:us-east-1:123456789012:endpoint/{endpoint}"
    own = {"StringLike": {"sagemaker:TargetModel": ["team-a/*"]}}
    role = cloud.role(may("sagemaker:InvokeEndpoint", on=arn, Condition=own), trust=ROOT_TRUST)
    runtime = cloud.client("sagemaker-runtime", cloud.assume(role))
    answer = runtime.invoke_endpoint(EndpointName=endpoint, TargetModel="team-a/m.tar.gz", Body=b"4")
    assert json.loads(answer["Body"].read())["result"] == 8
    refusal = error_of(runtime.invoke_endpoint, EndpointName=endpoint, TargetModel="team-b/m.tar.gz", Body=b"4")
    assert refusal["Error"]["Code"] == "AccessDeniedException"
    assert refusal["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert "is not authorized to perform: sagemaker:InvokeEndpoint" in refusal["Error"]["Message"]
    assert code(runtime.invoke_endpoint, EndpointName=endpoint, Body=b"4") == "AccessDeniedException"
    assert (
        code(runtime.invoke_endpoint, EndpointName="other", TargetModel="team-a/x", Body=b"4")
        == "AccessDeniedException"
    )


def test_a_policy_names_what_it_is_for_in_lower_case(cloud: Cloud) -> None:
    """As SageMaker writes its ARNs, whatever the name is: one with capitals in it matches nothing."""
    where = "arn:aws:sagemaker:us-east-1:123456789012:model"
    for name, expected in (("some-model", "ValidationException"), ("Some-Model", "AccessDeniedException")):
        reader = cloud.role(may("sagemaker:DescribeModel", on=f"{where}/{name}"), name=name, trust=ROOT_TRUST)
        sagemaker = cloud.client("sagemaker", cloud.assume(reader))
        assert code(sagemaker.describe_model, ModelName="Some-Model") == expected


def test_a_publisher_puts_new_objects_and_never_overwrites_or_deletes(cloud: Cloud) -> None:
    models = f"arn:aws:s3:::{cloud.bucket}/models/*"
    unconditional = {"Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"}}
    keys = cloud.user(
        may("s3:PutObject", on=models),
        {"Effect": "Deny", "Action": "s3:PutObject", "Resource": models, "Condition": unconditional},
    )
    s3 = cloud.client("s3", keys)
    put = {"Bucket": cloud.bucket, "Key": "models/m.tar.gz"}
    assert code(s3.put_object, **put, Body=b"x") == "AccessDenied"
    s3.put_object(**put, Body=b"first", IfNoneMatch="*")
    assert code(s3.put_object, **put, Body=b"second", IfNoneMatch="*") == "PreconditionFailed"
    assert code(s3.put_object, **put, Body=b"second") == "AccessDenied"
    assert code(s3.delete_object, **put) == "AccessDenied"
    assert code(s3.put_object, Bucket=cloud.bucket, Key="channels/x", Body=b"x", IfNoneMatch="*") == "AccessDenied"

    # Parts are no objects yet; it is their completion that makes one, and that has to be conditional.
    upload = s3.create_multipart_upload(Bucket=cloud.bucket, Key="models/big.tar.gz")["UploadId"]
    part = {"Bucket": cloud.bucket, "Key": "models/big.tar.gz", "UploadId": upload}
    tag = s3.upload_part(**part, PartNumber=1, Body=b"z" * 100)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
    assert code(s3.complete_multipart_upload, **part, MultipartUpload=parts) == "AccessDenied"
    s3.complete_multipart_upload(**part, MultipartUpload=parts, IfNoneMatch="*")
    assert cloud.s3.get_object(**put)["Body"].read() == b"first"


def test_a_large_upload_that_is_refused_gets_its_answer(cloud: Cloud) -> None:
    """The sender gets the error, instead of losing the connection in the middle of its megabytes."""
    s3 = cloud.client("s3", cloud.user())
    assert (
        code(s3.put_object, Bucket=cloud.bucket, Key="models/x", Body=io.BytesIO(b"x" * (12 << 20))) == "AccessDenied"
    )


def test_a_bucket_policy_holds_for_everybody_even_the_root(cloud: Cloud) -> None:
    objects = f"arn:aws:s3:::{cloud.bucket}/*"
    statements = [
        {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": objects}
        | {"Condition": {"Bool": {"aws:SecureTransport": "false"}}},
        {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": objects}
        | {"Condition": {"Null": {"s3:if-none-match": "true"}}},
    ]
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    cloud.s3.put_bucket_policy(Bucket=cloud.bucket, Policy=document)
    assert code(cloud.s3.put_object, Bucket=cloud.bucket, Key="models/x", Body=b"x") == "AccessDenied"
    cloud.s3.put_object(Bucket=cloud.bucket, Key="models/x", Body=b"x", IfNoneMatch="*")
    assert cloud.s3.get_object(Bucket=cloud.bucket, Key="models/x")["Body"].read() == b"x"
    cloud.s3.delete_bucket_policy(Bucket=cloud.bucket)
    cloud.s3.put_object(Bucket=cloud.bucket, Key="models/x", Body=b"y")


def test_a_bucket_policy_can_grant(cloud: Cloud) -> None:
    role = cloud.role(name="reader")
    cloud.s3.put_object(Bucket=cloud.bucket, Key="models/x", Body=b"x")
    s3 = cloud.client("s3", cloud.assume(role))
    assert code(s3.get_object, Bucket=cloud.bucket, Key="models/x") == "AccessDenied"
    statement = may("s3:GetObject", on=f"arn:aws:s3:::{cloud.bucket}/*", Principal={"AWS": role})
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    cloud.s3.put_bucket_policy(Bucket=cloud.bucket, Policy=document)
    assert s3.get_object(Bucket=cloud.bucket, Key="models/x")["Body"].read() == b"x"


def test_a_missing_object_is_a_secret_to_whom_may_not_list(cloud: Cloud) -> None:
    arn = f"arn:aws:s3:::{cloud.bucket}"
    blind = cloud.client("s3", cloud.user(may("s3:GetObject", on=f"{arn}/*")))
    seeing = cloud.client("s3", cloud.user(may("s3:GetObject", on=f"{arn}/*"), may("s3:ListBucket", on=arn)))
    assert code(blind.get_object, Bucket=cloud.bucket, Key="nothing") == "AccessDenied"
    assert code(blind.head_object, Bucket=cloud.bucket, Key="nothing") == "403"
    assert code(seeing.get_object, Bucket=cloud.bucket, Key="nothing") == "NoSuchKey"
    assert code(seeing.head_object, Bucket=cloud.bucket, Key="nothing") == "404"


def test_encrypted_objects_need_the_key_too(cloud: Cloud) -> None:
    key = cloud.client("kms").create_key()["KeyMetadata"]["Arn"]
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    cloud.s3.put_bucket_encryption(
        Bucket=cloud.bucket,
        ServerSideEncryptionConfiguration={"Rules": [{"ApplyServerSideEncryptionByDefault": default}]},
    )
    cloud.publish("m.tar.gz", times=2)
    objects = f"arn:aws:s3:::{cloud.bucket}/*"
    without = cloud.client("s3", cloud.user(may("s3:GetObject", "s3:PutObject", on=objects)))
    assert code(without.get_object, Bucket=cloud.bucket, Key="models/m.tar.gz") == "AccessDenied"
    assert code(without.put_object, Bucket=cloud.bucket, Key="models/n", Body=b"x") == "AccessDenied"
    use = may("kms:Decrypt", "kms:GenerateDataKey", on=key)
    given = cloud.client("s3", cloud.user(may("s3:GetObject", "s3:PutObject", on=objects), use))
    given.put_object(Bucket=cloud.bucket, Key="models/n", Body=b"x")
    assert given.get_object(Bucket=cloud.bucket, Key="models/n")["Body"].read() == b"x"

    role = cloud.role(may("s3:GetObject", on=objects), name="no-key")
    endpoint = cloud.endpoint(cloud.config({"ModelName": cloud.model(role=role)}))
    request = {"EndpointName": endpoint, "TargetModel": "m.tar.gz", "Body": b"1"}
    assert code(cloud.runtime.invoke_endpoint, **request) == "ValidationError"
    policy = json.dumps({"Version": "2012-10-17", "Statement": [use]})
    cloud.iam.put_role_policy(RoleName=role.rpartition("/")[2], PolicyName="key", PolicyDocument=policy)
    assert cloud.invoke(endpoint, "m.tar.gz")["result"] == 2


def test_a_boundary_and_a_session_policy_only_take_away(cloud: Cloud) -> None:
    objects = f"arn:aws:s3:::{cloud.bucket}/*"
    cloud.s3.put_object(Bucket=cloud.bucket, Key="x", Body=b"x")
    boundary = cloud.iam.create_policy(
        PolicyName=f"{cloud.name}-boundary",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [may("s3:GetObject")]}),
    )["Policy"]["Arn"]
    role = cloud.role(may("s3:*", on=objects), PermissionsBoundary=boundary)
    s3 = cloud.client("s3", cloud.assume(role))
    assert s3.get_object(Bucket=cloud.bucket, Key="x")["Body"].read() == b"x"
    assert code(s3.put_object, Bucket=cloud.bucket, Key="x", Body=b"y") == "AccessDenied"
    nothing = json.dumps({"Version": "2012-10-17", "Statement": [may("s3:ListAllMyBuckets")]})
    narrow = cloud.client("s3", cloud.assume(role, Policy=nothing))
    assert code(narrow.get_object, Bucket=cloud.bucket, Key="x") == "AccessDenied"


def test_a_users_groups_and_managed_policies_count(cloud: Cloud) -> None:
    cloud.s3.put_object(Bucket=cloud.bucket, Key="x", Body=b"x")
    keys = cloud.user()
    user = cloud.client("sts", keys).get_caller_identity()["Arn"].rpartition("/")[2]
    s3 = cloud.client("s3", keys)
    assert code(s3.get_object, Bucket=cloud.bucket, Key="x") == "AccessDenied"
    group = f"{cloud.name}-group"
    cloud.iam.create_group(GroupName=group)
    cloud.iam.add_user_to_group(GroupName=group, UserName=user)
    document = json.dumps({"Version": "2012-10-17", "Statement": [may("s3:GetObject")]})
    policy = cloud.iam.create_policy(PolicyName=f"{cloud.name}-read", PolicyDocument=document)["Policy"]["Arn"]
    cloud.iam.attach_group_policy(GroupName=group, PolicyArn=policy)
    assert s3.get_object(Bucket=cloud.bucket, Key="x")["Body"].read() == b"x"
    cloud.iam.detach_group_policy(GroupName=group, PolicyArn=policy)
    assert code(s3.get_object, Bucket=cloud.bucket, Key="x") == "AccessDenied"
    cloud.iam.attach_user_policy(UserName=user, PolicyArn="arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess")
    assert s3.get_object(Bucket=cloud.bucket, Key="x")["Body"].read() == b"x"


def test_other_services_are_held_to_their_actions(cloud: Cloud) -> None:
    endpoint = cloud.endpoint()
    arn = f"arn:aws:sagemaker:us-east-1:123456789012:endpoint/{endpoint}"
    keys = cloud.user(may("sagemaker:DescribeEndpoint", on=arn), may("cloudwatch:ListMetrics"))
    sagemaker = cloud.client("sagemaker", keys)
    assert sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"] == "InService"
    assert code(sagemaker.describe_endpoint, EndpointName="another") == "AccessDeniedException"
    assert code(sagemaker.delete_endpoint, EndpointName=endpoint) == "AccessDeniedException"
    cloud.client("cloudwatch", keys).list_metrics()
    assert code(cloud.client("iam", keys).list_roles) == "AccessDenied"
    assert code(cloud.client("ec2", keys).describe_vpcs) == "UnauthorizedOperation"
    assert code(cloud.client("logs", keys).describe_log_groups) == "AccessDeniedException"
    assert cloud.client("sts", keys).get_caller_identity()["Account"] == "123456789012"


def test_assuming_a_role_needs_the_callers_right_and_the_roles_trust(cloud: Cloud) -> None:
    trusted = cloud.role(name="trusted", trust=ROOT_TRUST)
    keys = cloud.user(may("sts:AssumeRole"))
    untrusting = cloud.role(name="untrusting")
    sts = cloud.client("sts", keys)
    assert sts.assume_role(RoleArn=trusted, RoleSessionName="ada")["Credentials"]
    assert code(sts.assume_role, RoleArn=untrusting, RoleSessionName="ada") == "AccessDenied"
    plain = cloud.client("sts", cloud.user())
    assert code(plain.assume_role, RoleArn=trusted, RoleSessionName="ada") == "AccessDenied"


@pytest.mark.parametrize(
    ("service", "call", "expected"),
    [
        ("s3", "list_buckets", "InvalidAccessKeyId"),
        ("sagemaker", "list_models", "UnrecognizedClientException"),
        ("iam", "list_roles", "InvalidClientTokenId"),
    ],
)
def test_a_key_that_nobody_has(cloud: Cloud, service: str, call: str, expected: str) -> None:
    """Somebody's real credentials, say, that were meant for another AWS."""
    client = cloud.client(service, {"AccessKeyId": "AKIAAAAAAAAAAAAAAAAA", "SecretAccessKey": "x" * 40})
    assert code(getattr(client, call)) == expected


def test_deleting_many_objects_is_judged_by_each(cloud: Cloud) -> None:
    keys = ["mine/a", "mine/b", "theirs/c & d"]
    for key in keys:
        cloud.s3.put_object(Bucket=cloud.bucket, Key=key, Body=b"x")
    s3 = cloud.client("s3", cloud.user(may("s3:DeleteObject", on=f"arn:aws:s3:::{cloud.bucket}/mine/*")))

    def delete(*names: str) -> dict[str, Any]:
        return {"Bucket": cloud.bucket, "Delete": {"Objects": [{"Key": name} for name in names]}}

    assert code(s3.delete_objects, **delete(*keys)) == "AccessDenied"
    s3.delete_objects(**delete(*keys[:2]))
    assert [item["Key"] for item in cloud.s3.list_objects_v2(Bucket=cloud.bucket)["Contents"]] == ["theirs/c & d"]


def test_copying_needs_the_source_too(cloud: Cloud) -> None:
    arn = f"arn:aws:s3:::{cloud.bucket}"
    cloud.s3.put_object(Bucket=cloud.bucket, Key="secret/x", Body=b"x")
    s3 = cloud.client("s3", cloud.user(may("s3:PutObject", on=f"{arn}/open/*")))
    copy = {"Bucket": cloud.bucket, "Key": "open/x", "CopySource": f"{cloud.bucket}/secret/x"}
    assert code(s3.copy_object, **copy) == "AccessDenied"


def test_names_are_looked_up_fresh(cloud: Cloud) -> None:
    """A policy that changes counts at once; a key that is switched off does not work any more."""
    keys = cloud.user(may("s3:ListBucket"))
    s3 = cloud.client("s3", keys)
    s3.list_objects_v2(Bucket=cloud.bucket)
    user = keys["UserName"]
    cloud.iam.delete_user_policy(UserName=user, PolicyName="inline")
    assert code(s3.list_objects_v2, Bucket=cloud.bucket) == "AccessDenied"
    cloud.iam.update_access_key(UserName=user, AccessKeyId=keys["AccessKeyId"], Status="Inactive")
    assert code(s3.list_objects_v2, Bucket=cloud.bucket) == "InvalidAccessKeyId"
