"""Verification: the handler is run on the finished archive, and what fails there is said in the handler's words."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models

from mme.archive import write
from mme.archive.contents import Archive
from mme.catalog.spec import ModelSpec, Source
from mme.errors import VerifyError
from mme.packaging import verify
from mme.packaging.job import PackagingJob

CONTAINER = (sys.executable, str(Path(__file__).with_name("verify_container.py")))


@pytest.fixture(scope="module")
def verifier() -> Iterator[verify.Verifier]:
    with verify.Verifier((*CONTAINER, "serve")) as running:
        yield running


def made(tmp_path: Path, code: str = tiny_models.HANDLER, sample: str | None = '{"inputs": "the house"}') -> Archive:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    spec = ModelSpec("bert", Source("folder", "x"), handler=tiny_models.handler(tmp_path / "handler", code, sample))
    return write.build(spec, snapshot, tmp_path / "dist")


def test_an_archive_that_answers(verifier: verify.Verifier, tmp_path: Path) -> None:
    seen = verifier.verify(made(tmp_path))
    assert seen.load_ms > 0
    assert seen.invoke_ms is not None
    assert seen.answer is not None
    assert seen.answer.startswith('{"got": {"inputs": "the house"}, "files": ["code", "config.json"')
    assert seen.doubt is None


def test_the_same_archive_twice(verifier: verify.Verifier, tmp_path: Path) -> None:
    both = made(tmp_path)
    verifier.verify(both)
    verifier.verify(both)


def test_a_handler_that_cannot_load(verifier: verify.Verifier, tmp_path: Path) -> None:
    broken = tiny_models.HANDLER.replace(
        'return {"files"', "raise OSError('weights are missing')\n    return {\"files\""
    )
    with pytest.raises(VerifyError, match=r"cannot be loaded \(500\): weights are missing") as caught:
        verifier.verify(made(tmp_path, broken))
    assert "handler: OSError" in caught.value.message, "the container's log is shown"


def test_a_handler_that_cannot_answer(verifier: verify.Verifier, tmp_path: Path) -> None:
    broken = tiny_models.HANDLER.replace('return {"got"', "raise KeyError('text')\n    return {\"got\"")
    with pytest.raises(VerifyError, match=r"answers its sample\.json with 500: 'text'"):
        verifier.verify(made(tmp_path, broken))


def test_after_a_failure_the_next_is_verified(verifier: verify.Verifier, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(VerifyError):
        verifier.verify(made(tmp_path / "a", "def model_fn(d): raise ValueError('no')\n"))
    verifier.verify(made(tmp_path / "b"))


@pytest.mark.parametrize("answer", ["str(prediction)", "'{\"score\": NaN}'", "''"])
def test_answers_that_are_no_json_are_doubted(verifier: verify.Verifier, tmp_path: Path, answer: str) -> None:
    seen = verifier.verify(made(tmp_path, tiny_models.HANDLER.replace("json.dumps(prediction)", answer)))
    assert seen.doubt is not None
    assert "output_fn" in seen.doubt


def test_what_is_installed_here_and_in_no_image_is_said(verifier: verify.Verifier, tmp_path: Path) -> None:
    """It answers here, and would fail on the endpoint: the container that verifies has this machine's packages."""
    code = "import hypothesis\nimport json, numpy, torch\ntry:\n    import pytest\nexcept ImportError:\n    pass\n"
    seen = verifier.verify(made(tmp_path, code + tiny_models.HANDLER))
    assert seen.answer is not None
    assert "hypothesis (inference.py)" in (seen.doubt or "")
    assert "requirements.txt" in (seen.doubt or "")
    assert "pytest" not in (seen.doubt or "")


def test_without_a_sample_it_is_only_loaded(verifier: verify.Verifier, tmp_path: Path) -> None:
    seen = verifier.verify(made(tmp_path, sample=None))
    assert seen.invoke_ms is None
    assert "only loaded" in (seen.doubt or "")


