"""An instance on its own: time-outs, which need a clock that a test can set, and what is left behind."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_tools import FAKE_CONTAINER, archive, wait_for

from mme.local.sagemaker import errors, instance
from mme.local.sagemaker.errors import ArchiveUnavailable, ModelFailed, NotReady, Unavailable
from mme.local.sagemaker.instance import Instance
from mme.local.sagemaker.spec import INVOKE_SECONDS, LOAD_SECONDS, VariantSpec
from mme.runner.environment import base_environment
from mme.runner.errors import ContainerError


class Recorder:
    def __init__(self) -> None:
        self.metrics: list[str] = []
        self.lines: list[str] = []

    def metric(self, variant: str, name: str, value: float, unit: str) -> None:
        self.metrics.append(name)

    def gauge(self, variant: str, instance: str, name: str, value: float, unit: str) -> None:
        self.metrics.append(name)

    def output(self, variant: str, instance: str, line: str) -> None:
        self.lines.append(line)


class ArchiveSource:
    """Where archives come from."""

    def __init__(self, **archives: bytes) -> None:
        self.archives = archives
        self.asked: list[str] = []

    def __call__(self, *, bucket: str, key: str, role_arn: str, into: Path) -> Path:
        self.asked.append(key)
        data = self.archives.get(key.removeprefix("models/"))
        if data is None:
            raise ArchiveUnavailable(key)
        (into / "archive.tar.gz").write_bytes(data)
        return into / "archive.tar.gz"


def spec(**environment: str) -> VariantSpec:
    return VariantSpec("v", "m", "image", "role", environment, "bucket", "models/", startup_seconds=10)


@pytest.fixture
def source() -> ArchiveSource:
    return ArchiveSource(quick=archive(times=2), slow=archive(load_seconds=1.0, times=3), long=archive(seconds=1.0))


@pytest.fixture
def host(tmp_path: Path, source: ArchiveSource) -> Iterator[Instance]:
    one = Instance("e/v", spec(), FAKE_CONTAINER, tmp_path / "e-v", source, Recorder())
    one.start()
    yield one
    one.stop()


def test_a_model_that_loads_longer_than_a_caller_waits(host: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets ModelNotReady; the load goes on, and its result is there for the next one."""
    monkeypatch.setattr(instance, "INVOKE_SECONDS", 0.2)
    with pytest.raises(NotReady):
        host.invoke("slow", b"1", {})
    wait_for(lambda: host.loaded == 1)
    assert b'"result": 3.0' in host.invoke("slow", b"1", {}).body


def test_a_load_that_never_ends_is_given_up(host: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "LOAD_SECONDS", 0.3)
    with pytest.raises(ModelFailed, match="LOAD took longer"):
        host.invoke("slow", b"1", {})
    assert host.loaded == 0


