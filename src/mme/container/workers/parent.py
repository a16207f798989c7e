"""The parent of all workers: torch and transformers imported once, then one fork per model.

It has a single thread and computes nothing after it is warm, because a fork of a process with threads may copy locks
that are never released. It speaks to the front in lines of JSON over a Unix socket:

- ``{"op": "fork", "id", …}`` with a socket attached is answered by ``{"op": "forked", "id", "pid"}`` or
  ``{"op": "failed", "id", …}``
- ``{"op": "share", "recipe"}`` makes something before the fork that models have in common (see templates.py) and is
  answered by ``{"op": "shared", "key", "error"}``; ``{"op": "unshare", "key"}`` lets go of it
- ``{"op": "kill", "pid"}`` ends a worker and whatever it started
- ``{"op": "exit", "pid", "code", "signal"}`` tells the front that a worker has ended and its memory is free
"""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from mme.container import memory, system
from mme.container.wire import Lines, line
from mme.container.workers import cuda, curves, hooks, rehearsal, settling, shipped, templates
from mme.container.workers.worker import Spec, main

NICE = 1  # workers give way a little to the front, so that pings and other answers do not wait for arithmetic


# Names that transformers resolves lazily; looking them up imports their modules.
TRANSFORMERS_NAMES = (
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoTokenizer",
    "BertModel",
    "GPT2LMHeadModel",
    "GenerationConfig",
    "PreTrainedTokenizerFast",
    "pipeline",
)


# When Python looks for garbage during the imports. What is imported stays: by default the search is a fifth of a
# container's start, and without any search the parent would be 10 MB larger.
RARELY = (10_000, 20, 1000)

NAME = "mme.container.workers.parent"
ONLY_IMPORT = "--only-import"  # before the modules' names: import them, and run nothing of them


class CudaBegun(Exception):
    """A process that is forked from this one could not use a GPU any more."""


def warm(modules: Sequence[str], only_import: bool = False) -> None:
    """Import what models need, once. A module that is not installed is left to the handlers that want it. Raises
    CudaBegun; with ``only_import`` it says so instead."""
    began = cuda.begun()
    for module in modules:
        _import(module, only_import)
        if not began and cuda.begun():
            began = True
            if not only_import:
                raise CudaBegun(module)
            sys.stderr.write(
                f"MME_PRELOAD: {module} began to use CUDA while it was imported, so no model can use a GPU: a process "
                "that is forked after that cannot. Leave it out of MME_PRELOAD\n"
            )


def _import(module: str, only_import: bool) -> None:
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        sys.stderr.write(f"MME_PRELOAD: {module} cannot be imported ({error}); models go without it\n")
        return
    if module == "torch":
        imported.set_num_threads(1)  # more than one would start threads, which do not survive a fork
        cuda.answer_without_cuda(imported)
    elif module == "transformers":
        with contextlib.suppress(ImportError):
            curves.import_generation()
        for name in TRANSFORMERS_NAMES:
            with contextlib.suppress(ImportError, AttributeError):
                getattr(imported, name)
        if only_import:
            return
        try:
            templates.exercise()
        except Exception as error:  # for example no room for temporary files: models then make these things themselves
            sys.stderr.write(f"The tiny models that warm up transformers could not be run: {error!r}\n")
    elif module == "onnxruntime":
        _warm_onnxruntime(imported)


# y = x, as an ONNX model.
IDENTITY = (
    b'\x08\n:=\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x05modelZ\x10\n\x01x\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01n'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01nB\x04\n\x00\x10\x14"
)


