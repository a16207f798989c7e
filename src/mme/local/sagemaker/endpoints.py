"""The states of an endpoint as DescribeEndpoint shows them: Creating, InService, Updating, Deleting and their failures.

Sits between moto, which keeps the records, and ``Hosting``, which runs the containers. An endpoint is InService only
while its containers are healthy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from mme.local.console import log
from mme.local.sagemaker.deployment import BadPolicy, Policy, RollbackFailed, read, roll_out
from mme.local.sagemaker.hosting import Hosting, Opened
from mme.local.sagemaker.minutes import Minutes
from mme.local.sagemaker.spec import Observer, VariantSpec
from mme.runner.errors import ContainerError

BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
_PENDING = frozenset(
    ("VariantName", "DeployedImages", "CurrentWeight", "DesiredWeight", "CurrentInstanceCount", "DesiredInstanceCount")
)
"""The fields of a variant in PendingDeploymentSummary."""
_LOOK_SECONDS = 0.2
"""How often the alarms are looked at while an update is watched."""


class EndpointRefused(Exception):
    """The request cannot be followed; the message is what SageMaker's ValidationException says."""


class RolledBack(Exception):
    """The update was rolled back; the message is its FailureReason."""


class Endpoints:
    """Starts, updates and ends the endpoints that moto's records describe."""

    def __init__(
        self,
        hosting: Hosting,
        observer: Callable[[str, str, str], Observer],
        ringing: Callable[[str, Sequence[str]], list[str]],
        minutes: Minutes,
    ) -> None:
        """``observer`` is called with (region, endpoint, configuration) and returns what records metrics and logs.

        ``ringing`` answers which of the alarms of these names are in ALARM in a region.
        """
        self._hosting = hosting
        self._observer = observer
        self._ringing = ringing
        self._minutes = minutes
        self._lock = threading.Lock()

    def create(self, backend: Any, endpoint: Any) -> None:
        """Takes a record that moto just made, sets it to Creating, and brings its containers up beside."""
        config = backend.endpoint_configs[endpoint.endpoint_config_name]
        endpoint.endpoint_status = "Creating"
        endpoint.mme_opened = self._hosting.open(backend.region_name, endpoint.endpoint_name)
        endpoint.production_variants = variant_summaries(backend, config.production_variants)
        shadows = getattr(config, "shadow_production_variants", None)
        endpoint.shadow_production_variants = variant_summaries(backend, shadows) if shadows else None
        summaries = endpoint.production_variants
        self._in_background(self._bring_up, backend, endpoint, config, summaries, Policy(), None)

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
            raise EndpointRefused(f'Could not find endpoint configuration "{arn}/{config_name.lower()}".')
        summaries = variant_summaries(backend, config.production_variants)
        retained = {v["VariantName"]: v for v in endpoint.production_variants} if retain else {}
        for summary in summaries:
            old = retained.get(summary["VariantName"], {})
            for what in ("Weight", "InstanceCount"):
                if f"Desired{what}" not in not_retained and f"Current{what}" in old:
                    summary[f"Current{what}"] = summary[f"Desired{what}"] = old[f"Current{what}"]
        try:
            policy = read(deployment, max(int(summary.get("CurrentInstanceCount") or 1) for summary in summaries))
        except BadPolicy as problem:
            raise EndpointRefused(str(problem)) from problem
        with self._lock:
            _require_in_service(endpoint)
            endpoint.endpoint_status = "Updating"
            endpoint.failure_reason = None
            endpoint.last_modified_time = _now()
        self._in_background(self._bring_up, backend, endpoint, config, summaries, policy, deployment)

    def set_capacities(self, endpoint: Any, wanted: Sequence[Mapping[str, Any]]) -> None:
        """UpdateEndpointWeightsAndCapacities: only what is named changes. Raises EndpointRefused.

        Weights change at once. Where instances come or go, the endpoint is Updating until they have.
        """
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
        counts = {}
        for item in wanted:
            count = item.get("DesiredInstanceCount")
            if count is not None and count < 1:
                raise EndpointRefused(
                    f'The desired instance count of variant "{item["VariantName"]}" must be 1 or more, not {count}.'
                )
            if count is not None and count != variants[item["VariantName"]].get("CurrentInstanceCount"):
                counts[item["VariantName"]] = int(count)
        with self._lock:
            _require_in_service(endpoint)
            endpoint.last_modified_time = _now()
            if counts:
                endpoint.endpoint_status = "Updating"
        for item in wanted:
            variant = variants[item["VariantName"]]
            if item.get("DesiredWeight") is not None:
                variant["DesiredWeight"] = variant["CurrentWeight"] = item["DesiredWeight"]
            if item["VariantName"] in counts:
                variant["DesiredInstanceCount"] = counts[item["VariantName"]]
        weights = {name: float(v.get("CurrentWeight", 1.0)) for name, v in variants.items()}
        self._hosting.set_weights(endpoint.mme_opened, weights)
        if counts:
            self._in_background(self._scale, endpoint, counts)

    def _scale(self, endpoint: Any, counts: Mapping[str, int]) -> None:
        name = endpoint.endpoint_name
        reason = None
        try:
            self._hosting.scale(endpoint.mme_opened, counts)
        except ContainerError as problem:
            reason = str(problem)
        for variant in endpoint.production_variants:
            if variant["VariantName"] in counts:
                source, goal = ("Current", "Desired") if reason else ("Desired", "Current")
                variant[f"{goal}InstanceCount"] = variant[f"{source}InstanceCount"]
        self._settle(endpoint, "InService", reason)
        words = ", ".join(f"{variant} has {count} instance(s)" for variant, count in counts.items())
        log(f"{name}: {words}" if reason is None else f"{name}: not scaled: {reason}")

    def delete(self, backend: Any, endpoint: Any) -> None:
        """Ends the containers beside, and takes the record away once they are gone."""
        with self._lock:
            before = endpoint.endpoint_status
            if before == "Deleting":
                return
            endpoint.endpoint_status = "Deleting"
            endpoint.last_modified_time = _now()
        if before in BUSY:
            log(f"{endpoint.endpoint_name}: deleted while {before}: SageMaker would refuse it until that has ended")
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
        summaries: list[dict[str, Any]],
        policy: Policy,
        deployment: Mapping[str, Any] | None,
    ) -> None:
        name, region = endpoint.endpoint_name, backend.region_name
        new = endpoint.endpoint_status == "Creating"
        by_name = {summary["VariantName"]: summary for summary in summaries}

        def rolling_back(problem: Exception) -> None:
            log(f"{name}: rolling back: {problem}")
            self._settle(endpoint, "RollingBack", None)

        try:
            specs = [variant_spec(backend, v, by_name[v["VariantName"]], config) for v in config.production_variants]
            number = sum(spec.instances for spec in specs)
            log(f"{name}: starting {number} instance(s) for {config.endpoint_config_name}")
            observer = self._observer(region, name, config.endpoint_config_name)
            actions = _Update(
                self._hosting, endpoint.mme_opened, specs, observer, self._watch(region, policy, endpoint)
            )
            if not new:
                self._show(endpoint, config, summaries)
            roll_out(policy, actions, rolling_back)
        except RollbackFailed as problem:
            self._show(endpoint, None)
            self._settle(endpoint, "UpdateRollbackFailed", str(problem))
            log(f"{name}: update not rolled back: {problem}")
            return
        except (ContainerError, EndpointRefused, RolledBack) as problem:
            self._show(endpoint, None)
            self._settle(endpoint, "Failed" if new else "InService", str(problem))
            log(f"{name}: {'not created' if new else 'update rolled back'}: {problem}")
            return
        self._show(endpoint, None)
        endpoint.production_variants = summaries
        shadows = getattr(config, "shadow_production_variants", None)
        endpoint.shadow_production_variants = variant_summaries(backend, shadows) if shadows else None
        endpoint.endpoint_config_name = config.endpoint_config_name
        endpoint.data_capture_config = config.data_capture_config
        if deployment:
            endpoint.last_deployment_config = deployment
        self._settle(endpoint, "InService", None)
        log(f"{name}: in service")

    @staticmethod
    def _show(endpoint: Any, config: Any, summaries: Sequence[Mapping[str, Any]] = ()) -> None:
        """DescribeEndpoint's PendingDeploymentSummary; no configuration: there is none."""
        endpoint.pending_deployment_summary = config and {
            "EndpointConfigName": config.endpoint_config_name,
            "ProductionVariants": [
                {key: value for key, value in summary.items() if key in _PENDING} for summary in summaries
            ],
            "StartTime": _now(),
        }

    def _watch(self, region: str, policy: Policy, endpoint: Any) -> Callable[[float], None]:
        """What watches the rollback alarms for so many of AWS's seconds. It raises RolledBack."""
        deadline = None if policy.timeout is None else time.monotonic() + self._minutes.here(policy.timeout)

        def bake(seconds: float) -> None:
            until = time.monotonic() + self._minutes.here(seconds)
            while True:
                ringing = self._ringing(region, policy.alarms)
                if ringing:
                    raise RolledBack(
                        "The update was rolled back, since these auto-rollback alarms are in the ALARM state: "
                        f"{', '.join(ringing)}."
                    )
                now = time.monotonic()
                if deadline is not None and now > deadline:
                    raise RolledBack(
                        f"The update was rolled back, since it took longer than {policy.timeout:.0f} seconds "
                        "(MaximumExecutionTimeoutInSeconds)."
                    )
                if now >= until or endpoint.endpoint_status == "Deleting":
                    return
                time.sleep(min(_LOOK_SECONDS, max(0.0, until - now)))

        return bake

    def _settle(self, endpoint: Any, status: str, reason: str | None) -> None:
        with self._lock:
            if endpoint.endpoint_status == "Deleting":
                return
            endpoint.failure_reason = reason
            endpoint.endpoint_status = status
            endpoint.last_modified_time = _now()


