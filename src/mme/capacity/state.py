"""The simulation's state: its numbers' meanings, its records and its arrays.

Everything is an array, so that the functions of ``loading`` and ``engine`` run compiled (see ``compiled``). How a piece
of it is kept:

- A *pair* is one model on one instance, number ``instance * models + model``. Links between pairs and between requests
  hold the number plus one, so that arrays of zeros mean "empty" and pages nobody touches cost no memory.
- Each instance has one list of loaded models that nobody uses, the longest idle first. The parked ones are its first
  part, because the longest idle are parked first; ``ACT`` points at the first that still has a process. A second list
  has the models that are only on disk.
- Each instance has three *stations* that their jobs share: cores (those of all instances together where they are
  containers on one machine), network, disk. All jobs of a station progress at the same rate, 1 or less, so they finish
  in the order of (progress of the station when the job came + its seconds).
  A heap over the stations knows which job ends next.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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

# Of ``ints``, the integers of the simulation.
(MODELS, INSTANCES, CPUS, BATCH_LIMIT, PARKING, MAX_LOADS, MAX_SPAWNS, MAX_QUEUE, ROUTING, TRIES, SEED) = range(11)
(MEMORY_LIMIT, DISK_LIMIT, MINIMUM, MAXIMUM, SPILL, GRANT_LIMIT, RUNNING_NOW, COMING, ONE_MACHINE) = range(11, 20)
INTS = 20
RANDOM, LEAST_OUTSTANDING, STICKY = 0, 1, 2

# Of ``real``, the others.
(LOAD_TIMEOUT, ANSWER_TIMEOUT, RETRY_AFTER, OVERHEAD, PARK_AFTER, PATIENCE, SHARED, TARGET) = range(8)
(START_SECONDS, OUT_COOLDOWN, IN_COOLDOWN, LAST_OUT, LAST_IN, HIGH, LOW, COUNTED, UNTIL) = range(8, 17)
(LOAD_CORES, WAKE_CORES) = range(17, 19)
REAL = 19

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
        ("factor", "f4"),  # of the model's seconds for an answer, as the trace has it
        ("chance", "f4"),  # another one, as answers vary; 1 behind a load or a wake, whose own has that in it
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
    wake_spread: Floats
    deployments: Floats
    warm: Ints
    ints: Longs
    real: Floats
    counts: Longs
