"""What the tests of the local AWS share: clients, and short ways to a role, an archive and an endpoint."""

from __future__ import annotations

import functools
import io
import json
import shlex
import sys
import tarfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from mme.local import LocalAws

FAKE_CONTAINER = shlex.join([sys.executable, str(Path(__file__).with_name("fake_container.py"))])
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/models:1"
BUSY = ("Creating", "Updating", "RollingBack", "Deleting")
TRUST = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}


def archive(**settings: Any) -> bytes:
    """An archive for the fake container; see its docstring for the settings."""
    return tar_gz({"model.json": json.dumps(settings).encode(), "code/inference.py": b"# nothing\n"})


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What ``condition`` answers once it is true."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def error_of(call: Callable[..., Any], **named: Any) -> dict[str, Any]:
    """The error that the call ends in, as boto3 shows it."""
    with pytest.raises(ClientError) as caught:
        call(**named)
    return caught.value.response


def _client(aws: LocalAws, service: str, credentials: dict[str, str] | None = None) -> Any:
    env = aws.env
    keys = credentials or {
        "AccessKeyId": env["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": env["AWS_SECRET_ACCESS_KEY"],
    }
    return boto3.client(
        service,
        endpoint_url=aws.url,
        region_name=env["AWS_REGION"],
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys.get("SessionToken"),
        config=Config(retries={"total_max_attempts": 1}, read_timeout=70),
    )


@functools.cache
def _clients(aws: LocalAws) -> tuple[Any, ...]:
    """Those that most tests use. To make them takes longer than many a test, so they are shared: change nothing about
    them."""
    return tuple(_client(aws, service) for service in ("s3", "sagemaker", "sagemaker-runtime", "iam"))


class Cloud:
    """One test's corner of the local AWS: names that nobody else uses, and all of it gone at the end."""

    def __init__(self, aws: LocalAws) -> None:
        self.aws = aws
        self.name = f"t{uuid.uuid4().hex[:12]}"
        self.bucket = f"{self.name}-bucket"
        self._endpoints: list[str] = []
        self.s3, self.sagemaker, self.runtime, self.iam = _clients(aws)
        self.s3.create_bucket(Bucket=self.bucket)

    def client(self, service: str, credentials: dict[str, str] | None = None) -> Any:
        """A new client with the root's credentials, or with others (as STS and IAM answer them)."""
        return _client(self.aws, service, credentials)

    def role(self, *statements: dict[str, Any], name: str = "role", trust: Any = TRUST, **more: Any) -> str:
        """A role that SageMaker may assume, with an inline policy of the statements; its ARN."""
        full = f"{self.name}-{name}"
        document = json.dumps({"Version": "2012-10-17", "Statement": trust})
        arn = self.iam.create_role(RoleName=full, AssumeRolePolicyDocument=document, **more)["Role"]["Arn"]
        if statements:
            policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
            self.iam.put_role_policy(RoleName=full, PolicyName="inline", PolicyDocument=policy)
        return str(arn)

    def execution_role(self) -> str:
        """A role that may read the model prefix of this test's bucket."""
        return self.role(
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{self.bucket}/models/*"},
            name=f"execution-{uuid.uuid4().hex[:6]}",
        )

    def user(self, *statements: dict[str, Any], **more: Any) -> dict[str, str]:
        """A user with an inline policy of the statements; its access key."""
        name = f"{self.name}-{uuid.uuid4().hex[:6]}"
        self.iam.create_user(UserName=name, **more)
        if statements:
            policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
            self.iam.put_user_policy(UserName=name, PolicyName="inline", PolicyDocument=policy)
        key: dict[str, str] = self.iam.create_access_key(UserName=name)["AccessKey"]
        return key

    def assume(self, role_arn: str, **more: Any) -> dict[str, str]:
        """Credentials of the role."""
        answer = self.client("sts").assume_role(RoleArn=role_arn, RoleSessionName="test", **more)
        credentials: dict[str, str] = answer["Credentials"]
        return credentials

    def publish(self, target: str, data: bytes | None = None, **settings: Any) -> str:
        """Puts an archive below the model prefix; the target's name."""
        self.s3.put_object(
            Bucket=self.bucket, Key=f"models/{target}", Body=archive(**settings) if data is None else data
        )
        return target

    def model(self, environment: dict[str, str] | None = None, role: str | None = None, **container: Any) -> str:
        name = f"{self.name}-{uuid.uuid4().hex[:8]}"
        settings = {"Image": IMAGE, "Mode": "MultiModel", "ModelDataUrl": f"s3://{self.bucket}/models/", **container}
        self.sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=role or self.execution_role(),
            PrimaryContainer={**settings, "Environment": environment or {}},
        )
        return name

    def config(self, *variants: dict[str, Any], **more: Any) -> str:
        """An endpoint configuration; each variant may leave out everything but what matters."""
        name = f"{self.name}-{uuid.uuid4().hex[:8]}"
        default = {"VariantName": "AllTraffic", "InstanceType": "ml.m6i.large", "InitialInstanceCount": 1}
        full = [{**default, **({} if "ModelName" in v else {"ModelName": self.model()}), **v} for v in variants or [{}]]
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=full, **more)
        return name

    def endpoint(self, config: str | None = None, *, wait: bool = True, **environment: str) -> str:
        """An endpoint in service, of a configuration or of one container with the environment; its name."""
        name = f"{self.name}-{uuid.uuid4().hex[:8]}"
        if config is None:
            config = self.config({"ModelName": self.model(environment)})
        self._endpoints.append(name)
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
        if wait:
            assert self.settled(name)["EndpointStatus"] == "InService"
        return name

    def status(self, name: str) -> dict[str, Any]:
        description: dict[str, Any] = self.sagemaker.describe_endpoint(EndpointName=name)
        return description

    def settled(self, name: str) -> dict[str, Any]:
        """What DescribeEndpoint says once nothing is under way."""
        description: dict[str, Any] = wait_for(
            lambda: (answer := self.status(name))["EndpointStatus"] not in BUSY and answer
        )
        return description

    def gone(self, name: str) -> bool:
        try:
            self.status(name)
        except ClientError as problem:
            return "Could not find endpoint" in str(problem)
        return False

    def invoke(self, endpoint: str, target: str | None, body: bytes = b"1", **more: Any) -> dict[str, Any]:
        """The answer of the fake container, and the response's own fields beside it as ``response``."""
        named = {**more, **({} if target is None else {"TargetModel": target})}
        response = self.runtime.invoke_endpoint(EndpointName=endpoint, Body=body, **named)
        result: dict[str, Any] = json.loads(response["Body"].read())
        return {**result, "response": response}

    def close(self) -> None:
        for name in self._endpoints:
            if not self.gone(name):
                self.sagemaker.delete_endpoint(EndpointName=name)
        wait_for(lambda: all(self.gone(name) for name in self._endpoints))
