"""Corrections of moto's SageMaker.

Written against moto 5.2.5; each correction says what moto does there, and has a test in
tests/local/test_corrections.py. ``apply`` replaces methods of moto's classes in this process, so it is called once, in
the server process, before the first request.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from mme.local.console import log
from mme.local.sagemaker import constraints
from mme.local.sagemaker.endpoints import EndpointRefused, Endpoints, container_of


def _refuse(message: str) -> Exception:
    from moto.sagemaker.exceptions import ValidationError

    return ValidationError(message=message)  # type: ignore[no-any-return]


def models(role_problem: Callable[[str], str | None]) -> None:
    """CreateModel takes no container and a role that does not exist, overwrites a model of the same name, and
    forgets EnableNetworkIsolation and InferenceExecutionConfig; DescribeModel answers an empty VpcConfig, which makes
    every plan replace the model. Model data that is not there yet is taken here, too, and the log says that SageMaker
    would refuse it."""
    from moto.sagemaker.models import Model, SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    create_in_backend = SageMakerModelBackend.create_model
    create = SageMakerResponse.create_model
    describe = Model.response_object.fget

    def create_model(self: Any, *args: Any, **named: Any) -> Any:
        name = named["model_name"]
        if name in self._models:
            raise _refuse(f'Cannot create already existing model "{self._models[name].arn}".')
        return create_in_backend(self, *args, **named)

    def create_model_response(self: Any) -> Any:
        if not self._get_param("PrimaryContainer") and not self._get_param("Containers"):
            raise _refuse("Either the primary container or containers must be given: a model has a container.")
        problem = role_problem(self._get_param("ExecutionRoleArn") or "")
        if problem is not None:
            raise _refuse(problem)
        for container in [self._get_param("PrimaryContainer") or {}, *(self._get_param("Containers") or [])]:
            url = str(container.get("ModelDataUrl") or "")
            if url and not _holds_something(url, container.get("Mode") == "MultiModel", self.sagemaker_backend):
                name = self._get_param("ModelName")
                log(
                    f"model {name}: SageMaker would refuse it, for there is nothing at {url}: put an object there first"
                )
        answer = create(self)
        model = self.sagemaker_backend._models[self._get_param("ModelName")]
        model.enable_network_isolation = bool(self._get_param("EnableNetworkIsolation"))
        model.inference_execution_config = self._get_param("InferenceExecutionConfig")
        return answer

    def response_object(self: Any) -> dict[str, Any]:
        description: dict[str, Any] = describe(self)
        for name in ("VpcConfig", "PrimaryContainer", "Containers", "Tags"):
            if not description.get(name):
                description.pop(name, None)
        return description

    SageMakerModelBackend.create_model = create_model
    SageMakerResponse.create_model = create_model_response
    Model.response_object = property(response_object)


def _holds_something(url: str, is_prefix: bool, backend: Any) -> bool:
    """Whether there is an object at a model's S3 URL, or below it where that is a prefix."""
    from moto.s3.models import FakeDeleteMarker, s3_backends

    bucket_name, _, key = url.removeprefix("s3://").partition("/")
    bucket = s3_backends[backend.account_id][backend.partition].buckets.get(bucket_name)
    if bucket is None:
        return False
    return any(
        (name.startswith(key) if is_prefix else name == key) and not isinstance(item, FakeDeleteMarker)
        for name, item in bucket.keys.items()
    )


_CONFIG_FIELDS = {
    "ShadowProductionVariants": "shadow_production_variants",
    "ExecutionRoleArn": "execution_role_arn",
    "VpcConfig": "vpc_config",
    "EnableNetworkIsolation": "enable_network_isolation",
    "ExplainerConfig": "explainer_config",
}


