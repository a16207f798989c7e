"""Instances that come and go (the first ones, autoscaling, deployments), and what they hold at the start."""

from __future__ import annotations

import numpy as np

from mme.capacity.compiled import compiled, entry
from mme.capacity.loading import append, begin_load, take_memory, unlink, unload
from mme.capacity.state import (
    ABSENT,
    ACT,
    ACTIVE,
    COMING,
    COUNTED,
    DISK,
    DISK_HEAD,
    DISK_LIMIT,
    DISK_TAIL,
    FLAGS,
    HIGH,
    IDLE_HEAD,
    IDLE_TAIL,
    IN_COOLDOWN,
    INSTANCES,
    LAST_IN,
    LAST_OUT,
    LOADS,
    LOW,
    MAXIMUM,
    MEMORY_LIMIT,
    MINIMUM,
    MODELS,
    ON_DISK,
    OUT_COOLDOWN,
    OUTSTANDING,
    PARKED,
    RUNNING_NOW,
    SCALED_IN,
    SCALED_OUT,
    SEEN,
    SPAWNS,
    START_SECONDS,
    STATE,
    STORED,
    TARGET,
    UNLOADED,
    UP,
    UP_SECONDS,
    UP_SINCE,
    Ints,
    World,
)


@compiled
def empty(w: World, i: int, now: float) -> None:
    """Forget what an instance that is out of service had loaded and stored."""
    while w.inst[i, IDLE_HEAD] != 0:
        unload(w, i, w.inst[i, IDLE_HEAD] - 1, now)
        w.counts[UNLOADED] -= 1
    while w.inst[i, DISK_HEAD] != 0:
        p = w.inst[i, DISK_HEAD] - 1
        unlink(w, i, p, DISK_HEAD, DISK_TAIL)
        w.inst[i, DISK] -= w.needs[p % w.ints[MODELS]]["disk"]
        w.pair[p, STATE] = ABSENT
        w.pair[p, FLAGS] = 0


@compiled
def put_up(w: World, now: float) -> bool:
    """Bring an empty instance into service. False: every spare one still has work."""
    for i in range(w.ints[INSTANCES]):
        inst = w.inst
        if inst[i, UP] == 0 and inst[i, OUTSTANDING] == 0 and inst[i, LOADS] == 0 and inst[i, SPAWNS] == 0:
            empty(w, i, now)
            inst[i, UP] = 1
            w.area[i, UP_SINCE] = now
            w.up[w.ints[RUNNING_NOW]] = i
            w.ints[RUNNING_NOW] += 1
            for m in w.warm:
                p = i * w.ints[MODELS] + m
                if w.needs[m]["disk"] <= w.ints[DISK_LIMIT] and w.needs[m]["active"] <= w.ints[MEMORY_LIMIT]:
                    begin_load(w, i, p, now)
            return True
    return False


@compiled
def take_down(w: World, at: int, now: float) -> None:
    """Take the instance at this place of ``up`` out of service; what it has begun, it ends."""
    i = w.up[at]
    w.inst[i, UP] = 0
    w.area[i, UP_SECONDS] += now - w.area[i, UP_SINCE]
    w.ints[RUNNING_NOW] -= 1
    w.up[at] = w.up[w.ints[RUNNING_NOW]]


@compiled
def deploy(w: World, now: float) -> bool:
    """New instances take the place of all old ones: every cache is empty."""
    count = w.ints[RUNNING_NOW]
    new = 0
    while new < count and put_up(w, now):
        new += 1
    if new < count:  # the spare ones are not done yet: another moment
        while new > 0:
            take_down(w, int(w.ints[RUNNING_NOW]) - 1, now)
            new -= 1
        return False
    for at in range(count - 1, -1, -1):
        take_down(w, at, now)
    return True


@compiled
def minute(w: World, now: float) -> None:
    """Target tracking looks at the minute that has passed: out after 3 minutes above the target, in after 15 below 90 %
    of it, each after its cooldown."""
    real, ints = w.real, w.ints
    per_instance = real[COUNTED] / ints[RUNNING_NOW]
    real[COUNTED] = 0.0
    target = real[TARGET]
    real[HIGH] = real[HIGH] + 1 if per_instance > target else 0.0
    real[LOW] = real[LOW] + 1 if per_instance < 0.9 * target else 0.0
    wanted = int(np.ceil(ints[RUNNING_NOW] * per_instance / target))
    wanted = min(max(wanted, ints[MINIMUM]), ints[MAXIMUM])
    if real[HIGH] >= 3 and now - real[LAST_OUT] >= real[OUT_COOLDOWN]:
        more = wanted - ints[RUNNING_NOW] - ints[COMING]
        for _ in range(more):
            w.coming[ints[COMING]] = now + real[START_SECONDS]
            ints[COMING] += 1
            w.counts[SCALED_OUT] += 1
        if more > 0:
            real[LAST_OUT] = now
    elif real[LOW] >= 15 and now - max(real[LAST_IN], real[LAST_OUT]) >= real[IN_COOLDOWN]:
        fewer = ints[RUNNING_NOW] - wanted
        for _ in range(fewer):
            take_down(w, int(ints[RUNNING_NOW]) - 1, now)
            w.counts[SCALED_IN] += 1
        if fewer > 0:
            real[LAST_IN] = now


@compiled
def arrived(w: World, now: float) -> None:
    """The instance that was started first comes into service."""
    if put_up(w, now):
        for k in range(1, w.ints[COMING]):
            w.coming[k - 1] = w.coming[k]
        w.ints[COMING] -= 1
    else:
        w.coming[0] = now + 1.0


@entry
def begin(w: World, count: int) -> None:
    """Bring the first instances into service, empty; what is on the warm list starts to load."""
    for _ in range(count):
        put_up(w, 0.0)


@entry
def fill(w: World, instances: Ints, models: Ints, states: Ints) -> None:
    """Put models where they are at the start: for each instance, the one that was used longest ago first."""
    for k in range(len(instances)):
        i, m = instances[k], models[k]
        p = i * w.ints[MODELS] + m
        w.inst[i, DISK] += w.needs[m]["disk"]
        w.pair[p, FLAGS] = STORED | SEEN
        w.pair[p, STATE] = states[k]
        w.when[p] = 0.0
        if states[k] == ON_DISK:
            append(w, i, p, DISK_HEAD, DISK_TAIL)
            continue
        append(w, i, p, IDLE_HEAD, IDLE_TAIL)
        if states[k] == ACTIVE and w.inst[i, ACT] == 0:
            w.inst[i, ACT] = p + 1
        take_memory(w, i, w.needs[m]["parked"] if states[k] == PARKED else w.needs[m]["active"], 0.0)
