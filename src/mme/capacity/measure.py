"""Measures what models need, with the real container on this machine: memory, seconds to load and wake, seconds an
answer.

Each archive is extracted, loaded, asked its sample many times, parked and woken, and unloaded. Memory comes from the
kernel and the container's ``/metrics``; the seconds are those that the caller saw.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from mme.archive.untar import extract
from mme.errors import UsageError
from mme.processor import processor_name
from mme.runner.errors import ContainerError
from mme.runner.kinds import check
from mme.runner.process import Container

ROUNDS = 5
ANSWERS = 40
PAUSE = 0.1
"""Seconds between answers: back to back, they find more in the processor's caches than most do on an endpoint."""
BATCH = 8
START_SECONDS = 120.0
LOAD_SECONDS = 360.0
ANSWER_SECONDS = 60.0
PARK_AFTER = 0.5
PARKED_BYTES = 4096
"""Assumed for our container: docs/figures.md has 0.003 MB for a model without a process, measured with hundreds. Of one
model that is less than the memory of the others changes by meanwhile."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
TEXT = b'{"inputs": "The house is quiet."}'


@dataclass(frozen=True)
class Subject:
    """A model to measure: its archive, and the body of a request (None: the handler's sample)."""

    name: str
    archive: Path
    body: bytes | None = None


def measure(
    subjects: Sequence[Subject], container: str = "ours", *, note: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The document that ``listing.read_needs`` reads. Raises UsageError where something does not run.

    Memory is what the container's processes take, as the kernel counts it; that of a parked model is PARKED_BYTES.
    Loads are of files that were just extracted, wakes of files that are on the disk (see ``_write_out``). Busy models
    get no further memory meanwhile (MME_BUSY_ANSWERS): forty answers in a row would make each of them one, and the
    simulation has none. Run it on a machine that has nothing else to do.
    """
    if not subjects:
        raise UsageError("Which archives?", "Give --archive FILE, once for each kind of model that you have.")
    for subject in subjects:
        if not subject.archive.is_file():
            raise UsageError(f"There is no archive {subject.archive}.")
    try:
        check(container)
    except ContainerError as problem:
        raise UsageError(str(problem)) from None
    models: dict[str, dict[str, float]] = {}
    answer_factors: list[float] = []
    load_factors: list[float] = []
    wake_factors: list[float] = []
    shared: list[float] = []
    load_cores: list[float] = []
    wake_cores: list[float] = []
    with tempfile.TemporaryDirectory(prefix="mme-measure-") as folder:
        root = Path(folder)
        if in_memory(root):
            note(
                f"{root.parent} lies in memory (tmpfs): wakes take some 20 ms longer there than on an endpoint, whose "
                "models lie on a disk. Set TMPDIR to a folder on a disk."
            )
        if (busy := os.getloadavg()[0]) > (os.cpu_count() or 1) / 2:
            note(
                f"This machine is busy (load average {busy:.1f}, {os.cpu_count()} cores): the seconds come out too "
                "long. Measure again when it has nothing else to do."
            )
        with _running(container, root) as running:
            base = running.memory()
            for number, subject in enumerate(subjects):
                note(f"{subject.name}: loading, asking, parking …")
                home = root / f"m{number}" / "model"
                extract(subject.archive, home)
                needs = _one(running, subject, home, container == "ours")
                models[subject.name] = needs.needs
                answer_factors += needs.answer_factors
                load_factors += needs.load_factors
                wake_factors += needs.wake_factors
                shared += needs.shared
                load_cores.append(needs.load_cores)
                wake_cores.append(needs.wake_cores)
    return {
        "format": 1,
        "container": "stock" if container == "stock" else "ours",
        "day": date.today().isoformat(),
        "processor": processor_name(),
        "cores": _cores(),
        "models": models,
        "answer_spread": quantiles(answer_factors),
        "load_spread": quantiles(load_factors),
        "wake_spread": quantiles(wake_factors),
        "load_cores": round(statistics.median(load_cores), 3),
        "wake_cores": round(statistics.median(wake_cores), 3),
        "batch_shared": round(statistics.median(shared), 3) if shared else None,
        "base_bytes": base,
    }


def quantiles(factors: Sequence[float], count: int = 50) -> list[float]:
    """``count`` factors that stand for all of them, each as likely as the others."""
    ordered = sorted(factors)
    if not ordered:
        return [1.0]
    return [round(ordered[int((step + 0.5) / count * len(ordered))], 4) for step in range(count)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _busy(worked: float, seconds: float) -> float:
    """How many cores were busy on average; 1 where that was too short to tell."""
    return min(float(_cores()), max(0.1, worked / seconds)) if worked > 0 and seconds > 0 else 1.0


@dataclass(frozen=True)
class _Measured:
    needs: dict[str, float]
    answer_factors: list[float]
    load_factors: list[float]
    wake_factors: list[float]
    shared: list[float]
    load_cores: float
    wake_cores: float


class _Running:
    """The container, spoken to by SageMaker's contract."""

    def __init__(self, container: Container) -> None:
        self.container = container

    def call(self, method: str, path: str, body: bytes | None, seconds: float, what: str) -> tuple[float, bytes]:
        began = time.perf_counter()
        headers = {"Content-Type": "application/json", "Accept": "application/json"} if body else {}
        try:
            reply = self.container.request(method, path, body=body, headers=headers, timeout=seconds)
        except ContainerError as problem:
            raise UsageError(f"{what}: {problem}") from None
        if reply.status != 200:
            words = reply.body[:300].decode("utf-8", "replace")
            raise UsageError(f"{what}: the container answers {reply.status}: {words}")
        return time.perf_counter() - began, reply.body

    def metrics(self) -> Mapping[str, float]:
        """Every sample of ``/metrics`` by its name with labels; empty where there is no such page."""
        try:
            reply = self.container.request("GET", "/metrics", timeout=10.0)
        except ContainerError:
            return {}
        values: dict[str, float] = {}
        for line in reply.body.decode("utf-8", "replace").splitlines():
            name, _, value = line.rpartition(" ")
            if name and not line.startswith("#"):
                with contextlib.suppress(ValueError):
                    values[name] = float(value)
        return values

    def _tree(self) -> list[int]:
        """The container's processes, itself included (Linux)."""
        parents: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                    int(stat.parent.name)
                )
        todo, tree = [self.container.pid], []
        while todo:
            pid = todo.pop()
            tree.append(pid)
            todo += parents.get(pid, [])
        return tree

    def memory(self) -> int:
        """Bytes that the container's processes take: their private pages and their part of those they share."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(OSError, ValueError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                match = re.search(r"^Pss_Anon:\s+(\d+) kB", text, re.M) or re.search(r"^Pss:\s+(\d+) kB", text, re.M)
                total += int(match[1]) * 1024 if match else 0
        return total

    def seconds_of_processor(self) -> float:
        ticks = 0
        for pid in self._tree():
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(words[11]) + int(words[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _running(kind: str, root: Path) -> Iterator[_Running]:
    home = root / "container"
    home.mkdir()
    try:
        settings = {"MME_PARK_AFTER": str(PARK_AFTER), "MME_ACCESS_LOG": "false", "MME_BUSY_ANSWERS": "0"}
        container = Container(kind, home, settings, lambda _: None)
    except ContainerError as problem:
        raise UsageError(str(problem)) from None
    try:
        container.wait_healthy(START_SECONDS)
        yield _Running(container)
    except ContainerError as problem:
        raise UsageError(str(problem)) from None
    finally:
        container.stop()


def _one(running: _Running, subject: Subject, home: Path, parks: bool) -> _Measured:
    body = subject.body or _sample(subject, home)
    path = "/models/m"
    load = json.dumps({"model_name": "m", "url": str(home)}).encode()
    loads: list[float] = []
    before = running.memory()
    first: list[float] = []
    # The first load of a family makes what its models share; those after it are what an endpoint sees.
    load_work = 0.0
    for turn in range(ROUNDS + 1):
        began = running.seconds_of_processor()
        seconds, _ = running.call("POST", "/models", load, LOAD_SECONDS, f"{subject.name}: LOAD")
        load_work += running.seconds_of_processor() - began if turn else 0.0
        asked, _ = running.call("POST", f"{path}/invoke", body, ANSWER_SECONDS, f"{subject.name}: INVOKE")
        if turn:
            loads.append(seconds)
            first.append(asked)
        if turn < ROUNDS:
            running.call("DELETE", path, None, LOAD_SECONDS, f"{subject.name}: UNLOAD")
    answers: list[float] = []
    began = running.seconds_of_processor()
    for _ in range(ANSWERS):
        time.sleep(PAUSE)
        asked, _ = running.call("POST", f"{path}/invoke", body, ANSWER_SECONDS, f"{subject.name}: INVOKE")
        answers.append(asked)
    worked = (running.seconds_of_processor() - began) / ANSWERS
    usual = statistics.median(answers)
    private = max(0, running.memory() - before)
    hurried = [
        running.call("POST", f"{path}/invoke", body, ANSWER_SECONDS, f"{subject.name}: INVOKE")[0] for _ in range(BATCH)
    ]
    shared = _together(running, subject, path, body, statistics.median(hurried))
    wakes: list[float] = []
    wake_work = 0.0
    if parks:
        _write_out(home)
        for _ in range(ROUNDS):
            _until_parked(running)
            began = running.seconds_of_processor()
            asked, _ = running.call("POST", f"{path}/invoke", body, ANSWER_SECONDS, f"{subject.name}: INVOKE")
            wake_work += max(0.0, running.seconds_of_processor() - began - worked)
            wakes.append(max(0.0, asked - usual))
    running.call("DELETE", path, None, LOAD_SECONDS, f"{subject.name}: UNLOAD")
    files = _files(home)
    # A model's first answer takes longer than the next; that is part of what a cold request waits for.
    slow_first = max(0.0, statistics.median(first) - usual)
    load_seconds = statistics.median(loads) + slow_first
    needs = {
        "archive_bytes": subject.archive.stat().st_size,
        "disk_bytes": sum(file.stat().st_size for file in files),
        "weights_bytes": sum(file.stat().st_size for file in files if file.suffix in WEIGHTS),
        "private_bytes": private,
        "parked_bytes": PARKED_BYTES if parks else private,
        "load_seconds": round(load_seconds, 5),
        "wake_seconds": round(statistics.median(wakes), 5) if wakes else round(load_seconds, 5),
        "answer_seconds": round(usual, 6),
        "answer_cores": round(_busy(worked, usual), 3),
    }
    return _Measured(
        needs,
        [asked / usual for asked in answers] if usual else [],
        [(seconds + slow_first) / load_seconds for seconds in loads] if load_seconds else [],
        [seconds / statistics.median(wakes) for seconds in wakes] if wakes and statistics.median(wakes) else [],
        [shared] if shared is not None else [],
        _busy(load_work, sum(loads)),
        _busy(wake_work, sum(wakes)) if wakes else _busy(load_work, sum(loads)),
    )


def _together(running: _Running, subject: Subject, path: str, body: bytes, alone: float) -> float | None:
    """The share of an answer's seconds that a batch pays once, measured with BATCH requests at a time, one batch after
    the other. ``alone``: seconds of one answer, back to back with others, as those of the batches are.

    ``seconds(k) = answer * (shared + (1 - shared) * k)``.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(BATCH) as pool:
        rounds = 6
        began = time.perf_counter()
        for _ in range(rounds):
            list(
                pool.map(
                    lambda _: running.call("POST", f"{path}/invoke", body, ANSWER_SECONDS, f"{subject.name}: INVOKE"),
                    range(BATCH),
                )
            )
        each = (time.perf_counter() - began) / rounds
    if alone <= 0:
        return None
    # Of BATCH requests that come together one is computed alone and the others as a batch behind it.
    return min(1.0, max(0.0, (BATCH * alone - each) / ((BATCH - 2) * alone)))


def _until_parked(running: _Running) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        samples = running.metrics()
        parked = [value for name, value in samples.items() if "parked" in name and "total" not in name]
        if parked and max(parked) >= 1:
            return
        time.sleep(0.05)
    raise UsageError("The container did not park an idle model within 30 seconds.")


def _files(home: Path) -> list[Path]:
    return [file for file in home.rglob("*") if file.is_file() and not file.is_symlink()]


def _write_out(home: Path) -> None:
    """Write files to the disk, as the kernel does by itself half a minute after they were extracted.

    A process that maps files which are not written yet needs some 20 ms more to tell its own memory from theirs
    (``mme.container.memory.private``). A load has that, for it comes right after the extraction; a wake has not, for a
    model is parked minutes later.
    """
    for path in _files(home):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def in_memory(folder: Path) -> bool:
    """Whether a folder's files lie in memory (tmpfs), so that they are never written to a disk."""
    with contextlib.suppress(OSError, IndexError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        place = folder.resolve()
        above = [(len(Path(words[1]).parts), words[2]) for words in mounts if place.is_relative_to(words[1])]
        # Of several at one place, the last is seen.
        return max(enumerate(above), key=lambda one: (one[1][0], one[0]))[1][1] in ("tmpfs", "ramfs")
    return False


def _sample(subject: Subject, home: Path) -> bytes:
    sample = home / "code" / "sample.json"
    return sample.read_bytes() if sample.is_file() else TEXT