def test_the_container_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "NPM_TOKEN", "DATABASE_URL"):
        monkeypatch.setenv(name, "a-secret")
    code = "import os\ndef model_fn(d): raise ValueError(sorted(os.environ.items()))\n"
    with verify.Verifier((*CONTAINER, "serve")) as own, pytest.raises(VerifyError) as caught:
        own.verify(made(tmp_path, code))
    assert "a-secret" not in caught.value.message
    assert "'AWS_REGION', 'us-east-1'" in caught.value.message


def test_the_container_has_a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials and tokens lie in the home folder of whoever packages."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_secret_access_key = a-secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    code = "from pathlib import Path\ndef model_fn(d): raise ValueError(Path('~/.aws').expanduser().exists())\n"
    with verify.Verifier((*CONTAINER, "serve")) as own, pytest.raises(VerifyError, match=r"\(500\): False"):
        own.verify(made(tmp_path, code))


def test_a_handler_may_make_a_client_when_it_is_imported(verifier: verify.Verifier, tmp_path: Path) -> None:
    """As public handlers do. SageMaker sets the region; without one, boto3 refuses to make a client."""
    verifier.verify(made(tmp_path, "import boto3\nS3 = boto3.client('s3')\n" + tiny_models.HANDLER))


def test_a_container_that_ends_at_once(tmp_path: Path) -> None:
    with verify.Verifier((*CONTAINER, "dies")) as own, pytest.raises(VerifyError, match="no libraries here") as caught:
        own.verify(made(tmp_path))
    assert "--no-verify" in (caught.value.hint or "")


def test_a_container_that_is_not_there(tmp_path: Path) -> None:
    with verify.Verifier(("/nowhere/container",)) as own, pytest.raises(VerifyError, match="/nowhere/container"):
        own.verify(made(tmp_path))


def test_a_container_that_never_gets_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "START_S", 0.5)
    with verify.Verifier((*CONTAINER, "silent")) as own, pytest.raises(VerifyError, match="not ready within"):
        own.verify(made(tmp_path))


def test_nothing_is_left_of_a_container_that_will_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "STOP_S", 0.2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with verify.Verifier((*CONTAINER, "stubborn", str(tmp_path / "pids"))) as own:
        own.verify(made(tmp_path))
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    for pid in pids:
        while alive(pid):
            time.sleep(0.01)
    assert list((tmp_path / "temporary").iterdir()) == []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # a zombie is dead, and nobody has asked after it yet
    return not (status.is_file() and ") Z " in status.read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's own")
def test_nothing_is_left_when_the_verifier_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from mme.packaging.verify import Verifier\n"
        "container, _ = Verifier(sys.argv[1:]).start()\n"
        "container.wait_healthy(60); print('ready', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, *CONTAINER, "serve", str(tmp_path / "pid")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    container = int((tmp_path / "pid").read_text())
    assert alive(container)
    child.kill()
    child.wait()
    while alive(container):
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_with_the_real_container_and_handlers(tmp_path: Path) -> None:
    """Both handlers that ship with mme, and a model without a handler, in one container."""
    from mme.catalog import reader

    text = '[models.bert]\nsource = "folder:b"\nhandler = "embedding"\n'
    text += '[models.gpt2]\nsource = "folder:g"\nhandler = "generation"\n'
    text += '[models.plain]\nsource = "folder:g"\ntask = "text-generation"\n'
    (tmp_path / "models.toml").write_text(text)
    tiny_models.bert(tmp_path / "b")
    tiny_models.gpt2(tmp_path / "g")
    with verify.Verifier() as real:
        seen = [
            PackagingJob(spec, tmp_path / "dist").package(verifier=real).verified
            for spec in reader.load(tmp_path / "models.toml").select()
        ]
    for each in seen:
        assert each is not None
        assert each.doubt is None
        assert each.content_type == "application/json"
