"""The endpoint of the local AWS that benchmarks/capacity.py measures: its models, its disk, how it is created."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from mme.local import LocalAws

PARK_AFTER = 3.0
BALLAST = 12 << 20
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/models:1"
TRUST = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
HANDLER = """
import json

import torch
from safetensors.torch import load_file


def model_fn(model_dir):
    return load_file(f"{model_dir}/model.safetensors")["weight"]


def predict_fn(data, weight):
    value = torch.ones(32, len(weight))
    for _ in range(12):
        value = torch.tanh(value @ weight)
    return float(value.sum())


def output_fn(prediction, accept):
    return json.dumps(prediction)
"""


def archive(seed: int) -> bytes:
    """A seeded model, and a file of zeros that makes it large on the disk and not on the wire."""
    import torch
    from safetensors.torch import save

    torch.manual_seed(seed)
    files = {
        "model.safetensors": save({"weight": torch.randn(384, 384) / 20}),
        "ballast.dat": bytes(BALLAST),
        "code/inference.py": HANDLER.encode(),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of its own, of ``size`` bytes."""
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        raise SystemExit(f"A small file system cannot be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@dataclass
class Endpoint:
    aws: LocalAws
    count: int

    def __post_init__(self) -> None:
        self.sagemaker = self.client("sagemaker")
        self.runtime = self.client("sagemaker-runtime")
        self.number = 0
        self.role = self.client("iam").create_role(
            RoleName="run", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [TRUST]})
        )["Role"]["Arn"]
        s3 = self.client("s3")
        s3.create_bucket(Bucket="models")
        for seed in range(self.count):
            s3.put_object(Bucket="models", Key=f"models/m{seed}.tar.gz", Body=archive(seed))

    def client(self, service: str) -> Any:
        env = self.aws.env
        return boto3.client(
            service,
            endpoint_url=self.aws.url,
            region_name=env["AWS_REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}, read_timeout=70, max_pool_connections=64),
        )

    def configure(self, instances: int = 1, routing: str = "RANDOM") -> str:
        self.number += 1
        name = f"c{self.number}"
        self.sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=self.role,
            PrimaryContainer={
                "Image": IMAGE,
                "Mode": "MultiModel",
                "ModelDataUrl": "s3://models/models/",
                "Environment": {"MME_PARK_AFTER": str(PARK_AFTER), "MME_ACCESS_LOG": "false"},
            },
        )
        variant = {
            "VariantName": "v",
            "ModelName": name,
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": instances,
            "RoutingConfig": {"RoutingStrategy": routing},
        }
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        return name

    def create(self, instances: int = 1, routing: str = "RANDOM") -> None:
        self.sagemaker.create_endpoint(EndpointName="e", EndpointConfigName=self.configure(instances, routing))
        self.settle()

    def deploy(self) -> None:
        self.sagemaker.update_endpoint(EndpointName="e", EndpointConfigName=self.configure())
        self.settle()

    def settle(self) -> None:
        deadline = time.monotonic() + 120
        while (status := self.sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"]) != "InService":
            if status == "Failed" or time.monotonic() > deadline:
                raise SystemExit(f"The endpoint is {status}.")
            time.sleep(0.2)

    def delete(self) -> None:
        self.sagemaker.delete_endpoint(EndpointName="e")
        with contextlib.suppress(ClientError):
            while True:
                self.sagemaker.describe_endpoint(EndpointName="e")
                time.sleep(0.2)

    def ask(self, model: int) -> float:
        """Seconds until the answer; NaN where it is an error."""
        began = time.perf_counter()
        try:
            answer = self.runtime.invoke_endpoint(
                EndpointName="e", TargetModel=f"m{model}.tar.gz", Body=b"1", ContentType="application/json"
            )
            answer["Body"].read()
        except ClientError as problem:
            print(f"    {problem}", file=sys.stderr)
            return float("nan")
        return time.perf_counter() - began

    def hits(self, since: float) -> tuple[int, int]:
        """The requests since a time, and those of them whose model was loaded, as CloudWatch counted them."""
        points = self.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/SageMaker",
            MetricName="ModelCacheHit",
            Dimensions=[{"Name": "EndpointName", "Value": "e"}, {"Name": "VariantName", "Value": "v"}],
            StartTime=since - 60,
            EndTime=time.time() + 60,
            Period=60,
            Statistics=["Sum", "SampleCount"],
        )["Datapoints"]
        return int(sum(p["SampleCount"] for p in points)), int(sum(p["Sum"] for p in points))


class WrittenOut:
    """Has the kernel write models' weights to the disk a second after they were extracted.

    It does so by itself after 30 to 35 seconds (vm.dirty_expire_centisecs). Until then a process that maps them needs
    some 20 ms more to tell its own memory from theirs (``mme.container.memory.private``), whenever it begins. An
    endpoint parks a model after 15 minutes, so its wakes are never affected; here models are parked after seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        done: set[tuple[str, int]] = set()
        while not self._stop.wait(0.25):
            for path in self._folder.glob("endpoints/*/models/*/model/*.safetensors"):
                with contextlib.suppress(OSError):  # it may go meanwhile
                    stat = path.stat()
                    known = (str(path), stat.st_ctime_ns)
                    if known not in done and time.time() - stat.st_ctime > 1.0:
                        file = os.open(path, os.O_RDONLY)
                        try:
                            os.fsync(file)
                        finally:
                            os.close(file)
                        done.add(known)
