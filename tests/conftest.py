"""Fixtures that more than one room of the house uses."""

from __future__ import annotations

import functools
import gc
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import hypothesis
import pytest
import tiny_models
import warm_python as warm_pythons
from warm_python import WarmPython

from mme.local import LocalAws
from mme.runner import process, stock
from mme.runner.environment import container_environment
from mme.snapshot import accuracy

FAKE_CONTAINER = shlex.join([sys.executable, str(Path(__file__).parent / "local" / "fake_container.py")])
"""The command of a container that keeps the contract, hosts anything and starts at once (see its docstring)."""


SECONDS = {
    name: float(seconds)
    for seconds, name in (
        line.split() for line in Path(__file__).with_name("slow.txt").read_text().splitlines() if line[:1] != "#"
    )
}
"""Of the tests that take long, by ``folder/test_file.py::test_name`` or by file: see slow.txt."""


def pytest_configure(config: pytest.Config) -> None:
    run = warm_pythons.run = warm_pythons.Run(getattr(config, "workerinput", {}).get("warm"))
    config.add_cleanup(run.end)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Workers of pytest-xdist share the warm interpreters of their run."""
    assert warm_pythons.run is not None
    node.workerinput["warm"] = str(warm_pythons.run.folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what takes long as slow. Several workers begin with the files that take longest, so as to end together."""
    root = Path(__file__).parent
    files: dict[str, float] = {}
    for name, seconds in SECONDS.items():
        files[name.partition("::")[0]] = files.get(name.partition("::")[0], 0.0) + seconds
    for item in items:
        if re.search(r" at 0x[0-9a-f]{6}", item.nodeid):
            raise pytest.UsageError(f"The workers cannot agree on a name that has an address in it: {item.nodeid}")
        file = item.path.relative_to(root).as_posix()
        if file in SECONDS or f"{file}::{getattr(item, 'originalname', item.name)}" in SECONDS:
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -files.get(item.path.relative_to(root).as_posix(), 0.0))


# What is imported and collected stays, torch and thousands of tests. To look for garbage among it takes a third of the
# time while it comes, and afterwards, each time anew, longer than many a test.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # tests import more
    gc.enable()


# A thread of torch's that waits for the others watches for milliseconds and takes a core from the other workers. Here
# torch computes in one thread, as the models are small; programs that tests start watch no longer than a container's.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def pytest_runtest_setup() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


# How long an example may take, or making one, is a property of the machine and of what else it does.
hypothesis.settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")

# AWS's descriptions of its services, megabytes of JSON, are read once and not for every session that a test begins.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)

# Terraform and its provider are Go programs, whose collection of garbage is a fifth of what they do by default.
os.environ.setdefault("GOGC", "400")


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """A shell that runs this in the background has interrupts ignored, which programs inherit; some tests send them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def local_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    """One local AWS for the whole run, whose endpoints run the fake container. Make your names unique."""
    folder = tmp_path_factory.mktemp("local-aws")
    with LocalAws(folder / "data", container=FAKE_CONTAINER) as aws:
        yield aws


@pytest.fixture
def aws_env(local_aws: LocalAws, monkeypatch: pytest.MonkeyPatch) -> LocalAws:
    """The environment of this process turned to the local AWS, for code that makes its own clients."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in local_aws.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it would remember an earlier test's credentials
    return local_aws


@pytest.fixture(scope="session")
def warm_python() -> WarmPython:
    """An interpreter that has imported torch, transformers and the tasks, for programs that never go to the Hub."""
    return warm_pythons.warm_libraries()


@pytest.fixture(scope="session")
def warm_libraries(warm_python: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program to run as ``python``, forked from what has imported the libraries."""
    return warm_python.executable(tmp_path_factory.mktemp("warm-libraries") / "python")


@pytest.fixture(scope="session")
def warm_everywhere(warm_python: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and ``sys.executable`` in what it runs: containers that are started there are forked too, and take half
    a second rather than five of a core. For tests of what is around the containers."""
    return warm_python.executable(tmp_path_factory.mktemp("warm-everywhere") / "python", everywhere=True)


@pytest.fixture(scope="module")
def warm_accuracy(warm_libraries: Path) -> Iterator[None]:
    """What measures the accuracy of a snapshot is forked from a warm python; guard and environment stay as they are."""

    def guarded(words: Sequence[str], work: Path, environment: Mapping[str, str]) -> process.Finished:
        assert words[0] == sys.executable
        return process.run_guarded([str(warm_libraries), *words[1:]], work, environment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "run_guarded", guarded)
        yield


@pytest.fixture
def forked(warm_everywhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test starts with this interpreter, the local AWS or containers, is forked from one that has imported
    the libraries. The process that it has started is then another than the one that does the work."""
    monkeypatch.setattr(sys, "executable", str(warm_everywhere))


@pytest.fixture(scope="module")
def forked_module(warm_everywhere: Path) -> Iterator[None]:
    """The same for all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm_everywhere))
        yield


@pytest.fixture(scope="session")
def warm_stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stock server's virtual environment with a Python that has imported the libraries. The server starts a Python
    for each model, which saves four seconds of a core each time."""
    try:
        python = stock.venv_python()
        stock.find_java()
    except stock.StockMissing as reason:
        pytest.skip(str(reason))
    venv = tmp_path_factory.mktemp("stock-venv")
    (venv / "bin").mkdir()
    (venv / "lib").symlink_to(python.parents[1] / "lib")
    libraries = ["torch", "transformers.pipelines", "sagemaker_huggingface_inference_toolkit.handler_service"]
    environment = {
        **container_environment(venv),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": "",
    }
    warm_pythons.shared("stock", python, libraries, environment).executable(venv / "bin" / "python")
    return venv


@pytest.fixture(scope="module")
def forked_stock(warm_stock: Path) -> Iterator[None]:
    """Stock servers that the tests of a module start fork their models' processes. tests/stock/test_stock_server.py has
    the server's own way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(stock.VENV_VARIABLE, str(warm_stock))
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own, to be really filled. Only root may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=200", "tmpfs", str(disk)], capture_output=True, text=True
        )
        problem = made.stderr.strip() if made.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        pytest.skip(f"a small file system cannot be mounted here: {problem}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.gpt2(tmp_path_factory.mktemp("models") / "gpt2")
