"""One container of ours and one stock server for the whole suite, and each row's model, packaged once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rows import Row
from warm_python import WarmPython

from mme.archive import untar
from mme.catalog import reader
from mme.packaging.job import PackagingJob
from mme.packaging.verify import Verifier
from mme.runner.environment import container_environment
from mme.runner.process import Container, Reply
from mme.runner.stock import VENV_VARIABLE, StockMissing, find_java, venv_python


@pytest.fixture(scope="session")
def verifier() -> Iterator[Verifier]:
    with Verifier() as running:
        yield running


@dataclass(frozen=True)
class Made:
    """A row's model: its source, the archive as the platform unpacks it, what it was made of, and the right answers."""

    source: Path
    folder: Path
    manifest: Any
    answers: list[Any]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, verifier: Verifier) -> Callable[[Row], Made]:
    """Packages a row's model from a table of a catalogue, as ``invoke package`` does: built, verified, noted. Once."""
    known: dict[str, Made] = {}

    def make(row: Row) -> Made:
        if row.id not in known:
            known[row.id] = _packaged(row, tmp_path_factory.mktemp(row.id), verifier)
        return known[row.id]

    return make


def _packaged(row: Row, work: Path, verifier: Verifier) -> Made:
    source = work / "source"
    row.build(source)
    answers = json.loads(json.dumps(row.reference(source, row.requests)))
    table = {"source": "folder:source", "task": row.task, **row.table}
    if row.handler:
        table["handler"] = row.handler
    lines = [f"[models.{row.id}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    if row.settings:
        lines += [
            f"[models.{row.id}.settings]",
            *(f"{key} = {json.dumps(value)}" for key, value in row.settings.items()),
        ]
    (work / "models.toml").write_text("\n".join(lines), encoding="utf-8")
    (spec,) = reader.load(work / "models.toml").models
    packaged = PackagingJob(spec, work / "dist").package(verifier)
    assert packaged.verified is not None, "it was verified"
    assert packaged.verified.doubt is None, packaged.verified.doubt
    assert packaged.archive.path is not None
    untar.extract(packaged.archive.path, work / "model")
    packaged.archive.path.unlink()
    return Made(source, work / "model", packaged.archive.manifest, answers)


@dataclass(frozen=True)
class Server:
    """A running container, which is asked by SageMaker's contract."""

    container: Container
    log: list[str]

    def load(self, name: str, folder: Path) -> None:
        body = json.dumps({"model_name": name, "url": str(folder)}).encode()
        reply = self._call("POST", "/models", body)
        assert reply.status == 200, (reply.body.decode(), "\n".join(self.log[-30:]))

    def unload(self, name: str) -> None:
        assert self._call("DELETE", f"/models/{name}", None).status == 200

    def ask(self, name: str, request: Any) -> Any:
        reply = self._call("POST", f"/models/{name}/invoke", json.dumps(request).encode())
        assert reply.status == 200, (reply.body.decode(), "\n".join(self.log[-30:]))
        return json.loads(reply.body)

    def logged(self, since: int, end: str) -> list[str]:
        """The lines of the log from number ``since`` to one that holds ``end``, which may still be on its way."""
        deadline = time.monotonic() + 60
        while not any(end in line for line in self.log[since:]):
            assert time.monotonic() < deadline, (end, "\n".join(self.log[since:]))
            time.sleep(0.01)
        return self.log[since:]

    def _call(self, method: str, path: str, body: bytes | None) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return self.container.request(method, path, body=body, headers=headers, timeout=180)


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running("ours", tmp_path_factory)


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The stock server starts a Python for each model. Here it is forked from one that has imported the libraries,
    which saves four seconds for each row; tests/stock has the server's own start."""
    try:
        python = venv_python()
        find_java()
    except StockMissing as reason:
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
    }
    with (
        WarmPython(python, libraries, {**environment, "PYTHONPATH": ""}) as warm,
        pytest.MonkeyPatch.context() as patch,
    ):
        warm.executable(venv / "bin" / "python")
        patch.setenv(VENV_VARIABLE, str(venv))
        yield from _running("stock", tmp_path_factory)


def _running(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log: list[str] = []
    server = Server(Container(kind, tmp_path_factory.mktemp(kind), {}, log.append), log)
    try:
        server.container.wait_healthy(180)
        yield server
    finally:
        server.container.stop()
