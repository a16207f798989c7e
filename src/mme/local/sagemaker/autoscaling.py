"""Application Auto Scaling on the endpoints that are up: target tracking and scheduled actions.

A target-tracking policy has two alarms, as on AWS: it scales out after three minutes above its target, and in after
fifteen below nine tenths of it, each after its cool-down. Without traffic SageMaker has no metric, and then nothing is
scaled in.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from mme.local.console import log
from mme.local.sagemaker.alarms import ALARM, Alarms
from mme.local.sagemaker.endpoints import EndpointRefused, Endpoints
from mme.local.sagemaker.minutes import Minutes
from mme.local.sagemaker.schedule import BadSchedule, due

DIMENSION = "sagemaker:variant:DesiredInstanceCount"
_COOLDOWN = 300.0
"""Seconds of AWS, where a policy does not say."""
_ACTIVITIES = 100
"""Scaling activities kept for each region."""


@dataclass(frozen=True)
class _Wish:
    """A number of instances that a policy or a schedule wants, and why."""

    count: int
    cause: str
    policy: str = ""
    """The ARN of the policy."""


class Autoscaling:
    """Every scalable variant of the account."""

    def __init__(
        self, account: str, minutes: Minutes, endpoints: Endpoints, alarms: Alarms, find: Callable[[str, str], Any]
    ) -> None:
        """``find`` looks an endpoint's record up by (region, name)."""
        self._account = account
        self._minutes = minutes
        self._endpoints = endpoints
        self._alarms = alarms
        self._find = find
        self._since: float | None = None
        self._acted: dict[str, tuple[bool, float]] = {}
        """What a policy did last, by its ARN: whether it scaled out, and when."""
        self._unread: set[str] = set()

    def act(self, now: float) -> None:
        """Scales what is to be scaled; ``now`` in seconds since the epoch."""
        from moto.applicationautoscaling.models import applicationautoscaling_backends

        since, self._since = self._since, now
        for region, backend in list(applicationautoscaling_backends[self._account].items()):
            for target in list(backend.targets.get(DIMENSION, {}).values()):
                self._follow_schedules(backend, target, now if since is None else since, now)
                _, name, _, variant = target.resource_id.split("/", 3)
                endpoint = self._find(region, name)
                if endpoint is None or endpoint.endpoint_status != "InService":
                    continue
                summaries = {one["VariantName"]: one for one in endpoint.production_variants}
                current = int(summaries.get(variant, {}).get("CurrentInstanceCount") or 0)
                wish = self._wish(backend, target, current, now) if current else None
                if wish is not None:
                    self._scale(backend, target, endpoint, variant, wish, now, current)

    def _follow_schedules(self, backend: Any, target: Any, since: float, now: float) -> None:
        if _suspended(target, "ScheduledScalingSuspended"):
            return
        for action in list(backend.scheduled_actions):
            if (action.resource_id, action.scalable_dimension) != (target.resource_id, DIMENSION):
                continue
            start, end = _moment(action.start_time), _moment(action.end_time)
            made = start if start is not None else action.creation_time
            rate = self._minutes.here(60.0) / 60.0
            try:
                moments = (max(since, made if start is not None else since), min(now, end or now))
                if moments[0] > moments[1] or not due(action.schedule, action.timezone, *moments, made=made, rate=rate):
                    continue
            except BadSchedule as problem:
                if action.arn not in self._unread:
                    self._unread.add(action.arn)
                    log(f"scheduled action {action.scheduled_action_name}: {problem}")
                continue
            wanted = action.scalable_target_action or {}
            target.update(wanted.get("MinCapacity"), wanted.get("MaxCapacity"), None)
            # Kept until it could be followed: the endpoint may be updating now.
            target.mme_scheduled = (
                f"scheduled action name {action.scheduled_action_name} was triggered; minimum capacity was set to "
                f"{target.min_capacity} and maximum capacity was set to {target.max_capacity}"
            )
            log(f"{target.resource_id}: {target.mme_scheduled}")

    def _wish(self, backend: Any, target: Any, current: int, now: float) -> _Wish | None:
        scheduled, target.mme_scheduled = getattr(target, "mme_scheduled", None), None
        wanted = _within(target, current)
        if scheduled and wanted != current:
            return _Wish(wanted, scheduled)
        policies = [
            policy
            for policy in list(backend.policies.values())
            if (policy.resource_id, policy.scalable_dimension) == (target.resource_id, DIMENSION)
            and policy.target_tracking_scaling_policy_configuration
            and len(policy.alarms) == 2
        ]
        outs = [wish for policy in policies if (wish := self._out(policy, target, current, now))]
        if outs and not _suspended(target, "DynamicScalingOutSuspended"):
            return max(outs, key=lambda wish: wish.count)
        shrinking = [p for p in policies if not p.target_tracking_scaling_policy_configuration.get("DisableScaleIn")]
        ins = [wish for policy in shrinking if (wish := self._in(policy, target, current, now))]
        if ins and len(ins) == len(shrinking) and not _suspended(target, "DynamicScalingInSuspended"):
            return max(ins, key=lambda wish: wish.count)
        return None

    def _out(self, policy: Any, target: Any, current: int, now: float) -> _Wish | None:
        high, _ = policy.alarms
        if high.state_value != ALARM or self._cooling(policy, True, now):
            return None
        wanted = min(max(self._wanted(policy, high, current, now), current + 1), target.max_capacity)
        return _Wish(wanted, _cause(policy, high), policy.policy_arn) if wanted > current else None

    def _in(self, policy: Any, target: Any, current: int, now: float) -> _Wish | None:
        _, low = policy.alarms
        if low.state_value != ALARM or self._cooling(policy, False, now):
            return None
        wanted = max(min(self._wanted(policy, low, current, now), current - 1), target.min_capacity)
        return _Wish(wanted, _cause(policy, low), policy.policy_arn) if wanted < current else None

    def _wanted(self, policy: Any, alarm: Any, current: int, now: float) -> int:
        """How many instances would bring the metric to its target."""
        value = self._alarms.latest(alarm, policy.region_name, now)
        target = float(policy.target_tracking_scaling_policy_configuration["TargetValue"])
        return current if value is None else math.ceil(round(current * value / target, 6))

    def _cooling(self, policy: Any, out: bool, now: float) -> bool:
        was_out, at = self._acted.get(policy.policy_arn, (out, -math.inf))
        said = policy.target_tracking_scaling_policy_configuration.get("ScaleOutCooldown" if out else "ScaleInCooldown")
        return was_out == out and now - at < self._minutes.here(_COOLDOWN if said is None else float(said))

    def _scale(
        self, backend: Any, target: Any, endpoint: Any, variant: str, wish: _Wish, now: float, current: int
    ) -> None:
        log(f"{target.resource_id}: from {current} to {wish.count} instance(s): {wish.cause}")
        status, said = "Successful", f"Successfully set desired instance count to {wish.count}."
        try:
            wanted = {"VariantName": variant, "DesiredInstanceCount": wish.count}
            self._endpoints.set_capacities(endpoint, [wanted])
        except EndpointRefused as problem:
            status, said = "Failed", str(problem)
        else:
            if wish.policy:
                self._acted[wish.policy] = (wish.count > current, now)
        activities = backend.mme_activities = getattr(backend, "mme_activities", [])
        activities.insert(
            0,
            {
                "ActivityId": str(uuid.uuid4()),
                "ServiceNamespace": target.service_namespace,
                "ResourceId": target.resource_id,
                "ScalableDimension": target.scalable_dimension,
                "Description": f"Setting desired instance count to {wish.count}.",
                "Cause": wish.cause,
                "StartTime": now,
                "EndTime": now,
                "StatusCode": status,
                "StatusMessage": said,
            },
        )
        del activities[_ACTIVITIES:]


def _cause(policy: Any, alarm: Any) -> str:
    return f"monitor alarm {alarm.name} in state ALARM triggered policy {policy.policy_name}"


def _within(target: Any, count: int) -> int:
    """The number, brought into the target's range."""
    return max(target.min_capacity or 0, min(count, target.max_capacity if target.max_capacity is not None else count))


def _suspended(target: Any, what: str) -> bool:
    state: Mapping[str, Any] = target.suspended_state or {}
    return bool(state.get(what))


def _moment(value: Any) -> float | None:
    """A time as a client sends it, in seconds since the epoch."""
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    return float((value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp())
