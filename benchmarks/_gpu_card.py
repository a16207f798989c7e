"""The GPU of gpu.py, real or made up: how much of its memory is used, and a way to take most of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks._servers import Server

MiB = 1024 * 1024
TAKE = """
import sys, torch
free, left = torch.cuda.mem_get_info()[0], int(sys.argv[1])
taken = torch.empty(max(0, free - left), dtype=torch.uint8, device="cuda")
print(torch.cuda.mem_get_info()[0], flush=True)
sys.stdin.read()
"""


class Card:
    """The first GPU that this process may use."""

    name = "?"
    made_up = False

    def __init__(self) -> None:
        from mme.container.front.gpu import Gpus

        self._gpus = Gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if not self._gpus.look():
            raise SystemExit("NVIDIA's management library shows no GPU here. Without one: --device cpu --quick")
        self.environ = {"MME_DEVICE": "cuda"}

    @property
    def total(self) -> int:
        return self._gpus.look()[0].total

    def used(self, server: Server) -> int:
        """Bytes in use on the device, whoever uses them."""
        first = self._gpus.look()[0]
        return first.total - first.free

    @contextlib.contextmanager
    def filled(self, left: int) -> Iterator[None]:
        """Within the block another process holds all of the memory but about ``left`` bytes."""
        command = [sys.executable, "-c", TAKE, str(left)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if not process.stdout.readline():
                raise SystemExit("The GPU's memory could not be taken.")
            try:
                yield
            finally:
                process.stdin.close()


class MadeUpCard(Card):
    """A made-up GPU with memory for ``models`` processes. Admission counts with it; nothing computes on it."""

    name = "made up"
    made_up = True

    def __init__(self, folder: Path, models: int) -> None:
        self._file = folder / "card.json"
        self._each = 700 * MiB
        self._size = models * self._each
        self._write(0)
        path = os.pathsep.join(filter(None, [str(Path(__file__).with_name("_made_up_card")), os.environ["PYTHONPATH"]]))
        self.environ = {"MADE_UP_CARD": str(self._file), "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "GPU-made-up"}

    def _write(self, others: int) -> None:
        self._file.write_text(json.dumps({"total": self._size, "each": self._each, "others": others}))

    @property
    def total(self) -> int:
        return self._size

    def used(self, server: Server) -> int:
        others = int(json.loads(self._file.read_text())["others"])
        names = []
        for pid in server.pids():
            with contextlib.suppress(OSError):
                names.append(Path(f"/proc/{pid}/comm").read_text().strip())
        return others + self._each * names.count("mme-model")

    @contextlib.contextmanager
    def filled(self, left: int) -> Iterator[None]:
        self._write(self._size - left)
        try:
            yield
        finally:
            self._write(0)
