"""The simulation against independent answers: libcachesim, Che's approximation, queueing formulas, cases by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import libcachesim
import numpy as np
import pytest

from mme.capacity import compiled, state
from mme.capacity.caches import che_hit_ratio
from mme.capacity.needs import OURS, STOCK, Models, models
from mme.capacity.simulate import Autoscaling, Fleet, Outcome, Requests, simulate
from mme.errors import UsageError

INSTANT_PARKING = replace(OURS, park_after=float("inf"))


def zipf(count: int, exponent: float) -> np.ndarray:
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    return weights / weights.sum()


def drawn(count: int, weights: np.ndarray, seed: int = 0, rate: float = 1.0) -> Requests:
    random = np.random.default_rng(seed)
    which = random.choice(len(weights), count, p=weights).astype(np.int32)
    return Requests(np.cumsum(random.exponential(1 / rate, count)), which)


def named(count: int, **needs: object) -> Models:
    return models([f"m{n}" for n in range(count)], **{"disk": 1, "active": 1, **needs})  # type: ignore[arg-type]


def at(*times_and_models: tuple[float, int]) -> Requests:
    return Requests(
        np.array([time for time, _ in times_and_models], float), np.array([m for _, m in times_and_models], np.int32)
    )


# ---- caches


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.2])
@pytest.mark.parametrize("share", [0.05, 0.4])
def test_its_lru_equals_libcachesims_request_by_request(exponent: float, share: float) -> None:
    count = 2000
    sizes = np.random.default_rng(7).integers(1, 50, count)
    asked = drawn(100_000, zipf(count, exponent), seed=3)
    capacity = int(sizes.sum() * share)
    ours = simulate(named(count, active=sizes), asked, Fleet(1, 2, memory=capacity, serving=STOCK))
    theirs = libcachesim.LRU(cache_size=capacity)
    hits = [theirs.get(libcachesim.Request(obj_id=int(m) + 1, obj_size=int(sizes[m]))) for m in asked.model]
    assert np.array_equal(ours.hits.astype(bool), np.array(hits))


@pytest.mark.slow
def test_its_lru_equals_libcachesims_on_ten_million_requests() -> None:
    count, capacity = 100_000, 5_000
    asked = drawn(10_000_000, zipf(count, 0.9), seed=5)
    ours = simulate(named(count), asked, Fleet(1, 2, memory=capacity, serving=STOCK))
    theirs = libcachesim.LRU(cache_size=capacity)
    request = libcachesim.Request(obj_size=1)
    get = theirs.get
    hits = np.zeros(len(asked), np.uint8)
    for n, m in enumerate(asked.model.tolist()):
        request.obj_id = m + 1
        hits[n] = get(request)
    assert np.array_equal(ours.hits, hits)


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.2])
@pytest.mark.parametrize("capacity", [50, 500, 2500])
def test_hit_ratio_is_ches_within_a_point(exponent: float, capacity: int) -> None:
    weights = zipf(5000, exponent)
    asked = drawn(400_000, weights, seed=1)
    outcome = simulate(named(5000), asked, Fleet(1, 2, memory=capacity, serving=STOCK), counted_from=200_000)
    assert outcome.hit_ratio == pytest.approx(che_hit_ratio(weights, np.ones(5000), capacity), abs=0.01)


@pytest.mark.parametrize("serving", [STOCK, INSTANT_PARKING])
def test_a_stationary_start_is_where_a_long_run_ends(serving: object) -> None:
    weights = zipf(3000, 0.8)
    fleet = Fleet(3, 2, memory=300, disk=900, serving=serving)  # type: ignore[arg-type]
    asked = drawn(300_000, weights, seed=2)
    long = simulate(named(3000), asked, fleet, counted_from=200_000)
    short = simulate(named(3000), drawn(30_000, weights, seed=4), fleet, start=weights)
    assert short.hit_ratio == pytest.approx(long.hit_ratio, abs=0.01)
    assert short.woken_share == pytest.approx(long.woken_share, abs=0.01)


def test_random_routing_makes_each_of_many_caches_cold() -> None:
    """Two instances hold the same popular models twice; with a sticky router they hold twice as many."""
    weights = zipf(1000, 0.8)
    asked = drawn(100_000, weights)
    spread = simulate(named(1000), asked, Fleet(4, 2, memory=100, serving=STOCK), counted_from=50_000)
    alone = che_hit_ratio(weights, np.ones(1000), 100)
    assert spread.hit_ratio == pytest.approx(alone, abs=0.01)
    sticky = simulate(named(1000), asked, Fleet(4, 2, memory=100, serving=STOCK, routing="sticky"), counted_from=50_000)
    assert sticky.hit_ratio > alone + 0.15


def test_an_object_larger_than_the_memory_is_refused_and_disturbs_nothing() -> None:
    outcome = simulate(
        named(3, active=[5, 5, 11]), at((0, 0), (1, 1), (2, 2), (3, 0), (4, 1)), Fleet(1, 1, memory=10, serving=STOCK)
    )
    assert outcome.outcome.tolist() == [state.OK, state.OK, state.TOO_LARGE, state.OK, state.OK]
    assert outcome.hits.tolist() == [0, 0, 0, 1, 1]
    assert outcome.refused == 1


def test_a_deployment_empties_all_caches() -> None:
    asked = at(*[(second, 0) for second in range(10)])
    outcome = simulate(named(1), asked, Fleet(1, 1, deployments=(4.5,)))
    assert outcome.hits.tolist() == [0, 1, 1, 1, 1, 0, 1, 1, 1, 1]


def test_a_warm_list_is_loaded_before_it_is_asked_for() -> None:
    asked = at((5, 0), (6, 1), (15, 0), (16, 1))
    outcome = simulate(named(2, load=0.5), asked, Fleet(1, 2, deployments=(10.0,), warm=(0,)))
    assert outcome.hits.tolist() == [1, 0, 1, 0]


# ---- what a cold request waits for


def test_a_cold_start_is_download_extraction_and_load() -> None:
    needs = named(2, disk=1000, archive=800, load=0.5, answer=0.25)
    fleet = Fleet(1, 2, download=100.0, extract=500.0)
    outcome = simulate(needs, at((0, 0), (20, 0), (30, 1)), fleet)
    assert outcome.latency == pytest.approx([8 + 2 + 0.5 + 0.25, 0.25, 10.75])
    assert outcome.kind.tolist() == [state.DOWNLOADED, state.HIT, state.DOWNLOADED]


def test_two_downloads_share_the_network_and_a_third_waits_for_its_place() -> None:
    needs = named(3, disk=0, archive=100)
    outcome = simulate(needs, at((0, 0), (0, 1), (0, 2)), Fleet(1, 4, download=100.0, loads_at_once=2))
    assert outcome.latency == pytest.approx([2, 2, 3])


def test_what_was_unloaded_comes_back_from_disk_and_what_was_deleted_is_downloaded() -> None:
    needs = named(3, disk=10, archive=100, load=0.1)
    fleet = Fleet(1, 1, memory=1, disk=20, download=100.0, serving=STOCK)
    outcome = simulate(needs, at((0, 0), (10, 1), (20, 0), (30, 2), (40, 1)), fleet)
    assert outcome.kind.tolist() == [
        state.DOWNLOADED,
        state.DOWNLOADED,
        state.FROM_DISK,
        state.DOWNLOADED,
        state.DOWNLOADED,
    ]
    assert outcome.latency == pytest.approx([1.1, 1.1, 0.1, 1.1, 1.1], rel=1e-5)


def test_requests_for_a_model_that_is_loading_wait_for_the_same_load() -> None:
    outcome = simulate(named(1, load=2.0), at((0, 0), (0.5, 0), (3, 0)), Fleet(1, 2))
    assert outcome.kind.tolist() == [state.DOWNLOADED, state.JOINED, state.HIT]
    assert outcome.latency == pytest.approx([2, 1.5, 0])
    assert outcome.loads == 1


def test_idle_models_are_parked_after_a_while_and_woken() -> None:
    needs = named(1, load=1.0, wake=0.25)
    outcome = simulate(needs, at((0, 0), (800, 0), (1800, 0)), Fleet(1, 1))
    assert outcome.kind.tolist() == [state.DOWNLOADED, state.HIT, state.WOKEN]
    assert outcome.latency == pytest.approx([1, 0, 0.25])
    assert (outcome.parks, outcome.wakes, outcome.loads) == (1, 1, 1)


def test_loads_and_wakes_vary_by_factors_of_their_own() -> None:
    """What a load varies by (a download, a full disk) says nothing of how a wake varies."""
    asked = at(*((1000.0 * turn, 0) for turn in range(200)))
    parking = replace(OURS, park_after=10.0)
    needs = named(1, load=1.0, wake=0.1, load_spread=(5.0,), wake_spread=(0.5, 1.5))
    outcome = simulate(needs, asked, Fleet(1, 1, serving=parking))
    assert outcome.latency[0] == pytest.approx(5.0)
    assert set(np.round(outcome.latency[1:], 3)) == {np.float32(0.05), np.float32(0.15)}


def test_memory_parks_models_in_our_container_and_unloads_them_in_the_stock_one() -> None:
    asked = at((0, 0), (1, 1), (2, 0))
    ours = simulate(named(2, load=0.5, wake=0.1), asked, Fleet(1, 1, memory=1))
    assert (ours.hits.tolist(), ours.parks, ours.unloads) == ([0, 0, 1], 2, 0)
    stock = simulate(named(2, load=0.5, wake=0.1), asked, Fleet(1, 1, memory=1, serving=STOCK))
    assert (stock.hits.tolist(), stock.parks, stock.unloads) == ([0, 0, 0], 0, 2)


def test_a_load_waits_while_every_model_in_memory_is_in_use() -> None:
    needs = named(2, answer=[5.0, 1.0])
    outcome = simulate(needs, at((0, 0), (1, 1)), Fleet(1, 4, memory=1, serving=STOCK))
    assert outcome.latency == pytest.approx([5, 5])


def test_a_model_not_ready_in_time_is_asked_for_again() -> None:
    needs = named(1, load=100.0)
    fleet = Fleet(1, 1, load_timeout=60, retry_after=1, tries=5)
    outcome = simulate(needs, at((0, 0)), fleet)
    assert (outcome.outcome.tolist(), outcome.retries) == ([state.OK], 1)
    assert outcome.latency == pytest.approx([100])
    gave_up = simulate(needs, at((0, 0)), replace(fleet, tries=1))
    assert gave_up.outcome.tolist() == [state.NOT_READY]
    assert gave_up.latency == pytest.approx([60])


# ---- who computes


def test_one_server_waits_as_pollaczek_and_khinchin_say() -> None:
    """M/D/1 at 70 %: the mean of the wait is rho / (2 (1 - rho)) services."""
    asked = drawn(200_000, np.ones(1), seed=8, rate=70.0)
    one_by_one = replace(OURS, batch_limit=1, max_queue=10**6)
    outcome = simulate(named(1, answer=0.01), asked, Fleet(1, 1, serving=one_by_one))
    assert outcome.latency.mean() == pytest.approx(0.01 * (1 + 0.7 / (2 * 0.3)), rel=0.03)
    assert outcome.processor == pytest.approx(0.7, rel=0.02)


def test_the_stock_containers_models_share_the_cores_as_processor_sharing_says() -> None:
    """M/G/1 with processor sharing: the mean of the time is service / (1 - rho), whatever the service."""
    count = 500
    asked = drawn(200_000, np.full(count, 1 / count), seed=9, rate=60.0)
    outcome = simulate(named(count, answer=0.01), asked, Fleet(1, 1, serving=STOCK), counted_from=200)
    assert outcome.latency.mean() == pytest.approx(0.01 / (1 - 0.6), rel=0.05)


def test_requests_that_wait_together_are_answered_together() -> None:
    half = replace(OURS, batch_shared=0.5, batch_limit=4)
    asked = at((0, 0), (0.01, 0), (0.02, 0), (0.03, 0))
    outcome = simulate(named(1, answer=0.08), asked, Fleet(1, 1, serving=half))
    # The first alone; then three in 0.08 * (0.5 + 1.5).
    assert outcome.latency == pytest.approx([0.08, 0.23, 0.22, 0.21])


def test_a_job_on_many_cores_gives_way_to_another() -> None:
    """Two models that each could use two cores have one each."""
    outcome = simulate(named(2, answer=1.0, cores=2.0), at((0, 0), (0, 1)), Fleet(1, 2))
    assert outcome.latency == pytest.approx([2, 2])


def test_loads_and_wakes_on_many_cores_give_way_to_each_other() -> None:
    """Two at a time on two cores, each of which keeps one and a half busy alone, take 3 / 2 as long."""
    both = at((0, 0), (0, 1), (1000, 0), (1000, 1), (2000, 0))
    needs = named(2, load=1.0, wake=0.1, load_cores=1.5, wake_cores=1.5)
    outcome = simulate(needs, both, Fleet(1, 2, serving=replace(OURS, park_after=10.0)))
    assert outcome.latency == pytest.approx([1.5, 1.5, 0.15, 0.15, 0.1])
    single = simulate(needs, both, Fleet(1, 1, serving=replace(OURS, park_after=10.0)))
    assert single.latency == pytest.approx([1, 2, 0.1, 0.2, 0.1]), "one core brings up one model at a time"


def test_containers_on_one_machine_share_its_cores() -> None:
    """Two answers on two instances at a time: beside each other on two machines, and half as fast on one core."""
    asked = at((0, 0), (0, 1), (5, 0), (5, 1))
    needs = named(2, answer=1.0)
    for one_machine, seconds in ((False, 1.0), (True, 2.0)):
        fleet = Fleet(2, 1, routing="least-outstanding", one_machine=one_machine)
        outcome = simulate(needs, asked, fleet)
        assert outcome.latency == pytest.approx([seconds] * 4)
        assert outcome.processor == pytest.approx(4 / (6 * 2) if not one_machine else 4 / 7)


def test_a_first_answer_does_not_vary_once_more() -> None:
    """What loads and wakes were seen to vary by has their first answers in it; the others vary by themselves."""
    asked = at(*((1000.0 * turn + after, 0) for turn in range(100) for after in (0, 5)))
    needs = named(1, load=1.0, wake=1.0, answer=0.1, answer_spread=(2.0, 3.0))
    outcome = simulate(needs, asked, Fleet(1, 1, serving=replace(OURS, park_after=10.0)))
    assert outcome.latency[::2] == pytest.approx(1.1)
    assert set(np.round(outcome.latency[1::2], 3)) == {np.float32(0.2), np.float32(0.3)}
    varied = named(1, answer=0.1, answer_spread=(2.0,))
    assert simulate(varied, at((0, 0), (1, 0)), Fleet(1, 1)).latency == pytest.approx([0.1, 0.2])


def test_answers_that_take_too_long_are_time_outs() -> None:
    one_by_one = replace(OURS, batch_limit=1)
    needs = named(1, answer=50.0)
    outcome = simulate(needs, at((0, 0), (0, 0), (0, 0)), Fleet(1, 1, serving=one_by_one))
    assert outcome.outcome.tolist() == [state.OK, state.TIMEOUT, state.TIMEOUT]
    assert outcome.latency == pytest.approx([50, 60, 60])


def test_a_full_queue_refuses() -> None:
    small = replace(OURS, batch_limit=1, max_queue=2)
    outcome = simulate(named(1, answer=1.0), at((0, 0), (1, 0), (1.1, 0), (1.2, 0)), Fleet(1, 1, serving=small))
    assert outcome.outcome.tolist() == [state.OK, state.OK, state.OK, state.REFUSED]


# ---- instances


def test_the_router_with_least_outstanding_requests_waits_less() -> None:
    asked = drawn(50_000, np.ones(1), rate=150.0)
    waits = {
        routing: simulate(named(1, answer=0.02), asked, Fleet(5, 1, routing=routing)).latency.mean()
        for routing in ("random", "least-outstanding")
    }
    assert waits["least-outstanding"] < 0.8 * waits["random"]


def test_autoscaling_adds_an_instance_after_three_minutes_and_its_start() -> None:
    """Steady traffic of twice the target: above it after minutes 1, 2 and 3, and in service 100 s later."""
    asked = Requests(np.arange(0, 900, 0.5), np.zeros(1800, np.int32))
    scaling = Autoscaling(1, 4, target=60, start_seconds=100, scale_out_cooldown=600)
    outcome = simulate(named(1, load=0.001), asked, Fleet(1, 1, autoscaling=scaling, routing="least-outstanding"))
    assert outcome.scaled_out == 1
    cold = outcome.time[outcome.hits == 0]
    assert len(cold) == 2
    assert 280 <= cold[1] <= 285
    assert outcome.instance_hours == pytest.approx((900 + 620) / 3600, rel=0.01)


def test_autoscaling_goes_in_after_fifteen_quiet_minutes() -> None:
    asked = Requests(np.arange(0, 3600, 10.0), np.zeros(360, np.int32))
    outcome = simulate(named(1), asked, Fleet(3, 1, autoscaling=Autoscaling(1, 4, target=60)))
    assert outcome.scaled_in == 2
    assert outcome.instance_hours == pytest.approx((3590 + 2 * 900) / 3600, rel=0.01)


# ---- odd cases


def test_no_request_and_one_model_are_right() -> None:
    none = simulate(named(1), Requests(np.zeros(0), np.zeros(0, np.int32)), Fleet(2, 2))
    assert (none.requests, none.hit_ratio, none.refused) == (0, 1.0, 0)
    one = simulate(named(1, load=1.0), at((0, 0)), Fleet(2, 2))
    assert (one.hit_ratio, one.latency.tolist()) == (0.0, [1.0])


def test_the_same_seed_gives_the_same_answer() -> None:
    asked = drawn(5000, zipf(100, 0.8))
    first, second = (simulate(named(100, load=0.1), asked, Fleet(3, 1, memory=20)) for _ in range(2))
    assert np.array_equal(first.latency, second.latency)


@pytest.mark.parametrize(
    ("fleet", "words"),
    [
        (Fleet(0, 2), "one instance"),
        (Fleet(1, 2, routing="nearest"), "no routing 'nearest'"),
        (Fleet(5, 2, autoscaling=Autoscaling(1, 4, 70)), "outside its autoscaling range"),
        (Fleet(1, 2, deployments=(5.0, 4.0)), "order"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(fleet: Fleet, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        simulate(named(1), at((0, 0)), fleet)


def test_needs_that_cannot_be_are_refused_with_the_models_name() -> None:
    with pytest.raises(UsageError, match=r"Model m1: active is -1"):
        named(3, active=[1, -1, 2])
    with pytest.raises(UsageError, match="Model a is there twice"):
        models(["a", "a"], disk=1, active=1)


def test_by_model_tells_each_models_own_figures() -> None:
    outcome = simulate(named(3, load=1.0, answer=[0.1, 0.2, 0.3]), at((0, 0), (5, 0), (10, 1)), Fleet(1, 1))
    rows = outcome.by_model(3)
    assert rows["requests"].tolist() == [2, 1, 0]
    assert rows["hit_ratio"][:2].tolist() == [0.5, 0.0]
    assert rows["p50"][:2] == pytest.approx([0.6, 1.2])
    assert np.isnan(rows["p99"][2])


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import numpy as np
from mme.capacity import compiled
from mme.capacity.needs import models
from mme.capacity.simulate import Fleet, Requests, simulate
assert not compiled.COMPILED
random = np.random.default_rng(1)
asked = Requests(np.cumsum(random.exponential(0.05, 2000)), random.integers(0, 40, 2000).astype(np.int32))
needs = models([f"m{n}" for n in range(40)], disk=3, active=2, load=0.2, wake=0.1, answer=0.01,
               load_spread=(0.5, 1.5), wake_spread=(0.7, 1.3))
outcome = simulate(needs, asked, Fleet(2, 2, memory=20, disk=60, download=30.0))
print(repr(float(outcome.latency.astype(float).sum())), int(outcome.kind.sum()), outcome.loads)
"""


