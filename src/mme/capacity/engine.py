"""The simulation's inner loop: requests, which models compute, instances that come and go, one event at a time.

``simulate`` builds the state from plain values and reads the result; its docstring says what is modelled.
"""

from __future__ import annotations

from mme.capacity.compiled import compiled, entry
from mme.capacity.loading import (
    advance,
    begin_load,
    cores_of,
    draw,
    idle,
    job,
    park,
    pop,
    push,
    rekey,
    seek_memory,
    start_load,
    to_spawn,
    unlink,
)
from mme.capacity.scaling import arrived, deploy, minute
from mme.capacity.state import (
    ABSENT,
    ACT,
    ACTIVE,
    ANSWER_TIMEOUT,
    BATCH,
    BATCH_LIMIT,
    COMING,
    CORE_HEAD,
    CORE_TAIL,
    COUNTED,
    DISK_LIMIT,
    DOWNLOAD,
    DOWNLOADED,
    EVENTS,
    EXTRACT,
    FLAGS,
    FROM_DISK,
    GRANT_LIMIT,
    GRANTS,
    HIT,
    IDLE_HEAD,
    IDLE_TAIL,
    JOINED,
    LAST,
    LEAST_OUTSTANDING,
    LINK,
    LOAD_CORES,
    LOAD_HEAD,
    LOAD_TAIL,
    LOAD_TIMEOUT,
    LOADS,
    MAX_LOADS,
    MAX_QUEUE,
    MAX_SPAWNS,
    MEMORY_LIMIT,
    MODELS,
    NEVER,
    NOT_READY,
    OK,
    ON_DISK,
    OPEN,
    OUTSTANDING,
    OVERHEAD,
    PARK_AFTER,
    PARKED,
    PARKING,
    PATIENCE,
    QUEUED,
    REFUSED,
    RETRIED,
    RETRY_AFTER,
    ROUTING,
    RUN,
    RUNNING,
    RUNNING_NOW,
    SHARED,
    SLOW,
    SPAWN,
    SPAWN_HEAD,
    SPAWN_TAIL,
    SPAWNS,
    SPILL,
    STATE,
    STICKY,
    STORAGE,
    STORED,
    TARGET,
    TIMEOUT,
    TOO_LARGE,
    TRIES,
    UNTIL,
    UP,
    WAIT_LOAD,
    WAITING,
    WAKE_CORES,
    WAKES,
    WAKING,
    WOKEN,
    World,
)

# ---- a model comes up ---------------------------------------------------------------------------------------------


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
    if inst[i, SPAWN_HEAD] != 0 and inst[i, SPAWNS] < w.ints[MAX_SPAWNS]:
        inst[i, SPAWNS] += 1
        seek_memory(w, i, pop(w, i, SPAWN_HEAD, SPAWN_TAIL), now)
    if inst[i, LOAD_HEAD] != 0 and inst[i, LOADS] < w.ints[MAX_LOADS]:
        start_load(w, i, pop(w, i, LOAD_HEAD, LOAD_TAIL), now)


# ---- who computes -------------------------------------------------------------------------------------------------


@compiled
def finish(w: World, r: int, i: int, outcome: int, now: float) -> None:
    """The client has its answer, or has been refused."""
    w.request[r]["outcome"] = outcome
    w.request[r]["latency"] = now - w.request[r]["arrive"] + w.real[OVERHEAD]
    w.inst[i, OUTSTANDING] -= 1


