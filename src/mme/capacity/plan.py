"""The search: for each instance type the fewest instances that meet the goal, by simulation; and what else there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from mme.capacity.alternatives import Alternative, other_ways
from mme.capacity.fleets import MOST_VOLUME, Settings, fleet_of, on, volume_of
from mme.capacity.instances import InstanceType, Prices
from mme.capacity.needs import OURS, STOCK, Models
from mme.capacity.simulate import Outcome, Requests, memory_for_models, simulate
from mme.capacity.state import OK, TOO_LARGE, Floats
from mme.errors import UsageError
from mme.operate import processors

MOST_INSTANCES = 200
ENOUGH = 12  # once this many fleets meet the goal, more expensive types are not tried
SAMPLE = 60_000
"""Requests of one simulation of the search. Its caches start as long traffic would have left them."""
COUNTED = 0.2
"""The part of them that comes before what is counted."""
WORKERS = 2
# docs/figures.md, "The serving container": processor time of an answer in int8 and in float32, 8 models by Zipf's law
# 1.7 and 3.5 ms, with a client each 2.3 and 5.4; on a processor with VNNI.
INT8_SECONDS = 0.49
INT8_BYTES = 0.25


@dataclass(frozen=True)
class Goal:
    """The goal for users: seconds, and shares of the requests. None means no goal."""

    p99: float | None = 0.3
    cold: float | None = 0.01
    refused: float = 0.001

    def check(self) -> None:
        if self.p99 is not None and not self.p99 > 0:
            raise UsageError("The goal for p99 must be above 0 seconds.")
        if self.cold is not None and not 0 <= self.cold <= 1:
            raise UsageError("The goal for cold requests is a share from 0 to 1.")

    @property
    def words(self) -> str:
        wishes = [f"p99 under {self.p99 * 1000:g} ms"] if self.p99 is not None else []
        wishes += [f"cold under {self.cold * 100:g} %"] if self.cold is not None else []
        return ", ".join([*wishes, f"refused under {self.refused * 100:g} %"])

    def missed(self, outcome: Outcome) -> list[str]:
        """The goals that an outcome does not meet: p99, cold, refused."""
        missed = []
        total = max(1, len(outcome.kind))
        p99 = outcome.percentile(99)
        if self.p99 is not None and not (p99 <= self.p99 or (math.isnan(p99) and not len(outcome.kind))):
            missed.append("p99")
        if self.cold is not None and outcome.cold_share > self.cold:
            missed.append("cold")
        if outcome.refused / total > self.refused:
            missed.append("refused")
        return missed


@dataclass(frozen=True)
class Option:
    """One fleet and what its users see. Seconds, shares, US dollars a month."""

    type: str
    instances: int
    usd_month: float
    volume: int | None
    p50: float
    p95: float
    p99: float
    cold: float
    woken: float
    refused: float
    processor: float
    memory: float
    network: float
    limit: str
    missed: tuple[str, ...] = ()

    @property
    def meets(self) -> bool:
        return not self.missed


@dataclass(frozen=True)
class Change:
    """What something would change: instances of the chosen type, and the month."""

    name: str
    instances: int | None
    usd_month: float | None
    words: str


@dataclass(frozen=True)
class Plan:
    goal: Goal
    options: list[Option]
    best: Option | None
    skipped: dict[str, float]
    """Types that were not simulated: even the processor time alone costs this much a month, more than the best."""
    alternatives: list[Alternative]
    changes: list[Change]
    trials: list[Option] = field(default_factory=list)


def busiest(requests: Requests, most: int = SAMPLE) -> Requests:
    """The part of a trace in which the requests come fastest, ``most`` of them."""
    if len(requests) <= most:
        return requests
    spans = requests.time[most:] - requests.time[:-most]
    begin = int(np.argmin(spans))
    part = slice(begin, begin + most)
    factor = None if requests.factor is None else requests.factor[part]
    return Requests(requests.time[part] - requests.time[begin], requests.model[part], factor)


class Search:
    """Simulations of one traffic against many fleets, and their results."""

    def __init__(
        self, models: Models, requests: Requests, rates: Floats, prices: Prices, goal: Goal, settings: Settings
    ) -> None:
        goal.check()
        if not 1 <= settings.at_least <= MOST_INSTANCES:
            raise UsageError(f"A plan has 1 to {MOST_INSTANCES} instances of one type at least.")
        self.models = models
        self.requests = busiest(requests)
        self.rates = rates
        self.prices = prices
        self.goal = goal
        self.settings = settings
        seconds = self.requests.seconds
        self.peak = len(self.requests) / seconds if seconds > 0 else 0.0
        self.trials: list[Option] = []
        self._done: dict[tuple[object, ...], Outcome] = {}

    def outcome(self, kind: InstanceType, count: int) -> Outcome:
        # Types that differ in nothing but their name and price are simulated once.
        same = (kind.vcpus, kind.memory, kind.local_disk, kind.core, count)
        if same not in self._done:
            self._done[same] = self._simulated(kind, count)
        return self._done[same]

    def _simulated(self, kind: InstanceType, count: int) -> Outcome:
        fleet = fleet_of(kind, count, self.models, self.settings)
        # The caches are as the traffic leaves them in the long run, at the rate of its busiest hours.
        scale = self.peak / max(float(self.rates.sum()), 1e-12)
        start = self.rates * scale if self.peak else None
        first = self.requests.time[int(len(self.requests) * COUNTED)] if len(self.requests) else 0.0
        return simulate(
            on(kind, self.models, self.settings),
            self.requests,
            fleet,
            seed=self.settings.seed,
            counted_from=float(first),
            start=start,
        )

    def trial(self, kind: InstanceType, count: int) -> Option:
        outcome = self.outcome(kind, count)
        missed = self.goal.missed(outcome)
        if _queues_grow(outcome):
            missed.append("steady queues")
        option = Option(
            kind.name,
            count,
            self.prices.month(kind.usd_per_hour * count),
            volume_of(kind, self.models, self.settings),
            outcome.percentile(50),
            outcome.percentile(95),
            outcome.percentile(99),
            outcome.cold_share,
            outcome.woken_share,
            outcome.refused / max(1, len(outcome.kind)),
            outcome.processor,
            outcome.memory_mean,
            outcome.network,
            _limit(outcome, missed),
            tuple(missed),
        )
        self.trials.append(option)
        return option

    def least_by_processor(self, kind: InstanceType) -> int:
        """Instances that the processor time alone needs, were every batch full."""
        needs = on(kind, self.models, self.settings)
        cores = np.minimum(needs.cores, kind.vcpus)
        share = self.rates / max(float(self.rates.sum()), 1e-12)
        work = self.peak * float((share * needs.answer * cores).sum()) * (1 - self.settings.serving.batch_shared)
        return max(self.settings.at_least, math.ceil(work / kind.vcpus - 1e-9), 1)

    def _hopeless(self, kind: InstanceType, tried: Option) -> str | None:
        """Why no number of instances meets the goal, where one request alone needs too much; else None."""
        outcome = self.outcome(kind, tried.instances)
        large = outcome.model[outcome.outcome == TOO_LARGE]
        if len(large) > self.goal.refused * len(outcome.model):
            fleet = fleet_of(kind, 1, self.models, self.settings)
            what = "memory" if self.models.active[large[0]] > fleet.memory else "disk"
            return f"{what} (too little for {self.models.names[large[0]]} alone)"
        seconds = on(kind, self.models, self.settings).answer[self.requests.model]
        if self.requests.factor is not None:
            seconds = seconds * self.requests.factor
        limit = fleet_of(kind, 1, self.models, self.settings).answer_timeout
        if "refused" in tried.missed and float((seconds > limit).mean()) > self.goal.refused:
            return f"processor (answers that take more than {limit:g} seconds alone)"
        slow = float(np.percentile(seconds, 99)) if len(seconds) else 0.0
        if self.goal.p99 is not None and slow > self.goal.p99:
            return f"processor (an answer alone takes {slow:.3g} seconds)"
        return None

    def fewest(self, kind: InstanceType, most: int = MOST_INSTANCES) -> Option:
        """The fewest instances that meet the goal; else the last trial, with what it misses."""
        least = self.least_by_processor(kind)
        low = min(least, most)
        option = self.trial(kind, low)
        if least > MOST_INSTANCES:  # and a trial of seconds does not show it
            missed = option.missed or ("steady queues",)
            return replace(
                option, missed=missed, limit=f"processor ({least:,} instances have enough, {most} are tried)"
            )
        if option.meets:
            return replace(option, limit=option.limit if low > self.settings.at_least else "the fewest allowed")
        if limit := self._hopeless(kind, option):
            return replace(option, limit=limit)
        failed, worst = low, option
        count = low
        while not option.meets:
            if count >= most:
                return option
            previous = option
            failed, worst = count, option
            count = min(most, max(count + 1, int(count * 1.6)))
            option = self.trial(kind, count)
            if not option.meets and _no_better(previous, option, count / failed):
                # Few instances may be short of anything. What more instances do not improve is the caches.
                stuck = "cold" in option.missed
                limit = _caches(self.outcome(kind, previous.instances)) if stuck else previous.limit
                return replace(previous, limit=limit)
        while count - failed > 1:
            middle = (count + failed) // 2
            tried = self.trial(kind, middle)
            if tried.meets:
                count, option = middle, tried
            else:
                failed, worst = middle, tried
        return replace(option, limit=worst.limit)


def _queues_grow(outcome: Outcome) -> bool:
    """Whether more comes in than the cores can do, so that requests wait longer and longer: the traffic that was
    simulated may be too short for p99 to tell, and users' is not."""
    good = outcome.latency[outcome.outcome == OK]
    if outcome.processor < 0.95 or len(good) < 1000:
        return False
    middle = len(good) // 2
    return float(np.median(good[middle:])) > 1.2 * float(np.median(good[:middle]))


