"""`make test-avx2`: the tests that depend on kernels, as on a processor with AVX2 alone."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "avx2.py"
# One function asks the processor; the constant of the other has the same bytes as the instruction.
LIBRARY = """
#include <cpuid.h>
unsigned decoy(void) { unsigned constant; __asm__ volatile("movl $0x0000a20f, %0" : "=r"(constant)); return constant; }
unsigned answer(unsigned leaf, unsigned subleaf, unsigned which) {
    unsigned words[4];
    __cpuid_count(leaf, subleaf, words[0], words[1], words[2], words[3]);
    return words[which];
}
"""
# What a program that the command starts sees: AVX2, AVX512F, VNNI, AVX-VNNI, the constant, and /proc/cpuinfo's flags.
PROGRAM = """
import ctypes, re, sys
library = ctypes.CDLL(sys.argv[1])
bits = [(7, 0, 1, 5), (7, 0, 1, 16), (7, 0, 2, 11), (7, 1, 0, 4)]
print(*(library.answer(leaf, subleaf, word) >> bit & 1 for leaf, subleaf, word, bit in bits), hex(library.decoy()))
print(*sorted(set(re.findall(r"avx2|avx512\\w*|avx_vnni", open("/proc/cpuinfo").read()))))
"""

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="this is not Linux on x86-64"
)


@pytest.fixture(scope="module")
def avx2() -> Any:
    spec = importlib.util.spec_from_file_location("avx2_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment with one library."""
    if shutil.which("cc") is None or shutil.which("objdump") is None:
        pytest.skip("there is no C compiler here")
    folder = tmp_path / "an environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (tmp_path / "library.c").write_text(LIBRARY)
    words = ["cc", "-shared", "-fPIC", "-O2", "-o", str(packages / "library.so"), str(tmp_path / "library.c")]
    subprocess.run(words, check=True)
    return folder


def masked(environment: Path, folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """The script's run of a command, by the environment's interpreter, for a project that lies in ``folder``."""
    folder.mkdir(exist_ok=True)
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import avx2; from pathlib import Path; "
        f"sys.exit(avx2.main({command!r}, Path({str(folder)!r})))"
    )
    words = [str(environment / "bin" / "python"), "-B", "-c", program]
    done = subprocess.run(words, capture_output=True, text=True)
    if "user namespaces" in done.stderr:
        pytest.skip("mounts are not allowed here")
    return done


def test_programs_that_the_command_starts_see_avx2_alone(avx2: Any, environment: Path, tmp_path: Path) -> None:
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    library = next(environment.rglob("library.so"))
    inner = [str(environment / "bin" / "python"), "-c", PROGRAM, str(library)]
    outer = [sys.executable, "-c", f"import subprocess; subprocess.run({inner!r}, check=True)"]
    before = subprocess.run(inner, capture_output=True, text=True, check=True).stdout, library.read_bytes()
    assert len(avx2.cpuids(library, shutil.which("objdump"))) == 1
    for _ in range(2):  # the second time takes what the first one made
        done = masked(environment, tmp_path / "a project", outer)
        assert (done.stdout.splitlines(), done.stderr) == (["1 0 0 0 0xa20f", "avx2"], "")
    after = subprocess.run(inner, capture_output=True, text=True, check=True).stdout, library.read_bytes()
    assert after == before


def test_a_library_that_changes_is_masked_anew(environment: Path, tmp_path: Path) -> None:
    library = next(environment.rglob("library.so"))
    inner = [str(environment / "bin" / "python"), "-c", PROGRAM, str(library)]
    masked(environment, tmp_path / "project", ["true"])
    source = tmp_path / "library.c"
    source.write_text(source.read_text().replace("0x0000a20f", "0x0001a20f"))
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    done = masked(environment, tmp_path / "project", inner)
    assert done.stdout.splitlines()[0].split()[1:] == ["0", "0", "0", "0x1a20f"], done.stderr


def test_the_exit_status_is_the_commands(environment: Path, tmp_path: Path) -> None:
    done = masked(environment, tmp_path / "project", ["sh", "-c", "exit 7"])
    assert (done.returncode, done.stderr) == (7, "")
    done = masked(environment, tmp_path / "project", ["no-such-command"])
    assert (done.returncode, done.stderr) == (1, "no-such-command cannot be started: No such file or directory.\n")


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    environ = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(SCRIPT), "true"], capture_output=True, text=True, env=environ)
    assert done.returncode == 1
    assert "apt-get install gcc" in done.stderr
