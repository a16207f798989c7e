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


# -- autoscaling and alarms


def test_a_scalable_target_has_tags(cloud: Cloud) -> None:
    scaling = cloud.client("application-autoscaling")
    what = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{cloud.endpoint()}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    arn = scaling.register_scalable_target(**what, MinCapacity=1, MaxCapacity=2, Tags={"team": "a"})[
        "ScalableTargetARN"
    ]
    assert scaling.list_tags_for_resource(ResourceARN=arn)["Tags"] == {"team": "a"}
    scaling.tag_resource(ResourceARN=arn, Tags={"team": "b", "x": "y"})
    scaling.untag_resource(ResourceARN=arn, TagKeys=["x"])
    assert scaling.list_tags_for_resource(ResourceARN=arn)["Tags"] == {"team": "b"}
    scaling.deregister_scalable_target(**what)
    assert error_of(scaling.list_tags_for_resource, ResourceARN=arn)["ResponseMetadata"]["HTTPStatusCode"] == 400


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ResourceId": "endpoint/there-is-none/variant/AllTraffic"}, "doesn't exist"),
        ({"ResourceId": "endpoint/{}/variant/other"}, "doesn't exist"),
        ({"ResourceId": "endpoint/{}"}, ""),
        ({"MinCapacity": 3}, "Maximum capacity cannot be less"),
        ({"MaxCapacity": None}, "required"),
    ],
)
def test_a_scalable_target_that_is_none(cloud: Cloud, changed: dict[str, Any], said: str) -> None:
    scaling = cloud.client("application-autoscaling")
    endpoint = cloud.endpoint()
    what = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "endpoint/{}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        "MinCapacity": 1,
        "MaxCapacity": 2,
        **changed,
    }
    named = {key: value for key, value in what.items() if value is not None}
    named["ResourceId"] = named["ResourceId"].format(endpoint)
    found = error_of(scaling.register_scalable_target, **named)["Error"]
    assert found["Code"] == "ValidationException"
    assert said in found["Message"]
    assert (
        scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[named["ResourceId"]])[
            "ScalableTargets"
        ]
        == []
    )


def test_a_scalable_targets_range_changes_in_part(cloud: Cloud) -> None:
    scaling = cloud.client("application-autoscaling")
    what = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{cloud.endpoint()}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**what, MinCapacity=1, MaxCapacity=2)
    scaling.register_scalable_target(**what, MaxCapacity=3)
    assert error_of(scaling.register_scalable_target, **what, MinCapacity=4)["Error"]["Code"] == "ValidationException"
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[what["ResourceId"]])[
        "ScalableTargets"
    ]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)


def test_who_asks(cloud: Cloud) -> None:
    root = cloud.client("sts").get_caller_identity()
    assert (root["Arn"], root["UserId"]) == ("arn:aws:iam::123456789012:root", "123456789012")
    user = cloud.client("sts", cloud.user()).get_caller_identity()
    assert user["Arn"].startswith("arn:aws:iam::123456789012:user/")


def test_a_composite_alarm(cloud: Cloud) -> None:
    watch = cloud.client("cloudwatch")
    rule = 'ALARM("a") OR ALARM("b")'
    watch.put_composite_alarm(AlarmName=cloud.name, AlarmRule=rule, AlarmDescription="either")
    alarms = watch.describe_alarms(AlarmNames=[cloud.name], AlarmTypes=["CompositeAlarm"])["CompositeAlarms"]
    assert [(alarm["AlarmName"], alarm["AlarmRule"]) for alarm in alarms] == [(cloud.name, rule)]
    watch.delete_alarms(AlarmNames=[cloud.name])


def test_statistics_are_of_the_metric_with_these_dimensions(cloud: Cloud) -> None:
    watch = cloud.client("cloudwatch")
    one, other = {"Name": "Endpoint", "Value": "e"}, {"Name": "Config", "Value": "c"}
    for dimensions, value in (([one], 1.0), ([one, other], 10.0), ([], 100.0)):
        datum = {"MetricName": "Calls", "Dimensions": dimensions, "Value": value}
        watch.put_metric_data(Namespace=cloud.name, MetricData=[datum])

    def total(*dimensions: dict[str, str]) -> float:
        points = watch.get_metric_statistics(
            Namespace=cloud.name,
            MetricName="Calls",
            Dimensions=list(dimensions),
            StartTime=datetime.now(timezone.utc) - timedelta(hours=1),
            EndTime=datetime.now(timezone.utc) + timedelta(hours=1),
            Period=7200,
            Statistics=["Sum"],
        )["Datapoints"]
        return float(sum(point["Sum"] for point in points))

    assert total(one) == 1.0
    assert total(other, one) == 10.0


