"""The life of an endpoint as DescribeEndpoint tells it: Creating, InService, Updating, Failed, Deleting, gone.

Sits between moto, which keeps the records, and ``Hosting``, which runs the containers. An endpoint is InService only
while its containers are healthy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from mme.local.console import log
from mme.local.sagemaker.hosting import Hosting
from mme.local.sagemaker.spec import Observer, VariantSpec
from mme.runner.errors import ContainerError

BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


class EndpointRefused(Exception):
    """The request cannot be followed; the message is what SageMaker's ValidationException says."""


class Endpoints:
    """Starts, moves and ends what moto's endpoint records describe."""

    def __init__(self, hosting: Hosting, observer: Callable[[str, str], Observer]) -> None:
        """``observer`` is called with (region, endpoint name) for whoever records metrics and logs."""
        self._hosting = hosting
        self._observer = observer
        self._lock = threading.Lock()

    def create(self, backend: Any, endpoint: Any) -> None:
        """Takes a record that moto just made, sets it to Creating, and brings its containers up beside."""
        config = backend.endpoint_configs[endpoint.endpoint_config_name]
        endpoint.endpoint_status = "Creating"
        endpoint.mme_opened = self._hosting.open(backend.region_name, endpoint.endpoint_name)
        endpoint.production_variants = variant_summaries(backend, config.production_variants)
        shadows = getattr(config, "shadow_production_variants", None)
        endpoint.shadow_production_variants = variant_summaries(backend, shadows) if shadows else None
        self._in_background(self._bring_up, backend, endpoint, config, True)

    def update(
        self,
        backend: Any,
        endpoint: Any,
        config_name: str,
        *,
        retain: bool,
        not_retained: Iterable[str],
        deployment: Mapping[str, Any] | None,
    ) -> None:
        """Moves the endpoint to another configuration. Raises EndpointRefused.

        With ``retain``, variants of the same name keep their weight and instance count, except for the properties in
        ``not_retained`` ("DesiredWeight", "DesiredInstanceCount").
        """
        config = backend.endpoint_configs.get(config_name)
        if config is None:
            arn = endpoint.arn.replace(":endpoint/", ":endpoint-config/").rpartition("/")[0]
            raise EndpointRefused(f'Could not find endpoint configuration "{arn}/{config_name}".')
        with self._lock:
            _require_in_service(endpoint)
            endpoint.endpoint_status = "Updating"
            endpoint.failure_reason = None
            endpoint.last_modified_time = _now()
        kept = {v["VariantName"]: v for v in endpoint.production_variants} if retain else {}
        self._in_background(self._bring_up, backend, endpoint, config, False, kept, frozenset(not_retained), deployment)

    def set_capacities(self, endpoint: Any, wanted: Sequence[Mapping[str, Any]]) -> None:
        """UpdateEndpointWeightsAndCapacities: only what is named changes. Raises EndpointRefused."""
        variants = {v["VariantName"]: v for v in endpoint.production_variants}
        names = [item["VariantName"] for item in wanted]
        unknown = [name for name in names if name not in variants]
        if unknown:
            raise EndpointRefused(
                f'The variant name(s) "{", ".join(unknown)}" is/are not present within endpoint configuration '
                f'"{endpoint.endpoint_config_name}".'
            )
        if len(set(names)) != len(names):
            raise EndpointRefused("The variant names were non-unique within the request.")
        with self._lock:
            _require_in_service(endpoint)
        for item in wanted:
            for what in ("Weight", "InstanceCount"):
                if item.get(f"Desired{what}") is not None:
                    variants[item["VariantName"]][f"Desired{what}"] = item[f"Desired{what}"]
                    variants[item["VariantName"]][f"Current{what}"] = item[f"Desired{what}"]
        endpoint.last_modified_time = _now()
        weights = {name: float(v.get("CurrentWeight", 1.0)) for name, v in variants.items()}
        self._hosting.set_weights(endpoint.mme_opened, weights)

    def delete(self, backend: Any, endpoint: Any) -> None:
        """Ends the containers beside, and takes the record away once they are gone."""
        with self._lock:
            if endpoint.endpoint_status == "Deleting":
                return
            endpoint.endpoint_status = "Deleting"
            endpoint.last_modified_time = _now()
        self._in_background(self._take_down, backend, endpoint)

    @staticmethod
    def _in_background(work: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=work, args=args, name=work.__name__, daemon=True).start()

    def _take_down(self, backend: Any, endpoint: Any) -> None:
        self._hosting.delete(endpoint.mme_opened)
        if backend.endpoints.get(endpoint.endpoint_name) is endpoint:
            del backend.endpoints[endpoint.endpoint_name]
        log(f"{endpoint.endpoint_name}: deleted")

    def _bring_up(
        self,
        backend: Any,
        endpoint: Any,
        config: Any,
        new: bool,
        kept: Mapping[str, Mapping[str, Any]] | None = None,
        not_retained: frozenset[str] = frozenset(),
        deployment: Mapping[str, Any] | None = None,
    ) -> None:
        name, region = endpoint.endpoint_name, backend.region_name
        summaries = variant_summaries(backend, config.production_variants)
        for summary in summaries:
            old = (kept or {}).get(summary["VariantName"], {})
            for what in ("Weight", "InstanceCount"):
                if f"Desired{what}" not in not_retained and f"Current{what}" in old:
                    summary[f"Current{what}"] = summary[f"Desired{what}"] = old[f"Current{what}"]
        weights = {summary["VariantName"]: float(summary.get("CurrentWeight", 1.0)) for summary in summaries}
        try:
            specs = [variant_spec(backend, v, weights[v["VariantName"]]) for v in config.production_variants]
            log(f"{name}: starting {len(specs)} container(s) for {config.endpoint_config_name}")
            self._hosting.deploy(endpoint.mme_opened, specs, self._observer(region, name))
        except (ContainerError, EndpointRefused) as problem:
            self._settle(endpoint, "Failed" if new else "InService", str(problem))
            log(f"{name}: {'not created' if new else 'update rolled back'}: {problem}")
            return
        endpoint.production_variants = summaries
        shadows = getattr(config, "shadow_production_variants", None)
        endpoint.shadow_production_variants = variant_summaries(backend, shadows) if shadows else None
        endpoint.endpoint_config_name = config.endpoint_config_name
        endpoint.data_capture_config = config.data_capture_config
        if deployment:
            endpoint.last_deployment_config = deployment
        self._settle(endpoint, "InService", None)
        log(f"{name}: in service")

    def _settle(self, endpoint: Any, status: str, reason: str | None) -> None:
        with self._lock:
            if endpoint.endpoint_status == "Deleting":
                return
            endpoint.failure_reason = reason
            endpoint.endpoint_status = status
            endpoint.last_modified_time = _now()


