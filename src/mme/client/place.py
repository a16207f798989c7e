"""Where an endpoint's models lie, from what SageMaker says of the endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mme.aws import explained
from mme.client.errors import EndpointNotFound
from mme.errors import EndpointError, UsageError
from mme.releases import Store

if TYPE_CHECKING:
    from types_boto3_sagemaker import SageMakerClient

_HINT = 'Name the place: Endpoint("…", bucket="my-bucket", prefix="models/"), or MME_BUCKET and MME_PREFIX.'


def place_of(sagemaker: SageMakerClient, endpoint: str) -> Store:
    """The bucket and the prefix that the endpoint's multi-model container reads.

    Three calls (DescribeEndpoint, DescribeEndpointConfig, DescribeModel). Raises EndpointError when they are refused or
    the endpoint has none, UsageError when its variants read several.
    """
    with explained(f"see where the models of endpoint {endpoint} lie", error=EndpointError):
        try:
            described: Any = sagemaker.describe_endpoint(EndpointName=endpoint)
        except sagemaker.exceptions.ClientError as error:
            if "Could not find" in str(error):
                raise EndpointNotFound(
                    f"There is no endpoint {endpoint} in {sagemaker.meta.region_name}.",
                    "Check its name and the region.",
                ) from error
            raise
        # An endpoint that could not be made has no configuration in use.
        name = described.get("EndpointConfigName")
        config: Any = sagemaker.describe_endpoint_config(EndpointConfigName=name) if name else {}
        models = {variant["ModelName"] for variant in config.get("ProductionVariants", []) if variant.get("ModelName")}
        prefixes = set()
        for model in sorted(models):
            answer: Any = sagemaker.describe_model(ModelName=model)
            for container in [answer.get("PrimaryContainer") or {}, *(answer.get("Containers") or [])]:
                if container.get("Mode") == "MultiModel" and container.get("ModelDataUrl"):
                    prefixes.add(container["ModelDataUrl"])
    if not prefixes:
        raise EndpointError(f"Endpoint {endpoint} is not a multi-model endpoint.", _HINT)
    if len(prefixes) > 1:
        raise UsageError(f"Endpoint {endpoint} reads its models from {', '.join(sorted(prefixes))}.", _HINT)
    bucket, _, prefix = prefixes.pop().removeprefix("s3://").partition("/")
    return Store(bucket, prefix if prefix.endswith("/") else f"{prefix}/")
