"""`make demo` as a newcomer runs it: the whole way, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import boto3
import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def demo(
    folder: Path, *words: str, home: Path, python: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(
        [python, "demo/run.py", "--folder", str(folder), *words],
        cwd=REPOSITORY,
        env={**env, "HOME": str(home), "TMPDIR": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def working_tree() -> set[str]:
    listed = subprocess.run(
        ["git", "status", "--short", "--ignored", "--untracked-files=all"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    caches = ("__pycache__/", ".pytest_cache/", ".mypy_cache/", ".ruff_cache/", ".hypothesis/", ".venv")
    return {line for line in listed.stdout.splitlines() if not any(cache in line for cache in caches)}


def ours(folder: Path) -> list[psutil.Process]:
    """Every process that was started with the demo's folder on its command line or as its working folder."""
    processes = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()) or process.cwd().startswith(str(folder)):
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return processes


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def test_from_start_to_end_and_nothing_left(tmp_path: Path, home: Path) -> None:
    before = working_tree()
    folder = tmp_path / "demo"
    done = demo(folder, home=home)
    assert done.returncode == 0, done.stdout + done.stderr

    table = done.stdout.split("what came back\n", 1)[1]
    rows = re.findall(r"^(bert|gpt2) +(\S+\.tar\.gz) +(\d+) +(\d+)  (.+)$", table, re.MULTILINE)
    assert [row[0] for row in rows] == ["bert", "gpt2", "bert"]
    assert len({row[1] for row in rows}) == 3
    assert rows[0][4].startswith("384 numbers: ")
    assert rows[2][4].startswith("384 numbers: ")
    assert rows[0][4] != rows[2][4], "the second version pools differently, so it must answer differently"
    assert rows[1][4].startswith('"She was')
    assert "Apply complete! Resources: " in done.stdout
    assert "Destroy complete! Resources: " in done.stdout

    ending = done.stdout[done.stdout.index("What to look at next:") :].strip()
    assert ending.replace("\n", "\n    ") in (REPOSITORY / "README.md").read_text(), "the README shows another ending"
    for place in ("notebooks/multi_model_endpoint.ipynb", "models.toml", "examples/minimal", "docs/packaging.md"):
        assert place in ending
        assert (REPOSITORY / place).exists()

    assert ours(folder) == []
    assert working_tree() == before
    assert list(home.iterdir()) == [], "something was written outside the demo's own folder"
    assert not (folder / "terraform" / "examples" / "minimal" / "terraform.tfstate").read_text().count('"type"')


def test_keep_leaves_an_aws_that_any_client_can_use_and_a_second_run_says_so(
    tmp_path: Path, home: Path, warm_everywhere: Path
) -> None:
    folder = tmp_path / "demo"
    done = demo(folder, "--keep", home=home, python=warm_everywhere)
    assert done.returncode == 0, done.stdout + done.stderr
    exports = re.findall(r"^export (.+)$", done.stdout, re.MULTILINE)
    assert len(exports) == 3
    env = dict(word.split("=", 1) for line in exports for word in line.split())
    pid = int(re.search(r"kill (\d+)", done.stdout)[1])  # type: ignore[index]
    try:
        session = boto3.Session(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], region_name=env["AWS_REGION"])
        endpoints = session.client("sagemaker", endpoint_url=env["AWS_ENDPOINT_URL"]).list_endpoints()["Endpoints"]
        assert [endpoint["EndpointStatus"] for endpoint in endpoints] == ["InService"]

        page = f"{env['AWS_ENDPOINT_URL']}/_mme/"
        assert f"  {page}  " in done.stdout
        with urllib.request.urlopen(page) as answer:
            assert b"page.js" in answer.read()
        (predict,) = re.findall(r"^  invoke (predict .+)$", done.stdout, re.MULTILINE)
        (root,) = re.findall(r" && export MME_TERRAFORM=(.+)$", done.stdout, re.MULTILINE)
        asked = subprocess.run(
            [sys.executable, "-m", "mme", *predict.split()],
            cwd=REPOSITORY,
            env={**os.environ, **env, "MME_TERRAFORM": root},
            capture_output=True,
            text=True,
        )
        assert (asked.returncode, '"embeddings"' in asked.stdout) == (0, True), asked.stderr

        again = demo(folder, home=home)
        assert again.returncode == 1
        assert f"kill {pid}" in again.stderr
        assert "Traceback" not in again.stderr
    finally:
        processes = ours(folder)
        os.kill(pid, signal.SIGTERM)
        _, left = psutil.wait_procs(processes, timeout=60)
    assert left == []
