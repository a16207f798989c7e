"""The simulation's inner loop: requests, caches, queues and shared resources of many instances, one event at a time.

Everything is an array, so that the same functions run compiled (see ``compiled``). ``simulate`` builds the arrays from
plain values and reads the result; its docstring says what is modelled. How a piece of it is kept here:

- A *pair* is one model on one instance, number ``instance * models + model``. Links between pairs and between requests
  hold the number plus one, so that arrays of zeros mean "empty" and pages nobody touches cost no memory.
- Each instance has one list of loaded models that nobody uses, the longest idle first. The parked ones are its first
  part, because the longest idle are parked first; ``ACT`` points at the first that still has a process. A second list
  has the models that are only on disk.
- Each instance has three *stations* that their jobs share: cores, network, disk. All jobs of a station progress at the
  same rate, 1 or less, so they finish in the order of (progress of the station when the job came + its seconds).
  A heap over the stations knows which job ends next.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mme.capacity.compiled import compiled, entry

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Longs = NDArray[np.int64]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]
Records = NDArray[np.void]

# What became of a request, and what it met.
OK, NOT_READY, TIMEOUT, REFUSED, TOO_LARGE, OPEN_YET = 0, 1, 2, 3, 4, 5
HIT, WOKEN, FROM_DISK, DOWNLOADED, JOINED = 0, 1, 2, 3, 4

# States of a pair.
ABSENT, ON_DISK, WAIT_LOAD, WAIT_DISK, DOWNLOAD, EXTRACT, WAIT_SPAWN, WAIT_ROOM, SPAWN, ACTIVE, PARKED = range(11)

# Columns of ``pair``. WAITING are the requests that no batch has taken yet; OPEN counts those in a batch, too.
STATE, BEFORE, AFTER, WAITING, LAST, OPEN, LINK, BATCH, RUN, FLAGS = range(10)
PAIR_COLUMNS = 10
WAKING, STORED, SEEN, SLOW = 1, 2, 4, 8  # of FLAGS
QUEUED, RUNNING = 1, 2  # of RUN

# Columns of ``inst``.
(UP, OUTSTANDING, LOADS, LOAD_HEAD, LOAD_TAIL, SPAWNS, SPAWN_HEAD, SPAWN_TAIL, ROOM_HEAD, ROOM_TAIL) = range(10)
(IDLE_HEAD, IDLE_TAIL, ACT, DISK_HEAD, DISK_TAIL, MEMORY, DISK, GRANTS, CORE_HEAD, CORE_TAIL, PEAK) = range(10, 21)
INST_COLUMNS = 21

# Columns of ``area``: what is summed up over time for an instance.
MEMORY_SECONDS, MEMORY_AT, UP_SINCE, UP_SECONDS = range(4)
AREA_COLUMNS = 4

CORES, NETWORK, STORAGE = 0, 1, 2

# Of ``whole``, the whole numbers of the simulation.
(MODELS, INSTANCES, CPUS, BATCH_LIMIT, PARKING, MAX_LOADS, MAX_SPAWNS, MAX_QUEUE, ROUTING, TRIES, SEED) = range(11)
(MEMORY_LIMIT, DISK_LIMIT, MINIMUM, MAXIMUM, SPILL, GRANT_LIMIT, RUNNING_NOW, COMING) = range(11, 19)
WHOLE = 19
RANDOM, LEAST_OUTSTANDING, STICKY = 0, 1, 2

# Of ``real``, the others.
(LOAD_TIMEOUT, ANSWER_TIMEOUT, RETRY_AFTER, OVERHEAD, PARK_AFTER, PATIENCE, SHARED, TARGET) = range(8)
(START_SECONDS, OUT_COOLDOWN, IN_COOLDOWN, LAST_OUT, LAST_IN, HIGH, LOW, COUNTED, UNTIL) = range(8, 17)
REAL = 17

# Of ``counts``.
LOADED, RELOADED, UNLOADED, PARKS, WAKES, DELETED, SCALED_OUT, SCALED_IN, RETRIED, EVENTS = range(10)
COUNTS = 10

NEVER = np.inf


REQUEST = np.dtype(
    [
        ("arrive", "f8"),
        ("began", "f8"),  # this attempt's arrival; then when the container got it
        ("model", "i4"),
        ("follower", "i4"),
        ("factor", "f4"),  # of the model's seconds for an answer
        ("latency", "f4"),
        ("tries", "u1"),
        ("kind", "u1"),
        ("outcome", "u1"),
    ],
    align=True,
)
NEEDS = np.dtype(
    [
        ("disk", "i8"),
        ("active", "i8"),
        ("parked", "i8"),
        ("answer", "f8"),
        ("cores", "f8"),  # that an answer keeps busy when nobody else is there
        ("download", "f8"),
        ("extract", "f8"),
        ("load", "f8"),
        ("wake", "f8"),
        ("home", "i4"),  # instance + 1 that a sticky router knows to have the model
        ("second_home", "i4"),
    ],
    align=True,
)
STATION = np.dtype(
    [
        ("progress", "f8"),
        ("as_of", "f8"),
        ("demand", "f8"),
        ("capacity", "f8"),
        ("busy", "f8"),  # core-seconds, or seconds in use
        ("key", "f8"),  # when its next job ends
        ("first", "i4"),
        ("order", "i4"),  # the heap: this row's place in it holds station ``order`` ...
        ("place", "i4"),  # ... and this row's station stands at ``place``
    ],
    align=True,
)
WAIT = np.dtype([("time", "f8"), ("request", "i4"), ("pair", "i4")], align=True)


class World(NamedTuple):
    """All of the simulation's state. Seconds and bytes; one row for a request, a model, a pair, an instance, a station.

    Few arrays, since every function here takes all of them.
    """

    request: Records
    needs: Records
    pair: Ints
    when: Floats  # of a pair: since when it is idle, or at which progress of its station its job ends
    inst: Longs
    area: Floats
    station: Records
    late: Records  # requests that wait for a load, and until when: a ring
    again: Records  # requests whose client will ask again: a ring
    ring: Longs  # head and tail of ``late``, head and tail of ``again``
    up: Ints  # the instances in service, the first RUNNING_NOW entries
    coming: Floats  # when an instance that is being started will be in service
    load_spread: Floats
    deployments: Floats
    warm: Ints
    whole: Longs
    real: Floats
    counts: Longs


# ---- chance, and the order of events ------------------------------------------------------------------------------


@compiled
def draw(w: World, below: int) -> int:
    """A whole number from 0 to ``below`` - 1, by the generator of Park and Miller (1988)."""
    w.whole[SEED] = w.whole[SEED] * 48271 % 2147483647
    return int(w.whole[SEED] * below // 2147483647)


@compiled
def set_key(w: World, station: int, value: float) -> None:
    """Tell the heap when the next job of a station ends."""
    heap = w.station
    heap[station]["key"] = value
    i = heap[station]["place"]
    while i > 0:
        parent = (i - 1) // 2
        if heap[heap[parent]["order"]]["key"] <= value:
            break
        heap[i]["order"] = heap[parent]["order"]
        heap[heap[i]["order"]]["place"] = i
        i = parent
    size = len(heap)
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[heap[child + 1]["order"]]["key"] < heap[heap[child]["order"]]["key"]:
            child += 1
        if heap[heap[child]["order"]]["key"] >= value:
            break
        heap[i]["order"] = heap[child]["order"]
        heap[heap[i]["order"]]["place"] = i
        i = child
    heap[i]["order"] = station
    heap[station]["place"] = i


@compiled
def advance(w: World, s: int, now: float) -> float:
    """Bring a station's progress up to now; its rate."""
    wanted = w.station[s]["demand"]
    rate = 1.0 if wanted <= w.station[s]["capacity"] else w.station[s]["capacity"] / wanted
    if w.station[s]["first"] != 0:
        passed = now - w.station[s]["as_of"]
        w.station[s]["progress"] += passed * rate
        w.station[s]["busy"] += passed * wanted * rate
    w.station[s]["as_of"] = now
    return float(rate)