def lists() -> None:
    """ListModels answers every model, whatever NameContains, the times, the order or MaxResults say. ListEndpoints and
    ListEndpointConfigs begin with the oldest where SageMaker begins with the newest, and all three begin anew for a
    NextToken that nobody gave out."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.responses import SageMakerResponse

    def listing(
        key: str, name: str, every: Callable[[Any], Any], summary: Callable[[Any], Any]
    ) -> Callable[[Any], Any]:
        def answer(self: Any) -> Any:
            def asked(parameter: str) -> Any:
                return self._get_param(parameter)

            part = str(asked("NameContains") or "").lower()
            matching = [item for item in every(self.sagemaker_backend) if part in getattr(item, name).lower()]
            if asked("StatusEquals"):
                matching = [item for item in matching if item.endpoint_status == asked("StatusEquals")]
            for parameter, time in (("CreationTime", "creation_time"), ("LastModifiedTime", "last_modified_time")):
                after, before = asked(f"{parameter}After"), asked(f"{parameter}Before")
                if after is not None:
                    matching = [item for item in matching if _seconds(getattr(item, time)) > _seconds(after)]
                if before is not None:
                    matching = [item for item in matching if _seconds(getattr(item, time)) < _seconds(before)]
            orders: dict[str, Callable[[Any], Any]] = {
                "Name": lambda item: getattr(item, name),
                "Status": lambda item: (item.endpoint_status, getattr(item, name)),
                "CreationTime": lambda item: (_seconds(item.creation_time), getattr(item, name)),
            }
            matching.sort(key=orders[asked("SortBy") or "CreationTime"], reverse=asked("SortOrder") != "Ascending")
            token, limit = str(asked("NextToken") or "0"), int(asked("MaxResults") or 100)
            if not token.isdecimal():
                raise _refuse("Invalid NextToken: it is not one of this listing's.")
            start = int(token)
            page = [summary(item) for item in matching[start : start + limit]]
            following = {"NextToken": str(start + limit)} if start + limit < len(matching) else {}
            return ActionResult({key: page, **following})

        return answer

    SageMakerResponse.list_models = listing(
        "Models", "model_name", lambda backend: backend.list_models(), lambda model: model.response_object
    )
    SageMakerResponse.list_endpoints = listing(
        "Endpoints",
        "endpoint_name",
        lambda backend: backend.endpoints.values(),
        lambda endpoint: endpoint.summary(),
    )
    SageMakerResponse.list_endpoint_configs = listing(
        "EndpointConfigs",
        "endpoint_config_name",
        lambda backend: backend.endpoint_configs.values(),
        lambda config: config.summary(),
    )


NAMED_IN_LOWER_CASE = ("model", "endpoint", "endpoint-config")


def requests() -> None:
    """Little of what SageMaker's description of its API allows in a request is held to: any name, number and word is
    taken. Here a request is held to all of it before anything else looks at it."""
    from botocore import xform_name
    from moto.core.utils import get_service_model
    from moto.sagemaker.responses import SageMakerResponse

    model = get_service_model("sagemaker")

    def checked(answer: Callable[[Any], Any], shape: Any) -> Callable[[Any], Any]:
        @functools.wraps(answer)
        def call(self: Any) -> Any:
            words = constraints.problem(shape, self.params)
            if words is not None:
                raise _refuse(words)
            return answer(self)

        return call

    for operation in model.operation_names:
        name, shape = xform_name(operation), model.operation_model(operation).input_shape
        if hasattr(SageMakerResponse, name) and shape is not None:
            setattr(SageMakerResponse, name, checked(getattr(SageMakerResponse, name), shape))


def _check_variants(asked: Any) -> None:
    """Raises for variants that SageMaker does not take together, or not with these models."""
    production, shadow = (asked._get_param(f"{kind}ProductionVariants") or [] for kind in ("", "Shadow"))
    names = [variant["VariantName"] for variant in [*production, *shadow]]
    if len(set(names)) != len(names):
        raise _refuse("The variant names were non-unique within the request.")
    for variant in production:
        model = asked.sagemaker_backend._models.get(variant.get("ModelName"))
        if variant.get("ServerlessConfig") and model is not None and container_of(model).get("Mode") == "MultiModel":
            raise _refuse(
                f"Variant {variant['VariantName']} is serverless, and its model {model.model_name} is in MultiModel "
                "mode: Serverless Inference does not support multi-model endpoints."
            )


def _seconds(time: Any) -> float:
    """A time as moto keeps it (UTC, without saying so) or as a client sends it."""
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
    return float(time)


def endpoint_configurations() -> None:
    """CreateEndpointConfig knows only the instance types of 2020, takes one variant's name twice, overwrites a
    configuration of the same name, and forgets shadow variants, role, VPC and isolation; DescribeEndpointConfig answers
    an empty DataCaptureConfig."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.models import FakeEndpointConfig, SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    create_in_backend = SageMakerModelBackend.create_endpoint_config
    create = SageMakerResponse.create_endpoint_config
    find = SageMakerModelBackend.describe_endpoint_config

    def create_endpoint_config(self: Any, *args: Any, **named: Any) -> Any:
        existing = self.endpoint_configs.get(named["endpoint_config_name"])
        if existing is not None:
            raise _refuse(f'Cannot create already existing endpoint configuration "{existing.endpoint_config_arn}".')
        return create_in_backend(self, *args, **named)

    def create_endpoint_config_response(self: Any) -> Any:
        _check_variants(self)
        self.sagemaker_backend.validate_production_variants(self._get_param("ShadowProductionVariants") or [])
        answer = create(self)
        config = self.sagemaker_backend.endpoint_configs[self._get_param("EndpointConfigName")]
        for parameter, attribute in _CONFIG_FIELDS.items():
            setattr(config, attribute, self._get_param(parameter))
        return answer

    def validate_instance_type(self: Any, instance_type: str) -> None:
        """``requests`` has held it to today's types."""

    def describe_endpoint_config(self: Any) -> Any:
        configuration = dict(find(self.sagemaker_backend, self._get_param("EndpointConfigName")))
        for name in ("DataCaptureConfig", "AsyncInferenceConfig"):
            if not configuration.get(name):
                configuration.pop(name, None)
        return ActionResult(configuration)

    SageMakerModelBackend.create_endpoint_config = create_endpoint_config
    SageMakerResponse.create_endpoint_config = create_endpoint_config_response
    FakeEndpointConfig.validate_instance_type = validate_instance_type
    SageMakerResponse.describe_endpoint_config = describe_endpoint_config


