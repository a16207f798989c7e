"""Runs one command, and ends it with everything that it started as soon as standard input closes.

The local AWS starts every container through this file, as a program of its own: ``python -I -S guard.py GRACE
COMMAND …``. The other end of its standard input is held by the local AWS alone, so however that one ends, kill -9
included, the system closes the pipe and the container goes too. It works on any POSIX system; on Linux the guard also
adopts processes whose parent is gone, and a container dies even if the guard itself is killed.

Only the standard library, and nothing of mme: it has to start in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    """Linux's prctl; does nothing on other systems."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _descendants() -> list[int]:
    """Every process below this one, as far as the system tells (Linux only; elsewhere none)."""
    descendants: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")  # noqa: PTH208 (no pathlib: it slows the start)
        except OSError:
            continue
        for thread in threads:
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children") as file:  # noqa: PTH123
                children = [int(word) for word in file.read().split()]
                descendants += children
                waiting += children
    return descendants


def _kill_all(group: int) -> None:
    """Kills the command's process group, then whatever of its children left the group."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        others = _descendants()
        for pid in others:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not _descendants():
            return
        time.sleep(0.01)


def main(argv: list[str]) -> int:
    grace = float(argv[0])
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def in_child() -> None:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    try:
        child = subprocess.Popen(argv[1:], stdin=subprocess.DEVNULL, preexec_fn=in_child)
    except OSError as problem:
        print(f"{argv[1]} cannot be started: {problem.strerror}", file=sys.stderr)
        return 127

    asked_to_stop = False
    deadline = float("inf")
    while child.poll() is None and time.monotonic() < deadline:
        watched = [wake_read] if asked_to_stop else [wake_read, sys.stdin.fileno()]
        ready, _, _ = select.select(watched, [], [], 0.1 if asked_to_stop else None)
        signals = os.read(wake_read, 64) if wake_read in ready else b""
        closed = sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096)
        if not asked_to_stop and (closed or signals.strip(bytes([signal.SIGCHLD]))):
            asked_to_stop = True
            deadline = time.monotonic() + grace
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGTERM)
    _kill_all(child.pid)
    code = child.returncode
    if code is None:  # reaped by _kill_all
        return 137
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
