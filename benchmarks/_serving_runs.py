"""What the parts of benchmarks/serving.py share: models, servers, and rounds in which the servers take turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._servers import MlServer, Server, Stock
from benchmarks._serving_clients import drive, paused, summary
from benchmarks._serving_models import LOADS, gpt2, minilm, stored_int8

SETTINGS = {"bf16": {"dtype": "bfloat16"}, "int8": {"quantize": "int8"}}  # of the embedding handler


@dataclass(frozen=True)
class Target:
    """A model on a server, under the name that it has in the table."""

    name: str
    server: Server
    model: str = "m"


class Runs:
    """Models, servers, and rounds in which the servers take turns. Results are printed and stored in ``figures``."""

    def __init__(self, work: Path, seconds: float, many: int, crowded: int, without: Container[str]) -> None:
        self.work = work
        self.seconds = seconds
        self.many = many
        self.crowded = crowded
        self.without = without
        self.figures: dict[str, Any] = {}
        self._models: dict[str, Path] = {}
        self._logs = 0

    def row(self, what: str, who: str, figure: str) -> None:
        print(f"  {what:<44} {who:<36} {figure}", flush=True)

    def model(self, name: str) -> Path:
        if name not in self._models:
            folder = self.work / "models" / name
            if name == "gpt2":
                self._models[name] = gpt2(folder)
            elif name == "stored-int8":
                self._models[name] = stored_int8(folder)
            elif name in SETTINGS:
                self._models[name] = minilm(folder, **SETTINGS[name])
            else:
                self._models[name] = minilm(folder, seed=int(name.removeprefix("bert")) or None)
        return self._models[name]

    @contextlib.contextmanager
    def servers(
        self, stock_workers: Sequence[int] = (), mlservers: Sequence[dict[str, Any]] = (), **ours: str
    ) -> Iterator[list[Server]]:
        """Ours, with these settings, and the other servers that are wanted and installed. They end with the block."""
        made: list[Server] = []
        try:
            made.append(Server("ours", self.log(), **ours))
            if "stock" not in self.without:
                for workers in stock_workers:
                    made.append(Stock(self.log(), workers))
            if "mlserver" not in self.without:
                for settings in mlservers:
                    made.append(MlServer(self.log(), **settings))
            yield made
        finally:
            for server in made:
                server.stop()

    def log(self) -> Path:
        self._logs += 1
        return self.work / f"{self._logs}.log"

    def rounds(
        self, targets: list[Target], bodies: Callable[[Server], list[str]], clients: int
    ) -> dict[str, dict[str, float]]:
        """Drives every target twice with this many clients, in turns. Returns each one's summary by its name."""
        runs: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
        for _ in range(2):
            for target in targets:
                with paused({other.server for other in targets} - {target.server}):
                    for body in bodies(target.server)[:2]:  # the first ones after a stop find cold caches
                        target.server.invoke(target.model, body)
                    run = drive(target.server, target.model, bodies(target.server), clients, self.seconds / 2)
                runs[target.name].append(run)
        return {name: summary(run) for name, run in runs.items()}

    def drive(
        self,
        what: str,
        servers: list[Server],
        targets: list[tuple[Server, str, list[str]]],
        clients: int,
        zipf: bool = False,
        load: str = "short",
        warm: float = 1.0,
    ) -> None:
        """Drives the targets (server, its name in the table, models) in turns, and prints a row for each."""
        runs: dict[str, list[dict[str, Any]]] = {name: [] for _, name, _ in targets}
        for turn in range(4):  # the first is for warming up
            for server, name, models in targets:
                bodies = [server.text(text) for text in LOADS[load]]
                with paused(other for other in servers if other is not server):
                    run = drive(server, models, bodies, clients, self.seconds / 3 if turn else warm, zipf)
                if turn:
                    runs[name].append(run)
        for name, taken in runs.items():
            self.show(what, name, taken)

    def show(self, what: str, name: str, runs: list[dict[str, Any]]) -> None:
        figure = summary(runs)
        self.figures[f"{what}, {name}"] = figure
        speed = f"{figure['per_second']:.{0 if figure['per_second'] > 10 else 1}f} per second"
        text = f"{speed}; p50 {figure['p50_ms']:.1f}, p99 {figure['p99_ms']:.1f} ms; "
        self.row(what, name, text + f"{figure['cpu_ms_each']:.2f} ms of the processor each")


def speed(figures: dict[str, float]) -> str:
    return (
        f"{figures['per_second']:.0f}/s, p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms, "
        f"cpu {figures['cpu_ms_each']:.1f} ms each"
    )