def test_interpreted_it_gives_the_same_answer() -> None:
    slow = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, check=True).stdout
    fast = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_NUMBA.replace('sys.modules["numba"] = None', "").replace("not compiled", "compiled"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert slow == fast


def assert_sane(outcome: Outcome) -> None:
    assert set(np.unique(outcome.outcome)) <= {0, 1, 2, 3, 4}
    assert np.all(outcome.latency >= 0)
    assert 0 <= outcome.processor <= 1.0001
    assert 0 <= outcome.memory_peak <= 1.0


@pytest.mark.parametrize("seed", range(6))
def test_every_request_ends_whatever_happens(seed: int) -> None:
    """Overload, thrash, deployments and autoscaling at once: nothing is lost, and no limit is passed."""
    random = np.random.default_rng(seed)
    count = 60
    needs = named(
        count,
        disk=random.integers(1, 30, count),
        active=random.integers(1, 30, count),
        parked=random.integers(0, 2, count),
        load=random.uniform(0, 20, count),
        wake=random.uniform(0, 2, count),
        answer=random.uniform(0, 1.5, count),
        cores=random.uniform(0.5, 3, count),
    )
    fleet = Fleet(
        3,
        2,
        memory=50,
        disk=80,
        download=20.0,
        extract=40.0,
        routing=("random", "least-outstanding", "sticky")[seed % 3],
        serving=OURS if seed % 2 else STOCK,
        autoscaling=Autoscaling(2, 6, target=100, scale_in_cooldown=60, scale_out_cooldown=60, start_seconds=40),
        deployments=(200.0, 201.0, 900.0),
        warm=(1, 2),
    )
    asked = drawn(8000, zipf(count, 0.7), seed=seed, rate=6.0)
    outcome = simulate(needs, asked, fleet, seed=seed)
    assert outcome.requests == 8000
    assert_sane(outcome)


def test_machine_code_has_a_folder_for_each_state_of_the_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A function compiled earlier must not go on calling old code of another file."""
    shutil.copytree(compiled.PACKAGE, tmp_path / "capacity", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiled, "PACKAGE", tmp_path / "capacity")
    first = compiled.cache_folder()
    assert compiled.cache_folder() == first
    with (tmp_path / "capacity" / "loading.py").open("a") as file:
        file.write("# changed\n")
    assert compiled.cache_folder() != first


def test_a_fleet_beyond_the_machines_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(UsageError, match="1 models on 3 instances need more memory than this machine has"):
        simulate(models(["a"], disk=1, active=1), Requests(np.zeros(1), np.zeros(1, np.int32)), Fleet(3, 1))
