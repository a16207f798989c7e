"""Every command that a page says to type is typed by a test: here, or in the test named for the page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import endpoints_here
import pytest
from invoke import Collection
from invoke.parser import Parser

import mme.tasks
from mme.local import LocalAws

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*/README.md"))

PROGRAMS = ["invoke", "mme", "make", "pip", "python", "terraform", "docker", "podman", "buildah", "curl", "git", "uv"]
PROGRAMS += ["aws", "apt-get", "debootstrap", "tar"]
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SHELL = ("", "bash", "sh", "console", "text")
INDENTED = re.compile(r"(?<=\n\n)((?: {4}\S.*\n)+)")

WHERE = {
    "README.md": "tests/system/test_readme.py",
    "CONTRIBUTING.md": "Makefile",  # make check and make test run the tests; the others change the repository itself
    "docs/capacity.md": "tests/capacity/test_capacity_task.py",
    "docs/container.md": "tests/system/test_documents.py",  # its image: make image
    "docs/installing.md": "tests/system/test_install.py",
    "docs/local.md": "tests/local/test_process.py",
    "docs/operating.md": "tests/system/test_documents.py",
    "docs/page.md": "tests/page/test_dashboard.py",
    "docs/packaging.md": "tests/system/test_documents.py",
    "docs/releases.md": "tests/system/test_documents.py",
}
WHERE |= {
    path.relative_to(ROOT).as_posix(): "tests/module/test_module_examples.py"
    for path in PAGES
    if path.is_relative_to(ROOT / "examples")
}


def commands(page: Path) -> list[str]:
    """The commands that a page says to type, each in one line, without what is said behind a #."""
    text = page.read_text()
    blocks = [body for language, body in FENCED.findall(text) if language in SHELL]
    blocks += INDENTED.findall(FENCED.sub("", text))
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    first = re.compile(rf"(?:[A-Z_]+=\S+ |echo .*\| )*(?:{'|'.join(PROGRAMS)}) (?!=)|export [A-Z_]+=")
    return [line.partition(" #")[0].strip() for line in lines if first.match(line)]


def test_every_page_with_commands_has_a_test_that_types_them() -> None:
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES if commands(page)}
    assert pages == WHERE.keys()
    for page in pages:
        assert (ROOT / WHERE[page]).is_file(), page


TASKS = [(page.name, line) for page in PAGES for line in commands(page) if re.search(r"(^|\| )(invoke|mme) \w", line)]


@pytest.mark.parametrize(("page", "line"), TASKS, ids=[f"{page}: {line}" for page, line in TASKS])
def test_its_tasks_and_flags_are_there(page: str, line: str) -> None:
    words = shlex.split(re.split(r"(?:^|\| )(?:invoke|mme) ", line)[-1])
    if words[0].startswith("-"):
        return  # of invoke itself
    parsed = Parser(contexts=Collection.from_module(mme.tasks).to_contexts()).parse_argv(words)
    assert parsed[0].name == words[0]


class Shell:
    """Types what a page says, in a folder with a catalogue, at an account with an endpoint."""

    def __init__(self, folder: Path, environment: dict[str, str], interpreter: Path | str = sys.executable) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, module in (("invoke", "invoke"), ("mme", "mme"), ("python", "")):
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {interpreter} {f"-m {module}" if module else ""} "$@"\n')
            program.chmod(0o755)
        path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
        others = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MME_"))}
        self.environment = {**others, **environment, "PATH": path, "HOME": str(folder)}

    def __call__(self, *lines: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{lines}\n{done.stdout}{done.stderr}"
        return done.stdout


def test_packaging_releases_and_operating(
    bert: Path, gpt2: Path, tmp_path: Path, warm_everywhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages' commands, in the order in which a reader meets them; only the digests are this run's.

    There are dozens of them, so each is forked from a python that has imported what they import, as are the containers.
    """
    (tmp_path / "tasks.py").write_text(
        "from invoke import Collection\nimport mme.tasks; ns = Collection.from_module(mme.tasks)\n"
    )
    (tmp_path / "models.toml").write_text(
        f'[models.bert]\nsource = "folder:{bert}"\nhandler = "embedding"\n'
        f'[models.gpt2]\nsource = "folder:{gpt2}"\nhandler = "generation"\n'
    )
    (tmp_path / "sentences.json").write_text('{"inputs": ["One endpoint.", "Many models."]}')
    monkeypatch.setattr(sys, "executable", str(warm_everywhere))
    with LocalAws(tmp_path / "aws") as aws:
        endpoint = endpoints_here.create(aws, "demo")
        shell = Shell(
            tmp_path,
            {**aws.client_env(), "MME_BUCKET": "demo", "MME_ENDPOINT": endpoint, "MME_AUTHOR": "ada"},
            warm_everywhere,
        )

        *packaging, inspect = commands(ROOT / "docs" / "packaging.md")
        shell(*packaging)
        target = next((tmp_path / "dist").glob("bert-*.tar.gz"))
        assert "embedding" in shell(re.sub(r"dist/bert-\w+\.tar\.gz", f"dist/{target.name}", inspect))

        releases = commands(ROOT / "docs" / "releases.md")
        digits = target.name.removeprefix("bert-").removesuffix(".tar.gz")
        asked = [line.replace("0123456789ab", digits).replace("0123=", f"{digits[:4]}=") for line in releases]
        uploads = [line for line in asked if "upload" in line]
        shell(*uploads)
        # A second version, so that there is one to go to and one to go back to.
        settings = "[models.bert.settings]\npooling = 'cls'\n"
        (tmp_path / "models.toml").write_text((tmp_path / "models.toml").read_text() + settings)
        shell("invoke package upload --model bert")
        said = shell(*[line for line in asked if line not in uploads])
        assert "bert@staging" in said
        assert (tmp_path / "vectors.npy").stat().st_size > 100

        operating = commands(ROOT / "docs" / "operating.md")
        said = shell(
            *(line for line in operating if re.match("export|invoke (status|logs)", line) and "--follow" not in line)
        )
        assert endpoint in said
        assert "InService" in said


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's client is curl, which is not installed")
def test_the_container_by_hand(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "code").mkdir(parents=True)
    (model / "code" / "inference.py").write_text(
        "def model_fn(d): return d\ndef predict_fn(data, model): return data\n"
    )
    start, *calls = commands(ROOT / "docs" / "container.md")[:5]
    shell = Shell(tmp_path, {"MME_PRELOAD": "", "PYTHONUNBUFFERED": "1"})
    with subprocess.Popen(
        ["bash", "-c", f"exec env {start.replace('=8080', '=0')}"],
        cwd=tmp_path, env=shell.environment, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if '"listening"' in line)
            port = re.search(r'"port": (\d+)', line)
            assert port is not None
            here = [
                call.replace("8080", port[1]).replace("/path/to/an/extracted/archive", str(model)) for call in calls
            ]
            assert "Healthy" in shell(f"until {here[0]} | grep Healthy; do sleep 0.05; done")
            shell(here[1])
            assert shell(here[2]).strip() == '"The house is quiet."'
            shell(here[3])
        finally:
            server.terminate()
