"""`invoke warm`: models in memory before they are asked for, and what is known of it."""

from __future__ import annotations

import json
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from container_process import wait_until
from operate_tools import Corner, corner_of

from mme.archive import write
from mme.catalog.spec import ModelSpec, Source
from mme.local import LocalAws
from mme.operate import lines, logs, warm

TELLING = shlex.join([sys.executable, str(Path(__file__).with_name("telling_container.py"))])
A, B, C = (f"{name}-0123456789ab.tar.gz" for name in ("a", "b", "c"))


@pytest.fixture(scope="module")
def logging_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    """A local AWS whose containers write the lines that ours writes."""
    with LocalAws(tmp_path_factory.mktemp("logging") / "data", container=TELLING) as made:
        yield made


@pytest.fixture
def logging_corner(
    logging_aws: LocalAws, aws_env: LocalAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Corner]:
    with corner_of(logging_aws, monkeypatch, capsys) as made:
        yield made


def states(result: Any) -> dict[str, str]:
    return {item["target"]: item["state"] for item in result.json["models"]}


def invoked(corner: Corner, endpoint: str) -> list[lines.Line]:
    """Every request that the containers have seen, in order."""
    since = datetime.now(timezone.utc) - timedelta(hours=1)
    return [line for line in logs.read(corner.logs, endpoint, since) if line.event == "invoke"]


# ---- what is asked ------------------------------------------------------------------------------------------------


def publish(corner: Corner, folder: Path, name: str, sample: bytes | None, facts: dict[str, Any] | None = None) -> str:
    place = folder / name
    (place / "snapshot").mkdir(parents=True)
    (place / "snapshot" / "config.json").write_text("{}")
    (place / "handler").mkdir()
    (place / "handler" / "inference.py").write_text("def model_fn(folder):\n    return 1\n")
    if sample is not None:
        (place / "handler" / "sample.json").write_bytes(sample)
    spec = ModelSpec(name, Source("folder", "x"), handler=place / "handler", task=(facts or {}).get("task"))
    made = write.build(spec, place / "snapshot", place / "dist")
    assert made.path
    corner.publish(made.target, made.path.read_bytes())
    return made.target


def test_a_model_is_asked_its_own_sample_else_one_for_its_task(logging_corner: Corner, tmp_path: Path) -> None:
    with_sample = publish(logging_corner, tmp_path, "own", b'{"inputs": "mine"}')
    for_task = publish(logging_corner, tmp_path, "task", None, {"task": "fill-mask"})
    neither = publish(logging_corner, tmp_path, "none", None)
    endpoint = logging_corner.endpoint()
    words = [word for target in (with_sample, for_task, neither) for word in ("--target", target)]
    assert logging_corner("warm", "--endpoint", endpoint, *words).code == 0
    bodies = {line.target: line.fields["body"] for line in invoked(logging_corner, endpoint)}
    assert bodies[with_sample] == '{"inputs": "mine"}'
    assert "[MASK]" in bodies[for_task]
    assert json.loads(bodies[neither]) == {"inputs": "A short text."}
    request = tmp_path / "request.json"
    request.write_text('{"inputs": "given"}')
    assert logging_corner("warm", "--endpoint", endpoint, "--model", "none", "--file", str(request)).code == 0
    assert invoked(logging_corner, endpoint)[-1].fields["body"] == '{"inputs": "given"}'


# ---- what becomes of it -------------------------------------------------------------------------------------------


