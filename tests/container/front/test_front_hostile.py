"""Slow and hostile clients against a container, and its end whatever is stuck."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container, processes, wait_until

from mme.container import memory

Make = Callable[..., Path]
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
MiB = 1024 * 1024
SOURCE = Path(__file__).resolve().parents[3] / "src"
ANSWERS = "def model_fn(d): return 1\ndef predict_fn(data, m): return m"


def say(container: Container, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", container.port), 30)
    client.settimeout(0.2)
    try:
        while data:
            data = data[client.send(data) :]
    except OSError:
        pass  # it takes no more, or has closed
    return client


@linux
def test_bodies_that_never_end_cost_no_more_than_the_bound(start: Callable[..., Container], handler: Make) -> None:
    container = start(MME_MAX_QUEUE_BYTES="32M", MME_STALL_TIMEOUT="60")
    assert container.load("m", handler("m", ANSWERS)).status == 200
    pid = container.process.pid
    before = memory.private(pid)
    head = b"POST /models/m/invoke HTTP/1.1\r\nContent-Length: 6000000\r\n\r\n"
    clients = [say(container, head + b"x" * 5_990_000) for _ in range(40)]
    for _ in range(20):
        assert container.get("/ping").status == 200
        assert container.invoke("m").status == 200, "small requests fit, or slow bodies give way"
    assert memory.private(pid) - before < 64 * MiB
    for client in clients:
        client.close()
    wait_until(lambda: container.invoke("m", b" " * 5_000_000 + b"1").status == 200)


@linux
def test_clients_that_read_nothing_cost_no_more_than_their_own_connection(start: Callable[..., Container]) -> None:
    container = start(MME_STALL_TIMEOUT="2")
    pid = container.process.pid
    before = memory.private(pid), len(list(Path(f"/proc/{pid}/fd").iterdir()))
    clients = [say(container, b"GET /metrics HTTP/1.1\r\n\r\n" * 20_000) for _ in range(20)]
    for _ in range(20):
        assert container.get("/ping").status == 200
    assert memory.private(pid) - before[0] < 48 * MiB
    wait_until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) <= before[1])
    for client in clients:
        client.close()


@linux
def test_sigterm_ends_the_container_although_its_parent_process_stands_still(
    start: Callable[..., Container], handler: Make
) -> None:
    container = start()
    assert container.load("m", handler("m", ANSWERS)).status == 200
    family = processes(container.process.pid)
    parent = next(pid for pid in family if Path(f"/proc/{pid}/comm").read_text().strip() == "mme-parent")
    os.kill(parent, signal.SIGSTOP)
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(40) == 0
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


def test_sigterm_ends_the_container_although_nobody_reads_its_log(tmp_path: Path) -> None:
    """The pipe is full, and the thread that writes the log waits for ever."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("MME_", "SAGEMAKER_"))},
        "SAGEMAKER_BIND_TO_PORT": "0",
        "MME_PRELOAD": "",
        "PYTHONPATH": str(SOURCE),
    }
    process = subprocess.Popen([sys.executable, "-m", "mme.container"], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        port = 0
        while not port:
            line = process.stdout.readline().decode()
            if '"listening"' in line:
                port = int(line.split('"port": ')[1].split(",")[0])
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            stream = client.makefile("rb")
            for _ in range(2000):
                client.sendall(b"GET /nothing/%s HTTP/1.1\r\n\r\n" % (b"x" * 200))
                assert stream.readline().startswith(b"HTTP/1.1 404")
                head = dict(row.decode().rstrip().split(": ", 1) for row in iter(stream.readline, b"\r\n"))
                stream.read(int(head["Content-Length"]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
