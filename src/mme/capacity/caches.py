"""Properties of caches without simulation: the characteristic time, and what a cache holds in the long run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mme.capacity import state
from mme.capacity.needs import Models
from mme.capacity.state import Floats, Ints, Longs

if TYPE_CHECKING:
    from mme.capacity.simulate import Fleet


def characteristic_time(rates: Floats, sizes: Longs | Floats, capacity: float) -> float:
    """Seconds that an object stays in an LRU cache without being asked for; infinite where all objects fit.

    The approximation of Che, Tung and Wang (2002), with sizes: the T at which the sizes of what has been asked for
    within T add up to the capacity, ``sum(size_i * (1 - exp(-rate_i * T))) = capacity``.
    """
    asked = rates > 0
    rates, sizes = rates[asked], np.asarray(sizes, np.float64)[asked]
    if sizes.sum() <= capacity:
        return float("inf")
    low, high = 0.0, 1.0 / float(rates.max())
    while float((sizes * -np.expm1(-rates * high)).sum()) < capacity:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if float((sizes * -np.expm1(-rates * middle)).sum()) < capacity:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def che_hit_ratio(rates: Floats, sizes: Longs | Floats, capacity: float) -> float:
    """The hit ratio of an LRU cache under independent requests, by Che's approximation."""
    total = float(rates.sum())
    if total <= 0:
        return 1.0
    time = characteristic_time(rates, sizes, capacity)
    fits = np.asarray(sizes) <= capacity
    return float((rates * fits * -np.expm1(-rates * time)).sum()) / total


def stationary(models: Models, fleet: Fleet, rates: Floats, random: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """What every instance holds after long traffic with these rates (requests a second of each model, all instances
    together): (instance, model, state) with the model that was used longest ago first on each instance.

    Under independent requests the time since a model's last request is exponential with its rate, and an LRU cache
    holds the models in the order of these times, so that drawing them gives the cache's distribution (King, 1971).
    A sticky router gives each model one instance, the others give each instance an equal part of every model.
    """
    places: list[Ints] = []
    held: list[Ints] = []
    states: list[Ints] = []
    asked = np.flatnonzero((rates > 0) & (models.disk <= fleet.disk) & (models.active <= fleet.memory))
    owner = random.integers(0, fleet.instances, len(asked)) if fleet.routing == "sticky" else None
    for i in range(fleet.instances):
        mine = asked if owner is None else asked[owner == i]
        share = rates[mine] / (fleet.instances if owner is None else 1)
        age = random.exponential(size=len(mine)) / share
        order = np.argsort(age)
        mine, age = mine[order], age[order]
        stored = np.cumsum(models.disk[mine]) <= fleet.disk
        mine, age = mine[stored], age[stored]
        recent = age < fleet.serving.park_after
        used = np.cumsum(np.where(recent, models.active[mine], models.parked[mine]))
        fits = np.logical_and.accumulate(recent & (used <= fleet.memory))
        rest = state.PARKED if fleet.serving.parking else state.ON_DISK
        placed = np.where(fits, state.ACTIVE, rest).astype(np.int32)
        if rest == state.PARKED and models.parked.any():
            left = fleet.memory - int(models.active[mine[fits]].sum())
            over = np.cumsum(np.where(fits, 0, models.parked[mine])) > left
            placed[over] = state.ON_DISK
        places.append(np.full(len(mine), i, np.int32))
        held.append(mine[::-1].astype(np.int32))
        states.append(placed[::-1])
    return np.concatenate(places), np.concatenate(held), np.concatenate(states)
