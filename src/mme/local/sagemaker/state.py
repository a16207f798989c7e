"""The state of endpoints as plain values, for display."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelState:
    """One model that an instance has in memory, or is about to have."""

    target: str
    """TargetModel, as requests name it."""
    state: str
    """``loading``, ``loaded`` or ``unloading``."""
    requests: int
    """How many requests use it now, those that wait for it included."""
    last_used: float
    """Seconds since the epoch."""
    disk_bytes: int
    """Bytes of its extracted archive; 0 while it is fetched."""


@dataclass(frozen=True)
class InstanceState:
    """One instance: a container with a cache of its own."""

    id: str
    state: str
    """``Starting``, ``InService``, ``Restarting`` (the container died) or ``Stopping``."""
    pid: int | None
    """The process that guards the container, which runs below it; None while there is none."""
    requests: int
    """How many requests are on their way to it."""
    disk_bytes: int
    """Bytes of all extracted archives, those of models that are not loaded included."""
    models: tuple[ModelState, ...]


@dataclass(frozen=True)
class VariantState:
    """One variant under one configuration. During an update both configurations have theirs."""

    name: str
    config: str
    """The endpoint configuration that it belongs to."""
    weight: float
    traffic: float
    """Its share of the endpoint's requests, 0 to 1."""
    instance_count: int
    """As SageMaker counts them; more than there are ``instances`` where containers stand for several."""
    instances: tuple[InstanceState, ...]


@dataclass(frozen=True)
class EndpointState:
    """One endpoint. ``dataclasses.asdict`` makes JSON of it."""

    region: str
    name: str
    variants: tuple[VariantState, ...]
