"""The traffic, as requests with a time and a model: from a CSV file, from the container's access log, or by a law."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mme.capacity import csvfile, textfile
from mme.capacity.cells import finite, is_number
from mme.capacity.csvfile import fault
from mme.capacity.needs import OURS, Models
from mme.capacity.simulate import Requests
from mme.capacity.state import Floats, Ints
from mme.errors import UsageError

DAY = 86400.0
LONGEST_GAP = 3600.0
LATEST = 1e11  # seconds since 1970, in the year 5138: what is above are milliseconds, or less
MIXED = "Give all times as seconds, or all as ISO 8601."
DIGEST = re.compile(r"-[0-9a-f]{12}(?:\.tar\.gz)?$")


def _index(models: Models) -> Mapping[str, int]:
    """Names under which a trace may call a model: its name, its target, and its name without the version."""
    index: dict[str, int] = {}
    for at, name in enumerate(models.names):
        for alias in (name.removesuffix(".tar.gz"), DIGEST.sub("", name)):
            # A name without its version is clear only while one version has it.
            index[alias] = at if alias not in index else -1
    index.update(models.index)
    return index


def _unknown(where: str, name: str, index: Mapping[str, int]) -> UsageError:
    if index.get(name) == -1:
        return UsageError(f"{where}: several versions are called {name!r}.", "Give the target model with its version.")
    near = difflib.get_close_matches(name, list(index)[:10_000], n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Every model of a trace must be among the models."
    return UsageError(f"{where}: there is no model {name!r}.", hint)


def _time(text: str) -> float | None:
    """Seconds, or a date and time of ISO 8601 as seconds since 1970 (UTC where it names no zone)."""
    value = finite(text)
    if value is None:
        try:
            # Python 3.10 takes three digits or six behind the point.
            six = re.sub(r"(?<=\.)[0-9]+", lambda digits: digits[0][:6].ljust(6, "0"), text)
            moment = datetime.fromisoformat(six.replace("Z", "+00:00"))
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    return value


def read_csv(path: Path, models: Models, *, gaps: bool = False) -> Requests:
    """``time,model`` and perhaps ``seconds`` of processing, with a head line, in order of time.

    ``gaps`` allows stretches without any request that look like a hole in the recording: longer than an hour, and than
    100 times the usual pause. Raises UsageError with the line at fault.
    """
    index = _index(models)
    times: list[float] = []
    which: list[int] = []
    seconds: list[float] = []
    lines: list[int] = []
    dated = False
    with csvfile.opened(path) as (head, rows):
        if head not in (["time", "model"], ["time", "model", "seconds"]):
            raise fault(path, 1, f"the head is {','.join(head)!r}.", "It must be time,model or time,model,seconds.")
        for line, cells in rows:
            for column, cell in zip(head, cells, strict=True):
                if not cell:
                    raise fault(path, line, f"{column} is missing.")
            times.append(_moment(path, line, cells[0]))
            if (finite(cells[0]) is None) != dated:
                if len(times) > 1:
                    raise fault(
                        path, line, f"time {cells[0]} is {'seconds' if dated else 'a date'}, others are not.", MIXED
                    )
                dated = True
            if len(times) > 1 and times[-1] < times[-2]:
                raise fault(path, line, f"time {cells[0]} is before the line above.", "Sort the trace by time.")
            if (at := index.get(cells[1], -1)) < 0:
                raise _unknown(f"{path}, line {line}", cells[1], index)
            which.append(at)
            if len(head) == 3:
                seconds.append(_took(path, line, cells[2]))
            lines.append(line)
    return _requests(times, which, seconds, models, lambda n: f"{path}, line {lines[n]}", gaps)


def _moment(path: Path, line: int, text: str) -> float:
    """The cell's time in seconds. Raises UsageError."""
    moment = _time(text)
    if moment is None:
        raise fault(path, line, f"time is {text!r}.", "Give seconds, or ISO 8601: 2026-11-26T21:00:00Z.")
    if abs(moment) > LATEST:
        raise fault(
            path,
            line,
            f"time is {text}, which is no number of seconds since 1970.",
            "Divide milliseconds by 1,000, or give ISO 8601: 2026-11-26T21:00:00Z.",
        )
    return moment


def _took(path: Path, line: int, text: str) -> float:
    """The cell's seconds of processing. Raises UsageError."""
    took = finite(text)
    if took is None or took < 0:
        raise fault(path, line, f"seconds is {text!r}; it must be a number, 0 or more.")
    return took


