"""Which endpoint the outputs of a Terraform root module describe.

``--terraform`` names a folder, ``DIR``, or an output in it, ``DIR#OUTPUT``, with keys where that is a map:
``DIR#OUTPUT["key"]``. A root may hand on the module's output ``toolchain`` under any name, the whole module, a map of
either (a module called with for_each), or single outputs called ``endpoint_name``, ``bucket``, ``model_prefix`` and
``region``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mme.errors import UsageError

FIELDS = frozenset({"endpoint_name", "bucket", "model_prefix", "region"})
"""What the module's output ``toolchain`` holds."""

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_KEY = re.compile(r"""\["?([^"\[\]]+)"?\]|\.([A-Za-z_][\w-]*)""")  # a shell may have taken the quotes away


@dataclass(frozen=True)
class Place:
    """What ``--terraform`` names: a folder, and the way to a value in its outputs (empty for any that fits)."""

    folder: Path
    way: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.folder}#{written(self.way)}" if self.way else str(self.folder)


def place(named: str) -> Place:
    """What the text names. Raises UsageError when what follows ``#`` is not an output's name with keys."""
    path = Path(named).expanduser()
    folder, hash_sign, output = named.rpartition("#")
    if not hash_sign or path.is_dir():
        return Place(path)
    name = _NAME.match(output)
    end = name.end() if name else 0
    way = [name[0]] if name else []
    while name and (key := _KEY.match(output, end)):
        way.append(key[1] or key[2])
        end = key.end()
    if not name or end != len(output):
        raise UsageError(
            f"{named} names no output of Terraform: {output!r} is neither a name nor a name with keys.",
            """Write DIR#OUTPUT, or DIR#OUTPUT["key"] for one of a map.""",
        )
    return Place(Path(folder or ".").expanduser(), tuple(way))


def written(way: tuple[str, ...]) -> str:
    """The way as it is written after ``#``."""
    return way[0] + "".join(f'["{key}"]' for key in way[1:])


def endpoint(outputs: Mapping[str, object], at: Place) -> Mapping[str, object]:
    """What the outputs say of one endpoint: some or all of ``FIELDS``.

    Raises UsageError when they describe several endpoints and ``at`` does not say which, or when there is no such
    output. Empty when there are no outputs at all, which is a root that was never applied.
    """
    if not outputs:
        return {}
    if not at.way and (outputs.get("endpoint_name") or outputs.get("bucket")):
        return outputs
    value: object = outputs
    for depth, key in enumerate(at.way, 1):
        if not isinstance(value, Mapping) or key not in value:
            there = ", ".join(value) if isinstance(value, Mapping) else ""
            where = written(at.way[: depth - 1]) if depth > 1 else "it"
            what = f"{where} has {there}" if there else f"{where} is not a map"
            raise UsageError(f"The Terraform folder {at.folder} has no output {written(at.way[:depth])}.", f"{what}.")
        value = value[key]
    endpoints: dict[tuple[object, ...], tuple[tuple[str, ...], Mapping[str, object]]] = {}
    for way, described in _endpoints(value, at.way):
        endpoints.setdefault(tuple(described[name] for name in sorted(FIELDS)), (way, described))
    if len(endpoints) == 1:
        return next(iter(endpoints.values()))[1]
    if endpoints:
        several = ", ".join(f"'{at.folder}#{written(way)}'" for way, _ in endpoints.values())
        raise UsageError(
            f"The outputs of {at} describe {len(endpoints)} endpoints.", f"Name one with --terraform: {several}."
        )
    if at.way:
        what = "is null (was the module called with create = false?)" if value is None else "describes no endpoint"
        raise UsageError(f"The output {written(at.way)} of the Terraform folder {at.folder} {what}.", _HAND_ON)
    there = ", ".join(outputs)
    raise UsageError(
        f"The Terraform folder {at.folder} is applied, but none of its outputs ({there}) describes an endpoint.",
        _HAND_ON,
    )


_HAND_ON = 'Hand on what the module says: output "toolchain" { value = module.NAME.toolchain }, and apply.'


def _endpoints(
    value: object, way: tuple[str, ...], depth: int = 3
) -> Iterator[tuple[tuple[str, ...], Mapping[str, object]]]:
    """The endpoints that a value describes, each with the way to it: the value itself, or what lies in its maps."""
    if not isinstance(value, Mapping) or depth < 0:
        return
    if value.keys() >= FIELDS:
        if value["endpoint_name"]:
            yield way, value
        return
    for key, inner in value.items():
        yield from _endpoints(inner, (*way, str(key)), depth - 1)
