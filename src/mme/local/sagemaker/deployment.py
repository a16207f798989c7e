"""The steps in which an update reaches an endpoint's instances, as its deployment policy has them.

Blue/green: the whole new fleet comes up, then the traffic goes over in one, two or many steps. Rolling: a batch of new
instances comes up and takes its part of the traffic, a batch of old ones goes, and so on. After each step the alarms
are watched for a while. What a step does is handed in, so this knows neither containers nor clocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class RollbackFailed(Exception):
    """The update could not be rolled back: old and new instances serve side by side."""


class BadPolicy(Exception):
    """A deployment configuration that SageMaker refuses; the message says why."""


@dataclass(frozen=True)
class Policy:
    """A deployment configuration, read. Seconds are AWS's."""

    rolling: bool = False
    steps: tuple[float, ...] = (1.0,)
    """The new configuration's part of the traffic after each step; the last one is 1."""
    wait: float = 0.0
    termination_wait: float = 0.0
    timeout: float | None = None
    rollback_step: float = 1.0
    """Which part of the old instances comes back at a time when a rolling update is rolled back."""
    alarms: tuple[str, ...] = ()


def read(config: Mapping[str, Any] | None, instances: int) -> Policy:
    """The policy of a DeploymentConfig, for ``instances`` instances of the largest variant. Raises BadPolicy."""
    config = config or {}
    alarms = tuple(alarm["AlarmName"] for alarm in (config.get("AutoRollbackConfiguration") or {}).get("Alarms") or ())
    blue_green, rolling = config.get("BlueGreenUpdatePolicy"), config.get("RollingUpdatePolicy")
    if blue_green and rolling:
        raise BadPolicy("Only one of BlueGreenUpdatePolicy and RollingUpdatePolicy can be specified.")
    if rolling:
        batch = _batch(rolling.get("MaximumBatchSize"), instances, "MaximumBatchSize", least=5)
        back = rolling.get("RollbackMaximumBatchSize")
        return Policy(
            rolling=True,
            steps=tuple(_steps(batch)),
            wait=float(rolling.get("WaitIntervalInSeconds") or 0),
            timeout=_seconds(rolling.get("MaximumExecutionTimeoutInSeconds")),
            rollback_step=_batch(back, instances, "RollbackMaximumBatchSize", most=100) if back else 1.0,
            alarms=alarms,
        )
    if not blue_green:
        return Policy(alarms=alarms)
    routing = blue_green.get("TrafficRoutingConfiguration") or {}
    kind = routing.get("Type", "ALL_AT_ONCE")
    if kind == "CANARY":
        steps: tuple[float, ...] = (_part(routing.get("CanarySize"), instances, "CanarySize"), 1.0)
    elif kind == "LINEAR":
        steps = tuple(_steps(_part(routing.get("LinearStepSize"), instances, "LinearStepSize", least=10)))
    else:
        steps = (1.0,)
    return Policy(
        steps=steps,
        wait=float(routing.get("WaitIntervalInSeconds") or 0),
        termination_wait=float(blue_green.get("TerminationWaitInSeconds") or 0),
        timeout=_seconds(blue_green.get("MaximumExecutionTimeoutInSeconds")),
        alarms=alarms,
    )


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)


def _steps(size: float) -> Iterator[float]:
    number = math.ceil(round(1 / size, 6))
    return (min(1.0, size * (step + 1)) for step in range(number))


def _part(size: Mapping[str, Any] | None, instances: int, name: str, *, least: int = 1, most: int = 50) -> float:
    """The size as a part of all instances."""
    if not size:
        raise BadPolicy(f"{name} must be specified.")
    value = int(size["Value"])
    percent = size["Type"] == "CAPACITY_PERCENT"
    if percent and not least <= value <= most:
        raise BadPolicy(f"{name} must be between {least} and {most} percent of the capacity, not {value}.")
    if not percent and not 1 <= value <= instances * most / 100:
        raise BadPolicy(
            f"{name} must be less than or equal to {most}% of the variant's total instance count: "
            f"{value} of {instances} instance(s) is not."
        )
    return value / 100 if percent else value / instances


def _batch(size: Mapping[str, Any] | None, instances: int, name: str, *, least: int = 1, most: int = 50) -> float:
    """The same in whole instances, one at least."""
    return max(1, math.ceil(round(_part(size, instances, name, least=least, most=most) * instances, 6))) / instances


class Actions(Protocol):
    """The effects of the steps. Each method returns when it is done, and may raise."""

    def begin(self, share: float) -> None:
        """Brings this part of the new instances up; nothing of them is left when it raises."""

    def add_capacity(self, share: float) -> None:
        """Has this part of the new instances in service."""

    def shrink(self, share: float) -> None:
        """Has this part of the old instances in service."""

    def shift(self, share: float) -> None:
        """Sends this part of the traffic to the new instances."""

    def bake(self, seconds: float) -> None:
        """Watches the alarms so long, of AWS's seconds. Raises when one goes off."""

    def finish(self) -> None:
        """Ends the old instances."""

    def abandon(self) -> None:
        """Ends the new instances."""


def roll_out(policy: Policy, act: Actions, rolling_back: Callable[[Exception], None]) -> None:
    """Carries out the policy's steps. On an error it rolls back, then raises that error.

    ``rolling_back`` is called before the way back begins; where that fails, it raises RollbackFailed. Where not even
    the first new instances come up, there is no way back to go.
    """
    act.begin(policy.steps[0] if policy.rolling else 1.0)
    old = 1.0
    try:
        for share in policy.steps:
            if policy.rolling:
                act.add_capacity(share)
            act.shift(share)
            act.bake(policy.wait)
            if policy.rolling and share < 1.0:
                old = 1.0 - share
                act.shrink(old)
        act.bake(policy.termination_wait)
    except Exception as problem:
        rolling_back(problem)
        try:
            while old < 1.0:
                old = min(1.0, old + policy.rollback_step)
                act.shrink(old)
                act.shift(1.0 - old)
                if old < 1.0:
                    act.add_capacity(1.0 - old)
        except Exception as second:
            raise RollbackFailed(f"{problem} It could not be rolled back: {second}") from second
        act.abandon()
        raise
    act.finish()
