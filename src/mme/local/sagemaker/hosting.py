"""Every endpoint that is up: which variants it has, how traffic is shared among them, how one set replaces another."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mme.local.sagemaker.spec import INVOKE_SECONDS, Fetch, Observer, VariantSpec
from mme.local.sagemaker.variant import VariantHost
from mme.runner.errors import ContainerError


@dataclass(eq=False)
class Opened:
    """An endpoint that has its name; its containers come and go."""

    region: str
    name: str
    hosts: list[VariantHost] = field(default_factory=list)
    pending: list[VariantHost] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    deleted: bool = False


class Hosting:
    """Every endpoint that is up, by (region, name)."""

    def __init__(self, folder: Path, container: str, fetch: Fetch) -> None:
        self._folder = folder
        self._container = container
        self._fetch = fetch
        self._lock = threading.Lock()
        self._endpoints: dict[tuple[str, str], Opened] = {}
        self._serial = 0
        self._dice = random.Random()  # noqa: S311 (spreads load)

    def open(self, region: str, name: str) -> Opened:
        """Takes the name for an endpoint that ``deploy`` will bring up. ``delete`` gives it back."""
        opened = Opened(region, name)
        with self._lock:
            self._endpoints[region, name] = opened
        return opened

    def deploy(self, endpoint: Opened, specs: Sequence[VariantSpec], observer: Observer) -> None:
        """Starts containers for the variants and, once all are healthy, moves the endpoint's traffic to them.

        The containers that they replace finish what they are at, and end. Raises ContainerError when a container does
        not come up: then the new ones are gone and the old ones still serve. Waits for the containers, so call it from
        a thread of its own.
        """
        with self._lock:
            if endpoint.deleted:
                raise ContainerError("The endpoint was deleted.")
            hosts = []
            for spec in specs:
                self._serial += 1
                folder = self._folder / f"{endpoint.name}-{spec.name}-{self._serial}"
                label = f"{endpoint.name}/{spec.name}"
                hosts.append(VariantHost(label, spec, self._container, folder, self._fetch, observer))
            endpoint.pending += hosts
        problems: list[ContainerError] = []

        def start(host: VariantHost) -> None:
            try:
                host.start()
            except ContainerError as problem:
                problems.append(problem)
            except Exception as problem:  # a full disk, say: whatever it is, the endpoint must not hang on it
                problems.append(ContainerError(f"The container cannot be started: {problem}"))

        threads = [threading.Thread(target=start, args=(host,), daemon=True) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._lock:
            endpoint.pending = [host for host in endpoint.pending if host not in hosts]
            if endpoint.deleted and not problems:
                problems.append(ContainerError("The endpoint was deleted before its containers were up."))
            retired = hosts
            if not problems:
                retired, endpoint.hosts = endpoint.hosts, hosts
                endpoint.weights = {spec.name: spec.weight for spec in specs}
        for host in retired:
            host.drain(INVOKE_SECONDS)
            host.stop()
        if problems:
            raise problems[0]

    def delete(self, endpoint: Opened) -> None:
        """Ends the endpoint's containers; returns when they are gone."""
        with self._lock:
            endpoint.deleted = True
            if self._endpoints.get((endpoint.region, endpoint.name)) is endpoint:
                del self._endpoints[endpoint.region, endpoint.name]
            hosts = endpoint.hosts + endpoint.pending
        for host in hosts:
            host.stop()

    def set_weights(self, endpoint: Opened, weights: Mapping[str, float]) -> None:
        """Changes how traffic is shared from now on."""
        with self._lock:
            endpoint.weights.update(weights)

    @contextlib.contextmanager
    def chosen(self, region: str, name: str, variant: str | None) -> Iterator[VariantHost | None]:
        """The host to send a request to: the named variant, else one drawn by weight. None: there is none.

        The host is not taken out of service before the block ends, unless the endpoint is deleted.
        """
        with self._lock:
            host = self._choose(region, name, variant)
            if host is not None:
                host.enter()
        try:
            yield host
        finally:
            if host is not None:
                host.leave()

    def _choose(self, region: str, name: str, variant: str | None) -> VariantHost | None:
        endpoint = self._endpoints.get((region, name))
        hosts = endpoint.hosts if endpoint else []
        if variant is not None:
            return next((host for host in hosts if host.spec.name == variant), None)
        weights = [max(0.0, endpoint.weights[host.spec.name]) for host in hosts] if endpoint else []
        return self._dice.choices(hosts, weights)[0] if any(weights) else None

    def close(self) -> None:
        """Ends every container, all at once."""
        with self._lock:
            endpoints = list(self._endpoints.values())
        threads = [threading.Thread(target=self.delete, args=(endpoint,)) for endpoint in endpoints]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
