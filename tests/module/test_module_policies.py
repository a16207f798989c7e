"""The policies that the module writes for others, held against what they are for: each user has one policy and no more,
and does with it what it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from caller import Caller
from stack import archive, environment, refused

from mme import releases
from mme.capacity import published as plans
from mme.client import Endpoint
from mme.client.errors import AccessDenied
from mme.errors import EndpointError
from mme.local import LocalAws

pytestmark = pytest.mark.slow

PREFIX = "team/models/"
OLD, NEW = "times-two-000000000001.tar.gz", "times-two-000000000002.tar.gz"


class User:
    """A user with one inline policy, and the toolchain with its keys."""

    def __init__(self, caller: Caller, name: str, policy: str) -> None:
        self._caller = caller
        self.name = name
        iam = caller.client("iam")
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=policy)
        made = iam.create_access_key(UserName=name)["AccessKey"]
        self._keys = made
        self._env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MME_"))},
            **caller.aws.client_env(),
            "AWS_ACCESS_KEY_ID": made["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
        }

    def client(self, service: str) -> Any:
        return self._caller.client(service, self._keys)

    def session(self) -> boto3.Session:
        return boto3.Session(
            aws_access_key_id=self._keys["AccessKeyId"],
            aws_secret_access_key=self._keys["SecretAccessKey"],
            region_name=self._caller.aws.env["AWS_REGION"],
        )

    def runs(self, *words: str) -> Any:
        """What the task prints with --json; it may not fail."""
        code, document, printed = self.tries(*words)
        assert code == 0, f"{self.name}: {words}: {document} {printed}"
        return document

    def tries(self, *words: str) -> tuple[int, Any, str]:
        done = subprocess.run(
            [sys.executable, "-m", "mme", *words, "--json"],
            env=self._env,
            cwd=self._caller.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, json.loads(done.stdout), done.stderr

    def remove(self) -> None:
        iam = self._caller.client("iam")
        iam.delete_user_policy(UserName=self.name, PolicyName="only")
        iam.delete_access_key(UserName=self.name, AccessKeyId=self._keys["AccessKeyId"])
        iam.delete_user(UserName=self.name)


@pytest.fixture(scope="module")
def caller(local_aws: LocalAws, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """An endpoint with a name in capitals, a variant with a hyphen, a prefix in a folder, and a key for its bucket."""
    folder = tmp_path_factory.mktemp("policies")
    with environment(local_aws, attached=True) as env:
        made = Caller(folder, local_aws, env, "Policies", resource={"aws_kms_key": {"a": {}}})
        try:
            made.write(
                bucket={"kms_key_arn": "${aws_kms_key.a.arn}"},
                model_prefix=PREFIX,
                variants={"green-1": {}},
                invoke_policies={"two": ["times-two-*"]},
            )
            made.apply()
            s3, bucket = made.client("s3"), made.outputs()["bucket"]
            for factor, target in enumerate((OLD, NEW), 2):
                s3.put_object(Bucket=bucket, Key=PREFIX + target, Body=archive(factor))
            s3.put_object(Bucket=bucket, Key=f"{PREFIX}other-000000000001.tar.gz", Body=archive(9))
            yield made
        finally:
            made.destroy()


@pytest.fixture
def user(caller: Caller) -> Iterator[Any]:
    made: list[User] = []

    def new(name: str, *outputs: str) -> User:
        documents = [json.loads(caller.outputs()[output]) for output in outputs]
        policy = {"Version": "2012-10-17", "Statement": [item for d in documents for item in d["Statement"]]}
        made.append(User(caller, name, json.dumps(policy)))
        return made[-1]

    yield new
    for item in made:
        item.remove()


def planned(folder: Path) -> list[str]:
    """The flags of a small capacity plan."""
    models = folder / "models.csv"
    models.write_text("name,size,active,load_seconds,answer_seconds\na,90MB,105MB,0.06,0.012\n")
    return ["--models", str(models), "--zipf", "0", "--rate", "1", "--type", "ml.m5.large"]


def answered(user: User, caller: Caller, model: str) -> Any:
    with Endpoint(caller.name, session=user.session()) as endpoint:
        return json.loads(endpoint.model(model).ask(b"10", content_type="application/json").body)["result"]


def test_a_caller_asks_by_name(caller: Caller, user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", caller.aws.url)
    client = user("client", "client_policy_json")
    assert answered(client, caller, "times-two") == 30
    user("operator", "operator_policy_json").runs(
        *("promote", "--model", "times-two", "--version", "000000000001"),
        *("--bucket", caller.outputs()["bucket"], "--prefix", PREFIX),
    )
    assert answered(client, caller, "times-two") == 20
    assert answered(client, caller, "other") == 90
    s3, bucket = client.client("s3"), caller.outputs()["bucket"]
    assert refused(s3.get_object, Bucket=bucket, Key=PREFIX + OLD) == "AccessDenied"
    assert refused(s3.list_objects_v2, Bucket=bucket) == "AccessDenied"
    assert refused(s3.put_object, Bucket=bucket, Key="team/channels/other.json", Body=b"{}") == "AccessDenied"


def test_a_tenant_asks_by_name_what_is_its_own(caller: Caller, user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", caller.aws.url)
    tenant = user("tenant", "lookup_policy_json")
    with pytest.raises(AccessDenied):
        answered(tenant, caller, "times-two")
    arn = caller.outputs()["invoke_policies"]["two"]["arn"]
    caller.client("iam").attach_user_policy(UserName="tenant", PolicyArn=arn)
    try:
        assert answered(tenant, caller, "times-two") in (20, 30)
        with pytest.raises(AccessDenied):
            answered(tenant, caller, "other")
    finally:
        caller.client("iam").detach_user_policy(UserName="tenant", PolicyArn=arn)


def test_the_right_to_call_alone_is_not_enough(caller: Caller, user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", caller.aws.url)
    invoker = user("invoker", "invoke_policy_json")
    with pytest.raises(EndpointError, match="no permission for DescribeEndpoint"):
        answered(invoker, caller, "times-two")
    with Endpoint(caller.name, session=invoker.session()) as endpoint:
        assert json.loads(endpoint.target(NEW).ask(b"10", content_type="application/json").body)["result"] == 30


def test_an_operator_lives_with_it(caller: Caller, user: Any, tmp_path: Path) -> None:
    operator = user("operator", "operator_policy_json")
    at = ("--endpoint", caller.name)
    bucket = caller.outputs()["bucket"]
    place = ("--bucket", bucket, "--prefix", PREFIX)
    assert operator.runs("status", *at)["unknown"] == {}
    code, document, _ = operator.tries("doctor", "--all", *at)
    refusals = [item for item in document["findings"] if "AccessDenied" in item["what"] or "permi" in item["what"]]
    assert code in (0, 1)
    assert refusals == []
    operator.runs("logs", *at)
    operator.runs("promote", "--model", "times-two@stage", *place)
    operator.runs("split", "--model", "times-two@stage", "--weight", "000000000001=1", "--weight", "newest=1", *place)
    operator.runs("rollback", "--model", "times-two@stage", *place)
    operator.runs("history", "--model", "times-two@stage", *place)
    operator.runs("channels", *place)
    operator.runs("releases", *place)
    operator.runs("delete", "--channel", "times-two@stage", "--yes", *place)
    store = releases.Store(bucket, PREFIX)
    operator.runs("capacity", "plan", *planned(tmp_path), "--publish", "spring", *place)
    assert [name for name, _ in plans.names(operator.client("s3"), store)] == ["spring"]
    assert plans.read(operator.client("s3"), store, "spring")[1].tables
    assert refused(operator.client("s3").delete_object, Bucket=bucket, Key="team/plans/spring.json") == ""
    sample = tmp_path / "sample.json"
    sample.write_text("10")
    operator.runs("warm", "--model", "times-two", "--file", str(sample), "--log-seconds", "1", *at)
    caller.client("s3").put_object(Bucket=bucket, Key=f"{PREFIX}gone-000000000001.tar.gz", Body=archive(4))
    operator.runs("delete", "--target", "gone-000000000001.tar.gz", "--yes", *place)
    operator.runs("prune", "--keep", "5", "--dry-run", "--ignore-endpoints", *place)
    s3 = operator.client("s3")
    assert (
        refused(s3.put_object, Bucket=bucket, Key=PREFIX + "new.tar.gz", Body=b"1", IfNoneMatch="*") == "AccessDenied"
    )
    assert refused(s3.delete_object, Bucket=bucket, Key=PREFIX) == "AccessDenied"
    sagemaker = operator.client("sagemaker")
    assert refused(sagemaker.delete_endpoint, EndpointName=caller.name) == "AccessDeniedException"
    assert refused(sagemaker.describe_endpoint, EndpointName="elsewhere") == "AccessDeniedException"


def test_a_publisher_publishes_and_promotes(caller: Caller, user: Any, tmp_path: Path) -> None:
    publisher = user("publisher", "publisher_policy_json")
    place = releases.Store(caller.outputs()["bucket"], PREFIX)
    content = archive(5)
    published = releases.publish(
        publisher.client("s3"),
        place,
        name="times-five",
        digest="5" * 64,
        content=releases.Stream(lambda put: put(content), len(content)),
        author="ci",
        notes="",
    )
    assert published.status == "uploaded"
    where = ("--bucket", place.bucket, "--prefix", PREFIX)
    publisher.runs("promote", "--model", "times-five", *where)
    publisher.runs("releases", *where)
    publisher.runs("history", "--model", "times-five", *where)
    publisher.runs("capacity", "plan", *planned(tmp_path), "--publish", "spring", *where)
    assert plans.read(caller.client("s3"), place, "spring")[1].tables
    encrypted = caller.client("s3").head_object(Bucket=place.bucket, Key="team/plans/spring.json")
    assert (encrypted["ServerSideEncryption"], encrypted["BucketKeyEnabled"]) == ("aws:kms", True)
    for method, more in (("delete_object", {}), ("get_object", {}), ("put_object", {"Body": b"x"})):
        key = "team/plans/spring.txt" if method == "put_object" else "team/plans/spring.json"
        call = getattr(publisher.client("s3"), method)
        assert refused(call, Bucket=place.bucket, Key=key, **more) == "AccessDenied", method
    code, document, _ = publisher.tries("delete", "--target", published.target, "--yes", *where)
    assert code == 8, document
