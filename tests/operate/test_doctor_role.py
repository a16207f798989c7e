"""`invoke doctor`: what is wrong with the role, and how policies are judged."""

from __future__ import annotations

import json
import os
from typing import Any

import boto3
import pytest
from doctor_tools import ACCOUNT, Stack
from local_tools import TRUST

from mme.operate import policies


def retrust(stack: Stack, endpoint: str, statement: dict[str, Any]) -> None:
    """Changes the trust of the endpoint's role: SageMaker looks at it when the model is made, and again for each
    instance."""
    config = stack.corner.status(endpoint)["EndpointConfigName"]
    variants = stack.corner.sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
    arn = stack.corner.sagemaker.describe_model(ModelName=variants[0]["ModelName"])["ExecutionRoleArn"]
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    stack.corner.iam.update_assume_role_policy(RoleName=arn.rpartition("/")[2], PolicyDocument=document)


@pytest.mark.parametrize(
    "statement",
    [
        {**TRUST, "Principal": {"Service": "ec2.amazonaws.com"}},
        {**TRUST, "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}},
        {**TRUST, "Condition": {"StringEquals": {"aws:SourceAccount": "999999999999"}}},
        {**TRUST, "Effect": "Deny"},
    ],
)
def test_a_role_that_sagemaker_may_not_assume(stack: Stack, statement: dict[str, Any]) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    retrust(stack, endpoint, statement)
    assert "may not assume" in stack.only("role trust", "error", "--endpoint", endpoint)


def test_a_trust_that_depends_on_something_is_not_a_pass(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    retrust(stack, endpoint, {**TRUST, "Condition": {"StringEquals": {"aws:SourceVpc": "vpc-1"}}})
    assert "depends on a condition" in stack.only("role trust", "unknown", "--endpoint", endpoint)


@pytest.mark.parametrize(
    ("right", "check", "severity"),
    [
        ("s3:GetObject", "role: read models", "error"),
        ("s3:ListBucket", "role: list models", "warning"),
        ("ecr:GetAuthorizationToken", "role: pull image", "error"),
        ("ecr:BatchGetImage", "role: pull image", "error"),
        ("logs:PutLogEvents", "role: write logs", "warning"),
        ("cloudwatch:PutMetricData", "role: write metrics", "warning"),
    ],
)
def test_a_role_without_a_right(stack: Stack, right: str, check: str, severity: str) -> None:
    stack.push()
    stack.publish()
    assert right in stack.only(check, severity, "--endpoint", stack.endpoint(stack.role(without=right)))


def test_a_role_that_reads_another_bucket(stack: Stack) -> None:
    stack.push()
    stack.publish()
    problems = stack.problems("--endpoint", stack.endpoint(stack.role(bucket="another-bucket")))
    assert ("role: read models", "error") in problems


def test_a_role_with_a_deny_or_a_boundary(stack: Stack) -> None:
    stack.push()
    stack.publish()
    deny = {"Effect": "Deny", "Action": "s3:Get*", "Resource": "*"}
    assert "role: read models" in {check for check, _ in stack.problems("--endpoint", stack.endpoint(stack.role(deny)))}
    document = json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    )
    boundary = stack.corner.iam.create_policy(PolicyName=stack.corner.name, PolicyDocument=document)["Policy"]["Arn"]
    role = stack.role()
    stack.corner.iam.put_role_permissions_boundary(RoleName=role.rpartition("/")[2], PermissionsBoundary=boundary)
    problems = stack.problems("--endpoint", stack.endpoint(role))
    assert ("role: pull image", "error") in problems
    assert ("role: read models", "error") not in problems


def test_a_bucket_whose_key_the_role_may_not_use(stack: Stack) -> None:
    stack.push()
    stack.publish()
    key = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{os.urandom(4).hex()}"
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}}
    stack.corner.s3.put_bucket_encryption(
        Bucket=stack.corner.bucket, ServerSideEncryptionConfiguration={"Rules": [rule]}
    )
    assert "kms:Decrypt" in stack.only("role: decrypt models", "error", "--endpoint", stack.endpoint())
    may = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": key}
    condition = {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}
    assert stack.problems("--endpoint", stack.endpoint(stack.role({**may, "Condition": condition}))) == {}