def _require_in_service(endpoint: Any) -> None:
    if endpoint.endpoint_status in BUSY:
        raise EndpointRefused(f'Cannot update in-progress endpoint "{endpoint.arn}".')
    if endpoint.endpoint_status != "InService":
        raise EndpointRefused(
            f'Cannot update endpoint "{endpoint.arn}" with status {endpoint.endpoint_status}. '
            "Delete it and create it again."
        )


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)


def variant_summaries(backend: Any, variants: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What DescribeEndpoint says of each variant in a configuration."""
    found = []
    for variant in variants:
        summary: dict[str, Any] = {"VariantName": variant["VariantName"]}
        model = backend._models.get(variant.get("ModelName"))
        image = container_of(model).get("Image") if model is not None else None
        if image:
            summary["DeployedImages"] = [{"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": _now()}]
        count = variant.get("InitialInstanceCount")
        if count is not None:
            summary["CurrentInstanceCount"] = summary["DesiredInstanceCount"] = count
        weight = variant.get("InitialVariantWeight")
        summary["CurrentWeight"] = summary["DesiredWeight"] = 1.0 if weight is None else weight
        for name in ("ManagedInstanceScaling", "RoutingConfig"):
            if variant.get(name):
                summary[name] = variant[name]
        if variant.get("ServerlessConfig"):
            summary["CurrentServerlessConfig"] = summary["DesiredServerlessConfig"] = variant["ServerlessConfig"]
        found.append(summary)
    return found


def container_of(model: Any) -> Mapping[str, Any]:
    containers = model.containers or []
    found: Mapping[str, Any] = model.primary_container or (containers[0] if containers else {})
    return found


def variant_spec(backend: Any, variant: Mapping[str, Any], weight: float) -> VariantSpec:
    """What hosting needs to know of one variant of a configuration. Raises EndpointRefused."""
    model = backend._models.get(variant.get("ModelName"))
    if model is None:
        raise EndpointRefused(f"Could not find model {variant.get('ModelName')!r}; it was deleted.")
    container = container_of(model)
    if container.get("Mode") != "MultiModel":
        raise EndpointRefused(
            f"Model {model.model_name} is not in MultiModel mode. The local AWS runs multi-model endpoints only."
        )
    scheme, _, rest = str(container.get("ModelDataUrl", "")).partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise EndpointRefused(f"ModelDataUrl of model {model.model_name} is not an S3 prefix.")
    return VariantSpec(
        name=variant["VariantName"],
        model_name=model.model_name,
        image=str(container.get("Image", "")),
        role_arn=model.execution_role_arn,
        environment={str(k): str(v) for k, v in (container.get("Environment") or {}).items()},
        bucket=bucket,
        prefix=prefix if not prefix or prefix.endswith("/") else f"{prefix}/",
        weight=weight,
        volume_bytes=int(variant.get("VolumeSizeInGB") or 30) << 30,
        startup_seconds=float(variant.get("ContainerStartupHealthCheckTimeoutInSeconds") or 600),
    )
