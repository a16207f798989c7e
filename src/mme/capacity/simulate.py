"""Play requests against a fleet of instances, event by event, and say what the users saw.

What is modelled, in the words of docs/capacity.md: routing (random, least outstanding requests, sticky); each
instance's own memory and disk; loads that queue for a place and share the network, the disk and the cores; 507 and
unload, parking and waking; batches and cores shared as our container does or as the stock one does; the 60 seconds
after which a load is answered with ModelNotReady, and the client that asks again; target-tracking autoscaling with
its delays; deployments; warm lists. ``engine`` has the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mme.capacity import engine, scaling, state
from mme.capacity.caches import stationary
from mme.capacity.needs import OURS, MiB, Models, Serving
from mme.capacity.state import Bytes, Floats, Ints, Singles, World
from mme.errors import UsageError

ROUTINGS = {"random": state.RANDOM, "least-outstanding": state.LEAST_OUTSTANDING, "sticky": state.STICKY}
UNBOUNDED = 1 << 62


@dataclass(frozen=True)
class Autoscaling:
    """As in the module's ``autoscaling``: target is invocations per instance and minute. ``start_seconds``: from the
    decision to the first request on a new instance."""

    minimum: int
    maximum: int
    target: float
    scale_out_cooldown: float = 300.0
    scale_in_cooldown: float = 600.0
    start_seconds: float = 300.0


@dataclass(frozen=True)
class Fleet:
    """Instances of one kind. Bytes, seconds; ``memory`` is what is left for models, ``disk`` the volume.

    ``download`` is in bytes a second for all downloads of an instance together, ``extract`` in bytes a second of disk.
    """

    instances: int
    cpus: int
    memory: int = UNBOUNDED
    disk: int = UNBOUNDED
    download: float = float("inf")
    extract: float = float("inf")
    routing: str = "random"
    serving: Serving = OURS
    loads_at_once: int = 4
    spill: int = 0
    """Requests under way on a model's instance above which a sticky router takes another; 0: twice the cores."""
    load_timeout: float = 60.0
    answer_timeout: float = 60.0
    tries: int = 5
    retry_after: float = 1.0
    autoscaling: Autoscaling | None = None
    deployments: tuple[float, ...] = ()
    one_machine: bool = False
    """The instances are containers on one machine and share its ``cpus``, as those of the local AWS do."""
    warm: tuple[int, ...] = ()
    """Models (their numbers) that are loaded on every instance that comes into service."""


