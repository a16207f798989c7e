"""An endpoint with all that belongs to it, right in every way, for `invoke doctor` to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from operate_tools import TRUST, Corner, Result

from mme import aws
from mme.archive import write
from mme.catalog.spec import ModelSpec, Source
from mme.operate import images

ACCOUNT = "123456789012"
REGISTRY = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com"
LABELS = {images.LABEL: "true"}
HANDLER = b"import json\nimport torch\n\n\ndef model_fn(folder):\n    return 1\n"


class Quotas:
    """Service Quotas, which moto has for networks alone."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = values

    def get_paginator(self, _: str) -> Quotas:
        return self

    def paginate(self, **_: Any) -> Iterator[Any]:
        for kind, value in self.values.items():
            quota = {"QuotaName": f"{kind} for endpoint usage", "QuotaCode": "L-1234ABCD", "Value": value}
            yield {"Quotas": [quota]}


class Stack:
    """An endpoint with all that belongs to it, right in every way, to be broken by a test."""

    def __init__(self, corner: Corner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.corner = corner
        self.folder = tmp_path
        self.ecr = corner.client("ecr")
        self.repository = corner.name
        self.image = f"{REGISTRY}/{self.repository}:5.5.3-transformers5.5.3"
        self.quotas: Any = Quotas({"ml.m6i.large": 20})
        real = aws.client

        def client(service: str, region: str | None) -> Any:
            if service == "service-quotas":
                return self.quotas
            made = real(service, region)
            if service == "ecr":
                made.get_download_url_for_layer = self._layer  # moto keeps no layers
            return made

        monkeypatch.setattr(aws, "client", client)

    def _layer(self, *, layerDigest: str, **_: Any) -> dict[str, str]:
        where = {"Bucket": self.corner.bucket, "Key": f"layers/{layerDigest}"}
        return {"downloadUrl": self.corner.s3.generate_presigned_url("get_object", Params=where)}

    def push(self, labels: Mapping[str, str] | None = LABELS, tag: str = "5.5.3-transformers5.5.3") -> str:
        """An image with these labels; None for one whose configuration cannot be had."""
        if not self.ecr.describe_repositories()["repositories"] or not any(
            item["repositoryName"] == self.repository for item in self.ecr.describe_repositories()["repositories"]
        ):
            self.ecr.create_repository(repositoryName=self.repository)
        digest = f"sha256:{os.urandom(32).hex()}"
        if labels is not None:
            body = json.dumps({"architecture": "amd64", "config": {"Labels": dict(labels)}}).encode()
            self.corner.s3.put_object(Bucket=self.corner.bucket, Key=f"layers/{digest}", Body=body)
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 1, "digest": digest}
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []}
        self.ecr.put_image(
            repositoryName=self.repository,
            imageManifest=json.dumps(manifest),
            imageManifestMediaType=kind,
            imageTag=tag,
        )
        return f"{REGISTRY}/{self.repository}:{tag}"

    def role(self, *more: dict[str, Any], without: str = "", trust: Any = TRUST, bucket: str | None = None) -> str:
        where = bucket or self.corner.bucket
        rights = {
            "s3:GetObject": f"arn:aws:s3:::{where}/models/*",
            "s3:ListBucket": f"arn:aws:s3:::{where}",
            "ecr:GetAuthorizationToken": "*",
            "ecr:BatchCheckLayerAvailability": "*",
            "ecr:BatchGetImage": "*",
            "ecr:GetDownloadUrlForLayer": "*",
            "logs:CreateLogStream": "*",
            "logs:PutLogEvents": "*",
            "cloudwatch:PutMetricData": "*",
        }
        given = [
            {"Effect": "Allow", "Action": action, "Resource": resource}
            for action, resource in rights.items()
            if action != without
        ]
        return self.corner.role(*given, *more, name=f"role-{os.urandom(4).hex()}", trust=trust)

    def publish(self, name: str = "bert", facts: Mapping[str, Any] | None = None, code: bytes | None = HANDLER) -> str:
        """An archive as mme makes it, in the bucket."""
        place = self.folder / os.urandom(4).hex()
        (place / "snapshot").mkdir(parents=True)
        (place / "snapshot" / "config.json").write_text("{}")
        (place / "snapshot" / "model.safetensors").write_bytes(b"0" * 100)
        handler = None
        if code is not None:
            handler = place / "handler"
            handler.mkdir()
            (handler / "inference.py").write_bytes(code)
        spec = ModelSpec(name, Source("folder", "snapshot"), handler=handler)
        made = write.build(spec, place / "snapshot", place / "dist", facts=dict(facts or {}))
        assert made.path
        self.corner.publish(made.target, made.path.read_bytes())
        return made.target

    def endpoint(self, role: str | None = None, image: str | None = None, **variant: Any) -> str:
        model = self.corner.model(role=role or self.role(), Image=image or self.image)
        return self.corner.endpoint(self.corner.config({"ModelName": model, **variant}))

    def __call__(self, *words: str) -> Result:
        return self.corner("doctor", *words)

    def problems(self, *words: str) -> dict[tuple[str, str], str]:
        """What is not all right, by check and severity."""
        result = self(*words, "--json")
        plain = result.json
        assert plain["ok"] == (result.code == 0)
        wrong = [item for item in plain["findings"] if item["severity"] in ("error", "warning")]
        assert (result.code == 1) == bool(wrong)
        assert all(item["fix"] for item in wrong), "each finding says what to do"
        return {
            (item["check"], item["severity"]): item["what"] for item in plain["findings"] if item["severity"] != "ok"
        }

    def only(self, check: str, severity: str, *words: str) -> str:
        """What the one finding says that there is."""
        problems = self.problems(*words)
        assert set(problems) == {(check, severity)}, problems
        return problems[check, severity]
