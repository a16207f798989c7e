"""Every endpoint that is up: which variants it has, how traffic is shared among them, how one set replaces another."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mme.local.sagemaker.fleet import Fleet, at_once
from mme.local.sagemaker.instance import Instance
from mme.local.sagemaker.spec import Fetch, Observer, VariantSpec
from mme.local.sagemaker.state import EndpointState
from mme.runner.errors import ContainerError


@dataclass(eq=False)
class Side:
    """The variants of one configuration, and how traffic is shared among them."""

    fleets: list[Fleet]
    weights: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)
    """How many instances each fleet had when an update began."""

    def share(self, fleet: Fleet) -> float:
        """The variant's part of this side's traffic, 0 to 1."""
        total = sum(max(0.0, weight) for weight in self.weights.values())
        return max(0.0, self.weights[fleet.spec.name]) / total if total else 0.0


@dataclass(eq=False)
class Opened:
    """An endpoint that has its name; its containers come and go.

    ``blue`` is the configuration in force. During an update ``green`` is the one that replaces it, and ``shifted``
    its part of the traffic, 0 to 1.
    """

    region: str
    name: str
    blue: Side | None = None
    green: Side | None = None
    shifted: float = 0.0
    deleted: bool = False

    def sides(self) -> list[tuple[Side, float]]:
        """Each side and its part of the traffic."""
        both = ((self.blue, 1.0 - self.shifted), (self.green, self.shifted))
        return [(side, share) for side, share in both if side is not None]


@dataclass(frozen=True)
class Chosen:
    """The variant and the instance that answer a request."""

    fleet: Fleet
    instance: Instance


class Hosting:
    """Every endpoint that is up, by (region, name)."""

    def __init__(self, folder: Path, container: str, fetch: Fetch, max_instances: int = 2) -> None:
        """``max_instances`` bounds the containers of one variant; more instances are counted only."""
        self._folder = folder
        self._container = container
        self._fetch = fetch
        self._max_instances = max_instances
        self._lock = threading.Lock()
        self._endpoints: dict[tuple[str, str], Opened] = {}
        self._serials = itertools.count(1)
        self._dice = random.Random()  # noqa: S311 (spreads load)

    def open(self, region: str, name: str) -> Opened:
        """Takes the name for an endpoint that ``begin`` will bring up. ``delete`` gives it back."""
        opened = Opened(region, name)
        with self._lock:
            self._endpoints[region, name] = opened
        return opened

    # -- one configuration replaces another. All of this waits for containers: call it from a thread of its own.

    def begin(self, endpoint: Opened, specs: Sequence[VariantSpec], observer: Observer, share: float = 1.0) -> None:
        """Brings ``share`` of another configuration's instances up, beside those that serve. They get no traffic yet.

        Raises ContainerError when a container does not come up: then the new ones are gone and the old ones serve.
        """
        self.abandon(endpoint)  # left by an update that could not be rolled back
        with self._lock:
            if endpoint.deleted:
                raise ContainerError("The endpoint was deleted.")
            if endpoint.blue is not None:
                endpoint.blue.counts = {fleet.spec.name: fleet.count for fleet in endpoint.blue.fleets}
            fleets = [self._fleet(endpoint, spec, observer) for spec in specs]
            endpoint.green = Side(fleets, {spec.name: spec.weight for spec in specs})
            endpoint.shifted = 0.0
        try:
            self.add_capacity(endpoint, share)
        except ContainerError:
            self.abandon(endpoint)
            raise

    def _fleet(self, endpoint: Opened, spec: VariantSpec, observer: Observer) -> Fleet:
        def make(label: str) -> Instance:
            folder = self._folder / f"{endpoint.name}-{spec.name}-{next(self._serials)}"
            return Instance(label, spec, self._container, folder, self._fetch, observer)

        return Fleet(f"{endpoint.name}/{spec.name}", spec, observer, self._max_instances, make)

    def add_capacity(self, endpoint: Opened, share: float) -> None:
        """Brings the new configuration's fleets to ``share`` of their instances, rounded up. Raises ContainerError."""
        with self._lock:
            fleets = endpoint.green.fleets if endpoint.green else []
        _scale([(fleet, math.ceil(round(fleet.spec.instances * share, 6))) for fleet in fleets])

    def shift(self, endpoint: Opened, share: float) -> None:
        """Sends ``share`` of the traffic, 0 to 1, to the new configuration."""
        with self._lock:
            endpoint.shifted = share

    def shrink(self, endpoint: Opened, share: float) -> None:
        """Brings the old configuration's fleets to ``share`` of their instances, rounded down. Raises ContainerError.

        It brings them up again as well, where a rolling update is rolled back.
        """
        with self._lock:
            blue = endpoint.blue or Side([], {})
        _scale([(fleet, math.floor(round(blue.counts[fleet.spec.name] * share, 6))) for fleet in blue.fleets])

    def finish(self, endpoint: Opened) -> None:
        """The new configuration is in force; returns when the old one's containers are gone.

        Raises ContainerError where the endpoint was deleted meanwhile.
        """
        with self._lock:
            old, endpoint.blue, endpoint.green = endpoint.blue, endpoint.green, None
            endpoint.shifted = 0.0
        _retire(old)
        if endpoint.deleted:
            _retire(endpoint.blue)
            raise ContainerError("The endpoint was deleted before its containers were up.")

    def abandon(self, endpoint: Opened) -> None:
        """All traffic goes to the old configuration; returns when the new one's containers are gone."""
        with self._lock:
            new, endpoint.green = endpoint.green, None
            endpoint.shifted = 0.0
        _retire(new)

    def delete(self, endpoint: Opened) -> None:
        """Ends the endpoint's containers; returns when they are gone."""
        with self._lock:
            endpoint.deleted = True
            if self._endpoints.get((endpoint.region, endpoint.name)) is endpoint:
                del self._endpoints[endpoint.region, endpoint.name]
            fleets = [fleet for side, _ in endpoint.sides() for fleet in side.fleets]
        at_once([fleet.stop for fleet in fleets])

    # -- what changes while a configuration is in force

    def set_weights(self, endpoint: Opened, weights: Mapping[str, float]) -> None:
        """Changes how traffic is shared from now on."""
        with self._lock:
            if endpoint.blue is not None:
                endpoint.blue.weights.update(weights)

    def scale(self, endpoint: Opened, counts: Mapping[str, int]) -> None:
        """Brings variants to these numbers of instances and waits for it. Raises ContainerError."""
        with self._lock:
            fleets = endpoint.blue.fleets if endpoint.blue else []
        _scale([(fleet, counts[fleet.spec.name]) for fleet in fleets if fleet.spec.name in counts])

    # -- requests

    @contextlib.contextmanager
    def chosen(self, region: str, name: str, variant: str | None) -> Iterator[Chosen | None]:
        """The instance that answers a request: of the named variant, else of one drawn by weight. None where there is
        none.

        The instance is not taken out of service before the block ends, unless the endpoint is deleted.
        """
        with self._lock:
            chosen = self._choose(region, name, variant)
        try:
            yield chosen
        finally:
            if chosen is not None:
                chosen.instance.leave()

    def _choose(self, region: str, name: str, variant: str | None) -> Chosen | None:
        endpoint = self._endpoints.get((region, name))
        options: list[tuple[Fleet, float, float]] = []
        for side, share in endpoint.sides() if endpoint else []:
            for fleet in side.fleets:
                if variant is None:
                    options.append((fleet, share, share * side.share(fleet)))
                elif fleet.spec.name == variant:
                    options.append((fleet, share, share))
        options = [option for option in options if option[0].serving]
        if variant is not None and options and not any(weight for _, _, weight in options):
            options = [(fleet, share, 1.0) for fleet, share, _ in options]  # a variant that is about to go
        if not any(weight for _, _, weight in options):
            return None
        [(fleet, share, _)] = self._dice.choices(options, [weight for _, _, weight in options])
        instance = fleet.take(share)
        return None if instance is None else Chosen(fleet, instance)

    # -- what is up

    def state(self) -> tuple[EndpointState, ...]:
        """Every endpoint with its variants, their instances and the models in each, at this moment."""
        with self._lock:
            fleets_of = {
                endpoint: [
                    (fleet, side.weights[fleet.spec.name], share * side.share(fleet))
                    for side, share in endpoint.sides()
                    for fleet in side.fleets
                ]
                for endpoint in self._endpoints.values()
            }
        return tuple(
            EndpointState(one.region, one.name, tuple(fleet.state(weight, part) for fleet, weight, part in fleets))
            for one, fleets in fleets_of.items()
        )

    def measure(self, _now: float) -> None:
        """Has every instance say what it uses of the machine."""
        with self._lock:
            endpoints = list(self._endpoints.values())
            fleets = [fleet for endpoint in endpoints for side, _ in endpoint.sides() for fleet in side.fleets]
        for fleet in fleets:
            for instance in fleet.instances():
                instance.measure()

    def close(self) -> None:
        """Ends every container, all at once."""
        with self._lock:
            endpoints = list(self._endpoints.values())
        at_once([lambda endpoint=endpoint: self.delete(endpoint) for endpoint in endpoints])  # type: ignore[misc]


def _scale(wanted: Sequence[tuple[Fleet, int]]) -> None:
    """Brings every fleet to its number of instances, all at once. Raises ContainerError."""
    problems = at_once([lambda fleet=fleet, count=count: fleet.scale_to(count) for fleet, count in wanted])  # type: ignore[misc]
    if problems:
        raise problems[0]


def _retire(side: Side | None) -> None:
    at_once([fleet.retire for fleet in side.fleets] if side else [])
