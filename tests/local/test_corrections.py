"""Each correction of moto: what was wrong is right. When moto catches up, the correction can go and its test stays."""

from __future__ import annotations

import importlib.metadata
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from local_tools import IMAGE, Cloud, error_of, wait_for

from mme.local import LocalAws
from mme.local.corrections import apply


def test_the_corrections_fit_the_moto_that_is_installed() -> None:
    """A newer minor version of moto may need other corrections: look at each before raising MOTO_VERSION."""
    installed = importlib.metadata.version("moto").split(".")[:2]
    assert installed == apply.MOTO_VERSION.split(".")[:2]


# -- SageMaker


def test_a_model_without_a_vpc_has_none(cloud: Cloud) -> None:
    description = cloud.sagemaker.describe_model(ModelName=cloud.model())
    assert "VpcConfig" not in description
    assert description["EnableNetworkIsolation"] is False


def test_a_model_keeps_its_vpc_isolation_and_cache_setting(cloud: Cloud) -> None:
    vpc = {"SecurityGroupIds": ["sg-0123456789abcdef0"], "Subnets": ["subnet-0123456789abcdef0"]}
    cache = {"ModelCacheSetting": "Disabled"}
    cloud.sagemaker.create_model(
        ModelName=cloud.name,
        ExecutionRoleArn=cloud.execution_role(),
        VpcConfig=vpc,
        EnableNetworkIsolation=True,
        PrimaryContainer={"Image": IMAGE, "Mode": "MultiModel", "MultiModelConfig": cache},
    )
    description = cloud.sagemaker.describe_model(ModelName=cloud.name)
    assert description["VpcConfig"] == vpc
    assert description["EnableNetworkIsolation"] is True
    assert description["PrimaryContainer"]["MultiModelConfig"] == cache


@pytest.mark.slow
def test_model_data_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SageMaker looks for it when a model is created: an object, or anything below a prefix."""
    with LocalAws(tmp_path / "data", echo=True) as aws:
        cloud = Cloud(aws)
        here = f"s3://{cloud.bucket}"
        cloud.s3.put_object(Bucket=cloud.bucket, Key="somewhere/a.tar.gz", Body=b"1")
        cloud.s3.put_object(Bucket=cloud.bucket, Key="gone/a.tar.gz", Body=b"1")
        cloud.s3.put_bucket_versioning(Bucket=cloud.bucket, VersioningConfiguration={"Status": "Enabled"})
        cloud.s3.delete_object(Bucket=cloud.bucket, Key="gone/a.tar.gz")
        there = [(f"{here}/somewhere/", "MultiModel"), (f"{here}/somewhere/a.tar.gz", "SingleModel")]
        not_there = [
            ("s3://there-is-no-such-bucket/models/", "MultiModel"),
            (f"{here}/elsewhere/", "MultiModel"),
            (f"{here}/gone/", "MultiModel"),
            (f"{here}/somewhere/", "SingleModel"),
        ]
        names = {cloud.model(ModelDataUrl=url, Mode=mode): url for url, mode in there}
        missing = {cloud.model(ModelDataUrl=url, Mode=mode): url for url, mode in not_there}
        said = ""

        def all_is_said() -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return all(f"model {name}: " in said for name in missing)

        wait_for(all_is_said)
    assert not [name for name in names if name in said]
    for name, url in missing.items():
        assert f"model {name}: SageMaker would refuse it, for there is nothing at {url}:" in said


def test_a_model_is_not_overwritten(cloud: Cloud) -> None:
    name = cloud.model()
    refusal = error_of(
        cloud.sagemaker.create_model,
        ModelName=name,
        ExecutionRoleArn=cloud.execution_role(),
        PrimaryContainer={"Image": IMAGE},
    )
    assert "Cannot create already existing model" in refusal["Error"]["Message"]


def test_models_are_listed_by_part_of_a_name_in_order_and_by_pages(cloud: Cloud) -> None:
    names = [f"{cloud.name}-{n}" for n in "cab"]
    for name in names:
        cloud.sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=cloud.execution_role(),
            PrimaryContainer={"Image": IMAGE},
        )

    def listed(**asked: Any) -> list[str]:
        pages = cloud.sagemaker.get_paginator("list_models").paginate(NameContains=cloud.name, **asked)
        return [model["ModelName"] for page in pages for model in page["Models"]]

    assert listed() == names[::-1], "the newest first"
    assert listed(SortOrder="Ascending") == names
    assert listed(SortBy="Name", SortOrder="Ascending") == sorted(names)
    assert listed(SortBy="Name", SortOrder="Descending", PaginationConfig={"PageSize": 2}) == sorted(names)[::-1]
    assert listed(CreationTimeAfter=datetime.now(timezone.utc) + timedelta(minutes=1)) == []
    assert listed(CreationTimeBefore=datetime.now(timezone.utc) + timedelta(minutes=1)) == names[::-1]
    assert cloud.sagemaker.list_models(NameContains=f"{cloud.name}-a")["Models"][0]["ModelName"] == names[1]
    assert cloud.sagemaker.list_models(NameContains=f"{cloud.name}-nothing")["Models"] == []


def test_configurations_and_endpoints_are_listed_newest_first(cloud: Cloud) -> None:
    model = cloud.model()
    names = [f"{cloud.name}-{n}" for n in "cab"]
    for name in names:
        variant = {"VariantName": "a", "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        cloud.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])

    def listed(**asked: Any) -> list[str]:
        pages = cloud.sagemaker.get_paginator("list_endpoint_configs").paginate(NameContains=cloud.name, **asked)
        return [config["EndpointConfigName"] for page in pages for config in page["EndpointConfigs"]]

    assert listed() == names[::-1]
    assert listed(SortOrder="Ascending", PaginationConfig={"PageSize": 2}) == names
    assert listed(SortBy="Name", SortOrder="Ascending") == sorted(names)
    assert listed(CreationTimeAfter=datetime.now(timezone.utc) + timedelta(minutes=1)) == []
    endpoint = cloud.endpoint()
    endpoints = cloud.sagemaker.list_endpoints(NameContains=cloud.name.upper(), StatusEquals="InService")["Endpoints"]
    assert [item["EndpointName"] for item in endpoints] == [endpoint]
    assert cloud.sagemaker.list_endpoints(NameContains=cloud.name, StatusEquals="Failed")["Endpoints"] == []


@pytest.mark.parametrize("call", ["list_models", "list_endpoints", "list_endpoint_configs"])
@pytest.mark.parametrize("asked", [{"MaxResults": 101}, {"NextToken": "made-up"}])
def test_a_listing_refuses_what_sagemaker_refuses(cloud: Cloud, call: str, asked: dict[str, Any]) -> None:
    assert error_of(getattr(cloud.sagemaker, call), **asked)["Error"]["Code"] == "ValidationException"


@pytest.mark.parametrize("name", ["under_score", "-hyphen", "hyphen-", "a" * 64, "a.b"])
def test_a_name_that_sagemaker_does_not_take(cloud: Cloud, name: str) -> None:
    container = {"Image": IMAGE}
    model = cloud.model()
    variant = {"VariantName": "a", "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    calls: list[tuple[Any, dict[str, Any]]] = [
        (
            cloud.sagemaker.create_model,
            {"ModelName": name, "ExecutionRoleArn": cloud.execution_role(), "PrimaryContainer": container},
        ),
        (
            cloud.sagemaker.create_endpoint_config,
            {"EndpointConfigName": name, "ProductionVariants": [variant]},
        ),
        (cloud.sagemaker.create_endpoint, {"EndpointName": name, "EndpointConfigName": "nothing"}),
    ]
    for call, named in calls:
        refusal = error_of(call, **named)["Error"]
        assert refusal["Code"] == "ValidationException"
        assert name in refusal["Message"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"VolumeSizeInGB": 513}, "'513' at 'productionVariants.1.member.volumeSizeInGB'"),
        ({"ModelDataDownloadTimeoutInSeconds": 3601}, "'3601' at 'productionVariants.1.member.modelData"),
        ({"VariantName": "under_score"}, "'under_score' at 'productionVariants.1.member.variantName'"),
        (
            {"RoutingConfig": {"RoutingStrategy": "NEAREST"}},
            "'NEAREST' at 'productionVariants.1.member.routing",
        ),
        ({"ModelName": "a" * 64}, "Member must have length less than or equal to 63"),
    ],
)
def test_a_variant_that_the_api_does_not_describe(cloud: Cloud, changed: dict[str, Any], said: str) -> None:
    variant = {"VariantName": "a", "ModelName": cloud.model(), "InstanceType": "ml.m5.large"}
    found = error_of(
        cloud.sagemaker.create_endpoint_config,
        EndpointConfigName=cloud.name,
        ProductionVariants=[{**variant, "InitialInstanceCount": 1, **changed}],
    )["Error"]
    assert found["Code"] == "ValidationException"
    assert found["Message"].startswith("1 validation error detected: Value '")
    assert said in found["Message"]


def test_every_fault_of_a_request_is_named(cloud: Cloud) -> None:
    words = error_of(cloud.sagemaker.list_endpoints, StatusEquals="Asleep", SortBy="Size")["Error"]["Message"]
    assert words.startswith("2 validation errors detected: ")
    assert "'Asleep' at 'statusEquals'" in words
    assert "'Size' at 'sortBy'" in words


def test_variants_that_sagemaker_does_not_take(cloud: Cloud) -> None:
    variant = {"VariantName": "a", "ModelName": cloud.model()}
    on_instances = {**variant, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    serverless = {**variant, "ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 1}}
    for variants, said in (
        ([on_instances] * 2, "non-unique"),
        ([serverless], "does not support multi-model endpoints"),
    ):
        found = error_of(
            cloud.sagemaker.create_endpoint_config, EndpointConfigName=cloud.name, ProductionVariants=variants
        )["Error"]
        assert found["Code"] == "ValidationException"
        assert said in found["Message"]


def test_a_model_needs_a_container(cloud: Cloud) -> None:
    refusal = error_of(cloud.sagemaker.create_model, ModelName=cloud.name, ExecutionRoleArn=cloud.execution_role())
    assert refusal["Error"]["Code"] == "ValidationException"


@pytest.mark.parametrize("resource", ["endpoint/none", "model/none", "endpoint-config/none", "nonsense/none", "none"])
def test_tags_of_nothing(cloud: Cloud, resource: str) -> None:
    arn = f"arn:aws:sagemaker:us-east-1:123456789012:{resource}"
    for call, more in (
        (cloud.sagemaker.list_tags, {}),
        (cloud.sagemaker.add_tags, {"Tags": [{"Key": "a", "Value": "b"}]}),
        (cloud.sagemaker.delete_tags, {"TagKeys": ["a"]}),
    ):
        refusal = error_of(call, ResourceArn=arn, **more)["Error"]
        assert refusal["Code"] == "ValidationException", refusal


@pytest.mark.parametrize("kind", ["ml.m6i.large", "ml.g5.2xlarge", "ml.c7i.4xlarge", "ml.g6.xlarge"])
def test_todays_instance_types_are_known(cloud: Cloud, kind: str) -> None:
    config = cloud.config({"InstanceType": kind})
    [variant] = cloud.sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
    assert variant["InstanceType"] == kind


def test_an_instance_type_that_does_not_exist(cloud: Cloud) -> None:
    variant = {"VariantName": "a", "ModelName": cloud.model(), "InstanceType": "ml.huge", "InitialInstanceCount": 1}
    refusal = error_of(
        cloud.sagemaker.create_endpoint_config, EndpointConfigName=cloud.name, ProductionVariants=[variant]
    )
    assert refusal["Error"]["Code"] == "ValidationException"
    assert "ml.huge" in refusal["Error"]["Message"]


def test_a_configuration_keeps_everything_and_invents_nothing(cloud: Cloud) -> None:
    model = cloud.model()
    shadow = {"VariantName": "s", "ModelName": model, "InstanceType": "ml.m6i.large", "InitialInstanceCount": 1}
    vpc = {"SecurityGroupIds": ["sg-0123456789abcdef0"], "Subnets": ["subnet-0123456789abcdef0"]}
    plain = cloud.sagemaker.describe_endpoint_config(EndpointConfigName=cloud.config({"ModelName": model}))
    assert not {"DataCaptureConfig", "AsyncInferenceConfig", "ShadowProductionVariants", "VpcConfig"} & set(plain)
    full = cloud.config(
        {"ModelName": model, "RoutingConfig": {"RoutingStrategy": "RANDOM"}},
        ShadowProductionVariants=[shadow],
        VpcConfig=vpc,
        EnableNetworkIsolation=True,
    )
    description = cloud.sagemaker.describe_endpoint_config(EndpointConfigName=full)
    assert description["ShadowProductionVariants"] == [shadow]
    assert (description["VpcConfig"], description["EnableNetworkIsolation"]) == (vpc, True)
    assert description["ProductionVariants"][0]["RoutingConfig"] == {"RoutingStrategy": "RANDOM"}


def test_a_configuration_is_not_overwritten(cloud: Cloud) -> None:
    config = cloud.config()
    variants = cloud.sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
    refusal = error_of(cloud.sagemaker.create_endpoint_config, EndpointConfigName=config, ProductionVariants=variants)
    assert "Cannot create already existing endpoint configuration" in refusal["Error"]["Message"]


def test_an_endpoint_tells_of_its_deployment_and_capture(cloud: Cloud) -> None:
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 10,
        "DestinationS3Uri": f"s3://{cloud.bucket}/captured/",
        "CaptureOptions": [{"CaptureMode": "Input"}],
    }
    endpoint = cloud.endpoint(cloud.config(DataCaptureConfig=capture))
    assert cloud.status(endpoint)["DataCaptureConfig"]["CaptureStatus"] == "Started"
    assert "LastDeploymentConfig" not in cloud.status(endpoint)
    blue_green = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0},
            "TerminationWaitInSeconds": 0,
        }
    }
    config = cloud.config()
    cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=config, DeploymentConfig=blue_green)
    state = cloud.settled(endpoint)
    assert state["LastDeploymentConfig"] == blue_green
    assert "DataCaptureConfig" not in state


def test_arns_are_written_in_lower_case(cloud: Cloud) -> None:
    name = f"Named-{cloud.name}"
    made = cloud.sagemaker.create_model(
        ModelName=name, ExecutionRoleArn=cloud.role(), PrimaryContainer={"Image": IMAGE}
    )
    assert made["ModelArn"].endswith(f":model/{name.lower()}")
    described = cloud.sagemaker.describe_model(ModelName=name)
    assert (described["ModelName"], described["ModelArn"]) == (name, made["ModelArn"])
    cloud.sagemaker.add_tags(ResourceArn=made["ModelArn"], Tags=[{"Key": "team", "Value": "a"}])
    assert cloud.sagemaker.list_tags(ResourceArn=made["ModelArn"])["Tags"] == [{"Key": "team", "Value": "a"}]


def test_a_tag_changes_instead_of_coming_twice(cloud: Cloud) -> None:
    arn = cloud.sagemaker.describe_model(ModelName=cloud.model())["ModelArn"]
    cloud.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "a"}])
    cloud.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "b"}, {"Key": "x", "Value": "y"}])
    tags = cloud.sagemaker.list_tags(ResourceArn=arn)["Tags"]
    assert tags == [{"Key": "team", "Value": "b"}, {"Key": "x", "Value": "y"}]


# -- what the local AWS cannot do, it says at once


def test_an_action_that_moto_lacks_is_no_500(cloud: Cloud) -> None:
    """Clients retry a 500 for minutes."""
    refusal = error_of(
        cloud.sagemaker.create_monitoring_schedule,
        MonitoringScheduleName=cloud.name,
        MonitoringScheduleConfig={"MonitoringJobDefinitionName": "x", "MonitoringType": "DataQuality"},
    )
    assert refusal["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert "The local AWS cannot do this" in refusal["Error"]["Message"]
