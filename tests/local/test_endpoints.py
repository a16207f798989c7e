"""An endpoint's life: in service only while its containers are, and every change followed to its end."""

from __future__ import annotations

import threading
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError
from local_tools import Cloud, error_of, wait_for


def containers(cloud: Cloud, endpoint: str) -> list[psutil.Process]:
    """The processes that run in a folder of the endpoint."""
    assert cloud.aws.pid is not None
    pids = []
    for process in psutil.Process(cloud.aws.pid).children(recursive=True):
        try:
            if f"/{endpoint}-" in process.cwd():
                pids.append(process)
        except psutil.Error:
            continue
    return pids


def test_from_creating_to_in_service_to_gone(cloud: Cloud) -> None:
    endpoint = cloud.endpoint(wait=False)
    assert cloud.status(endpoint)["EndpointStatus"] in ("Creating", "InService")
    state = cloud.settled(endpoint)
    assert state["EndpointStatus"] == "InService"
    [variant] = state["ProductionVariants"]
    assert (variant["VariantName"], variant["CurrentInstanceCount"], variant["CurrentWeight"]) == ("AllTraffic", 1, 1.0)
    assert variant["DeployedImages"][0]["SpecifiedImage"].endswith("/models:1")
    assert containers(cloud, endpoint)
    cloud.sagemaker.delete_endpoint(EndpointName=endpoint)
    wait_for(lambda: cloud.gone(endpoint))
    assert not containers(cloud, endpoint)


def test_a_container_that_does_not_come_up_fails_the_endpoint(cloud: Cloud) -> None:
    config = cloud.config({"ModelName": cloud.model({"FAKE_BROKEN": "1"})})
    endpoint = cloud.endpoint(config, wait=False)
    state = cloud.settled(endpoint)
    assert state["EndpointStatus"] == "Failed"
    assert "exit code 3" in state["FailureReason"]
    assert "fake container starts" in state["FailureReason"]  # its last words
    assert not containers(cloud, endpoint)


def test_names_are_not_taken_twice(cloud: Cloud) -> None:
    endpoint = cloud.endpoint()
    config = cloud.status(endpoint)["EndpointConfigName"]
    refusal = error_of(cloud.sagemaker.create_endpoint, EndpointName=endpoint, EndpointConfigName=config)
    assert refusal["Error"]["Code"] == "ValidationException"
    assert "Cannot create already existing endpoint" in refusal["Error"]["Message"]


def test_an_update_moves_to_new_containers_and_ends_the_old(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz")
    endpoint = cloud.endpoint(TEST_COLOUR="blue")
    assert cloud.invoke(endpoint, target)["environment"]["TEST_COLOUR"] == "blue"
    before = containers(cloud, endpoint)
    config = cloud.config(
        {"ModelName": cloud.model({"TEST_COLOUR": "green"}), "InstanceType": "ml.c7i.xlarge", "InitialInstanceCount": 2}
    )
    cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=config)
    state = cloud.settled(endpoint)
    assert (state["EndpointStatus"], state["EndpointConfigName"]) == ("InService", config)
    assert state["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert cloud.invoke(endpoint, target)["environment"]["TEST_COLOUR"] == "green"
    assert not [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_requests_go_on_through_an_update(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz", times=2)
    endpoint = cloud.endpoint()
    cloud.invoke(endpoint, target)
    config = cloud.config()
    problems: list[str] = []
    answered = [0]
    updated = threading.Event()

    def ask() -> None:
        while not updated.is_set():
            try:
                assert cloud.invoke(endpoint, target, b"3")["result"] == 6
                answered[0] += 1
            except ClientError as problem:
                problems.append(str(problem))

    asking = threading.Thread(target=ask)
    asking.start()
    cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=config)
    assert cloud.settled(endpoint)["EndpointConfigName"] == config
    updated.set()
    asking.join()
    assert not problems
    assert answered[0]


def test_an_update_that_fails_is_rolled_back(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz", times=2)
    endpoint = cloud.endpoint()
    before = cloud.status(endpoint)["EndpointConfigName"]
    config = cloud.config({"ModelName": cloud.model({"FAKE_BROKEN": "1"})})
    cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=config)
    state = cloud.settled(endpoint)
    assert (state["EndpointStatus"], state["EndpointConfigName"]) == ("InService", before)
    assert "exit code 3" in state["FailureReason"]
    assert cloud.invoke(endpoint, target)["result"] == 2


def test_a_request_that_is_under_way_is_answered_by_the_old_container(cloud: Cloud) -> None:
    target = cloud.publish("slow.tar.gz", seconds=2, times=2)
    endpoint = cloud.endpoint()
    cloud.invoke(endpoint, target)
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(cloud.invoke(endpoint, target, b"4")))
    config = cloud.config()
    asking.start()
    cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=config)
    asking.join()
    assert [answer["result"] for answer in answers] == [8.0]
    assert cloud.settled(endpoint)["EndpointConfigName"] == config


def test_an_endpoint_that_failed_is_not_updated(cloud: Cloud) -> None:
    endpoint = cloud.endpoint(cloud.config({"ModelName": cloud.model({"FAKE_BROKEN": "1"})}), wait=False)
    assert cloud.settled(endpoint)["EndpointStatus"] == "Failed"
    refusal = error_of(cloud.sagemaker.update_endpoint, EndpointName=endpoint, EndpointConfigName=cloud.config())
    assert "with status Failed" in refusal["Error"]["Message"]
    assert cloud.status(endpoint)["EndpointStatus"] == "Failed"


