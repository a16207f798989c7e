"""The instance types and their prices, from a dated file.

The file that ships is ``prices.toml`` beside this module; a user may give another of the same form.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from mme.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

GiB = 1 << 30
SHIPPED = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class InstanceType:
    """``memory`` in bytes, ``usd_per_hour`` on demand. ``speed``: of a core, in cores of the measured machine.
    ``local_disk``: bytes of a disk of its own; None where the volume's size is chosen."""

    name: str
    vcpus: int
    memory: int
    usd_per_hour: float
    speed: float = 1.0
    local_disk: int | None = None

    @property
    def accelerator(self) -> str | None:
        """The type's accelerator, by AWS's names of families: a GPU (g, p) or another chip (inf, trn, dl); None for
        types without one. AWS's own processors (such as c7g) are not accelerators."""
        family = self.name.removeprefix("ml.").split(".")[0]
        if family.startswith(("inf", "trn", "dl")):
            return "an accelerator"
        return "a GPU" if family.startswith(("g", "p")) else None

    def check_simulated(self) -> None:
        """Raises UsageError for a type with an accelerator."""
        if self.accelerator is not None:
            raise UsageError(
                f"{self.name} has {self.accelerator}, and the simulation knows processors only.",
                "Choose types without one (ml.m5, ml.c5, ml.r5 and their successors).",
            )


@dataclass(frozen=True)
class Prices:
    """A price file. ``serverless`` maps GB of memory to US dollars for a second of processing."""

    path: Path
    region: str
    day: str
    source: str
    hours_per_month: float
    types: Mapping[str, InstanceType]
    serverless: Mapping[int, float]
    serverless_source: str

    @property
    def words(self) -> str:
        """For every output: from where and when the prices are."""
        return f"{self.region}, {self.day}; {self.source}"

    def month(self, usd_per_hour: float) -> float:
        return usd_per_hour * self.hours_per_month

    def processors(self) -> list[InstanceType]:
        """The types without an accelerator. Raises UsageError where the file has none."""
        kinds = [kind for kind in self.types.values() if kind.accelerator is None]
        if not kinds:
            raise UsageError(
                f"{self.path} has types with an accelerator only, and the simulation knows processors only.",
                "Add types without one (ml.m5, ml.c5, ml.r5 and their successors).",
            )
        return kinds

    def type(self, name: str) -> InstanceType:
        """One type. Raises UsageError that names the file and what it has."""
        if name in self.types:
            return self.types[name]
        near = difflib.get_close_matches(name, self.types, n=3) or sorted(self.types)[:3]
        raise UsageError(
            f"{self.path} has no price of {name!r} (it is of {self.region}, {self.day}).",
            f"It has {', '.join(near)} and others. Add the type to a copy of the file and give it as --prices.",
        )


def load(path: Path | None = None, region: str | None = None) -> Prices:
    """The price file. Raises UsageError with the key that is wrong, or where it is of another region."""
    file = path or SHIPPED
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not a price file: {error}.") from None
    prices = _Reader(file).prices(document)
    if region is not None and region != prices.region:
        raise UsageError(
            f"{file} has the prices of {prices.region}, not of {region}.",
            f"Copy {SHIPPED}, write {region}'s prices into it, and give it as --prices FILE; or leave --region out.",
        )
    return prices


KEYS = {"region", "day", "source", "hours_per_month", "types", "serverless"}
LARGEST_SERVERLESS = 6
"""GB of memory: what a serverless endpoint can have (the API's MemorySizeInMB)."""


class _Reader:
    """Adds the file and the key to every error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, key: str, words: str) -> UsageError:
        return UsageError(f"{self.path}: {key} {words}.", f"{SHIPPED} shows the form.")

    def text(self, table: Mapping[str, Any], key: str, where: str = "") -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(f"{where}{key}", "must be a text: every output says where its prices are from and of when")
        return value

    def day(self, table: Mapping[str, Any], where: str = "") -> str:
        """A date of ISO 8601, as a text or as TOML's own date. Tomorrow is accepted: it may be today elsewhere."""
        value = table.get("day")
        words = "which day the prices are of, such as 2026-11-26"
        try:
            day = value if isinstance(value, date) and not isinstance(value, datetime) else None
            day = day or datetime.strptime(str(value), "%Y-%m-%d").date()
        except ValueError:
            raise self.fail(f"{where}day", f"is {value!r}; it must be {words}") from None
        if day > datetime.now(timezone.utc).date() + timedelta(days=1):
            raise self.fail(f"{where}day", f"is {day}, which is still to come; it must be {words}")
        return day.isoformat()

    def number(self, table: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise self.fail(f"{where}{key}", f"is {value!r}; it must be a number above 0")
        return float(value)

    def prices(self, document: Mapping[str, Any]) -> Prices:
        types = document.get("types")
        if not isinstance(types, dict) or not types:
            raise self.fail("types", "is missing: a table with one entry for each instance type")
        unknown = set(document) - KEYS
        if "currency" in unknown:
            raise self.fail("currency", "is not a key: prices are US dollars, as every output says")
        if unknown:
            raise self.fail(min(unknown), f"is not a key that is known; known are {', '.join(sorted(KEYS))}")
        serverless = document.get("serverless", {})
        rates: dict[int, float] = {}
        source = ""
        if not isinstance(serverless, dict) or not isinstance(serverless.get("usd_per_second", {}), dict):
            raise self.fail("serverless", "is not a table with day, source and a table usd_per_second")
        if serverless:
            source = f"{self.day(serverless, 'serverless.')}; {self.text(serverless, 'source', 'serverless.')}"
            for size, usd in serverless.get("usd_per_second", {}).items():
                if not (size.isascii() and size.isdigit() and 0 < int(size[:4]) <= LARGEST_SERVERLESS):
                    raise self.fail("serverless.usd_per_second", f"has the key {size!r}; keys are GB of memory, 1 to 6")
                rates[int(size)] = self.number({"usd": usd}, "usd", f"serverless.usd_per_second.{size}.")
        return Prices(
            self.path,
            self.text(document, "region"),
            self.day(document),
            self.text(document, "source"),
            self.number(document, "hours_per_month", "", 730),
            {name: self.type(name, entry) for name, entry in types.items()},
            dict(sorted(rates.items())),
            source,
        )

    def type(self, name: str, entry: Any) -> InstanceType:
        where = f'types."{name}".'
        if not name.startswith("ml.") or not isinstance(entry, dict):
            raise self.fail(f'types."{name}"', 'is no instance type; they begin with "ml." and are tables')
        unknown = set(entry) - {"vcpus", "memory_gib", "usd_per_hour", "speed", "local_disk_gb"}
        if unknown:
            raise self.fail(f"{where}{sorted(unknown)[0]}", "is not a key that is known")
        if self.number(entry, "vcpus", where) % 1:
            raise self.fail(f"{where}vcpus", f"is {entry['vcpus']!r}; it must be a whole number")
        disk = entry.get("local_disk_gb")
        return InstanceType(
            name,
            int(self.number(entry, "vcpus", where)),
            int(self.number(entry, "memory_gib", where) * GiB),
            self.number(entry, "usd_per_hour", where),
            self.number(entry, "speed", where, 1.0),
            None if disk is None else int(self.number(entry, "local_disk_gb", where) * 10**9),
        )