@compiled
def rekey(w: World, s: int, now: float) -> None:
    head = w.station[s]["first"]
    if head == 0:
        w.station[s]["demand"] = 0.0
        set_key(w, s, NEVER)
        return
    wanted = w.station[s]["demand"]
    rate = 1.0 if wanted <= w.station[s]["capacity"] else w.station[s]["capacity"] / wanted
    left = w.when[head - 1] - w.station[s]["progress"]
    set_key(w, s, now + (left / rate if left > 0.0 else 0.0))


@compiled
def job(w: World, s: int, p: int, seconds: float, cores: float, now: float) -> None:
    """Start a job of so many seconds on a station."""
    advance(w, s, now)
    end = w.station[s]["progress"] + seconds
    w.when[p] = end
    before = 0
    after = w.station[s]["first"]
    while after != 0 and w.when[after - 1] <= end:
        before = after
        after = w.pair[after - 1, LINK]
    w.pair[p, LINK] = after
    if before == 0:
        w.station[s]["first"] = p + 1
    else:
        w.pair[before - 1, LINK] = p + 1
    w.station[s]["demand"] += cores
    rekey(w, s, now)


# ---- lists --------------------------------------------------------------------------------------------------------


@compiled
def unlink(w: World, i: int, p: int, head: int, tail: int) -> None:
    """Take a pair out of the idle list or the disk list of its instance."""
    pair, inst = w.pair, w.inst
    before, after = pair[p, BEFORE], pair[p, AFTER]
    if before == 0:
        inst[i, head] = after
    else:
        pair[before - 1, AFTER] = after
    if after == 0:
        inst[i, tail] = before
    else:
        pair[after - 1, BEFORE] = before
    if head == IDLE_HEAD and inst[i, ACT] == p + 1:
        inst[i, ACT] = after
    pair[p, BEFORE] = 0
    pair[p, AFTER] = 0


