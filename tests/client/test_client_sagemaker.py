"""``MultiDataModel`` on SDK v3: the archives here, the endpoint in a process that has sagemaker-core on its path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from between_workers import ROOT, installed

from mme.archive import write
from mme.catalog.reader import load
from mme.client.sagemaker import MultiDataModel, Predictor
from mme.errors import ConflictError, ReleaseError, UsageError
from mme.local import LocalAws


@pytest.fixture
def bucket(aws_env: LocalAws) -> str:
    name = f"sdk-{uuid4().hex[:10]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


def mme(bucket: str, prefix: str = "models/", **more: Any) -> MultiDataModel:
    given: dict[str, Any] = {"image_uri": "image", "role": "role", **more}
    return MultiDataModel(f"m-{uuid4().hex[:8]}", f"s3://{bucket}/{prefix}", **given)


# ---- archives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["models/", "models", "a/models/", ""])
def test_what_is_added_is_listed(bucket: str, tmp_path: Path, prefix: str) -> None:
    many = mme(bucket, prefix)
    (tmp_path / "a.tar.gz").write_bytes(b"a")
    root = f"{prefix.rstrip('/')}/" if prefix else ""
    assert many.add_model(str(tmp_path / "a.tar.gz")) == f"s3://{bucket}/{root}a.tar.gz"
    assert many.add_model(str(tmp_path / "a.tar.gz"), "team/b.tar.gz") == f"s3://{bucket}/{root}team/b.tar.gz"
    assert many.add_model(f"s3://{bucket}/{root}a.tar.gz", "/c.tar.gz") == f"s3://{bucket}/{root}c.tar.gz"
    assert sorted(many.list_models()) == ["a.tar.gz", "c.tar.gz", "team/b.tar.gz"]
    if root:
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{root.rstrip('/')}-others/x.tar.gz", Body=b"x")
        assert len(list(many.list_models())) == 3
    copied = boto3.client("s3").get_object(Bucket=bucket, Key=f"{root}c.tar.gz")["Body"].read()
    assert copied == b"a"


@pytest.mark.parametrize("of", ["file", "object"])
def test_an_archive_is_never_overwritten(bucket: str, tmp_path: Path, of: str) -> None:
    many, s3 = mme(bucket), boto3.client("s3")

    def source(content: bytes) -> str:
        if of == "file":
            (tmp_path / "new").write_bytes(content)
            return str(tmp_path / "new")
        s3.put_object(Bucket=bucket, Key="new", Body=content)
        return f"s3://{bucket}/new"

    uri = many.add_model(source(b"first"), "a.tar.gz")
    assert many.add_model(source(b"first"), "a.tar.gz") == uri
    for other in (b"other", b"fir", b"first and more", b""):
        with pytest.raises(ConflictError, match="not overwritten"):
            many.add_model(source(other), "a.tar.gz")
    assert s3.get_object(Bucket=bucket, Key="models/a.tar.gz")["Body"].read() == b"first"


@pytest.mark.parametrize("path", ["../x.tar.gz", "a/../../x", "/", "a//b", "."])
def test_a_path_stays_below_the_prefix(bucket: str, tmp_path: Path, path: str) -> None:
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(UsageError, match="not a path below"):
        mme(bucket).add_model(str(tmp_path / "a"), path)


def test_sources_that_are_not_there(bucket: str, tmp_path: Path) -> None:
    many = mme(bucket)
    for source in (str(tmp_path / "nowhere"), str(tmp_path), "http://example.com/a.tar.gz"):
        with pytest.raises(UsageError, match="neither a file nor"):
            many.add_model(source)
    with pytest.raises(ReleaseError, match="There is no s3://"):
        many.add_model(f"s3://{bucket}/nowhere.tar.gz")
    with pytest.raises(ReleaseError, match="there is no bucket"):
        mme(f"nobody-{uuid4().hex}").add_model(__file__)
    with pytest.raises(ReleaseError, match="there is no bucket"):
        list(mme(f"nobody-{uuid4().hex}").list_models())


def test_arguments_that_do_not_go_together(aws_env: LocalAws) -> None:
    with pytest.raises(UsageError, match="begins with s3://"):
        MultiDataModel("m", "my-bucket/models/")
    with pytest.raises(UsageError, match="one of both"):
        MultiDataModel("m", "s3://my-bucket/models/", model=object(), image_uri="image")
    many = mme("my-bucket")
    with pytest.raises(UsageError, match="invoke local"):
        many.deploy(1, "local")
    with pytest.raises(UsageError, match="Elastic Inference"):
        many.deploy(1, "ml.m5.large", accelerator_type="ml.eia1.medium")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="SDK v3 is not installed"):
        many.deploy(1, "ml.m5.large")  # this process has v2
    with pytest.raises(UsageError, match="Which model"):
        Predictor("e").predict(b"x")
    with pytest.raises(UsageError, match="serializer"):
        Predictor("e").predict({"inputs": "x"}, target_model="a.tar.gz")


def test_a_model_of_v2_gives_what_describes_the_container(aws_env: LocalAws) -> None:
    class Model:
        image_uri = "image"
        role = "arn:aws:iam::123456789012:role/r"
        env = {"A": "1"}
        vpc_config = None
        predictor_cls = None

        def enable_network_isolation(self) -> bool:
            return True

    many = MultiDataModel("m", "s3://my-bucket/models/", model=Model())
    assert many.enable_network_isolation()
    assert many.prepare_container_def() == {
        "Image": "image",
        "Environment": {"A": "1"},
        "ModelDataUrl": "s3://my-bucket/models/",
        "Mode": "MultiModel",
    }


# ---- the endpoint -------------------------------------------------------------------------------------------------

# What AWS's notebook for v2 does, cell by cell; the first import is the line that changes.
NOTEBOOK = """
import json, os, sys
from mme.client.sagemaker import MultiDataModel
import boto3
from sagemaker.core.serializers import JSONSerializer
from sagemaker.core.deserializers import JSONDeserializer