@dataclass(frozen=True)
class Requests:
    """Seconds from the start, in order; the number of each one's model; a factor of its model's seconds (or none)."""

    time: Floats
    model: Ints
    factor: Singles | None = None

    def __len__(self) -> int:
        return len(self.time)

    @property
    def seconds(self) -> float:
        return float(self.time[-1] - self.time[0]) if len(self.time) > 1 else 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of every request that counts (those after ``counted_from``), in order, and sums over the fleet.

    ``kind`` and ``outcome`` hold the numbers of ``engine``. ``latency`` in seconds, from the client's first attempt to
    its answer or refusal. Utilisations are shares of what the instances in service had.
    """

    time: Floats
    model: Ints
    kind: Bytes
    outcome: Bytes
    latency: Singles
    requests: int
    loads: int
    reloads: int
    unloads: int
    parks: int
    wakes: int
    retries: int
    scaled_out: int
    scaled_in: int
    processor: float
    network: float
    memory_mean: float
    memory_peak: float
    instance_hours: float
    seconds: float
    counted_seconds: float
    events: int

    @property
    def hits(self) -> Bytes:
        """1 for each request whose model was loaded when it came, parked or not."""
        return (self.kind <= state.WOKEN).astype(np.uint8)

    @property
    def hit_ratio(self) -> float:
        return float(self.hits.mean()) if len(self.kind) else 1.0

    @property
    def cold_share(self) -> float:
        """The share of requests that waited for a load."""
        return 1.0 - self.hit_ratio

    @property
    def woken_share(self) -> float:
        return float((self.kind == state.WOKEN).mean()) if len(self.kind) else 0.0

    @property
    def refused(self) -> int:
        """Requests without an answer, whatever the reason."""
        return int((self.outcome != state.OK).sum())

    def percentile(self, percent: float, which: NDArray[np.bool_] | None = None) -> float:
        """Seconds until the answer, of the requests that got one; not a number where none did."""
        good = self.outcome == state.OK
        if which is not None:
            good = good & which
        return float(np.percentile(self.latency[good], percent)) if good.any() else float("nan")

    def by_model(self, count: int) -> dict[str, Floats]:
        """For each model: requests, hit ratio, p50, p95 and p99 in seconds (not a number where nothing was asked)."""
        order = np.argsort(self.model, kind="stable")
        edges = np.searchsorted(self.model[order], np.arange(count + 1))
        asked = np.diff(edges).astype(np.float64)
        hit = np.bincount(self.model, weights=self.hits, minlength=count)
        rows = {"requests": asked, "hit_ratio": np.divide(hit, asked, out=np.full(count, np.nan), where=asked > 0)}
        good = self.outcome[order] == state.OK
        latency = self.latency[order]
        figures = np.full((3, count), np.nan)
        for m in np.flatnonzero(asked):
            part = latency[edges[m] : edges[m + 1]][good[edges[m] : edges[m + 1]]]
            if len(part):
                figures[:, m] = np.percentile(part, (50, 95, 99))
        return {**rows, "p50": figures[0], "p95": figures[1], "p99": figures[2]}


def simulate(
    models: Models,
    requests: Requests,
    fleet: Fleet,
    *,
    seed: int = 1,
    counted_from: float | None = None,
    start: Floats | None = None,
) -> Outcome:
    """Play it. ``counted_from`` (seconds of the trace): earlier requests warm the caches and are not counted.

    ``start``: requests a second of each model, to begin with the caches as such traffic would have left them (see
    ``caches.stationary``); None begins with empty caches. The same seed gives the same answer. Raises UsageError for a
    fleet that cannot be.
    """
    _check(models, fleet)
    try:
        world = _world(models, requests, fleet, seed)
    except MemoryError:
        raise UsageError(
            f"{len(models):,} models on {fleet.instances:,} instances need more memory than this machine has."
        ) from None
    count = fleet.instances
    if start is None:
        scaling.begin(world, count)
    else:
        world.ints[state.RUNNING_NOW] = count
        world.up[:count] = np.arange(count)
        world.inst[:count, state.UP] = 1
        places, held, states = stationary(models, fleet, start, np.random.default_rng(seed + 1))
        scaling.fill(world, places, held, states)
        if fleet.routing == "sticky":
            world.needs["home"][held] = places + 1
    engine.run(world)
    return _outcome(models, requests, fleet, world, counted_from)


def _check(models: Models, fleet: Fleet) -> None:
    if not len(models):
        raise UsageError("There is no model to plan for.")
    if fleet.instances < 1 or fleet.cpus < 1:
        raise UsageError("A fleet has one instance and one core at least.")
    if fleet.memory < 1 or fleet.disk < 1:
        raise UsageError(
            "An instance has no memory for models beside the container, or no disk.", "Take a larger type."
        )
    if fleet.routing not in ROUTINGS:
        raise UsageError(f"There is no routing {fleet.routing!r}.", f"Known: {', '.join(ROUTINGS)}.")
    scaling = fleet.autoscaling
    if scaling is not None:
        if not 1 <= scaling.minimum <= fleet.instances <= scaling.maximum:
            raise UsageError(
                f"The fleet begins with {fleet.instances} instances, outside its autoscaling range of "
                f"{scaling.minimum} to {scaling.maximum}."
            )
        if not scaling.target > 0:
            raise UsageError("The target of autoscaling is more than 0 invocations per instance and minute.")
    if any(later <= earlier for earlier, later in zip(fleet.deployments, fleet.deployments[1:], strict=False)):
        raise UsageError("Deployments come in order of their times.")


def _world(models: Models, requests: Requests, fleet: Fleet, seed: int) -> World:
    n, m = len(requests), len(models)
    scaling, serving = fleet.autoscaling, fleet.serving
    most = max(fleet.instances, scaling.maximum if scaling else 0)
    slots = most * (2 if fleet.deployments or scaling else 1)
    if slots * m > 2**31 - 2:
        raise UsageError(f"{m:,} models on {slots:,} instances are more pairs than can be simulated at a time.")
    random = np.random.default_rng(seed)
    factor = np.ones(n, np.float32) if requests.factor is None else requests.factor.astype(np.float32)
    spread = np.asarray(models.answer_spread, np.float32)
    chance = spread[random.integers(0, len(spread), n)] if len(spread) > 1 else np.full(n, spread[0])
    ring = 1 << max(4, (n + 1).bit_length())
    zeros = np.zeros
    ints = zeros(state.INTS, np.int64)
    for column, value in (
        (state.MODELS, m),
        (state.INSTANCES, slots),
        (state.CPUS, fleet.cpus),
        (state.BATCH_LIMIT, serving.batch_limit),
        (state.PARKING, int(serving.parking)),
        (state.MAX_LOADS, fleet.loads_at_once),
        (state.MAX_SPAWNS, fleet.cpus if serving.spawns_per_core else UNBOUNDED),
        (state.MAX_QUEUE, serving.max_queue),
        (state.ROUTING, ROUTINGS[fleet.routing]),
        (state.TRIES, fleet.tries),
        (state.SEED, int(random.integers(1, 2147483646))),
        (state.MEMORY_LIMIT, fleet.memory),
        (state.DISK_LIMIT, fleet.disk),
        (state.MINIMUM, scaling.minimum if scaling else 0),
        (state.MAXIMUM, scaling.maximum if scaling else 0),
        (state.SPILL, fleet.spill or 2 * fleet.cpus),
        (state.GRANT_LIMIT, fleet.cpus if serving.grants else UNBOUNDED),
        (state.ONE_MACHINE, int(fleet.one_machine)),
    ):
        ints[column] = value
    real = zeros(state.REAL, np.float64)
    for column, seconds in (
        (state.LOAD_TIMEOUT, fleet.load_timeout),
        (state.ANSWER_TIMEOUT, fleet.answer_timeout),
        (state.RETRY_AFTER, fleet.retry_after),
        (state.OVERHEAD, models.overhead),
        (state.PARK_AFTER, serving.park_after or float("inf")),
        (state.PATIENCE, 0.1 if serving.grants else float("inf")),
        (state.SHARED, serving.batch_shared),
        (state.TARGET, scaling.target if scaling else 0.0),
        (state.START_SECONDS, scaling.start_seconds if scaling else 0.0),
        (state.OUT_COOLDOWN, scaling.scale_out_cooldown if scaling else 0.0),
        (state.IN_COOLDOWN, scaling.scale_in_cooldown if scaling else 0.0),
        (state.LOAD_CORES, min(models.load_cores, fleet.cpus)),
        (state.WAKE_CORES, min(models.wake_cores, fleet.cpus)),
        (state.LAST_OUT, -1e18),
        (state.LAST_IN, -1e18),
    ):
        real[column] = seconds
    request = zeros(n, state.REQUEST)
    request["arrive"] = requests.time
    request["model"] = requests.model
    request["factor"] = factor
    request["chance"] = chance
    request["outcome"] = state.OPEN_YET
    needs = zeros(m, state.NEEDS)
    for name, needed in (
        ("disk", models.disk),
        ("active", models.active),
        ("parked", models.parked),
        ("answer", models.answer),
        ("cores", np.minimum(models.cores, fleet.cpus)),
        ("download", models.archive / fleet.download),
        ("extract", models.disk / fleet.extract),
        ("load", models.load),
        ("wake", models.wake),
    ):
        needs[name] = needed
    station = zeros(3 * slots, state.STATION)
    station["capacity"] = 1.0
    station["capacity"][state.CORES :: 3] = fleet.cpus
    station["key"] = np.inf
    station["order"] = station["place"] = np.arange(3 * slots)
    return World(
        request=request,
        needs=needs,
        pair=zeros((slots * m, state.PAIR_COLUMNS), np.int32),
        when=zeros(slots * m),
        inst=zeros((slots, state.INST_COLUMNS), np.int64),
        area=zeros((slots, state.AREA_COLUMNS)),
        station=station,
        late=np.empty(ring, state.WAIT),
        again=np.empty(ring, state.WAIT),
        ring=zeros(4, np.int64),
        up=zeros(slots + 1, np.int32),
        coming=zeros(slots + 1),
        load_spread=np.asarray(models.load_spread, np.float64),
        wake_spread=np.asarray(models.wake_spread, np.float64),
        deployments=np.asarray(fleet.deployments, np.float64),
        warm=np.asarray(fleet.warm, np.int32),
        ints=ints,
        real=real,
        counts=zeros(state.COUNTS, np.int64),
    )


def _outcome(models: Models, requests: Requests, fleet: Fleet, world: World, counted_from: float | None) -> Outcome:
    end = float(world.real[state.UNTIL])
    first = 0 if counted_from is None else int(np.searchsorted(requests.time, counted_from))
    running = world.inst[:, state.UP] == 1
    up = world.area[:, state.UP_SECONDS] + np.where(running, end - world.area[:, state.UP_SINCE], 0.0)
    memory = world.area[:, state.MEMORY_SECONDS] + world.inst[:, state.MEMORY] * (end - world.area[:, state.MEMORY_AT])
    seconds = max(float(up.sum()), 1e-9)
    machines = max(end, 1e-9) if fleet.one_machine else seconds
    counts = world.counts
    return Outcome(
        time=requests.time[first:],
        model=world.request["model"][first:].copy(),
        kind=world.request["kind"][first:].copy(),
        outcome=world.request["outcome"][first:].copy(),
        latency=world.request["latency"][first:].copy(),
        requests=len(requests),
        loads=int(counts[state.LOADED]),
        reloads=int(counts[state.RELOADED]),
        unloads=int(counts[state.UNLOADED]),
        parks=int(counts[state.PARKS]),
        wakes=int(counts[state.WAKES]),
        retries=int(counts[state.RETRIED]),
        scaled_out=int(counts[state.SCALED_OUT]),
        scaled_in=int(counts[state.SCALED_IN]),
        # What instances finish after they were taken out of service is work too, so that a sum may pass the whole.
        processor=min(1.0, float(world.station["busy"][state.CORES :: 3].sum()) / (machines * fleet.cpus)),
        network=min(1.0, float(world.station["busy"][state.NETWORK :: 3].sum()) / seconds),
        memory_mean=min(1.0, float(memory.sum()) / seconds / fleet.memory),
        memory_peak=float(world.inst[:, state.PEAK].max()) / fleet.memory,
        instance_hours=seconds / 3600,
        seconds=end,
        counted_seconds=float(requests.time[-1] - requests.time[first]) if first < len(requests) else 0.0,
        events=int(counts[state.EVENTS]),
    )


def memory_for_models(total: int, serving: Serving) -> int:
    """Bytes of an instance's memory that models can have: less the reserve that our container keeps (5 %, 256 MiB at
    least, 2 GiB at most; the stock one gets the same) and less the container itself."""
    reserve = min(max(total // 20, 256 * MiB), 2048 * MiB)
    return max(0, total - reserve - serving.base_bytes)


def hit_kinds(outcome: Outcome) -> Sequence[tuple[str, float]]:
    """(name, share of the requests) for each way in which a request can meet its model."""
    names = ("loaded", "parked", "on disk", "to be downloaded", "loading")
    total = max(1, len(outcome.kind))
    return [(name, float((outcome.kind == number).sum()) / total) for number, name in enumerate(names)]