def _no_better(before: Option, after: Option, times: float) -> bool:
    """Whether more instances do not help: each has its own cache, so that a cold share can stay where it is."""
    if "cold" in after.missed and after.cold > before.cold * 0.97 and after.processor < 0.7:
        return True
    calm = after.processor < 0.3 and after.network < 0.3
    return times > 1.2 and "p99" in after.missed and calm and after.p99 > 0.97 * before.p99


def _caches(outcome: Outcome) -> str:
    return "disk (models do not stay)" if outcome.unloads == 0 else "memory and disk (models do not stay)"


def _limit(outcome: Outcome, missed: Sequence[str]) -> str:
    """What stands in the way, in a word or two."""
    if outcome.processor > 0.75:
        return "processor"
    if outcome.network > 0.75:
        return "network (downloads)"
    if "cold" in missed or ("p99" in missed and outcome.cold_share > 0.01):
        return _caches(outcome)
    if "p99" in missed and outcome.woken_share > 0.01:
        return "memory (models are woken)"
    if "refused" in missed:
        return "queues"
    return "processor (waiting)" if "p99" in missed else "-"


def plan(
    models: Models,
    requests: Requests,
    rates: Floats,
    prices: Prices,
    goal: Goal,
    settings: Settings,
    types: Sequence[str] = (),
    *,
    changes: bool = True,
) -> Plan:
    """The cheapest fleet that meets the goal, and everything beside it. ``types``: only these; else all that can be
    simulated. Raises UsageError for a type without a price, and for one that cannot be simulated.
    """
    kinds = [prices.type(name) for name in dict.fromkeys(types)] if types else prices.simulated()
    for kind in kinds:
        kind.check_simulated()
    search = Search(models, requests, rates, prices, goal, settings)
    largest = int(models.active.max())
    kinds = [k for k in kinds if memory_for_models(k.memory, settings.serving) > 0]
    if not kinds:
        raise UsageError(
            "No type has memory for models beside the container.",
            f"It takes {settings.serving.base_bytes >> 20} MiB itself, and 256 MiB at least stay free.",
        )
    kinds = [k for k in kinds if memory_for_models(k.memory, settings.serving) >= largest] or kinds[:1]
    bounds = {k.name: prices.month(k.usd_per_hour * search.least_by_processor(k)) for k in kinds}
    kinds.sort(key=lambda k: (bounds[k.name], k.usd_per_hour))
    offers: list[Option] = []
    skipped: dict[str, float] = {}

    def cheapest() -> float:
        return min((option.usd_month for option in offers if option.meets), default=math.inf)

    def one(kind: InstanceType) -> None:
        bound = bounds[kind.name]
        best = cheapest()
        if not types and (bound >= best or sum(option.meets for option in list(offers)) >= ENOUGH):
            skipped[kind.name] = bound
            return
        most = MOST_INSTANCES
        if not types and best < math.inf:
            most = max(1, min(most, math.ceil(1.5 * best / prices.month(kind.usd_per_hour))))
        offers.append(search.fewest(kind, max(most, settings.at_least)))

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(one, kinds))
    options = sorted(offers, key=lambda o: (not o.meets, 0.0 if o.meets else o.cold, o.usd_month, o.type))
    best = options[0] if options and options[0].meets else None
    nearest = options[0] if options else None
    return Plan(
        goal,
        options,
        best,
        skipped,
        other_ways(models, rates, search.peak, prices, settings),
        changes_to(search, nearest, prices.types[nearest.type]) if nearest and changes else [],
        search.trials,
    )


