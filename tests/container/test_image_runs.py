"""The built image as the platform starts it. `make image` builds one and runs this, with the contract's tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from container_process import KIND, Container, processes, wait_until
from image_script import image

from mme.runner import process as runner


@pytest.fixture(scope="module")
def tag() -> str:
    if tag := os.environ.get("MME_TEST_IMAGE"):
        return tag
    try:
        name = image.builder()
    except image.ImageError as reason:
        pytest.skip(str(reason))
    pytest.skip(f"building takes minutes: `make image` builds with {name}, and runs this")


def test_the_image_says_what_sagemaker_asks_for(tag: str) -> None:
    config = image.inspected(image.builder(), tag)
    labels = config["Labels"]
    assert labels["com.amazonaws.sagemaker.capabilities.multi-models"] == "true"
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert (config["Entrypoint"], config["Cmd"]) == (["python", "-m", "mme.container"], ["serve"])
    assert not [name for name in config["Env"] if name.startswith("PIP_") and "://" in name]


def test_it_serves_as_a_user_without_rights(tag: str, container: Container, handler: Any) -> None:
    source = """
        import os
        def model_fn(d): return None
        def predict_fn(data, model):
            return [os.getuid(), os.access("/opt/mme", os.W_OK), os.path.exists("/run/secrets/pip.conf")]
    """
    assert container.load("who", handler("who", source)).status == 200
    user, may_write, secret = container.invoke("who").json()
    assert user != 0
    assert not may_write
    assert not secret


def test_a_container_that_is_asked_to_stop_says_so_by_its_exit_code(tag: str, start: Any) -> None:
    container = start()
    family = processes(container.process.pid)
    assert container.stop() == 0
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


def test_wrong_settings_are_named_and_the_exit_code_passes(tag: str, tmp_path: Path) -> None:
    said: list[str] = []
    running = runner.Container(KIND, tmp_path, {"MME_CPUS": "none"}, said.append, guarded=False)
    try:
        assert running.process.wait(60) == 2
        assert "MME_CPUS" in running.epitaph()
    finally:
        running.stop()
