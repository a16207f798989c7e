"""Every request for a prediction, from its arrival to its answer.

The policy: a request is taken if its model has fewer than MME_MAX_QUEUE of them and the bodies of all fit in
MME_MAX_QUEUE_BYTES, else refused with 503. It is answered exactly once. What its model's process had not begun when
that ended goes back to the queue; what it had begun fails, unless the process was ended to part its weights from those
of other models: then it is done once more. Work that nobody waits for any more is ended after a moment,
because a fork is cheaper than the work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from mme.container import errors
from mme.container.config import Settings
from mme.container.errors import ServingError
from mme.container.front.budget import Budget
from mme.container.front.counters import Totals
from mme.container.front.models import Invocation, Model, State, WorkerLink
from mme.container.text import header_problem
from mme.container.wire import Frame, Kind

ABANDON_SECONDS = 1.0  # how long work goes on that nobody waits for any more


class Effects(Protocol):
    """What requests need of the other owners."""

    def want(self, worker: WorkerLink) -> None:
        """The worker has been sent requests, and wants to compute."""

    def kill(self, worker: WorkerLink, reason: str) -> None: ...

    def became_idle(self, model: Model) -> None:
        """The model's last request has been answered."""

    def later(self, seconds: float, call: Callable[[], None]) -> object: ...


