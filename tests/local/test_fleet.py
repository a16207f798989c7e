"""Several instances of one variant: each with a container and a cache of its own, and requests spread over them."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_tools import FAKE_CONTAINER, archive, wait_for

from mme.local.sagemaker import instance
from mme.local.sagemaker.fleet import Fleet
from mme.local.sagemaker.hosting import Hosting, Opened
from mme.local.sagemaker.instance import Instance
from mme.local.sagemaker.spec import VariantSpec
from mme.runner.errors import ContainerError


class Recorder:
    def __init__(self) -> None:
        self.values: list[tuple[str, float]] = []
        self.gauges: dict[tuple[str, str], float] = {}

    def metric(self, variant: str, name: str, value: float, unit: str) -> None:
        self.values.append((name, value))

    def gauge(self, variant: str, instance: str, name: str, value: float, unit: str) -> None:
        self.gauges[instance, name] = value

    def output(self, variant: str, instance: str, line: str) -> None: ...


def shelf(*, bucket: str, key: str, role_arn: str, into: Path) -> Path:
    settings: dict[str, Any] = {"models/slow": {"seconds": 1.0}}.get(key, {})
    (into / "archive.tar.gz").write_bytes(archive(times=2, **settings))
    return into / "archive.tar.gz"


def spec(name: str = "v", **more: Any) -> VariantSpec:
    return VariantSpec(name, "m", "image", "role", {}, "bucket", "models/", startup_seconds=10, **more)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def hosting(tmp_path: Path) -> Iterator[Hosting]:
    one = Hosting(tmp_path / "endpoints", FAKE_CONTAINER, shelf, max_instances=2)
    yield one
    one.close()


def up(hosting: Hosting, recorder: Recorder, *specs: VariantSpec) -> Opened:
    endpoint = hosting.open("us-east-1", "e")
    hosting.begin(endpoint, specs or [spec()], recorder)
    hosting.finish(endpoint)
    return endpoint


def ask(hosting: Hosting, target: str = "m", variant: str | None = None) -> int:
    """The process that answered."""
    with hosting.chosen("us-east-1", "e", variant) as chosen:
        assert chosen is not None
        reply = chosen.instance.invoke(target, b"1", {})
        chosen.fleet.answered(reply.status, True)
        return int(json.loads(reply.body)["pid"])


def test_instances_are_started_up_to_the_limit_and_counted_beyond(
    hosting: Hosting, recorder: Recorder, capfd: pytest.CaptureFixture[str]
) -> None:
    up(hosting, recorder, spec(instances=3))
    assert "e/v: 2 container(s) stand for 3 instances" in capfd.readouterr().err
    assert len({ask(hosting) for _ in range(40)}) == 2
    [variant] = hosting.state()[0].variants
    assert (variant.instance_count, len(variant.instances)) == (3, 2)
    invocations = [value for name, value in recorder.values if name == "InvocationsPerInstance"]
    assert sum(invocations) == pytest.approx(40 / 3)


def test_each_instance_has_a_cache_of_its_own(hosting: Hosting, recorder: Recorder) -> None:
    up(hosting, recorder, spec(instances=2))
    wait_for(lambda: len({ask(hosting) for _ in range(20)}) == 2)
    [variant] = hosting.state()[0].variants
    one, other = variant.instances
    assert [model.target for model in one.models] == [model.target for model in other.models] == ["m"]
    assert one.pid != other.pid
    assert one.disk_bytes > 0
    assert recorder.gauges == {(one.id, "LoadedModelCount"): 1.0, (other.id, "LoadedModelCount"): 1.0}


def test_least_outstanding_requests_avoids_the_busy_instance(hosting: Hosting, recorder: Recorder) -> None:
    up(hosting, recorder, spec(instances=2, routing="LEAST_OUTSTANDING_REQUESTS"))
    with hosting.chosen("us-east-1", "e", None) as busy:
        assert busy is not None
        for _ in range(10):
            with hosting.chosen("us-east-1", "e", None) as other:
                assert other is not None
                assert other.instance is not busy.instance


def test_a_fleet_that_shrinks_finishes_what_it_is_at(hosting: Hosting, recorder: Recorder) -> None:
    endpoint = up(hosting, recorder, spec(instances=2, routing="LEAST_OUTSTANDING_REQUESTS"))
    answers: list[int] = []
    asking = [threading.Thread(target=lambda: answers.append(ask(hosting, "slow"))) for _ in range(2)]
    for thread in asking:
        thread.start()
    wait_for(lambda: all(instance.requests for instance in hosting.state()[0].variants[0].instances))
    hosting.scale(endpoint, {"v": 1})
    for thread in asking:
        thread.join()
    assert len(set(answers)) == 2
    assert [psutil.pid_exists(pid) for pid in sorted(set(answers))].count(True) <= 1
    [left] = hosting.state()[0].variants[0].instances
    assert left.state == "InService"


def test_a_fleet_that_cannot_grow_stays_as_it_is(tmp_path: Path, recorder: Recorder) -> None:
    made: list[str] = []

    def make(label: str) -> Instance:
        made.append(label)
        command = FAKE_CONTAINER if len(made) == 1 else "/no/such/program"
        return Instance(label, spec(), command, tmp_path / str(len(made)), shelf, recorder)

    fleet = Fleet("e/v", spec(), recorder, 2, make)
    try:
        fleet.scale_to(1)
        with pytest.raises(ContainerError, match="No such file"):
            fleet.scale_to(2)
        assert (fleet.count, len(fleet.instances()), made) == (1, 1, ["e/v", "e/v/2"])
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
    finally:
        fleet.stop()


def test_requests_pass_an_instance_that_is_being_started_again(
    hosting: Hosting, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "_RESTART_PAUSES", (60.0,))
    up(hosting, recorder, spec(instances=2))
    wait_for(lambda: len({ask(hosting) for _ in range(20)}) == 2)
    dead = ask(hosting)
    psutil.Process(dead).kill()
    wait_for(lambda: "Restarting" in [one.state for one in hosting.state()[0].variants[0].instances])
    assert dead not in {ask(hosting) for _ in range(20)}


def test_what_is_up_as_plain_values(hosting: Hosting, recorder: Recorder) -> None:
    up(hosting, recorder, spec("a", weight=3.0, config="one"), spec("b", config="one"))
    ask(hosting, variant="a")
    state = json.loads(json.dumps([dataclasses.asdict(endpoint) for endpoint in hosting.state()]))
    [endpoint] = state
    assert (endpoint["region"], endpoint["name"]) == ("us-east-1", "e")
    a, b = endpoint["variants"]
    assert (a["name"], a["config"], a["weight"], a["traffic"], a["instance_count"]) == ("a", "one", 3.0, 0.75, 1)
    assert (b["traffic"], b["instances"][0]["models"]) == (0.25, [])
    [only] = a["instances"]
    assert (only["state"], only["requests"]) == ("InService", 0)
    assert only["id"].startswith("i-")
    assert psutil.pid_exists(only["pid"])
    [model] = only["models"]
    assert (model["target"], model["state"], model["requests"]) == ("m", "loaded", 0)
    assert model["disk_bytes"] == only["disk_bytes"] > 0
    assert abs(model["last_used"] - psutil.Process(only["pid"]).create_time()) < 60


def test_closing_ends_every_container(hosting: Hosting, recorder: Recorder, tmp_path: Path) -> None:
    up(hosting, recorder, spec(instances=2), spec("w", instances=2))
    pids = [instance.pid for variant in hosting.state()[0].variants for instance in variant.instances]
    assert len(set(pids)) == 4
    hosting.close()
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)
    assert hosting.state() == ()
    assert not list((tmp_path / "endpoints").iterdir())
