"""`make test-avx2`: the tests that depend on kernels, on an emulated processor with AVX2 alone."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "avx2.py"


@pytest.fixture(scope="module")
def avx2() -> Any:
    spec = importlib.util.spec_from_file_location("avx2_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_programs_that_the_tests_start_are_emulated_too(avx2: Any, tmp_path: Path) -> None:
    qemu = avx2.emulator()
    if qemu is None or platform.machine() != "x86_64":
        pytest.skip("qemu-user is not installed here, or this is no x86-64")
    python = avx2.interpreter(tmp_path / "folder with a space", qemu)
    inner = (
        "import numpy; from numpy._core._multiarray_umath import __cpu_features__ as has; "
        "print(has['AVX2'], has['AVX512F'], has['AVX512VNNI'] if 'AVX512VNNI' in has else False)"
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    done = subprocess.run([str(python), "-c", outer], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["True", "False", "False"], "")


def test_without_qemu_it_says_what_to_install(tmp_path: Path) -> None:
    environ = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environ)
    assert done.returncode == 1
    assert "qemu-user" in done.stderr


def test_what_hangs_there_is_a_test_that_there_is(avx2: Any) -> None:
    for name in avx2.HANG:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (SCRIPT.parents[1] / file).read_text()
