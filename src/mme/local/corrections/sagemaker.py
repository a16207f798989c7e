"""Where moto is wrong for this job, it is put right here, and nowhere else.

Written against moto 5.2.5; each correction says what moto does there, and has a test in
tests/local/test_corrections.py. ``apply`` replaces methods of moto's classes in this process, so it is called once, in
the server process, before the first request.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from mme.local.sagemaker.endpoints import EndpointRefused, Endpoints


def _refuse(message: str) -> Exception:
    from moto.sagemaker.exceptions import ValidationError

    return ValidationError(message=message)  # type: ignore[no-any-return]


def models(role_problem: Callable[[str], str | None]) -> None:
    """CreateModel takes a role that does not exist, overwrites a model of the same name, and forgets
    EnableNetworkIsolation and InferenceExecutionConfig; DescribeModel answers an empty VpcConfig, which makes every
    plan replace the model."""
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
        problem = role_problem(self._get_param("ExecutionRoleArn") or "")
        if problem is not None:
            raise _refuse(problem)
        answer = create(self)
        model = self.sagemaker_backend._models[self._get_param("ModelName")]
        model.enable_network_isolation = bool(self._get_param("EnableNetworkIsolation"))
        model.inference_execution_config = self._get_param("InferenceExecutionConfig")
        return answer

    def response_object(self: Any) -> dict[str, Any]:
        found: dict[str, Any] = describe(self)
        for name in ("VpcConfig", "PrimaryContainer", "Containers", "Tags"):
            if not found.get(name):
                found.pop(name, None)
        return found

    SageMakerModelBackend.create_model = create_model
    SageMakerResponse.create_model = create_model_response
    Model.response_object = property(response_object)


_CONFIG_FIELDS = {
    "ShadowProductionVariants": "shadow_production_variants",
    "ExecutionRoleArn": "execution_role_arn",
    "VpcConfig": "vpc_config",
    "EnableNetworkIsolation": "enable_network_isolation",
    "ExplainerConfig": "explainer_config",
}


def model_lists() -> None:
    """ListModels answers every model, whatever NameContains, the times, the order or MaxResults say."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.responses import SageMakerResponse

    def list_models(self: Any) -> Any:
        part = str(self._get_param("NameContains") or "").lower()
        after, before = self._get_param("CreationTimeAfter"), self._get_param("CreationTimeBefore")
        found = [model for model in self.sagemaker_backend.list_models() if part in model.model_name.lower()]
        if after is not None:
            found = [model for model in found if _seconds(model.creation_time) > _seconds(after)]
        if before is not None:
            found = [model for model in found if _seconds(model.creation_time) < _seconds(before)]
        by_name = self._get_param("SortBy") == "Name"
        found.sort(
            key=lambda model: model.model_name if by_name else (_seconds(model.creation_time), model.model_name),
            reverse=self._get_param("SortOrder") == "Descending",
        )
        token = str(self._get_param("NextToken") or "0")
        start, limit = int(token) if token.isdecimal() else 0, int(self._get_param("MaxResults") or 100)
        page = [model.response_object for model in found[start : start + limit]]
        following = {"NextToken": str(start + limit)} if start + limit < len(found) else {}
        return ActionResult({"Models": page, **following})

    SageMakerResponse.list_models = list_models


def _seconds(time: Any) -> float:
    """A time as moto keeps it (UTC, without saying so) or as a client sends it."""
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
    return float(time)


