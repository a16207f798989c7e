"""One root module, applied to the local AWS."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attached_provider
import boto3
from between_workers import locked
from botocore.config import Config
from botocore.exceptions import ClientError

from mme import terraform
from mme.errors import TerraformError
from mme.local import LocalAws


@contextmanager
def environment(aws: LocalAws, *, attached: bool) -> Iterator[Mapping[str, str]]:
    """Terraform's environment for this AWS: with one provider process for all commands, or as it starts them itself."""
    if attached:
        with attached_provider.attached(aws.client_env()) as env:
            yield env
    else:
        yield aws.client_env()


def settings(aws: LocalAws, keys: dict[str, str] | None = None) -> dict[str, Any]:
    """Arguments for a boto3 client of this AWS, with the account's own keys or those of an STS session."""
    keys = keys or {
        "AccessKeyId": aws.env["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": aws.env["AWS_SECRET_ACCESS_KEY"],
    }
    return {
        "endpoint_url": aws.url,
        "region_name": aws.env["AWS_REGION"],
        "aws_access_key_id": keys["AccessKeyId"],
        "aws_secret_access_key": keys["SecretAccessKey"],
        "aws_session_token": keys.get("SessionToken"),
        "config": Config(retries={"total_max_attempts": 1}),
    }


def refused(call: Any, **arguments: Any) -> str:
    """The error code with which AWS refuses the call; "" when it does not."""
    try:
        call(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


class Stack:
    """A folder with a root module, and the AWS that it is applied to. Terraform runs in the environment ``env``."""

    def __init__(self, folder: Path, aws: LocalAws, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.aws = aws
        self.env = env
        self.name = ""

    def client(self, service: str, keys: dict[str, str] | None = None) -> Any:
        return boto3.client(service, **settings(self.aws, keys))

    def _run(self, *words: str, check: bool = True) -> tuple[int, str]:
        done = terraform.run([*words, "-no-color"], self.folder, self.env, check=check)
        return done.returncode, done.stdout + done.stderr

    def init(self) -> None:
        with locked("terraform-init"):  # Terraform's plugin cache bears one init at a time
            self._run("init", "-input=false", "-backend=false")

    def apply(self, **variables: Any) -> str:
        """Applies with these variables; what Terraform printed. Raises TerraformError with its words."""
        _, printed = self._run("apply", "-auto-approve", "-input=false", *_arguments(variables))
        return printed

    def apply_and_fail(self, **variables: Any) -> str:
        code, printed = self._run("apply", "-auto-approve", "-input=false", *_arguments(variables), check=False)
        assert code == 1, f"the apply was to fail:\n{printed}"
        return printed

    def changes(self, **variables: Any) -> str:
        """What a plan would change; "" for nothing."""
        code, printed = self._run("plan", "-input=false", "-detailed-exitcode", *_arguments(variables), check=False)
        if code == 1:
            raise TerraformError(printed)
        return printed if code == 2 else ""

    def destroy(self, **variables: Any) -> None:
        self._run("destroy", "-auto-approve", "-input=false", *_arguments(variables))

    def outputs(self) -> dict[str, Any]:
        return terraform.outputs(self.folder, self.env)

    def endpoint(self) -> dict[str, Any]:
        return dict(self.client("sagemaker").describe_endpoint(EndpointName=self.name))

    def assumed(self, role_arn: str) -> dict[str, str]:
        """Keys of somebody who acts in the role."""
        answer = self.client("sts").assume_role(RoleArn=role_arn, RoleSessionName="test")
        return dict(answer["Credentials"])

    def publish(self, target: str, factor: int) -> None:
        """Puts a model under the prefix that multiplies what it is sent."""
        outputs = self.outputs()
        key = outputs["model_prefix"] + target
        self.client("s3").put_object(Bucket=outputs["bucket"], Key=key, Body=archive(factor), IfNoneMatch="*")

    def left(self) -> list[str]:
        """Names of everything in the account that carries this stack's name."""
        remains = [item["EndpointName"] for item in self.client("sagemaker").list_endpoints()["Endpoints"]]
        remains += self.configurations() + self.models()
        remains += [item["Name"] for item in self.client("s3").list_buckets()["Buckets"]]
        iam = self.client("iam")
        remains += [item["RoleName"] for item in iam.list_roles()["Roles"]]
        remains += [item["PolicyName"] for item in iam.list_policies(Scope="Local")["Policies"]]
        logs = self.client("logs")
        remains += [item["logGroupName"].rpartition("/")[2] for item in logs.describe_log_groups()["logGroups"]]
        cloudwatch = self.client("cloudwatch")
        remains += [item["AlarmName"] for item in cloudwatch.describe_alarms()["MetricAlarms"]]
        remains += [item["DashboardName"] for item in cloudwatch.list_dashboards()["DashboardEntries"]]
        remains += [item["TopicArn"].rpartition(":")[2] for item in self.client("sns").list_topics()["Topics"]]
        remains += [item["Name"] for item in self.client("events").list_rules()["Rules"]]
        remains += [item["repositoryName"] for item in self.client("ecr").describe_repositories()["repositories"]]
        remains += [item["ResourceId"].split("/")[1] for item in self.scalable_targets()]
        return [name for name in remains if name.startswith(self.name)]

    def configurations(self) -> list[str]:
        configs = self.client("sagemaker").list_endpoint_configs()["EndpointConfigs"]
        return [c["EndpointConfigName"] for c in configs if c["EndpointConfigName"].startswith(f"{self.name}-")]

    def models(self) -> list[str]:
        models = self.client("sagemaker").list_models()["Models"]
        return [m["ModelName"] for m in models if m["ModelName"].startswith(f"{self.name}-")]

    def scalable_targets(self) -> list[dict[str, Any]]:
        scaling = self.client("application-autoscaling")
        return list(scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"])

    @contextmanager
    def load(self, target: str, sent: int) -> Iterator[None]:
        """Calls the endpoint over and over meanwhile, whatever comes back."""
        runtime = self.client("sagemaker-runtime")

        def call() -> None:
            with contextlib.suppress(ClientError):
                runtime.invoke_endpoint(EndpointName=self.name, TargetModel=target, Body=str(sent))

        with _over_and_over(call):
            yield

    @contextmanager
    def calls(self, target: str, sent: int, expected: int) -> Iterator[None]:
        """Calls the endpoint over and over meanwhile, and raises if one call fails."""
        problems: list[str] = []
        answered = 0
        runtime = self.client("sagemaker-runtime")

        def call() -> None:
            nonlocal answered
            try:
                answer = runtime.invoke_endpoint(EndpointName=self.name, TargetModel=target, Body=str(sent))
                assert json.loads(answer["Body"].read())["result"] == expected
                answered += 1
            except Exception as problem:
                problems.append(repr(problem))

        with _over_and_over(call):
            yield
        assert not problems, f"{len(problems)} calls failed beside {answered} that did not, the first: {problems[0]}"
        assert answered > 0


@contextmanager
def _over_and_over(call: Callable[[], None]) -> Iterator[None]:
    """Calls it in a thread meanwhile, with a short pause after each."""
    over = threading.Event()

    def calls() -> None:
        while not over.is_set():
            call()
            over.wait(0.05)

    caller = threading.Thread(target=calls, daemon=True)
    caller.start()
    try:
        yield
    finally:
        over.set()
        caller.join(timeout=70)


def archive(factor: int) -> bytes:
    """An archive of a model for the tests' small container."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        body = json.dumps({"times": factor}).encode()
        member = tarfile.TarInfo("model.json")
        member.size = len(body)
        tar.addfile(member, io.BytesIO(body))
    return packed.getvalue()


def _arguments(variables: dict[str, Any]) -> list[str]:
    given = {name: value if isinstance(value, str) else json.dumps(value) for name, value in variables.items()}
    return [f"-var={name}={value}" for name, value in given.items()]
