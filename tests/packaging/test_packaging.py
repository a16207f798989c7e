"""Packaging into dist: what has not changed stays, what has is built, and what fails is never recorded."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models

from mme.archive import read
from mme.catalog import reader
from mme.catalog.spec import ModelSpec, Source
from mme.errors import ArchiveError, VerifyError
from mme.packaging import records, unchanged, verify, workspace
from mme.packaging.job import PackagingJob
from mme.snapshot import retrieve

CONTAINER = (sys.executable, str(Path(__file__).with_name("verify_container.py")), "serve")


@pytest.fixture
def spec(bert: Path, tmp_path: Path) -> ModelSpec:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    handler = tiny_models.handler(tmp_path / "handler")
    return ModelSpec("bert", Source("folder", "model", folder), handler=handler, task="feature-extraction")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system's times be trusted at once: the files of a test are all new."""
    monkeypatch.setattr(unchanged, "RACY_NS", -(10**12))


def folder_of(spec: ModelSpec) -> Path:
    assert spec.source.folder
    return spec.source.folder


def test_built_once(spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    assert PackagingJob(spec, out).unchanged() is None
    first = PackagingJob(spec, out).package()
    assert first.fresh
    assert records.built(out, "bert") == first.archive
    assert PackagingJob(spec, out).unchanged() == first.archive
    again = PackagingJob(spec, out).package()
    assert not again.fresh
    assert again.archive == first.archive
    assert sorted(path.name for path in out.iterdir()) == [first.archive.target, "bert.json"]


def test_unchanged_weights_are_not_read_again(
    spec: ModelSpec, tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    PackagingJob(spec, tmp_path / "dist").package()
    monkeypatch.setattr(unchanged, "_sha256", lambda path: path.name if path.parent == spec.handler else 1 / 0)
    monkeypatch.setattr(retrieve, "snapshot", lambda *_: 1 / 0)
    key = json.loads((tmp_path / "dist/bert.json").read_text())["sources"]["source"]["digest"]
    assert unchanged.Sources(spec, records.recorded(tmp_path / "dist", "bert") or {}).identity == key


def test_files_that_were_just_written_are_read_again(spec: ModelSpec, tmp_path: Path) -> None:
    """Within the clock's grain, a file can change and keep its time."""
    PackagingJob(spec, tmp_path / "dist").package()
    record = records.recorded(tmp_path / "dist", "bert")
    assert record
    assert record["sources"]["source"]["settled"] is False


def edit_weights(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize("trust_times", [True, False])
def test_an_edit_that_hides_is_found(
    spec: ModelSpec, tmp_path: Path, trust_times: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same size, and the time put back: ctime tells, or the content does."""
    if trust_times:
        monkeypatch.setattr(unchanged, "RACY_NS", -(10**12))
    first = PackagingJob(spec, tmp_path / "dist").package()
    edit_weights(folder_of(spec))
    os.utime(folder_of(spec) / "model.safetensors", (1, 1))
    second = PackagingJob(spec, tmp_path / "dist").package()
    assert second.fresh
    assert second.archive.digest != first.archive.digest


def test_touching_without_changing_builds_nothing(spec: ModelSpec, tmp_path: Path, settled: None) -> None:
    PackagingJob(spec, tmp_path / "dist").package()
    for path in folder_of(spec).iterdir():
        path.touch()
    assert not PackagingJob(spec, tmp_path / "dist").package().fresh


@pytest.mark.parametrize("change", ["handler", "settings", "compression", "task", "file added", "file removed"])
def test_whatever_matters_builds_again(spec: ModelSpec, tmp_path: Path, settled: None, change: str) -> None:
    from dataclasses import replace

    PackagingJob(spec, tmp_path / "dist").package()
    compression = None
    if change == "handler":
        assert spec.handler
        (spec.handler / "more.py").write_text("x = 1\n")
    elif change == "settings":
        spec = replace(spec, settings={"pooling": "cls"})
    elif change == "task":
        spec = replace(spec, task=None)
    elif change == "compression":
        compression = "fast"
    elif change == "file added":
        (folder_of(spec) / "LICENSE").write_text("Free.")
    else:
        (folder_of(spec) / "tokenizer_config.json").unlink()
    assert PackagingJob(spec, tmp_path / "dist", compression=compression).unchanged() is None
    assert PackagingJob(spec, tmp_path / "dist", compression=compression).package().fresh


@pytest.mark.parametrize("damage", ["gone", "cut", "edited", "record"])
def test_a_damaged_archive_is_built_again(spec: ModelSpec, tmp_path: Path, settled: None, damage: str) -> None:
    first = PackagingJob(spec, tmp_path / "dist").package().archive
    assert first.path
    content = first.path.read_bytes()
    if damage == "gone":
        first.path.unlink()
    elif damage == "cut":
        first.path.write_bytes(content[:-100])
    elif damage == "edited":
        first.path.write_bytes(content[:5000] + b"x" + content[5001:])
    else:
        (tmp_path / "dist/bert.json").write_text("{")
    again = PackagingJob(spec, tmp_path / "dist").package()
    assert again.fresh
    assert first.path.read_bytes() == content


def test_force(spec: ModelSpec, tmp_path: Path, settled: None) -> None:
    PackagingJob(spec, tmp_path / "dist").package()
    assert PackagingJob(spec, tmp_path / "dist").package(force=True).fresh


def test_an_archive_that_fails_is_not_noted(spec: ModelSpec, tmp_path: Path) -> None:
    assert spec.handler
    (spec.handler / "inference.py").write_text("def model_fn(d): raise ValueError('broken')\n")
    with verify.Verifier(CONTAINER) as verifier, pytest.raises(VerifyError, match="broken"):
        PackagingJob(spec, tmp_path / "dist").package(verifier)
    assert records.built(tmp_path / "dist", "bert") is None


def test_an_archive_built_without_verifying_is_verified_when_asked(spec: ModelSpec, tmp_path: Path) -> None:
    PackagingJob(spec, tmp_path / "dist").package()
    with verify.Verifier(CONTAINER) as verifier:
        later = PackagingJob(spec, tmp_path / "dist").package(verifier)
        assert not later.fresh
        assert later.verified is not None
        assert PackagingJob(spec, tmp_path / "dist").package(verifier).verified is None


def test_a_source_that_changes_while_it_is_packed(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = retrieve.snapshot

    def slow(*arguments: object) -> retrieve.Snapshot:
        taken = real(*arguments)  # type: ignore[arg-type]
        edit_weights(folder_of(spec))
        return taken

    monkeypatch.setattr(retrieve, "snapshot", slow)
    with pytest.raises(ArchiveError, match="changes while it is read"):
        PackagingJob(spec, tmp_path / "dist").package()
    assert records.built(tmp_path / "dist", "bert") is None


def test_check(spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    with pytest.raises(ArchiveError, match="no archive of bert"):
        PackagingJob(spec, out).check()
    PackagingJob(spec, out).package()
    assert PackagingJob(spec, out).check().same_bytes
    assert not PackagingJob(spec, out, compression="fast").check().same_bytes
    (folder_of(spec) / "LICENSE").write_text("Free.")
    with pytest.raises(ArchiveError, match="Different: LICENSE") as caught:
        PackagingJob(spec, out).check()
    assert "invoke package" in (caught.value.hint or "")
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_no_workspace_is_left(spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    with workspace.workspace(out) as mine:
        (out / ".work-abandoned").mkdir()
        (out / ".work-abandoned" / "lock").touch()
        with workspace.workspace(out):
            assert mine.exists(), "somebody is at work there"
        assert not (out / ".work-abandoned").exists()
    assert list(out.iterdir()) == []


def test_a_thousand_unchanged_models_import_no_torch(spec: ModelSpec, tmp_path: Path, settled: None) -> None:
    """The record alone decides: a process that only checks never imports the libraries."""
    PackagingJob(spec, tmp_path / "dist").package()
    (tmp_path / "models.toml").write_text(
        '[models.bert]\nsource = "folder:model"\nhandler = "./handler"\ntask = "feature-extraction"\n'
    )
    code = (
        "import sys; from pathlib import Path; from mme.catalog import reader\n"
        "from mme.packaging import unchanged\n"
        "from mme.packaging.job import PackagingJob\n"
        "unchanged.RACY_NS = -10**12\n"
        "(spec,) = reader.load(Path('models.toml')).models\n"
        "assert PackagingJob(spec, Path('dist')).unchanged(), 'not recognised'\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- the tasks -----------------------------------------------------------------------------------------------

TASKS = "import mme.tasks\nfrom invoke import Collection\n\nns = Collection.from_module(mme.tasks)\n"


@pytest.fixture
def project(spec: ModelSpec, tmp_path: Path) -> Path:
    """A folder as a user has it: a catalogue, a handler, a model, and the tasks."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "models.toml").write_text(
        "".join(
            f'[models."{name}"]\nsource = "folder:model"\nhandler = "./handler"\ntask = "feature-extraction"\n'
            for name in ("bert", "team-a/bert")
        )
    )
    return tmp_path


def invoke(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "invoke", *words]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_package_and_inspect_from_the_command_line(project: Path) -> None:
    done = invoke(project, "package", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "progress is for terminals alone"
    assert re.search(r"^team-a/bert +team-a/bert-[0-9a-f]{12}\.tar\.gz +[\d.]+ kB +built", done.stdout, re.M)
    done = invoke(project, "package", "--no-verify", "--model", "bert", "--model", "team-a/bert", "--json")
    models = json.loads(done.stdout)["models"]
    assert [(model["name"], model["status"]) for model in models] == [
        ("bert", "unchanged"),
        ("team-a/bert", "unchanged"),
    ]
    assert models[0]["digest"] == models[1]["digest"], "the name is not part of the content"
    path = models[1]["path"]
    assert invoke(project, "package", "--check", "--model", "bert").stdout.split()[-2] == "bytes"
    shown = invoke(project, "inspect", "--archive", path, "--files")
    assert shown.returncode == 0
    assert "folder:model" in shown.stdout
    assert "code/inference.py" in shown.stdout
    assert json.loads(invoke(project, "inspect", "--archive", path, "--json").stdout)["name"] == "team-a/bert"
    assert not (project / "dist" / ".work").exists()


def test_dry_run_writes_nothing(project: Path) -> None:
    done = invoke(project, "package", "--dry-run", "--model", "bert")
    assert "would build" in done.stdout, done.stderr
    assert not (project / "dist").exists()


def test_one_model_that_fails_does_not_stop_the_others(project: Path) -> None:
    (project / "model" / "config.json").rename(project / "model" / "config")
    text = (project / "models.toml").read_text()
    (project / "models.toml").write_text(
        text + '[models.other]\nsource = "package:nothing_here"\nhandler = "./handler"\n'
    )
    done = invoke(project, "package", "--no-verify", "--json")
    assert done.returncode == 4
    models = json.loads(done.stdout)["models"]
    assert [model["status"] for model in models] == ["failed"] * 3
    assert "no config.json" in models[0]["error"]
    assert "nothing_here" in models[2]["error"]
    assert "Traceback" not in done.stderr
    assert "3 of 3 models failed" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["package", "--catalog", "other.toml"], 3, "There is no catalogue at other.toml"),
        (["package", "--model", "brt"], 3, "Did you mean 'bert'?"),
        (["package", "--compression", "best"], 2, "no compression 'best'"),
        (["inspect"], 2, "Which archive?"),
        (["inspect", "--archive", "nowhere.tar.gz"], 6, "nowhere.tar.gz"),
    ],
)
def test_mistakes_end_in_words_and_an_exit_code(project: Path, words: list[str], code: int, said: str) -> None:
    done = invoke(project, *words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_killed_at_any_point_the_next_run_is_right(project: Path) -> None:
    """kill -9 after ever longer times; whatever is there under a final name afterwards is whole."""
    for delay in (1.5, 3.0, 4.5):
        child = subprocess.Popen(
            [sys.executable, "-m", "invoke", "package", "--no-verify", "--force"],
            cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(delay)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for path in (project / "dist").rglob("*.tar.gz"):
            read.check(path)
        for spec in reader.load(project / "models.toml").select():
            made = records.built(project / "dist", spec.name)
            assert made is None or read.check(project / "dist" / made.target) == made
    done = invoke(project, "package", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert not list((project / "dist").rglob(".*"))
