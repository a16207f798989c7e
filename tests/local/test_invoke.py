"""InvokeEndpoint as a client of a multi-model endpoint sees it: the routing, the headers, and every error."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from local_tools import Cloud, archive, error_of, tar_gz, wait_for

MAX_BODY = 6_291_456


def test_each_target_is_its_own_model(cloud: Cloud) -> None:
    """Two models that multiply differently prove which one answered."""
    cloud.publish("double.tar.gz", times=2)
    cloud.publish("team-a/triple.tar.gz", times=3)
    endpoint = cloud.endpoint()
    assert cloud.invoke(endpoint, "double.tar.gz", b"7")["result"] == 14
    assert cloud.invoke(endpoint, "team-a/triple.tar.gz", b"7")["result"] == 21
    assert cloud.invoke(endpoint, "double.tar.gz", b"8")["result"] == 16


def test_the_container_sees_the_request_and_the_client_its_headers(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz")
    answer = cloud.invoke(
        cloud.endpoint(),
        target,
        b"hello",
        ContentType="text/plain",
        Accept="application/json",
        CustomAttributes="trace=7",
    )
    assert (answer["body"], answer["content_type"], answer["accept"]) == ("hello", "text/plain", "application/json")
    assert (answer["custom"], answer["target"]) == ("trace=7", target)
    assert answer["files"] == ["code", "inference.py", "model.json"]
    response = answer["response"]
    assert response["ContentType"] == "application/json"
    assert response["InvokedProductionVariant"] == "AllTraffic"
    assert response["CustomAttributes"] == "said=yes"
    assert response["ResponseMetadata"]["RequestId"]


def test_bytes_pass_unchanged(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz")
    body = bytes(range(256)) * 100
    response = cloud.runtime.invoke_endpoint(
        EndpointName=cloud.endpoint(), TargetModel=target, Body=body, Accept="application/octet-stream"
    )
    assert response["ContentType"] == "application/octet-stream"
    assert response["Body"].read() == body


def test_the_container_gets_the_models_environment_and_no_credentials(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz")
    environment = cloud.invoke(cloud.endpoint(TEST_COLOUR="blue", SAGEMAKER_MODEL_SERVER_WORKERS="2"), target)[
        "environment"
    ]
    assert environment["TEST_COLOUR"] == "blue"
    assert environment["SAGEMAKER_MODEL_SERVER_WORKERS"] == "2"
    assert environment["SAGEMAKER_MULTI_MODEL"] == "true"
    ours = {"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED"}  # as SageMaker sets the first two
    assert {name for name in environment if name.startswith("AWS_")} == ours


def test_a_new_object_is_a_new_model_without_any_redeploy(cloud: Cloud) -> None:
    endpoint = cloud.endpoint()
    cloud.publish("v1.tar.gz", times=2)
    assert cloud.invoke(endpoint, "v1.tar.gz", b"1")["result"] == 2
    cloud.publish("v2.tar.gz", times=5)
    assert cloud.invoke(endpoint, "v2.tar.gz", b"1")["result"] == 5
    assert cloud.invoke(endpoint, "v1.tar.gz", b"1")["result"] == 2


def test_an_overwritten_object_is_not_noticed(cloud: Cloud) -> None:
    """SageMaker caches an archive by its key, which is why versions have names of their own."""
    endpoint = cloud.endpoint()
    cloud.publish("m.tar.gz", times=2)
    assert cloud.invoke(endpoint, "m.tar.gz", b"1")["result"] == 2
    cloud.publish("m.tar.gz", times=5)
    assert cloud.invoke(endpoint, "m.tar.gz", b"1")["result"] == 2


# -- errors


def test_an_unknown_endpoint(cloud: Cloud) -> None:
    refusal = error_of(cloud.runtime.invoke_endpoint, EndpointName="nothing-here", TargetModel="m.tar.gz", Body=b"1")
    assert refusal["Error"]["Code"] == "ValidationError"
    assert refusal["Error"]["Message"] == "Endpoint nothing-here of account 123456789012 not found."
    assert refusal["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_a_missing_target(cloud: Cloud) -> None:
    refusal = error_of(cloud.runtime.invoke_endpoint, EndpointName=cloud.endpoint(), Body=b"1")
    assert refusal["Error"]["Code"] == "ValidationError"
    assert "is missing a target model header" in refusal["Error"]["Message"]


def test_a_target_that_is_no_object_and_the_same_target_once_it_is(cloud: Cloud) -> None:
    """A failed load leaves nothing behind: the next request tries again."""
    endpoint = cloud.endpoint()
    refusal = error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel="late.tar.gz", Body=b"1")
    assert refusal["Error"]["Code"] == "ValidationError"
    assert (
        f"Failed to download model data(bucket: {cloud.bucket}, key: models/late.tar.gz)" in refusal["Error"]["Message"]
    )
    cloud.publish("late.tar.gz", times=2)
    assert cloud.invoke(endpoint, "late.tar.gz")["result"] == 2


@pytest.mark.parametrize("target", [" leading-space.tar.gz", "x" * 1025])
def test_a_target_that_is_not_one(cloud: Cloud, target: str) -> None:
    endpoint = cloud.endpoint()
    request = {"EndpointName": endpoint, "TargetModel": target, "Body": b"1"}
    refusal = error_of(cloud.runtime.invoke_endpoint, **request)
    assert refusal["Error"]["Code"] == "ValidationError"


@pytest.mark.parametrize(
    "asked",
    [{"TargetContainerHostname": "one"}, {"InferenceComponentName": "one"}, {"EnableExplanations": "`true`"}],
)
def test_what_is_for_other_kinds_of_endpoints(cloud: Cloud, asked: dict[str, str]) -> None:
    target = cloud.publish("m.tar.gz", times=2)
    request = {"EndpointName": cloud.endpoint(), "TargetModel": target, "Body": b"1", **asked}
    refusal = error_of(cloud.runtime.invoke_endpoint, **request)
    assert refusal["Error"]["Code"] == "ValidationError"
    assert f"does not support {next(iter(asked))}" in refusal["Error"]["Message"]


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"CustomAttributes": "x" * 1025}, "customAttributes"),
        ({"InferenceId": "x" * 65}, "inferenceId"),
        ({"ContentType": "text/" + "x" * 1020}, "contentType"),
        ({"Accept": "text/" + "x" * 1020}, "accept"),
        ({"TargetVariant": "under_score"}, "targetVariant"),
        ({"SessionId": "two words"}, "sessionId"),
        ({"EndpointName": "under_score"}, "endpointName"),
    ],
)
def test_what_sagemaker_refuses_before_it_looks(cloud: Cloud, asked: dict[str, str], where: str) -> None:
    """boto3 sends all of this; SageMaker refuses it by its own description of the call."""
    request = {"EndpointName": "there-is-none", "TargetModel": "m.tar.gz", "Body": b"1", **asked}
    found = error_of(cloud.runtime.invoke_endpoint, **request)
    assert found["Error"]["Code"] == "ValidationError"
    assert found["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert "1 validation error detected: " in found["Error"]["Message"]
    assert f"at '{where}' failed to satisfy constraint: Member must " in found["Error"]["Message"]


def test_a_session_reaches_the_container_and_its_answer_the_client(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz", times=2)
    request = {"EndpointName": cloud.endpoint(), "TargetModel": target, "Body": b"1"}
    answer = cloud.runtime.invoke_endpoint(**request, SessionId="NEW_SESSION")
    assert answer["NewSessionId"] == "session-1; Expires=2030-01-01T00:00:00Z"
    assert json.loads(answer["Body"].read())["session"] == "NEW_SESSION"
    answer = cloud.runtime.invoke_endpoint(**request, SessionId="session-1")
    assert "NewSessionId" not in answer
    assert json.loads(answer["Body"].read())["session"] == "session-1"


def _link() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("code")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"this is no archive", archive(times=1)[:-20], tar_gz({"../../escaped": b"x"}), _link()],
    ids=["not a tar.gz", "cut short", "climbs out", "link"],
)
def test_an_object_that_is_not_a_good_archive(cloud: Cloud, data: bytes) -> None:
    target = cloud.publish("bad.tar.gz", data)
    refusal = error_of(cloud.runtime.invoke_endpoint, EndpointName=cloud.endpoint(), TargetModel=target, Body=b"1")
    assert refusal["Error"]["Code"] == "ValidationError"
    assert "Failed to extract model data" in refusal["Error"]["Message"]


@pytest.mark.parametrize(("status", "side"), [(400, "client"), (500, "server"), (507, "server")])
def test_a_model_that_answers_an_error(cloud: Cloud, status: int, side: str) -> None:
    target = cloud.publish("m.tar.gz", status=status, message="the input is odd")
    endpoint = cloud.endpoint()
    error = error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel=target, Body=b"1")
    assert error["Error"]["Code"] == "ModelError"
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert error["OriginalStatusCode"] == status
    assert error["OriginalMessage"] == '{"message": "the input is odd"}'
    assert error["LogStreamArn"] == f"arn:aws:logs:us-east-1:123456789012:log-group:/aws/sagemaker/Endpoints/{endpoint}"
    assert f"Received {side} error ({status}) from primary" in error["Error"]["Message"]


def test_a_model_that_cannot_be_loaded(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz", load_status=500, message="no such handler")
    error = error_of(cloud.runtime.invoke_endpoint, EndpointName=cloud.endpoint(), TargetModel=target, Body=b"1")
    assert (error["Error"]["Code"], error["OriginalStatusCode"]) == ("ModelError", 500)
    assert "no such handler" in error["OriginalMessage"]


def test_a_body_of_the_largest_size_passes_and_a_byte_more_does_not(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz")
    endpoint = cloud.endpoint()
    assert cloud.invoke(endpoint, target, b"x" * MAX_BODY)["length"] == MAX_BODY
    refusal = error_of(
        cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel=target, Body=b"x" * (MAX_BODY + 1)
    )
    assert refusal["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert "6291456" in str(refusal)


def test_an_endpoint_that_is_not_multi_model(cloud: Cloud) -> None:
    """Such an endpoint is never called in service here, and says why."""
    cloud.publish("m.tar.gz")
    model = cloud.model(Mode="SingleModel", ModelDataUrl=f"s3://{cloud.bucket}/models/m.tar.gz")
    endpoint = cloud.endpoint(cloud.config({"ModelName": model}), wait=False)
    state = cloud.settled(endpoint)
    assert state["EndpointStatus"] == "Failed"
    assert "MultiModel" in state["FailureReason"]
    refusal = error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel="m.tar.gz", Body=b"1")
    assert refusal["Error"]["Code"] == "ValidationError"
    assert "is not a multi-model endpoint and does not support target model header" in refusal["Error"]["Message"]


def test_an_endpoint_whose_container_is_not_up(cloud: Cloud) -> None:
    endpoint = cloud.endpoint(cloud.config({"ModelName": cloud.model({"FAKE_BROKEN": "1"})}), wait=False)
    assert cloud.settled(endpoint)["EndpointStatus"] == "Failed"
    refusal = error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel="m.tar.gz", Body=b"1")
    assert refusal["Error"]["Code"] == "ServiceUnavailable"
    assert refusal["ResponseMetadata"]["HTTPStatusCode"] == 503


@pytest.mark.parametrize("call", ["invoke_endpoint_async", "invoke_endpoint_with_response_stream"])
def test_neither_asynchronous_nor_streamed(cloud: Cloud, call: str) -> None:
    more: dict[str, Any] = {"InputLocation": f"s3://{cloud.bucket}/in"} if "async" in call else {"Body": b"1"}
    refusal = error_of(getattr(cloud.runtime, call), EndpointName=cloud.endpoint(), **more)
    assert refusal["Error"]["Code"] == "ValidationError"
    assert "InvokeEndpoint only" in refusal["Error"]["Message"]


# -- variants


def test_traffic_goes_by_weight_and_to_the_variant_that_is_asked_for(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz")
    model = cloud.model()
    config = cloud.config(
        {"VariantName": "all", "ModelName": model, "InitialVariantWeight": 1.0},
        {"VariantName": "none", "ModelName": model, "InitialVariantWeight": 0.0},
    )
    endpoint = cloud.endpoint(config)
    drawn = Counter(cloud.invoke(endpoint, target)["response"]["InvokedProductionVariant"] for _ in range(20))
    assert drawn == {"all": 20}
    asked = cloud.invoke(endpoint, target, TargetVariant="none")
    assert asked["response"]["InvokedProductionVariant"] == "none"
    refusal = error_of(
        cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel=target, Body=b"1", TargetVariant="third"
    )
    assert refusal["Error"]["Code"] == "ValidationError"

    cloud.sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=endpoint,
        DesiredWeightsAndCapacities=[
            {"VariantName": "all", "DesiredWeight": 0},
            {"VariantName": "none", "DesiredWeight": 1},
        ],
    )
    drawn = Counter(cloud.invoke(endpoint, target)["response"]["InvokedProductionVariant"] for _ in range(20))
    assert drawn == {"none": 20}


# -- loading, unloading, dying


def test_many_requests_for_a_new_model_load_it_once(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz", load_seconds=0.3, times=2)
    endpoint = cloud.endpoint()
    answers: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: answers.append(cloud.invoke(endpoint, target, b"2"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer["result"] for answer in answers] == [4.0] * 12
    assert {answer["loads"] for answer in answers} == {1}


def test_a_model_that_loads_does_not_hold_up_another(cloud: Cloud) -> None:
    cloud.publish("slow.tar.gz", load_seconds=2)
    cloud.publish("quick.tar.gz", times=2)
    endpoint = cloud.endpoint()
    cloud.invoke(endpoint, "quick.tar.gz")
    slow = threading.Thread(target=lambda: cloud.invoke(endpoint, "slow.tar.gz"))
    slow.start()
    answered = 0
    while slow.is_alive():
        answered += cloud.invoke(endpoint, "quick.tar.gz")["result"] == 2
        if answered > 3:
            break
    assert answered > 3
    slow.join()


def test_a_full_container_unloads_the_least_recently_used_model(cloud: Cloud) -> None:
    for name in "abc":
        cloud.publish(f"{name}.tar.gz", size=40)
    endpoint = cloud.endpoint(FAKE_ROOM="100")
    for name in "aba":
        cloud.invoke(endpoint, f"{name}.tar.gz")
    assert cloud.invoke(endpoint, "c.tar.gz")["loads"] == 4  # a, b, c refused, c again when b was gone
    assert cloud.invoke(endpoint, "a.tar.gz")["loads"] == 4  # a is still there
    assert cloud.invoke(endpoint, "b.tar.gz")["loads"] == 6  # b is not


def test_a_model_in_use_is_not_unloaded(cloud: Cloud) -> None:
    """The only other model is at work, so the new one waits for it instead of cutting it off."""
    cloud.publish("busy.tar.gz", size=80, seconds=1, times=2)
    cloud.publish("new.tar.gz", size=80, times=3)
    endpoint = cloud.endpoint(FAKE_ROOM="100")
    cloud.invoke(endpoint, "busy.tar.gz")
    answers: dict[str, float] = {}
    busy = threading.Thread(target=lambda: answers.update(busy=cloud.invoke(endpoint, "busy.tar.gz", b"5")["result"]))
    busy.start()
    answers["new"] = cloud.invoke(endpoint, "new.tar.gz", b"5")["result"]
    busy.join()
    assert answers == {"busy": 10.0, "new": 15.0}


def test_a_model_that_never_fits(cloud: Cloud) -> None:
    target = cloud.publish("huge.tar.gz", size=1000)
    error = error_of(
        cloud.runtime.invoke_endpoint, EndpointName=cloud.endpoint(FAKE_ROOM="100"), TargetModel=target, Body=b"1"
    )
    assert (error["Error"]["Code"], error["OriginalStatusCode"]) == ("ModelError", 507)


def test_many_models_through_little_room(cloud: Cloud) -> None:
    """Loads, evictions and requests at once: every answer is right."""
    for number in range(8):
        cloud.publish(f"{number}.tar.gz", size=30, times=number)
    endpoint = cloud.endpoint(FAKE_ROOM="100")
    wrong: list[Any] = []

    def work(seed: int) -> None:
        for step in range(12):
            number = (seed * 5 + step * 3) % 8
            result = cloud.invoke(endpoint, f"{number}.tar.gz", b"10")["result"]
            if result != number * 10:
                wrong.append((number, result))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert not wrong


def test_a_load_waits_for_those_that_are_on_their_way(cloud: Cloud) -> None:
    """Asked at the same moment: what is still loading cannot be unloaded yet, and is no reason to refuse the third."""
    for number in range(2):
        cloud.publish(f"{number}.tar.gz", size=40, times=number, answer_seconds=1)
    cloud.publish("2.tar.gz", size=40, times=2, load_seconds=0.5)
    endpoint = cloud.endpoint(FAKE_ROOM="100")
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda number: cloud.invoke(endpoint, f"{number}.tar.gz", b"10"), range(3)))
    assert [answer["result"] for answer in answers] == [0, 10, 20]


def test_two_that_never_fit_do_not_wait_for_each_other(cloud: Cloud) -> None:
    targets = [cloud.publish(f"{number}.tar.gz", size=1000, load_seconds=0.2) for number in range(2)]
    endpoint = cloud.endpoint(FAKE_ROOM="100")

    def status(target: str) -> int:
        problem = error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel=target, Body=b"1")
        return int(problem["OriginalStatusCode"])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(status, targets)) == [507, 507]


def test_a_model_that_the_container_lost_is_loaded_again(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz", times=2)
    endpoint = cloud.endpoint()
    assert cloud.invoke(endpoint, target)["loads"] == 1
    error = error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel=target, Body=b"forget")
    assert error["OriginalStatusCode"] == 404  # it forgets every time it is asked to
    assert cloud.invoke(endpoint, target)["result"] == 2


def test_a_model_that_answers_404_itself_is_left_loaded(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz", status=404, message="no such customer")
    endpoint = cloud.endpoint()
    for _ in range(2):
        error = error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel=target, Body=b"1")
        assert (error["OriginalStatusCode"], error["OriginalMessage"]) == (404, '{"message": "no such customer"}')
    cloud.publish("other.tar.gz")
    assert cloud.invoke(endpoint, "other.tar.gz")["loads"] == 2


@pytest.mark.parametrize("when", ["invoke", "load"])
def test_a_container_that_dies_is_replaced_and_its_models_load_again(cloud: Cloud, when: str) -> None:
    cloud.publish("good.tar.gz", times=2)
    cloud.publish("deadly.tar.gz", die=when)
    endpoint = cloud.endpoint()
    first = cloud.invoke(endpoint, "good.tar.gz")
    error = error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel="deadly.tar.gz", Body=b"1")
    assert (error["Error"]["Code"], error["OriginalStatusCode"]) == ("ModelError", 500)
    second = cloud.invoke(endpoint, "good.tar.gz")
    assert second["result"] == 2
    assert second["pid"] != first["pid"]
    assert cloud.status(endpoint)["EndpointStatus"] == "InService"


# -- what CloudWatch is told


def test_metrics_and_logs(cloud: Cloud) -> None:
    target = cloud.publish("m.tar.gz", times=2)
    cloud.publish("bad.tar.gz", status=500)
    endpoint = cloud.endpoint()
    for _ in range(3):
        cloud.invoke(endpoint, target)
    error_of(cloud.runtime.invoke_endpoint, EndpointName=endpoint, TargetModel="bad.tar.gz", Body=b"1")
    watch = cloud.client("cloudwatch")

    def statistics(name: str, namespace: str = "AWS/SageMaker") -> dict[str, float]:
        points = watch.get_metric_statistics(
            Namespace=namespace,
            MetricName=name,
            Dimensions=[
                {"Name": "EndpointName", "Value": endpoint},
                {"Name": "VariantName", "Value": "AllTraffic"},
            ],
            StartTime="2020-01-01T00:00:00Z",
            EndTime="2100-01-01T00:00:00Z",
            Period=86400,
            Statistics=["Sum", "SampleCount", "Maximum"],
        )["Datapoints"]
        return {kind: sum(point[kind] for point in points) for kind in ("Sum", "SampleCount", "Maximum")}

    assert statistics("Invocations")["Sum"] == 4
    assert statistics("InvocationModelErrors")["Sum"] == 1
    assert statistics("ModelCacheHit") == {"Sum": 2.0, "SampleCount": 4.0, "Maximum": 1.0}
    assert statistics("ModelLoadingTime")["SampleCount"] == 2
    assert statistics("ModelLatency")["Maximum"] > 0
    assert statistics("LoadedModelCount", "/aws/sagemaker/Endpoints")["Maximum"] == 2

    logs = cloud.client("logs")
    group = f"/aws/sagemaker/Endpoints/{endpoint}"
    wait_for(lambda: any("load " in event["message"] for event in logs.filter_log_events(logGroupName=group)["events"]))
