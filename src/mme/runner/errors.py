"""Errors between a container and its caller."""

from __future__ import annotations


class ContainerError(Exception):
    """The container could not be started, did not become healthy, or is gone. The message says which, and why."""


class ContainerRefused(ContainerError):
    """The container does not accept connections, so it was not sent anything."""


class ContainerTimeout(ContainerError):
    """The container did not answer in time; it may still be at work."""
