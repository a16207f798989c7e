"""The settings that all fleets of a plan share, and a fleet of one instance type for the simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mme.capacity.instances import InstanceType
from mme.capacity.needs import OURS, Models, Serving
from mme.capacity.simulate import UNBOUNDED, Fleet, memory_for_models

GB = 10**9
MOST_VOLUME = 512 * GB


@dataclass(frozen=True)
class Settings:
    """The settings that all fleets of a plan share."""

    serving: Serving = OURS
    routing: str = "random"
    volume: int | None = None
    """Bytes of each instance's volume; None: room for all models and a fifth more, 512 GB at most."""
    download: float = 250e6
    extract: float = 500e6
    processor_factor: float = 1.0
    """Seconds on an instance's core for a second on the measured one (before the type's ``speed``)."""
    at_least: int = 1
    seed: int = 1


def fleet_of(kind: InstanceType, count: int, models: Models, settings: Settings) -> Fleet:
    """The fleet as the simulation takes it. The processor's speed is in the models (see ``on``)."""
    return Fleet(
        count,
        kind.vcpus,
        memory=memory_for_models(kind.memory, settings.serving),
        disk=volume_of(kind, models, settings) or kind.local_disk or UNBOUNDED,
        download=settings.download,
        extract=settings.extract,
        routing=settings.routing,
        serving=settings.serving,
    )


def volume_of(kind: InstanceType, models: Models, settings: Settings) -> int | None:
    """Bytes of the volume to ask for; None for a type with a disk of its own."""
    if kind.local_disk is not None:
        return None
    if settings.volume is not None:
        return settings.volume
    return int(min(MOST_VOLUME, math.ceil(float(models.disk.sum()) * 1.2 / GB + 1) * GB))


def on(kind: InstanceType, models: Models, settings: Settings) -> Models:
    """The models' needs on this type's processor."""
    return models.faster(settings.processor_factor / kind.core)
