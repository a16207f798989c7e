"""The other ways to host the same models, priced with the same needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mme.capacity.fleets import GB, MOST_VOLUME, Settings, on
from mme.capacity.instances import GiB, InstanceType, Prices
from mme.capacity.needs import Models
from mme.capacity.simulate import memory_for_models
from mme.capacity.state import Floats

SERVERLESS_DISK = 5 * GB
"""What a serverless endpoint has for a model's files, whatever its memory: "Memory size" of AWS's page
https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html, as the repository
awsdocs/amazon-sagemaker-developer-guide has it (doc_source/serverless-endpoints.md)."""
SERVERLESS_ENDPOINTS = 50
"""How many of them an account has in a region where AWS has not granted more: "Concurrent invocations" there."""


@dataclass(frozen=True)
class Alternative:
    """Another way to host the same models. ``usd_month`` is None where ``words`` say why it is not known."""

    name: str
    usd_month: float | None
    what: str
    words: str


def other_ways(models: Models, rates: Floats, busiest: float, prices: Prices, settings: Settings) -> list[Alternative]:
    """One endpoint per model, serverless, inference components: at the same prices, with the same needs.

    ``rates``: requests a second of each model on average; ``busiest``: of all together at the busiest time.
    """
    peak = rates / max(float(rates.sum()), 1e-12) * busiest
    kinds = sorted(prices.simulated(), key=lambda k: k.usd_per_hour)
    base = settings.serving.base_bytes
    return [
        _endpoint_per_model(models, peak, kinds, prices, settings),
        _serverless(models, rates, base, prices, settings),
        _components(models, peak, kinds, base, prices, settings),
    ]


def _endpoint_per_model(
    models: Models, peak: Floats, kinds: Sequence[InstanceType], prices: Prices, settings: Settings
) -> Alternative:
    month = 0.0
    instances = 0
    left = np.ones(len(models), bool)
    for kind in kinds:
        needs = on(kind, models, settings)
        fits = left & (models.active <= memory_for_models(kind.memory, settings.serving))
        fits &= models.disk <= (MOST_VOLUME if kind.local_disk is None else kind.local_disk)
        work = peak * needs.answer * np.minimum(needs.cores, kind.vcpus)
        counts = np.maximum(settings.at_least, np.ceil(work / (0.7 * kind.vcpus))).astype(int)
        alone = fits & (counts == max(1, settings.at_least))  # a busier one looks for a larger type
        if kind is kinds[-1]:
            alone = fits
        month += prices.month(kind.usd_per_hour) * int(counts[alone].sum())
        instances += int(counts[alone].sum())
        left &= ~alone
    if left.any():
        name = models.names[int(np.argmax(left))]
        return Alternative("one endpoint per model", None, "", f"no type in the price file holds {name}")
    words = "nothing is cold and no model waits for another; each endpoint is idle when its model is"
    return Alternative(
        "one endpoint per model", month, "1 instance" if instances == 1 else f"{instances:,} instances", words
    )


def _serverless(models: Models, rates: Floats, base: int, prices: Prices, settings: Settings) -> Alternative:
    name = "serverless"
    if not prices.serverless:
        return Alternative(name, None, "", "the price file has no price for it")
    largest = max(prices.serverless)
    need = models.active + base
    large = [
        (need > largest * GiB, f"more than the {largest} GB of memory that have a price, the container's own included"),
        (
            models.disk > SERVERLESS_DISK,
            f"more than the {SERVERLESS_DISK // GB} GB of disk that it has",
        ),
    ]
    for which, words in large:
        if which.any():
            number = int(which.sum())
            first = models.names[int(np.argmax(which))]
            said = f"{first} needs" if number == 1 else f"{number:,} models (such as {first}) need"
            return Alternative(name, None, "", f"{said} {words}")
    month = 0.0
    seconds = prices.hours_per_month * 3600
    left = np.ones(len(models), bool)
    for size, usd in prices.serverless.items():
        fits = left & (need <= size * GiB)
        month += float((rates * models.answer * settings.processor_factor)[fits].sum()) * seconds * usd
        left &= ~fits
    quota = f"; more than {SERVERLESS_ENDPOINTS} in a region have to be asked for"
    more = quota if len(models) > SERVERLESS_ENDPOINTS else ""
    return Alternative(
        name,
        month,
        "1 endpoint" if len(models) == 1 else f"{len(models):,} endpoints",
        f"processing alone, by a price of {prices.serverless_source.partition(';')[0]}; every model has an endpoint of "
        f"its own, whose cold starts are not counted{more}",
    )


def _components(
    models: Models,
    peak: Floats,
    kinds: Sequence[InstanceType],
    base: int,
    prices: Prices,
    settings: Settings,
) -> Alternative:
    best: tuple[float, str, int] | None = None
    memory = float((models.active + base).sum())
    largest = int((models.active + base).max())
    for kind in kinds:
        usable = min(kind.memory, int(kind.memory * 0.95))
        if largest > usable:
            continue
        needs = on(kind, models, settings)
        work = float((peak * needs.answer * np.minimum(needs.cores, kind.vcpus)).sum())
        count = max(settings.at_least, math.ceil(memory / usable), math.ceil(work / (0.7 * kind.vcpus)))
        month = prices.month(kind.usd_per_hour * count)
        if best is None or month < best[0]:
            best = (month, kind.name, count)
    name = "inference components"
    if best is None:
        return Alternative(name, None, "", "no type in the price file holds the largest model")
    words = "every model stays in memory, in a container of its own; one AWS resource for each"
    return Alternative(name, best[0], f"{best[2]:,} x {best[1]}", words)