def endpoint_configurations() -> None:
    """CreateEndpointConfig knows only the instance types of 2020, overwrites a configuration of the same name, and
    forgets shadow variants, role, VPC and isolation; DescribeEndpointConfig answers an empty DataCaptureConfig."""
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
        self.sagemaker_backend.validate_production_variants(self._get_param("ShadowProductionVariants") or [])
        answer = create(self)
        config = self.sagemaker_backend.endpoint_configs[self._get_param("EndpointConfigName")]
        for parameter, attribute in _CONFIG_FIELDS.items():
            setattr(config, attribute, self._get_param(parameter))
        return answer

    def validate_instance_type(self: Any, instance_type: str) -> None:
        known = _instance_types()
        if instance_type not in known:
            raise _refuse(
                f"1 validation error detected: Value '{instance_type}' at 'productionVariants.1.member.instanceType' "
                f"failed to satisfy constraint: Member must satisfy enum value set: [{', '.join(known)}]"
            )

    def describe_endpoint_config(self: Any) -> Any:
        found = dict(find(self.sagemaker_backend, self._get_param("EndpointConfigName")))
        for name in ("DataCaptureConfig", "AsyncInferenceConfig"):
            if not found.get(name):
                found.pop(name, None)
        return ActionResult(found)

    SageMakerModelBackend.create_endpoint_config = create_endpoint_config
    SageMakerResponse.create_endpoint_config = create_endpoint_config_response
    FakeEndpointConfig.validate_instance_type = validate_instance_type
    SageMakerResponse.describe_endpoint_config = describe_endpoint_config


def _instance_types() -> list[str]:
    from moto.core.utils import get_service_model

    shape = get_service_model("sagemaker").shape_for("ProductionVariantInstanceType")
    return sorted(shape.enum)


def endpoint_lifecycle(endpoints: Endpoints) -> None:
    """CreateEndpoint is InService at once with nothing behind it, and overwrites an endpoint of the same name;
    UpdateEndpoint does not exist; UpdateEndpointWeightsAndCapacities sets what was not named to null; DeleteEndpoint
    forgets at once. Here the status follows the containers."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.models import FakeEndpoint, SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    create_in_backend = SageMakerModelBackend.create_endpoint
    create = SageMakerResponse.create_endpoint
    describe = FakeEndpoint.response_object.fget

    def find(backend: Any, name: str) -> Any:
        found = backend.endpoints.get(name)
        if found is None:
            arn = FakeEndpoint.arn_formatter(name, backend.account_id, backend.region_name)
            raise _refuse(f'Could not find endpoint "{arn}".')
        return found

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
        found: dict[str, Any] = find(self, endpoint_name).response_object
        return found

    def delete_endpoint(self: Any, endpoint_name: str) -> None:
        endpoints.delete(self, find(self, endpoint_name))

    def response_object(self: Any) -> dict[str, Any]:
        found: dict[str, Any] = describe(self)
        for name in ("DataCaptureConfig", "Tags"):
            if not found.get(name):
                found.pop(name, None)
        if found["EndpointStatus"] == "Creating":
            found.pop("ProductionVariants", None)
        capture = found.get("DataCaptureConfig")
        if capture:
            found["DataCaptureConfig"] = {
                "EnableCapture": capture.get("EnableCapture", False),
                "CaptureStatus": "Started" if capture.get("EnableCapture") else "Stopped",
                "CurrentSamplingPercentage": capture.get("InitialSamplingPercentage"),
                "DestinationS3Uri": capture.get("DestinationS3Uri"),
                "KmsKeyId": capture.get("KmsKeyId", ""),
            }
        return found

    SageMakerModelBackend.create_endpoint = create_endpoint
    SageMakerModelBackend.describe_endpoint = describe_endpoint
    SageMakerModelBackend.delete_endpoint = delete_endpoint
    SageMakerResponse.create_endpoint = create_endpoint_response
    SageMakerResponse.update_endpoint = update_endpoint
    SageMakerResponse.update_endpoint_weights_and_capacities = update_endpoint_weights_and_capacities
    FakeEndpoint.response_object = property(response_object)


def sagemaker_tags() -> None:
    """AddTags appends a second tag of the same key instead of changing the first."""
    from moto.sagemaker.models import SageMakerModelBackend

    def add_tags(self: Any, arn: str, tags: list[dict[str, str]]) -> list[dict[str, str]]:
        resource = self._get_resource_from_arn(arn)
        merged = {tag["Key"]: tag for tag in resource.tags}
        merged.update({tag["Key"]: tag for tag in tags})
        resource.tags = list(merged.values())
        return list(merged.values())

    SageMakerModelBackend.add_tags = add_tags