class Requests:
    """Owns what is open. Times are monotonic seconds."""

    def __init__(
        self, settings: Settings, totals: Totals, effects: Effects, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._totals = totals
        self._effects = effects
        self._clock = clock
        self.budget = Budget(settings.max_queue_bytes)
        self._ids = 0
        self._open: dict[int, Invocation] = {}  # in order of arrival
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    def take(
        self,
        model: Model,
        headers: dict[str, str],
        body: bytes,
        done: Callable[[Invocation, int, bytes, str, dict[str, Any]], None],
        target: str = "",
    ) -> Invocation:
        """Queue a request; ``done`` is called with its answer. Raises ServingError if it cannot be taken."""
        if model.open >= self._settings.max_queue:
            self._totals.refused += 1
            raise errors.unavailable(f"{model.open} requests already wait for model {model.name}; try again later")
        if not self.budget.take(len(body)):
            self._totals.refused += 1
            raise errors.unavailable("Too much request data waits in the container; try again later")
        self._ids += 1
        now = self._clock()
        invocation = Invocation(self._ids, model, headers, body, now, done, target)
        self._open[invocation.id] = invocation
        self._all_answered.clear()
        model.queue[invocation.id] = invocation
        model.last_used = now
        return invocation

    def push(self, model: Model) -> None:
        """Send what is queued to the model's worker, and ask for a core for it."""
        worker = model.worker
        if worker is None or not worker.was_ready or worker.doomed or not model.queue:
            return
        for invocation in model.queue.values():
            worker.sent[invocation.id] = invocation
            worker.send(Kind.REQUEST, invocation.id, invocation.headers, invocation.body)
        model.queue.clear()
        self._effects.want(worker)

    def granted(self, worker: WorkerLink) -> None:
        """A worker may compute from now on. Where it has one request only, it begins with that one, and does not say
        so: each message costs both sides as much as a tenth of a short answer."""
        if not worker.started and len(worker.sent) == 1:
            worker.started = set(worker.sent)
            worker.batch += 1
            self._totals.batches += 1

    def began(self, worker: WorkerLink, frame: Frame) -> None:
        """A worker says what it computes now."""
        worker.started = set(frame.meta["ids"])
        worker.batch += 1
        self._totals.batches += bool(worker.started)
        self._abandon_if_unwanted(worker)

    def result(self, worker: WorkerLink, frame: Frame) -> None:
        """A worker has answered a request."""
        invocation = worker.sent.get(frame.id)
        if invocation is None:
            worker.started.discard(frame.id)
            return
        model = invocation.model
        now = self._clock()
        # What cannot be understood raises here, while the request is still open: its worker is ended for it.
        began, decoded, predicted, encoded = map(float, frame.meta["times"])
        batch, own = int(frame.meta["batch"]), int(frame.meta["own"])
        status, kind, body = frame.meta["status"], frame.meta["type"], frame.body
        invocation.headers_out = frame.meta.get("headers") or {}
        if (problem := _problem(status, kind, invocation.headers_out)) is not None:
            invocation.headers_out = {}
            error = errors.internal(f"The handler of model {model.name} {problem}")
            status, kind, body = error.status, "application/json", error.body()
        worker.started.discard(frame.id)
        del worker.sent[frame.id]
        if not self._close(invocation):
            return
        model.last_used = now
        stages = {
            "queue": max(0.0, began - invocation.arrived),
            "decode": decoded - began,
            "predict": predicted - decoded,
            "encode": encoded - predicted,
            "total": now - invocation.arrived,
        }
        self._totals.observe(stages, status, batch)
        model.metrics.observe(stages, status, batch, own)
        invocation.done(invocation, status, body, kind, {**stages, "batch": batch})
        self.look_if_drained(model)

    def fail(self, invocation: Invocation, error: ServingError) -> None:
        """Answer a request with an error, whether it is queued or with a worker."""
        if not self._close(invocation):
            return
        self._drop(invocation)
        stages = {"total": self._clock() - invocation.arrived}
        self._totals.observe(stages, error.status, 0)
        invocation.model.metrics.observe(stages, error.status, 0, 0)
        invocation.done(invocation, error.status, error.body(), "application/json", stages)

    def fail_queued(self, model: Model, error: ServingError) -> None:
        """Answer what waits for the model's process."""
        for invocation in list(model.queue.values()):
            self.fail(invocation, error)

    def fail_all(self, error: ServingError) -> None:
        for invocation in list(self._open.values()):
            self.fail(invocation, error)

    def cancel(self, invocation: Invocation) -> None:
        """The client has gone: forget the request, and the work on it if nothing else is in its batch."""
        if self._close(invocation):
            self._totals.cancelled += 1
            self._drop(invocation)

    def settle(self, worker: WorkerLink, starved: bool, why: str) -> None:
        """Answer the requests that an ended worker held; those it had not begun go back to the queue."""
        model = worker.model
        if worker.doomed == "timeout":
            error = self._late(model)
        elif starved or worker.doomed == "memory":
            error = errors.out_of_memory(f"Model {model.name} was ended: the container's memory ran out")
        else:
            error = errors.internal(f"The process of model {model.name} ended while it worked on the request ({why})")
        lost: list[Invocation] = []
        again: dict[int, Invocation] = {}
        for invocation in worker.sent.values():
            begun = invocation.id in worker.started or (not worker.started and worker.doomed == "timeout")
            if worker.doomed != "parted" and (begun or worker.doomed is None):
                lost.append(invocation)
            else:
                again[invocation.id] = invocation
        # Those that can still be answered go back first: an unload must not see the model without requests.
        model.queue = {**again, **model.queue}
        worker.sent.clear()
        worker.started.clear()
        for invocation in lost:
            self.fail(invocation, error)

    def expire(self) -> None:
        """Answer what has waited for too long."""
        now = self._clock()
        while self._open:
            invocation = next(iter(self._open.values()))
            if now - invocation.arrived < self._settings.invoke_timeout:
                break
            self.fail(invocation, self._late(invocation.model))

    async def all_answered(self) -> None:
        """Wait until nothing is open."""
        await self._all_answered.wait()

    def look_if_drained(self, model: Model) -> None:
        """Say so where nothing is left to answer for the model."""
        if model.open == 0:
            self._effects.became_idle(model)
            if model.state is State.UNLOADING:
                model.drained.set()

    def _late(self, model: Model) -> ServingError:
        seconds = self._settings.invoke_timeout
        return errors.timed_out(f"Model {model.name} did not answer within {seconds:g} seconds")

    def _close(self, invocation: Invocation) -> bool:
        """Take a request off the books. False if it was off already."""
        if self._open.pop(invocation.id, None) is None:
            return False
        self.budget.give(len(invocation.body))
        if not self._open:
            self._all_answered.set()
        return True

    def _drop(self, invocation: Invocation) -> None:
        """Take a closed request out of its queue or its worker."""
        model = invocation.model
        worker = model.worker
        model.queue.pop(invocation.id, None)
        if worker is not None and worker.sent.pop(invocation.id, None) is not None:
            worker.send(Kind.CANCEL, invocation.id)
            self._abandon_if_unwanted(worker)
        self.look_if_drained(model)

    def _abandon_if_unwanted(self, worker: WorkerLink) -> None:
        if _is_unwanted(worker):
            delay = max(ABANDON_SECONDS, 2 * worker.model.load_seconds)
            batch = worker.batch
            self._effects.later(delay, lambda: self._abandon(worker, batch))

    def _abandon(self, worker: WorkerLink, batch: int) -> None:
        if worker.batch == batch and _is_unwanted(worker):
            self._effects.kill(worker, "abandoned")


def _is_unwanted(worker: WorkerLink) -> bool:
    """Whether it computes, and nobody waits for any of it."""
    return bool(worker.started) and not any(number in worker.sent for number in worker.started)


def _problem(status: object, kind: object, headers: object) -> str | None:
    """Why this cannot be an answer's status, content type and further headers. None where it can."""
    if type(status) is not int or not 200 <= status <= 599:
        return f"set the status {str(status)[:100]!r}; a status is a whole number from 200 to 599"
    if not isinstance(kind, str):
        return "set a content type that is not a text"
    problem = header_problem(headers)
    return problem and f"set {problem}"