def test_a_warm_model_is_not_cold_and_the_log_says_so(logging_corner: Corner) -> None:
    for target in (A, B, C):
        logging_corner.publish(target)
    assert logging_corner("promote", "--model", "b", "--bucket", logging_corner.bucket, "--keep-warm").code == 0
    endpoint = logging_corner.endpoint()
    result = logging_corner("warm", "--endpoint", endpoint, "--model", "a", "--kept", "--json")
    assert result.code == 0
    assert states(result) == {A: "warm", B: "warm"}
    assert all(item["reached"] == item["instances"] == 1 for item in result.json["models"])
    assert all(item["first_seconds"] >= 0 for item in result.json["models"])
    assert "2 of 2 are on every instance" in result.err
    for target in (A, B, C):
        logging_corner.invoke(endpoint, target)
    cold = {line.target: line.fields.get("cold") is True for line in invoked(logging_corner, endpoint)[-3:]}
    assert cold == {A: False, B: False, C: True}
    shown = logging_corner("warm", "--endpoint", endpoint, "--target", A)
    assert "1 of 1 (log)" in shown.out


def test_the_most_used_models_are_warmed(logging_corner: Corner) -> None:
    for target in (A, B, C):
        logging_corner.publish(target)
    old = logging_corner.endpoint()
    for target, times in ((A, 1), (B, 5), (C, 3)):
        for _ in range(times):
            logging_corner.invoke(old, target)
    logging_corner.s3.delete_object(Bucket=logging_corner.bucket, Key=f"models/{C}")  # a version that is gone is no use
    result = logging_corner("warm", "--endpoint", old, "--most-used", "2", "--hours", "1", "--json")
    assert result.code == 0
    assert list(states(result)) == [B, A]


def test_what_does_not_fit_is_said(logging_corner: Corner) -> None:
    for target in (A, B, C):
        logging_corner.publish(target, size=40)  # of 100
    endpoint = logging_corner.endpoint()
    words = [word for target in (A, B, C) for word in ("--target", target)]
    result = logging_corner("warm", "--endpoint", endpoint, *words, "--json")
    assert result.code == 9
    assert sorted(states(result).values()) == ["unloaded", "warm", "warm"]
    assert "not everything fits" in result.err
    logging_corner.publish("d-0123456789ab.tar.gz", size=400)
    alone = logging_corner("warm", "--endpoint", endpoint, "--model", "d", "--json")
    assert alone.code == 9
    assert states(alone) == {"d-0123456789ab.tar.gz": "failed"}
    assert "no room left" in alone.json["models"][0]["message"]


def test_a_model_that_refuses_the_request_is_asked_once(logging_corner: Corner) -> None:
    """Refusals count as errors, which alarms watch: it is loaded all the same."""
    logging_corner.publish(A, status=400, message="I want something else")
    endpoint = logging_corner.endpoint(
        logging_corner.config({"ModelName": logging_corner.model(), "InitialInstanceCount": 2})
    )
    result = logging_corner("warm", "--endpoint", endpoint, "--model", "a", "--json")
    assert result.code == 0
    (item,) = result.json["models"]
    assert (item["state"], item["requests"]) == ("refused", 1)
    assert "something else" in item["message"]


def test_two_instances_are_both_reached_and_then_answer_warm(logging_corner: Corner) -> None:
    for target in (A, B):
        logging_corner.publish(target)
    endpoint = logging_corner.endpoint(
        logging_corner.config({"ModelName": logging_corner.model(), "InitialInstanceCount": 2})
    )
    result = logging_corner("warm", "--endpoint", endpoint, "--target", A, "--target", B, "--json")
    assert states(result) == {A: "warm", B: "warm"}
    assert [item["reached"] for item in result.json["models"]] == [2, 2]
    before = len(invoked(logging_corner, endpoint))
    for target in [A, B] * 10:
        logging_corner.invoke(endpoint, target)
    after = invoked(logging_corner, endpoint)
    assert len({line.instance for line in after}) == 2
    assert not any(line.fields.get("cold") for line in after[before:])


def test_a_container_whose_log_names_no_model_leaves_it_at_a_probability(corner: Corner) -> None:
    corner.publish(A)
    endpoint = corner.endpoint(corner.config({"ModelName": corner.model(), "InitialInstanceCount": 2}))
    result = corner("warm", "--endpoint", endpoint, "--model", "a", "--log-seconds", "1", "--json")
    assert result.code == 0
    (item,) = result.json["models"]
    assert (item["state"], item["reached"]) == ("perhaps", None)
    assert item["requests"] == warm.requests_for(2)
    assert "99.9 % probable" in result.err
    few = corner("warm", "--endpoint", endpoint, "--model", "a", "--confidence", "50", "--log-seconds", "0", "--json")
    assert few.json["models"][0]["requests"] == warm.requests_for(2, 0.5)


