"""Runs tests as on an x86-64 processor with AVX2 and without AVX-512 and VNNI, which qemu emulates.

    python scripts/avx2.py [PYTEST'S ARGUMENTS …]

torch, numpy and ONNX Runtime choose their kernels by the instructions that the processor has. ONNX Runtime has no
switch for it, so the processor is emulated: qemu-user runs the interpreter, and every program that the tests start with
``sys.executable`` too. It takes ten times as long and more, so name the tests that depend on kernels.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Without what qemu does not emulate of it, which it would say at each start.
PROCESSOR = "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid"

# Two threads are in ONNX Runtime at once there, and emulated neither comes to an end, with all instructions that the
# emulator knows as with AVX2 alone: most likely the emulator's doing.
HANG = ("tests/handlers/test_handler_engine.py::test_threads_share_a_batch",)


def emulator() -> str | None:
    """qemu's program for one x86-64 process, None where there is none."""
    return shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")


def interpreter(folder: Path, qemu: str) -> Path:
    """Makes ``folder`` a virtual environment with this one's libraries and an emulated python. Returns the python."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    python = folder / "bin" / "python"
    # What python takes for its own program, and so its environment, is the name that it was started by.
    words = shlex.join([qemu, "-cpu", PROCESSOR, "-0", str(python), str(Path(sys.executable).resolve())])
    python.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    python.chmod(0o755)
    return python


def main(arguments: list[str]) -> int:
    qemu = emulator()
    if platform.machine() != "x86_64" or qemu is None:
        print("This takes Linux on x86-64 and qemu-user (apt-get install qemu-user).", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="avx2-") as folder:  # of this run alone, for another may be going on
        python = interpreter(Path(folder) / "venv", qemu)
        seen = [str(python), "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]
        capability = subprocess.run(seen, capture_output=True, text=True, check=True).stdout.strip()
        if capability != "AVX2":
            print(f"The emulated processor should have AVX2 alone; torch takes it for {capability}.", file=sys.stderr)
            return 1
        skipped = [f"--deselect={name}" for name in HANG]
        words = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "--timeout=0", *skipped, *arguments]
        # One thread computes: those of OpenMP wait for one another by looking, and would keep the emulator busy.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        return subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