class _Update:
    """``deployment.Actions`` on an endpoint's containers."""

    def __init__(
        self,
        hosting: Hosting,
        endpoint: Opened,
        specs: Sequence[VariantSpec],
        observer: Observer,
        bake: Callable[[float], None],
    ) -> None:
        self._hosting = hosting
        self._endpoint = endpoint
        self._specs = specs
        self._observer = observer
        self.bake = bake

    def begin(self, share: float) -> None:
        self._hosting.begin(self._endpoint, self._specs, self._observer, share)

    def add_capacity(self, share: float) -> None:
        self._hosting.add_capacity(self._endpoint, share)

    def shrink(self, share: float) -> None:
        self._hosting.shrink(self._endpoint, share)

    def shift(self, share: float) -> None:
        log(f"{self._endpoint.name}: {share:.0%} of the traffic goes to the new configuration")
        self._hosting.shift(self._endpoint, share)

    def finish(self) -> None:
        self._hosting.finish(self._endpoint)

    def abandon(self) -> None:
        self._hosting.abandon(self._endpoint)


def _require_in_service(endpoint: Any) -> None:
    if endpoint.endpoint_status in BUSY:
        raise EndpointRefused(f'Cannot update in-progress endpoint "{endpoint.arn}".')
    if endpoint.endpoint_status not in ("InService", "UpdateRollbackFailed"):
        raise EndpointRefused(
            f'Cannot update endpoint "{endpoint.arn}" with status {endpoint.endpoint_status}. '
            "Delete it and create it again."
        )


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)


def variant_summaries(backend: Any, variants: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What DescribeEndpoint says of each variant in a configuration."""
    summaries = []
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
        summaries.append(summary)
    return summaries


def container_of(model: Any) -> Mapping[str, Any]:
    containers = model.containers or []
    container: Mapping[str, Any] = model.primary_container or (containers[0] if containers else {})
    return container


def variant_spec(backend: Any, variant: Mapping[str, Any], summary: Mapping[str, Any], config: Any) -> VariantSpec:
    """What hosting needs to know of one variant of a configuration. Raises EndpointRefused.

    ``summary`` has the weight and the number of instances that it is to have.
    """
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
        weight=float(summary.get("CurrentWeight", 1.0)),
        config=config.endpoint_config_name,
        instances=int(summary.get("CurrentInstanceCount") or 1),
        routing=str((variant.get("RoutingConfig") or {}).get("RoutingStrategy") or "RANDOM"),
        volume_bytes=int(variant.get("VolumeSizeInGB") or 30) << 30,
        startup_seconds=float(variant.get("ContainerStartupHealthCheckTimeoutInSeconds") or 600),
    )
