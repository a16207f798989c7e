"""Which GPU a model's process gets, and whether there is room for it there.

The policy: the GPU with most memory free, less what loads in progress and first answers are about to take; each process
needs what CUDA itself takes and its weights. Where no GPU has that much, idle models are parked, the longest idle
first, on the GPU where that frees most. Where nobody is idle, loads in progress are waited for, since they were
promised more than they take; a wake-up waits for work, too, as it does for the machine's memory. Then it is 507. Where
a GPU runs short later, of what requests take in passing, its longest idle model is parked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Protocol

from mme.container import errors
from mme.container.config import MiB, Settings
from mme.container.front.counters import Totals
from mme.container.front.gpu import Gpu, Gpus
from mme.container.front.models import Model, WorkerLink

# What CUDA itself takes on the device for each process that has answered. Measured: 735 MiB beside MiniLM's weights and
# 770 beside GPT-2's (H100, CUDA 13.0, torch 2.11).
GPU_CONTEXT = 720 * MiB
# The part of it that comes with a process's first answer: its libraries' code and workspaces.
FIRST_ANSWER = 400 * MiB
LOW = 256 * MiB  # with less free than this, or than a twentieth of a small GPU, a request may fail for want of memory
LOOK_EVERY = 4  # calls of `guard`


class Effects(Protocol):
    """What this needs of the other owners."""

    def workers(self) -> Iterable[WorkerLink]:
        """Every process that runs."""

    def idle(self) -> list[Model]:
        """Models with a process and without requests, the longest idle first."""

    def park(self, model: Model, reason: str) -> asyncio.Future[None]:
        """End the process of an idle model, which stays loaded. Done when its memory is free."""


class Cards:
    """Owns how much of the GPUs' memory is promised to loads in progress."""

    def __init__(self, settings: Settings, totals: Totals, effects: Effects, gpus: Gpus | None) -> None:
        self._settings = settings
        self._totals = totals
        self._effects = effects
        self._gpus = gpus
        self._promised: dict[Model, tuple[str, int]] = {}  # the GPU's name, bytes
        self._freed = asyncio.Event()
        self._calls = 0

    def freed(self) -> None:
        """A worker became idle or ended: loads that wait for memory check again."""
        self._freed.set()

    def keep(self, model: Model) -> None:
        """The load is over. What was promised is in use now, or free again."""
        if self._promised.pop(model, None):
            self._freed.set()

    async def place(self, model: Model, wait: bool) -> str | None:
        """Promise the model memory of a GPU until :meth:`keep`, and return its name. None where there is no GPU. Raises
        507 where none has room (see the module); with ``wait``, only once no work is in hand that will end."""
        self._promised.pop(model, None)  # its process is forked again
        need = _size(model)
        while True:
            self._freed.clear()
            gpus = self._gpus.look() if self._gpus is not None else []
            if not gpus:
                if self._settings.device == "cuda":
                    raise errors.internal("MME_DEVICE is cuda, but no GPU can be seen here")
                return None
            best = max(gpus, key=self._free)
            if self._free(best) >= need:
                self._promised[model] = best.name, need
                return best.name
            victim = self._victim(model, gpus) if need <= max(gpu.total for gpu in gpus) else None
            if victim is not None:
                await self._effects.park(victim, "gpu memory")
            elif self._promised or (wait and any(worker.sent for worker in self._effects.workers())):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), 1.0)
            else:
                self._totals.no_memory += 1
                raise errors.out_of_memory(
                    f"Model {model.name} needs about {need // MiB} MiB of GPU memory; at most "
                    f"{max(0, self._free(best)) // MiB} MiB are free on one GPU. Unload a model that is not in use"
                )

    def guard(self) -> None:
        """Called several times a second: park a model where a GPU is about to be full."""
        self._calls += 1
        if self._gpus is None or self._calls % LOOK_EVERY or not any(worker.gpu for worker in self._effects.workers()):
            return
        for gpu in self._gpus.look():
            idle = self._idle(gpu)
            if idle and gpu.free < min(LOW, gpu.total // 20):
                self._effects.park(idle[0], "gpu memory")

    def _victim(self, model: Model, gpus: list[Gpu]) -> Model | None:
        """The longest idle model of the GPU that would have most memory free without its idle ones."""
        idle = {gpu: [other for other in self._idle(gpu) if other is not model] for gpu in gpus}
        with_some = [gpu for gpu in gpus if idle[gpu]]
        if not with_some:
            return None
        return idle[max(with_some, key=lambda gpu: self._free(gpu) + sum(map(_size, idle[gpu])))][0]

    def _idle(self, gpu: Gpu) -> list[Model]:
        return [model for model in self._effects.idle() if model.worker is not None and model.worker.gpu == gpu.name]

    def _free(self, gpu: Gpu) -> int:
        """What is free on a GPU less what loads in progress and first answers are about to take."""
        loading = sum(size for name, size in self._promised.values() if name == gpu.name)
        loaded = [worker for worker in self._effects.workers() if worker.gpu == gpu.name and worker.was_ready]
        first = sum(not worker.answered and worker.model not in self._promised for worker in loaded)
        return gpu.free - loading - first * FIRST_ANSWER


def _size(model: Model) -> int:
    """What a process of this model takes on a GPU, about: its weights lie there in the format that computes."""
    return GPU_CONTEXT + int((model.weights.mapped + model.weights.copied + model.weights.grown) * 1.2)


def unseen(gpus: Gpus, present: Callable[[], bool]) -> str | None:
    """Why models go to the CPU although the system has a GPU's device files; None where there is nothing to say."""
    if gpus.look() or not present():
        return None
    if gpus.visible is not None:
        return f"CUDA_VISIBLE_DEVICES={','.join(gpus.visible)!r} names no GPU of this machine: models run on the CPU"
    return "There is a GPU, but NVIDIA's management library (nvidia-ml-py) does not show it: models run on the CPU"
