"""The image's recipe, and what the container imports. test_image_runs.py tests the built image."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "mme" / "container"


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: (word, rest), continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


def test_the_labels_that_sagemaker_asks_for() -> None:
    labels = " ".join(rest for word, rest in dockerfile() if word == "LABEL")
    assert "com.amazonaws.sagemaker.capabilities.multi-models=true" in labels
    assert "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true" in labels


def test_the_entry_point_takes_signals_and_starts_the_container() -> None:
    words = dict(dockerfile())
    command = json.loads(words["ENTRYPOINT"]) + json.loads(words["CMD"])
    assert command == ["python", "-m", "mme.container", "serve"]
    assert words["USER"] != "root"


def test_everything_that_is_copied_is_there_and_not_ignored() -> None:
    not_ignored = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for word, rest in dockerfile() if word == "COPY" for name in rest.split()[:-1]]
    assert copied
    assert sorted(copied) == sorted(not_ignored)
    assert all((ROOT / name).exists() for name in copied)


def test_the_container_imports_nothing_of_the_toolchain() -> None:
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                assert not name.startswith("mme.") or name.startswith("mme.container"), f"{path.name}: {name}"


def test_the_front_starts_without_torch_or_the_toolchains_libraries() -> None:
    """In an image that lacks them all, and in one that has torch: the front never imports it."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy', 'boto3', 'invoke', 'isal', 'moto'): sys.modules[name] = None\n"
        "import mme.container.front.routes, mme.container.workers.parent\n"
        "import mme.container.workers.worker, mme.container.__main__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_wrong_arguments_are_answered_with_the_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mme.container", "train"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 2
    assert "usage: python -m mme.container" in done.stderr


def test_a_port_in_use_is_said_plainly() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "mme.container"],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(ROOT / "src"), "SAGEMAKER_BIND_TO_PORT": port, "MME_PRELOAD": ""},
            timeout=60,
        )
    assert done.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in done.stdout
    assert "Traceback" not in done.stderr
