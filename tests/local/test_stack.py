"""Terraform against the local AWS: a stack that is wider than any module, through all of its life."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attached_provider
import pytest
from local_tools import FAKE_CONTAINER, Cloud, wait_for

from mme import terraform
from mme.local import LocalAws

CHANGED = ["-var", "image_tag=2", "-var", "instance_type=ml.m7i.large", "-var", 'environment={TEST_GREETING="bye"}']
FEWER = ["-var", "variants={blue=1}", "-var", "instance_count=1"]


@pytest.fixture(scope="module")
def local_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    """One whose minutes are short: the stack's updates wait as their deployment policy has it."""
    with LocalAws(tmp_path_factory.mktemp("stack") / "data", container=FAKE_CONTAINER, minute=0.5) as aws:
        yield aws


@pytest.fixture
def run(cloud: Cloud, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """``run("plan", …)`` in a copy of the stack; answers the exit code."""
    folder = tmp_path / "stack"
    shutil.copytree(
        Path(__file__).with_name("stack"), folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*")
    )
    with attached_provider.attached({**cloud.aws.client_env(), "TF_VAR_name": cloud.name}) as env:

        def call(*words: str, check: bool = True) -> int:
            return terraform.run([*words, "-no-color"], folder, env, check=check).returncode

        call("init")
        yield call
        if left(cloud):
            call("destroy", "-auto-approve", check=False)


def left(cloud: Cloud) -> list[Any]:
    """What carries the stack's name: anything left of it is a fault."""
    name = cloud.name
    remains: list[Any] = [e for e in cloud.sagemaker.list_endpoints()["Endpoints"] if name in e["EndpointName"]]
    remains += [
        c for c in cloud.sagemaker.list_endpoint_configs()["EndpointConfigs"] if name in c["EndpointConfigName"]
    ]
    remains += [m for m in cloud.sagemaker.list_models()["Models"] if name in m["ModelName"]]
    remains += [b for b in cloud.s3.list_buckets()["Buckets"] if f"{name}-models" in b["Name"]]
    remains += [r for r in cloud.iam.list_roles()["Roles"] if name in r["RoleName"]]
    remains += cloud.client("logs").describe_log_groups(logGroupNamePrefix=f"/aws/sagemaker/Endpoints/{name}")[
        "logGroups"
    ]
    watch = cloud.client("cloudwatch").describe_alarms(AlarmNamePrefix=name)
    remains += watch["MetricAlarms"] + watch["CompositeAlarms"]
    scaling = cloud.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")
    return remains + [t for t in scaling["ScalableTargets"] if name in t["ResourceId"]]


@pytest.mark.slow
def test_a_wide_stack_through_its_life(cloud: Cloud, run: Callable[..., int]) -> None:
    """Applied, unchanged, updated in place, made smaller, and gone without a trace."""
    run("apply", "-auto-approve")
    assert run("plan", "-detailed-exitcode", check=False) == 0
    cloud.s3.put_object(Bucket=f"{cloud.name}-models", Key="models/m.tar.gz", Body=b"x", IfNoneMatch="*")

    run("apply", "-auto-approve", *CHANGED)
    assert run("plan", "-detailed-exitcode", *CHANGED, check=False) == 0
    state = cloud.status(cloud.name)
    assert state["EndpointStatus"] == "InService"
    assert {v["DeployedImages"][0]["SpecifiedImage"][-2:] for v in state["ProductionVariants"]} == {":2"}

    run("apply", "-auto-approve", *FEWER)
    state = cloud.status(cloud.name)
    assert [v["VariantName"] for v in state["ProductionVariants"]] == ["blue"]
    assert [v["VariantName"] for v in state["ShadowProductionVariants"]] == ["shadow"]

    run("destroy", "-auto-approve")
    wait_for(lambda: not left(cloud))
