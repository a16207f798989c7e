"""`invoke doctor`: a stack that is all right; sign-in, endpoint, quotas and flags that are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from doctor_tools import Quotas, Stack


def test_a_stack_that_is_right_has_no_finding(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    assert stack.problems("--endpoint", endpoint) == {}
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
    assert set(stack.problems(*words, stack.role())) == {("endpoint", "unknown")}
    assert ("role: read models", "error") in stack.problems(*words, stack.role(without="s3:GetObject"))


def test_credentials(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODYHASTHISKEY")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    problems = stack.problems("--endpoint", "e")
    assert set(problems) == {("credentials", "error"), ("everything else", "unknown")}


def test_without_any_permission_nothing_is_reported_as_right(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    iam = stack.corner.client("iam")
    iam.create_user(UserName=stack.corner.name)
    made = iam.create_access_key(UserName=stack.corner.name)["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    problems = stack.problems("--endpoint", "e")
    assert "Nothing could be looked at" in problems["everything", "error"]
    assert problems["endpoint", "unknown"]


def test_a_connection_that_breaks_in_a_check_is_no_end_of_it(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks in one check leaves that one open, and the others are made."""

    def broken(*_: Any) -> Any:
        raise ConnectionClosedError(endpoint_url="https://iam.amazonaws.com")

    monkeypatch.setattr("mme.operate.bucket.key_of", broken)
    problems = stack.problems("--bucket", stack.corner.bucket, "--type", "ml.m6i.large=2")
    assert "Connection was closed" in problems["bucket", "unknown"]
    assert ("prefix", "error") in problems or ("prefix", "warning") in problems


def test_no_credentials_at_all(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert ("credentials", "error") in stack.problems("--endpoint", "e")


def test_region(stack: Stack) -> None:
    assert "nowhere-1" in stack.problems("--endpoint", "e", "--region", "nowhere-1")["region", "error"]


def test_no_region(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert "no AWS region" in stack.only("region", "error", "--endpoint", "e")


def test_an_endpoint_that_is_not_there(stack: Stack) -> None:
    problems = stack.problems("--endpoint", f"{stack.corner.name}-none")
    assert "There is no endpoint" in problems["endpoint", "error"]


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
    findings = stack.corner("doctor", "--endpoint", endpoint, "--json").json["findings"]
    assert any("SingleModel" in item["what"] and item["severity"] == "error" for item in findings)


def test_a_model_that_was_deleted(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    config = stack.corner.sagemaker.describe_endpoint_config(
        EndpointConfigName=stack.corner.status(endpoint)["EndpointConfigName"]
    )
    stack.corner.sagemaker.delete_model(ModelName=config["ProductionVariants"][0]["ModelName"])
    assert "is deleted" in stack.problems("--endpoint", endpoint)["endpoint", "error"]


def test_a_quota_that_is_too_small(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint(InitialInstanceCount=2)
    stack.quotas = Quotas({"ml.m6i.large": 1})
    assert "the quota is 1" in stack.only("quota", "error", "--endpoint", endpoint)
    stack.quotas = Quotas({"ml.m6i.large": 3})
    assert "blue/green" in stack.only("quota", "warning", "--endpoint", endpoint)
    stack.quotas = Quotas({"ml.m6i.large": 4})
    assert stack.problems("--endpoint", endpoint) == {}
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


def test_the_local_aws_has_no_quotas_and_asks_for_no_right_to_read_them(stack: Stack) -> None:
    stack.quotas = stack.corner.client("service-quotas")
    problems = stack.problems("--type", "ml.m5.xlarge", "--bucket", stack.corner.bucket)
    assert problems["quota", "unknown"] == "The local AWS has no quotas."


@pytest.mark.parametrize(
    "words", [["--type", "m5.large"], ["--type", "ml.m5.large=0"], ["--archives", "0"], ["--archives", "x"]]
)
def test_bad_flags_are_refused(stack: Stack, words: list[str]) -> None:
    assert stack(*words).code == 2
