"""Instances that come and go: autoscaling on real metrics, and updates that follow their policy and its alarms.

The local AWS here has minutes of half a second, so that three minutes above a target pass while a test waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError
from local_tools import FAKE_CONTAINER, Cloud, error_of, wait_for

from mme.local import LocalAws

DIMENSION = "sagemaker:variant:DesiredInstanceCount"


@pytest.fixture(scope="module")
def local_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with LocalAws(tmp_path_factory.mktemp("quick") / "data", container=FAKE_CONTAINER, minute=0.5) as aws:
        yield aws


class Load:
    """Calls an endpoint over and over; who answered, and what went wrong."""

    def __init__(self, cloud: Cloud, endpoint: str, target: str) -> None:
        self.cloud, self.endpoint, self.target = cloud, endpoint, target
        self.pause = 0.02
        self.pids: list[int] = []
        self.problems: list[str] = []

    def call(self) -> None:
        try:
            self.pids.append(self.cloud.invoke(self.endpoint, self.target)["pid"])
        except ClientError as problem:
            self.problems.append(str(problem))

    @contextmanager
    def running(self) -> Iterator[None]:
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                self.call()
                over.wait(self.pause)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def answering(self) -> set[int]:
        """The processes that answer from now on."""
        before = len(self.pids)
        wait_for(lambda: len(self.pids) >= before + 25)
        return set(self.pids[before:])


@pytest.fixture
def scaling(cloud: Cloud) -> Any:
    return cloud.client("application-autoscaling")


def count(cloud: Cloud, endpoint: str) -> int:
    state = cloud.status(endpoint)
    return int(state["ProductionVariants"][0]["CurrentInstanceCount"]) if state["EndpointStatus"] == "InService" else -1


def register(scaling: Any, endpoint: str, least: int, most: int) -> dict[str, str]:
    """Registers the endpoint's variant; what names it."""
    resource = f"endpoint/{endpoint}/variant/AllTraffic"
    named = {"ServiceNamespace": "sagemaker", "ResourceId": resource, "ScalableDimension": DIMENSION}
    scaling.register_scalable_target(**named, MinCapacity=least, MaxCapacity=most)
    return named


def track(scaling: Any, named: dict[str, str], **configuration: Any) -> None:
    """A target-tracking policy, of invocations where no other metric is given."""
    if "CustomizedMetricSpecification" not in configuration:
        configuration["PredefinedMetricSpecification"] = {
            "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
        }
    scaling.put_scaling_policy(
        **named,
        PolicyName="load",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={"ScaleInCooldown": 60, "ScaleOutCooldown": 60, **configuration},
    )


def test_load_scales_out_and_calm_scales_in(cloud: Cloud, scaling: Any) -> None:
    target = cloud.publish("m.tar.gz")
    endpoint = cloud.endpoint()
    named = register(scaling, endpoint, 1, 2)
    track(scaling, named, TargetValue=1.0)
    load = Load(cloud, endpoint, target)
    with load.running():
        wait_for(lambda: count(cloud, endpoint) == 2, 60)
        both = load.answering()
        assert len(both) == 2
        load.pause = 1.0
        wait_for(lambda: count(cloud, endpoint) == 1, 60)
    assert [psutil.pid_exists(pid) for pid in sorted(both)].count(True) == 1
    assert not load.problems
    activities = scaling.describe_scaling_activities(**named)["ScalingActivities"]
    assert "AlarmLow" in activities[0]["Cause"]
    assert activities[-1]["Description"] == "Setting desired instance count to 2."
    assert "AlarmHigh" in activities[-1]["Cause"]


