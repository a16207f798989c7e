"""How `invoke warm` counts its requests, and what it concludes from answers and from the log; without an endpoint."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from botocore.exceptions import ClientError

from mme.operate import lines, warm

A, B = (f"{name}-0123456789ab.tar.gz" for name in ("a", "b"))


@pytest.mark.parametrize(("instances", "confidence"), [(2, 0.9), (2, 0.999), (5, 0.99), (20, 0.999)])
def test_so_many_requests_reach_every_instance_as_probably_as_is_said(instances: int, confidence: float) -> None:
    count, chance = warm.requests_for(instances, confidence), random.Random(7)
    runs = 4000
    missed = sum(len({chance.randrange(instances) for _ in range(count)}) < instances for _ in range(runs))
    allowed = runs * (1 - confidence)
    assert missed <= allowed + 4 * allowed**0.5 + 3


def test_one_instance_is_asked_once() -> None:
    assert warm.requests_for(1) == 1
    assert warm.requests_for(0) == 1


def test_instances_that_the_log_does_not_show_are_asked_for_again() -> None:
    """A SageMaker that sends the first twenty requests to one instance, and the next ones to the other as well."""
    seen: list[str] = []

    class Runtime:
        def invoke_endpoint(self, **asked: Any) -> Any:
            seen.append("v/i-1" if len(seen) < 20 else "v/i-2")
            return {"Body": type("Body", (), {"read": lambda self: b""})()}

    class Logs:
        def get_paginator(self, _: str) -> Logs:
            return self

        def paginate(self, **_: Any) -> Any:
            events = [
                {
                    "logStreamName": stream,
                    "timestamp": 1_800_000_000_000 + at,
                    "message": json.dumps(
                        {"level": "info", "event": "invoke", "model": "m", "target": A, "status": 200}
                    ),
                }
                for at, stream in enumerate(seen)
            ]
            return [{"events": events}]

    ask = warm.Ask(A, b"{}")
    (result,) = warm.warm(Runtime(), Logs(), "e", "v", 2, [ask], confidence=0.99, sleep=lambda _: None)  # type: ignore[arg-type]
    assert (result.state, result.reached) == ("warm", 2)
    assert result.requests > warm.requests_for(2, 0.99)
    seen.clear()
    (result,) = warm.warm(Runtime(), Logs(), "e", "v", 3, [ask], confidence=0.5, sleep=lambda _: None)  # type: ignore[arg-type]
    assert (result.state, result.reached) == ("perhaps", 1), "two of three were never seen"


def test_a_model_that_is_loading_for_long_is_asked_again() -> None:
    answers: list[Any] = [
        ClientError({"Error": {"Code": "ModelNotReadyException", "Message": "loading"}}, "InvokeEndpoint"),
        ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow"}}, "InvokeEndpoint"),
        {"Body": type("Body", (), {"read": lambda self: b""})()},
    ]

    class Runtime:
        def invoke_endpoint(self, **_: Any) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    paused: list[float] = []
    (result,) = warm.warm(Runtime(), None, "e", "v", 1, [warm.Ask(A, b"")], sleep=paused.append)  # type: ignore[arg-type]
    assert (result.state, result.requests, paused) == ("perhaps", 3, [1.0, 2.0])


def test_the_log_tells_which_instances_have_a_model_now() -> None:
    def line(at: int, stream: str, event: str, **more: Any) -> lines.Line:
        return lines.parse(stream, 1_800_000_000_000 + at, json.dumps({"level": "info", "event": event, **more}))

    loads = warm.loads_after(
        [
            line(1, "v/1", "load", model="m", target=A),
            line(2, "v/1", "invoke", model="m", target=A, status=200),
            line(3, "v/2", "invoke", model="m", target=A, status=200),
            line(4, "v/1", "load", model="n", target=B),
            line(5, "v/1", "unload", model="m"),
            line(6, "v/2", "unload", model="unknown"),
        ]
    )
    assert loads.loaded == {A: {"v/2"}, B: {"v/1"}}
    assert loads.unloaded == {A: {"v/1"}}
    again = warm.loads_after(
        [line(1, "v/1", "unload", model="m", target=A), line(2, "v/1", "load", model="m", target=A)]
    )
    assert again.loaded == {A: {"v/1"}}
    assert not again.unloaded[A]
