"""`invoke logs`: the containers' lines, by model, errors only, followed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from operate_tools import STREAM, Corner, asked

from mme.errors import UsageError
from mme.operate import lines, logs
from mme.tasks.operate import moment_of

BERT, NEWER, GPT = "bert-0123456789ab.tar.gz", "bert-ba9876543210.tar.gz", "gpt-0123456789ab.tar.gz"
STOCK_START = (
    "2026-11-27 01:20:00,123 [INFO ] main com.amazonaws.ml.mms.ModelServer - Inference address: http://0.0.0.0"
)
STOCK_WORKER = (
    "2026-11-27 01:20:01,000 [WARN ] W-9000-3bf2a4c5d6e7f8091a2b3c4d5e6f7081 "
    "com.amazonaws.ml.mms.wlm.WorkerLifeCycle - Backend worker process died"
)
STOCK_REQUEST = (
    "2026-11-27 01:20:02,000 [INFO ] pool-1-thread-3 ACCESS_LOG - /127.0.0.1:43212 "
    '"POST /models/3bf2/invoke HTTP/1.1" {} 45'
)


def ours(event: str, level: str = "info", **more: Any) -> dict[str, Any]:
    return {"time": "2026-11-27T01:00:00.000Z", "level": level, "event": event, **more}


def parsed(text: Any) -> lines.Line:
    return lines.parse(STREAM, 1_800_000_000_123, text if isinstance(text, str) else json.dumps(text))


# ---- understanding a line -----------------------------------------------------------------------------------------


def test_lines_of_our_container_are_understood() -> None:
    line = parsed(asked(BERT, 400, 7.5, model="0a1b", message="too long"))
    assert (line.variant, line.instance) == ("AllTraffic", "i-0123456789abcdef0")
    assert (line.event, line.target, line.model, line.status) == ("invoke", BERT, "0a1b", 400)
    assert line.failed
    assert line.as_json()["total_ms"] == 7.5
    assert line.as_json()["time"] == "2027-01-15T08:00:00.123Z"
    assert not parsed(ours("load", model="0a1b")).failed
    assert parsed(ours("parent ended", "error")).failed


def test_lines_of_the_stock_container_are_understood() -> None:
    assert parsed(STOCK_START).level == "info"
    worker = parsed(STOCK_WORKER)
    assert (worker.level, worker.model) == ("warning", "3bf2a4c5d6e7f8091a2b3c4d5e6f7081")
    assert worker.message == "Backend worker process died"
    good, bad = parsed(STOCK_REQUEST.format(200)), parsed(STOCK_REQUEST.format(503))
    assert (good.event, good.model, good.status, good.failed) == ("access", "3bf2", 200, False)
    assert (bad.level, bad.failed) == ("error", True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words",
        "{",
        "{}",
        "[1, 2]",
        '{"level": 3, "event": "invoke"}',
        '{"level": "info", "event": NaN}',
        '{"level": "info", "event": "x", "value": 1e999}',
        '{"level": "info", "event": "\\ud800"}',
        "[" * 100_000,
        "2026-11-27 01:20:00,123 [INFO ]",
        "a\x00b\x1b[31m",
    ],
)
def test_any_other_line_is_a_line_all_the_same(text: str) -> None:
    line = parsed(text)
    assert line.text == text
    assert line.event == ""
    json.dumps(line.as_json())


def test_a_line_with_odd_values_does_no_harm() -> None:
    line = parsed(ours("invoke", status="200", target=7, model=None, message=["x"], total_ms="fast"))
    assert (line.status, line.target, line.model) == (None, None, None)


def test_a_traceback_is_an_error_to_its_last_line_and_no_further() -> None:
    text = [
        "before",
        "Traceback (most recent call last):",
        '  File "/opt/ml/models/x/model/code/inference.py", line 3, in predict_fn',
        "    raise ValueError(3)",
        "ValueError: 3",
        "after",
    ]
    tracebacks = lines.Tracebacks()
    assert [tracebacks.has(parsed(item)) for item in text] == [False, True, True, True, True, False]


# ---- choosing lines -----------------------------------------------------------------------------------------------


def chosen(filter: logs.Filter, *texts: Any) -> list[str]:
    return [shown.text for text in texts for shown in filter(parsed(text))]


def test_lines_with_an_opaque_name_come_once_it_is_known_whose_they_are() -> None:
    load, died = ours("load", model="0a1b"), ours("model process ended", "error", model="0a1b")
    other = ours("load", model="ffff")
    request = asked(BERT, model="0a1b")
    shown = chosen(logs.Filter(logs.of_model("bert")), load, other, "printed", request, died, asked(GPT, model="ffff"))
    assert [json.loads(item)["event"] for item in shown] == ["load", "invoke", "model process ended"]


def test_errors_only() -> None:
    texts = [
        asked(BERT),
        asked(BERT, 500),
        ours("parent ended", "error"),
        ours("setting", "warning", message="bounded"),
        "ERROR something",
        "fine",
        "Traceback (most recent call last):",
        "  File x",
        "KeyError: 'a'",
        STOCK_WORKER.replace("WARN ", "ERROR"),
        STOCK_REQUEST.format(500),
        STOCK_REQUEST.format(200),
    ]
    shown = chosen(logs.Filter(errors=True), *texts)
    assert len(shown) == 8
    assert "fine" not in shown


def test_a_model_means_all_its_versions_and_a_target_itself() -> None:
    wanted = logs.of_model("bert")
    assert [wanted(target) for target in (BERT, NEWER, GPT, "bert-large-0123456789ab.tar.gz")] == [
        *(True, True, False, False),
    ]
    assert [logs.of_model(BERT)(target) for target in (BERT, NEWER)] == [True, False]
    assert logs.of_model("old.tar.gz")("old.tar.gz")


# ---- the task -----------------------------------------------------------------------------------------------------


def test_the_log_is_shown_by_model_and_errors_and_variant(corner: Corner) -> None:
    corner.publish(BERT)
    corner.publish(NEWER)
    endpoint = corner.endpoint()
    corner.write(endpoint, ours("load", model="1"), asked(BERT, model="1", cold=True), asked(GPT, 400, message="no"))
    corner.write(endpoint, asked(NEWER, 500, model="2"), "a\x1b[2Jb", stream="other/i-1", ago=20)
    every = corner("logs", "--endpoint", endpoint)
    assert every.code == 0
    assert f"{BERT} 200 5 ms cold" in every.out
    assert "a?[2Jb" in every.out
    assert "\x1b" not in every.out

    of_bert = corner("logs", "--endpoint", endpoint, "--model", "bert", "--json").json
    assert [(item["event"], item["target"]) for item in of_bert["lines"]] == [
        ("load", BERT),
        ("invoke", BERT),
        ("invoke", NEWER),
    ]
    assert of_bert["log_group"] == f"/aws/sagemaker/Endpoints/{endpoint}"
    failed = corner("logs", "--endpoint", endpoint, "--errors", "--json").json["lines"]
    assert [item["target"] for item in failed] == [GPT, NEWER]
    assert [
        item["target"]
        for item in corner("logs", "--endpoint", endpoint, "--variant", "other", "--json").json["lines"][:1]
    ] == [NEWER]
    assert corner("promote", "--model", "bert@old", "--version", "0123", "--bucket", corner.bucket).code == 0
    old = corner("logs", "--endpoint", endpoint, "--model", "bert@old", "--bucket", corner.bucket, "--json").json
    assert {item["target"] for item in old["lines"]} == {BERT}
    assert corner("logs", "--endpoint", endpoint, "--since", "5s", "--model", "bert").code == 9


def test_a_log_that_names_no_model_is_an_error_for_a_model_and_not_without(corner: Corner) -> None:
    endpoint = corner.endpoint()
    corner.write(endpoint, STOCK_START, STOCK_REQUEST.format(200))
    shown = corner("logs", "--endpoint", endpoint, "--model", "bert")
    assert shown.code == 9
    assert "stock" in shown.err
    assert "Inference address" in corner("logs", "--endpoint", endpoint).out


def test_no_log_is_an_error(corner: Corner) -> None:
    shown = corner("logs", "--endpoint", "none-of-this-name")
    assert shown.code == 9
    assert "/aws/sagemaker/Endpoints/none-of-this-name" in shown.err


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_following_shows_each_line_once_and_ends_cleanly(corner: Corner, end: signal.Signals) -> None:
    endpoint = corner.endpoint()
    corner.write(endpoint, asked(BERT, number=1))
    words = [sys.executable, "-m", "mme", "logs", "--endpoint", endpoint, "--follow", "--json", "--model", "bert"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout
        assert json.loads(process.stdout.readline())["number"] == 1
        corner.write(endpoint, asked(BERT, number=2), asked(GPT, number=3), ago=1)
        corner.write(endpoint, asked(BERT, number=4), ago=3)  # CloudWatch shows a line late
        assert {json.loads(process.stdout.readline())["number"] for _ in range(2)} == {2, 4}
        process.send_signal(end)
        rest, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, rest, err) == (0, "", "")


def test_following_waits_for_a_log_and_ends_when_it_is_deleted(corner: Corner) -> None:
    name = f"{corner.name}-later"
    group = logs.group_of(name)
    rounds = []

    def sleep(_: float) -> None:
        rounds.append(1)
        if len(rounds) == 2:
            corner.logs.create_log_group(logGroupName=group)
            corner.write(name, "hello", ago=1)
        if len(rounds) == 3:
            corner.logs.delete_log_group(logGroupName=group)

    followed = logs.follow(corner.logs, name, datetime.now(timezone.utc) - timedelta(minutes=1), sleep=sleep)
    assert next(line.text for line in followed if line) == "hello"
    with pytest.raises(logs.EndpointError, match="deleted"):
        list(followed)
    assert len(rounds) == 3


NOW = datetime(2026, 11, 27, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1.5d", 129_600),
        ("2026-11-27T11:00", 3600),
        ("2026-11-27T11:00Z", 3600),
    ],
)
def test_times_are_given_as_an_age_or_as_a_time(text: str, ago: float) -> None:
    assert (NOW - moment_of("--since", text, NOW)).total_seconds() == ago


@pytest.mark.parametrize("text", ["", "5", "-5m", "5 years", "999999d", "2026-11-28", "0001-01-01", "nan", "1e5s"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--since"):
        moment_of("--since", text, NOW)


def test_bad_input_of_the_task(corner: Corner) -> None:
    assert corner("logs", "--endpoint", "e", "--since", "later").code == 2