def test_without_traffic_nothing_is_scaled_in(cloud: Cloud, scaling: Any) -> None:
    """SageMaker has no metric then, so the alarm has no data; as on AWS."""
    endpoint = cloud.endpoint(cloud.config({"InitialInstanceCount": 2}))
    named = register(scaling, endpoint, 1, 2)
    track(scaling, named, TargetValue=2.0)
    [policy] = scaling.describe_scaling_policies(ServiceNamespace="sagemaker", ResourceId=named["ResourceId"])[
        "ScalingPolicies"
    ]
    names = [alarm["AlarmName"] for alarm in policy["Alarms"]]
    watch = cloud.client("cloudwatch")

    def states() -> set[str]:
        return {alarm["StateValue"] for alarm in watch.describe_alarms(AlarmNames=names)["MetricAlarms"]}

    wait_for(lambda: states() == {"INSUFFICIENT_DATA"})
    assert count(cloud, endpoint) == 2


def test_a_metric_of_ones_own_scales_and_policies_can_be_suspended(cloud: Cloud, scaling: Any) -> None:
    endpoint = cloud.endpoint()
    named = register(scaling, endpoint, 1, 2)
    scaling.register_scalable_target(**named, SuspendedState={"DynamicScalingOutSuspended": True})
    specification = {"Namespace": cloud.name, "MetricName": "Backlog", "Statistic": "Average"}
    track(scaling, named, TargetValue=10.0, CustomizedMetricSpecification=specification)
    watch = cloud.client("cloudwatch")
    over = threading.Event()

    def report() -> None:
        while not over.wait(0.1):
            watch.put_metric_data(Namespace=cloud.name, MetricData=[{"MetricName": "Backlog", "Value": 15.0}])

    reporting = threading.Thread(target=report)
    reporting.start()
    try:

        def ringing() -> list[Any]:
            alarms = watch.describe_alarms(AlarmNamePrefix=f"TargetTracking-{named['ResourceId']}", StateValue="ALARM")
            return list(alarms["MetricAlarms"])

        wait_for(ringing)
        time.sleep(1.0)  # two minutes in which it would scale
        assert count(cloud, endpoint) == 1
        scaling.register_scalable_target(**named, SuspendedState={"DynamicScalingOutSuspended": False})
        wait_for(lambda: count(cloud, endpoint) == 2)
    finally:
        over.set()
        reporting.join()


def test_a_schedule_sets_the_range_and_moves_the_count_into_it(cloud: Cloud, scaling: Any) -> None:
    endpoint = cloud.endpoint()
    named = register(scaling, endpoint, 1, 1)
    soon = (datetime.now(timezone.utc) + timedelta(seconds=2)).strftime("%Y-%m-%dT%H:%M:%S")
    scaling.put_scheduled_action(
        **named,
        ScheduledActionName="morning",
        Schedule=f"at({soon})",
        ScalableTargetAction={"MinCapacity": 2, "MaxCapacity": 4},
    )
    wait_for(lambda: count(cloud, endpoint) == 2)
    [target] = scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[named["ResourceId"]])[
        "ScalableTargets"
    ]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (2, 4)
    [activity] = scaling.describe_scaling_activities(**named)["ScalingActivities"]
    assert "minimum capacity was set to 2" in activity["Cause"]


def test_alarms_come_and_go_with_their_policy(cloud: Cloud, scaling: Any) -> None:
    endpoint = cloud.endpoint()
    named = register(scaling, endpoint, 1, 2)
    watch = cloud.client("cloudwatch")

    def alarms() -> list[float]:
        of_policy = watch.describe_alarms(AlarmNamePrefix=f"TargetTracking-{named['ResourceId']}")["MetricAlarms"]
        return sorted(alarm["Threshold"] for alarm in of_policy)

    track(scaling, named, TargetValue=10.0)
    assert alarms() == [9.0, 10.0]
    track(scaling, named, TargetValue=20.0)
    assert alarms() == [18.0, 20.0]
    scaling.delete_scaling_policy(**named, PolicyName="load")
    assert alarms() == []