@compiled
def append(w: World, i: int, p: int, head: int, tail: int) -> None:
    pair, inst = w.pair, w.inst
    last = inst[i, tail]
    pair[p, BEFORE] = last
    pair[p, AFTER] = 0
    if last == 0:
        inst[i, head] = p + 1
    else:
        pair[last - 1, AFTER] = p + 1
    inst[i, tail] = p + 1


@compiled
def push(w: World, i: int, p: int, head: int, tail: int) -> None:
    """Put a pair at the end of one of its instance's queues, which share the column LINK: a pair is in one at most."""
    w.pair[p, LINK] = 0
    if w.inst[i, tail] == 0:
        w.inst[i, head] = p + 1
    else:
        w.pair[w.inst[i, tail] - 1, LINK] = p + 1
    w.inst[i, tail] = p + 1


@compiled
def pop(w: World, i: int, head: int, tail: int) -> int:
    p = w.inst[i, head] - 1
    w.inst[i, head] = w.pair[p, LINK]
    if w.inst[i, head] == 0:
        w.inst[i, tail] = 0
    w.pair[p, LINK] = 0
    return int(p)


# ---- memory and disk ----------------------------------------------------------------------------------------------


@compiled
def take_memory(w: World, i: int, size: int, now: float) -> None:
    w.area[i, MEMORY_SECONDS] += w.inst[i, MEMORY] * (now - w.area[i, MEMORY_AT])
    w.area[i, MEMORY_AT] = now
    w.inst[i, MEMORY] += size
    w.inst[i, PEAK] = max(w.inst[i, PEAK], w.inst[i, MEMORY])


@compiled
def park(w: World, i: int, p: int, now: float) -> None:
    m = p % w.whole[MODELS]
    w.pair[p, STATE] = PARKED
    w.inst[i, ACT] = w.pair[p, AFTER]
    take_memory(w, i, w.needs[m]["parked"] - w.needs[m]["active"], now)
    w.counts[PARKS] += 1


@compiled
def unload(w: World, i: int, p: int, now: float) -> None:
    """Unload the model that has been idle longest; it stays on the disk."""
    m = p % w.whole[MODELS]
    size = w.needs[m]["parked"] if w.pair[p, STATE] == PARKED else w.needs[m]["active"]
    unlink(w, i, p, IDLE_HEAD, IDLE_TAIL)
    take_memory(w, i, -size, now)
    w.pair[p, STATE] = ON_DISK
    append(w, i, p, DISK_HEAD, DISK_TAIL)
    w.counts[UNLOADED] += 1


@compiled
def make_memory(w: World, i: int, need: int, now: float) -> bool:
    """Bring about that so much memory is free: by parking, else by unloading what is idle. False: all is in use."""
    inst = w.inst
    limit = w.whole[MEMORY_LIMIT]
    while inst[i, MEMORY] + need > limit:
        if inst[i, ACT] != 0:
            p = inst[i, ACT] - 1
            if w.whole[PARKING] == 1:
                park(w, i, p, now)
            else:
                unload(w, i, p, now)
        elif inst[i, IDLE_HEAD] != 0 and w.needs[(inst[i, IDLE_HEAD] - 1) % w.whole[MODELS]]["parked"] > 0:
            unload(w, i, inst[i, IDLE_HEAD] - 1, now)
        else:
            return False
    return True


@compiled
def make_disk(w: World, i: int, need: int, now: float) -> bool:
    """Bring about that so much disk is free: archives that are not loaded go, then idle models are unloaded."""
    inst = w.inst
    while inst[i, DISK] + need > w.whole[DISK_LIMIT]:
        if inst[i, DISK_HEAD] == 0:
            if inst[i, IDLE_HEAD] == 0:
                return False
            unload(w, i, inst[i, IDLE_HEAD] - 1, now)
        p = inst[i, DISK_HEAD] - 1
        unlink(w, i, p, DISK_HEAD, DISK_TAIL)
        inst[i, DISK] -= w.needs[p % w.whole[MODELS]]["disk"]
        w.pair[p, STATE] = ABSENT
        w.pair[p, FLAGS] &= ~STORED
        w.counts[DELETED] += 1
    return True