def read_access_log(path: Path, models: Models, *, gaps: bool = False) -> Requests:
    """Our container's log: its lines ``"event": "invoke"``. Other lines, such as what handlers print, are passed over.

    A line is written when a request is answered; it arrived ``total_ms`` before. One that was refused, whose line has
    no stages, takes what its model usually does. Raises UsageError.
    """
    index = _index(models)
    shared = models.measured(OURS).batch_shared
    requests: list[tuple[float, int, float, int]] = []
    with textfile.opened(path, "replace") as file:
        for number, text in enumerate(file, 1):
            start = text.find("{")
            if start < 0 or '"invoke"' not in text:
                continue
            try:
                line = json.loads(text[start:])
            except (ValueError, RecursionError):
                continue
            if not isinstance(line, dict) or line.get("event") != "invoke":
                continue
            where = f"{path}, line {number}"
            name = line.get("target") or line.get("model")
            if not isinstance(name, str):
                raise UsageError(f"{where}: an invocation without its model.")
            if (at := index.get(name, -1)) < 0:
                raise _unknown(where, name, index)
            arrived, worked = _invocation(where, line, shared)
            requests.append((arrived, at, worked, number))
    if not requests:
        raise UsageError(
            f"{path} has no invocation.",
            'It should hold the container\'s lines with "event": "invoke" (MME_ACCESS_LOG), as aws logs tail shows.',
        )
    requests.sort(key=lambda one: (one[0], one[3]))
    return _requests(
        [entry[0] for entry in requests],
        [entry[1] for entry in requests],
        [entry[2] for entry in requests],
        models,
        lambda n: f"{path}, line {requests[n][3]}",
        gaps,
    )


def _invocation(where: str, line: Mapping[str, Any], shared: float) -> tuple[float, float]:
    """(when the request arrived, the seconds it would have taken alone) by a line of the log; the latter is not a
    number where the line has no stages, as that of a request that was refused. ``shared``: see Serving. Raises
    UsageError."""
    stages = [f"{stage}_ms" for stage in ("decode", "predict", "encode")]
    numbers = {"time": line.get("time"), "total_ms": line.get("total_ms", 0), "batch": line.get("batch") or 1}
    numbers |= {stage: line[stage] for stage in stages if stage in line}
    if isinstance(numbers["time"], str):
        numbers["time"] = _time(numbers["time"])
    for key, value in numbers.items():
        if not is_number(value, LATEST if key == "time" else 1e12):
            raise UsageError(
                f"{where}: {key} is {line.get(key)!r}.",
                "A time is ISO 8601 or seconds since 1970; all else is a number, 0 or more.",
            )
    worked = sum(float(numbers[stage]) for stage in stages if stage in numbers) / 1000
    # A batch of k takes answer * (shared + (1 - shared) * k).
    alone = worked / (shared + (1 - shared) * max(1, int(numbers["batch"])))
    return float(numbers["time"]) - float(numbers["total_ms"]) / 1000, alone if "predict_ms" in numbers else math.nan


def _requests(
    times: list[float], which: list[int], seconds: list[float], models: Models, place: object, gaps: bool
) -> Requests:
    time = np.array(times, float)
    model = np.array(which, np.int32)
    if len(time) > 2 and not gaps:
        pauses = np.diff(time)
        usual = float(np.percentile(pauses, 50, method="lower"))  # a pause that there is: of two, not their mean
        longest = int(np.argmax(pauses))
        if pauses[longest] > max(LONGEST_GAP, 100 * usual):
            raise UsageError(
                f"{place(longest + 1)}: nobody asked for {pauses[longest] / 3600:.1f} hours before this line.",  # type: ignore[operator]
                "If the recording has a hole there, cut the trace; if nobody asked, give --gaps.",
            )
    if len(time):
        time -= time[0]
    factor = None
    if seconds:
        usual_seconds = models.answer[model]
        factor = np.divide(seconds, usual_seconds, out=np.ones(len(model)), where=usual_seconds > 0).astype(np.float32)
        factor[np.isnan(factor)] = 1.0
    return Requests(time, model, factor)


@dataclass(frozen=True)
class Law:
    """Traffic by a law: independent requests, ``rate`` a second on average, for ``seconds``.

    ``exponent``: of Zipf's law; model number k (in a shuffled order) is asked for in proportion to k ** -exponent.
    ``swing``: between night and day, 0 to 1; the rate is ``rate * (1 + swing * sin(2 pi t / day))``.
    ``bursts``: (how many an hour, times the rate, for how many seconds).
    ``churn``: the share of the models whose place in the order of popularity is another one a day later.
    """

    rate: float
    exponent: float
    seconds: float
    swing: float = 0.0
    bursts: tuple[float, float, float] = (0.0, 1.0, 0.0)
    churn: float = 0.0

    def check(self) -> None:
        """Raises UsageError for a value out of bounds."""
        for words, good in (
            ("the rate must be above 0 requests a second", 0 < self.rate < 1e7),
            ("Zipf's exponent must be 0 to 5", 0 <= self.exponent <= 5),
            ("the time must be above 0", 0 < self.seconds < 1e9),
            ("the daily swing must be 0 to 1", 0 <= self.swing <= 1),
            ("bursts have a number an hour of 0 or more, a factor of 1 or more and seconds", self.bursts[0] >= 0
             and self.bursts[1] >= 1 and self.bursts[2] >= 0),
            ("the churn must be 0 to 1 a day", 0 <= self.churn <= 1),
        ):  # fmt: skip
            if not good:
                raise UsageError(f"The traffic cannot be made: {words}.")


