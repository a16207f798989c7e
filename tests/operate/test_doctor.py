"""`invoke doctor`: a stack that is all right, and one that is broken on purpose for each finding."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from local_tools import TRUST, tar_gz
from operate_tools import Corner, Result

from mme import aws
from mme.archive import write
from mme.catalog.spec import ModelSpec, Source
from mme.operate import archives, images, policies, processors

ACCOUNT = "123456789012"
REGISTRY = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com"
LABELS = {images.LABEL: "true"}
HANDLER = b"import json\nimport torch\n\n\ndef model_fn(folder):\n    return 1\n"


class Quotas:
    """Service Quotas, which moto has for networks alone."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = values

    def get_paginator(self, _: str) -> Quotas:
        return self

    def paginate(self, **_: Any) -> Iterator[Any]:
        for kind, value in self.values.items():
            quota = {"QuotaName": f"{kind} for endpoint usage", "QuotaCode": "L-1234ABCD", "Value": value}
            yield {"Quotas": [quota]}


class Stack:
    """An endpoint with all that belongs to it, right in every way, to be broken by a test."""

    def __init__(self, corner: Corner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.corner = corner
        self.folder = tmp_path
        self.ecr = corner.client("ecr")
        self.repository = corner.name
        self.image = f"{REGISTRY}/{self.repository}:5.5.3-transformers5.5.3"
        self.quotas: Any = Quotas({"ml.m6i.large": 20})
        real = aws.client

        def client(service: str, region: str | None) -> Any:
            if service == "service-quotas":
                return self.quotas
            made = real(service, region)
            if service == "ecr":
                made.get_download_url_for_layer = self._layer  # moto keeps no layers
            return made

        monkeypatch.setattr(aws, "client", client)

    def _layer(self, *, layerDigest: str, **_: Any) -> dict[str, str]:
        where = {"Bucket": self.corner.bucket, "Key": f"layers/{layerDigest}"}
        return {"downloadUrl": self.corner.s3.generate_presigned_url("get_object", Params=where)}

    def push(self, labels: Mapping[str, str] | None = LABELS, tag: str = "5.5.3-transformers5.5.3") -> str:
        """An image with these labels; None for one whose configuration cannot be had."""
        if not self.ecr.describe_repositories()["repositories"] or not any(
            item["repositoryName"] == self.repository for item in self.ecr.describe_repositories()["repositories"]
        ):
            self.ecr.create_repository(repositoryName=self.repository)
        digest = f"sha256:{os.urandom(32).hex()}"
        if labels is not None:
            body = json.dumps({"architecture": "amd64", "config": {"Labels": dict(labels)}}).encode()
            self.corner.s3.put_object(Bucket=self.corner.bucket, Key=f"layers/{digest}", Body=body)
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 1, "digest": digest}
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []}
        self.ecr.put_image(
            repositoryName=self.repository,
            imageManifest=json.dumps(manifest),
            imageManifestMediaType=kind,
            imageTag=tag,
        )
        return f"{REGISTRY}/{self.repository}:{tag}"

    def role(self, *more: dict[str, Any], without: str = "", trust: Any = TRUST, bucket: str | None = None) -> str:
        where = bucket or self.corner.bucket
        rights = {
            "s3:GetObject": f"arn:aws:s3:::{where}/models/*",
            "s3:ListBucket": f"arn:aws:s3:::{where}",
            "ecr:GetAuthorizationToken": "*",
            "ecr:BatchCheckLayerAvailability": "*",
            "ecr:BatchGetImage": "*",
            "ecr:GetDownloadUrlForLayer": "*",
            "logs:CreateLogStream": "*",
            "logs:PutLogEvents": "*",
            "cloudwatch:PutMetricData": "*",
        }
        given = [
            {"Effect": "Allow", "Action": action, "Resource": resource}
            for action, resource in rights.items()
            if action != without
        ]
        return self.corner.role(*given, *more, name=f"role-{os.urandom(4).hex()}", trust=trust)

    def publish(self, name: str = "bert", facts: Mapping[str, Any] | None = None, code: bytes | None = HANDLER) -> str:
        """An archive as mme makes it, in the bucket."""
        place = self.folder / os.urandom(4).hex()
        (place / "snapshot").mkdir(parents=True)
        (place / "snapshot" / "config.json").write_text("{}")
        (place / "snapshot" / "model.safetensors").write_bytes(b"0" * 100)
        handler = None
        if code is not None:
            handler = place / "handler"
            handler.mkdir()
            (handler / "inference.py").write_bytes(code)
        spec = ModelSpec(name, Source("folder", "snapshot"), handler=handler)
        made = write.build(spec, place / "snapshot", place / "dist", facts=dict(facts or {}))
        assert made.path
        self.corner.publish(made.target, made.path.read_bytes())
        return made.target

    def endpoint(self, role: str | None = None, image: str | None = None, **variant: Any) -> str:
        model = self.corner.model(role=role or self.role(), Image=image or self.image)
        return self.corner.endpoint(self.corner.config({"ModelName": model, **variant}))

    def __call__(self, *words: str) -> Result:
        return self.corner("doctor", *words)

    def found(self, *words: str) -> dict[tuple[str, str], str]:
        """What is not all right, by check and severity."""
        result = self(*words, "--json")
        plain = result.json
        assert plain["ok"] == (result.code == 0)
        wrong = [item for item in plain["findings"] if item["severity"] in ("error", "warning")]
        assert (result.code == 1) == bool(wrong)
        assert all(item["fix"] for item in wrong), "each finding says what to do"
        return {
            (item["check"], item["severity"]): item["what"] for item in plain["findings"] if item["severity"] != "ok"
        }

    def only(self, check: str, severity: str, *words: str) -> str:
        """What the one finding says that there is."""
        found = self.found(*words)
        assert set(found) == {(check, severity)}, found
        return found[check, severity]