@compiled
def room_event(w: World, i: int, now: float) -> None:
    """Something became idle or went away: try again for everything that waits for memory or disk."""
    before = 0
    link = w.inst[i, ROOM_HEAD]
    while link != 0:
        p = link - 1
        m = p % w.whole[MODELS]
        after = w.pair[p, LINK]
        state = w.pair[p, STATE]
        if state == WAIT_DISK:
            fits = make_disk(w, i, w.needs[m]["disk"], now)
        else:
            held = w.needs[m]["parked"] if w.pair[p, FLAGS] & WAKING else 0
            fits = make_memory(w, i, w.needs[m]["active"] - held, now)
        if fits:
            if before == 0:
                w.inst[i, ROOM_HEAD] = after
            else:
                w.pair[before - 1, LINK] = after
            if after == 0:
                w.inst[i, ROOM_TAIL] = before
            w.pair[p, LINK] = 0
            if state == WAIT_DISK:
                start_download(w, i, p, now)
            else:
                start_spawn(w, i, p, now)
        else:
            before = link
        link = after


# ---- a model comes up ---------------------------------------------------------------------------------------------


@compiled
def begin_load(w: World, i: int, p: int, now: float) -> None:
    if w.pair[p, STATE] == ON_DISK:
        unlink(w, i, p, DISK_HEAD, DISK_TAIL)
    w.pair[p, STATE] = WAIT_LOAD
    if w.inst[i, LOADS] < w.whole[MAX_LOADS]:
        start_load(w, i, p, now)
    else:
        push(w, i, p, LOAD_HEAD, LOAD_TAIL)


@compiled
def start_load(w: World, i: int, p: int, now: float) -> None:
    w.inst[i, LOADS] += 1
    m = p % w.whole[MODELS]
    w.counts[LOADED] += 1
    if w.pair[p, FLAGS] & SEEN:
        w.counts[RELOADED] += 1
    w.pair[p, FLAGS] |= SEEN
    if w.pair[p, FLAGS] & STORED:
        to_spawn(w, i, p, now)
    elif make_disk(w, i, w.needs[m]["disk"], now):
        start_download(w, i, p, now)
    else:
        w.pair[p, STATE] = WAIT_DISK
        push(w, i, p, ROOM_HEAD, ROOM_TAIL)


@compiled
def start_download(w: World, i: int, p: int, now: float) -> None:
    m = p % w.whole[MODELS]
    w.inst[i, DISK] += w.needs[m]["disk"]
    w.pair[p, STATE] = DOWNLOAD
    job(w, 3 * i + NETWORK, p, w.needs[m]["download"], 1.0, now)


@compiled
def to_spawn(w: World, i: int, p: int, now: float) -> None:
    """The files are there: ask the container to load, or to wake, the model."""
    if w.inst[i, SPAWNS] < w.whole[MAX_SPAWNS]:
        w.inst[i, SPAWNS] += 1
        seek_memory(w, i, p, now)
    else:
        w.pair[p, STATE] = WAIT_SPAWN
        push(w, i, p, SPAWN_HEAD, SPAWN_TAIL)


@compiled
def seek_memory(w: World, i: int, p: int, now: float) -> None:
    m = p % w.whole[MODELS]
    held = w.needs[m]["parked"] if w.pair[p, FLAGS] & WAKING else 0
    if make_memory(w, i, w.needs[m]["active"] - held, now):
        start_spawn(w, i, p, now)
    else:
        w.pair[p, STATE] = WAIT_ROOM
        push(w, i, p, ROOM_HEAD, ROOM_TAIL)


@compiled
def start_spawn(w: World, i: int, p: int, now: float) -> None:
    m = p % w.whole[MODELS]
    waking = w.pair[p, FLAGS] & WAKING
    take_memory(w, i, w.needs[m]["active"] - (w.needs[m]["parked"] if waking else 0), now)
    w.pair[p, STATE] = SPAWN
    seconds = w.needs[m]["wake"] if waking else w.needs[m]["load"]
    seconds *= w.load_spread[draw(w, len(w.load_spread))]
    job(w, 3 * i + CORES, p, seconds, 1.0, now)


