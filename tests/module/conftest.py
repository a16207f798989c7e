"""What the tests of the Terraform module share: a copy of the module, so that nothing is left in the repository."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mme.local import LocalAws

ROOT = Path(__file__).resolve().parents[2]
FAKE_CONTAINER = shlex.join([sys.executable, str(ROOT / "tests" / "local" / "fake_container.py")])
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "scripts")]
pytest.register_assert_rewrite("caller", "lives_of_inputs", "stack")


@pytest.fixture(scope="session")
def module_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module with its examples and plan tests."""
    copy = tmp_path_factory.mktemp("module")
    for source in ROOT.glob("*.tf"):
        shutil.copy(source, copy)
    ignore = shutil.ignore_patterns(".terraform*", "*.tfstate*")
    shutil.copytree(ROOT / "examples", copy / "examples", ignore=ignore)
    tests = copy / "tests" / "module"
    shutil.copytree(ROOT / "tests" / "module" / "inputs", tests / "inputs")
    for source in (ROOT / "tests" / "module").glob("*.tftest.hcl"):
        shutil.copy(source, tests)
    return copy


@pytest.fixture(scope="session")
def local_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    """One local AWS for these tests. Its minutes are short: every update waits as its deployment policy has it."""
    folder = tmp_path_factory.mktemp("local-aws")
    with LocalAws(folder / "data", container=FAKE_CONTAINER, minute=0.5) as aws:
        yield aws
