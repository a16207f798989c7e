"""mme as another repository installs it: a wheel, in a virtual environment of its own, in a folder of its own.

The environments hold exactly what ``pip install mme`` and ``pip install 'mme[package]'`` would bring, as links to this
environment's copies: so nothing is downloaded, and what is not asked for is not there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import endpoints_here
import pytest
from packaging.requirements import Requirement

from mme import __version__
from mme.archive import write
from mme.catalog.spec import ModelSpec, Source
from mme.local import LocalAws
from mme.packaging import records

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "numpy", "safetensors", "tokenizers", "huggingface_hub", "moto", "onnxruntime")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    if importlib.util.find_spec("hatchling"):  # else pip fetches it
        command.append("--no-build-isolation")
    done = subprocess.run([*command, "--wheel-dir", str(folder), str(REPOSITORY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


def needed(name: str, extras: frozenset[str]) -> set[str]:
    """The distributions that pip would install for ``name[extras]`` besides itself, by their own declarations."""
    packages: dict[str, frozenset[str]] = {}
    todo = [(name, extras)]
    while todo:
        current, wanted = todo.pop()
        key = re.sub(r"[-_.]+", "-", current).lower()
        if key in packages and wanted <= packages[key]:
            continue
        packages[key] = packages.get(key, frozenset()) | wanted
        for line in importlib.metadata.requires(current) or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *packages[key])):
                todo.append((requirement.name, frozenset(requirement.extras)))
    return set(packages) - {name}


def environment(folder: Path, wheel: Path, *extras: str) -> Path:
    """A fresh virtual environment with the wheel and what it needs; the folder of its programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    installed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")),
            *("install", "--quiet", "--no-deps", "--no-index", str(wheel)),
        ],
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    here = Path(sysconfig.get_paths()["purelib"])
    (there,) = folder.glob("lib/python*/site-packages")
    for name in needed("mme", frozenset(extras)):
        files = importlib.metadata.files(name) or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__", "bin")}:
            if (here / top).exists() and not (there / top).exists():
                (there / top).symlink_to(here / top)
    return folder / "bin"


def run(program: Path, *words: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MME_", "PYTHON"))}
    return subprocess.run([str(program), *words], cwd=cwd, env={**clean, **(env or {})}, capture_output=True, text=True)


def test_the_wheel_has_what_an_installation_needs(wheel: Path) -> None:
    assert wheel.name == f"mme-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(f"mme-{__version__}.dist-info/entry_points.txt").decode()
        metadata = archive.read(f"mme-{__version__}.dist-info/METADATA").decode()
    assert "mme = mme.__main__:main" in entry_points
    assert f"\nVersion: {__version__}\n" in metadata
    handlers = {path.parent.name for path in (REPOSITORY / "model_code").glob("*/inference.py")}
    assert {name for name in handlers if f"mme/model_code/{name}/inference.py" in names} == handlers
    assert "mme/catalog/models.schema.json" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_publishing_and_predicting_alone_need_neither_torch_nor_transformers(
    wheel: Path, tmp_path: Path, local_aws: LocalAws
) -> None:
    mme = environment(tmp_path / "venv", wheel) / "mme"
    for name in HEAVY:
        assert run(mme.with_name("python"), "-c", f"import {name}", cwd=tmp_path).returncode != 0, f"{name} is there"
    other = tmp_path / "other repository"
    (other / "source").mkdir(parents=True)
    (other / "source" / "config.json").write_text("{}")
    (other / "models.toml").write_text(
        '[models.bert]\nsource = "folder:source"\nhandler = "embedding"\n'
        f'[models.gpt2]\nsource = "folder:{REPOSITORY}/demo/tiny-gpt2"\nhandler = "generation"\n'
    )

    assert run(mme, "--version", cwd=other).stdout == f"mme {__version__}\n"
    assert run(mme.with_name("python"), "-m", "mme", "--version", cwd=other).stdout == f"mme {__version__}\n"
    listed = run(mme, "models", "--json", cwd=other)
    assert json.loads(listed.stdout)["models"][0]["handler"] == "embedding", listed.stderr
    refused = run(mme, "package", "--model", "gpt2", cwd=other)
    assert refused.returncode == 4
    assert "pip install 'mme[package]'" in refused.stderr
    assert "bench" not in run(mme, "--help", cwd=other).stdout

    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.json").write_text("{}")
    made = write.build(ModelSpec("bert", Source("folder", "source")), snapshot, other / "dist")
    records.note(other / "dist", made)
    bucket = f"installed-{os.urandom(4).hex()}"
    env = {**local_aws.env, "MME_BUCKET": bucket}
    endpoints_here.create(local_aws, bucket)
    uploaded = run(mme, "upload", "--model", "bert", "--json", cwd=other, env=env)
    assert json.loads(uploaded.stdout)["models"][0]["status"] == "uploaded", uploaded.stderr
    assert run(mme, "promote", "--model", "bert@staging", cwd=other, env=env).returncode == 0
    answered = run(
        mme,
        *("predict", "--model", "bert@staging", "--text", "hello", "--endpoint", bucket),
        cwd=other,
        env=env,
    )
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["target"] == made.target


def test_an_installation_with_package_builds_and_verifies_archives(wheel: Path, tmp_path: Path) -> None:
    mme = environment(tmp_path / "venv", wheel, "package") / "mme"
    other = tmp_path / "other"
    other.mkdir()
    source = REPOSITORY / "demo" / "tiny-gpt2"
    (other / "models.toml").write_text(f'[models.gpt2]\nsource = "folder:{source}"\nhandler = "generation"\n')
    done = run(mme, "package", "--json", cwd=other)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    assert model["status"] == "built"
    assert model["verified"]["answer"]
    assert (other / model["path"]).is_file()
    assert "unchanged" in run(mme, "package", "--dry-run", cwd=other).stdout


def test_the_documented_versions_are_this_one() -> None:
    """A release is one number: the package's, the tag's in the documents, the newest heading of the changelog."""
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    named = {
        version for page in pages for version in re.findall(r"(?:\?ref=|\.git@|…@)v(\d+\.\d+\.\d+)", page.read_text())
    }
    assert named == {__version__}
    headings = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == __version__
