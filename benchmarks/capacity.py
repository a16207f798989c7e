"""The planner's predictions beside the real local endpoint, on the same traces.

    python -m benchmarks.capacity [--json FILE] [--seconds 150] [--rate 4] [--models 60] [--fits 40]
    python -m benchmarks.capacity --instances 2 [--models 48]
    python -m benchmarks.capacity --speed

One endpoint of the local AWS with our container: `--models` seeded models, of which the disk holds `--fits` at a time,
and which are parked after three seconds. Three traces: uniform, Zipf 0.8, and Zipf 1.2 with a deployment in the middle.
What a model needs is measured on the same endpoint right before and right after each trace, since a machine's speed
drifts. Requests are sent one at a time, with the trace's own pauses (back to back, they would find the processor's
caches warm), to models that are loaded, parked, and not loaded while the disk is full. Some are sent at the same time,
to see how they slow each other down: pairs to loaded and to parked models, and four to models that are not loaded,
since the local AWS fetches and extracts in one process. Then the trace is played in real time and simulated. The
first third warms the caches and is not counted.

Needs root, to mount the small file system that is the instance's disk. Figures are as good as the machine is quiet: the
load average is printed with them.

`--instances` plays another kind of trace: several containers behind one variant, each with caches of its own, which
begin empty and have room for everything. They share the cores of this machine, and the simulation has them share cores,
too. The traffic is Zipf 0.8 over half of the models, once for each of SageMaker's routings. Every request counts, since
what several instances change is how often a model is cold. It needs no root. Models' files are written to
the disk a second after they were extracted (see WrittenOut), as they are on an endpoint long before a model is parked.

`--speed` times the planner instead: 10 million requests for 100,000 models on 200 instances, and a plan for 400 models.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._capacity_endpoint import BALLAST, PARK_AFTER, Endpoint, WrittenOut, archive, disk
from benchmarks._processor import processor
from mme.capacity import instances, state
from mme.capacity.fleets import GB, Settings
from mme.capacity.measure import quantiles
from mme.capacity.needs import OURS, Models, models
from mme.capacity.plan import SAMPLE, Goal, plan
from mme.capacity.simulate import Fleet, Outcome, Requests, simulate
from mme.capacity.tfvars import ROUTING
from mme.capacity.trace import Law, busiest_of, generate
from mme.local import LocalAws

DEPLOYMENT_PAUSE = 20.0
TOGETHER = 4


class Calibration:
    """Seconds of requests of each kind: ``cold`` while the disk is full, ``warm``, ``woken``, all one at a time;
    ``warm pair`` and ``woken pair`` of two at a time; ``together`` until TOGETHER cold ones at a time are all answered.
    """

    def __init__(self, endpoint: Endpoint, rate: float) -> None:
        self.endpoint = endpoint
        self.rate = rate
        self.random = np.random.default_rng(5)
        self.times: dict[str, list[float]] = {
            kind: [] for kind in ("cold", "warm", "woken", "warm pair", "woken pair", "together")
        }

    def pause(self) -> None:
        """As long as between two requests of a trace, but no longer than a model stays awake."""
        time.sleep(min(float(self.random.exponential(1 / self.rate)), PARK_AFTER / 4))

    def ask(self, kind: str, *models: int) -> None:
        """The models at the same time, and a pause before."""
        self.pause()
        with ThreadPoolExecutor(len(models)) as pool:
            self.times[kind] += pool.map(self.endpoint.ask, models)

    def fill(self, models: Sequence[int], counted: int) -> None:
        """Ask for all of them, of which the last ``counted`` find a full disk."""
        for number, model in enumerate(models):
            self.pause()
            seconds = self.endpoint.ask(model)
            if number >= len(models) - counted:
                self.times["cold"].append(seconds)

    def loaded(self, models: Sequence[int]) -> None:
        """``models``: loaded ones, about 16."""
        for _ in range(2):
            time.sleep(PARK_AFTER + 1)
            half = len(models) // 2
            for model in models[:half]:
                self.ask("woken", model)
            for one, other in zip(models[half::2], models[half + 1 :: 2], strict=False):
                self.ask("woken pair", one, other)
            few = models[:2]
            for _ in range(2):
                self.endpoint.ask(few[0])
                self.endpoint.ask(few[1])
            for _ in range(12):
                self.ask("warm", few[0])
                self.ask("warm", few[1])
            for _ in range(8):
                self.ask("warm pair", *few)

    def absent(self, models: Sequence[int]) -> None:
        """``models``: ones that are not loaded."""
        for start in range(0, len(models) - TOGETHER, TOGETHER):
            self.pause()
            began = time.perf_counter()
            with ThreadPoolExecutor(TOGETHER) as pool:
                list(pool.map(self.endpoint.ask, models[start : start + TOGETHER]))
            self.times["together"].append(time.perf_counter() - began)


def spread_of(seconds: Sequence[float]) -> list[float]:
    """The quantiles as factors of the median; one factor where the median is 0."""
    usual = statistics.median(seconds)
    return quantiles([max(0.0, value) / usual for value in seconds]) if usual > 0 else [1.0]


def cores_of(alone: Sequence[float], two: Sequence[float], cpus: int) -> float:
    """How many cores one of two keeps busy: two at a time on ``cpus`` cores take ``2 * cores / cpus`` as long."""
    return min(float(cpus), max(1.0, statistics.median(two) / statistics.median(alone) * cpus / 2))


def trace(count: int, exponent: float, rate: float, seconds: float, pause_at: float | None) -> Requests:
    random = np.random.default_rng(11)
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    number = int(rate * seconds)
    times = np.sort(random.uniform(0, seconds, number))
    if pause_at is not None:
        times = np.where(times >= pause_at, times + DEPLOYMENT_PAUSE, times)
    return Requests(times, random.choice(count, number, p=weights / weights.sum()).astype(np.int32))


def play(endpoint: Endpoint, asked: Requests, deploy_at: float | None) -> np.ndarray:
    """Ask in real time; seconds of each request."""
    seconds = np.full(len(asked), np.nan)
    with ThreadPoolExecutor(32) as pool:
        began = time.perf_counter()

        def one(number: int) -> None:
            seconds[number] = endpoint.ask(int(asked.model[number]))

        deployed = deploy_at is None
        for number, moment in enumerate(asked.time):
            if not deployed and deploy_at is not None and moment >= deploy_at:
                wait = began + deploy_at - time.perf_counter()
                time.sleep(max(0.0, wait))
                pool.submit(endpoint.deploy)
                deployed = True
            time.sleep(max(0.0, began + moment - time.perf_counter()))
            pool.submit(one, number)
    return seconds


def needs_of(times: dict[str, list[float]], args: argparse.Namespace) -> tuple[Models, dict[str, float]]:
    """What a model needs, for the simulation and in words."""
    answer = statistics.median(times["warm"])
    cold = statistics.median(times["cold"])
    # Four loads at a time take cold + 3 * serial seconds; the serial part goes to the network, the rest to the cores.
    serial = (statistics.median(times["together"]) - cold) / (TOGETHER - 1)
    serial = min(max(serial, 0.0), cold - answer)
    wake_cores = cores_of(times["woken"], times["woken pair"], args.cores)
    needs = models(
        [f"m{n}" for n in range(args.models)],
        disk=args.size,
        active=1,
        archive=serial * 1e9,
        load=cold - answer - serial,
        wake=max(0.0, statistics.median(times["woken"]) - answer),
        answer=answer,
        cores=cores_of(times["warm"], times["warm pair"], args.cores),
        answer_spread=quantiles([seconds / answer for seconds in times["warm"]]),
        load_spread=spread_of([seconds - answer - serial for seconds in times["cold"]]),
        wake_spread=spread_of([seconds - answer for seconds in times["woken"]]),
        load_cores=wake_cores,  # what is not fetched is a process that starts, as in a wake
        wake_cores=wake_cores,
    )
    return needs, {
        "warm": answer,
        "woken": statistics.median(times["woken"]),
        "cold": cold,
        "of it one at a time": serial,
        "two warm": statistics.median(times["warm pair"]),
        "two woken": statistics.median(times["woken pair"]),
    }


def result(
    name: str,
    times: dict[str, list[float]],
    summary: dict[str, float],
    measured: np.ndarray,
    hit: float,
    predicted: Outcome,
) -> dict[str, Any]:
    """A row: what the endpoint did (``measured``: seconds of each, ``hit``: the ratio), and what was predicted."""
    good = measured[np.isfinite(measured)]
    row = {
        "trace": name,
        "load_average": os.getloadavg()[0],
        "requests": len(measured),
        "failed": int(np.isnan(measured).sum()),
        "measured": {"hit": hit, **{f"p{p}": float(np.percentile(good, p)) for p in (50, 99)}},
        "predicted": {"hit": predicted.hit_ratio, **{f"p{p}": predicted.percentile(p) for p in (50, 99)}},
        "needs": summary,
        "predicted_woken": predicted.woken_share,
        "kinds": [int(kind) for kind in predicted.kind],
        "samples": {**times, "answers": [float(seconds) for seconds in measured]},
        "simulated": [float(seconds) for seconds in predicted.latency],
        "refused": int((predicted.outcome != state.OK).sum()),
    }
    say(row)
    return row


def compare(
    endpoint: Endpoint, name: str, exponent: float, args: argparse.Namespace, limit: int, deploys: bool
) -> dict[str, Any]:
    endpoint.create()
    calibration = Calibration(endpoint, args.rate)
    calibration.fill(range(args.models), args.models // 3)
    calibration.loaded(range(args.models - 16, args.models))
    # Those that have not been asked for longest are not there any more when the others are.
    calibration.absent(range(args.models // 3))
    half = args.seconds / 2 if deploys else None
    asked = trace(args.models, exponent, args.rate, args.seconds, half)
    first = args.seconds / 3
    cut = int(np.searchsorted(asked.time, first))
    # CloudWatch counts by the minute, not by request, so the counted part is played on its own.
    early = Requests(asked.time[:cut], asked.model[:cut])
    play(endpoint, early, None)
    before = endpoint.hits(0.0)
    late = Requests(asked.time[cut:] - asked.time[cut], asked.model[cut:])
    measured = play(endpoint, late, None if half is None else half - float(asked.time[cut]) + 0.1)
    after = endpoint.hits(0.0)
    number, hit = after[0] - before[0], after[1] - before[1]
    recent = list(dict.fromkeys(int(model) for model in asked.model[::-1]))
    calibration.loaded(recent[:16])
    endpoint.delete()

    times = calibration.times
    needs, summary = needs_of(times, args)
    fleet = Fleet(
        1,
        args.cores,
        disk=limit,
        download=1e9,
        serving=replace(OURS, park_after=PARK_AFTER),
        deployments=() if half is None else (half + 0.1,),
    )
    predicted = simulate(needs, asked, fleet, counted_from=float(asked.time[cut]))
    return result(name, times, summary, measured, hit / max(1, number), predicted)


def several(endpoint: Endpoint, routing: str, args: argparse.Namespace) -> dict[str, Any]:
    """Several instances with empty caches and room for all."""
    count = args.models // 2
    calibration = Calibration(endpoint, args.rate)

    def calibrate() -> None:
        endpoint.create()
        calibration.fill(range(count), count - 1)
        calibration.loaded(range(16))
        calibration.absent(range(count, args.models))
        endpoint.delete()

    calibrate()
    asked = trace(count, 0.8, args.rate, args.seconds, None)
    endpoint.create(args.instances, ROUTING[routing] or "")
    before = endpoint.hits(0.0)
    measured = play(endpoint, asked, None)
    after = endpoint.hits(0.0)
    endpoint.delete()
    calibrate()
    times = calibration.times
    needs, summary = needs_of(times, args)
    fleet = Fleet(
        args.instances,
        args.cores,
        download=1e9,
        routing=routing,
        serving=replace(OURS, park_after=PARK_AFTER),
        one_machine=True,
    )
    predicted = simulate(needs, asked, fleet)
    name = f"Zipf 0.8, {args.instances} instances, {routing}"
    return result(name, times, summary, measured, (after[1] - before[1]) / max(1, after[0] - before[0]), predicted)


def say(row: dict[str, Any]) -> None:
    seen, predicted = row["measured"], row["predicted"]
    needs = ", ".join(f"{key} {value * 1000:.0f} ms" for key, value in row["needs"].items())
    print(f"{row['trace']} ({row['requests']} requests, {row['failed']} failed; one at a time: {needs};")
    print(f"  load average {row['load_average']:.1f})")
    print(
        f"  hit ratio  measured {seen['hit'] * 100:6.2f} %   predicted {predicted['hit'] * 100:6.2f} %   "
        f"{(predicted['hit'] - seen['hit']) * 100:+.2f} points"
    )
    for key in ("p50", "p99"):
        print(
            f"  {key:<9}  measured {seen[key] * 1000:6.0f} ms  predicted {predicted[key] * 1000:6.0f} ms  "
            f"{(predicted[key] / seen[key] - 1) * 100:+.0f} %",
            flush=True,
        )


def speed() -> dict[str, float]:
    """Seconds of a large simulation and of a plan, by the clock and of processor time."""
    needs = models(
        [f"m{n}" for n in range(100_000)], disk=100e6, active=115e6, load=0.06, wake=0.05, answer=0.01, cores=1.5
    )
    asked, rates = generate(Law(4000, 1.1, 2500), 100_000)
    fleet = Fleet(200, 4, memory=14 << 30, disk=500 * GB, download=250e6, extract=500e6)
    figures: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        figures[f"{name}_s"] = time.perf_counter() - wall
        figures[f"{name}_cpu_s"] = time.process_time() - cpu
        print(
            f"{name}: {figures[f'{name}_s']:.1f} s, of the processor {figures[f'{name}_cpu_s']:.1f} s "
            f"(load average {os.getloadavg()[0]:.1f})",
            flush=True,
        )

    few = Requests(asked.time[:1000], asked.model[:1000])
    timed("compilation, or reading it from the disk", lambda: simulate(needs, few, fleet))
    timed(f"{len(asked):,} requests", lambda: simulate(needs, asked, fleet, start=rates))
    small = models(
        [f"m{n}" for n in range(400)], disk=90e6, active=105e6, load=0.06, wake=0.05, answer=0.012, cores=1.3
    )
    traffic, shares = busiest_of(Law(200, 0.9, 3600), 400, SAMPLE)
    prices = instances.load()
    timed("a plan for 400 models", lambda: plan(small, traffic, shares, prices, Goal(), Settings()))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seconds", type=float, default=150.0, help="how long each trace is played")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--models", type=int, default=60, help="how many models there are")
    parser.add_argument("--fits", type=int, default=40, help="how many of them the disk holds")
    parser.add_argument("--cores", type=int, default=2, help="cores of this machine, for the simulation")
    parser.add_argument(
        "--instances",
        type=int,
        default=1,
        help="containers behind the variant; above 1, another kind of trace (see above)",
    )
    parser.add_argument("--speed", action="store_true", help="time the planner instead")
    args = parser.parse_args()
    if args.speed:
        figures = speed()
        if args.json:
            args.json.write_text(json.dumps({"processor": processor(), **figures}, indent=2))
        return
    weights = len(archive(0))
    args.size = BALLAST + 384 * 384 * 4 + 8192
    if args.instances > 1:
        print(f"{processor()}; {args.models} models of {args.size / 1e6:.1f} MB, all fit", flush=True)
        with (
            tempfile.TemporaryDirectory(prefix="mme-capacity-") as work,
            LocalAws(Path(work) / "aws", iam=False, max_instances=args.instances) as aws,
            WrittenOut(Path(work) / "aws"),
        ):
            endpoint = Endpoint(aws, args.models)
            rows = [several(endpoint, routing, args) for routing in ("random", "least-outstanding")]
        if args.json:
            args.json.write_text(json.dumps({"processor": processor(), "traces": rows}, indent=2))
        return
    print(f"{processor()}; {args.models} models of {args.size / 1e6:.1f} MB, {args.fits} of them fit", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="mme-capacity-") as work,
        disk(Path(work) / "disk", 4 << 30) as folder,
        LocalAws(folder / "aws", iam=False) as aws,
    ):
        endpoint = Endpoint(aws, args.models)
        # Fill the disk but for the room of so many models and a half: the half is for what is not counted.
        free = int((args.fits + 0.5) * args.size) + 3 * weights
        usage = subprocess.run(["df", "-B1", "--output=avail", str(folder)], capture_output=True, text=True, check=True)
        available = int(usage.stdout.split()[1])
        with (folder / "filler").open("wb") as filler:
            block = bytes(1 << 20)
            for _ in range((available - free) >> 20):
                filler.write(block)
        rows = [
            compare(endpoint, name, exponent, args, args.fits * args.size + args.size // 2, deploys)
            for name, exponent, deploys in (
                ("uniform", 0.0, False),
                ("Zipf 0.8", 0.8, False),
                ("Zipf 1.2, a deployment in the middle", 1.2, True),
            )
        ]
    if args.json:
        args.json.write_text(json.dumps({"processor": processor(), "traces": rows}, indent=2))


if __name__ == "__main__":
    main()
