"""When a scheduled action of Application Auto Scaling is due: ``at(…)``, ``rate(…)`` and AWS's ``cron(…)``.

The expressions are those of
https://docs.aws.amazon.com/autoscaling/application/userguide/scheduled-scaling-using-cron-expressions.html.
"""

from __future__ import annotations

import calendar
import re
from datetime import datetime
from zoneinfo import ZoneInfo

_MONTHS = {
    name: number
    for number, name in enumerate(
        ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"], 1
    )
}
_DAYS = {name: number for number, name in enumerate(["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"], 1)}
_SECONDS = {"minute": 60, "hour": 3600, "day": 86400}
_LONGEST = 86400
"""How far back a moment that was missed is looked for, in seconds."""


class BadSchedule(ValueError):
    """The expression cannot be read."""


def due(expression: str, timezone: str | None, since: float, until: float, *, made: float, rate: float = 1.0) -> bool:
    """Whether a moment of the schedule lies after ``since`` and not after ``until``, seconds since the epoch.

    ``made`` is when the schedule began, from which a rate counts; a rate's minutes last ``rate`` times as long as
    others. Raises BadSchedule.
    """
    match = re.fullmatch(r"\s*(at|rate|cron)\((.*)\)\s*", expression)
    if match is None:
        raise BadSchedule(f"{expression!r} is neither at(…) nor rate(…) nor cron(…).")
    kind, words = match[1], match[2].strip()
    try:
        zone = ZoneInfo(timezone or "UTC")
        if kind == "at":
            return since < datetime.fromisoformat(words).replace(tzinfo=zone).timestamp() <= until
        if kind == "rate":
            number, unit = words.split()
            period = int(number) * _SECONDS[unit.rstrip("s")] * rate
            return (until - made) // period > max(0.0, (since - made) // period)
        fields = words.split()
        if len(fields) != 6:
            raise BadSchedule(f"{expression!r} has {len(fields)} fields, not six.")
        first = max(since, until - _LONGEST) // 60 + 1
        return any(
            _matches(fields, datetime.fromtimestamp(minute * 60, zone))
            for minute in range(int(first), int(until // 60) + 1)
        )
    except (KeyError, ValueError, ZeroDivisionError) as problem:
        if isinstance(problem, BadSchedule):
            raise
        raise BadSchedule(f"{expression!r} ({timezone or 'UTC'}) cannot be read: {problem}") from problem


def _matches(fields: list[str], moment: datetime) -> bool:
    minute, hour, day, month, weekday, year = fields
    return (
        _in(minute, moment.minute, 0, 59)
        and _in(hour, moment.hour, 0, 23)
        and _in(month, moment.month, 1, 12, _MONTHS)
        and _in(year, moment.year, 1970, 2199)
        and (day == "?" or any(_is_day(one, moment) for one in day.split(",")))
        and (weekday == "?" or any(_is_weekday(one, moment) for one in weekday.split(",")))
    )


def _in(field: str, value: int, least: int, most: int, names: dict[str, int] | None = None) -> bool:
    def number(word: str) -> int:
        named = (names or {}).get(word.upper())
        return int(word) if named is None else named

    for part in field.split(","):
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span in ("*", "?"):
            low, high = least, most
        else:
            low = number(first)
            high = number(last) if dash else most if step else low
        inside = low <= value <= high if low <= high else value >= low or value <= high
        if inside and (value - low) % int(step or 1) == 0:
            return True
    return False


def _is_day(field: str, moment: datetime) -> bool:
    last = calendar.monthrange(moment.year, moment.month)[1]
    if field == "L":
        return moment.day == last
    if field.endswith("W"):  # the working day next to that day, in the same month
        wanted = last if field == "LW" else min(int(field[:-1]), last)
        weekday = calendar.weekday(moment.year, moment.month, wanted)
        if weekday == calendar.SATURDAY:
            wanted += -1 if wanted > 1 else 2
        elif weekday == calendar.SUNDAY:
            wanted += 1 if wanted < last else -2
        return moment.day == wanted
    return _in(field, moment.day, 1, 31)


def _is_weekday(field: str, moment: datetime) -> bool:
    today = moment.isoweekday() % 7 + 1  # Sunday is 1
    if field == "L":
        return today == 7
    if field.upper().endswith("L"):
        last = calendar.monthrange(moment.year, moment.month)[1]
        return _in(field[:-1], today, 1, 7, _DAYS) and moment.day > last - 7
    if "#" in field:
        day, _, which = field.partition("#")
        return _in(day, today, 1, 7, _DAYS) and (moment.day - 1) // 7 + 1 == int(which)
    return _in(field, today, 1, 7, _DAYS)
