"""Each correction of moto's autoscaling, CloudWatch, CloudWatch Logs and S3, as in test_corrections.py."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from local_tools import Cloud, error_of

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
