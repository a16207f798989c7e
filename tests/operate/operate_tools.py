"""What the tests of looking after an endpoint share: a corner of the local AWS, and the tasks to run in it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "local"))

from local_tools import TRUST, Cloud
from typed import Result, typed

from mme.local import LocalAws

__all__ = ["TRUST", "Cloud", "Corner", "Result", "asked", "corner_of", "typed"]

STREAM = "AllTraffic/i-0123456789abcdef0"


class Corner(Cloud):
    """One test's corner of the local AWS, and ``invoke`` in it."""

    def __init__(self, aws: LocalAws, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(aws)
        self.capsys = capsys
        self.logs = self.client("logs")

    def __call__(self, *words: str) -> Result:
        """Run ``invoke WORDS`` in this process."""
        return typed(self.capsys, *words)

    def write(self, endpoint: str, *lines: Any, stream: str = STREAM, ago: float = 30.0) -> None:
        """Lines of a container in the endpoint's log, a millisecond apart: texts, or what our container writes as
        JSON."""
        group = f"/aws/sagemaker/Endpoints/{endpoint}"
        streams = self.logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=stream)["logStreams"]
        if not streams:
            self.logs.create_log_stream(logGroupName=group, logStreamName=stream)
        first = round((time.time() - ago) * 1000)
        texts = [item if isinstance(item, str) else json.dumps(item) for item in lines]
        events = [{"timestamp": first + at, "message": text} for at, text in enumerate(texts)]
        self.logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def asked(target: str, status: int = 200, ms: float = 5.0, model: str | None = None, **more: Any) -> dict[str, Any]:
    """The line that our container writes of a request."""
    level = "info" if status < 400 else "warning"
    name = model or f"{abs(hash(target)):x}"
    line = {"time": "2026-11-27T01:00:00.000Z", "level": level, "event": "invoke", "model": name, "status": status}
    return {**line, "target": target, "bytes_in": 1, "bytes_out": 2, "total_ms": ms, **more}


@contextlib.contextmanager
def corner_of(aws: LocalAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Corner]:
    """A corner of another local AWS than the run's, with this process turned to it."""
    for name, value in aws.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    made = Corner(aws, capsys)
    yield made
    made.close()
