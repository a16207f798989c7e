"""Several tasks in one command: flags that ``package`` and ``upload`` share are given once, and streaming is one job.

Invoke runs its tasks one after the other, and none knows of the next. This executor does. The command ``mme`` uses it;
for ``invoke``, an ``invoke.yaml`` beside ``tasks.py`` names it:

    tasks: {executor_class: mme.chain.Executor}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from invoke.executor import Executor as Sequential

from mme.tasks.package import package
from mme.tasks.release import upload

FOR_BOTH = ("model", "catalog", "out")
"""The flags that hold for both tasks when only one of them has them."""

SHARED: dict[str, Any] = {
    "model": [],
    "catalog": "models.toml",
    "out": "dist",
    "compression": None,
    "no_verify": False,
    "json": False,
}
"""The flags that both tasks have and that mean the same, with what they are when they are not given."""

ON_DISK = ("force", "check", "dry_run")
"""With these flags ``package`` works on archives on disk, and runs as a task of its own."""


class Executor(Sequential):  # type: ignore[misc]
    """Invoke's own, but for ``package`` and ``upload`` in one command.

    They take the same models, catalogue and folder. Where ``upload --stream`` comes right after ``package``, it does
    the work of both.
    """

    def normalize(self, given: Any) -> list[Any]:
        calls: list[Any] = []
        for call in shared(super().normalize(given)):
            flags = together(calls[-1], call) if calls else None
            if flags is not None:
                calls.pop()
                call.kwargs = flags
            calls.append(call)
        return calls


def shared(calls: Sequence[Any]) -> Sequence[Any]:
    """The calls, where a flag that ``package`` or ``upload`` alone has is given to the other as well."""
    both = [call for call in calls if call.task in (package, upload)]
    if {call.task for call in both} != {package, upload}:
        return calls
    for flag in FOR_BOTH:
        values = [call.kwargs.get(flag) or SHARED[flag] for call in both]
        said = [value for value in values if value != SHARED[flag]]
        if said and all(value == said[0] for value in said):
            for call, value in zip(both, values, strict=True):
                if value == SHARED[flag]:
                    call.kwargs = {**call.kwargs, flag: said[0]}
    return calls


def together(first: Any, second: Any) -> dict[str, Any] | None:
    """The flags for doing two calls as one, or None when they have to stay two."""
    if first.task != package or second.task != upload or not second.kwargs.get("stream"):
        return None
    if any(first.kwargs.get(flag) for flag in ON_DISK):
        return None
    flags = dict(second.kwargs)
    for flag, unset in SHARED.items():
        one, other = (call.kwargs.get(flag) or unset for call in (first, second))
        if one != other and unset not in (one, other):
            return None  # not the same models, or not in the same place
        flags[flag] = one if other == unset else other
    return flags