def test_each_instance_reports_what_it_uses(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz")
    endpoint = cloud.endpoint(cloud.config({"InitialInstanceCount": 2}))
    load = Load(cloud, endpoint, target)
    watch = cloud.client("cloudwatch")

    def datapoints(name: str, namespace: str = "/aws/sagemaker/Endpoints", **more: str) -> list[dict[str, float]]:
        dimensions = {"EndpointName": endpoint, "VariantName": "AllTraffic", **more}
        points: list[dict[str, float]] = watch.get_metric_statistics(
            Namespace=namespace,
            MetricName=name,
            Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
            StartTime=datetime.now(timezone.utc) - timedelta(minutes=10),
            EndTime=datetime.now(timezone.utc) + timedelta(minutes=10),
            Period=1,
            Statistics=["Sum", "SampleCount", "Maximum"],
        )["Datapoints"]
        return points

    with load.running():
        for name in ("CPUUtilization", "MemoryUtilization", "DiskUtilization"):
            wait_for(lambda name=name: any(point["Maximum"] > 0 for point in datapoints(name)))  # type: ignore[misc]
        wait_for(lambda: any(point["Sum"] >= 2 for point in datapoints("LoadedModelCount")))
    config = cloud.status(endpoint)["EndpointConfigName"]
    calls = len(load.pids)
    assert sum(point["Sum"] for point in datapoints("Invocations", "AWS/SageMaker")) == calls
    assert sum(point["Sum"] for point in datapoints("InvocationsPerInstance", "AWS/SageMaker")) == calls / 2
    new_fleet = datapoints("Invocations", "AWS/SageMaker", EndpointConfigName=config)
    assert sum(point["Sum"] for point in new_fleet) == calls


# -- updates


def alarm(cloud: Cloud, endpoint: str) -> str:
    """An alarm that a model's errors set off; its name."""
    name = f"{endpoint}-5xx"
    cloud.client("cloudwatch").put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/SageMaker",
        MetricName="Invocation5XXErrors",
        Dimensions=[{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": "AllTraffic"}],
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=0,
        ComparisonOperator="GreaterThanThreshold",
        TreatMissingData="notBreaching",
    )
    return name


def canary(wait: int, *alarms: str) -> dict[str, Any]:
    routing = {
        "Type": "CANARY",
        "CanarySize": {"Type": "INSTANCE_COUNT", "Value": 1},
        "WaitIntervalInSeconds": wait,
    }
    policy: dict[str, Any] = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}
    if alarms:
        policy["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": name} for name in alarms]}
    return policy


def rolling(wait: int, *alarms: str) -> dict[str, Any]:
    batch = {"Type": "INSTANCE_COUNT", "Value": 1}
    policy: dict[str, Any] = {"RollingUpdatePolicy": {"MaximumBatchSize": batch, "WaitIntervalInSeconds": wait}}
    if alarms:
        policy["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": name} for name in alarms]}
    return policy


def twice(cloud: Cloud, **environment: str) -> str:
    """A configuration of two instances."""
    return cloud.config({"ModelName": cloud.model(environment), "InitialInstanceCount": 2})


@pytest.mark.parametrize("policy", [canary, rolling])
def test_an_alarm_that_goes_off_rolls_the_update_back(cloud: Cloud, policy: Any) -> None:
    target = cloud.publish("m.tar.gz")
    endpoint = cloud.endpoint(twice(cloud))
    before = cloud.status(endpoint)["EndpointConfigName"]
    load = Load(cloud, endpoint, target)
    seen: set[str] = set()

    def settled() -> bool:
        seen.add(cloud.status(endpoint)["EndpointStatus"])
        return "InService" in seen

    name = alarm(cloud, endpoint)
    with load.running():
        load.answering()
        cloud.sagemaker.update_endpoint(
            EndpointName=endpoint,
            EndpointConfigName=twice(cloud, FAKE_STATUS="500", FAKE_STOP_SECONDS="1"),
            DeploymentConfig=policy(3600, name),
        )
        wait_for(settled, 90)
    state = cloud.status(endpoint)
    assert {"Updating", "RollingBack"} <= seen
    assert (state["EndpointStatus"], state["EndpointConfigName"]) == ("InService", before)
    assert name in state["FailureReason"]
    assert "PendingDeploymentSummary" not in state
    assert load.problems
    after = Load(cloud, endpoint, target)
    for _ in range(20):
        after.call()
    assert not after.problems
    assert len(set(after.pids)) == 2


