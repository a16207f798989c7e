"""The clients that people use work unchanged: the AWS CLI and the SageMaker Python SDK."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from local_tools import Cloud


def aws(cloud: Cloud, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "awscli", *words], env=cloud.aws.client_env(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_aws_cli(cloud: Cloud, tmp_path: Path) -> None:
    target = cloud.publish("team-a/m.tar.gz", times=3)
    endpoint = cloud.endpoint()
    assert "m.tar.gz" in aws(cloud, "s3", "ls", f"s3://{cloud.bucket}/models/team-a/")
    answer = tmp_path / "answer.json"
    said = aws(
        cloud,
        *("sagemaker-runtime", "invoke-endpoint", "--endpoint-name", endpoint, "--target-model", target),
        *("--body", "7", "--content-type", "text/plain", str(answer)),
    )
    assert json.loads(said)["InvokedProductionVariant"] == "AllTraffic"
    assert json.loads(answer.read_text())["result"] == 21
    assert endpoint in aws(cloud, "sagemaker", "list-endpoints")


def test_the_aws_cli_copies_an_archive(cloud: Cloud, tmp_path: Path) -> None:
    """Large enough to go in parts."""
    source, copy = tmp_path / "a", tmp_path / "b"
    source.write_bytes(bytes(range(256)) * 50_000)
    aws(cloud, "s3", "cp", "--no-progress", str(source), f"s3://{cloud.bucket}/models/x.tar.gz")
    aws(cloud, "s3", "cp", "--no-progress", f"s3://{cloud.bucket}/models/x.tar.gz", str(copy))
    assert source.read_bytes() == copy.read_bytes()


@pytest.mark.slow
def test_the_sagemaker_sdk(cloud: Cloud) -> None:
    """``Predictor`` of SDK v2, as the notebooks have it. In a process of its own: importing the SDK takes seconds."""
    target = cloud.publish("m.tar.gz", times=3)
    endpoint = cloud.endpoint()
    code = """
import json, sys
from sagemaker.predictor import Predictor
from sagemaker.serializers import JSONSerializer
from sagemaker.deserializers import JSONDeserializer
predictor = Predictor(sys.argv[1], serializer=JSONSerializer(), deserializer=JSONDeserializer())
print(json.dumps(predictor.predict(7, target_model=sys.argv[2])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, endpoint, target], env=cloud.aws.client_env(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["result"], answer["content_type"], answer["target"]) == (21, "application/json", target)