@pytest.fixture
def stack(corner: Corner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stack:
    return Stack(corner, monkeypatch, tmp_path)


def test_a_stack_that_is_right_has_no_finding(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    assert stack.found("--endpoint", endpoint) == {}
    shown = stack("--endpoint", endpoint, "--all")
    assert shown.code == 0
    for check in (
        "credentials",
        "region",
        "endpoint",
        "bucket",
        "prefix",
        "role trust",
        "image label",
        "quota",
        "archives",
    ):
        assert f"ok  {check}: " in shown.out, check
    assert "0 errors, 0 warnings" in shown.err
    assert stack("--endpoint", endpoint).out == "Nothing is wrong.\n"


def test_it_can_be_asked_before_there_is_an_endpoint(stack: Stack) -> None:
    image, target = stack.push(), stack.publish()
    words = ["--bucket", stack.corner.bucket, "--image", image, "--type", "ml.m6i.large=2", "--role"]
    assert target
    assert set(stack.found(*words, stack.role())) == {("endpoint", "unknown")}
    assert ("role: read models", "error") in stack.found(*words, stack.role(without="s3:GetObject"))


# ---- sign-in and region -------------------------------------------------------------------------------------------


def test_credentials(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODYHASTHISKEY")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    found = stack.found("--endpoint", "e")
    assert set(found) == {("credentials", "error"), ("everything else", "unknown")}


def test_no_credentials_at_all(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert ("credentials", "error") in stack.found("--endpoint", "e")


def test_region(stack: Stack) -> None:
    assert "nowhere-1" in stack.found("--endpoint", "e", "--region", "nowhere-1")["region", "error"]


def test_no_region(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert "no AWS region" in stack.only("region", "error", "--endpoint", "e")


# ---- endpoint -----------------------------------------------------------------------------------------------------


def test_an_endpoint_that_is_not_there(stack: Stack) -> None:
    found = stack.found("--endpoint", f"{stack.corner.name}-none")
    assert "There is no endpoint" in found["endpoint", "error"]


def test_an_endpoint_that_failed(stack: Stack) -> None:
    image = stack.push()
    stack.publish()
    model = stack.corner.model({"FAKE_BROKEN": "1"}, role=stack.role(), Image=image)
    endpoint = stack.corner.endpoint(stack.corner.config({"ModelName": model}), wait=False)
    assert stack.corner.settled(endpoint)["EndpointStatus"] == "Failed"
    assert "Failed" in stack.only("endpoint", "error", "--endpoint", endpoint)


def test_a_model_that_is_not_for_many_models(stack: Stack) -> None:
    image = stack.push()
    stack.publish()
    model = stack.corner.model(role=stack.role(), Image=image, Mode="SingleModel")
    endpoint = stack.corner.endpoint(stack.corner.config({"ModelName": model}), wait=False)
    stack.corner.settled(endpoint)
    found = stack.corner("doctor", "--endpoint", endpoint, "--json").json["findings"]
    assert any("SingleModel" in item["what"] and item["severity"] == "error" for item in found)


def test_a_model_that_was_deleted(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    config = stack.corner.sagemaker.describe_endpoint_config(
        EndpointConfigName=stack.corner.status(endpoint)["EndpointConfigName"]
    )
    stack.corner.sagemaker.delete_model(ModelName=config["ProductionVariants"][0]["ModelName"])
    assert "is deleted" in stack.found("--endpoint", endpoint)["endpoint", "error"]


# ---- role ---------------------------------------------------------------------------------------------------------


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
    found = stack.found("--endpoint", stack.endpoint(stack.role(bucket="another-bucket")))
    assert ("role: read models", "error") in found


def test_a_role_with_a_deny_or_a_boundary(stack: Stack) -> None:
    stack.push()
    stack.publish()
    deny = {"Effect": "Deny", "Action": "s3:Get*", "Resource": "*"}
    assert "role: read models" in {check for check, _ in stack.found("--endpoint", stack.endpoint(stack.role(deny)))}
    document = json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    )
    boundary = stack.corner.iam.create_policy(PolicyName=stack.corner.name, PolicyDocument=document)["Policy"]["Arn"]
    role = stack.role()
    stack.corner.iam.put_role_permissions_boundary(RoleName=role.rpartition("/")[2], PermissionsBoundary=boundary)
    found = stack.found("--endpoint", stack.endpoint(role))
    assert ("role: pull image", "error") in found
    assert ("role: read models", "error") not in found


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
    assert stack.found("--endpoint", stack.endpoint(stack.role({**may, "Condition": condition}))) == {}


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
    assert stack.found("--endpoint", endpoint) == {}
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
        in stack.found(*words, f"arn:aws:iam::{ACCOUNT}:role/none-{stack.corner.name}")["role", "error"]
    )
    assert "not the ARN" in stack.found(*words, "my-role")["role", "error"]


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
    found = stack.found("--endpoint", endpoint)
    assert "neither simulating nor reading" in found["role: read models", "unknown"]
    assert not [key for key in found if key[1] in ("error", "warning")]
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
    found = rights.check_rights(Iam(), role, wanted)  # type: ignore[arg-type]
    assert [item.severity for item in found] == ["ok", "warning", "error"]
    assert all("by simulation" in item.what for item in found)


# ---- bucket, prefix, keys -----------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there(stack: Stack) -> None:
    image = stack.push()
    words = ["--image", image, "--type", "ml.m6i.large", "--role", stack.role()]
    found = stack.found("--bucket", f"none-{stack.corner.name}", *words)
    assert "there is no bucket" in found["bucket", "error"]


def test_a_bucket_in_another_region(stack: Stack) -> None:
    name = f"{stack.corner.name}-far"
    stack.corner.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert "eu-west-1" in stack.found("--bucket", name)["bucket", "error"]


def test_models_are_published_where_the_endpoint_does_not_read(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    found = stack.only(
        "prefix", "error", "--endpoint", endpoint, "--bucket", stack.corner.bucket, "--prefix", "other/models/"
    )
    assert "published to" in found


def test_model_data_that_is_no_folder(stack: Stack) -> None:
    image = stack.push()
    target = stack.publish()
    for data, words in ((f"models/{target}", "no folder"), ("models", "does not end with a slash")):
        model = stack.corner.model(role=stack.role(), Image=image, ModelDataUrl=f"s3://{stack.corner.bucket}/{data}")
        endpoint = stack.corner.endpoint(stack.corner.config({"ModelName": model}))
        assert words in stack.found("--endpoint", endpoint)["prefix", "error"]


def test_an_empty_prefix(stack: Stack) -> None:
    stack.push()
    endpoint = stack.endpoint()
    assert "no archive under" in stack.only("prefix", "warning", "--endpoint", endpoint)
    stack.corner.s3.put_object(Bucket=stack.corner.bucket, Key="elsewhere/bert.tar.gz", Body=b"x")
    assert "elsewhere/bert.tar.gz" in stack.only("prefix", "error", "--endpoint", endpoint)


def test_objects_among_the_models_that_are_none(stack: Stack) -> None:
    stack.push()
    stack.publish()
    stack.corner.s3.put_object(Bucket=stack.corner.bucket, Key="models/readme.txt", Body=b"x")
    assert "readme.txt" in stack.only("keys", "warning", "--endpoint", stack.endpoint())


def test_a_channel_that_means_what_is_gone(stack: Stack) -> None:
    stack.push()
    target = stack.publish()
    endpoint = stack.endpoint()
    assert stack.corner("promote", "--model", "bert", "--bucket", stack.corner.bucket).code == 0
    stack.publish("gpt")
    stack.corner.s3.delete_object(Bucket=stack.corner.bucket, Key=f"models/{target}")
    assert target in stack.only("channels", "error", "--endpoint", endpoint)


# ---- image --------------------------------------------------------------------------------------------------------


def test_an_image_that_is_not_there(stack: Stack) -> None:
    stack.publish()
    assert "no repository" in stack.found("--endpoint", stack.endpoint())["image", "error"]
    stack.push(tag="other")
    assert "no image" in stack.found("--endpoint", stack.endpoint())["image", "error"]


def test_an_image_without_the_label(stack: Stack) -> None:
    stack.push({"maintainer": "me"})
    stack.publish()
    assert images.LABEL in stack.only("image label", "error", "--endpoint", stack.endpoint())


def test_labels_that_cannot_be_read_are_no_pass(stack: Stack) -> None:
    stack.push(None)
    stack.publish()
    assert "cannot be read" in stack.only("image label", "unknown", "--endpoint", stack.endpoint())


def test_an_image_from_elsewhere(stack: Stack) -> None:
    stack.publish()
    words = ["--bucket", stack.corner.bucket, "--type", "ml.m6i.large", "--role", stack.role(), "--image"]
    assert "not an image in ECR" in stack.found(*words, "docker.io/library/python:3.11")["image", "error"]
    far = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/models:1"
    assert "eu-west-1" in stack.found(*words, far)["image", "error"]


def test_the_registry_of_others_is_not_known_to_the_local_aws(stack: Stack) -> None:
    stack.publish()
    theirs = "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface:2.6.0-transformers4.51.3-cpu"
    found = stack.found("--endpoint", stack.endpoint(image=theirs))
    assert set(found) == {("image", "unknown")}


def test_an_image_for_another_processor(stack: Stack) -> None:
    stack.push()
    stack.publish()
    stack.quotas = Quotas({"ml.c7g.large": 20})
    found = stack.only("processor", "warning", "--endpoint", stack.endpoint(InstanceType="ml.c7g.large"))
    assert "arm64" in found


def test_of_an_image_for_several_processors_the_one_for_x86_is_looked_at() -> None:
    asked: list[Any] = []
    index = {
        "manifests": [
            {"digest": "arm", "platform": {"architecture": "arm64"}},
            {"digest": "x86", "platform": {"architecture": "amd64"}},
        ]
    }

    class Ecr:
        def batch_get_image(self, **named: Any) -> Any:
            asked.append(named["imageIds"][0])
            found = index if len(asked) == 1 else {"config": {"digest": "c"}}
            return {"images": [{"imageManifest": json.dumps(found)}]}

        def get_download_url_for_layer(self, **named: Any) -> Any:
            return {"downloadUrl": "https://there"}

    image = images.parse(f"{REGISTRY}/models:1")
    assert image
    body = json.dumps({"config": {"Labels": LABELS}}).encode()
    found = images.check(Ecr(), image, account=ACCOUNT, region="us-east-1", fetch=lambda url: body)
    assert [item.severity for item in found] == ["ok", "ok"]
    assert asked[1] == {"imageDigest": "x86"}


# ---- quotas -------------------------------------------------------------------------------------------------------


def test_a_quota_that_is_too_small(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint(InitialInstanceCount=2)
    stack.quotas = Quotas({"ml.m6i.large": 1})
    assert "the quota is 1" in stack.only("quota", "error", "--endpoint", endpoint)
    stack.quotas = Quotas({"ml.m6i.large": 3})
    assert "blue/green" in stack.only("quota", "warning", "--endpoint", endpoint)
    stack.quotas = Quotas({"ml.m6i.large": 4})
    assert stack.found("--endpoint", endpoint) == {}
    scaling = stack.corner.client("application-autoscaling")
    scaling.register_scalable_target(
        ServiceNamespace="sagemaker",
        ResourceId=f"endpoint/{endpoint}/variant/AllTraffic",
        ScalableDimension="sagemaker:variant:DesiredInstanceCount",
        MinCapacity=1,
        MaxCapacity=8,
    )
    assert "Autoscaling may go to 8" in stack.only("quota", "error", "--endpoint", endpoint)


def test_quotas_that_cannot_be_read_are_no_pass(stack: Stack) -> None:
    stack.push()
    stack.publish()

    class Refused(Quotas):
        def paginate(self, **_: Any) -> Iterator[Any]:
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "ListServiceQuotas")

    stack.quotas = Refused({})
    assert "AccessDeniedException" in stack.only("quota", "unknown", "--endpoint", stack.endpoint())


# ---- archives -----------------------------------------------------------------------------------------------------

GOOD = {"config.json": b"{}", "model.safetensors": b"0", "code/inference.py": HANDLER}


def under(top: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{top}/{name}": data for name, data in files.items()}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (under("bert", GOOD), "in the folder bert/"),
        (under("model", {"config.json": b"{}"}), "in the folder model/"),
        ({"config.json": b"{}", "inference.py": HANDLER}, "inference.py lies at the root"),
        ({"config.json": b"{}", "code/code/inference.py": HANDLER}, "without inference.py"),
        ({"config.json": b"{}", "code/helpers.py": b""}, "without inference.py"),
        ({"weights.bin": b"0"}, "neither config.json"),
    ],
)
def test_an_archive_with_files_at_the_wrong_level(stack: Stack, files: dict[str, bytes], words: str) -> None:
    stack.push()
    stack.corner.publish("bert.tar.gz", tar_gz(files))
    assert words in stack.found("--endpoint", stack.endpoint())["archive: files", "error"]


def test_an_archive_that_somebody_else_made_right_is_all_right(stack: Stack) -> None:
    stack.push()
    stack.corner.publish("bert.tar.gz", tar_gz(GOOD))
    assert stack.found("--endpoint", stack.endpoint()) == {}


def test_a_large_archive_is_judged_by_its_beginning(stack: Stack) -> None:
    stack.push()
    stack.corner.publish(
        "bert.tar.gz", tar_gz({"bert/model.safetensors": os.urandom(3 << 20), "bert/config.json": b"{}"})
    )
    assert "as far as its beginning tells" in stack.only("archive: files", "warning", "--endpoint", stack.endpoint())
    stack.corner.publish("bert.tar.gz", tar_gz({"config.json": b"{}", "model.safetensors": os.urandom(3 << 20)}))
    assert stack.found("--endpoint", stack.endpoint()) == {}


@pytest.mark.parametrize(
    "data",
    [b"", b"no gzip", b"\x1f\x8b" + b"0" * 100, tar_gz(GOOD)[:60]],
    ids=["empty", "text", "magic", "cut"],  # the archive has the time in it, and all workers must name it alike
)
def test_an_archive_that_is_broken(stack: Stack, data: bytes) -> None:
    stack.push()
    stack.corner.publish("bert.tar.gz", data)
    assert "bert.tar.gz" in stack.found("--endpoint", stack.endpoint())["archive", "error"]


def test_a_bomb_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("bert/zeros")
        info.size = 1 << 28
        tar.addfile(info, io.BytesIO(bytes(info.size)))

    class S3:
        def get_object(self, **_: Any) -> Any:
            return {"Body": io.BytesIO(buffer.getvalue())}

    (seen,) = archives.look(S3(), "b", {"bert.tar.gz": ("k", len(buffer.getvalue()))})  # type: ignore[arg-type]
    assert seen.names == ("bert/zeros",)
    assert not seen.whole


def test_a_handler_that_needs_what_the_image_lacks(stack: Stack) -> None:
    stack.push()
    stack.publish(code=HANDLER.replace(b"import json", b"import catboost, json"))
    endpoint = stack.endpoint()
    assert "catboost" in stack.only("handler: libraries", "error", "--endpoint", endpoint)


def test_a_handler_that_can_do_without_is_all_right(stack: Stack) -> None:
    stack.push()
    stack.publish(code=b"try:\n    import catboost\nexcept ImportError:\n    catboost = None\n" + HANDLER)
    assert stack.found("--endpoint", stack.endpoint()) == {}


def test_requirements_that_nobody_installs(stack: Stack) -> None:
    stack.push()
    wanted = b"# for people\ntransformers==4.51.3\nnltk>=3\n"
    stack.corner.publish("bert.tar.gz", tar_gz({**GOOD, "code/requirements.txt": wanted}))
    found = stack.only("handler: libraries", "error", "--endpoint", stack.endpoint())
    assert "nltk>=3" in found
    assert "transformers" not in found
    stack.corner.publish("bert.tar.gz", tar_gz({**GOOD, "code/requirements.txt": wanted, "code/nltk/__init__.py": b""}))
    assert stack.found("--endpoint", stack.endpoint()) == {}


def test_a_version_of_transformers_that_is_too_old_for_a_model(stack: Stack) -> None:
    image = stack.push(tag="2.6.0-transformers4.49.0-cpu")
    stack.publish(facts={"architecture": "Qwen3ForCausalLM"})
    found = stack.only("transformers", "error", "--endpoint", stack.endpoint(image=image))
    assert "4.51" in found
    assert "4.49.0" in found
    later = stack.push(tag="2.6.0-transformers4.51.3-cpu")
    assert stack.found("--endpoint", stack.endpoint(image=later)) == {}
    unnamed = stack.push(tag="mine")
    assert "does not say" in stack.only("transformers", "unknown", "--endpoint", stack.endpoint(image=unnamed))


def test_an_image_older_than_the_handlers_are_tested_with(stack: Stack) -> None:
    image = stack.push(tag="2.1.0-transformers4.37.0-cpu")
    stack.publish()
    assert "4.37.0" in stack.only("transformers", "warning", "--endpoint", stack.endpoint(image=image))


@pytest.mark.parametrize(
    ("facts", "kind", "words"),
    [
        ({"quantize": "int8"}, "ml.m5.large", "VNNI"),
        ({"dtype": "bfloat16"}, "ml.m6i.large", "bfloat16"),
        ({"dtype": "float16"}, "ml.m7i.large", "float16"),
    ],
)
def test_a_processor_without_what_a_format_needs(stack: Stack, facts: dict[str, Any], kind: str, words: str) -> None:
    stack.push()
    stack.publish(facts=facts)
    stack.quotas = Quotas({kind: 20})
    endpoint = stack.endpoint(InstanceType=kind)
    assert words in stack.only("processor", "warning", "--endpoint", endpoint)
    assert stack.found("--endpoint", endpoint, "--ignore", "processor") == {}


def test_what_processors_can_do() -> None:
    assert processors.lacks("ml.m6i.xlarge", "float32", "int8") is None
    assert processors.lacks("ml.m7i.xlarge", "bfloat16", None) is None
    assert processors.lacks("ml.c7g.xlarge", "bfloat16", None) is None
    assert processors.lacks("ml.g5.xlarge", "float16", None) is None
    assert processors.lacks("ml.x99.xlarge", "float16", "int8") is None
    assert processors.lacks("ml.m5.xlarge", "float32", None) is None


def test_model_classes_and_versions() -> None:
    assert archives.first_version("Qwen3ForCausalLM") == (4, 51)
    assert archives.first_version("Qwen3NextForCausalLM") == (4, 57)
    assert archives.first_version("GemmaForCausalLM") == (4, 38)
    assert archives.first_version("Gemma3ForCausalLM") == (4, 50)
    assert archives.first_version("BertModel") is None
    assert archives.first_version("Glmx") is None


def test_more_archives_than_are_looked_into_is_said(stack: Stack) -> None:
    stack.push()
    for name in ("a", "b", "c"):
        stack.publish(name)
    found = stack.only("archives", "unknown", "--endpoint", stack.endpoint(), "--archives", "2")
    assert "2 of 3" in found


# ---- policies, and the flags --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "words", [["--type", "m5.large"], ["--type", "ml.m5.large=0"], ["--archives", "0"], ["--archives", "x"]]
)
def test_bad_flags_are_refused(stack: Stack, words: list[str]) -> None:
    assert stack(*words).code == 2