@pytest.mark.parametrize("policy", [canary, rolling])
def test_an_update_moves_the_traffic_step_by_step(cloud: Cloud, policy: Any) -> None:
    target = cloud.publish("m.tar.gz")
    endpoint = cloud.endpoint(twice(cloud))
    load = Load(cloud, endpoint, target)
    config = twice(cloud)
    with load.running():
        old = load.answering()
        cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=config, DeploymentConfig=policy(600))
        pending = wait_for(lambda: cloud.status(endpoint).get("PendingDeploymentSummary"))
        assert pending["EndpointConfigName"] == config
        wait_for(lambda: cloud.status(endpoint)["EndpointStatus"] == "InService", 90)
        new = load.answering()
    first = next(n for n, pid in enumerate(load.pids) if pid in new)
    last = max(n for n, pid in enumerate(load.pids) if pid in old)
    assert first < last, "both answered for a while"
    assert len(set(load.pids[first:last]) & new) == 1, "one new instance took part of the traffic"
    assert len(new) == 2
    assert not new & old
    assert not load.problems
    assert cloud.status(endpoint)["EndpointConfigName"] == config


def test_an_update_that_takes_too_long_is_rolled_back(cloud: Cloud) -> None:
    endpoint = cloud.endpoint(twice(cloud))
    before = cloud.status(endpoint)["EndpointConfigName"]
    policy = canary(3600)
    policy["BlueGreenUpdatePolicy"]["MaximumExecutionTimeoutInSeconds"] = 600
    cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=twice(cloud), DeploymentConfig=policy)
    state = cloud.settled(endpoint)
    assert state["EndpointConfigName"] == before
    assert "longer than 600 seconds" in state["FailureReason"]


def test_a_policy_that_cannot_be_followed_is_refused(cloud: Cloud) -> None:
    endpoint = cloud.endpoint()
    refusal = error_of(
        cloud.sagemaker.update_endpoint,
        EndpointName=endpoint,
        EndpointConfigName=cloud.config(),
        DeploymentConfig=canary(60),
    )
    assert refusal["Error"]["Code"] == "ValidationException"
    assert "1 of 1 instance(s)" in refusal["Error"]["Message"]
    assert cloud.status(endpoint)["EndpointStatus"] == "InService"


def test_an_endpoint_can_be_deleted_while_it_is_updated(cloud: Cloud) -> None:
    endpoint = cloud.endpoint(twice(cloud))
    cloud.sagemaker.update_endpoint(
        EndpointName=endpoint, EndpointConfigName=twice(cloud), DeploymentConfig=canary(3600)
    )
    wait_for(lambda: "PendingDeploymentSummary" in cloud.status(endpoint))
    cloud.sagemaker.delete_endpoint(EndpointName=endpoint)
    wait_for(lambda: cloud.gone(endpoint))


def test_instances_come_while_the_endpoint_is_updating(cloud: Cloud) -> None:
    config = cloud.config({"ModelName": cloud.model({"FAKE_START_SECONDS": "1"})})
    endpoint = cloud.endpoint(config)
    wanted = {"VariantName": "AllTraffic", "DesiredInstanceCount": 2}
    change = cloud.sagemaker.update_endpoint_weights_and_capacities
    change(EndpointName=endpoint, DesiredWeightsAndCapacities=[wanted])
    state = cloud.status(endpoint)
    [variant] = state["ProductionVariants"]
    assert state["EndpointStatus"] == "Updating"
    assert (variant["DesiredInstanceCount"], variant["CurrentInstanceCount"]) == (2, 1)
    refusal = error_of(change, EndpointName=endpoint, DesiredWeightsAndCapacities=[wanted])
    assert "Cannot update in-progress endpoint" in refusal["Error"]["Message"]
    [variant] = cloud.settled(endpoint)["ProductionVariants"]
    assert variant["CurrentInstanceCount"] == 2
    refusal = error_of(
        change, EndpointName=endpoint, DesiredWeightsAndCapacities=[{**wanted, "DesiredInstanceCount": 0}]
    )
    assert refusal["Error"]["Code"] == "ValidationException"