def test_a_model_that_answers_too_late(host: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    host.invoke("quick", b"1", {})
    monkeypatch.setattr(instance, "INVOKE_SECONDS", 0.4)
    with pytest.raises(ModelFailed, match="Your invocation timed out") as caught:
        host.invoke("long", b"1", {})
    assert caught.value.status == 0


def test_what_was_downloaded_once_is_not_downloaded_again(host: Instance, source: ArchiveSource) -> None:
    host.invoke("quick", b"1", {})
    assert host._evict_one(besides="other")
    host.invoke("quick", b"1", {})
    assert source.asked == ["models/quick"]


def test_the_disk_is_not_filled_with_what_was_unloaded(tmp_path: Path) -> None:
    """Loaded models stay on disk; of the others as many as the volume holds, the newest."""
    names = "abcd"
    source = ArchiveSource(**{name: archive(padding="x" * 1000) for name in names})
    small = VariantSpec("v", "m", "image", "role", {"FAKE_ROOM": "1"}, "bucket", "models/", volume_bytes=2500)
    host = Instance("e/v", small, FAKE_CONTAINER, tmp_path / "e-v", source, Recorder())
    host.start()
    try:
        for name in names:  # there is room for one model at a time
            host.invoke(name, b"1", {})
        host.invoke("d", b"1", {})
        host.invoke("c", b"1", {})
        assert source.asked == [f"models/{name}" for name in names]
        host.invoke("a", b"1", {})
        assert source.asked[-1] == "models/a"
    finally:
        host.stop()


def test_stopping_leaves_no_file_and_no_waiting_caller(tmp_path: Path, source: ArchiveSource) -> None:
    host = Instance("e/v", spec(), FAKE_CONTAINER, tmp_path / "e-v", source, Recorder())
    host.start()
    problems: list[Any] = []

    def ask() -> None:
        try:
            host.invoke("slow", b"1", {})
        except errors.InvokeFailed as problem:
            problems.append(problem)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_for(lambda: source.asked)
    host.stop()
    asking.join(20)
    assert problems
    assert not list(tmp_path.iterdir())
    with pytest.raises(Unavailable):
        host.invoke("quick", b"1", {})


def test_a_container_that_is_not_healthy_in_time(tmp_path: Path, source: ArchiveSource) -> None:
    slow = VariantSpec("v", "m", "image", "role", {"FAKE_START_SECONDS": "60"}, "b", "", startup_seconds=0.3)
    host = Instance("e/v", slow, FAKE_CONTAINER, tmp_path / "e-v", source, Recorder())
    with pytest.raises(ContainerError, match=r"GET /ping with 200 within 0 s"):
        host.start()
    assert not list(tmp_path.iterdir())


def test_a_command_that_does_not_exist(tmp_path: Path, source: ArchiveSource) -> None:
    host = Instance("e/v", spec(), "/no/such/program serve", tmp_path / "e-v", source, Recorder())
    with pytest.raises(ContainerError, match="cannot be started: No such file or directory"):
        host.start()


def test_a_container_that_keeps_dying_is_started_again_and_again(
    tmp_path: Path, source: ArchiveSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "_RESTART_PAUSES", (0.0, 0.05))
    recorder = Recorder()
    source.archives["deadly"] = archive(die="invoke")
    host = Instance("e/v", spec(), FAKE_CONTAINER, tmp_path / "e-v", source, recorder)
    host.start()
    try:
        for _ in range(3):
            with pytest.raises(ModelFailed):
                host.invoke("deadly", b"1", {})
        assert b'"result": 2.0' in host.invoke("quick", b"1", {}).body
        wait_for(lambda: recorder.lines.count("fake container starts") >= 4)
    finally:
        host.stop()


@pytest.mark.parametrize("die", ["load", "invoke"])
def test_what_ended_a_container_is_not_sent_to_the_next_one(tmp_path: Path, source: ArchiveSource, die: str) -> None:
    """Also on a connection that was kept open."""
    recorder = Recorder()
    source.archives["deadly"] = archive(die=die)
    host = Instance("e/v", spec(), FAKE_CONTAINER, tmp_path / "e-v", source, recorder)
    host.start()
    try:
        host.invoke("quick", b"1", {})
        with pytest.raises(ModelFailed, match="The container ended"):
            host.invoke("deadly", b"1", {})
        assert b'"result": 2.0' in host.invoke("quick", b"1", {}).body
        loads = [line for line in recorder.lines if line.startswith("load ") and '"die"' in line]
        assert len(loads) == 1
    finally:
        host.stop()


def test_a_connection_that_the_container_closed_meanwhile_is_no_failure(host: Instance) -> None:
    host.invoke("quick", b"1", {})
    container = host._container
    assert container is not None
    idle = container._idle.get_nowait()
    idle.sock.shutdown(socket.SHUT_WR)  # the container reads its end and closes it
    wait_for(lambda: select.select([idle.sock], [], [], 0)[0])
    container._idle.put(idle)
    assert b'"result": 2.0' in host.invoke("quick", b"1", {}).body


def test_a_container_gets_nothing_that_may_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers are other people's programs."""
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "SSH_AUTH_SOCK", "DATABASE_URL"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    environment = base_environment()
    assert "secret" not in environment.values()
    assert environment["LC_ALL"] == "C.UTF-8"
    assert "PATH" in environment


def test_the_limits_are_sagemakers() -> None:
    assert (INVOKE_SECONDS, LOAD_SECONDS) == (60.0, 360.0)