bucket, role, name, archive, other = sys.argv[1:]
image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/serving:1"
mme = MultiDataModel(
    name=name,
    model_data_prefix=f"s3://{bucket}/models/",
    image_uri=image,
    role=role,
    env={"SAGEMAKER_PROGRAM": ""},
    sagemaker_session=boto3.Session(),
)
mme.add_model(model_data_source=archive)
predictor = mme.deploy(
    initial_instance_count=1,
    instance_type="ml.m5.large",
    endpoint_name=f"{name}-endpoint",
    tags=[{"Key": "a", "Value": "b"}],
)
mme.add_model(model_data_source=f"s3://{bucket}/models/{os.path.basename(archive)}", model_data_path="copy.tar.gz")
said = {"listed": sorted(mme.list_models()), "endpoint_name": mme.endpoint_name}
predictor.serializer = JSONSerializer()
predictor.deserializer = JSONDeserializer()
said["answer"] = predictor.predict(data=json.loads(other), target_model="copy.tar.gz")
body = json.dumps(json.loads(other)).encode()
resource = predictor.endpoint
again = resource.invoke(body=body, content_type="application/json", target_model="copy.tar.gz")
said["of_core"] = json.loads(again.body.read())
try:
    predictor.predict(data=1, target_model="nowhere.tar.gz")
except Exception as error:
    said["error"] = type(error).__name__
sagemaker = boto3.client("sagemaker")
said["model"] = sagemaker.describe_model(ModelName=name)["PrimaryContainer"]
said["endpoint"] = sagemaker.describe_endpoint(EndpointName=f"{name}-endpoint")
said["config"] = sagemaker.describe_endpoint_config(EndpointConfigName=f"{name}-endpoint")["ProductionVariants"]
said["tags"] = [
    sagemaker.list_tags(ResourceArn=said["endpoint"]["EndpointArn"])["Tags"],
    sagemaker.list_tags(ResourceArn=sagemaker.describe_model(ModelName=name)["ModelArn"])["Tags"],
]
# A second endpoint of the same model, and one whose name is taken, which leaves nothing behind.
second = mme.deploy(1, "ml.m5.large", endpoint_name=f"{name}-second", wait=False)
fresh = MultiDataModel(f"{name}-fresh", f"s3://{bucket}/models/", image_uri=image, role=role)
try:
    fresh.deploy(1, "ml.m5.large", endpoint_name=f"{name}-endpoint")
