"""A Python that has imported what takes long, and forks a process for each program that it is asked to run.

torch and transformers take four seconds of a core to import. Where many tests start a program in an environment of its
own (an older transformers, the stock stack), one warm interpreter for each environment does that once:

    with WarmPython(python, ["torch", "transformers"], environment) as warm:
        done = warm.run(["script.py", "argument"], input="…")
        warm.executable(path)   # a file that can be run as ``python`` would be

A program runs as ``python script.py …``, ``python -m module …`` or ``python -c source …`` would: as __main__ in a
process of its own, with its arguments, environment, folder and open files. Whoever asked gets its exit code; a signal
that ends programs in order reaches it, and it ends when whoever asked is gone. With options, ``python -I …`` say, the
file starts the interpreter itself.

``shared`` gives one that all workers of a test run use: the first that asks starts it.

Where the file is to stand in for ``sys.executable`` in programs too, all that they start with it is forked as well: a
task, the container that it starts, and the container's parent of all models.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import importlib
import json
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class WarmPython:
    def __init__(self, python: Path | str, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts ``python`` with this environment and has it import the modules; of ``module:function`` it calls the
        function, too."""
        self._python = python
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")  # short, as a socket's path must be
        self._socket = Path(self._folder.name) / "socket"
        self._process = _started(python, modules, environment, self._socket, subprocess.PIPE)

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end, as ``subprocess.run`` would."""
        command = [sys.executable, "-I", "-S", __file__, "ask", str(self._socket), "", *words]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=dict(environment))

    def executable(self, path: Path, *, everywhere: bool = False) -> Path:
        """Makes ``path`` a program that can stand in for the interpreter; ``everywhere``, in what it runs as well."""
        executable = shlex.quote(str(path)) if everywhere else "''"
        path.write_text(
            "#!/bin/sh\n"
            f'case "$1" in -c|-m|[!-]*) exec {sys.executable} -I -S {__file__} ask {self._socket} {executable} "$@";; '
            f'*) exec {self._python} "$@";; esac\n'
        )
        path.chmod(0o755)
        return path

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> WarmPython:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _started(
    python: Path | str, modules: Sequence[str], environment: Mapping[str, str], path: Path, stdin: int
) -> subprocess.Popen[bytes]:
    """A warm interpreter that listens at ``path`` until ``stdin`` ends."""
    words = [str(python), __file__, "serve", str(path), *modules]
    process = subprocess.Popen(words, env=dict(environment), stdin=stdin, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if process.stdout.readline() != b"warm\n":
        process.wait()
        raise RuntimeError(f"{python} could not import {', '.join(modules)}")
    return process


class Run:
    """What the processes of one test run have in common: a folder, and a pipe that ends when the first of them does."""

    def __init__(self, folder: str | None = None) -> None:
        """The first process gives no folder, and the others its."""
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="warm-")
        self.folder = Path(folder or str(self._own and self._own.name))
        self._alive = -1
        if self._own:
            os.mkfifo(self.folder / "alive")
            self._alive = os.open(self.folder / "alive", os.O_RDWR)

    def end(self) -> None:
        if self._own:
            os.close(self._alive)
            self._own.cleanup()


class _Shared(WarmPython):
    def __init__(
        self, python: Path | str, modules: Sequence[str], environment: Mapping[str, str], run: Run, name: str
    ) -> None:
        self._python = python
        self._socket = run.folder / name
        with (run.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._socket.exists():
                with (run.folder / "alive").open("rb") as alive:
                    self._process = _started(python, modules, environment, self._socket, alive.fileno())

    def close(self) -> None:
        """It goes on for the others."""


run: Run | None = None
"""The test run that this process belongs to, which conftest.py sets."""


def shared(name: str, python: Path | str, modules: Sequence[str], environment: Mapping[str, str]) -> WarmPython:
    """The warm interpreter of this name, of all workers, until the test run ends."""
    assert run is not None
    return _Shared(python, modules, environment, run, name)


# As the parent of a container's models does: without scikit-learn, which is imported where it is used.
TRANSFORMERS = ("torch", "mme.container.workers.curves:import_generation", "transformers.pipelines")
LIBRARIES = (*TRANSFORMERS, "onnxruntime", "mme.tasks")


def warm_libraries() -> WarmPython:
    """The shared one that has imported torch, transformers and the tasks, for programs that never go to the Hub."""
    assert run is not None
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **offline, "HF_HOME": str(run.folder / "hub")}
    return shared("libraries", sys.executable, LIBRARIES, _as_a_parent(environment))


def warm_libraries_for(environment: Mapping[str, str]) -> WarmPython:
    """One of its own with the same libraries: they read some variables when they are imported."""
    return WarmPython(sys.executable, LIBRARIES, _as_a_parent(environment))


def _as_a_parent(environment: Mapping[str, str]) -> dict[str, str]:
    """With what the parent of a container's models sets before it imports the libraries."""
    from mme.container.front import parent_link

    return {**parent_link.ENVIRONMENT, **environment}


