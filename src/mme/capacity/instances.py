"""The instance types and their prices, from a dated file.

The file that ships is ``prices.toml`` beside this module; a user may give another of the same form.
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import boto3
import botocore.session
from botocore.model import StringShape

from mme.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

GiB = 1 << 30
WITHOUT = "Choose other types (ml.m5, ml.c5, ml.r5 and their successors)."
SHIPPED = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class InstanceType:
    """``memory`` in bytes, ``usd_per_hour`` on demand. ``speed``: of a core, in cores of the measured machine; None
    where nobody has measured it. ``local_disk``: bytes of a disk of its own; None where the volume's size is chosen."""

    name: str
    vcpus: int
    memory: int
    usd_per_hour: float
    speed: float | None = None
    local_disk: int | None = None

    @property
    def core(self) -> float:
        """The speed of a core; as fast as the measured machine's where nothing else is known."""
        return 1.0 if self.speed is None else self.speed

    @property
    def family(self) -> str:
        return self.name.removeprefix("ml.").split(".")[0]

    @property
    def accelerator(self) -> str | None:
        """What computes in its processor's place, by AWS's names of families: a GPU (g, p) or a chip of AWS's own or
        Intel's (inf, trn, dl). The families of AWS's own processors, such as c7g, are no such."""
        if self.family.startswith(("inf", "trn", "dl")):
            return "an accelerator"
        return "a GPU" if self.family.startswith(("g", "p")) else None

    @property
    def arm(self) -> bool:
        """Whether its processor is Arm's (Graviton): a g behind the generation, as in c7g and m6gd."""
        return re.match(r"[a-z]+[0-9]+g", self.family) is not None

    @property
    def unfit(self) -> tuple[str, str] | None:
        """Why it cannot be simulated, and what to do; None where it can."""
        name = self.name
        if self.accelerator is not None:
            return f"{name} has {self.accelerator}, and the simulation knows processors only", WITHOUT
        if name not in hosted():
            words = f"{name} is no type that SageMaker hosts models on, by the API as boto3 {boto3.__version__} has it"
            return words, "Is it spelled as AWS does it? A newer boto3 may know it: pip install --upgrade boto3."
        if re.match(r"t[0-9]", self.family):
            words = f"{name} computes on credits: once they are used up, at a fraction of its cores' speed"
            return f"{words}, which the simulation does not know", WITHOUT
        if self.arm and self.speed is None:
            words = f"{name} has an Arm processor (Graviton), and nothing says how fast it is beside the measured one"
            return words, (
                "Run `invoke capacity measure` on such an EC2 instance, and write the ratio as the type's speed into "
                "the price file (docs/capacity.md). The image, and what archives bring compiled, must be built for Arm."
            )
        own = re.match(r"[a-z]+[0-9]+[a-z]*d", self.family) is not None
        if own and self.local_disk is None:
            return (
                f"{name} has a disk of its own, whose size cannot be chosen",
                "Write it as the type's local_disk_gb into the price file; EC2's page of the type has it.",
            )
        if not own and self.local_disk is not None:
            words = f"{name} has local_disk_gb in the price file, and no disk of its own"
            return words, "Leave local_disk_gb out: its volume's size is chosen."
        return None

    def check_simulated(self) -> None:
        """Raises UsageError for a type that cannot be simulated."""
        if self.unfit is not None:
            raise UsageError(f"{self.unfit[0]}.", self.unfit[1])


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

    def simulated(self) -> list[InstanceType]:
        """The types that can be simulated. Raises UsageError where the file has none."""
        kinds = [kind for kind in self.types.values() if kind.unfit is None]
        if not kinds:
            raise UsageError(
                f"{self.path} has no type that can be simulated: {self.left_out()[0]}.",
                "Add types such as ml.m5, ml.c5, ml.r5 and their successors.",
            )
        return kinds

    def left_out(self) -> list[str]:
        """Why each of the other types cannot be simulated."""
        return [kind.unfit[0] for kind in self.types.values() if kind.unfit is not None]

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


@functools.cache
def hosted() -> frozenset[str]:
    """The instance types that the API takes for an endpoint."""
    service = botocore.session.get_session().get_service_model("sagemaker")
    shape = cast(StringShape, service.shape_for("ProductionVariantInstanceType"))
    return frozenset(shape.enum)


KEYS = {"region", "day", "source", "hours_per_month", "types", "serverless"}
LARGEST_SERVERLESS = 6
"""GB of memory: what a serverless endpoint can have (the API's ProductionVariantServerlessConfig: MemorySizeInMB is
1,024 to 6,144)."""


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
            None if entry.get("speed") is None else self.number(entry, "speed", where),
            None if disk is None else int(self.number(entry, "local_disk_gb", where) * 10**9),
        )