@compiled
def spawned(w: World, i: int, p: int, now: float) -> None:
    """The model can be called."""
    inst, pair = w.inst, w.pair
    waking = pair[p, FLAGS] & WAKING
    pair[p, FLAGS] = (pair[p, FLAGS] & ~WAKING) | STORED
    pair[p, STATE] = ACTIVE
    inst[i, SPAWNS] -= 1
    if not waking:
        inst[i, LOADS] -= 1
        link = pair[p, WAITING]
        while link != 0:
            w.request[link - 1]["began"] = now  # from here on the container's clock runs
            link = w.request[link - 1]["follower"]
    else:
        w.counts[WAKES] += 1
    if pair[p, WAITING] != 0:
        want_core(w, i, p, now)
    else:
        idle(w, i, p, now)
    if inst[i, SPAWN_HEAD] != 0 and inst[i, SPAWNS] < w.whole[MAX_SPAWNS]:
        inst[i, SPAWNS] += 1
        seek_memory(w, i, pop(w, i, SPAWN_HEAD, SPAWN_TAIL), now)
    if inst[i, LOAD_HEAD] != 0 and inst[i, LOADS] < w.whole[MAX_LOADS]:
        start_load(w, i, pop(w, i, LOAD_HEAD, LOAD_TAIL), now)


@compiled
def idle(w: World, i: int, p: int, now: float) -> None:
    """Nobody uses the model any more: it is the last to be parked or unloaded."""
    w.when[p] = now
    append(w, i, p, IDLE_HEAD, IDLE_TAIL)
    if w.inst[i, ACT] == 0:
        w.inst[i, ACT] = p + 1
    if w.inst[i, ROOM_HEAD] != 0:
        room_event(w, i, now)


# ---- who computes -------------------------------------------------------------------------------------------------


@compiled
def finish(w: World, r: int, i: int, outcome: int, now: float) -> None:
    """The client has its answer, or has been refused."""
    w.request[r]["outcome"] = outcome
    w.request[r]["latency"] = now - w.request[r]["arrive"] + w.real[OVERHEAD]
    w.inst[i, OUTSTANDING] -= 1


@compiled
def drop_late(w: World, i: int, p: int, now: float) -> None:
    """Requests at the head of the queue whose time for an answer has run out were told so when it did."""
    limit = w.real[ANSWER_TIMEOUT]
    link = w.pair[p, WAITING]
    while link != 0 and now - w.request[link - 1]["began"] >= limit:
        r = link - 1
        finish(w, r, i, TIMEOUT, w.request[r]["began"] + limit)
        w.pair[p, OPEN] -= 1
        link = w.request[r]["follower"]
        w.pair[p, WAITING] = link
    if link == 0:
        w.pair[p, LAST] = 0


@compiled
def want_core(w: World, i: int, p: int, now: float) -> None:
    w.pair[p, RUN] = QUEUED
    push(w, i, p, CORE_HEAD, CORE_TAIL)
    schedule(w, i, now)


@compiled
def schedule(w: World, i: int, now: float) -> None:
    """Give free cores to the models that have waited longest for one."""
    while w.inst[i, CORE_HEAD] != 0 and w.inst[i, GRANTS] < w.whole[GRANT_LIMIT]:
        start_batch(w, i, pop(w, i, CORE_HEAD, CORE_TAIL), now)


@compiled
def start_batch(w: World, i: int, p: int, now: float) -> None:
    pair = w.pair
    drop_late(w, i, p, now)
    if pair[p, WAITING] == 0:
        pair[p, RUN] = 0
        if pair[p, OPEN] == 0:
            idle(w, i, p, now)
        return
    m = p % w.whole[MODELS]
    link = pair[p, WAITING]
    pair[p, BATCH] = link
    total = 0.0
    longest = 0.0
    last = 0
    taken = 0
    while link != 0 and taken < w.whole[BATCH_LIMIT]:
        factor = w.request[link - 1]["factor"]
        total += factor
        longest = max(longest, factor)
        last = link
        link = w.request[link - 1]["follower"]
        taken += 1
    w.request[last - 1]["follower"] = 0
    pair[p, WAITING] = link
    if link == 0:
        pair[p, LAST] = 0
    # What a batch pays once is a share of its longest request; the rest is paid for each.
    seconds = w.needs[m]["answer"] * (w.real[SHARED] * longest + (1.0 - w.real[SHARED]) * total)
    pair[p, RUN] = RUNNING
    if seconds > w.real[PATIENCE]:
        pair[p, FLAGS] |= SLOW  # not waited for: the system divides the cores
    else:
        pair[p, FLAGS] &= ~SLOW
        w.inst[i, GRANTS] += 1
    job(w, 3 * i + CORES, p, seconds, w.needs[m]["cores"], now)


