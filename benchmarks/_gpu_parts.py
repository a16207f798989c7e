"""The parts of gpu.py: each a function that measures one thing and reports rows as it goes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _gpu_models
from benchmarks._gpu_card import Card, MadeUpCard, MiB
from benchmarks._processor import processor
from benchmarks._servers import Server, Stock, missing
from benchmarks._serving_clients import drive, paused, summary
from benchmarks._serving_models import LOADS, PROMPT, SHORT, link

# How far an answer may be from the CPU's in float32, relative to its largest number: the format's rounding, summed in
# another order.
ERRORS = {"float32": 2e-5, "bfloat16": 0.05, "float16": 0.01}
PROMPTS = (PROMPT, "the crew counted", "gulls followed its wake and the", "every port along the northern coast where")
PAIRS = [["the ship crossed", "gulls followed its wake"], ["merchants waited", "with news of prices and weather"]]


class Ours(Server):
    grace_seconds = 5.0  # a part that is stopped frees the card soon


class Bench:
    def __init__(self, part: str, work: Path, cuda: bool, quick: bool, without_stock: bool) -> None:
        self.part, self.work, self.cuda, self.quick = part, work, cuda, quick
        self.card: Card = Card() if cuda else MadeUpCard(work, models=4)
        self.without = missing().get("stock", "") or ("it was not wanted" if without_stock else "")
        self.seconds = 0.3 if quick else 1.4
        self._numbers = itertools.count(1)

    def row(self, what: str, who: str, figure: str, good: bool | None = None, **values: Any) -> None:
        line = {"what": what, "who": who, "figure": figure, **({} if good is None else {"good": good}), **values}
        print(json.dumps(line), flush=True)

    def bert(self, number: int) -> Path:
        return self.work / "models" / f"bert{number % len(self.berts)}"

    @property
    def berts(self) -> range:
        return range(2 if self.quick else 4)

    @property
    def gpt2(self) -> Path:
        return self.work / "models" / "gpt2"

    def variant(self, source: Path, **settings: Any) -> Path:
        name = "-".join([source.name, *map(str, settings.values())])
        folder = self.work / "variants" / f"{name}-{self.part}-{next(self._numbers)}"
        return _gpu_models.with_settings(source, folder, **settings)

    def _log(self) -> Path:
        return self.work / f"{self.part}-{next(self._numbers)}.log"

    @contextlib.contextmanager
    def ours(self, admitting: bool = False, **environ: str) -> Iterator[Server]:
        """Our container on the GPU; without one, on the CPU or, for what is about ``admitting``, on a made-up card."""
        device = self.card.environ if self.cuda or admitting else {"MME_DEVICE": "cpu"}
        server = Ours("ours", self._log(), **device, **environ)
        try:
            yield server
        finally:
            server.stop()

    @contextlib.contextmanager
    def both(self) -> Iterator[tuple[Server, list[Server]]]:
        """Our container and, where it can be had, the stock one. They start side by side."""
        with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
            stock = pool.submit(Stock, self._log(), 1) if not self.without else None
            ours = stack.enter_context(self.ours())
            others: list[Server] = []
            problem = self.without
            if stock is not None and (problem := " ".join(str(stock.exception() or "").split())) == "":
                others.append(stock.result())
                stack.callback(stock.result().stop)
            if problem:
                self.row("the stock stack", "stock", f"left out: {problem}")
            yield ours, others


def run(part: str, work: Path, cuda: bool, quick: bool, without_stock: bool) -> None:
    _gpu_models.prepare()
    globals()[part](Bench(part, work, cuda, quick, without_stock))


def models(b: Bench) -> None:
    """Not a measurement: makes what the others measure."""
    import torch
    import transformers

    b.work.joinpath("models").mkdir()
    machine = {
        "device": torch.cuda.get_device_name(0) if b.cuda else "none: the CPU, and a made-up card for admission",
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "transformers": transformers.__version__,
        "processor": processor(),
    }
    print(json.dumps({"machine": machine}), flush=True)
    for number in b.berts:
        _gpu_models.bert(b.bert(number), number, b.quick)
    _gpu_models.bert(b.work / "models" / "pairs", 8, b.quick, "reranking")
    _gpu_models.bert(b.work / "models" / "classifier", 9, b.quick, "none")
    _gpu_models.gpt2(b.gpt2, 7, b.quick)


# --- correct ---------------------------------------------------------------------------------------------------------


def correct(b: Bench) -> None:
    """Answers beside those that transformers gives on the CPU in float32."""
    texts = [SHORT, *LOADS["mixed"]]
    wanted = _gpu_models.embeddings(b.bert(0), texts)
    reader = _gpu_models.Reader(b.gpt2)
    tokens = 6 if b.quick else 20
    with b.ours() as server:
        before = b.card.used(server)
        for name, error in ERRORS.items():
            server.load(f"bert-{name}", b.variant(b.bert(0), dtype=name))
            _embeddings(b, server, f"bert-{name}", name, error, texts, wanted)
        if b.cuda:
            taken = b.card.used(server) - before
            b.row("they are on the GPU", "ours", f"{taken / 1e6:.0f} MB of it", taken > 3 * 50 * MiB)
        for name, error in ERRORS.items():
            server.load(f"gpt2-{name}", b.variant(b.gpt2, dtype=name))
            _texts(b, server, f"gpt2-{name}", name, error, reader, tokens)
        server.load("pairs", b.work / "models" / "pairs")
        scores = np.array(server.invoke("pairs", json.dumps({"inputs": PAIRS}))["scores"])
        logits = _gpu_models.logits_of_pairs(b.work / "models" / "pairs", PAIRS)[:, 0]
        _compare(b, "scores of pairs", "float32", 1e-4, scores, 1 / (1 + np.exp(-logits)))
        server.load("classifier", b.work / "models" / "classifier")
        body = {"inputs": SHORT, "parameters": {"top_k": None}}
        labels = {each["label"]: each["score"] for each in server.invoke("classifier", json.dumps(body))}
        logits = _gpu_models.logits_of_pairs(b.work / "models" / "classifier", [[SHORT]])[0]
        softmax = np.exp(logits) / np.exp(logits).sum()
        got = np.array([labels[f"LABEL_{place}"] for place in range(len(softmax))])
        _compare(b, "a classifier without a handler", "float32", 1e-4, got, softmax)


def _compare(b: Bench, what: str, name: str, error: float, got: Any, wanted: Any) -> None:
    apart = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    b.row(f"{what}, {name}", "ours", f"{apart:.1e} from the CPU's, {error:.0e} allowed", apart <= error, apart=apart)


def _embeddings(b: Bench, server: Server, model: str, name: str, error: float, texts: list[str], wanted: Any) -> None:
    def ask(text: str) -> Any:
        return server.invoke(model, server.text(text))["embeddings"][0]

    _compare(b, "embeddings one by one", name, error, np.array([ask(text) for text in texts]), wanted)
    with ThreadPoolExecutor(24) as pool:
        together = np.array(list(pool.map(ask, texts * 4)))
    _compare(b, "embeddings, 24 at once", name, error, together, np.concatenate([wanted] * 4))


def _texts(b: Bench, server: Server, model: str, name: str, error: float, reader: Any, tokens: int) -> None:
    def ask(prompt: str) -> str:
        parameters = {"max_new_tokens": tokens, "min_new_tokens": tokens, "return_full_text": False}
        answer = server.invoke(model, json.dumps({"inputs": prompt, "parameters": parameters}))
        return str(answer[0]["generated_text"])

    alone = [ask(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, PROMPTS * 2))
    for what, answers in (("texts one by one", alone), ("texts, 8 at once", together)):
        gaps = [reader.gap(prompt, text, tokens) for prompt, text in zip(itertools.cycle(PROMPTS), answers)]
        same = sum(gap == 0 for gap in gaps)
        figure = f"{same} of {len(gaps)} as the CPU's, the farthest token {max(gaps):.1e} below, {error:.0e} allowed"
        b.row(f"{what}, {name}", "ours", figure, max(gaps) <= error, same=same, gap=max(gaps))


# --- load, memory ----------------------------------------------------------------------------------------------------


def load(b: Bench) -> None:
    """LOAD to the first answer. Also the memory of a further model in the stock stack, whose loads are slow."""
    with b.both() as (ours, others):
        b.row("start to healthy ping", "ours", f"{ours.start_seconds:.1f} s", seconds=ours.start_seconds)
        for (kind, folder), server in itertools.product((("MiniLM", b.bert(0)), ("GPT-2", b.gpt2)), (ours, *others)):
            times, taken = [], []
            for number in range(7 if server is ours and not b.quick else 2 if kind == "MiniLM" else 1):
                before = b.card.used(server), server.memory()
                body = server.text(SHORT) if kind == "MiniLM" else server.prompt(PROMPT, 1)
                name = f"{kind}-{number}"
                began = time.perf_counter()
                server.load(name, link(folder, b.work / "load" / f"{server.port}-{name}"))
                server.invoke(name, body)
                times.append(time.perf_counter() - began)
                taken.append(((b.card.used(server) - before[0]) / 1e6, server.memory() - before[1]))
                if server is ours:
                    server.unload(name)
            middle = statistics.median(times[1:] or times)
            figure = f"{middle:.2f} s (the very first {times[0]:.2f} s)"
            b.row(f"LOAD to first answer, {kind}", server.name, figure, seconds=middle, first=times[0])
            if server is not ours:
                _further(b, kind, server, *taken[-1])


def _further(b: Bench, kind: str, server: Server, gpu: float, machine: float) -> None:
    on_gpu = f"{gpu:.0f} MB of the GPU, " if b.cuda else ""
    figure = f"{on_gpu}{machine:.0f} MB of the machine"
    b.row(f"a further {kind}", server.name, figure, gpu_mb=gpu, mb=machine)


def memory(b: Bench) -> None:
    """Memory of the GPU and of the machine for a further model that has answered; and what parking gives back."""
    count = 2 if b.quick else 4
    with b.ours(MME_PARK_AFTER="0") as server:
        for kind, body in (("MiniLM", server.text(SHORT)), ("GPT-2", server.prompt(PROMPT, 4))):
            for number in range(count + 2):  # the first two create what all further ones share
                if number == 2:
                    _settle(b, server)
                    before = b.card.used(server), server.memory()
                server.load(f"{kind}{number}", b.bert(number) if kind == "MiniLM" else b.gpt2)
                server.invoke(f"{kind}{number}", body)
            _settle(b, server)
            gpu, machine = (b.card.used(server) - before[0]) / count / 1e6, (server.memory() - before[1]) / count
            _further(b, kind, server, gpu, machine)
    with b.ours(admitting=True, MME_PARK_AFTER="0.5") as server:
        empty = b.card.used(server)
        for number in range(2):
            server.load(f"m{number}", b.bert(number))
        _wait_parked(server, 2)
        left = b.card.used(server) - empty
        b.row("left on the GPU by parked models", "ours", f"{left / 1e6:.0f} MB", left < 64 * MiB, bytes=left)


def _settle(b: Bench, server: Server) -> None:
    """Wait until the processes have been idle for a second and have released what they no longer need."""
    time.sleep(0.2 if b.quick else 2.0)
    server.call("GET", "/ping")


def _metric(server: Server, pattern: str) -> float:
    text = server.call("GET", "/metrics")[1].decode()
    return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))


def _wait_parked(server: Server, count: int) -> None:
    while _metric(server, 'mme_models{state="parked"}') != count or len(server.pids()) > 2:
        time.sleep(0.05)


# --- full, turns -----------------------------------------------------------------------------------------------------


def full(b: Bench) -> None:
    """507 where the card is full, on LOAD and within a request; and answers again once there is room."""
    with b.ours(admitting=True, MME_PARK_AFTER="0.5") as server:
        server.load("parked", b.bert(0))
        _wait_parked(server, 1)
        ask = server.text(SHORT)
        with b.card.filled(left=300 * MiB):
            for what, method, path, body in (
                ("LOAD on a full card", "POST", "/models", json.dumps({"model_name": "new", "url": str(b.bert(1))})),
                ("a parked model is asked for on a full card", "POST", server.path("parked"), ask),
            ):
                status, answer = server.call(method, path, body)
                _status(b, what, status, 507, b"GPU memory" in answer, answer)
        _status(b, "the parked model, once there is room", server.call("POST", server.path("parked"), ask)[0], 200)
        server.load("new", b.bert(1))
        _status(b, "the new model, once there is room", server.call("POST", server.path("new"), ask)[0], 200)
        _within_requests(b, server)
    with b.ours(admitting=True, MME_PARK_AFTER="0") as server, b.card.filled(left=1700 * MiB):
        with ThreadPoolExecutor(8) as pool:
            bodies = [json.dumps({"model_name": f"m{n}", "url": str(b.bert(n))}) for n in range(8)]
            answers = list(pool.map(lambda body: server.call("POST", "/models", body)[0], bodies))
        died = _metric(server, "mme_died_total")
        good = set(answers) <= {200, 507} and 200 in answers and not died
        figure = (
            f"{answers.count(200)} loaded, {answers.count(507)} times 507, {died:.0f} processes ended by themselves"
        )
        b.row("8 LOADs at once, room for two", "ours", figure, good)


def _status(b: Bench, what: str, status: int, wanted: int, said: bool = True, answer: bytes = b"") -> None:
    more = "" if said else f", and it says {answer.decode(errors='replace')[:200]}"
    b.row(what, "ours", f"{status}{more}", status == wanted and said)


def _within_requests(b: Bench, server: Server) -> None:
    server.load("hungry", _gpu_models.code_of(_gpu_models.HUNGRY, b.work / "models" / "hungry"))
    too_much = server.call("POST", server.path("hungry"), json.dumps({"bytes": 2 * b.card.total}))[0]
    _status(b, "a request that needs more than there is", too_much, 507)
    _status(b, "the next one", server.call("POST", server.path("hungry"), '{"bytes": 0}')[0], 200)
    if b.cuda:
        source = "import torch\ndef model_fn(d): return torch.zeros(2, device='cuda')\n"
        source += "def predict_fn(data, m): return m[torch.tensor([data], device='cuda')].cpu().tolist()\n"
        folder = _gpu_models.code_of(source, b.work / "models" / "ruined")
        server.load("ruined", folder)
        _status(b, "an assertion fails in a kernel", server.call("POST", server.path("ruined"), "9")[0], 500)
        while _metric(server, "mme_died_total") < 1:
            time.sleep(0.05)
        _status(b, "its model afterwards", server.call("POST", server.path("ruined"), "1")[0], 404)
        server.load("ruined", folder)
        _status(b, "its model, loaded anew", server.call("POST", server.path("ruined"), "1")[0], 200)


def turns(b: Bench) -> None:
    """More models than fit, loaded and then asked in turns: the card holds the latest, and the others are parked."""
    wanted, clients = (6, 2) if b.quick else (200, 8)
    seconds, loading = (2.0, 60.0) if b.quick else (15.0, 45.0)
    with b.ours(admitting=True, MME_PARK_AFTER="0") as server:
        began = time.perf_counter()

        def bring(number: int) -> int:
            if time.perf_counter() - began > loading:  # every CUDA context makes the next one slower to create
                return 0
            server.load(f"m{number}", link(b.bert(number), b.work / "turns" / str(number)))
            if (number + 1) % 50 == 0:
                b.row(f"{number + 1} models loaded", "ours", f"{time.perf_counter() - began:.1f} s")
            return 1

        with ThreadPoolExecutor(min(clients, os.cpu_count() or 1)) as pool:
            count = sum(pool.map(bring, range(wanted)))
        active = _metric(server, 'mme_models{state="active"}')
        figure = f"{time.perf_counter() - began:.1f} s, {active:.0f} of them with a process"
        b.row(f"{count} of {wanted} models", "ours", figure, seconds=time.perf_counter() - began, active=active)
        names, times, other = itertools.cycle(range(count)), [], []
        until = time.perf_counter() + seconds

        def ask(_: int) -> None:
            while (began := time.perf_counter()) < until:
                name = f"m{next(names)}"
                status = server.call("POST", server.path(name), server.text(SHORT))[0]
                (times if status == 200 else other).append(time.perf_counter() - began if status == 200 else status)

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(clients)))
        times.sort()
        wakes = _metric(server, "mme_wakes_total")
        if not times:
            b.row(f"{count} models in turns", "ours", f"no answer, but {sorted(set(other))}", False)
            return
        figure = (
            f"{len(times)} answers, {wakes:.0f} of them woke a model; p50 {times[len(times) // 2] * 1e3:.0f}, "
            f"p99 {times[int(len(times) * 0.99)] * 1e3:.0f} ms"
        )
        more = f"; {len(other)} others: {sorted(set(other))}" if other else ""
        b.row(f"{count} models in turns, {clients} clients", "ours", figure + more, not other, wakes=wakes)


# --- speed -----------------------------------------------------------------------------------------------------------


def speed(b: Bench) -> None:
    """Answers a second, the servers taking turns."""
    clients = (1, 4) if b.quick else (1, 8, 64)
    formats = ("float32",) if b.quick else ("float32", "bfloat16")
    tokens = 4 if b.quick else 20
    with b.both() as (ours, others):
        names: list[tuple[Server, str, str]] = [(ours, name, f"ours, {name}") for name in formats]
        names += [(server, "float32", server.name) for server in others]
        loads = []
        with ThreadPoolExecutor(4) as pool:
            for server, name, _ in names:
                loads.append(pool.submit(server.load, f"bert-{name}", b.variant(b.bert(0), dtype=name)))
                loads.append(pool.submit(server.load, f"gpt2-{name}", b.variant(b.gpt2, dtype=name)))
        for each in loads:
            each.result()
        asked = {
            "texts a second, short": ("bert", [SHORT], 1),
            "tokens a second, GPT-2": ("gpt2", [PROMPT], tokens),
            "texts a second, mixed lengths": ("bert", LOADS["mixed"], 1),
        }
        for (what, (kind, texts, each)), many in itertools.product(asked.items(), clients):
            for server, name, who in names:
                bodies = [server.text(text) if kind == "bert" else server.prompt(text, tokens) for text in texts]
                with paused(other for other in (ours, *others) if other is not server):
                    drive(server, f"{kind}-{name}", bodies, many, _warm(b))
                    figures = summary([drive(server, f"{kind}-{name}", bodies, many, b.seconds)])
                figure = (
                    f"{figures['per_second'] * each:.0f}; p50 {figures['p50_ms']:.1f}, p99 {figures['p99_ms']:.1f} ms; "
                    f"{figures['cpu_ms_each']:.1f} ms of the processor each"
                )
                b.row(f"{what}, {many} clients", who, figure, **figures)
        with ThreadPoolExecutor(8) as pool:
            for server in (ours, *others):
                list(pool.map(lambda number: server.load(f"m{number}", b.bert(number)), range(8)))  # noqa: B023
        for server in (ours, *others):
            models = [f"m{number}" for number in range(8)]
            with paused(other for other in (ours, *others) if other is not server):
                drive(server, models, [server.text(SHORT)], 8, _warm(b))
                figures = summary([drive(server, models, [server.text(SHORT)], 8, b.seconds)])
            figure = f"{figures['per_second']:.0f}; p50 {figures['p50_ms']:.1f}, p99 {figures['p99_ms']:.1f} ms"
            b.row("texts a second, 8 models, a client each", server.name, figure, **figures)


def _warm(b: Bench) -> float:
    """Seconds to warm up."""
    return min(0.4, b.seconds)
