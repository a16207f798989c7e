"""What an archive says of itself, from the end of a file or of an object in a bucket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import tiny_models

from mme.archive import read, write
from mme.archive.contents import Archive
from mme.catalog.spec import ModelSpec, Source
from mme.errors import ArchiveError, MmeError
from mme.local import LocalAws
from mme.settings import Flags, Settings
from mme.tasks import inspection

BUCKET = "inspected-models"


@pytest.fixture
def made(tmp_path: Path) -> Archive:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(bytes(3 << 20))
    spec = ModelSpec("team-a/bert", Source("folder", "x"), handler=tiny_models.handler(tmp_path / "handler"))
    return write.build(spec, snapshot, tmp_path / "dist", compression="stored", facts={"licence": "mit"})


def settings(**flags: str) -> Settings:
    return Settings(Flags(**flags), {"AWS_REGION": "us-east-1"})


def test_a_file(made: Archive) -> None:
    assert inspection.manifest(str(made.path), settings()) == made.manifest


def test_an_object_by_its_end_alone(made: Archive, aws_env: LocalAws) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    assert made.path
    s3.upload_file(str(made.path), BUCKET, f"models/{made.target}")
    uri = f"s3://{BUCKET}/models/{made.target}"
    assert inspection.manifest(uri, settings()) == made.manifest
    assert inspection.manifest(made.target, settings(bucket=BUCKET)) == made.manifest
    sizes = []
    real = s3.get_object

    def counting(**arguments: str) -> object:
        answer = real(**arguments)
        sizes.append(answer["ContentLength"])
        return answer

    s3.get_object = counting
    assert inspection.from_object(s3, BUCKET, f"models/{made.target}") == made.manifest
    assert sizes == [read.TAIL]


def test_an_object_of_somebody_else_and_none_at_all(aws_env: LocalAws) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="models/other.tar.gz", Body=b"hello")
    with pytest.raises(ArchiveError, match="mme did not make it"):
        inspection.manifest(f"s3://{BUCKET}/models/other.tar.gz", settings())
    with pytest.raises(MmeError, match="nothing-here"):
        inspection.manifest(f"s3://{BUCKET}/nothing-here.tar.gz", settings())


def test_in_words(made: Archive) -> None:
    text = inspection.text(
        {**made.manifest, "accuracy": {"against": "float32", "worst": 0.00123, "mean": 0, "same_choice": 0.991}}, True
    )
    assert f"target       {made.target}" in text
    assert "licence      mit" in text
    assert "against float32: 0.0012 at worst, 0 on average; the same first choice in 99.1 %" in text
    assert "code/inference.py" in text


def test_reading_an_archive_needs_no_torch() -> None:
    code = "import sys, mme.tasks.inspection, mme.archive.read, mme.packaging.job; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