except Exception as error:
    said["taken"] = type(error).__name__
said["models_after"] = [item["ModelName"] for item in sagemaker.list_models(NameContains=name)["Models"]]
try:
    MultiDataModel(name, f"s3://{bucket}/models/", image_uri="another", role=role).deploy(1, "ml.m5.large")
except Exception as error:
    said["other_model"] = type(error).__name__
second.delete_endpoint()
predictor.delete_model()
predictor.delete_endpoint()
said["configs_after"] = sagemaker.list_endpoint_configs(NameContains=name)["EndpointConfigs"]
said["models_at_the_end"] = sagemaker.list_models(NameContains=name)["Models"]
print("SAID " + json.dumps(said, default=str))
"""


def requirements() -> list[str]:
    text = (ROOT / "requirements" / "sagemaker.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def with_v3(code: str, *words: str, env: dict[str, str]) -> dict[str, Any]:
    """Run the code in a process that has sagemaker-core 2 in the place of SDK v2; what it said."""
    folder = installed("sagemaker-core", requirements())
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**env, "PYTHONPATH": os.pathsep.join([str(folder), env.get("PYTHONPATH", "")]).rstrip(os.pathsep)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.split("SAID ")[1].splitlines()[0])
    return said


def role_for(aws: LocalAws, name: str, bucket: str) -> str:
    iam = boto3.client("iam")
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    may = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/models/*"}

    def policy(statement: dict[str, Any]) -> str:
        return json.dumps({"Version": "2012-10-17", "Statement": [statement]})

    iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy(trust))
    iam.put_role_policy(RoleName=name, PolicyName="inline", PolicyDocument=policy(may))
    return name


@pytest.mark.slow
def test_the_notebook_of_v2_with_one_changed_import(bucket: str, aws_env: LocalAws, bert: Path, tmp_path: Path) -> None:
    """With the contract's fake container; the role by its name, as notebooks have it."""
    made = archive(bert, tmp_path)
    name = f"v3-{uuid4().hex[:8]}"
    said = with_v3(NOTEBOOK, bucket, role_for(aws_env, name, bucket), name, str(made), "[1]", env=aws_env.client_env())
    assert said["listed"] == sorted([made.name, "copy.tar.gz"])
    assert said["endpoint_name"] == f"{name}-endpoint"
    assert said["answer"]["target"] == said["of_core"]["target"] == "copy.tar.gz"
    assert said["answer"]["body"] == "[1]"
    assert said["answer"]["content_type"] == "application/json"
    assert said["error"] == "TargetNotFound"
    assert said["model"]["Mode"] == "MultiModel"
    assert said["model"]["ModelDataUrl"] == f"s3://{bucket}/models/"
    assert said["endpoint"]["EndpointConfigName"] == f"{name}-endpoint"
    (variant,) = said["config"]
    assert (variant["VariantName"], variant["ModelName"], variant["InitialVariantWeight"]) == ("AllTraffic", name, 1.0)
    assert said["tags"] == [[{"Key": "a", "Value": "b"}]] * 2
    assert said["taken"] == "EndpointError"
    assert said["models_after"] == [name]
    assert said["other_model"] == "ConflictError"
    assert said["configs_after"] == said["models_at_the_end"] == []


@pytest.mark.slow
def test_a_real_model_answers(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalAws(tmp_path / "aws") as aws:
        for key, value in aws.env.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        bucket = f"sdk-{uuid4().hex[:10]}"
        boto3.client("s3").create_bucket(Bucket=bucket)
        role = role_for(aws, bucket, bucket)
        inputs = json.dumps({"inputs": ["a text", "another"]})
        said = with_v3(NOTEBOOK, bucket, role, bucket, str(archive(bert, tmp_path)), inputs, env=aws.client_env())
    assert len(said["answer"]["embeddings"]) == 2
    assert said["answer"] == said["of_core"]


def archive(snapshot: Path, folder: Path) -> Path:
    (folder / "models.toml").write_text(f'[models.bert]\nsource = "folder:{snapshot}"\nhandler = "embedding"\n')
    (spec,) = load(folder / "models.toml").select([])
    made = write.build(spec, snapshot, folder / "dist")
    assert made.path is not None
    return made.path