@compiled
def batch_done(w: World, i: int, p: int, now: float) -> None:
    pair = w.pair
    link = pair[p, BATCH]
    while link != 0:
        r = link - 1
        link = w.request[r]["follower"]
        w.request[r]["follower"] = 0
        late = now - w.request[r]["began"] > w.real[ANSWER_TIMEOUT]
        finish(w, r, i, TIMEOUT if late else OK, w.request[r]["began"] + w.real[ANSWER_TIMEOUT] if late else now)
        pair[p, OPEN] -= 1
    pair[p, BATCH] = 0
    pair[p, RUN] = 0
    if pair[p, FLAGS] & SLOW == 0:
        w.inst[i, GRANTS] -= 1
    if pair[p, WAITING] != 0:
        pair[p, RUN] = QUEUED
        push(w, i, p, CORE_HEAD, CORE_TAIL)
    else:
        idle(w, i, p, now)
    schedule(w, i, now)


# ---- requests -----------------------------------------------------------------------------------------------------


@compiled
def choose(w: World, m: int) -> int:
    """The instance for a request."""
    count = w.whole[RUNNING_NOW]
    routing = w.whole[ROUTING]
    if count == 1:
        return int(w.up[0])
    if routing == STICKY:
        home = w.needs[m]["home"]
        if home != 0 and w.inst[home - 1, UP] == 1:
            if w.inst[home - 1, OUTSTANDING] < w.whole[SPILL]:
                return int(home - 1)
            other = w.needs[m]["second_home"]
            if other != 0 and w.inst[other - 1, UP] == 1 and w.inst[other - 1, OUTSTANDING] < w.whole[SPILL]:
                return int(other - 1)
            i = least(w)
            w.needs[m]["second_home"] = i + 1
            return i
        i = int(w.up[draw(w, count)])
        w.needs[m]["home"] = i + 1
        w.needs[m]["second_home"] = 0
        return i
    if routing == LEAST_OUTSTANDING:
        return least(w)
    return int(w.up[draw(w, count)])


@compiled
def least(w: World) -> int:
    """An instance with the fewest requests under way; among equals, by chance."""
    count = w.whole[RUNNING_NOW]
    start = draw(w, count)
    best = w.up[start]
    fewest = w.inst[best, OUTSTANDING]
    for step in range(1, count):
        if fewest == 0:
            break
        i = w.up[(start + step) % count]
        if w.inst[i, OUTSTANDING] < fewest:
            best = i
            fewest = w.inst[i, OUTSTANDING]
    return int(best)


@compiled
def attempt(w: World, r: int, now: float) -> None:
    """A client asks, for the first time or again."""
    m = int(w.request[r]["model"])
    i = choose(w, m)
    p = i * int(w.whole[MODELS]) + m
    pair, inst = w.pair, w.inst
    w.request[r]["began"] = now
    w.real[COUNTED] += 1.0
    inst[i, OUTSTANDING] += 1
    if w.whole[PARKING] == 1:
        before = now - w.real[PARK_AFTER]
        while inst[i, ACT] != 0 and w.when[inst[i, ACT] - 1] <= before:
            park(w, i, inst[i, ACT] - 1, w.when[inst[i, ACT] - 1] + w.real[PARK_AFTER])
    state = pair[p, STATE]
    kind = HIT
    if state in (ACTIVE, PARKED):
        if pair[p, RUN] != 0:
            drop_late(w, i, p, now)
        if pair[p, OPEN] >= w.whole[MAX_QUEUE]:
            finish(w, r, i, REFUSED, now)
            return
        if pair[p, OPEN] == 0 and pair[p, RUN] == 0:
            unlink(w, i, p, IDLE_HEAD, IDLE_TAIL)
        if state == PARKED:
            kind = WOKEN
    elif pair[p, FLAGS] & WAKING:
        kind = WOKEN
    elif state in (ABSENT, ON_DISK):
        kind = FROM_DISK if state == ON_DISK else DOWNLOADED
        if w.needs[m]["disk"] > w.whole[DISK_LIMIT] or w.needs[m]["active"] > w.whole[MEMORY_LIMIT]:
            w.request[r]["kind"] = kind
            finish(w, r, i, TOO_LARGE, now)
            return
    else:
        kind = JOINED
    if w.request[r]["tries"] == 0:
        w.request[r]["kind"] = kind
    w.request[r]["tries"] += 1
    w.request[r]["follower"] = 0
    if pair[p, LAST] == 0:
        pair[p, WAITING] = r + 1
    else:
        w.request[pair[p, LAST] - 1]["follower"] = r + 1
    pair[p, LAST] = r + 1
    pair[p, OPEN] += 1
    if state == ACTIVE:
        if pair[p, RUN] == 0:
            want_core(w, i, p, now)
    elif state == PARKED:
        pair[p, FLAGS] |= WAKING
        to_spawn(w, i, p, now)
    elif kind != WOKEN:
        size = len(w.late)
        tail = w.ring[1]
        w.late[tail % size]["time"] = now + w.real[LOAD_TIMEOUT]
        w.late[tail % size]["request"] = r
        w.late[tail % size]["pair"] = p
        w.ring[1] = tail + 1
        if state in (ABSENT, ON_DISK):
            begin_load(w, i, p, now)


