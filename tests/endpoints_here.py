"""A bucket with a multi-model endpoint on its models/, for tests that come from outside."""

from __future__ import annotations

import json
from typing import Any

import boto3

from mme.local import LocalAws


def create(aws: LocalAws, name: str) -> str:
    """Make the bucket ``name`` and an endpoint of the same name that reads s3://NAME/models/; wait until it serves."""
    client: dict[str, Any] = {
        "endpoint_url": aws.url,
        "region_name": aws.env["AWS_REGION"],
        "aws_access_key_id": aws.env["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": aws.env["AWS_SECRET_ACCESS_KEY"],
    }
    boto3.client("s3", **client).create_bucket(Bucket=name)
    iam, sagemaker = boto3.client("iam", **client), boto3.client("sagemaker", **client)
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    may = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{name}/models/*"}
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy(trust))["Role"]["Arn"]
    iam.put_role_policy(RoleName=name, PolicyName="inline", PolicyDocument=_policy(may))
    image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/serving:1"
    sagemaker.create_model(
        ModelName=name,
        ExecutionRoleArn=role,
        PrimaryContainer={"Image": image, "Mode": "MultiModel", "ModelDataUrl": f"s3://{name}/models/"},
    )
    variant: Any = {"VariantName": "main", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    patience = {"Delay": 1, "MaxAttempts": 120}
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=patience)
    return name


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