def endpoint_lifecycle(endpoints: Endpoints) -> None:
    """CreateEndpoint is InService at once with nothing behind it, and overwrites an endpoint of the same name;
    UpdateEndpoint does not exist; UpdateEndpointWeightsAndCapacities sets what was not named to null;
    DeleteEndpoint forgets at once. Here the status follows the containers."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.models import FakeEndpoint, SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    create_in_backend = SageMakerModelBackend.create_endpoint
    create = SageMakerResponse.create_endpoint
    describe = FakeEndpoint.response_object.fget

    def find(backend: Any, name: str) -> Any:
        live = backend.endpoints.get(name)
        if live is None:
            arn = FakeEndpoint.arn_formatter(name, backend.account_id, backend.region_name)
            raise _refuse(f'Could not find endpoint "{arn}".')
        return live

    def create_endpoint(self: Any, *args: Any, **named: Any) -> Any:
        existing = self.endpoints.get(named["endpoint_name"])
        if existing is not None:
            raise _refuse(f'Cannot create already existing endpoint "{existing.arn}".')
        return create_in_backend(self, *args, **named)

    def create_endpoint_response(self: Any) -> Any:
        answer = create(self)
        backend = self.sagemaker_backend
        endpoint = find(backend, self._get_param("EndpointName"))
        endpoint.last_deployment_config = self._get_param("DeploymentConfig")
        endpoints.create(backend, endpoint)
        return answer

    def update_endpoint(self: Any) -> Any:
        endpoint = find(self.sagemaker_backend, self._get_param("EndpointName"))
        deployment = self._get_param("DeploymentConfig")
        if not deployment and self._get_param("RetainDeploymentConfig"):
            deployment = getattr(endpoint, "last_deployment_config", None)
        excluded = self._get_param("ExcludeRetainedVariantProperties") or []
        try:
            endpoints.update(
                self.sagemaker_backend,
                endpoint,
                self._get_param("EndpointConfigName"),
                retain=bool(self._get_param("RetainAllVariantProperties")),
                not_retained=[item["VariantPropertyType"] for item in excluded],
                deployment=deployment,
            )
        except EndpointRefused as problem:
            raise _refuse(str(problem)) from problem
        return ActionResult({"EndpointArn": endpoint.arn})

    def update_endpoint_weights_and_capacities(self: Any) -> Any:
        endpoint = find(self.sagemaker_backend, self._get_param("EndpointName"))
        try:
            endpoints.set_capacities(endpoint, self._get_param("DesiredWeightsAndCapacities"))
        except EndpointRefused as problem:
            raise _refuse(str(problem)) from problem
        return ActionResult({"EndpointArn": endpoint.arn})

    def describe_endpoint(self: Any, endpoint_name: str) -> dict[str, Any]:
        live: dict[str, Any] = find(self, endpoint_name).response_object
        return live

    def delete_endpoint(self: Any, endpoint_name: str) -> None:
        endpoints.delete(self, find(self, endpoint_name))

    def response_object(self: Any) -> dict[str, Any]:
        live: dict[str, Any] = describe(self)
        for name in ("DataCaptureConfig", "Tags"):
            if not live.get(name):
                live.pop(name, None)
        if live["EndpointStatus"] == "Creating":
            live.pop("ProductionVariants", None)
        capture = live.get("DataCaptureConfig")
        if capture:
            live["DataCaptureConfig"] = {
                "EnableCapture": capture.get("EnableCapture", False),
                "CaptureStatus": "Started" if capture.get("EnableCapture") else "Stopped",
                "CurrentSamplingPercentage": capture.get("InitialSamplingPercentage"),
                "DestinationS3Uri": capture.get("DestinationS3Uri"),
                "KmsKeyId": capture.get("KmsKeyId", ""),
            }
        return live

    SageMakerModelBackend.create_endpoint = create_endpoint
    SageMakerModelBackend.describe_endpoint = describe_endpoint
    SageMakerModelBackend.delete_endpoint = delete_endpoint
    SageMakerResponse.create_endpoint = create_endpoint_response
    SageMakerResponse.update_endpoint = update_endpoint
    SageMakerResponse.update_endpoint_weights_and_capacities = update_endpoint_weights_and_capacities
    FakeEndpoint.response_object = property(response_object)


def arns() -> None:
    """ARNs have names as they were given; SageMaker writes those of models, configurations and endpoints in lower case,
    and policies are held against that."""
    from moto.sagemaker import models

    write = models.arn_formatter

    def arn_formatter(kind: str, name: str, account_id: str, region: str) -> str:
        return str(write(kind, name.lower() if kind in NAMED_IN_LOWER_CASE else name, account_id, region))

    models.arn_formatter = arn_formatter


def sagemaker_tags() -> None:
    """AddTags appends a second tag of the same key instead of changing the first; and all three calls on tags fail on
    their way where there is no such resource."""
    from moto.sagemaker.models import SageMakerModelBackend

    find_in_backend = SageMakerModelBackend._get_resource_from_arn

    def find(self: Any, arn: str) -> Any:
        named = {"model": self._models, "endpoint": self.endpoints, "endpoint-config": self.endpoint_configs}
        kind, _, name = arn.rpartition(":")[2].partition("/")
        name = next((known for known in named.get(kind, {}) if known.lower() == name.lower()), name)
        try:
            resource = find_in_backend(self, f"{arn.rpartition('/')[0]}/{name}")
        except (AttributeError, ValueError):  # not the ARN of any kind that moto knows
            resource = None
        if resource is None:
            raise _refuse(f'Could not find resource "{arn}".')
        return resource

    def add_tags(self: Any, arn: str, tags: list[dict[str, str]]) -> list[dict[str, str]]:
        resource = self._get_resource_from_arn(arn)
        merged = {tag["Key"]: tag for tag in resource.tags}
        merged.update({tag["Key"]: tag for tag in tags})
        resource.tags = list(merged.values())
        return list(merged.values())

    SageMakerModelBackend._get_resource_from_arn = find
    SageMakerModelBackend.add_tags = add_tags
