"""A planned fleet as the module's ``variants``, with autoscaling to match."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from mme.capacity.fleets import GB
from mme.capacity.plan import Option

ROUTING = {"random": "RANDOM", "least-outstanding": "LEAST_OUTSTANDING_REQUESTS", "sticky": None}


def variants(option: Option, routing: str, peak: float, trough: float, at_least: int = 1) -> dict[str, Any]:
    """The value of the module's input ``variants``. ``peak`` and ``trough``: requests a second at the busiest time and
    at the quietest. ``at_least``: instances that are up at any time.

    Each instance was seen to carry ``peak / instances``; the target of autoscaling is that, so that the fleet grows in
    proportion beyond the plan (to twice its size) and shrinks in proportion in quiet hours.
    """
    least = max(1, at_least, math.ceil(option.instances * (trough / peak if peak > 0 else 1.0)))
    variant: dict[str, Any] = {
        "instance_type": option.type,
        "instance_count": option.instances,
        "volume_size_gb": None if option.volume is None else math.ceil(option.volume / GB),
        "routing_strategy": ROUTING[routing],
        "autoscaling": {
            "min_capacity": min(least, option.instances),
            "max_capacity": max(2, 2 * option.instances),
            "invocations_per_instance": max(1, math.floor(peak * 60 / option.instances)),
        },
    }
    return {"primary": {key: value for key, value in variant.items() if value is not None}}


def text(value: Mapping[str, Any]) -> str:
    """A ``.tfvars.json`` file."""
    return json.dumps({"variants": value}, indent=2) + "\n"
