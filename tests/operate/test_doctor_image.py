"""`invoke doctor`: what is wrong with the image."""

from __future__ import annotations

import json
from typing import Any

from doctor_tools import ACCOUNT, LABELS, REGISTRY, Quotas, Stack

from mme.operate import images


def test_an_image_that_is_not_there(stack: Stack) -> None:
    stack.publish()
    assert "no repository" in stack.problems("--endpoint", stack.endpoint())["image", "error"]
    stack.push(tag="other")
    assert "no image" in stack.problems("--endpoint", stack.endpoint())["image", "error"]


def test_an_image_without_the_label(stack: Stack) -> None:
    stack.push({"maintainer": "me"})
    stack.publish()
    assert images.LABEL in stack.only("image label", "error", "--endpoint", stack.endpoint())


def test_labels_that_cannot_be_read_are_no_pass(stack: Stack) -> None:
    stack.push(None)
    stack.publish()
    assert "cannot be read" in stack.only("image label", "unknown", "--endpoint", stack.endpoint())


def test_an_image_from_elsewhere(stack: Stack) -> None:
    stack.publish()
    words = ["--bucket", stack.corner.bucket, "--type", "ml.m6i.large", "--role", stack.role(), "--image"]
    assert "not an image in ECR" in stack.problems(*words, "docker.io/library/python:3.11")["image", "error"]
    far = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/models:1"
    assert "eu-west-1" in stack.problems(*words, far)["image", "error"]


def test_the_registry_of_others_is_not_known_to_the_local_aws(stack: Stack) -> None:
    stack.publish()
    theirs = "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface:2.6.0-transformers4.51.3-cpu"
    problems = stack.problems("--endpoint", stack.endpoint(image=theirs))
    assert set(problems) == {("image", "unknown")}


def test_an_image_for_another_processor(stack: Stack) -> None:
    stack.push()
    stack.publish()
    stack.quotas = Quotas({"ml.c7g.large": 20})
    problem = stack.only("processor", "warning", "--endpoint", stack.endpoint(InstanceType="ml.c7g.large"))
    assert "arm64" in problem


def test_of_an_image_for_several_processors_the_one_for_x86_is_looked_at() -> None:
    asked: list[Any] = []
    index = {
        "manifests": [
            {"digest": "arm", "platform": {"architecture": "arm64"}},
            {"digest": "x86", "platform": {"architecture": "amd64"}},
        ]
    }

    class Ecr:
        def batch_get_image(self, **named: Any) -> Any:
            asked.append(named["imageIds"][0])
            manifest = index if len(asked) == 1 else {"config": {"digest": "c"}}
            return {"images": [{"imageManifest": json.dumps(manifest)}]}

        def get_download_url_for_layer(self, **named: Any) -> Any:
            return {"downloadUrl": "https://there"}

    image = images.parse(f"{REGISTRY}/models:1")
    assert image
    body = json.dumps({"config": {"Labels": LABELS}}).encode()
    findings = images.check(Ecr(), image, account=ACCOUNT, region="us-east-1", fetch=lambda url: body)
    assert [item.severity for item in findings] == ["ok", "ok"]
    assert asked[1] == {"imageDigest": "x86"}