def test_a_bucket_policy_that_forbids(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    where = f"arn:aws:s3:::{stack.corner.bucket}/*"
    tls = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": where,
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }

    def put(*statements: dict[str, Any]) -> None:
        document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        stack.corner.s3.put_bucket_policy(Bucket=stack.corner.bucket, Policy=document)

    put(tls)
    assert stack.problems("--endpoint", endpoint) == {}
    config = stack.corner.status(endpoint)["EndpointConfigName"]
    model = stack.corner.sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"][0][
        "ModelName"
    ]
    role = stack.corner.sagemaker.describe_model(ModelName=model)["ExecutionRoleArn"]
    put({"Effect": "Deny", "Principal": {"AWS": role}, "Action": "s3:GetObject", "Resource": where})
    assert "forbids" in stack.only("bucket policy", "error", "--endpoint", endpoint)


def test_a_role_that_is_not_there(stack: Stack) -> None:
    image = stack.push()
    stack.publish()
    words = ["--bucket", stack.corner.bucket, "--image", image, "--type", "ml.m6i.large", "--role"]
    assert (
        "There is no role"
        in stack.problems(*words, f"arn:aws:iam::{ACCOUNT}:role/none-{stack.corner.name}")["role", "error"]
    )
    assert "not the ARN" in stack.problems(*words, "my-role")["role", "error"]


def test_rights_that_cannot_be_seen_are_no_pass(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    hidden = {
        "Effect": "Deny",
        "Action": ["iam:GetRolePolicy", "iam:ListRolePolicies", "iam:Simulate*"],
        "Resource": "*",
    }
    keys = stack.corner.user(everything, hidden)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    problems = stack.problems("--endpoint", endpoint)
    assert "neither simulating nor reading" in problems["role: read models", "unknown"]
    assert not [key for key in problems if key[1] in ("error", "warning")]
    assert "could not be made" in stack("--endpoint", endpoint).err


def test_iam_is_asked_to_simulate_where_it_may(stack: Stack) -> None:
    from mme.operate import rights

    answers = {"s3:GetObject": "allowed", "s3:ListBucket": "implicitDeny", "kms:Decrypt": "explicitDeny"}

    class Iam:
        def simulate_principal_policy(self, **asked: Any) -> Any:
            assert asked["PolicySourceArn"] == "arn:role"
            return {
                "EvaluationResults": [
                    {"EvalActionName": action, "EvalDecision": answers[action], "MissingContextValues": []}
                    for action in asked["ActionNames"]
                ]
            }

    role = rights.Role("arn:role", "role", ACCOUNT, {}, None, None)
    wanted = rights.needed("aws", ACCOUNT, "us-east-1", "e", "b", "models/", [], "arn:key")[:3]
    findings = rights.check_rights(Iam(), role, wanted)  # type: ignore[arg-type]
    assert [item.severity for item in findings] == ["ok", "warning", "error"]
    assert all("by simulation" in item.what for item in findings)


def allow(action: Any, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Statement": [{"Effect": "Allow", "Action": action, "Resource": resource, **more}]}


@pytest.mark.parametrize(
    ("documents", "verdict"),
    [
        ([], "denied"),
        ([allow("*")], "allowed"),
        ([allow("s3:Get*", "arn:aws:s3:::b/*")], "allowed"),
        ([allow(["S3:getobject"])], "allowed"),
        ([allow("s3:Put*")], "denied"),
        ([allow("s3:*", "arn:aws:s3:::b")], "denied"),
        ([{"Statement": {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}}], "allowed"),
        ([{"Statement": {"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:s3:::b/*"}}], "denied"),
        ([allow("*", Condition={"StringLike": {"s3:prefix": "models/*"}})], "allowed"),
        ([allow("*", Condition={"StringEquals": {"s3:prefix": "other/"}})], "denied"),
        ([allow("*", Condition={"StringEquals": {"aws:SourceVpc": "v"}})], "perhaps"),
        ([allow("*", Condition={"StringEqualsIfExists": {"aws:SourceVpc": "v"}})], "allowed"),
        ([allow("*", Condition={"NumericLessThan": {"s3:prefix": "3"}})], "perhaps"),
        ([allow("*"), {"Statement": [{"Effect": "Deny", "Action": "s3:Get*", "Resource": "*"}]}], "denied"),
        ([{"Statement": "odd"}, {"Statement": [3]}, allow("*")], "allowed"),
    ],
)
def test_policies_are_judged_as_iam_does(documents: list[Any], verdict: str) -> None:
    assert policies.judge(documents, "s3:GetObject", "arn:aws:s3:::b/models/x", {"s3:prefix": "models/"}) == verdict


@pytest.mark.parametrize("value", [None, 3, "", "{", "%7B", '"text"', "[" * 100_000])
def test_a_document_that_is_none_is_empty(value: Any) -> None:
    assert policies.document(value) == {}
