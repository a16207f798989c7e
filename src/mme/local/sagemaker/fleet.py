"""The instances of one variant under one configuration: how many there are, and which of them gets a request."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Sequence

from mme.local.console import log
from mme.local.sagemaker.instance import Instance
from mme.local.sagemaker.spec import INVOKE_SECONDS, Observer, VariantSpec
from mme.local.sagemaker.state import VariantState
from mme.runner.errors import ContainerError

LEAST_OUTSTANDING = "LEAST_OUTSTANDING_REQUESTS"


class Fleet:
    """As many containers as the variant has instances, up to a limit. All methods may be called from any thread."""

    def __init__(
        self, label: str, spec: VariantSpec, observer: Observer, limit: int, make: Callable[[str], Instance]
    ) -> None:
        """``make`` makes an instance that is not started, by its label. Beyond ``limit`` instances are only counted."""
        self.label = label
        self.spec = spec
        self.observer = observer
        self._limit = limit
        self._make = make
        self._dice = random.Random()  # noqa: S311 (spreads load)
        self._lock = threading.Lock()
        self._scaling = threading.Lock()
        """One change of the number at a time."""
        self._count = 0
        self._made = 0
        self._serving: list[Instance] = []
        """In service; the one that was started first comes first."""
        self._coming: list[Instance] = []
        self._going: list[Instance] = []
        self._stopped = False

    @property
    def count(self) -> int:
        """How many instances the variant has, as SageMaker counts them."""
        return self._count

    @property
    def serving(self) -> bool:
        """Whether an instance is in service."""
        return bool(self._serving)

    def instances(self) -> Sequence[Instance]:
        """Those in service, at this moment."""
        with self._lock:
            return list(self._serving)

    def scale_to(self, count: int) -> None:
        """Returns when this many instances are in service. Instances that are removed finish their requests first.

        Raises ContainerError when a container does not come up: then those that served before go on.
        """
        with self._scaling:
            wanted = min(count, self._limit)
            if count > wanted and count != self._count:
                log(f"{self.label}: {wanted} container(s) stand for {count} instances (--max-instances {self._limit})")
            with self._lock:
                missing = wanted - len(self._serving)
            if missing > 0:
                self._start(missing)
            with self._lock:
                self._count = count
                self._going += self._serving[wanted:]
                del self._serving[wanted:]
                going = list(self._going)
            at_once([lambda instance=instance: self._retire(instance) for instance in going])  # type: ignore[misc]

    def _start(self, number: int) -> None:
        with self._lock:
            if self._stopped:
                raise ContainerError("The endpoint was deleted before its containers were up.")
            coming = []
            for _ in range(number):
                self._made += 1
                coming.append(self._make(self.label if self._made == 1 else f"{self.label}/{self._made}"))
            self._coming += coming
        problems = at_once([instance.start for instance in coming])
        with self._lock:
            self._coming = [instance for instance in self._coming if instance not in coming]
            if self._stopped and not problems:
                problems.append(ContainerError("The endpoint was deleted before its containers were up."))
            if not problems:
                self._serving += coming
        if problems:
            at_once([instance.stop for instance in coming])
            raise problems[0]

    def _retire(self, instance: Instance) -> None:
        instance.drain(INVOKE_SECONDS)
        instance.stop()
        with self._lock:
            self._going.remove(instance)

    def retire(self) -> None:
        """Ends every container once it has finished its requests; returns when they are gone."""
        self.scale_to(0)
        self.stop()

    def stop(self) -> None:
        """Ends every container now; returns when they are gone."""
        with self._lock:
            self._stopped = True
            instances = self._serving + self._coming + self._going
        at_once([instance.stop for instance in instances])

    def take(self, share: float) -> Instance | None:
        """The instance for a request, which is counted in (``Instance.enter``). None: there is none.

        ``share`` is the part of the fleet's capacity, 0 to 1, that takes traffic: at least one instance.
        """
        with self._lock:
            ready = self._serving[: max(1, math.ceil(round(len(self._serving) * share, 6)))]
            if len(ready) > 1:
                ready = [instance for instance in ready if instance.ready] or ready
            if not ready:
                return None
            # Of two at random the one with fewer requests: nearly as even as asking all, and never a stampede on one.
            drawn = self._dice.sample(ready, min(2, len(ready)))
            fewest = self.spec.routing == LEAST_OUTSTANDING
            instance = min(drawn, key=lambda one: one.outstanding) if fewest else drawn[0]
            instance.enter()
            return instance

    def answered(self, status: int, by_model: bool) -> None:
        """Counts a request as CloudWatch counts it: by the status that the model answered, else by SageMaker's own."""
        name, metric = self.spec.name, self.observer.metric
        metric(name, "Invocations", 1.0, "None")
        metric(name, "InvocationsPerInstance", 1.0 / max(1, self._count), "None")
        metric(name, "Invocation4XXErrors", float(400 <= status < 500), "None")
        metric(name, "Invocation5XXErrors", float(status >= 500), "None")
        metric(name, "InvocationModelErrors", float(by_model and status >= 400), "None")

    def state(self, weight: float, traffic: float) -> VariantState:
        """What is up, at this moment."""
        with self._lock:
            instances = self._serving + self._coming + self._going
        return VariantState(
            name=self.spec.name,
            config=self.spec.config,
            weight=weight,
            traffic=traffic,
            instance_count=self._count,
            instances=tuple(instance.state() for instance in instances),
        )


def at_once(work: Sequence[Callable[[], None]]) -> list[ContainerError]:
    """Does all of it, each in a thread of its own; what went wrong."""
    problems: list[ContainerError] = []

    def run(one: Callable[[], None]) -> None:
        try:
            one()
        except ContainerError as problem:
            problems.append(problem)
        except Exception as problem:  # for example a full disk: whatever it is, the endpoint must not wait for ever
            problems.append(ContainerError(f"The container cannot be started: {problem}"))

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems
