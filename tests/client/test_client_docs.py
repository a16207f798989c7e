"""docs/client.md: its examples run, one after the other, and what it says of errors is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import endpoints_here
import pytest
import stub_runtime

from mme import channels
from mme.client import errors
from mme.errors import EndpointError
from mme.local import LocalAws
from mme.releases import Store

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_its_examples_run(
    aws_env: LocalAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names are looked up in the local AWS; a stub answers, since the fake container answers no lists."""
    pytest.importorskip("opentelemetry.sdk")
    for name in ("MME_BUCKET", "MME_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    bucket = endpoints_here.create(aws_env, f"docs-{uuid4().hex[:8]}")
    s3, store, target = boto3.client("s3"), Store(bucket), "bert-0123456789ab.tar.gz"
    s3.put_object(Bucket=bucket, Key=store.key(target), Body=b"")
    for name in ("bert", "bert@staging"):
        channels.change(s3, store, channels.read(s3, store, name), {target: 1}, action="promote", author="test")
    names: dict[str, Any] = {}
    with stub_runtime.serving() as stub:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", stub.url)
        for block in BLOCKS:
            exec(block.replace("my-bucket", bucket).replace("my-endpoint", bucket), names)
        assert {asked.target for asked in stub.asked} == {target}
        assert [answer["text"] for answer in names["answers"]] == ["a text"] * 100
    assert re.search(rf"bert {target} \d\.\d+ 1 None", capsys.readouterr().out)


def test_its_table_has_every_error() -> None:
    named = set(re.findall(r"`([A-Z]\w+)`", TEXT))
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EndpointError)]
    assert {kind.__name__ for kind in kinds} - {"EndpointError"} <= named
    assert len(kinds) > 8
