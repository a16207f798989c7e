"""How long a minute of AWS's time lasts here: it can be shortened, so that scaling and alarms can be tried quickly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Minutes:
    """A minute of ``seconds`` seconds: of metrics, alarms' periods, cool-downs and a deployment's waits."""

    seconds: float = 60.0

    def here(self, seconds: float) -> float:
        """How many seconds of this machine that many seconds of AWS last."""
        return seconds * self.seconds / 60.0

    def number(self, now: float) -> int:
        """Which minute it is, counted from the epoch; ``now`` in seconds since then."""
        return int(now // self.seconds)

    def start(self, number: int) -> float:
        """When that minute began, in seconds since the epoch."""
        return number * self.seconds