# ---- an update under traffic --------------------------------------------------------------------------------------


def test_an_interrupt_does_not_wait_for_models_that_are_loading() -> None:
    class Loading:
        """An endpoint that is loading the model a for ever, and is asked for b when Ctrl-C comes."""

        def invoke_endpoint(self, **asked: Any) -> Any:
            if asked["TargetModel"] == B:
                raise KeyboardInterrupt
            raise ClientError({"Error": {"Code": "ModelNotReadyException", "Message": "Loading"}}, "InvokeEndpoint")

    runtime: Any = Loading()
    asks = [warm.Ask(target, b"{}", "application/json") for target in (B, A)]
    with pytest.raises(KeyboardInterrupt):
        warm.warm(runtime, None, "e", "main", 1, asks, sleep=lambda _: None, clock=lambda: 0.0)


class Traffic:
    """Callers who ask for all models without a pause, through whatever endpoint they are given; who answered them, and
    how."""

    def __init__(self, corner: Corner, endpoint: str, targets: list[str]) -> None:
        self.endpoint = endpoint
        self.failed: list[str] = []
        self.answered = dict.fromkeys(targets, 0)
        self._corner, self._targets = corner, targets
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(target,)) for target in targets]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, target: str) -> None:
        client = self._corner.client("sagemaker-runtime")
        while not self._stop.is_set():
            try:
                client.invoke_endpoint(EndpointName=self.endpoint, TargetModel=target, Body=b"user")["Body"].read()
                self.answered[target] += 1
            except ClientError as problem:
                self.failed.append(str(problem))
            time.sleep(0.005)

    def goes_on(self, requests: int = 20) -> None:
        """Returns after so many more answers of each model."""
        wanted = {target: count + requests for target, count in self.answered.items()}
        while any(self.answered[target] < count for target, count in wanted.items()) and not self.failed:
            time.sleep(0.005)


def cold_users(corner: Corner, *endpoints: str) -> int:
    """How many requests of users waited for a load."""
    return sum(
        line.fields.get("cold") is True and line.fields["body"] == "user"
        for endpoint in endpoints
        for line in invoked(corner, endpoint)
    )


def test_without_warming_every_model_is_cold_once_after_an_update(logging_corner: Corner) -> None:
    """What the two tests below do away with."""
    targets = [A, B, C]
    for target in targets:
        logging_corner.publish(target)
    endpoint = logging_corner.endpoint()
    with Traffic(logging_corner, endpoint, targets) as traffic:
        traffic.goes_on()
        # A container writes its log's line after the answer, and it is read later still.
        wait_until(lambda: cold_users(logging_corner, endpoint) == len(targets))
        logging_corner.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=logging_corner.config())
        assert logging_corner.settled(endpoint)["EndpointStatus"] == "InService"
        traffic.goes_on()
    assert traffic.failed == []
    wait_until(lambda: cold_users(logging_corner, endpoint) == 2 * len(targets))


def test_an_update_through_a_second_endpoint_has_no_cold_request(logging_corner: Corner) -> None:
    targets = [A, B, C]
    for target in targets:
        logging_corner.publish(target)
    old = logging_corner.endpoint()
    with Traffic(logging_corner, old, targets) as traffic:
        traffic.goes_on()
        wait_until(lambda: cold_users(logging_corner, old) == len(targets))
        new = logging_corner.endpoint()  # the same bucket, another configuration
        used = logging_corner("warm", "--endpoint", old, "--most-used", "10", "--hours", "1", "--dry-run")
        assert all(target in used.err for target in targets)
        would = logging_corner("warm", "--endpoint", old, "--target", A, "--dry-run", "--json").json
        assert would["dry_run"] is True
        assert [(item["target"], item["requests"]) for item in would["models"]] == [(A, 1)]
        words = [word for target in targets for word in ("--target", target)]
        assert states(logging_corner("warm", "--endpoint", new, *words, "--json")) == dict.fromkeys(targets, "warm")
        traffic.endpoint = new
        traffic.goes_on()
    assert traffic.failed == []
    assert cold_users(logging_corner, old, new) == len(targets)


