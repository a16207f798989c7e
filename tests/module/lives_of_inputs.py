"""Lives of endpoints that change the module's inputs: what comes back as it was, and unknown values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from caller import Caller
from stack import refused

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/mme:1"
ANYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
ARCHIVE = "times-two-0123456789ab.tar.gz"


New = Callable[..., Caller]
"""``new("name", resource={…})`` is a Caller of this name in a folder of its own, with these blocks beside the call."""


def values_come_back_as_they_were(new: New) -> None:
    """AWS keeps weights in single precision, and changes of deployment settings never replace the endpoint."""
    caller = new("values")

    def weights() -> dict[str, float]:
        name = caller.endpoint()["EndpointConfigName"]
        description = caller.client("sagemaker").describe_endpoint_config(EndpointConfigName=name)
        return {v["VariantName"]: v["InitialVariantWeight"] for v in description["ProductionVariants"]}

    try:
        caller.settle(
            variants={"a": {"weight": 0.9}, "b": {"weight": 0.1}},
            deployment={"rollback_on": []},
            tags={"team": "search", "none": None},
            environment={"A": "1", "B": None},
        )
        created = caller.endpoint()["CreationTime"]
        assert weights() == {"a": 9, "b": 1}
        alarms = caller.client("cloudwatch").describe_alarms(AlarmNamePrefix="values-")["MetricAlarms"]
        assert [alarm["AlarmName"] for alarm in alarms] == ["values-no-rollback"]
        caller.settle(
            variants={
                "a": {"weight": 1 / 3, "instance_count": 2, "environment": {"A": None}},
                "b": {
                    "weight": 2 / 3,
                    "instance_count": 2,
                    "autoscaling": {
                        "min_capacity": 2,
                        "max_capacity": 4,
                        "cpu_utilization": 70.5,
                        "schedules": {
                            "night": {
                                "schedule": "cron(0 20 ? * MON-FRI *)",
                                "min_capacity": 2,
                                "max_capacity": 3,
                                "start_time": "2030-01-01T00:00:00Z",
                                "end_time": "2031-01-01T00:00:00Z",
                            }
                        },
                    },
                },
            },
            environment={"A": "1", "B": None},
            deployment={"strategy": "CANARY", "wait_seconds": 60, "rollback_on": ["errors_5xx", "latency"]},
            alarms={
                "enabled": True,
                "settings": {"latency": {"threshold": 0.1}, "disk": None},
                "targets": {"two": {"target": "times-two-*", "p99_seconds": 0.25}},
            },
            contributor_insights=True,
            dashboard=True,
        )
        assert weights() == {"a": 333333, "b": 666667}
        models = [caller.client("sagemaker").describe_model(ModelName=name) for name in caller.models()]
        assert sorted(len(m["PrimaryContainer"].get("Environment", {})) for m in models) == [0, 1]
        caller.settle(
            variants={"a": {"weight": 16777217.5, "instance_count": 2}},
            deployment={"strategy": "ROLLING", "wait_seconds": 60, "rollback_on": []},
        )
        assert weights() == {"a": 16777216}
        assert caller.endpoint()["CreationTime"] == created, "the endpoint was replaced"
    finally:
        caller.destroy()
    assert caller.left() == []


def former_keys_still_open_archives(new: New) -> None:
    """A new key for the bucket, captured data and core dumps under it, acted out in the execution role."""
    caller = new("keys", resource={"aws_kms_key": {"a": {}, "b": {}}})
    a, b = "${aws_kms_key.a.arn}", "${aws_kms_key.b.arn}"
    try:
        dump = {"destination_uri": "s3://keys-123456789012-us-east-1/cores"}
        caller.settle(bucket={"kms_key_arn": a}, data_capture={}, variants={"primary": {"core_dump": dump}})
        caller.publish(ARCHIVE, 2)
        outputs = caller.outputs()
        bucket, key = outputs["bucket"], outputs["model_prefix"] + ARCHIVE

        def as_role(call: str, **arguments: Any) -> str:
            role = caller.client("s3", caller.assumed(outputs["role_arn"]))
            return refused(getattr(role, call), Bucket=bucket, **arguments)

        assert as_role("get_object", Key=key) == ""
        assert as_role("put_object", Key="data-capture/keys/1.jsonl", Body=b"{}") == ""
        assert as_role("put_object", Key="cores/keys/1", Body=b"1") == ""
        assert as_role("put_object", Key="elsewhere/1", Body=b"1") == "AccessDenied"
        caller.settle(bucket={"kms_key_arn": b, "former_kms_key_arns": [a]}, data_capture={"kms_key_arn": b})
        assert as_role("get_object", Key=key) == ""
        assert as_role("put_object", Key="data-capture/keys/2.jsonl", Body=b"{}") == ""
        answer = caller.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=caller.name, TargetModel=ARCHIVE, Body="21"
        )
        assert json.loads(answer["Body"].read())["result"] == 42
        # back, and to none at all
        caller.settle(bucket={"former_kms_key_arns": [a, b]})
        assert as_role("get_object", Key=key) == ""
        assert as_role("put_object", Key="data-capture/keys/3.jsonl", Body=b"{}") == "AccessDenied"
    finally:
        caller.destroy()
    assert caller.left() == []


def every_input_may_be_unknown(new: New) -> None:
    """What another resource will say: Terraform has to know only what there is, not what it is like."""
    later = {
        "image": IMAGE,
        "type": "ml.m5.2xlarge",
        "two": 2,
        "weight": 0.5,
        "text": "text",
        "gb": 64,
        "seconds": 600,
        "routing": "RANDOM",
        "cron": "cron(0 20 * * ? *)",
        "subnets": ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"],
        "group": "sg-0123456789abcdef0",
        "policy_arn": "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess",
        "target": "team-a/*",
        "days": 60,
        "type_of_content": "text/csv",
        "mail": "oncall@example.com",
        "number": 0.2,
        "policy": json.dumps({**ANYTHING, "Statement": [{**ANYTHING["Statement"][0], "Sid": "Mine"}]}),  # type: ignore[index]
        "bucket_policy": json.dumps(
            {"Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:PutBucketAcl", "Resource": "*"}]}
        ),
        "prefix": "deep/models/",
        "uri": "s3://elsewhere/here",
        "role": "unknown-role",
        "path": "/ml/",
    }
    log_policy = {"Effect": "Allow", "Principal": {"Service": "logging.s3.amazonaws.com"}, "Action": "s3:PutObject"}
    caller = new(
        "unknown",
        resource={
            "terraform_data": {"later": {"input": later}},
            "aws_kms_key": {"this": {}},
            "aws_iam_policy": {"boundary": {"name": "unknown-boundary", "policy": json.dumps(ANYTHING)}},
            "aws_sns_topic": {"there": {"name": "unknown-there"}},
            "aws_s3_bucket": {"logs": {"bucket": "unknown-logs", "force_destroy": True}},
            "aws_s3_bucket_policy": {
                "logs": {
                    "bucket": "${aws_s3_bucket.logs.bucket}",
                    "policy": json.dumps({"Statement": [{**log_policy, "Resource": "arn:aws:s3:::unknown-logs/*"}]}),
                }
            },
        },
    )

    def unknown(name: str) -> str:
        return f"${{terraform_data.later.output.{name}}}"

    key, boundary = "${aws_kms_key.this.arn}", "${aws_iam_policy.boundary.arn}"
    capacity = {"min_capacity": 1, "max_capacity": unknown("two")}
    inputs = {
        "revision": unknown("text"),
        "tags": {"a": unknown("text")},
        "image_uri": unknown("image"),
        "environment": {"A": unknown("text")},
        "variants": {
            "a": {
                "instance_type": unknown("type"),
                "instance_count": unknown("two"),
                "weight": unknown("weight"),
                "image_uri": unknown("image"),
                "environment": {"B": unknown("text")},
                "volume_size_gb": unknown("gb"),
                "download_timeout_seconds": unknown("seconds"),
                "startup_timeout_seconds": unknown("seconds"),
                "routing_strategy": unknown("routing"),
                "core_dump": {"destination_uri": unknown("uri"), "kms_key_arn": key},
                "autoscaling": {
                    **capacity,
                    "cpu_utilization": 70,
                    "scale_in_cooldown_seconds": unknown("seconds"),
                    "schedules": {"night": {"schedule": unknown("cron"), **capacity}},
                },
            },
            "b": {},
        },
        "vpc": {"subnet_ids": unknown("subnets"), "security_group_ids": [unknown("group")]},
        "volume_kms_key_arn": key,
        "bucket": {
            "kms_key_arn": key,
            "former_kms_key_arns": [key],
            "policy_json": unknown("bucket_policy"),
            "access_log": {"bucket": "${aws_s3_bucket_policy.logs.bucket}"},
        },
        "model_prefix": unknown("prefix"),
        "role": {
            "name": unknown("role"),
            "path": unknown("path"),
            "permissions_boundary_arn": boundary,
            "policy_arns": {"x": unknown("policy_arn")},
            "policy_json": unknown("policy"),
        },
        "invoke_policies": {"a": [unknown("target")]},
        "create_publisher_policy": True,
        "deployment": {"wait_seconds": unknown("two"), "timeout_seconds": unknown("seconds")},
        "alarms": {
            "enabled": True,
            "settings": {"latency": {"threshold": unknown("number")}},
            "targets": {"a": {"target": unknown("target"), "p99_seconds": unknown("number")}},
        },
        "dashboard": True,
        "contributor_insights": True,
        "logs": {"retention_days": unknown("days"), "kms_key_arn": key},
        "notifications": {
            "create_topic": True,
            "kms_key_arn": key,
            "topic_arns": {"there": "${aws_sns_topic.there.arn}"},
            "subscriptions": {"oncall": {"protocol": "email", "endpoint": unknown("mail")}},
        },
        "data_capture": {
            "sampling_percentage": unknown("two"),
            "destination_uri": unknown("uri"),
            "kms_key_arn": key,
            "json_content_types": [unknown("type_of_content")],
        },
    }
    try:
        caller.settle(**inputs)
        role = caller.client("iam").get_role_policy(RoleName="unknown-role", PolicyName="sagemaker-endpoint")
        assert "Mine" in [statement["Sid"] for statement in role["PolicyDocument"]["Statement"]]
        # The same from a secret place, as SSM parameters are: the outputs are none the less plain.
        caller.blocks["resource"]["aws_ssm_parameter"] = {
            "image": {"name": "unknown-image", "type": "String", "value": IMAGE.replace(":1", ":2")},
            "subnets": {"name": "unknown-subnets", "type": "String", "value": ",".join(later["subnets"])},  # type: ignore[arg-type]
        }
        subnets = '${split(",", aws_ssm_parameter.subnets.value)}'
        caller.settle(
            image_uri="${aws_ssm_parameter.image.value}",
            vpc={"subnet_ids": subnets, "security_group_ids": ["sg-0123456789abcdef0"]},
            model_prefix=unknown("prefix"),
        )
        assert caller.outputs()["image_uris"] == {"primary": IMAGE.replace(":1", ":2")}
    finally:
        caller.destroy()
    assert caller.left() == []


def what_it_waits_for_changes_nothing_about_it(new: New) -> None:
    """With depends_on, Terraform reads the module's data sources while it applies: names are known to the plan all the
    same. And they stay those of the account and region that the endpoint was made in."""
    caller = new("waits", resource={"terraform_data": {"before": {"input": "1"}}})
    inputs: dict[str, Any] = {
        "variants": {"primary": {"autoscaling": {"min_capacity": 1, "max_capacity": 2, "cpu_utilization": 60}}},
        "deployment": {"wait_seconds": 0},
        "invoke_policies": {"all": ["*"]},
        "notifications": {"create_topic": True},
        "dashboard": True,
        "depends_on": ["terraform_data.before"],
    }
    try:
        caller.settle(**inputs)
        caller.publish(ARCHIVE, 2)
        before = caller.outputs()
        caller.blocks["resource"]["terraform_data"]["before"]["input"] = "2"
        printed = caller.settle(**inputs)
        assert "Resources: 0 added, 1 changed, 0 destroyed." in printed, printed
        assert caller.outputs() == before
        # From AWS's image to one of one's own and back, while that waits as well: the registry is looked up again.
        for image in (IMAGE, None):
            caller.blocks["resource"]["terraform_data"]["before"]["input"] = str(image)
            caller.settle(**inputs, **({"image_uri": image} if image else {}))
            assert caller.outputs()["image_uris"]["primary"] == (image or before["image_uris"]["primary"])
        caller.blocks["provider"] = {"aws": {"region": "eu-west-1"}}
        words = caller.refuse(**inputs)
        assert "works in account 123456789012 and region eu-west-1" in words
        assert "was made in account 123456789012 and region us-east-1" in words
    finally:
        caller.blocks.pop("provider", None)
        caller.write(**inputs)
        caller.destroy()
    assert caller.left() == []
