"""The models and what each of them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mme.capacity.state import Floats, Longs
from mme.errors import UsageError

MiB = 1 << 20


@dataclass(frozen=True)
class Serving:
    """How a container serves: ours, or the stock one. See docs/capacity.md for where each figure is from.

    ``batch_limit`` requests of one model are answered in one go, and ``batch_shared`` of the seconds of an answer is
    paid once for a batch (0: nothing, 1: all). ``grants``: models that compute at a time, in cores of the instance; 0
    for no limit. ``base_bytes``: what the container takes with no model loaded.
    """

    name: str
    parking: bool
    park_after: float
    grants: bool
    spawns_per_core: bool
    batch_limit: int
    batch_shared: float
    max_queue: int
    base_bytes: int


# Batches: by docs/figures.md, an answer's processor time with 1 client and with 32 is 4.9 and 1.6 ms for short texts,
# which is a share of 0.7, and 7.6 and 5.2 for mixed lengths, which is 0.3; the latter is assumed. The base: torch and
# transformers imported once, and the front. `measure` puts its own in the place of both.
OURS = Serving("ours", True, 900.0, True, True, 32, 0.3, 1000, 450 * MiB)
STOCK = Serving("stock", False, float("inf"), False, False, 1, 0.0, 100, 450 * MiB)
SERVINGS = {"ours": OURS, "stock": STOCK}


MOST = 1e15
"""Bytes, seconds or cores of one model, beyond any machine: a bound for what is counted in 64 bits."""


@dataclass(frozen=True)
class Models:
    """The models and what each needs, one row for each. Bytes and seconds, on the processor that was measured.

    ``disk``: of the extracted archive; ``archive``: of the object that is downloaded. ``active``: memory with a
    process, weights included; ``parked``: without. ``load``: from LOAD to callable; ``wake``: from parked to callable.
    ``answer``: for one request on an idle machine, and ``cores``: how many it keeps busy then. ``answer_spread``,
    ``load_spread`` and ``wake_spread`` are factors, each as likely as the others, that single answers, loads and wakes
    vary by; what the first answer behind a load or a wake varies by is in the latter two. ``load_cores`` and
    ``wake_cores``: how many cores a load and a wake keep busy.
    """

    names: Sequence[str]
    disk: Longs
    archive: Longs
    active: Longs
    parked: Longs
    load: Floats
    wake: Floats
    answer: Floats
    cores: Floats
    answer_spread: tuple[float, ...] = (1.0,)
    load_spread: tuple[float, ...] = (1.0,)
    wake_spread: tuple[float, ...] = (1.0,)
    load_cores: float = 1.0
    wake_cores: float = 1.0
    overhead: float = 0.0
    origin: str = "given"
    batch_shared: float | None = None
    base_bytes: int | None = None
    index: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def measured(self, serving: Serving) -> Serving:
        """The container with what was measured of it in the place of what is assumed."""
        return replace(
            serving,
            batch_shared=serving.batch_shared if self.batch_shared is None else self.batch_shared,
            base_bytes=serving.base_bytes if self.base_bytes is None else self.base_bytes,
        )

    def faster(self, factor: float) -> Models:
        """The same on a processor whose cores take ``factor`` times the seconds."""
        return replace(self, load=self.load * factor, wake=self.wake * factor, answer=self.answer * factor)


def models(
    names: Sequence[str],
    *,
    disk: Sequence[float] | Longs | float,
    active: Sequence[float] | Longs | float,
    archive: Sequence[float] | Longs | float | None = None,
    parked: Sequence[float] | Longs | float = 0,
    load: Sequence[float] | Floats | float = 0.0,
    wake: Sequence[float] | Floats | float = 0.0,
    answer: Sequence[float] | Floats | float = 0.0,
    cores: Sequence[float] | Floats | float = 1.0,
    answer_spread: Sequence[float] = (1.0,),
    load_spread: Sequence[float] = (1.0,),
    wake_spread: Sequence[float] = (1.0,),
    load_cores: float = 1.0,
    wake_cores: float = 1.0,
    overhead: float = 0.0,
    origin: str = "given",
    batch_shared: float | None = None,
    base_bytes: int | None = None,
) -> Models:
    """Models from plain values: one for all, or one for each. Raises UsageError for what cannot be."""
    count = len(names)

    def row(what: str, value: object, kind: type) -> np.ndarray:
        made = np.broadcast_to(np.asarray(value, dtype=np.float64), (count,))
        if not np.all(np.isfinite(made)) or np.any(made < 0):
            worst = int(np.argmax(~(np.isfinite(made) & (made >= 0))))
            raise UsageError(f"Model {names[worst]}: {what} is {made[worst]:g}; it must be a number, 0 or more.")
        if np.any(made > MOST):
            worst = int(np.argmax(made))
            raise UsageError(f"Model {names[worst]}: {what} is {made[worst]:g}, which nothing has.")
        return np.ascontiguousarray(made).astype(kind)

    idle = row("cores", cores, float) <= 0
    if np.any(idle):
        raise UsageError(f"Model {names[int(np.argmax(idle))]}: cores is 0.", "Leave it out for 1.")
    index: dict[str, int] = {}
    for at, name in enumerate(names):
        if name in index:
            raise UsageError(f"Model {name} is there twice.", "Each name may stand for one model only.")
        index[name] = at
    spreads = (("answer_spread", answer_spread), ("load_spread", load_spread), ("wake_spread", wake_spread))
    for what, spread in spreads:
        if not spread or min(spread) < 0:
            raise UsageError(f"{what} needs factors of 0 or more.")
    for what, number in (("load_cores", load_cores), ("wake_cores", wake_cores)):
        if not 0 < number <= MOST:
            raise UsageError(f"{what} is {number:g}; it must be a number above 0.")
    return Models(
        tuple(names),
        row("disk", disk, np.int64),
        row("archive", disk if archive is None else archive, np.int64),
        row("active", active, np.int64),
        row("parked", parked, np.int64),
        row("load", load, np.float64),
        row("wake", wake, np.float64),
        row("answer", answer, np.float64),
        row("cores", cores, np.float64),
        tuple(answer_spread),
        tuple(load_spread),
        tuple(wake_spread),
        load_cores,
        wake_cores,
        overhead,
        origin,
        batch_shared,
        base_bytes,
        index,
    )