def test_weights_that_go_over_to_a_warm_variant_make_no_cold_request(logging_corner: Corner) -> None:
    targets = [A, B, C]
    for target in targets:
        logging_corner.publish(target)
    blue = {"VariantName": "blue", "ModelName": logging_corner.model(), "InitialVariantWeight": 1.0}
    green = {"VariantName": "green", "ModelName": logging_corner.model(), "InitialVariantWeight": 0.0}
    endpoint = logging_corner.endpoint(logging_corner.config(blue, green))
    with Traffic(logging_corner, endpoint, targets) as traffic:
        traffic.goes_on()
        wait_until(lambda: cold_users(logging_corner, endpoint) == len(targets))
        words = [word for target in targets for word in ("--target", target)]
        result = logging_corner("warm", "--endpoint", endpoint, "--variant", "green", *words, "--json")
        assert states(result) == dict.fromkeys(targets, "warm")
        assert {item["variant"] for item in result.json["models"]} == {"green"}
        logging_corner.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=endpoint,
            DesiredWeightsAndCapacities=[
                {"VariantName": "blue", "DesiredWeight": 0.0},
                {"VariantName": "green", "DesiredWeight": 1.0},
            ],
        )
        assert logging_corner.settled(endpoint)["EndpointStatus"] == "InService"
        traffic.goes_on()
    assert traffic.failed == []
    assert cold_users(logging_corner, endpoint) == len(targets)
    assert invoked(logging_corner, endpoint)[-1].variant == "green"


# ---- channels that are kept warm ----------------------------------------------------------------------------------


def test_a_channel_is_kept_warm_until_that_is_taken_back(corner: Corner) -> None:
    corner.publish(A)
    where = ["--bucket", corner.bucket]
    first = corner("promote", "--model", "a", "--keep-warm", *where)
    assert "revision 1, kept warm" in first.out
    corner.publish("a-ba9876543210.tar.gz")
    assert corner("promote", "--model", "a", "--version", "ba98", *where, "--json").json["keep_warm"] is True
    assert "(kept warm)" in corner("channels", *where).out
    again = corner("promote", "--model", "a", "--version", "ba98", "--no-keep-warm", *where)
    assert "revision 2)" in again.out, "it is no revision: a rollback still leads to the version before"
    listed = corner("channels", *where, "--json").json["channels"]
    assert [(item["name"], item["keep_warm"], item["revision"]) for item in listed] == [("a", False, 2)]
    assert corner("promote", "--model", "a", "--keep-warm", "--no-keep-warm", *where).code == 2
    dry = corner("promote", "--model", "a", "--keep-warm", "--dry-run", *where)
    assert "kept warm" in dry.err
    would = corner("promote", "--model", "a", "--keep-warm", "--dry-run", "--json", *where).json
    assert (would["dry_run"], would["keep_warm"], would["revision"]) == (True, True, 2)
    assert would["versions"] == would["now"]
    assert corner("channels", *where, "--json").json["channels"][0]["keep_warm"] is False


