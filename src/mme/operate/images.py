"""The image in ECR: whether it is there and labelled for multi-model endpoints, and what its name says it has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from mme.aws import code_of, explained, is_local
from mme.errors import EndpointError
from mme.operate.findings import Finding, error, ok, unknown

LABEL = "com.amazonaws.sagemaker.capabilities.multi-models"
_URI = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.(?P<suffix>[a-z0-9.-]+)/(?P<repository>[a-z0-9._/-]+?)"
    r"(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_TRANSFORMERS = re.compile(r"transformers(\d+)\.(\d+)(?:\.(\d+))?")
_INDEXES = (
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)
_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)

Fetch = Callable[[str], bytes]
"""Gets what is at a URL. Raises OSError."""


@dataclass(frozen=True)
class Image:
    """An image's URI, in its parts."""

    uri: str
    account: str
    region: str
    repository: str
    tag: str
    digest: str

    @property
    def transformers(self) -> tuple[int, ...] | None:
        """The version of transformers that the tag names, as Hugging Face's do; None where it names none."""
        match = _TRANSFORMERS.search(self.tag)
        return tuple(int(part) for part in match.groups() if part is not None) if match else None

    @property
    def id(self) -> dict[str, str]:
        return {"imageDigest": self.digest} if self.digest else {"imageTag": self.tag}


def parse(uri: str) -> Image | None:
    """The parts of an image's URI; None where it is not one of ECR's."""
    match = _URI.fullmatch(uri)
    if not match:
        return None
    tag = match["tag"] or ("" if match["digest"] else "latest")
    return Image(uri, match["account"], match["region"], match["repository"], tag, match["digest"] or "")


def check(ecr: Any, image: Image, *, account: str, region: str, fetch: Fetch) -> list[Finding]:
    """Whether the image is in its registry, in the endpoint's region, and labelled. Raises EndpointError."""
    if image.region != region:
        return [
            error(
                "image",
                f"{image.uri} is in {image.region}; SageMaker pulls images from its own region alone, {region}.",
                "Replicate the repository there, and give that image.",
                f"aws ecr put-replication-configuration --region {image.region} --replication-configuration "
                "file://rules",
            )
        ]
    command = f"aws ecr describe-images --registry-id {image.account} --repository-name {image.repository}"
    with explained(f"look for the image {image.uri}", error=EndpointError):
        try:
            manifest = _manifest(ecr, image, image.id)
        except ClientError as problem:
            if code_of(problem) != "RepositoryNotFoundException":
                raise
            if image.account != account and is_local(ecr):
                what = f"{image.repository} belongs to another account, and the local AWS has no registry of others."
                return [unknown("image", what)]
            what = f"There is no repository {image.repository} in the registry {image.account}."
            return [error("image", what, "Create it and push the image, or name the one that there is.", command)]
    if manifest is None:
        what = f"There is no image {image.tag or image.digest} in {image.repository}."
        return [error("image", what, "Push it, or name a tag that there is.", command)]
    there = ok("image", f"{image.repository}:{image.tag or image.digest} is there")
    return [there, _label(ecr, image, manifest, fetch)]


def _manifest(ecr: Any, image: Image, id: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The image's manifest; of one that is for several platforms, that for x86-64, or else the first."""
    answer = ecr.batch_get_image(
        registryId=image.account,
        repositoryName=image.repository,
        imageIds=[dict(id)],
        acceptedMediaTypes=[*_MANIFESTS, *_INDEXES],
    )
    if not answer.get("images"):
        return None
    manifest = json.loads(answer["images"][0]["imageManifest"])
    platforms = manifest.get("manifests")
    if platforms:
        fitting = [item for item in platforms if (item.get("platform") or {}).get("architecture") == "amd64"]
        return _manifest(ecr, image, {"imageDigest": (fitting or platforms)[0]["digest"]})
    checked: Mapping[str, Any] = manifest
    return checked


def _label(ecr: Any, image: Image, manifest: Mapping[str, Any], fetch: Fetch) -> Finding:
    """Whether the image's configuration, an object of its own, has the label that CreateModel asks for."""
    check = "image label"
    try:
        digest = manifest["config"]["digest"]
        where = ecr.get_download_url_for_layer(
            registryId=image.account, repositoryName=image.repository, layerDigest=digest
        )["downloadUrl"]
        labels = (json.loads(fetch(where)).get("config") or {}).get("Labels") or {}
    except (ClientError, OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        why = code_of(problem) if isinstance(problem, ClientError) else str(problem) or type(problem).__name__
        return unknown(
            check,
            f"The labels of {image.repository} cannot be read ({why}).",
            f"Look yourself: docker inspect --format '{{{{.Config.Labels}}}}' {image.uri}",
        )
    if str(labels.get(LABEL)).lower() != "true":
        return error(
            check,
            f"{image.uri} has no label {LABEL}=true, so SageMaker refuses it for a multi-model endpoint.",
            f'Put LABEL {LABEL}="true" into its Dockerfile, build and push it again.',
            f"docker build --label {LABEL}=true --tag {image.uri} . && docker push {image.uri}",
        )
    return ok(check, f"{image.repository} is labelled for multi-model endpoints")