def test_a_tracking_policy_has_the_two_alarms_that_act_for_it(cloud: Cloud) -> None:
    scaling, watch = cloud.client("application-autoscaling"), cloud.client("cloudwatch")
    what = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{cloud.endpoint()}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**what, MinCapacity=1, MaxCapacity=2)
    metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
    answer = scaling.put_scaling_policy(
        **what,
        PolicyName="load",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={"TargetValue": 70.0, "PredefinedMetricSpecification": metric},
    )
    names = [alarm["AlarmName"] for alarm in answer["Alarms"]]
    high, low = watch.describe_alarms(AlarmNames=names)["MetricAlarms"]
    assert (high["Threshold"], high["EvaluationPeriods"], high["ComparisonOperator"]) == (70, 3, "GreaterThanThreshold")
    assert (low["Threshold"], low["EvaluationPeriods"], low["ComparisonOperator"]) == (63, 15, "LessThanThreshold")
    assert high["AlarmActions"] == [answer["PolicyARN"]]
    assert scaling.describe_scaling_activities(**what)["ScalingActivities"] == []
    scaling.delete_scaling_policy(**what, PolicyName="load")
    assert watch.describe_alarms(AlarmNames=names)["MetricAlarms"] == []


# -- S3


def test_an_alarm_takes_its_tags_along(cloud: Cloud) -> None:
    watch = cloud.client("cloudwatch")
    alarm = {
        "AlarmName": cloud.name,
        "Namespace": "n",
        "MetricName": "m",
        "Statistic": "Sum",
        "Period": 60,
        "EvaluationPeriods": 1,
        "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanThreshold",
    }
    watch.put_metric_alarm(**alarm, Tags=[{"Key": "team", "Value": "search"}])
    watch.delete_alarms(AlarmNames=[cloud.name])
    watch.put_metric_alarm(**alarm)
    arn = watch.describe_alarms(AlarmNames=[cloud.name])["MetricAlarms"][0]["AlarmArn"]
    assert watch.list_tags_for_resource(ResourceARN=arn)["Tags"] == []
    watch.delete_alarms(AlarmNames=[cloud.name])


def test_a_log_group_gets_a_key_and_loses_it(cloud: Cloud) -> None:
    logs, name = cloud.client("logs"), f"/{cloud.name}"
    logs.create_log_group(logGroupName=name)

    def key() -> str | None:
        [group] = logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"]
        return str(group["kmsKeyId"]) if "kmsKeyId" in group else None

    logs.associate_kms_key(logGroupName=name, kmsKeyId="arn:aws:kms:us-east-1:123456789012:key/1")
    assert key() == "arn:aws:kms:us-east-1:123456789012:key/1"
    logs.disassociate_kms_key(logGroupName=name)
    assert key() is None
    error = error_of(logs.associate_kms_key, logGroupName=f"{name}-not", kmsKeyId="arn:x")["Error"]
    assert error["Code"] == "ResourceNotFoundException"
    logs.delete_log_group(logGroupName=name)


def test_lifecycle_rules_come_back_as_they_were_put(cloud: Cloud) -> None:
    rules: list[dict[str, Any]] = [
        {
            "ID": "old",
            "Status": "Enabled",
            "Filter": {"And": {"Prefix": "models/", "ObjectSizeGreaterThan": 1000}},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 30, "NewerNoncurrentVersions": 3},
        },
        {
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
        },
    ]
    cloud.s3.put_bucket_lifecycle_configuration(
        Bucket=cloud.bucket,
        LifecycleConfiguration={"Rules": rules},
        TransitionDefaultMinimumObjectSize="varies_by_storage_class",
    )
    stored = cloud.s3.get_bucket_lifecycle_configuration(Bucket=cloud.bucket)
    assert stored["TransitionDefaultMinimumObjectSize"] == "varies_by_storage_class"
    assert stored["Rules"][0] == rules[0]
    assert stored["Rules"][1].pop("ID")
    assert stored["Rules"][1] == rules[1]
    cloud.s3.delete_bucket_lifecycle(Bucket=cloud.bucket)
    stored = error_of(cloud.s3.get_bucket_lifecycle_configuration, Bucket=cloud.bucket)
    assert stored["Error"]["Code"] == "NoSuchLifecycleConfiguration"


def test_a_delete_marker_can_be_deleted(cloud: Cloud) -> None:
    cloud.s3.put_bucket_versioning(Bucket=cloud.bucket, VersioningConfiguration={"Status": "Enabled"})
    cloud.s3.put_object(Bucket=cloud.bucket, Key="a", Body=b"x")
    cloud.s3.delete_object(Bucket=cloud.bucket, Key="a")
    listing = cloud.s3.list_object_versions(Bucket=cloud.bucket)
    every = [
        {"Key": version["Key"], "VersionId": version["VersionId"]}
        for version in listing["Versions"] + listing["DeleteMarkers"]
    ]
    cloud.s3.delete_objects(Bucket=cloud.bucket, Delete={"Objects": every})
    cloud.s3.delete_bucket(Bucket=cloud.bucket)


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