# -- the side of who asks -------------------------------------------------------------------------------------------


def ask(path: str, executable: str, words: list[str]) -> int:
    """Has the program run with this process's environment, folder and open files; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        # Of signals that end this process at once it knows by the connection's end.
        for number in _PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
        numbers = [number for number in map(int, os.listdir("/dev/fd")) if _passed_on(number)]  # noqa: PTH208
        request = {
            "words": words,
            "environment": dict(os.environ),
            "folder": os.getcwd(),  # noqa: PTH109 (no pathlib: it slows the start)
            "executable": executable,
            "parent": os.getppid(),
            "numbers": numbers,
        }
        encoded = json.dumps(request).encode()
        files = array.array("i", numbers)
        connection.sendmsg([len(encoded).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        connection.sendall(encoded)
        answer = connection.recv(16)
        return int(answer) if answer else 1


_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _passed_on(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:  # what has listed the folder
        return False


# -- the warm side --------------------------------------------------------------------------------------------------


def serve(path: str, modules: list[str]) -> None:
    """Runs what is asked for until standard input closes."""
    gc.disable()  # what is imported stays
    for module in modules:
        name, _, function = module.partition(":")
        imported = importlib.import_module(name)
        if function:
            getattr(imported, function)()
    gc.collect()
    gc.freeze()
    gc.enable()
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    sys.stdout.write("warm\n")
    sys.stdout.flush()
    selector = selectors.DefaultSelector()
    for source in (sys.stdin, listener, wake_read):
        selector.register(source, selectors.EVENT_READ)
    running: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                for pid in running:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            if key.fileobj is listener:
                connection, _address = listener.accept()
                pid = _start(connection, [listener, wake_read, wake_write, *running.values()])
                running[pid] = connection
                selector.register(connection, selectors.EVENT_READ, pid)
            elif key.fileobj is wake_read:
                wake_read.recv(4096)
                _reap(running, selector)
            elif key.data in running:
                signals = _received(running[key.data])
                for number in signals:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(key.data, number)
                if not signals:  # nobody waits for it any more
                    selector.unregister(key.fileobj)
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(key.data, signal.SIGTERM)


def _reap(running: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = running.pop(pid)
            with contextlib.suppress(KeyError):
                selector.unregister(connection)
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                connection.sendall(str(code if code >= 0 else 128 - code).encode())
            connection.close()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(16)
    except ConnectionError:
        return b""


def _start(connection: socket.socket, inherited: list[socket.socket]) -> int:
    files = array.array("i")
    head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(64 * files.itemsize))
    for _level, _type, data in ancillary:
        files.frombytes(data)
    request = json.loads(_exactly(connection, int.from_bytes(head, "big")))
    pid = os.fork()
    if pid == 0:
        _end_with_the_parent()
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (connection, *inherited):
            other.close()
        numbers = request["numbers"]
        above = max([*numbers, *files], default=0) + 1  # for now, so that none takes another's place
        for file, number in zip([_moved(file, above) for file in files], numbers, strict=True):
            os.dup2(file, number)
            os.close(file)
        _become(request)
    for file in files:
        os.close(file)
    return pid


def _end_with_the_parent() -> None:
    """However the warm interpreter ends, nothing is left of what it runs (on Linux)."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _moved(file: int, above: int) -> int:
    moved = fcntl.fcntl(file, fcntl.F_DUPFD, above)
    os.close(file)
    return moved


def _become(request: dict[str, Any]) -> None:
    """Runs the program in this process, which ends with it."""
    import runpy
    import traceback

    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    if request["executable"]:
        sys.executable = request["executable"]
    here, parent, of_another = os.getpid(), int(request["parent"]), os.getppid
    os.getppid = lambda: parent if os.getpid() == here else of_another()  # some programs look who has started them
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
    words = list(request["words"])
    code: Any = 0
    try:
        sys.argv = [words[0], *words[2:]] if words[0] in ("-c", "-m") else words
        first = {"-c": "", "-m": request["folder"]}.get(words[0], str(Path(words[0]).parent))
        paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:] = [first, *paths, *(path for path in sys.path[1:] if path not in paths)]
        if words[0] == "-c":
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the request breaks off")
        data += more
    return data


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(sys.argv[2], sys.argv[3], sys.argv[4:]))
    serve(sys.argv[2], sys.argv[3:])
