"""Our archives on the real multi-model-server with the Hugging Face toolkit, and a stranger's archives on ours.

Needs Java and `make stock`; each test says so where it is skipped.
"""

import ast
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from stock_tools import Server, close, skip_without_stock

from mme.archive import untar
from mme.runner import stock
from mme.runner.errors import ContainerError
from mme.runner.process import Container

pytestmark = pytest.mark.slow
Serve = Callable[[str], Server]

# For each model: body, content type, Accept.
ANSWERED = [
    ("bert", b'"The house is quiet."', "application/json", "application/json"),
    ("bert", b'["The house is quiet.", "Rain."]', "application/json; charset=utf-8", "*/*"),
    ("bert", "Über den Dächern".encode(), "text/plain", "application/json"),
    (
        "bert",
        b'{"inputs": ["a b c d", "x"], "parameters": {"pooling": "cls", "normalize": true, "max_length": 4}}',
        "application/json",
        "application/json",
    ),
    ("bert", b'["The house is quiet.", "Rain."]', "application/json", "application/x-npy"),
    ("gpt2", b'"It was"', "application/json", "application/json"),
    ("gpt2", b"It was", "text/plain", "application/json"),
    (
        "gpt2",
        b'{"inputs": ["She", "It was"], "parameters": {"seed": 5, "max_new_tokens": 30, "top_p": 0.9}}',
        "application/json",
        "application/json",
    ),
    (
        "gpt2",
        b'{"inputs": "He", "parameters": {"num_beams": 2, "stop": [","], "return_full_text": true}}',
        "application/json",
        "application/json",
    ),
]
REFUSED = [
    ("bert", b"{", "application/json", "application/json", "not valid JSON"),
    ("bert", b'{"inputs": 3}', "application/json", "application/json", "must be a text or a list of texts"),
    ("bert", b"a,b", "text/csv", "application/json", "'text/csv' is not supported"),
    ("bert", b'"a"', "application/json", "text/html", "cannot be answered"),
    ("gpt2", b'{"inputs": "a", "parameters": {"top_q": 1}}', "application/json", "*/*", "Unknown parameter 'top_q'"),
    ("gpt2", b'{"inputs": "a", "parameters": {"max_new_tokens": 9999}}', "application/json", "*/*", "from 1 to 512"),
    ("gpt2", json.dumps("long " * 600).encode(), "application/json", "*/*", "the model's context is 256"),
]


@pytest.fixture
def loaded(serve: Serve, models: dict[str, Path]) -> Callable[[str], Server]:
    """A container of a kind with our two models in it."""

    def load(kind: str) -> Server:
        server = serve(kind)
        for name, folder in models.items():
            assert server.load(f"own-{name}", folder).status in (200, 409)  # 409: loaded by an earlier test
        return server

    return load


@pytest.mark.parametrize(("model", "body", "content_type", "accept"), ANSWERED)
def test_the_stock_server_answers_as_our_container_does(
    loaded: Callable[[str], Server], model: str, body: bytes, content_type: str, accept: str
) -> None:
    theirs = loaded("stock").invoke(f"own-{model}", body, content_type, accept)
    ours = loaded("ours").invoke(f"own-{model}", body, content_type, accept)
    assert (theirs.status, ours.status) == (200, 200), (theirs.body, ours.body)
    assert theirs.headers["content-type"] == ours.headers["content-type"]
    if accept == "application/x-npy":
        arrays = [np.load(io.BytesIO(reply.body), allow_pickle=False) for reply in (theirs, ours)]
        assert arrays[0].shape == (2, 384)
        assert np.abs(arrays[0] - arrays[1]).max() < 1e-5
    else:
        assert close(json.loads(ours.body), json.loads(theirs.body))


@pytest.mark.parametrize(("model", "body", "content_type", "accept", "reason"), REFUSED)
def test_a_bad_request_is_a_400_with_the_same_reason_on_both(
    loaded: Callable[[str], Server], model: str, body: bytes, content_type: str, accept: str, reason: str
) -> None:
    theirs = loaded("stock").invoke(f"own-{model}", body, content_type, accept)
    ours = loaded("ours").invoke(f"own-{model}", body, content_type, accept)
    assert (theirs.status, ours.status) == (400, 400)
    assert reason in json.loads(theirs.body)["message"]
    assert json.loads(theirs.body)["message"] == json.loads(ours.body)["message"]


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_a_strangers_archives_load_and_answer(
    serve: Serve, notebook_archives: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """A model_fn that returns a dict, an output_fn that returns a Python str, the weights in a folder of their own."""
    server = serve(kind)
    for name, path in notebook_archives.items():
        untar.extract(path, tmp_path / name)
        assert server.load(f"stranger-{name}", tmp_path / name).status == 200
    bert = server.invoke("stranger-bert", b'{"inputs": "The house is quiet."}', "application/json")
    assert bert.status == 200, bert.body
    assert bert.body.startswith(b"tensor([["), "what its output_fn returned, as it was"
    gpt2 = server.invoke(
        "stranger-gpt2", b'{"inputs": "It was", "parameters": {"max_new_tokens": 12}}', "application/json"
    )
    assert gpt2.status == 200, gpt2.body
    answer = ast.literal_eval(gpt2.body.decode())
    assert answer[0]["generated_text"].startswith("It was")
    assert len(answer[0]["generated_text"]) > len("It was")
    refused = server.invoke("stranger-bert", b"<xml/>", "application/xml")
    assert refused.status in (400, 500)
    assert "Requested unsupported ContentType" in json.loads(refused.body)["message"]


def test_stopping_leaves_no_process(models: dict[str, Path], tmp_path: Path) -> None:
    """multi-model-server leaves its Python workers behind when it is killed; the guard around it does not."""
    skip_without_stock()
    server = Server(Container("stock", tmp_path, {}, lambda _: None), [])
    try:
        server.container.wait_healthy(120)
        assert server.load("gpt2", models["gpt2"]).status == 200
        family = [process for process in psutil.process_iter() if str(tmp_path) in _command_line(process)]
        assert any("model_service_worker.py" in _command_line(process) for process in family)
    finally:
        server.container.stop()
    psutil.wait_procs(family, timeout=30)
    assert [process for process in family if process.is_running()] == []


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stock.VENV_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ContainerError, match=r"not installed: there is no .*nowhere/bin/python\. Run `make stock`"):
        stock.command(8080, tmp_path)
    python = tmp_path / "nowhere" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(ContainerError, match="is not a virtual environment"):
        stock.command(8080, tmp_path)
    packages = tmp_path / "nowhere" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    with pytest.raises(ContainerError, match=r"has no multi-model-server in it\. Run `make stock`"):
        stock.command(8080, tmp_path)
    (packages / "mms" / "frontend").mkdir(parents=True)
    (packages / "mms" / "frontend" / "model-server.jar").touch()
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ContainerError, match="There is no java on PATH"):
        stock.command(8080, tmp_path)
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'No Java runtime present.' >&2\nexit 1\n")
    java.chmod(0o755)
    with pytest.raises(ContainerError, match=r"does not work: No Java runtime present\."):
        stock.command(8080, tmp_path)


def test_a_deep_folder_does_not_lengthen_the_sockets_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 120)
    scratch = stock._scratch(deep)
    assert len(str(scratch)) < 80
    assert scratch.is_dir()
    scratch.rmdir()