# ---- what would change it -----------------------------------------------------------------------------------------


def changes_to(search: Search, best: Option, kind: InstanceType) -> list[Change]:
    """What a larger volume, int8, adapters, the other container, the router and a warm list would do to a fleet."""
    settings, models = search.settings, search.models
    cases: list[tuple[str, Models, Settings, str]] = []
    volume = best.volume
    if volume is not None and volume < MOST_VOLUME and volume < float(models.disk.sum()):
        cases.append(("a volume of 512 GB", models, replace(settings, volume=MOST_VOLUME), ""))
    if settings.serving.parking:
        slow = processors.lacks(kind.name, None, "int8") is not None
        seconds = f"as many seconds, for {kind.name} has no VNNI" if slow else f"{INT8_SECONDS:g} of the seconds"
        words = f"from docs/figures.md: a quarter of the bytes, {seconds}; check the accuracy"
        cases.append(("int8", int8(models, 1.0 if slow else INT8_SECONDS), settings, words))
        if len(models) > 1 and float(models.disk.max()) <= 1.1 * float(models.disk.min()):
            cases.append(("adapters on one shared base", adapters(models), settings, "if the models are fine-tunings"))
        cases.append(("the stock container instead of ours", models, replace(settings, serving=STOCK), "same needs"))
    else:
        words = "same seconds and memory; measure it (--needs) for what it really needs"
        cases.append(("our container instead of the stock one", models, replace(settings, serving=OURS), words))
    if best.instances > 1 and settings.routing == "random":
        words = "as AWS describes multi-model routing: a model's requests go where it is loaded"
        cases.append(("sticky routing", models, replace(settings, routing="sticky"), words))

    def one(case: tuple[str, Models, Settings, str]) -> Change:
        name, changed, with_settings, words = case
        other = Search(changed, search.requests, search.rates, search.prices, search.goal, with_settings)
        option = other.fewest(kind, min(MOST_INSTANCES, 4 * best.instances + 4))
        if not option.meets:
            return Change(name, None, None, f"does not meet the goal on {kind.name} ({', '.join(option.missed)})")
        less = best.instances - option.instances
        said = (
            f"meets the goal with {option.instances} x {option.type}"
            if not best.meets
            else f"saves {less} of {best.instances} instances"
            if less > 0
            else f"needs {-less} instance{'s' if less < -1 else ''} more"
            if less < 0
            else "the same number of instances"
        )
        p99 = "unknown" if math.isnan(option.p99) else f"{option.p99 * 1000:.0f} ms"
        said += f"; p99 {p99}, cold {option.cold * 100:.2f} %"
        return Change(name, option.instances, option.usd_month, f"{said}{'; ' + words if words else ''}")

    with ThreadPoolExecutor(WORKERS) as pool:
        made = list(pool.map(one, cases))
    return [*made, _warm_list(search, best, kind)]


