"""One container of ours and one stock server for the whole suite, and each row's model, packaged once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rows import Row
from served import Made, Server

from mme.archive import untar
from mme.catalog import reader
from mme.packaging.job import PackagingJob
from mme.packaging.verify import Verifier
from mme.runner.process import Container
from mme.runner.stock import VENV_VARIABLE


@pytest.fixture(scope="session")
def verifier() -> Iterator[Verifier]:
    with Verifier() as running:
        yield running


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


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _running("ours", tmp_path_factory)


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory, warm_stock: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VENV_VARIABLE, str(warm_stock))
        yield from _running("stock", tmp_path_factory)


def _running(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log: list[str] = []
    server = Server(Container(kind, tmp_path_factory.mktemp(kind), {}, log.append), log)
    try:
        server.container.wait_healthy(180)
        yield server
    finally:
        server.container.stop()
