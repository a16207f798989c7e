"""The comparison with transformers runs in a process of its own, and what it takes ends with that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = Path(__file__).resolve().parents[2] / "model_code" / "common"

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not tell its threads")


def run(source: str) -> str:
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(COMMON)}
    script = "import os, sys, threading\nimport engine\nhere = os.getpid()\n" + source
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_its_verdict_comes_back_and_nothing_else() -> None:
    source = """
seen = []
def compare(verdict):
    seen.append(bytearray(1000))
    return verdict
print([engine.compared(lambda: verdict) for verdict in (None, "", "differs by 1 \\u2260")], seen)
print(engine.compared(lambda: compare(None)), seen, engine.compared(lambda: str(os.getpid() != here)))
"""
    assert run(source).splitlines() == ["[None, '', 'differs by 1 \u2260'] []", "None [] True"]


def test_where_it_fails_it_is_made_again_and_its_reason_seen() -> None:
    source = """
def fails():
    raise ValueError(f"here: {os.getpid() == here}")
def is_killed():
    if os.getpid() != here:
        os.kill(os.getpid(), 9)
    return "told in this process"
try:
    engine.compared(fails)
except ValueError as error:
    print(error)
print(engine.compared(is_killed))
"""
    assert run(source).splitlines() == ["here: True", "told in this process"]


def test_a_process_with_threads_compares_by_itself() -> None:
    """A fork would have one of them, and the locks of all."""
    source = """
go = threading.Event()
thread = threading.Thread(target=go.wait)
thread.start()
print(engine.compared(lambda: str(os.getpid() == here)))
go.set()
thread.join()
while len(os.listdir("/proc/self/task")) > 1:  # a thread that has been joined may have a few instructions to go
    os.sched_yield()
print(engine.compared(lambda: str(os.getpid() == here)))
"""
    assert run(source).splitlines() == ["True", "False"]