def popularity(count: int, exponent: float, random: np.random.Generator) -> Floats:
    """Shares of the traffic by Zipf's law, in a shuffled order, so that size and popularity are independent."""
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    return np.asarray(random.permutation(weights / weights.sum()))


def generate(law: Law, count: int, seed: int = 1, most: int = 50_000_000) -> tuple[Requests, Floats]:
    """Requests by the law, and the requests a second of each model at the start. Raises UsageError above ``most``."""
    law.check()
    random = np.random.default_rng(seed)
    shares = popularity(count, law.exponent, random)
    peak = law.rate * (1 + law.swing)
    bursts, factor, length = law.bursts
    starts: Floats = np.sort(random.uniform(0, law.seconds, random.poisson(bursts * law.seconds / 3600)))
    top = peak * (factor if len(starts) else 1.0)
    if top * law.seconds > most * 4:
        raise UsageError(f"These are more than {most:,} requests.", "Take a shorter time, or a lower rate.")
    # Thinning: candidates at the highest rate, each kept with the probability that the rate of its moment has.
    times = np.sort(random.uniform(0, law.seconds, random.poisson(top * law.seconds)))
    level = law.rate * (1 + law.swing * np.sin(2 * np.pi * times / DAY))
    if len(starts):
        inside = np.zeros(len(times), bool)
        for begin in starts:
            inside[np.searchsorted(times, begin) : np.searchsorted(times, begin + length)] = True
        level = level * np.where(inside, factor, 1.0)
    times = times[random.random(len(times)) * top < level]
    if len(times) > most:
        raise UsageError(f"These are more than {most:,} requests.", "Take a shorter time, or a lower rate.")
    model = _choose(shares, law, times, random)
    return Requests(times, model), shares * law.rate


def _choose(shares: Floats, law: Law, times: Floats, random: np.random.Generator) -> Ints:
    """Which model each request is for; tenants that come and go change places at random moments."""
    edges = np.cumsum(shares)
    edges[-1] = 1.0
    place = np.searchsorted(edges, random.random(len(times)), side="right").astype(np.int32)
    place = np.minimum(place, len(shares) - 1).astype(np.int32)
    changes = random.poisson(law.churn * len(shares) / 2 * law.seconds / DAY) if law.churn else 0
    if not changes or len(shares) < 2:
        return place
    holder = np.arange(len(shares), dtype=np.int32)  # the model in each place of the order
    model: Ints = place.copy()
    before = 0
    for moment in np.sort(random.uniform(0, law.seconds, changes)):
        until = int(np.searchsorted(times, moment))
        model[before:until] = holder[place[before:until]]
        one, other = random.integers(0, len(shares), 2)
        holder[one], holder[other] = holder[other], holder[one]
        before = until
    model[before:] = holder[place[before:]]
    return model


def rates(requests: Requests, count: int) -> Floats:
    """Requests a second of each model in a trace."""
    seconds = max(requests.seconds, 1e-9)
    return np.bincount(requests.model, minlength=count).astype(np.float64) / seconds


def minutes(requests: Requests) -> tuple[float, float] | None:
    """Requests a second in a trace's busiest minute and in its quietest; None for one of less than ten minutes."""
    complete = int(requests.seconds // 60)
    if complete < 10:
        return None
    counts = np.bincount((requests.time // 60).astype(np.int64), minlength=complete)[:complete]
    return float(counts.max()) / 60, float(counts.min()) / 60


def busiest_of(law: Law, count: int, most: int, seed: int = 1) -> tuple[Requests, Floats]:
    """About ``most`` requests of the law's busiest time of the day, with one burst in their middle where it has bursts;
    and each model's requests a second there, bursts apart. For planning, which asks what the worst hour is like."""
    law.check()
    peak = law.rate * (1 + law.swing)
    bursts, factor, length = law.bursts
    seconds = most / peak
    if bursts:
        # A window in which the burst has the share of time that it has in an hour.
        seconds = max(seconds, min(length * 3600 / max(bursts * length, 1e-9), 4 * seconds))
    steady = Law(peak, law.exponent, seconds, churn=law.churn)
    requests, rates = generate(steady, count, seed)
    if not bursts or factor <= 1 or not length:
        return requests, rates
    random = np.random.default_rng(seed + 1)
    extra = random.poisson(peak * (factor - 1) * min(length, seconds / 2))
    times = random.uniform(0.5 * seconds, 0.5 * seconds + min(length, seconds / 2), extra)
    edges = np.cumsum(rates / rates.sum())
    model = np.minimum(np.searchsorted(edges, random.random(extra), side="right"), count - 1).astype(np.int32)
    time = np.concatenate([requests.time, times])
    order = np.argsort(time, kind="stable")
    return Requests(time[order], np.concatenate([requests.model, model])[order]), rates
