"""Deployment policies: which steps they make, and the way back when one of them goes wrong."""

from __future__ import annotations

from typing import Any

import pytest

from mme.local.sagemaker.deployment import BadPolicy, Policy, RollbackFailed, read, roll_out


class Trouble(Exception):
    pass


class Diary:
    """What was done, and where it is to go wrong."""

    def __init__(self, trouble: dict[str, int] | None = None) -> None:
        self.trouble = dict(trouble or {})
        self.done: list[str] = []

    def _did(self, what: str, value: float | None = None) -> None:
        left = self.trouble.get(what)
        if left is not None:
            self.trouble[what] = left - 1
            if left == 0:
                raise Trouble(what)
        self.done.append(what if value is None else f"{what} {value:g}")

    def begin(self, share: float) -> None:
        self._did("begin", share)

    def add_capacity(self, share: float) -> None:
        self._did("grow", share)

    def shrink(self, share: float) -> None:
        self._did("shrink", share)

    def shift(self, share: float) -> None:
        self._did("shift", share)

    def bake(self, seconds: float) -> None:
        self._did("bake", seconds)

    def finish(self) -> None:
        self._did("finish")

    def abandon(self) -> None:
        self._did("abandon")

    def roll_out(self, policy: Policy) -> str:
        roll_out(policy, self, lambda problem: self.done.append(f"back: {problem}"))
        return ", ".join(self.done)


def blue_green(kind: str, **more: Any) -> dict[str, Any]:
    routing = {"Type": kind, "WaitIntervalInSeconds": 60, **more}
    return {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": 30}}


def size(kind: str, value: int) -> dict[str, Any]:
    return {"Type": kind, "Value": value}


CANARY = blue_green("CANARY", CanarySize=size("CAPACITY_PERCENT", 25))
ROLLING = {"RollingUpdatePolicy": {"MaximumBatchSize": size("INSTANCE_COUNT", 1), "WaitIntervalInSeconds": 60}}


def test_without_a_policy_everything_moves_at_once() -> None:
    assert Diary().roll_out(read(None, 3)) == "begin 1, shift 1, bake 0, bake 0, finish"


def test_blue_green_moves_the_traffic_in_steps() -> None:
    assert Diary().roll_out(read(blue_green("ALL_AT_ONCE"), 3)) == "begin 1, shift 1, bake 60, bake 30, finish"
    assert Diary().roll_out(read(CANARY, 3)) == "begin 1, shift 0.25, bake 60, shift 1, bake 60, bake 30, finish"
    linear = blue_green("LINEAR", LinearStepSize=size("INSTANCE_COUNT", 1))
    assert read(linear, 3).steps == pytest.approx((1 / 3, 2 / 3, 1.0))
    assert read(blue_green("LINEAR", LinearStepSize=size("CAPACITY_PERCENT", 30)), 3).steps == pytest.approx(
        (0.3, 0.6, 0.9, 1.0)
    )


def test_rolling_replaces_batch_by_batch() -> None:
    assert Diary().roll_out(read(ROLLING, 2)) == (
        "begin 0.5, grow 0.5, shift 0.5, bake 60, shrink 0.5, grow 1, shift 1, bake 60, bake 0, finish"
    )
    percent = {"RollingUpdatePolicy": {"MaximumBatchSize": size("CAPACITY_PERCENT", 40), "WaitIntervalInSeconds": 0}}
    assert read(percent, 4).steps == (0.5, 1.0)  # whole instances


def test_an_alarm_takes_all_traffic_back() -> None:
    diary = Diary({"bake": 1})
    with pytest.raises(Trouble):
        diary.roll_out(read(CANARY, 4))
    assert diary.done == ["begin 1", "shift 0.25", "bake 60", "shift 1", "back: bake", "abandon"]


def test_an_alarm_brings_the_old_instances_of_a_rolling_update_back() -> None:
    policy = {**ROLLING["RollingUpdatePolicy"], "RollbackMaximumBatchSize": size("INSTANCE_COUNT", 1)}
    diary = Diary({"bake": 2})
    with pytest.raises(Trouble):
        diary.roll_out(read({"RollingUpdatePolicy": policy}, 4))
    way_back = diary.done[diary.done.index("back: bake") + 1 :]
    assert way_back == ["shrink 0.75", "shift 0.25", "grow 0.25", "shrink 1", "shift 0", "abandon"]
    at_once = Diary({"bake": 2})
    with pytest.raises(Trouble):
        at_once.roll_out(read(ROLLING, 4))
    assert at_once.done[-3:] == ["shrink 1", "shift 0", "abandon"]


def test_new_instances_that_do_not_come_up_change_nothing() -> None:
    diary = Diary({"begin": 0})
    with pytest.raises(Trouble):
        diary.roll_out(read(CANARY, 2))
    assert diary.done == []


def test_a_rollback_that_fails_says_both() -> None:
    diary = Diary({"bake": 1, "shrink": 1})
    with pytest.raises(RollbackFailed, match=r"bake It could not be rolled back: shrink"):
        diary.roll_out(read(ROLLING, 2))


def test_every_field_of_the_policy_is_read() -> None:
    config = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 5},
            "TerminationWaitInSeconds": 6,
            "MaximumExecutionTimeoutInSeconds": 700,
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "a"}, {"AlarmName": "b"}]},
    }
    assert read(config, 1) == Policy(wait=5, termination_wait=6, timeout=700, alarms=("a", "b"))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (blue_green("CANARY"), "CanarySize must be specified"),
        (blue_green("CANARY", CanarySize=size("INSTANCE_COUNT", 2)), "2 of 3 instance"),
        (blue_green("CANARY", CanarySize=size("CAPACITY_PERCENT", 51)), "between 1 and 50 percent"),
        (blue_green("LINEAR", LinearStepSize=size("CAPACITY_PERCENT", 9)), "between 10 and 50 percent"),
        ({"RollingUpdatePolicy": {"MaximumBatchSize": size("CAPACITY_PERCENT", 4)}}, "between 5 and 50 percent"),
        ({**CANARY, **ROLLING}, "Only one of"),
    ],
)
def test_sizes_that_sagemaker_refuses(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadPolicy, match=words):
        read(config, 3)
