"""The serving container beside the stock one (multi-model-server with the Hugging Face toolkit) and beside MLServer's
Hugging Face runtime. Same models, same machine, one run; the same handlers, except that MLServer knows none.

    python -m benchmarks.serving [--json FILE] [--only load,memory,...] [--seconds 5] [--many 2000] [--without PEER]

Parts: load, memory, embeddings, precision, tenants (models with a client each, and clients who ask them by Zipf's law),
crowd (200 models, by Zipf's law; of the stock stack's as many are in memory as fit, and the others are loaded when they
are asked for, as the platform does), busy (another process on one core, and on all), nothing (a handler that does
nothing), generation, unload, many.

Targets take turns within each part, because a machine's speed drifts, and while one of them is driven with requests the
processes of the others are stopped. The stock stack needs `make stock`, MLServer `make mlserver`; a server that is
not installed is named first, and left out.

MLServer's pipeline answers an embedding request with a vector for every token, not with one for the text; the clients
read all of it, and do not average it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._processor import processor
from benchmarks._servers import Server, Stock, missing
from benchmarks._serving_clients import drive_with_platform, paused, spinners
from benchmarks._serving_models import (
    LOADS,
    NEW_TOKENS,
    NOTHING,
    PROMPT,
    SHORT,
    link,
    real_sentences,
)
from benchmarks._serving_runs import SETTINGS, Runs, Target, speed

PARTS = (
    "load",
    "memory",
    "embeddings",
    "precision",
    "tenants",
    "crowd",
    "busy",
    "nothing",
    "generation",
    "unload",
    "many",
)
TENANTS = 8  # models, each with a request at a time
STOCK_MODEL_MB = 332 + 91  # what a further MiniLM takes of the stock stack, its weights included
STOCK_SPARE_MB = 3000  # left to the system, to the server itself and to what requests need
PEERS = ("stock", "mlserver")
# MLServer's settings that proved best: all in one process without batching for a single client, with it for several.
MLSERVERS: list[dict[str, Any]] = [{}, {"batch": 8, "wait": 0.005}, {"workers": 2, "batch": 8, "wait": 0.005}]


class Bench(Runs):
    def load(self) -> None:
        """LOAD to the first answer."""
        with self.servers(stock_workers=(1,), mlservers=[{}]) as servers:
            for kind in ("bert", "gpt2"):
                folders = [self.model("gpt2")] if kind == "gpt2" else [self.model(f"bert{n}") for n in (1, 2, 3)]
                result: dict[str, list[float]] = {server.name: [] for server in servers}
                for turn in range(3):
                    for server in servers:
                        body = server.text(SHORT) if kind == "bert" else server.prompt("The ship", 1)

                        def once(name: str, folder: Path, server: Server = server, body: str = body) -> float:
                            began = time.perf_counter()
                            server.load(name, folder)
                            server.invoke(name, body)
                            return time.perf_counter() - began

                        if turn == 0:  # a model of the family is there already, as on any endpoint in use
                            other = link(folders[0], self.work / f"other-{kind}-{server.port}")
                            first = once(f"there-{kind}", other)
                            self.figures[f"load_{kind}_first_{server.name}_s"] = first
                        for step in range(1 if isinstance(server, Stock) else 5):
                            name = f"{kind}-{turn}-{step}"
                            result[server.name].append(once(name, folders[turn % len(folders)]))
                            server.unload(name)
                for server in servers:
                    first = self.figures[f"load_{kind}_first_{server.name}_s"]
                    middle = statistics.median(result[server.name])
                    self.figures[f"load_{kind}_{server.name}_s"] = middle
                    self.row(
                        f"LOAD to first answer, {kind}", server.name, f"{middle:.3f} s (the very first {first:.3f} s)"
                    )
                    server.unload_all()
            for server in servers:
                self.figures[f"start_{server.name}_s"] = server.start_seconds
                self.row("start to healthy ping", server.name, f"{server.start_seconds:.1f} s")

    def memory(self) -> None:
        """Memory per further model, weights' files apart, all models having answered."""
        with self.servers(stock_workers=(1,), mlservers=[{}]) as servers:
            for server in servers:
                before = 0.0
                for number in range(1, 9):
                    server.load(f"m{number}", self.model(f"bert{number}"))
                    server.invoke(f"m{number}", server.text(SHORT))
                    if number == 2:
                        time.sleep(2)
                        before = server.memory()
                time.sleep(2)
                each = (server.memory() - before) / 6
                self.figures[f"memory_active_{server.name}_mb"] = each
                self.row("memory per further model, active", server.name, f"{each:.1f} MB")
                server.unload_all()
        with self.servers(MME_PARK_AFTER="0.5") as (server,):
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
        while f'mme_models{{state="parked"}} {float(count)}\n' not in server.call("GET", "/metrics")[1].decode():
            time.sleep(0.1)
        while len(server.pids()) > 2:  # the front and the parent: the last of the models' processes are ending
            time.sleep(0.1)

    def _embed(self, targets: list[Target]) -> None:
        """A row for each number of clients, with short sentences and mixed lengths, after warming up."""
        for target in targets:
            for text in LOADS["mixed"] * 3:
                target.server.invoke(target.model, target.server.text(text))
        for kind, texts in LOADS.items():
            for clients in (1, 8, 32):
                rounds = self.rounds(targets, lambda server, texts=texts: [server.text(t) for t in texts], clients)
                for name, figures in rounds.items():
                    self.figures[f"embed_{kind}_{clients}_{name}"] = figures
                    self.row(f"embeddings, {kind}, {clients} clients", name, speed(figures))

    def embeddings(self) -> None:
        """Warm embeddings by number of clients, short sentences and mixed lengths."""
        with self.servers(stock_workers=(1, 2), mlservers=MLSERVERS) as servers:
            for server in servers:
                server.load("m", self.model("bert1"))
            with paused(servers):
                bare = self._bare()
            self.figures["bare_forward_p50_ms"] = bare
            self.row("one short sentence, bare forward pass", "in process", f"p50 {bare:.2f} ms")
            self._embed([Target(server.name, server) for server in servers])

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
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    def tenants(self) -> None:
        """What a multi-model endpoint is for: many models with a request at a time. A model each, then drawn by Zipf's
        law; in float32 and in int8 as it is packed."""
        names = [f"m{number}" for number in range(TENANTS)]
        with self.servers(stock_workers=(1,)) as servers:
            ours = servers[0]
            for number, name in enumerate(names):
                for server in servers:
                    server.load(name, self.model(f"bert{number + 1}"))
                ours.load(f"{name}-int8", self.model("stored-int8"))
            targets = [(ours, "ours", names), (ours, "ours, int8", [f"{name}-int8" for name in names])]
            targets += [(server, server.name, names) for server in servers[1:]]
            for what, zipf in ((f"{TENANTS} models, a client each", False), (f"{TENANTS} models, by Zipf", True)):
                # Warm up until nothing changes any more: ours then treats all eight models as busy.
                self.drive(what, servers, targets, TENANTS, zipf, warm=4.0)

    def crowd(self) -> None:
        """Many models loaded, clients who ask them by Zipf's law. Where all of a server's do not fit, the table says
        how many do; loading the others is part of its figures."""
        folders = {}
        for number in range(self.crowded):
            source, folder = self.model(f"bert{number % 8 + 1}"), self.work / "crowd" / str(number)
            folders[f"m{number}"] = link(source, folder)
        what = f"{self.crowded} models, by Zipf, {TENANTS} clients"
        bodies = [json.dumps(text) for text in LOADS["short"]]
        with self.servers() as (ours,):
            for name, folder in folders.items():
                ours.load(name, folder)
            for name in folders:
                ours.load(f"{name}-int8", self.model("stored-int8"))
            int8 = [f"{name}-int8" for name in folders]
            self.drive(
                what, [ours], [(ours, "ours", list(folders)), (ours, "ours, int8", int8)], TENANTS, True, warm=4.0
            )
        if "stock" in self.without:
            return
        room = min(self.crowded, max(TENANTS + 1, int((available_mb() - STOCK_SPARE_MB) / STOCK_MODEL_MB)))
        stock = Stock(self.log(), 1)
        try:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda name: stock.load(name, folders[name]), list(folders)[:room]))
            drive_with_platform(stock, folders, room, bodies, TENANTS, 5.0)
            runs = [drive_with_platform(stock, folders, room, bodies, TENANTS, max(20.0, 3 * self.seconds))]
            self.show(what, f"{stock.name}, {room} in memory", runs)
        finally:
            stock.stop()

    def busy(self) -> None:
        """One client while another process computes on one core, and on all. Models that the engine does not compute
        have threads of torch's, which is why these are measured, too."""
        with self.servers(stock_workers=(1,)) as servers, self.servers(MME_ENGINE="torch") as (by_torch,):
            by_torch.name = "ours, torch"
            servers = [servers[0], by_torch, *servers[1:]]
            for server in servers:
                server.load("m", self.model("bert1"))
            targets = [(server, server.name, ["m"]) for server in servers]
            for spinning in sorted({1, os.cpu_count() or 1}):
                with spinners(spinning):
                    for load in LOADS:
                        self.drive(f"one client, {load}, {spinning} busy", servers, targets, 1, load=load)

    def nothing(self) -> None:
        """The cost of an answer apart from the model: a handler that returns its input."""
        folder = self.work / "models" / "nothing"
        (folder / "code").mkdir(parents=True)
        (folder / "code" / "inference.py").write_text(NOTHING)
        with self.servers(stock_workers=(1,)) as servers:
            for server in servers:
                server.load("nothing", folder)
            targets = [(server, server.name, ["nothing"]) for server in servers]
            for clients in (1, 8):
                self.drive(f"a handler that does nothing, {clients} clients", servers, targets, clients)

    def precision(self) -> None:
        """What bfloat16 and int8 (settings of the handler) bring, and what they cost in accuracy on real sentences."""
        import numpy as np

        texts = real_sentences()
        with self.servers(stock_workers=(1, 2)) as servers:
            ours = servers[0]
            for name in ("exact", *SETTINGS):
                ours.load(name, self.model("bert0" if name == "exact" else name))

            def vector(name: str, text: str) -> Any:
                embedding = np.array(ours.invoke(name, ours.text(text))["embeddings"][0])
                return embedding / np.linalg.norm(embedding)

            exact = [vector("exact", text) for text in texts]
            for name in SETTINGS:
                cosines = [float(vector(name, text) @ wanted) for text, wanted in zip(texts, exact, strict=True)]
                low, mean = min(cosines), statistics.mean(cosines)
                self.figures[f"{name}_cosine_min"], self.figures[f"{name}_cosine_mean"] = low, mean
                figure = f"lowest {low:.5f}, mean {mean:.5f}"
                self.row(f"cosine to fp32, {len(texts)} real sentences", f"ours, {name}", figure)
            targets = [Target(f"ours, {name}", ours, name) for name in SETTINGS]
            for server in servers[1:]:
                server.load("m", self.model("bert0"))
                targets.append(Target(f"{server.name}, fp32", server))
            self._embed(targets)

    def generation(self) -> None:
        """Tokens a second of a 124M GPT-2, 20 new tokens for each request."""
        with self.servers(stock_workers=(1, 2), mlservers=MLSERVERS) as servers:
            for server in servers:
                server.load("m", self.model("gpt2"))
                for _ in range(3):
                    server.invoke("m", server.prompt(PROMPT, NEW_TOKENS))
            targets = [Target(server.name, server) for server in servers]
            for clients in (1, 8):
                rounds = self.rounds(targets, lambda server: [server.prompt(PROMPT, NEW_TOKENS)], clients)
                for name, figures in rounds.items():
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
        """What unloading gives back, and a thousand loads and unloads: does the container grow?"""
        with self.servers() as (server,):

            def turn(number: int) -> None:
                server.load("m", self.model(f"bert{number % 2 + 1}"))
                server.invoke("m", server.text(SHORT))
                server.unload("m")

            for number in range(20):
                turn(number)
            left = []
            for number in range(5):
                before = server.memory()
                turn(number)
                left.append(server.memory() - before)
            self.figures["unload_left_mb"] = statistics.median(left)
            self.row("left of a model after UNLOAD", server.name, f"{statistics.median(left):+.2f} MB")
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
        with self.servers() as (server,):
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
                server.invoke(f"m{order.randrange(self.many)}", server.text(SHORT))
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


def available_mb() -> float:
    """Megabytes (10^6) that could be taken now."""
    match = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    return int(match[1]) * 1024 / 1e6 if match else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure, with commas between")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each load is driven")
    parser.add_argument("--many", type=int, default=2000, help="models in the part called many")
    parser.add_argument("--crowd", type=int, default=200, help="models in the part called crowd")
    parser.add_argument("--without", action="append", default=[], choices=PEERS, help="leave this one out")
    options = parser.parse_args()
    parts = [part for part in options.only.split(",") if part]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    print(processor(), flush=True)
    absent = missing()
    for peer, reason in absent.items():
        if peer not in options.without:
            print(f"Without {peer}: {reason}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with this process
    with tempfile.TemporaryDirectory(prefix="mme-bench-") as work:
        bench = Bench(Path(work), options.seconds, options.many, options.crowd, {*options.without, *absent})
        for part in parts:
            print(f"{part}:", flush=True)
            function: Callable[[], None] = bench.many_models if part == "many" else getattr(bench, part)
            function()
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            taken = {"processor": processor(), "cpus": os.cpu_count(), "figures": bench.figures}
            options.json.write_text(json.dumps(taken, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