def test_two_who_change_a_channel_at_once_do_not_lose_either(corner: Corner) -> None:
    from mme import aws, channels, releases
    from mme.errors import ConflictError, ReleaseError

    corner.publish(A)
    s3, store = aws.s3_client(None), releases.Store(corner.bucket)
    with pytest.raises(ReleaseError, match="no channel"):
        channels.keep_warm(s3, store, channels.read(s3, store, "a"), True)
    channel = channels.change(s3, store, channels.read(s3, store, "a"), {A: 1}, action="promote", author="me")
    changed = channels.keep_warm(s3, store, channel, True)
    assert channels.read(s3, store, "a") == changed
    corner.publish("a-ba9876543210.tar.gz")
    with pytest.raises(ConflictError):
        channels.change(s3, store, channel, {"a-ba9876543210.tar.gz": 1}, action="promote", author="other")
    assert channels.keep_warm(s3, store, changed, True) is changed


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--most-used", "0"],
        ["--most-used", "many"],
        ["--kept", "--hours", "0"],
        ["--kept", "--confidence", "100"],
        ["--kept", "--confidence", "sure"],
        ["--kept", "--log-seconds", "-1"],
    ],
)
def test_bad_flags_are_refused(corner: Corner, words: list[str]) -> None:
    assert corner("warm", "--endpoint", "e", *words).code == 2


def test_what_is_not_there_is_said(corner: Corner, tmp_path: Path) -> None:
    corner.publish(A)
    endpoint = corner.endpoint()
    where = ["--endpoint", endpoint]
    assert corner("warm", *where, "--model", "none").code == 8
    assert corner("warm", *where, "--target", "none-0123456789ab.tar.gz").code == 8
    assert "blue" in corner("warm", *where, "--model", "a", "--variant", "blue").err
    assert corner("warm", *where, "--model", "a", "--file", str(tmp_path / "none.json")).code == 2
    assert corner("warm", *where, "--model", "a", "--file", str(tmp_path / "x.txt")).code == 2
    nothing = corner("warm", *where, "--kept", "--json")
    assert (nothing.code, nothing.json["models"]) == (0, [])
    assert "No channel is kept warm" in nothing.err
    assert "names no model" in corner("warm", *where, "--most-used", "3").err


@pytest.mark.parametrize(
    ("environment", "status", "said"),
    [
        ({"FAKE_START_SECONDS": "60"}, "Creating", "aws sagemaker wait"),
        ({"FAKE_BROKEN": "1"}, "Failed", "invoke doctor"),
    ],
)
def test_an_endpoint_that_answers_nobody_is_not_waited_for(
    corner: Corner, environment: dict[str, str], status: str, said: str
) -> None:
    corner.publish(A)
    endpoint = corner.endpoint(corner.config({"ModelName": corner.model(environment)}), wait=False)
    if status == "Failed":
        assert corner.settled(endpoint)["EndpointStatus"] == status
    found = corner("warm", "--endpoint", endpoint, "--model", "a", "--json")
    assert found.code == 9
    assert f"Endpoint {endpoint} is {status} and answers nobody" in found.json["error"]["message"]
    assert said in found.json["error"]["hint"]
    doctor = corner("doctor", "--endpoint", endpoint, "--json")
    findings = [item for item in doctor.json["findings"] if item["check"] == "endpoint"]
    assert [item["severity"] for item in findings] == ["error" if status == "Failed" else "warning"]
    assert status in findings[0]["what"]


def test_every_instance_of_a_variant_is_reached(logging_corner: Corner) -> None:
    """Two containers with caches of their own; the log says which of them have answered."""
    for target in (A, B):
        logging_corner.publish(target)
    endpoint = logging_corner.endpoint(
        logging_corner.config({"ModelName": logging_corner.model(), "InitialInstanceCount": 2})
    )
    result = logging_corner("warm", "--endpoint", endpoint, "--target", A, "--target", B, "--json")
    assert result.code == 0
    assert [(item["state"], item["reached"], item["instances"]) for item in result.json["models"]] == [
        ("warm", 2, 2)
    ] * 2
    with Traffic(logging_corner, endpoint, [A, B]) as traffic:
        traffic.goes_on()
    assert traffic.failed == []
    assert len({line.instance for line in invoked(logging_corner, endpoint)}) == 2
    assert cold_users(logging_corner, endpoint) == 0
