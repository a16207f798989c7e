"""What SageMaker says of an endpoint: its variants, what runs in them, and what an update is about to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from mme.aws import code_of, explained
from mme.errors import EndpointError, nearest
from mme.releases import Store

if TYPE_CHECKING:
    from types_boto3_sagemaker import SageMakerClient


SILENT = {
    "Creating": "Wait until it is in service (aws sagemaker wait endpoint-in-service --endpoint-name {name}), then run "
    "the same command again.",
    "Deleting": "terraform apply makes it again once it is gone.",
    "Failed": "See why: invoke doctor --endpoint {name}, invoke logs --endpoint {name}. terraform apply makes it anew.",
    "OutOfService": "See why: invoke doctor --endpoint {name}.",
}
"""The states in which an endpoint answers nobody, and what there is to do."""


@dataclass(frozen=True)
class Container:
    """What a variant runs, as its model (the SageMaker resource) says. ``data`` is its ModelDataUrl."""

    model: str
    image: str
    data: str
    mode: str
    role: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Variant:
    """One variant. ``current`` and ``desired``: instances; None while the endpoint is being created."""

    name: str
    instance_type: str
    current: int | None
    desired: int | None
    weight: float | None
    desired_weight: float | None
    container: Container | None
    shadow: bool = False


@dataclass(frozen=True)
class Facts:
    """An endpoint. ``update`` says in words what an update under way has come to; times are UTC."""

    name: str
    arn: str
    status: str
    failure: str | None
    config: str
    created: datetime
    modified: datetime
    variants: tuple[Variant, ...]
    rollback_alarms: tuple[str, ...]
    update: str | None

    @property
    def serving(self) -> tuple[Variant, ...]:
        """The variants that answer callers: all but shadows."""
        return tuple(variant for variant in self.variants if not variant.shadow)

    @property
    def data(self) -> tuple[str, ...]:
        """The places that the variants read models from (ModelDataUrl), each once."""
        return tuple(dict.fromkeys(item.container.data for item in self.variants if item.container))


def read(sagemaker: SageMakerClient, name: str) -> Facts:
    """What SageMaker says of the endpoint ``name``: two calls, and one for each model. Raises EndpointError."""
    with explained(f"describe endpoint {name}", error=EndpointError):
        try:
            answer: Any = sagemaker.describe_endpoint(EndpointName=name)
        except ClientError as error:
            if code_of(error) == "ValidationException" and "not find" in str(error):
                raise missing(sagemaker, name) from error
            raise
    config: Any = _describe(sagemaker.describe_endpoint_config, EndpointConfigName=answer["EndpointConfigName"])
    summaries = {
        item["VariantName"]: item
        for key in ("ProductionVariants", "ShadowProductionVariants")
        for item in answer.get(key) or []
    }
    configured = [
        (item, key.startswith("Shadow"))
        for key in ("ProductionVariants", "ShadowProductionVariants")
        for item in config.get(key) or []
    ]
    containers = {
        model: _container(sagemaker, model)
        for model in dict.fromkeys(item["ModelName"] for item, _ in configured if item.get("ModelName"))
    }
    variants = tuple(
        Variant(
            item["VariantName"],
            item.get("InstanceType", "serverless"),
            (summary := summaries.get(item["VariantName"], {})).get("CurrentInstanceCount"),
            summary.get("DesiredInstanceCount", item.get("InitialInstanceCount")),
            summary.get("CurrentWeight"),
            summary.get("DesiredWeight", item.get("InitialVariantWeight")),
            containers.get(item.get("ModelName", "")),
            shadow,
        )
        for item, shadow in configured
    )
    rollback = (answer.get("LastDeploymentConfig") or {}).get("AutoRollbackConfiguration") or {}
    return Facts(
        name,
        answer["EndpointArn"],
        answer["EndpointStatus"],
        answer.get("FailureReason") or None,
        answer["EndpointConfigName"],
        _utc(answer["CreationTime"]),
        _utc(answer["LastModifiedTime"]),
        variants,
        tuple(alarm["AlarmName"] for alarm in rollback.get("Alarms") or [] if alarm.get("AlarmName")),
        _pending(answer.get("PendingDeploymentSummary")),
    )


def missing(sagemaker: SageMakerClient, name: str) -> EndpointError:
    """The error for an endpoint that is not there, with the nearest that is."""
    hint = "Check --endpoint, MME_ENDPOINT and the region; terraform apply creates the endpoint."
    try:
        names = [item["EndpointName"] for item in sagemaker.list_endpoints(MaxResults=100)["Endpoints"]]
        hint = f"{nearest(name, names, 'In this region there are')} {hint}"
    except ClientError:
        pass  # without the right to list endpoints, the error has no guess
    return EndpointError(f"There is no endpoint {name}.", hint)


def store_of(data: str) -> Store | None:
    """Bucket and model prefix of a ModelDataUrl; None where it is not a folder in a bucket."""
    scheme, _, rest = data.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket or not prefix or prefix.endswith((".gz", ".tar")):
        return None
    return Store(bucket, prefix if prefix.endswith("/") else f"{prefix}/")


def _describe(call: Any, **named: str) -> Mapping[str, Any]:
    """The answer; empty where the resource was deleted while the endpoint still runs."""
    with explained(f"describe {next(iter(named.values()))}", error=EndpointError):
        try:
            description: Mapping[str, Any] = call(**named)
            return description
        except ClientError as error:
            if code_of(error) == "ValidationException":
                return {}
            raise


def _container(sagemaker: SageMakerClient, model: str) -> Container | None:
    answer = _describe(sagemaker.describe_model, ModelName=model)
    several: Iterable[Any] = answer.get("Containers") or []
    container = answer.get("PrimaryContainer") or next(iter(several), None)
    if not container:
        return None
    source = (container.get("ModelDataSource") or {}).get("S3DataSource") or {}
    return Container(
        model,
        container.get("Image", ""),
        container.get("ModelDataUrl") or source.get("S3Uri") or "",
        container.get("Mode", "SingleModel"),
        answer.get("ExecutionRoleArn", ""),
        container.get("Environment") or {},
    )


def _pending(summary: Mapping[str, Any] | None) -> str | None:
    """What DescribeEndpoint tells of an update that is under way."""
    if not summary:
        return None
    parts = []
    for item in summary.get("ProductionVariants") or []:
        stages = ", ".join(state.get("Status", "") for state in item.get("VariantStatus") or [])
        counts = f"{item.get('CurrentInstanceCount', 0)} of {item.get('DesiredInstanceCount', 0)} new instances"
        parts.append(f"{item['VariantName']}: {counts}" + (f" ({stages})" if stages else ""))
    return f"to {summary.get('EndpointConfigName', '?')}" + (f"; {'; '.join(parts)}" if parts else "")


def _utc(time: datetime) -> datetime:
    return time.astimezone(timezone.utc)