@compiled
def load_late(w: World, now: float) -> None:
    """The oldest entry of the list of requests that wait for a load: it is told that the model is not ready."""
    size = len(w.late)
    at = w.ring[0] % size
    w.ring[0] += 1
    r, p = int(w.late[at]["request"]), int(w.late[at]["pair"])
    state = w.pair[p, STATE]
    if state < WAIT_LOAD or state > SPAWN or w.pair[p, FLAGS] & WAKING or w.pair[p, WAITING] != r + 1:
        return
    if w.request[r]["began"] + w.real[LOAD_TIMEOUT] != w.late[at]["time"]:
        return
    i = p // w.whole[MODELS]
    w.pair[p, WAITING] = w.request[r]["follower"]
    if w.request[r]["follower"] == 0:
        w.pair[p, LAST] = 0
    w.pair[p, OPEN] -= 1
    if w.request[r]["tries"] >= w.whole[TRIES]:
        finish(w, r, i, NOT_READY, now)
        return
    w.inst[i, OUTSTANDING] -= 1
    w.counts[RETRIED] += 1
    size = len(w.again)
    w.again[w.ring[3] % size]["time"] = now + w.real[RETRY_AFTER]
    w.again[w.ring[3] % size]["request"] = r
    w.ring[3] += 1


@compiled
def complete(w: World, s: int, now: float) -> None:
    """The next job of a station ends."""
    advance(w, s, now)
    i = s // 3
    p = int(w.station[s]["first"]) - 1
    w.station[s]["progress"] = max(w.station[s]["progress"], w.when[p])
    state = w.pair[p, STATE]
    w.station[s]["first"] = w.pair[p, LINK]
    w.pair[p, LINK] = 0
    w.station[s]["demand"] -= w.needs[p % w.whole[MODELS]]["cores"] if state == ACTIVE else 1.0
    rekey(w, s, now)
    if state == ACTIVE:
        batch_done(w, i, p, now)
    elif state == DOWNLOAD:
        w.pair[p, STATE] = EXTRACT
        job(w, 3 * i + STORAGE, p, w.needs[p % w.whole[MODELS]]["extract"], 1.0, now)
    elif state == EXTRACT:
        w.pair[p, FLAGS] |= STORED
        to_spawn(w, i, p, now)
    else:
        spawned(w, i, p, now)


# ---- instances come and go ----------------------------------------------------------------------------------------


@compiled
def empty(w: World, i: int, now: float) -> None:
    """Forget what an instance that is out of service had loaded and stored."""
    while w.inst[i, IDLE_HEAD] != 0:
        unload(w, i, w.inst[i, IDLE_HEAD] - 1, now)
        w.counts[UNLOADED] -= 1
    while w.inst[i, DISK_HEAD] != 0:
        p = w.inst[i, DISK_HEAD] - 1
        unlink(w, i, p, DISK_HEAD, DISK_TAIL)
        w.inst[i, DISK] -= w.needs[p % w.whole[MODELS]]["disk"]
        w.pair[p, STATE] = ABSENT
        w.pair[p, FLAGS] = 0


@compiled
def put_up(w: World, now: float) -> bool:
    """Bring an empty instance into service. False: every spare one still has work."""
    for i in range(w.whole[INSTANCES]):
        inst = w.inst
        if inst[i, UP] == 0 and inst[i, OUTSTANDING] == 0 and inst[i, LOADS] == 0 and inst[i, SPAWNS] == 0:
            empty(w, i, now)
            inst[i, UP] = 1
            w.area[i, UP_SINCE] = now
            w.up[w.whole[RUNNING_NOW]] = i
            w.whole[RUNNING_NOW] += 1
            for m in w.warm:
                p = i * w.whole[MODELS] + m
                if w.needs[m]["disk"] <= w.whole[DISK_LIMIT] and w.needs[m]["active"] <= w.whole[MEMORY_LIMIT]:
                    begin_load(w, i, p, now)
            return True
    return False


