"""What a worker says to the front, and when: each message wakes the front, so few are sent."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mme.container.wire import Decoder, Frame, Kind, pack

START = """
    import socket, sys
    from mme.container.workers.templates import Templates
    from mme.container.workers.worker import Spec, main
    folder, fd = sys.argv[1], int(sys.argv[2])
    main(socket.socket(fileno=fd), Spec("m", folder, "inference", -1, 1, 8, 1000), Templates())
"""
ECHO = """
    def model_fn(folder): return None
    def predict_fn(data, model): return data
"""
IN_BATCHES = """
    def model_fn(folder): return None
    def batch_fn(inputs, model): return [{"of": len(inputs), "is": each} for each in inputs]
"""


class Front:
    """The other end of a worker's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder()

    def say(self, *frames: bytes) -> None:
        self._sock.sendall(b"".join(frames))

    def hear(self) -> list[Frame]:
        """The frames that arrive together, at least one."""
        while True:
            data = self._sock.recv(1 << 20)
            assert data, "the worker has ended"
            if frames := list(self._decoder.feed(data)):
                return frames


@contextmanager
def worker(folder: Path, code: str) -> Iterator[Front]:
    (folder / "code").mkdir()
    (folder / "code/inference.py").write_text(textwrap.dedent(code))
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    command = [sys.executable, "-c", textwrap.dedent(START), str(folder), str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        front = Front(ours)
        assert [frame.kind for frame in front.hear()] == [Kind.READY]
        yield front
    finally:
        ours.close()
        process.wait(60)


def request(number: int, value: object) -> bytes:
    return pack(Kind.REQUEST, number, {"Content-Type": "application/json"}, json.dumps(value).encode())


def kinds(frames: list[Frame]) -> list[tuple[Kind, int]]:
    return [(Kind(frame.kind), frame.id) for frame in frames]


def test_one_request_is_one_message_with_its_answer_and_the_grant(tmp_path: Path) -> None:
    with worker(tmp_path, ECHO) as front:
        for number in (1, 2):
            front.say(request(number, "a text"), pack(Kind.GRANT, 1))
            frames = front.hear()
            assert kinds(frames) == [(Kind.RESULT, number), (Kind.RELEASED, 0)]
            assert (frames[0].body, frames[1].meta) == (b'"a text"', {"left": 0})


def test_what_the_front_cannot_foresee_is_said(tmp_path: Path) -> None:
    """Several requests before the grant: how many of them are begun together is the worker's choice."""
    with worker(tmp_path, IN_BATCHES) as front:
        front.say(request(1, "a"), request(2, "b"), pack(Kind.GRANT, 1))
        heard = front.hear()
        while heard[-1].kind != Kind.RELEASED:
            heard += front.hear()
        assert kinds(heard) == [(Kind.STARTED, 0), (Kind.RESULT, 1), (Kind.RESULT, 2), (Kind.RELEASED, 0)]
        assert heard[0].meta == {"ids": [1, 2]}
        assert json.loads(heard[1].body) == {"of": 2, "is": "a"}


def test_an_answer_does_not_wait_for_further_work(tmp_path: Path) -> None:
    """The second request takes until the first one's answer has been read and a file has been written."""
    code = """
        import pathlib, time
        def model_fn(folder): return pathlib.Path(folder, "go")
        def predict_fn(data, go):
            while data == "slow" and not go.exists():
                time.sleep(0.01)
            return data
    """
    with worker(tmp_path, code) as front:
        front.say(request(1, "quick"), request(2, "slow"), pack(Kind.GRANT, 1))
        heard: list[Frame] = []
        while (Kind.RESULT, 1) not in kinds(heard):
            heard += front.hear()
        (tmp_path / "go").touch()
        while heard[-1].kind != Kind.RELEASED:
            heard += front.hear()
        assert [each for each in kinds(heard) if each[0] == Kind.RESULT] == [(Kind.RESULT, 1), (Kind.RESULT, 2)]
        started = [frame.meta["ids"] for frame in heard if frame.kind == Kind.STARTED]
        assert started == [[1], [2]]


def test_a_process_that_lost_the_use_of_its_gpu_answers_and_ends(tmp_path: Path) -> None:
    code = """
        class AcceleratorError(RuntimeError): pass
        def model_fn(folder): return None
        def predict_fn(data, model):
            if data == "bad": raise AcceleratorError("CUDA error: device-side assert triggered")
            if data == "full": raise RuntimeError("CUDA error: out of memory")
            return data
    """

    def status(front: Front, number: int, value: str) -> int:
        front.say(request(number, value), pack(Kind.GRANT, 1))
        while True:
            for frame in front.hear():
                if frame.kind == Kind.RESULT:
                    return int(frame.meta["status"])

    with worker(tmp_path, code) as front:
        assert [status(front, 1, "full"), status(front, 2, "good"), status(front, 3, "bad")] == [507, 200, 500]
        with pytest.raises(AssertionError, match="the worker has ended"):
            front.hear()
