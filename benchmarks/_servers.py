"""The servers that serving.py compares, each a process with the same methods: load, invoke, unload, memory, cpu."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mme.runner.errors import ContainerError, ContainerTimeout
from mme.runner.process import Container

ROOT = Path(__file__).resolve().parents[1]
MLSERVER = ROOT / ".venv-mlserver" / "bin" / "mlserver"

for _name in [name for name in os.environ if name.startswith("OMP_")]:
    del os.environ[_name]  # each server decides how many threads it has


class Server:
    """A server that follows SageMaker's multi-model contract; subclasses speak others. Creating it starts it."""

    kind: str | list[str] = "ours"
    """What ``mme.runner`` starts."""
    grace_seconds = 40.0
    """How long it has to end."""

    def __init__(self, name: str, log: Path, **environ: str) -> None:
        self.name = name
        self.work = log.with_suffix("")
        self.work.mkdir(exist_ok=True)
        self.loaded: set[str] = set()
        began = time.perf_counter()
        self.container = Container(
            self.kind, self.work, {"MME_ACCESS_LOG": "false"} | environ, log, grace_seconds=self.grace_seconds
        )
        try:
            self._wait_ready()
        except ContainerError as problem:
            self.stop()
            raise SystemExit(f"{name} did not start. {problem}") from None
        self.start_seconds = time.perf_counter() - began

    @property
    def port(self) -> int:
        return self.container.port

    def _wait_ready(self) -> None:
        self.container.wait_healthy(180)

    # What the protocol says: where and how to ask.

    def path(self, model: str) -> str:
        return f"/models/{model}/invoke"

    def text(self, text: str) -> str:
        """The body that asks an embedding model for a text's vector."""
        return json.dumps(text)

    def prompt(self, text: str, tokens: int) -> str:
        """The body that asks a language model for exactly so many new tokens."""
        return json.dumps({"inputs": text, "parameters": {"max_new_tokens": tokens, "min_new_tokens": tokens}})

    def load(self, name: str, folder: Path) -> None:
        self._check(f"LOAD of {folder}", "POST", "/models", json.dumps({"model_name": name, "url": str(folder)}))
        self.loaded.add(name)

    def unload(self, name: str) -> None:
        self.call("DELETE", f"/models/{name}")
        self.loaded.discard(name)

    # The same for all.

    def call(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        data = body.encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        reply = self.container.request(method, path, body=data, headers=headers, timeout=400)
        return reply.status, reply.body

    def _check(self, what: str, method: str, path: str, body: str | None = None) -> bytes:
        status, answer = self.call(method, path, body)
        if status != 200:
            raise SystemExit(f"{self.name}: {what} answered {status}: {answer.decode()[:500]}")
        return answer

    def invoke(self, name: str, body: str) -> Any:
        return json.loads(self._check(name, "POST", self.path(name), body))

    def unload_all(self) -> None:
        for name in list(self.loaded):
            self.unload(name)

    def pids(self) -> list[int]:
        """The server's process and all its descendants, without the runner's guard above them."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)] = int(stat[1])
        pids = {self.container.pid}
        while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
            pids |= more
        return sorted(pids - {self.container.pid})

    def memory(self) -> float:
        """Memory in MB (10^6 bytes): PSS of all processes, without the files of the weights."""
        total = 0
        for pid in self.pids():
            weights = False
            with contextlib.suppress(OSError):
                for row in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                    if "-" in row.partition(" ")[0]:
                        weights = row.endswith((".safetensors", ".bin"))
                    elif row.startswith("Pss:") and not weights:
                        total += int(row.split()[1]) * 1024
        return total / 1e6

    def cpu(self) -> float:
        """Seconds of processor time of this process and its descendants, including those that have ended."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, stat[11:15]))  # its own, and that of its children that have ended
        return ticks / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops this server within the block, so that its timers and spinning threads take no processor time."""
        pids = self.pids()
        self._signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(pids, signal.SIGCONT)

    @staticmethod
    def _signal(pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    def stop(self) -> None:
        self.container.stop()


class Stock(Server):
    """The real multi-model-server with the Hugging Face toolkit."""

    kind = "stock"

    def __init__(self, log: Path, workers: int) -> None:
        super().__init__(
            f"stock, {workers} worker{'s' * (workers > 1)}", log, SAGEMAKER_MODEL_SERVER_WORKERS=str(workers)
        )


class MlServer(Server):
    """MLServer with its Hugging Face runtime, by the V2 inference protocol and its model repository API.

    It knows no handlers: a model is a transformers pipeline. All models are in one process (``workers`` 0), or each of
    some worker processes has all of them. Its adaptive batching gathers up to ``batch`` requests for up to ``wait``
    seconds; a request that is alone waits as long.
    """

    ready = "/v2/health/ready"

    def __init__(self, log: Path, workers: int = 0, batch: int = 0, wait: float = 0.0) -> None:
        self.batch, self.wait = batch, wait
        work = log.with_suffix("")
        work.mkdir()
        settings = {
            "host": "127.0.0.1",
            "grpc_port": 0,
            "metrics_endpoint": None,
            "debug": False,
            "parallel_workers": workers,
            "load_models_at_startup": False,
            "model_repository_root": str(work),
            "environments_dir": str(work / "environments"),
            "metrics_dir": str(work / "metrics"),
        }
        (work / "settings.json").write_text(json.dumps(settings))
        start = f"MLSERVER_HTTP_PORT=$SAGEMAKER_BIND_TO_PORT exec {shlex.join([str(MLSERVER), 'start', str(work)])}"
        self.kind = ["sh", "-c", start]
        # Without PYTHONPATH: it must find its own packages and none of ours.
        environ = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads(workers))}
        name = "MLServer, " + (f"{workers} worker{'s' * (workers > 1)}" if workers else "in process")
        super().__init__(name + (f", batches of {batch}" if batch else ""), log, **environ)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if not self.container.alive:
                raise ContainerError(self.container.epitaph())
            with contextlib.suppress(ContainerError):
                if self.call("GET", self.ready)[0] == 200:
                    return
            time.sleep(0.05)
        raise ContainerTimeout("It was not ready within 180 s.")

    def path(self, model: str) -> str:
        return f"/v2/models/{model}/infer"

    def text(self, text: str) -> str:
        # By this name the runtime takes what its batching has put together as a list.
        return json.dumps({"inputs": [{"name": "array_inputs", "shape": [1], "datatype": "BYTES", "data": [text]}]})

    def prompt(self, text: str, tokens: int) -> str:
        body = json.loads(self.text(text))
        if not self.batch:  # its batching would turn the number into a list; the model's configuration has it then
            kind = {"content_type": "hg_json"}
            for name in ("max_new_tokens", "min_new_tokens"):
                field = {"name": name, "shape": [1], "datatype": "BYTES", "parameters": kind, "data": [str(tokens)]}
                body["inputs"].append(field)
        return json.dumps(body)

    def load(self, name: str, folder: Path) -> None:
        language = (
            "CausalLM" in (folder / "config.json").read_text() or "LMHead" in (folder / "config.json").read_text()
        )
        extra = {
            "task": "text-generation" if language else "feature-extraction",
            "pretrained_model": str(folder),
            "framework": "pt",
        }
        settings = {
            "name": name,
            "implementation": "mlserver_huggingface.HuggingFaceRuntime",
            "max_batch_size": self.batch,
            "max_batch_time": self.wait,
            "parameters": {"extra": extra},
        }
        (self.work / name).mkdir(exist_ok=True)
        (self.work / name / "model-settings.json").write_text(json.dumps(settings))
        self._check(f"load of {folder}", "POST", f"/v2/repository/models/{name}/load")
        self.loaded.add(name)

    def unload(self, name: str) -> None:
        self.call("POST", f"/v2/repository/models/{name}/unload")
        self.loaded.discard(name)


def threads(workers: int) -> int:
    """Each worker's part of the cores."""
    return max(1, (os.cpu_count() or 1) // max(1, workers))


def missing() -> dict[str, str]:
    """Which of the others cannot be run here, and why."""
    from mme.runner import stock

    reasons = {}
    try:
        stock.venv_python()
        stock.find_java()
    except stock.StockMissing as problem:
        reasons["stock"] = str(problem)
    if not MLSERVER.exists():
        reasons["mlserver"] = f"MLServer is not installed: there is no {MLSERVER}. Run `make mlserver`."
    return reasons