def int8(models: Models, seconds: float = INT8_SECONDS) -> Models:
    """The same models with weights of 8 bits, of whose answers each takes ``seconds`` times as long: see INT8_BYTES and
    INT8_SECONDS. Where a processor lacks the instructions (VNNI), nobody has measured it: as long as before."""
    saved = (models.disk * (1 - INT8_BYTES)).astype(np.int64)
    return replace(
        models,
        disk=models.disk - saved,
        archive=(models.archive * INT8_BYTES).astype(np.int64),
        active=np.maximum(models.active - saved, 0),
        answer=models.answer * seconds,
    )


def adapters(models: Models) -> Models:
    """The same models as adapters: equal weight files are linked, so that one set of weights serves all of them.

    Each then has its private memory, and 2 % of the disk; the first also has the base.
    """
    private = np.maximum(models.active - models.disk, models.active // 20)
    disk = np.maximum(models.disk // 50, 1)
    active = private.copy()
    active[0] += models.disk[0]
    disk[0] = models.disk[0]
    return replace(models, disk=disk, active=active)


def _warm_list(search: Search, best: Option, kind: InstanceType) -> Change:
    """Cold requests in the time after a deployment, with and without loading the most popular models at once."""
    fleet = fleet_of(kind, best.instances, search.models, search.settings)
    needs = on(kind, search.models, search.settings)
    popular = np.argsort(-search.rates)[: max(1, min(len(needs) // 10, 200))]
    moment = float(search.requests.time[len(search.requests) // 4]) if len(search.requests) else 0.0
    shares = []
    for warm in ((), tuple(int(m) for m in popular)):
        outcome = simulate(
            needs,
            search.requests,
            replace(fleet, deployments=(moment,), warm=warm),
            seed=search.settings.seed,
            counted_from=moment,
            start=search.rates * (search.peak / max(float(search.rates.sum()), 1e-12)),
        )
        shares.append(outcome.cold_share)
    after = float(search.requests.time[-1]) - moment if len(search.requests) else 0.0
    span = f"{after:.0f} seconds" if after < 120 else f"{after / 60:.0f} minutes"
    return Change(
        "a warm list of the most popular" if len(popular) == 1 else f"a warm list of the {len(popular)} most popular",
        best.instances,
        best.usd_month,
        f"in the {span} after a deployment {shares[1] * 100:.2f} % cold instead of {shares[0] * 100:.2f} %",
    )
