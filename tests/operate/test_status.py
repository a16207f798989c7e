"""`invoke status`: what SageMaker, CloudWatch, the log and the bucket say of an endpoint, on one screen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import boto3
import pytest
from operate_tools import Corner, asked

from mme import aws, channels, releases
from mme.operate import facts, metrics, status, usage

BERT, NEWER, GPT = "bert-0123456789ab.tar.gz", "bert-ba9876543210.tar.gz", "gpt-0123456789ab.tar.gz"


def clients(corner: Corner) -> status.Clients:
    return status.Clients(
        corner.sagemaker,
        corner.client("cloudwatch"),
        corner.s3,
        corner.logs,
        corner.client("application-autoscaling"),
    )


def scale(corner: Corner, endpoint: str) -> None:
    scaling = corner.client("application-autoscaling")
    where = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**where, MinCapacity=1, MaxCapacity=4)
    predefined = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
    scaling.put_scaling_policy(
        **where,
        PolicyName="invocations",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={"TargetValue": 70.0, "PredefinedMetricSpecification": predefined},
    )
    scaling.put_scheduled_action(
        **where,
        ScheduledActionName="night",
        Schedule="cron(0 22 * * ? *)",
        Timezone="Europe/Berlin",
        ScalableTargetAction={"MinCapacity": 1, "MaxCapacity": 2},
    )


def alarm(corner: Corner, name: str, endpoint: str, state: str = "OK", reason: str = "as a test wants it") -> None:
    cloudwatch = corner.client("cloudwatch")
    cloudwatch.put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/SageMaker",
        MetricName="Invocation5XXErrors",
        Dimensions=[{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": "AllTraffic"}],
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanThreshold",
        Unit="Count",  # the metric has no unit, so there is no data, and the state stays as it is set
        TreatMissingData="ignore",
    )
    cloudwatch.set_alarm_state(AlarmName=name, StateValue=state, StateReason=reason)


def test_one_screen_shows_all_that_is_known(corner: Corner) -> None:
    for target in (BERT, GPT, NEWER):
        corner.publish(target)
    endpoint = corner.endpoint()
    for target in (BERT, BERT, GPT):
        corner.invoke(endpoint, target)
    corner.write(endpoint, asked(BERT, cold=True), asked(BERT, ms=9.0), asked(GPT, 400, message="too long"))
    scale(corner, endpoint)
    alarm(corner, f"{endpoint}-main-errors", endpoint, "ALARM", "too many errors")
    alarm(corner, f"{endpoint}-2-main-errors", f"{endpoint}-2", "ALARM", "of another endpoint")
    assert corner("split", "--model", "bert", "--weight", "0123=90", "--weight", "ba98=10", "--bucket", corner.bucket)

    shown = corner("status", "--endpoint", endpoint)
    assert shown.code == 0
    for words in (
        f"{endpoint}: InService",
        "ml.m6i.large",
        "1 (1 to 4)",
        "33.3 %",  # one request of three found its model loaded
        "(2 loads)",
        "invocations at 70 requests a minute",
        "night cron(0 22 * * ? *) Europe/Berlin: 1 to 2",
        "1 in ALARM",
        "too many errors",
        "all 3 requests in the container's log",
        f"s3://{corner.bucket}/models/: 2 models, 3 versions",
        f"{BERT} 90 %, {NEWER} 10 %",
        "channel, revision 1",
    ):
        assert words in shown.out, words
    assert "of another endpoint" not in shown.out
    assert len(shown.out.splitlines()) < 30

    plain = corner("status", "--endpoint", endpoint, "--json").json
    (variant,) = plain["variants"]
    assert variant["instances"] == {"current": 1, "desired": 1}
    assert variant["metrics"]["requests"] == 3
    assert variant["metrics"]["hit_ratio"] == pytest.approx(1 / 3)
    assert variant["metrics"]["load"]["count"] == 2
    assert (variant["autoscaling"]["minimum"], variant["autoscaling"]["maximum"]) == (1, 4)
    alarms = {item["name"]: item for item in plain["alarms"]}
    assert alarms.pop(f"{endpoint}-main-errors")["state"] == "ALARM"
    assert [(name.rpartition("-Alarm")[2].partition("-")[0], item["scaling"]) for name, item in alarms.items()] == [
        ("High", True),
        ("Low", True),
    ]
    used = plain["most_used"]["models"]
    assert [(use["target"], use["requests"], use["cold"], use["failed"]) for use in used] == [
        (BERT, 2, 1, 0),
        (GPT, 1, 0, 1),
    ]
    assert used[0]["names"] == ["bert"]
    assert used[0]["p99_ms"] == 9.0
    names = {item["name"]: item for item in plain["released"]["names"]}
    assert names["bert"]["targets"] == {BERT: 90.0, NEWER: 10.0}
    assert names["gpt"]["channel"] is False
    assert plain["unknown"] == {}


def test_what_may_not_be_read_is_named_and_the_rest_is_shown(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> None:
    corner.publish(BERT)
    endpoint = corner.endpoint()
    keys = corner.user({"Effect": "Allow", "Action": ["sagemaker:Describe*", "s3:*"], "Resource": "*"})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    shown = corner("status", "--endpoint", endpoint)
    assert shown.code == 0
    assert "InService" in shown.out
    assert "1 models, 1 versions" in shown.out
    for what in ("metrics", "alarms", "autoscaling", "most used models"):
        assert f"Not known: {what}." in shown.out
    plain = corner("status", "--endpoint", endpoint, "--json").json
    assert plain["alarms"] is None
    assert plain["most_used"] is None
    assert plain["variants"][0]["metrics"] is None
    assert set(plain["unknown"]) == {"metrics", "alarms", "autoscaling", "most used models"}


def test_a_failed_endpoint_says_why(corner: Corner) -> None:
    endpoint = corner.endpoint(wait=False, FAKE_BROKEN="1")
    assert corner.settled(endpoint)["EndpointStatus"] == "Failed"
    shown = corner("status", "--endpoint", endpoint)
    assert shown.code == 0
    assert f"{endpoint}: Failed" in shown.out
    assert "why: " in shown.out


def test_an_endpoint_that_is_not_there_is_an_error_with_the_nearest_that_is(corner: Corner) -> None:
    endpoint = corner.endpoint()
    shown = corner("status", "--endpoint", f"{endpoint}x")
    assert shown.code == 9
    assert f"Did you mean {endpoint!r}?" in shown.err


@pytest.mark.parametrize(
    "words",
    [
        ["--hours", "0"],
        ["--hours", "much"],
        ["--hours", "nan"],
        ["--hours", "1e9"],
        ["--rows", "0"],
        ["--rows", "x"],
        ["--watch", "--every", "0"],
    ],
)
def test_bad_flags_are_refused_by_name(corner: Corner, words: list[str]) -> None:
    shown = corner("status", "--endpoint", "e", *words)
    assert shown.code == 2
    assert words[-2] in shown.err


def test_without_an_endpoint_the_error_lists_the_ways_to_name_one(corner: Corner) -> None:
    shown = corner("status")
    assert shown.code == 2
    assert "MME_ENDPOINT" in shown.err


def test_watching_shows_it_anew_and_ends_cleanly_on_an_interrupt(corner: Corner) -> None:
    endpoint = corner.endpoint()
    words = [sys.executable, "-m", "mme", "status", "--endpoint", endpoint, "--watch", "--every", "1", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout
        seen = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [item["status"] for item in seen] == ["InService"] * 2
        assert seen[0]["time"] < seen[1]["time"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert err == ""


def test_the_number_of_calls_grows_with_the_pages_and_not_with_versions_or_models(corner: Corner) -> None:
    """10,000 versions of 1,000 models are ten pages of a listing; each channel is a read of its own, whoever asks."""
    corner.publish(BERT)
    endpoint = corner.endpoint()
    asked_for: Counter[str] = Counter()
    used = clients(corner)
    for client in (used.sagemaker, used.cloudwatch, used.s3, used.logs, used.autoscaling):
        client.meta.events.register("before-call.*.*", lambda model, **_: asked_for.update([model.name]))
    status.read(used, endpoint, None)
    few = dict(asked_for)
    for at in range(60):
        corner.publish(f"model-{at % 20}-{at:012x}.tar.gz")
    asked_for.clear()
    now = status.read(used, endpoint, None)
    assert now.released
    assert (now.released.models, now.released.versions) == (21, 61)
    assert dict(asked_for) == few
    assert sum(few.values()) <= 14
    assert few["ListObjectsV2"] == 2  # versions, and channels
    assert few["GetMetricData"] == 1


def test_figures_add_up_over_the_hours_and_are_none_where_nothing_was_reported(corner: Corner) -> None:
    cloudwatch = corner.client("cloudwatch")
    end = datetime.now(timezone.utc)

    def put(name: str, value: float, ago: float, space: str = "AWS/SageMaker", variant: str = "one") -> None:
        dimensions = [{"Name": "EndpointName", "Value": corner.name}, {"Name": "VariantName", "Value": variant}]
        datum = {
            "MetricName": name,
            "Dimensions": dimensions,
            "Value": value,
            "Timestamp": end - timedelta(hours=ago),
        }
        cloudwatch.put_metric_data(Namespace=space, MetricData=[datum])

    for ago, value in ((0.1, 2e6), (0.5, 4e6), (5.0, 60e6)):
        put("ModelLoadingTime", value, ago)
        put("Invocations", 10, ago)
    put("ModelCacheHit", 1, 0.1)
    put("ModelCacheHit", 0, 0.2)
    put("LoadedModelCount", 3, 0.9, "/aws/sagemaker/Endpoints")
    put("LoadedModelCount", 7, 0.1, "/aws/sagemaker/Endpoints")
    figures = metrics.read(cloudwatch, corner.name, ["one", "two"], end, 1)
    one = figures["one"]
    assert one.requests == 20
    assert one.load == metrics.Timing(2, 3.0, 4.0)
    assert one.hit_ratio == 0.5
    assert one.loaded == 7
    assert one.download is None
    assert figures["two"].hit_ratio is None
    assert metrics.read(cloudwatch, corner.name, ["one"], end, 12)["one"].load == metrics.Timing(3, 22.0, 60.0)


def test_more_variants_than_one_call_takes_are_asked_in_several() -> None:
    """GetMetricData takes 500 queries; an endpoint may have ten variants and as many shadows, each with some thirty."""
    sizes = []

    class Paginator:
        def paginate(self, **asked_for: Any) -> list[Any]:
            queries = asked_for["MetricDataQueries"]
            sizes.append(len(queries))
            invocations = [
                query["Id"] for query in queries if query["MetricStat"]["Metric"]["MetricName"] == "Invocations"
            ]
            return [{"MetricDataResults": [{"Id": id, "Values": [3.0], "Timestamps": [None]} for id in invocations]}]

    class CloudWatch:
        def get_paginator(self, _: str) -> Paginator:
            return Paginator()

    names = [f"v{at}" for at in range(40)]
    figures = metrics.read(CloudWatch(), "e", names, datetime.now(timezone.utc), 1)  # type: ignore[arg-type]
    assert max(sizes) <= metrics.QUERIES
    assert len(sizes) > 1
    assert [figures[name].requests for name in names] == [3] * 40


def test_a_long_log_is_sampled_and_the_sample_stands_for_the_time_it_is_of() -> None:
    """One page of each part of the time; the part with twice the traffic counts twice as much."""
    end = datetime.fromtimestamp(1_800_000_000, timezone.utc)
    start = end.timestamp() - 3600

    class Logs:
        def filter_log_events(self, **asked_for: Any) -> dict[str, Any]:
            first, last = asked_for["startTime"], asked_for["endTime"]
            busy = first < (start + 1800) * 1000
            every = 500 if busy else 1000  # milliseconds between requests
            target = BERT if busy else GPT
            page = [
                {"logStreamName": "v/i", "timestamp": first + at * every, "message": json.dumps(asked(target))}
                for at in range(100)
            ]
            return {"events": [item for item in page if item["timestamp"] <= last], "nextToken": "more"}

    used = usage.read(Logs(), "e", end, 1, parts=4)
    assert used.sampled
    assert used.read == 400
    assert "sampled" in used.source
    bert, gpt = used.models
    assert (bert.target, gpt.target) == (BERT, GPT)
    assert bert.requests == pytest.approx(3600, rel=0.05)
    assert gpt.requests == pytest.approx(1800, rel=0.05)
    assert usage.most_used(used.models, 5, lambda target: target != BERT) == [GPT]


def test_pages_without_lines_are_passed_over_up_to_a_bound() -> None:
    calls = []

    class Logs:
        def filter_log_events(self, **asked_for: Any) -> dict[str, Any]:
            calls.append(asked_for)
            return {"events": [], "nextToken": "more"}

    used = usage.read(Logs(), "e", datetime.now(timezone.utc), 1, parts=2)
    assert used.models == ()
    assert len(calls) == 2 * usage.PAGES


def test_the_place_of_models_is_read_from_the_endpoint() -> None:
    assert facts.store_of("s3://my-bucket/models/") == releases.Store("my-bucket", "models/")
    assert facts.store_of("s3://my-bucket/a/models") == releases.Store("my-bucket", "a/models/")
    for other in ("s3://my-bucket/models/bert.tar.gz", "s3://my-bucket", "s3://my-bucket/", "", "https://x/y/"):
        assert facts.store_of(other) is None


def test_a_name_that_means_a_version_which_is_gone_is_still_shown(corner: Corner) -> None:
    corner.publish(BERT)
    store = releases.Store(corner.bucket)
    s3 = aws.s3_client(None)
    channel = channels.read(s3, store, "bert@old")
    channels.change(s3, store, channel, {BERT: 1}, action="promote", author="a")
    corner.s3.delete_object(Bucket=corner.bucket, Key=f"models/{BERT}")
    released = status.read_released(s3, store)
    assert (released.models, released.versions) == (0, 0)
    assert [item.name for item in released.meanings] == ["bert@old"]


def test_a_screen_reads_only_the_channels_that_it_shows(corner: Corner) -> None:
    """Those of what is used most, and so many as there are rows; how many names there are takes no reading."""
    used = "zebra-0123456789ab.tar.gz"
    for target in (BERT, used):
        corner.publish(target)
    store, s3 = releases.Store(corner.bucket), aws.s3_client(None)
    for name in ("bert@a", "bert@b", "bert@c", "zebra@a", "zebra@b"):
        target = used if name.startswith("zebra") else BERT
        channels.change(s3, store, channels.read(s3, store, name), {target: 1}, action="promote", author="a")
    # released last, so that its names come first
    later = "bert-ffffffffffff.tar.gz"
    corner.publish(later)
    read: list[str] = []
    s3.meta.events.register("provide-client-params.s3.GetObject", lambda params, **_: read.append(params["Key"]))
    every = status.read_released(s3, store)
    assert len(read) == 5
    read.clear()
    newest = [version.name for version in every.newest]
    first = status.shown_first(
        {item.name: item.model for item in every.meanings},
        [item.name for item in every.meanings if item.channel],
        newest,
    )[:2]
    found = status.read_released(s3, store, rows=2, most_used=lambda: [used, "no-version-of-ours"])
    assert sorted(read) == sorted({f"channels/{name}.json" for name in [*first, "zebra@a", "zebra@b"]})
    assert found.names_of(used) == every.names_of(used) == ("zebra", "zebra@a", "zebra@b")
    assert (found.names, found.channels) == (every.names, every.channels) == (7, 5)
    assert (found.models, found.versions) == (2, 3)


def test_whoever_looks_again_reads_only_the_channels_that_have_changed(corner: Corner) -> None:
    corner.publish(BERT)
    store, s3 = releases.Store(corner.bucket), aws.s3_client(None)
    names = ["bert@a", "bert@b", "bert@c"]
    for name in names:
        channels.change(s3, store, channels.read(s3, store, name), {BERT: 1}, action="promote", author="a")
    known: dict[str, channels.Channel] = {}
    status.read_released(s3, store, known)
    read: list[str] = []
    s3.meta.events.register("provide-client-params.s3.GetObject", lambda params, **_: read.append(params["Key"]))
    assert [item.name for item in status.read_released(s3, store, known).meanings] == ["bert", *names]
    assert read == []
    channels.keep_warm(s3, store, known["bert@b"], True)
    channels.delete(s3, store, known["bert@c"])
    read.clear()
    assert [item.name for item in status.read_released(s3, store, known).meanings] == ["bert", *names[:2]]
    assert read == ["channels/bert@b.json"]
    assert known["bert@b"].keep_warm
    assert known.keys() == {"bert@a", "bert@b"}


def test_looking_after_an_endpoint_loads_neither_torch_nor_transformers(corner: Corner) -> None:
    """They take seconds to import, and only packaging needs them."""
    corner.publish(BERT)
    endpoint = corner.endpoint()
    program = (
        "import sys\n"
        "import mme.tasks\n"
        "from invoke import Collection, Program\n"
        "for words in sys.stdin.read().splitlines():\n"
        "    Program(namespace=Collection.from_module(mme.tasks)).run(['invoke', *words.split()], exit=False)\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)), file=sys.stderr)\n"
    )
    bucket = f"--bucket {corner.bucket}"
    lines = [
        f"status --endpoint {endpoint}",
        f"logs --endpoint {endpoint}",
        f"doctor --endpoint {endpoint}",
        f"warm --endpoint {endpoint} --target {BERT} --log-seconds 0",
        f"releases {bucket}",
        f"channels {bucket}",
    ]
    done = subprocess.run([sys.executable, "-c", program], input="\n".join(lines), capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    assert f"{endpoint}: InService" in done.stdout


def test_the_times_that_s3_writes_are_read_as_boto3_reads_them(corner: Corner) -> None:
    """aws.s3_client has them read by the standard library."""
    corner.publish(BERT)
    listed = aws.s3_client(None).list_objects_v2(Bucket=corner.bucket)["Contents"][0]["LastModified"]
    plain = corner.s3.list_objects_v2(Bucket=corner.bucket)["Contents"][0]["LastModified"]
    assert listed == plain
    assert listed.utcoffset() == timedelta(0)
    head = aws.s3_client(None).head_object(Bucket=corner.bucket, Key=f"models/{BERT}")["LastModified"]
    assert head.utcoffset() == timedelta(0), "a time of another form"
