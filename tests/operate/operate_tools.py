"""What the tests of looking after an endpoint share: a corner of the local AWS, and the tasks to run in it."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from invoke import Collection, Program

sys.path.insert(0, str(Path(__file__).parents[1] / "local"))

from local_tools import Cloud

import mme.tasks
from mme.local import LocalAws

STREAM = "AllTraffic/i-0123456789abcdef0"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Corner(Cloud):
    """One test's corner of the local AWS, and ``invoke`` in it."""

    def __init__(self, aws: LocalAws, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(aws)
        self.capsys = capsys
        self.logs = self.client("logs")

    def __call__(self, *words: str) -> Result:
        """Run ``invoke WORDS`` in this process."""
        self.capsys.readouterr()
        program = Program(namespace=Collection.from_module(mme.tasks))
        try:
            program.run(["invoke", *words])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self.capsys.readouterr()
        assert not re.search(r"^Traceback", err, re.MULTILINE)
        return Result(code, out, err)

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
