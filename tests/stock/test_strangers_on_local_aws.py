"""A stranger's archives, and our own, behind the local AWS, as any client of InvokeEndpoint sees them."""

import ast
import json
from pathlib import Path

import boto3
import botocore.config
import pytest
from stock_tools import skip_without_stock

from mme.local import LocalAws

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_stock", "forked_module")]


@pytest.mark.parametrize("container", ["ours", "stock"])
def test_archives_of_all_kinds_behind_one_endpoint(
    container: str, notebook_archives: dict[str, Path], archives: dict[str, Path], tmp_path: Path
) -> None:
    if container == "stock":
        skip_without_stock()
    with LocalAws(tmp_path / "aws", container=container, iam=False) as aws:
        settings = {
            "endpoint_url": aws.url,
            "region_name": aws.env["AWS_REGION"],
            "aws_access_key_id": aws.env["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": aws.env["AWS_SECRET_ACCESS_KEY"],
        }
        s3, sagemaker = boto3.client("s3", **settings), boto3.client("sagemaker", **settings)
        s3.create_bucket(Bucket="strangers")
        for name, path in notebook_archives.items():
            s3.upload_file(str(path), "strangers", f"models/notebook/{name}.tar.gz")
        for name, path in archives.items():
            s3.upload_file(str(path), "strangers", f"models/{name}.tar.gz")
        sagemaker.create_model(
            ModelName="strangers",
            ExecutionRoleArn="arn:aws:iam::123456789012:role/any",
            PrimaryContainer={
                "Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/any:1",
                "Mode": "MultiModel",
                "ModelDataUrl": "s3://strangers/models/",
            },
        )
        variant = {"VariantName": "all", "ModelName": "strangers", "InstanceType": "ml.m5.large"}
        sagemaker.create_endpoint_config(
            EndpointConfigName="strangers", ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
        )
        sagemaker.create_endpoint(EndpointName="strangers", EndpointConfigName="strangers")
        sagemaker.get_waiter("endpoint_in_service").wait(
            EndpointName="strangers", WaiterConfig={"Delay": 1, "MaxAttempts": 180}
        )
        runtime = boto3.client(
            "sagemaker-runtime", **settings, config=botocore.config.Config(read_timeout=70, retries={"max_attempts": 4})
        )

        def invoke(target: str, body: object) -> str:
            answer = runtime.invoke_endpoint(
                EndpointName="strangers",
                TargetModel=target,
                ContentType="application/json",
                Accept="application/json",
                Body=json.dumps(body),
            )
            text: str = answer["Body"].read().decode()
            return text

        assert invoke("notebook/bert.tar.gz", {"inputs": "The house is quiet."}).startswith("tensor([[")
        reply = invoke("notebook/gpt2.tar.gz", {"inputs": "It was", "parameters": {"max_new_tokens": 8}})
        text = ast.literal_eval(reply)[0]["generated_text"]
        own = json.loads(invoke("gpt2.tar.gz", {"inputs": "It was", "parameters": {"max_new_tokens": 8}}))
        assert text == "It was" + own[0]["generated_text"], "the same weights, the same words"
        vectors = json.loads(invoke("bert.tar.gz", ["The house is quiet.", "Rain."]))["embeddings"]
        assert [len(vector) for vector in vectors] == [384, 384]
        with pytest.raises(runtime.exceptions.ModelError) as refused:
            invoke("gpt2.tar.gz", {"inputs": "It was", "parameters": {"max_new_tokens": "many"}})
        assert refused.value.response["OriginalStatusCode"] == 400
        assert "max_new_tokens must be a whole number" in refused.value.response["OriginalMessage"]
