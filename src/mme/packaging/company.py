"""Whether a handler that answers several requests together answers each as it does alone.

The commonest fault is padding: a text that stands beside a longer one in a batch is padded to its length, and a model
that does not mask what is padding answers it differently. Others mix up the order of a batch.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mme.runner.errors import ContainerError
from mme.runner.process import Reply

OF_EACH = 8  # how many copies of the sample, and as many longer requests, are sent at the same time
LONGER = 4  # how many times as long
MOST_CHARACTERS = 2000  # of a text that is made longer

# Two numbers are the same if they differ by less than this share of the largest number in the answer: sums in another
# order move float32 by a millionth, and some handlers round their answers.
FINE, COARSE = 1e-3, 0.05
FEWER_BITS = re.compile(rb"float16|\.half\(|\.bfloat16\(|autocast|int8|quanti[sz]|load_in_")

Ask = Callable[[bytes], Reply]


def batches(model: Path) -> bool:
    """Whether the handler of the unpacked archive answers several requests in one call without a check of its own:
    handlers that import ``handler_exact`` compare batches with single requests when they load."""
    scripts = _scripts(model)
    return any(b"batch_fn" in text for text in scripts.values()) and "handler_exact.py" not in scripts


def doubt(ask: Ask, sample: bytes, alone: Reply, model: Path) -> str | None:
    """How the sample's answers in a batch differ from ``alone``, its answer by itself. None if they do not, or if that
    cannot be decided: the handler draws random numbers, tells the time or takes too long."""
    right = _value(alone)
    longer = _longer(sample)
    if right is None:
        return None
    tolerance = COARSE if _fewer_bits(model) else FINE
    together = [body for _ in range(OF_EACH) for body in (longer, sample)]
    try:
        with ThreadPoolExecutor(len(together)) as pool:
            answers = list(pool.map(ask, together))[1::2]
        answers = [answer for answer in answers if answer.status not in (429, 503)]  # too many at once: no answer
        others = [answer for answer in answers if _differ(answer, right, tolerance)]
        if not others or 2 * len(others) < len(answers):
            return None
        if any(_differ(ask(sample), right, tolerance) for _ in range(OF_EACH)):
            return None  # its answers differ without a batch, too
    except ContainerError:
        return None
    what = others[0].body[:100].decode("utf-8", "replace")
    if others[0].status != 200:
        what = f"{others[0].status}, {what}"
    return (
        "asked at the same time as longer requests, it answers its sample differently than alone: "
        f"{what} instead of {alone.body[:100].decode('utf-8', 'replace')}; see what batch_fn does to padding, and in "
        "which order it answers"
    )


def _scripts(model: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (*model.glob("*.py"), *model.glob("code/*.py"))}


def _fewer_bits(model: Path) -> bool:
    config = model / "config.json"
    texts = [*_scripts(model).values(), config.read_bytes() if config.is_file() else b""]
    return any(FEWER_BITS.search(text) for text in texts)


def _value(reply: Reply) -> Any:
    """The answer as JSON; None for one that is not."""
    try:
        return json.loads(reply.body) if reply.status == 200 else None
    except (ValueError, RecursionError):
        return None


def _differ(reply: Reply, right: Any, tolerance: float) -> bool:
    got = list(_leaves(_value(reply)))
    expected = list(_leaves(right))
    scale = max((abs(value) for _, value in expected if isinstance(value, float)), default=0.0)

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, float) or isinstance(other, float):
            numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
            return numbers and (abs(one - other) <= tolerance * scale or (one != one and other != other))
        return bool(one == other)

    return len(got) != len(expected) or not all(
        where == there and same(one, other) for (where, one), (there, other) in zip(got, expected, strict=True)
    )


def _leaves(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value that is neither a list nor an object, with its place."""
    if isinstance(value, dict):
        yield from itertools.chain.from_iterable(_leaves(value[key], (*where, key)) for key in sorted(value))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(_leaves(item, (*where, n)) for n, item in enumerate(value))
    else:
        yield where, value


def _longer(sample: bytes) -> bytes:
    """The sample with its texts made longer. Strings without a space stay: they are names or images."""

    def stretch(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item if key == "parameters" else stretch(item) for key, item in value.items()}
        if isinstance(value, list):
            return [stretch(item) for item in value]
        if isinstance(value, str) and " " in value.strip() and len(value) <= MOST_CHARACTERS:
            return " ".join([value] * LONGER)
        return value

    try:
        return json.dumps(stretch(json.loads(sample)), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return sample