def test_an_update_adds_and_drops_variants(cloud: Cloud) -> None:
    model = cloud.model()
    endpoint = cloud.endpoint(cloud.config({"VariantName": "a", "ModelName": model}))
    both = cloud.config({"VariantName": "a", "ModelName": model}, {"VariantName": "b", "ModelName": model})
    cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=both)
    assert [v["VariantName"] for v in cloud.settled(endpoint)["ProductionVariants"]] == ["a", "b"]
    only = cloud.config({"VariantName": "b", "ModelName": model})
    cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=only)
    assert [v["VariantName"] for v in cloud.settled(endpoint)["ProductionVariants"]] == ["b"]


def test_an_update_retains_the_properties_that_it_names(cloud: Cloud) -> None:
    endpoint = cloud.endpoint()
    capacity = {"VariantName": "AllTraffic", "DesiredInstanceCount": 3, "DesiredWeight": 0.5}
    cloud.sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=endpoint, DesiredWeightsAndCapacities=[capacity]
    )
    cloud.settled(endpoint)

    def updated(**more: Any) -> tuple[int, float]:
        cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=cloud.config(), **more)
        variant = cloud.settled(endpoint)["ProductionVariants"][0]
        return variant["CurrentInstanceCount"], variant["CurrentWeight"]

    assert updated(RetainAllVariantProperties=True) == (3, 0.5)
    without = [{"VariantPropertyType": "DesiredWeight"}]
    assert updated(RetainAllVariantProperties=True, ExcludeRetainedVariantProperties=without) == (3, 1.0)
    assert updated() == (1, 1.0)


def test_capacities_change_only_where_they_are_named(cloud: Cloud) -> None:
    endpoint = cloud.endpoint()

    def change(**more: Any) -> dict[str, Any]:
        cloud.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=endpoint, DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", **more}]
        )
        state = cloud.settled(endpoint)
        assert state["EndpointStatus"] == "InService"
        variant: dict[str, Any] = state["ProductionVariants"][0]
        return variant

    first = change(DesiredInstanceCount=4)
    assert (first["DesiredInstanceCount"], first["CurrentInstanceCount"], first["DesiredWeight"]) == (4, 4, 1.0)
    second = change(DesiredWeight=0.25)
    assert (second["DesiredInstanceCount"], second["DesiredWeight"]) == (4, 0.25)
    variant = error_of(
        cloud.sagemaker.update_endpoint_weights_and_capacities,
        EndpointName=endpoint,
        DesiredWeightsAndCapacities=[{"VariantName": "nobody", "DesiredWeight": 1}],
    )
    assert variant["Error"]["Code"] == "ValidationException"


@pytest.mark.parametrize("call", ["update_endpoint", "delete_endpoint", "describe_endpoint"])
def test_an_endpoint_that_does_not_exist(cloud: Cloud, call: str) -> None:
    more = {"EndpointConfigName": cloud.config()} if call == "update_endpoint" else {}
    refusal = error_of(getattr(cloud.sagemaker, call), EndpointName="nothing-here", **more)
    assert refusal["Error"]["Code"] == "ValidationException"
    assert "Could not find endpoint" in refusal["Error"]["Message"]


def test_an_update_to_a_configuration_that_does_not_exist(cloud: Cloud) -> None:
    endpoint = cloud.endpoint()
    refusal = error_of(cloud.sagemaker.update_endpoint, EndpointName=endpoint, EndpointConfigName="none")
    assert refusal["Error"]["Message"] == (
        'Could not find endpoint configuration "arn:aws:sagemaker:us-east-1:123456789012:endpoint-config/none".'
    )
    assert cloud.status(endpoint)["EndpointStatus"] == "InService"


def test_two_updates_at_once_are_refused(cloud: Cloud) -> None:
    endpoint = cloud.endpoint()
    slow = cloud.config({"ModelName": cloud.model({"FAKE_START_SECONDS": "1"})})
    cloud.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=slow)
    assert cloud.status(endpoint)["EndpointStatus"] == "Updating"
    refusal = error_of(cloud.sagemaker.update_endpoint, EndpointName=endpoint, EndpointConfigName=slow)
    assert "Cannot update in-progress endpoint" in refusal["Error"]["Message"]
    assert cloud.settled(endpoint)["EndpointConfigName"] == slow


def test_an_endpoint_deleted_while_it_starts_leaves_no_container(cloud: Cloud) -> None:
    config = cloud.config({"ModelName": cloud.model({"FAKE_START_SECONDS": "60"})})
    endpoint = cloud.endpoint(config, wait=False)
    wait_for(lambda: containers(cloud, endpoint))
    cloud.sagemaker.delete_endpoint(EndpointName=endpoint)
    wait_for(lambda: cloud.gone(endpoint))
    assert not containers(cloud, endpoint)


def test_a_name_can_be_used_again_after_deletion(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz", times=2)
    endpoint = cloud.endpoint()
    config = cloud.status(endpoint)["EndpointConfigName"]
    cloud.sagemaker.delete_endpoint(EndpointName=endpoint)
    wait_for(lambda: cloud.gone(endpoint))
    cloud.sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName=config)
    assert cloud.settled(endpoint)["EndpointStatus"] == "InService"
    assert cloud.invoke(endpoint, target)["loads"] == 1
