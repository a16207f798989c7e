"""A folder in which tasks are run, as a user has one: a catalogue, archives and a bucket."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from typed import Result, typed

from mme import releases
from mme.archive import write
from mme.archive.contents import Archive
from mme.catalog.spec import ModelSpec, Source
from mme.local import LocalAws
from mme.packaging import records
from mme.releases import Store

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE = f"{sys.executable} {REPOSITORY / 'tests' / 'local' / 'fake_container.py'}"


@functools.cache
def _clients(url: str) -> tuple[Any, ...]:
    """Shared by all tests: change nothing about them."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    clients: Any = boto3.client
    return tuple(clients(service, endpoint_url=url, **keys) for service in ("s3", "sagemaker", "iam"))


class Project:
    """A folder with a catalogue and archives, a bucket of its own, and ``invoke`` to run there."""

    def __init__(self, folder: Path, aws: LocalAws, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.aws = aws
        self.capsys = capsys
        self.s3, self.sagemaker, self.iam = _clients(aws.url)
        self.bucket = f"bucket-{os.urandom(6).hex()}"
        self.s3.create_bucket(Bucket=self.bucket)
        self.store = Store(self.bucket)

    def __call__(self, *words: str) -> Result:
        """Run ``invoke WORDS`` in this process."""
        return typed(self.capsys, *words)

    def process(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run ``invoke WORDS`` as a process."""
        given: dict[str, Any] = {"capture_output": True, "text": True, "cwd": self.folder, **more}
        return subprocess.run([sys.executable, "-m", "invoke", *words], **given)

    def tasks_file(self, *, chained: bool = False) -> None:
        """The two lines with which another repository takes the tasks, for ``invoke`` as a process."""
        (self.folder / "tasks.py").write_text(
            "from invoke import Collection\nimport mme.tasks; ns = Collection.from_module(mme.tasks)\n"
        )
        if chained:
            (self.folder / "invoke.yaml").write_text("tasks: {executor_class: mme.chain.Executor}\n")

    def catalogue(self, *names: str) -> None:
        (self.folder / "source").mkdir(exist_ok=True)
        (self.folder / "source" / "config.json").write_text("{}")
        tables = [f'[models."{name}"]\nsource = "folder:source"\nhandler = "embedding"\n' for name in names]
        (self.folder / "models.toml").write_text("\n".join(tables))

    def build(self, name: str, content: bytes = b"weights", model: dict[str, Any] | None = None) -> Archive:
        """An archive in dist, as `invoke package` leaves it."""
        snapshot = self.folder / "snapshot" / name
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / "config.json").write_text("{}")
        (snapshot / "model.json").write_text(json.dumps(model or {}))
        (snapshot / "weights.bin").write_bytes(content)
        spec = ModelSpec(name, Source("folder", "source"))
        made = write.build(spec, snapshot, self.folder / "dist")
        records.note(self.folder / "dist", made)
        return made

    def release(self, name: str, *contents: bytes) -> list[str]:
        """Released versions, oldest first; their targets."""
        targets = []
        for content in contents:
            made = self.build(name, content)
            assert self("upload", "--model", name).code == 0
            targets.append(made.target)
            if content != contents[-1]:
                time.sleep(1.1)  # S3 counts whole seconds
        return targets

    def endpoint(self) -> str:
        """A multi-model endpoint on the model prefix."""
        name = f"endpoint-{os.urandom(4).hex()}"
        role = self.iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        self.sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=role,
            PrimaryContainer={
                "Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/serving:1",
                "Mode": "MultiModel",
                "ModelDataUrl": self.store.uri(),
            },
        )
        variant = {
            "VariantName": "main",
            "ModelName": name,
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": 1,
            "InitialVariantWeight": 1.0,
        }
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        patience = {"Delay": 1, "MaxAttempts": 120}
        self.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=patience)
        return name


def targets(project: Project) -> set[str]:
    return {version.target for version in releases.list_versions(project.s3, project.store)}
