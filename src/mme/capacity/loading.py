"""An instance's shared resources, and a model's way into its memory: stations, lists, disk, memory, loads, wakes."""

from __future__ import annotations

from mme.capacity.compiled import compiled
from mme.capacity.state import (
    ABSENT,
    ACT,
    AFTER,
    BEFORE,
    CORES,
    DELETED,
    DISK,
    DISK_HEAD,
    DISK_LIMIT,
    DISK_TAIL,
    DOWNLOAD,
    FLAGS,
    IDLE_HEAD,
    IDLE_TAIL,
    LINK,
    LOAD_CORES,
    LOAD_HEAD,
    LOAD_TAIL,
    LOADED,
    LOADS,
    MAX_LOADS,
    MAX_SPAWNS,
    MEMORY,
    MEMORY_AT,
    MEMORY_LIMIT,
    MEMORY_SECONDS,
    MODELS,
    NETWORK,
    NEVER,
    ON_DISK,
    ONE_MACHINE,
    PARKED,
    PARKING,
    PARKS,
    PEAK,
    RELOADED,
    ROOM_HEAD,
    ROOM_TAIL,
    SEED,
    SEEN,
    SPAWN,
    SPAWN_HEAD,
    SPAWN_TAIL,
    SPAWNS,
    STATE,
    STORED,
    UNLOADED,
    WAIT_DISK,
    WAIT_LOAD,
    WAIT_ROOM,
    WAIT_SPAWN,
    WAKE_CORES,
    WAKING,
    World,
)

# ---- chance, and the order of events ------------------------------------------------------------------------------


@compiled
def draw(w: World, below: int) -> int:
    """A whole number from 0 to ``below`` - 1, by the generator of Park and Miller (1988)."""
    w.ints[SEED] = w.ints[SEED] * 48271 % 2147483647
    return int(w.ints[SEED] * below // 2147483647)


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
def cores_of(w: World, i: int) -> int:
    """The station of an instance's cores."""
    return CORES if w.ints[ONE_MACHINE] == 1 else 3 * i + CORES


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
    m = p % w.ints[MODELS]
    w.pair[p, STATE] = PARKED
    w.inst[i, ACT] = w.pair[p, AFTER]
    take_memory(w, i, w.needs[m]["parked"] - w.needs[m]["active"], now)
    w.counts[PARKS] += 1


@compiled
def unload(w: World, i: int, p: int, now: float) -> None:
    """Unload the model that has been idle longest; it stays on the disk."""
    m = p % w.ints[MODELS]
    size = w.needs[m]["parked"] if w.pair[p, STATE] == PARKED else w.needs[m]["active"]
    unlink(w, i, p, IDLE_HEAD, IDLE_TAIL)
    take_memory(w, i, -size, now)
    w.pair[p, STATE] = ON_DISK
    append(w, i, p, DISK_HEAD, DISK_TAIL)
    w.counts[UNLOADED] += 1


@compiled
def make_memory(w: World, i: int, need: int, now: float) -> bool:
    """Free this much memory, by parking idle models, else by unloading them. False where all models are in use."""
    inst = w.inst
    limit = w.ints[MEMORY_LIMIT]
    while inst[i, MEMORY] + need > limit:
        if inst[i, ACT] != 0:
            p = inst[i, ACT] - 1
            if w.ints[PARKING] == 1:
                park(w, i, p, now)
            else:
                unload(w, i, p, now)
        elif inst[i, IDLE_HEAD] != 0 and w.needs[(inst[i, IDLE_HEAD] - 1) % w.ints[MODELS]]["parked"] > 0:
            unload(w, i, inst[i, IDLE_HEAD] - 1, now)
        else:
            return False
    return True


@compiled
def make_disk(w: World, i: int, need: int, now: float) -> bool:
    """Free this much disk: archives that are not loaded are removed first, then idle models are unloaded."""
    inst = w.inst
    while inst[i, DISK] + need > w.ints[DISK_LIMIT]:
        if inst[i, DISK_HEAD] == 0:
            if inst[i, IDLE_HEAD] == 0:
                return False
            unload(w, i, inst[i, IDLE_HEAD] - 1, now)
        p = inst[i, DISK_HEAD] - 1
        unlink(w, i, p, DISK_HEAD, DISK_TAIL)
        inst[i, DISK] -= w.needs[p % w.ints[MODELS]]["disk"]
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
        m = p % w.ints[MODELS]
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
    if w.inst[i, LOADS] < w.ints[MAX_LOADS]:
        start_load(w, i, p, now)
    else:
        push(w, i, p, LOAD_HEAD, LOAD_TAIL)


@compiled
def start_load(w: World, i: int, p: int, now: float) -> None:
    w.inst[i, LOADS] += 1
    m = p % w.ints[MODELS]
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
    m = p % w.ints[MODELS]
    w.inst[i, DISK] += w.needs[m]["disk"]
    w.pair[p, STATE] = DOWNLOAD
    job(w, 3 * i + NETWORK, p, w.needs[m]["download"], 1.0, now)


@compiled
def to_spawn(w: World, i: int, p: int, now: float) -> None:
    """The files are there: ask the container to load, or to wake, the model."""
    if w.inst[i, SPAWNS] < w.ints[MAX_SPAWNS]:
        w.inst[i, SPAWNS] += 1
        seek_memory(w, i, p, now)
    else:
        w.pair[p, STATE] = WAIT_SPAWN
        push(w, i, p, SPAWN_HEAD, SPAWN_TAIL)


@compiled
def seek_memory(w: World, i: int, p: int, now: float) -> None:
    m = p % w.ints[MODELS]
    held = w.needs[m]["parked"] if w.pair[p, FLAGS] & WAKING else 0
    if make_memory(w, i, w.needs[m]["active"] - held, now):
        start_spawn(w, i, p, now)
    else:
        w.pair[p, STATE] = WAIT_ROOM
        push(w, i, p, ROOM_HEAD, ROOM_TAIL)


@compiled
def start_spawn(w: World, i: int, p: int, now: float) -> None:
    m = p % w.ints[MODELS]
    waking = w.pair[p, FLAGS] & WAKING
    take_memory(w, i, w.needs[m]["active"] - (w.needs[m]["parked"] if waking else 0), now)
    w.pair[p, STATE] = SPAWN
    if waking:
        seconds = w.needs[m]["wake"] * w.wake_spread[draw(w, len(w.wake_spread))]
        cores = w.real[WAKE_CORES]
    else:
        seconds = w.needs[m]["load"] * w.load_spread[draw(w, len(w.load_spread))]
        cores = w.real[LOAD_CORES]
    job(w, cores_of(w, i), p, seconds, cores, now)


@compiled
def idle(w: World, i: int, p: int, now: float) -> None:
    """Nobody uses the model any more: it is the last to be parked or unloaded."""
    w.when[p] = now
    append(w, i, p, IDLE_HEAD, IDLE_TAIL)
    if w.inst[i, ACT] == 0:
        w.inst[i, ACT] = p + 1
    if w.inst[i, ROOM_HEAD] != 0:
        room_event(w, i, now)