@compiled
def drop_late(w: World, i: int, p: int, now: float) -> None:
    """Remove requests from the head of the queue whose time for an answer has run out: they were refused at that
    moment."""
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
    while w.inst[i, CORE_HEAD] != 0 and w.inst[i, GRANTS] < w.ints[GRANT_LIMIT]:
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
    m = p % w.ints[MODELS]
    link = pair[p, WAITING]
    pair[p, BATCH] = link
    total = 0.0
    longest = 0.0
    last = 0
    taken = 0
    while link != 0 and taken < w.ints[BATCH_LIMIT]:
        factor = w.request[link - 1]["factor"] * w.request[link - 1]["chance"]
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
    job(w, cores_of(w, i), p, seconds, w.needs[m]["cores"], now)


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
    count = w.ints[RUNNING_NOW]
    routing = w.ints[ROUTING]
    if count == 1:
        return int(w.up[0])
    if routing == STICKY:
        home = w.needs[m]["home"]
        if home != 0 and w.inst[home - 1, UP] == 1:
            if w.inst[home - 1, OUTSTANDING] < w.ints[SPILL]:
                return int(home - 1)
            other = w.needs[m]["second_home"]
            if other != 0 and w.inst[other - 1, UP] == 1 and w.inst[other - 1, OUTSTANDING] < w.ints[SPILL]:
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
    count = w.ints[RUNNING_NOW]
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
    p = i * int(w.ints[MODELS]) + m
    pair, inst = w.pair, w.inst
    w.request[r]["began"] = now
    w.real[COUNTED] += 1.0
    inst[i, OUTSTANDING] += 1
    if w.ints[PARKING] == 1:
        before = now - w.real[PARK_AFTER]
        while inst[i, ACT] != 0 and w.when[inst[i, ACT] - 1] <= before:
            park(w, i, inst[i, ACT] - 1, w.when[inst[i, ACT] - 1] + w.real[PARK_AFTER])
    state = pair[p, STATE]
    kind = HIT
    if state in (ACTIVE, PARKED):
        if pair[p, RUN] != 0:
            drop_late(w, i, p, now)
        if pair[p, OPEN] >= w.ints[MAX_QUEUE]:
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
        if w.needs[m]["disk"] > w.ints[DISK_LIMIT] or w.needs[m]["active"] > w.ints[MEMORY_LIMIT]:
            w.request[r]["kind"] = kind
            finish(w, r, i, TOO_LARGE, now)
            return
    else:
        kind = JOINED
    if kind != HIT:
        w.request[r]["chance"] = 1.0
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
def load_late(w: World, now: float) -> bool:
    """Answer the request that has waited longest for a load with ModelNotReady. False where it no longer waits."""
    size = len(w.late)
    at = w.ring[0] % size
    w.ring[0] += 1
    r, p = int(w.late[at]["request"]), int(w.late[at]["pair"])
    state = w.pair[p, STATE]
    if state < WAIT_LOAD or state > SPAWN or w.pair[p, FLAGS] & WAKING or w.pair[p, WAITING] != r + 1:
        return False
    if w.request[r]["began"] + w.real[LOAD_TIMEOUT] != w.late[at]["time"]:
        return False
    i = p // w.ints[MODELS]
    w.pair[p, WAITING] = w.request[r]["follower"]
    if w.request[r]["follower"] == 0:
        w.pair[p, LAST] = 0
    w.pair[p, OPEN] -= 1
    if w.request[r]["tries"] >= w.ints[TRIES]:
        finish(w, r, i, NOT_READY, now)
        return True
    w.inst[i, OUTSTANDING] -= 1
    w.counts[RETRIED] += 1
    size = len(w.again)
    w.again[w.ring[3] % size]["time"] = now + w.real[RETRY_AFTER]
    w.again[w.ring[3] % size]["request"] = r
    w.ring[3] += 1
    return True


@compiled
def complete(w: World, s: int, now: float) -> None:
    """The next job of a station ends."""
    advance(w, s, now)
    p = int(w.station[s]["first"]) - 1
    i = p // w.ints[MODELS]
    w.station[s]["progress"] = max(w.station[s]["progress"], w.when[p])
    state = w.pair[p, STATE]
    w.station[s]["first"] = w.pair[p, LINK]
    w.pair[p, LINK] = 0
    if state == ACTIVE:
        w.station[s]["demand"] -= w.needs[p % w.ints[MODELS]]["cores"]
    elif state == SPAWN:
        w.station[s]["demand"] -= w.real[WAKE_CORES] if w.pair[p, FLAGS] & WAKING else w.real[LOAD_CORES]
    else:
        w.station[s]["demand"] -= 1.0
    rekey(w, s, now)
    if state == ACTIVE:
        batch_done(w, i, p, now)
    elif state == DOWNLOAD:
        w.pair[p, STATE] = EXTRACT
        job(w, 3 * i + STORAGE, p, w.needs[p % w.ints[MODELS]]["extract"], 1.0, now)
    elif state == EXTRACT:
        w.pair[p, FLAGS] |= STORED
        to_spawn(w, i, p, now)
    else:
        spawned(w, i, p, now)


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
        up = w.coming[0] if w.ints[COMING] > 0 else NEVER
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
            if not load_late(w, now):
                continue  # no event is left: the simulated time ends with the last one
        else:
            minute(w, now)
            # After the last request nothing is left to scale for.
            next_minute = now + 60.0 if coming_request < requests else NEVER
        w.real[UNTIL] = max(w.real[UNTIL], now)
