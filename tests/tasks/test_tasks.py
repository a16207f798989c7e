"""The tasks as a whole: their help, what they import, the exit codes and the Python that are documented."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from invoke import Collection
from task_project import REPOSITORY, Project, targets

import mme.tasks
from mme import errors

NAMES = sorted(Collection.from_module(mme.tasks).task_names)


def test_every_task_explains_itself_and_each_of_its_flags() -> None:
    """Read in a fresh interpreter: invoke takes the help out of a task when it first parses for it."""
    source = """
import json
from invoke.collection import Collection
import mme.tasks

tasks = Collection.from_module(mme.tasks).tasks
print(json.dumps({n: [t.__doc__, [[a.names, a.help] for a in t.get_arguments()]] for n, t in tasks.items()}))
"""
    said = json.loads(subprocess.run([sys.executable, "-c", source], capture_output=True, check=True).stdout)
    assert set(NAMES) <= said.keys()
    for name, (doc, arguments) in said.items():
        assert doc, name
        first = doc.strip().splitlines()[0]
        assert len(first) > 30, name
        assert first.endswith("."), f"`invoke --list` shows the first line alone, and that of {name} breaks off"
        for names, text in arguments:
            assert text, f"{name} --{names[0]}"
            assert all(len(given) > 1 for given in names), f"{name} has a one-letter flag"
    texts = {name: {names[0]: text for names, text in arguments} for name, (_, arguments) in said.items()}
    assert texts["package"]["out"] == "the folder for the archives; default dist"
    assert texts["prune"]["keep"].endswith("; default 5")
    assert texts["upload"]["catalog"] == "the catalogue (models.toml)", "its default is said once"
    assert "default" not in texts["upload"]["bucket"]


def test_help_is_printed(project: Project) -> None:
    shown = project("--help", "promote")
    assert shown.code == 0
    for flag in ("--model=STRING", "--from=STRING", "--version=STRING", "--terraform=STRING", "--[no-]dry-run"):
        assert flag.replace("[no-]", "") in shown.out.replace("[no-]", "")


def test_the_tasks_are_all_there() -> None:
    assert {"package", "upload", "models", "predict", "delete", "local", "bench", "releases", "prune"} <= set(NAMES)
    assert {"channels", "promote", "split", "rollback", "history"} <= set(NAMES)


def test_another_repository_takes_the_tasks_with_two_lines(project: Project) -> None:
    project.tasks_file()
    project.catalogue("team-a/classifier")
    project.build("team-a/classifier")
    listed = project.process("--list")
    assert listed.returncode == 0
    assert all(f"  {name} " in listed.stdout for name in NAMES if name != "bench")
    assert " bench " not in listed.stdout, "there is nothing to bench"
    done = project.process("upload", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["status"] == "uploaded"
    assert {target.rpartition("-")[0] for target in targets(project)} == {"team-a/classifier"}


def test_names_come_from_terraform(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_BUCKET")
    infra = project.folder / "infra"
    infra.mkdir()
    outputs = {"bucket": project.bucket, "model_prefix": "models/", "endpoint_name": "e", "region": "us-east-1"}
    state = {
        "version": 4,
        "terraform_version": "1.9.0",
        "serial": 1,
        "lineage": "0b2c1d2e-0000-0000-0000-000000000000",
        "outputs": {name: {"value": value, "type": "string"} for name, value in outputs.items()},
        "resources": [],
    }
    (infra / "terraform.tfstate").write_text(json.dumps(state))
    project.build("bert")
    done = project("upload", "--model", "bert", "--terraform", "infra")
    assert done.code == 0, done.err
    assert len(targets(project)) == 1


def test_the_repositorys_own_tasks_file_has_them_all() -> None:
    listed = subprocess.run([sys.executable, "-m", "invoke", "--list"], cwd=REPOSITORY, capture_output=True, text=True)
    assert all(f"  {name} " in listed.stdout for name in NAMES)


def test_publishing_and_predicting_need_neither_torch_nor_numpy(project: Project) -> None:
    made = project.build("bert")
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy', 'safetensors', 'tokenizers', 'moto', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "import mme.tasks, invoke\n"
        "program = invoke.Program(namespace=invoke.Collection.from_module(mme.tasks))\n"
        "program.run(['invoke', *sys.argv[1:]])\n"
    )
    name = project.endpoint()
    for words in (["upload", "--model", "bert"], ["predict", "--model", "bert", "--text", "x", "--endpoint", name]):
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == made.target


def test_a_task_does_not_wait_for_what_the_others_need() -> None:
    """Each call loads every task to know its flags; what packages, publishes or shows pages is not for that."""
    heavy = ["mme.packaging.job", "mme.packaging.verify", "mme.publishing", "mme.snapshot.retrieve", "mme.page.app"]
    heavy += [
        "mme.operate.watch",
        "mme.capacity.simulate",
        "mme.catalog.schema",
        "torch",
        "numpy",
    ]
    program = f"import sys, mme.tasks; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    text = (REPOSITORY / "docs" / "releases.md").read_text()
    table = {int(line.split("|")[1]) for line in text.splitlines() if re.match(r"\| \d+ \|", line)}
    codes = {
        value.exit_code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "exit_code")
    }
    assert table == codes | {0, 130, 141}


def test_the_documented_python_works(project: Project) -> None:
    (target,) = project.release("bert", b"1")
    text = (REPOSITORY / "docs" / "releases.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("my-bucket", project.bucket), names)
    assert names["target"] == target