@compiled
def take_down(w: World, at: int, now: float) -> None:
    """Take the instance at this place of ``up`` out of service; what it has begun, it ends."""
    i = w.up[at]
    w.inst[i, UP] = 0
    w.area[i, UP_SECONDS] += now - w.area[i, UP_SINCE]
    w.whole[RUNNING_NOW] -= 1
    w.up[at] = w.up[w.whole[RUNNING_NOW]]


@compiled
def deploy(w: World, now: float) -> bool:
    """New instances take the place of all old ones: every cache is empty."""
    count = w.whole[RUNNING_NOW]
    new = 0
    while new < count and put_up(w, now):
        new += 1
    if new < count:  # the spare ones are not done yet: another moment
        while new > 0:
            take_down(w, int(w.whole[RUNNING_NOW]) - 1, now)
            new -= 1
        return False
    for at in range(count - 1, -1, -1):
        take_down(w, at, now)
    return True


@compiled
def minute(w: World, now: float) -> None:
    """Target tracking looks at the minute that has passed: out after 3 minutes above the target, in after 15 below 90 %
    of it, each after its cooldown."""
    real, whole = w.real, w.whole
    per_instance = real[COUNTED] / whole[RUNNING_NOW]
    real[COUNTED] = 0.0
    target = real[TARGET]
    real[HIGH] = real[HIGH] + 1 if per_instance > target else 0.0
    real[LOW] = real[LOW] + 1 if per_instance < 0.9 * target else 0.0
    wanted = int(np.ceil(whole[RUNNING_NOW] * per_instance / target))
    wanted = min(max(wanted, whole[MINIMUM]), whole[MAXIMUM])
    if real[HIGH] >= 3 and now - real[LAST_OUT] >= real[OUT_COOLDOWN]:
        more = wanted - whole[RUNNING_NOW] - whole[COMING]
        for _ in range(more):
            w.coming[whole[COMING]] = now + real[START_SECONDS]
            whole[COMING] += 1
            w.counts[SCALED_OUT] += 1
        if more > 0:
            real[LAST_OUT] = now
    elif real[LOW] >= 15 and now - max(real[LAST_IN], real[LAST_OUT]) >= real[IN_COOLDOWN]:
        fewer = whole[RUNNING_NOW] - wanted
        for _ in range(fewer):
            take_down(w, int(whole[RUNNING_NOW]) - 1, now)
            w.counts[SCALED_IN] += 1
        if fewer > 0:
            real[LAST_IN] = now


@compiled
def arrived(w: World, now: float) -> None:
    """The instance that was started first comes into service."""
    if put_up(w, now):
        for k in range(1, w.whole[COMING]):
            w.coming[k - 1] = w.coming[k]
        w.whole[COMING] -= 1
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
        p = i * w.whole[MODELS] + m
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


@entry
def run(w: World) -> None:
    """Play everything to its end: until each request is answered or refused."""
    coming_request = 0
    requests = len(w.request)
    next_deployment = 0
    next_minute = 60.0 if w.real[TARGET] > 0.0 else NEVER
    deployment = w.deployments[0] if len(w.deployments) > 0 else NEVER
    ring = w.ring
    while True:
        station = int(w.station[0]["order"])
        job_at = w.station[station]["key"]
        arrival = w.request[coming_request]["arrive"] if coming_request < requests else NEVER
        late = w.late[ring[0] % len(w.late)]["time"] if ring[0] < ring[1] else NEVER
        again = w.again[ring[2] % len(w.again)]["time"] if ring[2] < ring[3] else NEVER
        up = w.coming[0] if w.whole[COMING] > 0 else NEVER
        now = min(min(min(job_at, arrival), min(late, again)), min(min(up, next_minute), deployment))
        if now == NEVER:
            break
        w.counts[EVENTS] += 1
        if job_at <= now:
            complete(w, station, now)
        elif deployment <= now:
            if deploy(w, now):
                next_deployment += 1
                deployment = w.deployments[next_deployment] if next_deployment < len(w.deployments) else NEVER
            else:
                deployment = now + 1.0
        elif up <= now:
            arrived(w, now)
        elif arrival <= now:
            attempt(w, coming_request, now)
            coming_request += 1
        elif again <= now:
            r = int(w.again[ring[2] % len(w.again)]["request"])
            ring[2] += 1
            attempt(w, r, now)
        elif late <= now:
            load_late(w, now)
        else:
            minute(w, now)
            # After the last request nothing is left to scale for.
            next_minute = now + 60.0 if coming_request < requests else NEVER
        w.real[UNTIL] = max(w.real[UNTIL], now)