def _warm_onnxruntime(library: Any) -> None:
    """Make a first session, so that the library's tables of operators are there before the fork and not made in every
    worker. With one thread it starts none."""
    try:
        options = library.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        library.InferenceSession(IDENTITY, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        sys.stderr.write(f"onnxruntime could not make a first session: {error!r}\n")


class Parent:
    def __init__(self, control: socket.socket, families: templates.Templates) -> None:
        self._control = control
        self._templates = families
        self._lines = Lines()
        self._sockets: list[socket.socket] = []
        self._workers: set[int] = set()
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)

    def run(self) -> None:
        """Serve the front's commands until it closes the socket; then end every worker."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._tell(op="warm", pid=os.getpid())
        while True:
            ready = select.select([self._control.fileno(), self._wake_read], [], [])[0]
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._commands():
                break
        for pid in self._workers:
            _kill_group(pid)

    def _tell(self, **message: Any) -> None:
        self._control.sendall(line(message))

    def _commands(self) -> bool:
        """Carry out what has arrived. False once the front is gone."""
        try:
            data, ancillary, _, _ = self._control.recvmsg(65536, socket.CMSG_SPACE(256 * array.array("i").itemsize))
        except ConnectionError:
            return False
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._sockets += [socket.socket(fileno=fd) for fd in fds]
        if not data:
            return False
        for message in self._lines.feed(data):
            if message["op"] == "fork":
                self._fork(message)
            elif message["op"] == "share":
                self._share(message["recipe"])
            elif message["op"] == "unshare":
                self._templates.drop(message["key"])
            elif message["op"] == "kill" and message["pid"] in self._workers:
                _kill_group(message["pid"])
        return True

    def _fork(self, message: dict[str, Any]) -> None:
        sock = self._sockets.pop(0)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            sock.close()
            kind = "memory" if error.errno in (errno.ENOMEM, errno.EAGAIN) else "system"
            self._tell(op="failed", id=message["id"], kind=kind, message=os.strerror(error.errno or 0))
            return
        if pid == 0:
            self._become_worker(sock, parent, message)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # here as well as in the child: either may run first
        self._workers.add(pid)
        sock.close()
        self._tell(op="forked", id=message["id"], pid=pid)

    def _become_worker(self, sock: socket.socket, parent: int, message: dict[str, Any]) -> None:
        """In the child: let go of everything of the parent's, then be a worker until the end."""
        try:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            system.die_with_parent(parent)
            system.adopt_orphans()  # whatever a handler starts stays below it, sessions of its own included
            hooks.register()
            system.prefer_for_oom()
            system.name_process("mme-model")
            with contextlib.suppress(OSError):
                os.nice(NICE)
            self._control.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            for other in self._sockets:
                other.close()
            for key, value in message.get("env", {}).items():
                os.environ[key] = value
            main(sock, Spec(**message["spec"]), self._templates)
        finally:
            os._exit(70)

    def _share(self, recipe: dict[str, Any]) -> None:
        error = self._templates.make(recipe)
        settling.settle()
        self._tell(op="shared", key=recipe["key"], error=error, private=memory.private())
        if templates.threads() > 1:  # forks would not be clean any more; the front starts a fresh parent
            os._exit(71)

    def _reap(self) -> None:
        while True:
            try:
                # Look first and reap last: while a worker is unreaped nothing else can get its number, so that the kill
                # reaches only what it left behind. (macOS had no waitid for long; there the kill comes after.)
                if hasattr(os, "waitid"):
                    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if ended is None:
                        return
                    if ended.si_pid in self._workers:
                        _kill_group(ended.si_pid)
                    pid, status = os.waitpid(ended.si_pid, 0)
                else:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if pid == 0:
                        return
                    _kill_group(pid)
            except ChildProcessError:
                return
            self._end_orphans()
            if pid not in self._workers:  # an orphan of a worker's, left to this process
                continue
            self._workers.discard(pid)
            by_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
            self._tell(op="exit", pid=pid, code=code, signal=by_signal)

    def _end_orphans(self) -> None:
        """End what a worker that has ended had started: it has become a child of this process, which has no others."""
        for pid in system.children(os.getpid()):
            if pid not in self._workers:
                _kill_group(pid)


def _kill_group(pid: int) -> None:
    """End a process and everything below it, wherever it has put itself: in its group or in a session of its own.

    Each is stopped before its children are looked for, so that none can start another meanwhile.
    """
    todo = [pid]
    family = []
    while todo:
        one = todo.pop()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGSTOP)
        family.append(one)
        todo += system.children(one)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for one in reversed(family):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)


def make_ready(modules: Sequence[str], only_import: bool = False) -> templates.Templates:
    """Import what models need and prepare for the forks. Returns what models have in common, of which there is none
    yet. Raises CudaBegun."""
    before = gc.get_threshold()
    gc.set_threshold(*RARELY)
    warm(modules, only_import)
    families = templates.Templates()
    families.shipped.keep(shipped.roots())
    families.install()
    settling.forget_lookups()
    if families.shipped.has("embedding_packed") and not only_import:
        try:
            rehearsal.rehearse(families, shipped.roots())
        except Exception as error:
            sys.stderr.write(f"The tiny model that goes before all others could not be served: {error!r}\n")
        if cuda.begun():
            raise CudaBegun("the tiny model that goes before all others")
    settling.settle()
    gc.set_threshold(*before)
    return families


def run(fd: int, front: int, modules: Sequence[str]) -> None:
    """The parent's whole life. ``fd`` is its end of the socket to the front, ``front`` the front's process id."""
    system.die_with_parent(front)
    system.name_process("mme-parent")
    system.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the front drains, then closes the socket
    control = socket.socket(fileno=fd)
    began = time.monotonic()
    hooks.put_off()
    only_import = modules[:1] == [ONLY_IMPORT]
    modules = modules[only_import:]
    try:
        families = make_ready(modules, only_import)
    except CudaBegun as cause:
        sys.stderr.write(f"{cause} began to use CUDA: the libraries are imported once more, and nothing of them run\n")
        system.keep_only((0, 1, 2, fd))
        os.execv(sys.executable, [sys.executable, "-m", NAME, str(fd), str(front), ONLY_IMPORT, *modules])  # noqa: S606
    with contextlib.suppress(OSError):
        control.sendall(line({"op": "imported", "seconds": time.monotonic() - began}))
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        Parent(control, families).run()


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
