"""What the planner reads: models, needs, traces, logs, laws, metrics; and what it says of bad ones."""

from __future__ import annotations

import gzip
import json
import uuid
import zipfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from capacity_files import written

from mme.capacity import cells, listing, live, trace
from mme.capacity.caches import characteristic_time, che_hit_ratio
from mme.capacity.needs import Models, models
from mme.capacity.simulate import Requests
from mme.container.front.log import Log
from mme.errors import EndpointError, UsageError
from mme.local import LocalAws

NEEDS = {
    "archive_bytes": 100,
    "disk_bytes": 110,
    "weights_bytes": 90,
    "private_bytes": 15,
    "parked_bytes": 1,
    "load_seconds": 0.06,
    "wake_seconds": 0.05,
    "answer_seconds": 0.01,
    "answer_cores": 1.5,
}


def three() -> Models:
    return models(["bert", "gpt2", "tiny"], disk=1, active=1, answer=[0.1, 0.2, 0.0])


# ---- models


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("90MB", 90e6),
        ("1.5 GiB", 1.5 * 2**30),
        ("12", 12),
        ("7k", 7000),
        ("-3MB", -3e6),
        ("MB", None),
        ("1,5GB", None),
        ("", None),
        ("nan", None),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: float | None) -> None:
    assert cells.amount(text) == size


def test_models_come_from_a_csv_file(tmp_path: Path) -> None:
    path = written(tmp_path, "name,size,answer_seconds\nbert,90MB,0.01\n\ngpt2,500000000,\n")
    rows = listing.read_csv(path)
    assert [(row.name, row.size, dict(row.given), row.line) for row in rows] == [
        ("bert", 90_000_000, {"answer_seconds": 0.01}, 2),
        ("gpt2", 500_000_000, {}, 4),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("name;size\na;90MB\n", "line 1: the cells are separated by semicolons"),
        ("name\nbert\n", "line 1: there is no column 'size'"),
        ("name,size,ram\nbert,1,1\n", "line 1: the column 'ram' is not known"),
        ("name,size,size\nbert,1,1\n", "line 1: the column 'size' is there twice"),
        ("name,size\n", "a head and no model"),
        ("name,size\nbert,90MB,3\n", "line 2: 3 cells where the head has 2"),
        ("name,size\nbert,large\n", "line 2: size is 'large'"),
        ("name,size\nbert,1\ngpt2,-5MB\n", "line 3: size is -5MB; it cannot be below 0"),
        ("name,size\nbert,0\n", "line 2: size is 0; every model takes some"),
        ("name,size,active\nbert,1,0\n", "line 2: active is 0; every model takes some"),
        ("name,size,answer_seconds\nbert,1,0.0\n", "line 2: answer_seconds is 0.0; every model takes some"),
        ("name,size\nbert,\n", "line 2: size is ''"),
        ("name,size\nbert,1\nbert,2\n", "line 3: the model 'bert' is there already, on line 2"),
        ("name,size\n,1\n", "line 2: the model has no name"),
        ("name,size,cores\nbert,1,nan\n", "line 2: cores is 'nan'"),
    ],
)
def test_a_bad_list_of_models_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        listing.read_csv(written(tmp_path, text))
    assert words in str(caught.value)
    assert "file.csv" in str(caught.value)


def test_measured_needs_fill_what_a_row_leaves_out(tmp_path: Path) -> None:
    document = {
        "format": 1,
        "container": "ours",
        "day": "2026-11-26",
        "processor": "X",
        "models": {"small": NEEDS, "large": {**NEEDS, "archive_bytes": 1000, "answer_seconds": 0.5}},
        "answer_spread": [0.9, 1.1],
        "wake_spread": [0.5, 1.5],
        "load_cores": 1.5,
    }
    needs = listing.read_needs(written(tmp_path, json.dumps(document), "needs.json"))
    rows = [
        listing.Row("a", 200, {}),  # nearest is small, twice as large
        listing.Row("b", 2000, {"answer_seconds": 0.7}),
        listing.Row("small", 777, {}),  # measured by this name: taken as it is
    ]
    made = listing.combine(rows, needs)
    assert made.disk.tolist() == [220, 220, 110]
    assert made.active.tolist() == [15 + 180, 15 + 180, 105]
    assert made.answer.tolist() == [0.01, 0.7, 0.01]
    assert made.cores.tolist() == [1.5, 1.5, 1.5]
    assert made.answer_spread == (0.9, 1.1)
    assert made.load_spread == (1.0,)
    assert made.wake_spread == (0.5, 1.5)
    assert (made.load_cores, made.wake_cores) == (1.5, 1.0)
    assert made.origin == "measured 2026-11-26 on X"


def test_what_nobody_knows_is_asked_for() -> None:
    with pytest.raises(UsageError) as caught:
        listing.combine([listing.Row("bert", 1, {"active": 2}, 7)], None)
    assert "load_seconds, answer_seconds of the model 'bert' (line 7)" in str(caught.value)
    assert "invoke capacity measure" in str(caught.value)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a file of measured needs"),
        ('{"format": 1, "container": "other", "models": {"a": {}}}', "container must be one of"),
        ('{"format": 1, "container": "ours", "models": {"a": {}}}', "models.a.archive_bytes is None"),
        (
            json.dumps({"format": 1, "container": "ours", "models": {"a": {**NEEDS, "load_seconds": -1}}}),
            "models.a.load_seconds is -1",
        ),
        (
            json.dumps({"format": 1, "container": "ours", "models": {"a": NEEDS}, "load_spread": []}),
            "load_spread must be a list",
        ),
        (json.dumps({"format": 1, "container": ["ours"], "models": {"a": NEEDS}}), "container must be one of"),
        *(
            (
                json.dumps({"format": 1, "container": "ours", "models": {"a": NEEDS}, "wake_cores": cores}),
                f"wake_cores is {cores!r}; it must be a number above 0",
            )
            for cores in (0, -1, "two", True)
        ),
        (
            json.dumps({"format": 1, "container": "ours", "models": {"a": NEEDS}, "batch_shared": "half"}),
            "batch_shared is 'half'; it must be a number from 0 to 1",
        ),
        (
            json.dumps({"format": 1, "container": "ours", "models": {"a": NEEDS}, "base_bytes": [1]}),
            "base_bytes is [1]",
        ),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_file_of_needs_is_refused(tmp_path: Path, document: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        listing.read_needs(written(tmp_path, document, "needs.json"))
    assert words in str(caught.value)


# ---- traces


def test_a_trace_is_read_in_seconds_or_dates(tmp_path: Path) -> None:
    asked = trace.read_csv(written(tmp_path, "time,model\n10,bert\n10.5,tiny\n12,bert\n"), three())
    assert asked.time.tolist() == [0, 0.5, 2]
    assert asked.model.tolist() == [0, 2, 0]
    dated = "time,model,seconds\n2026-11-26T21:00:00Z,gpt2,0.4\n2026-11-26T22:00:01+01:00,bert,0.05\n"
    asked = trace.read_csv(written(tmp_path, dated), three())
    assert asked.time.tolist() == [0, 1]
    assert asked.factor is not None
    assert asked.factor.tolist() == pytest.approx([2.0, 0.5])
    moments = ("2026-11-26T21:00:00.5Z", "2026-11-26 21:00:00.750000000", "2026-11-26T22:00:01.250+01:00")
    finer = "time,model\n" + "".join(f"{moment},bert\n" for moment in moments)
    assert trace.read_csv(written(tmp_path, finer), three()).time.tolist() == pytest.approx([0, 0.25, 0.75])


@pytest.mark.parametrize("text", ["time,model\n", "time,model\n5,gpt2\n"])
def test_an_empty_trace_and_one_request_are_right(tmp_path: Path, text: str) -> None:
    asked = trace.read_csv(written(tmp_path, text), three())
    assert len(asked) == text.count("\n") - 1
    assert asked.seconds == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: the head is ''"),
        ("model,time\n", "line 1: the head is 'model,time'"),
        ("time;model\n1;bert\n", "line 1: the cells are separated by semicolons"),
        ("time\tmodel\n1\tbert\n", "line 1: the cells are separated by tabs"),
        ("time,model\n5,bert\n4,bert\n", "line 3: time 4 is before the line above"),
        ("time,model\n5,bort\n", "line 2: there is no model 'bort'"),
        ("time,model\nnoon,bert\n", "line 2: time is 'noon'"),
        ("time,model\n1764201600000,bert\n", "line 2: time is 1764201600000, which is no number of seconds since 1970"),
        ("time,model,seconds\n1,bert,2026-11-26T21:00:00Z\n", "line 2: seconds is '2026-11-26T21:00:00Z'"),
        ("time,model\n1,bert\n,bert\n", "line 3: time is missing"),
        ("time,model\n1,\n", "line 2: model is missing"),
        ("time,model\n1,bert,0.1\n", "line 2: 3 cells where the head has 2"),
        ("time,model,seconds\n1,bert,-0.1\n", "line 2: seconds is '-0.1'"),
        ("time,model,seconds\n1,bert,inf\n", "line 2: seconds is 'inf'"),
        (
            "time,model\n5,bert\n2026-11-26T21:00:00Z,bert\n",
            "line 3: time 2026-11-26T21:00:00Z is a date, others are not",
        ),
        (
            "time,model\n2026-11-26T21:00:00Z,bert\n1795726801,bert\n",
            "line 3: time 1795726801 is seconds, others are not",
        ),
        ("time,model\n0,bert\n1,bert\n9000,bert\n", "line 4: nobody asked for 2.5 hours before this line"),
        ("time,model\n0,bert\n1,bert\n2,bert\n9000,bert\n", "line 5: nobody asked for 2.5 hours before this line"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        trace.read_csv(written(tmp_path, text), three())
    assert words in str(caught.value)


def test_rows_without_text_are_left_out_as_spreadsheets_write_them(tmp_path: Path) -> None:
    assert len(trace.read_csv(written(tmp_path, "time,model\n1,bert\n , \n2,tiny\n,\n"), three())) == 2
    assert [row.name for row in listing.read_csv(written(tmp_path, "name,size\n,\nbert,1\n\n,\n"))] == ["bert"]


@pytest.mark.parametrize("read", [listing.read_csv, lambda path: trace.read_csv(path, three())])
def test_a_file_that_is_not_text_in_utf8_is_refused(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "file.csv"
    rows = (f"m{n},1" for n in range(10_000)) if read is listing.read_csv else ("1,bert" for _ in range(10_000))
    head = "name,size" if read is listing.read_csv else "time,model"
    path.write_bytes("\n".join([head, *rows]).encode() + b"\n\xff\n")
    with pytest.raises(UsageError, match=r"file\.csv is not a CSV file in UTF-8"):
        read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "none.csv")


def test_traces_and_logs_may_be_compressed(tmp_path: Path) -> None:
    """As logs are that were rotated, and exports from CloudWatch Logs."""
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbftime,model\r\n1,bert\r\n2,tiny\r\n"))
    assert trace.read_csv(path, three()).model.tolist() == [0, 2]
    path.write_bytes(gzip.compress(b"name,size\nbert,1\n"))
    assert [row.name for row in listing.read_csv(path)] == ["bert"]
    line = json.dumps({"time": 1, "event": "invoke", "target": "tiny", "total_ms": 1, "predict_ms": 1})
    log = gzip.compress(line.encode())
    path.write_bytes(log)
    assert trace.read_access_log(path, three()).model.tolist() == [2]
    for broken in (log[:-12], log[:12] + b"\0" * 40, log[:-6] + b"\1\2" + log[-4:]):
        path.write_bytes(broken)
        with pytest.raises(UsageError, match=r"file\.gz is damaged"):
            trace.read_access_log(path, three())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("trace.csv", "time,model\n1,bert\n")
    with pytest.raises(UsageError, match=r"file\.gz is a ZIP archive"):
        trace.read_csv(path, three())


def test_a_gap_can_be_meant(tmp_path: Path) -> None:
    path = written(tmp_path, "time,model\n0,bert\n1,bert\n2,bert\n9000,bert\n")
    assert len(trace.read_csv(path, three(), gaps=True)) == 4


def test_models_are_found_by_their_target_and_by_the_name_without_the_version(tmp_path: Path) -> None:
    listed = models(["bert-0123456789ab.tar.gz", "x/gpt2-ba9876543210.tar.gz"], disk=1, active=1)
    text = "time,model\n1,bert\n2,bert-0123456789ab.tar.gz\n3,x/gpt2\n4,bert-0123456789ab\n"
    assert trace.read_csv(written(tmp_path, text), listed).model.tolist() == [0, 0, 1, 0]
    two = models(["bert-0123456789ab.tar.gz", "bert-ba9876543210.tar.gz"], disk=1, active=1)
    with pytest.raises(UsageError, match="several versions are called 'bert'"):
        trace.read_csv(written(tmp_path, "time,model\n1,bert\n"), two)


def test_the_busiest_minute_of_a_trace_and_its_quietest() -> None:
    """Ten minutes and a part of one more: 60 requests in each minute, 600 in the fourth, 6 in the last whole one."""
    counts = [60, 60, 60, 600, *[60] * 5, 6, 30]
    time = np.concatenate([60 * at + np.linspace(0, 59, count) for at, count in enumerate(counts)])
    asked = Requests(time, np.zeros(len(time), np.int32))
    assert trace.minutes(asked) == (10.0, 0.1)
    assert trace.minutes(Requests(time[time < 540], np.zeros(int((time < 540).sum()), np.int32))) is None


def test_the_containers_log_is_a_trace(tmp_path: Path) -> None:
    def line(time: float, target: str, total: float, predict: float, batch: int = 1) -> str:
        fields = {"time": time, "level": "info", "event": "invoke", "model": "hash", "target": target}
        return json.dumps({**fields, "total_ms": total, "predict_ms": predict, "decode_ms": 0, "batch": batch})

    text = "\n".join(
        [
            json.dumps({"time": 1, "event": "load", "model": "hash"}),
            "what a handler prints {",
            line(102.0, "gpt2", 2000, 400, batch=2),
            f"2026-11-26T21:00:00 {line(100.5, 'bert', 100, 50)}",
        ]
    )
    asked = trace.read_access_log(written(tmp_path, text, "log"), three())
    assert asked.model.tolist() == [1, 0]
    assert asked.time.tolist() == pytest.approx([0, 0.4])
    assert asked.factor is not None
    # gpt2, which takes 0.2 seconds: 0.4 for two, of which 0.3 of an answer are paid once. bert takes 0.1: 0.05.
    assert asked.factor.tolist() == pytest.approx([0.4 / (0.3 + 0.7 * 2) / 0.2, 0.5])
    refused = json.dumps({"time": 103, "event": "invoke", "target": "tiny", "status": 503, "total_ms": 1})
    asked = trace.read_access_log(written(tmp_path, f"{text}\n{refused}\n", "log"), three())
    assert asked.factor is not None
    assert asked.factor[-1] == 1
    with pytest.raises(UsageError, match="line 1: there is no model 'other'"):
        trace.read_access_log(written(tmp_path, line(1, "other", 1, 1), "log"), three())
    for field, value in (
        ("total_ms", -5), ("predict_ms", "long"), ("predict_ms", None), ("batch", -1), ("batch", "two"),
        ("time", 1.7e12), ("time", "noon"), ("time", None), ("decode_ms", float("nan")), ("total_ms", float("inf")),
    ):  # fmt: skip
        wrong = json.dumps({**json.loads(line(1, "bert", 1, 1)), field: value})
        with pytest.raises(UsageError, match=f"line 1: {field} is"):
            trace.read_access_log(written(tmp_path, wrong, "log"), three())
    with pytest.raises(UsageError, match="has no invocation"):
        trace.read_access_log(written(tmp_path, "nothing\n", "log"), three())


def test_a_log_that_the_container_wrote_is_a_trace(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = Log(fd=file.fileno())
        log("info", "start", port=8080)
        log("info", "invoke", model="hash", target="bert", total_ms=4.5, predict_ms=3.25, batch=1)
        log("info", "invoke", model="hash", target="gpt2", total_ms=2.5, predict_ms=800.0, batch=2)
        log.close()
    asked = trace.read_access_log(tmp_path / "log", three())
    assert sorted(asked.model.tolist()) == [0, 1]
    assert 0 <= asked.seconds < 60
    assert asked.factor is not None


@pytest.mark.parametrize(
    ("need", "words"),
    [
        ({"disk": 1e30}, "Model b: disk is 1e+30, which nothing has"),
        ({"cores": 0}, "Model b: cores is 0"),
        ({"active": float("inf")}, "Model b: active is inf"),
        ({"active": -1}, "Model b: active is -1"),
    ],
)
def test_needs_that_no_model_has_are_refused(need: dict[str, float], words: str) -> None:
    usual = {"disk": 1.0, "active": 1.0, "cores": 1.0}
    with pytest.raises(UsageError) as caught:
        models(["a", "b"], **{key: [value, need.get(key, value)] for key, value in usual.items()})  # type: ignore[arg-type]
    assert words in str(caught.value)


# ---- laws


def test_a_laws_requests_have_its_rate_and_its_popularity() -> None:
    asked, rates = trace.generate(trace.Law(50, 1.0, 2000), 100, seed=3)
    assert len(asked) == pytest.approx(100_000, rel=0.02)
    assert rates.sum() == pytest.approx(50)
    seen = np.bincount(asked.model, minlength=100) / len(asked)
    assert np.abs(seen - rates / 50).max() < 0.01
    assert np.all(np.diff(asked.time) >= 0)


def test_days_swing_bursts_burst_and_tenants_come_and_go() -> None:
    swinging, _ = trace.generate(trace.Law(1, 0.5, 86400, swing=0.8), 10)
    day, night = ((swinging.time < 43200).sum(), (swinging.time >= 43200).sum())
    assert day / night == pytest.approx((1 + 0.8 * 2 / np.pi) / (1 - 0.8 * 2 / np.pi), rel=0.1)
    calm, _ = trace.generate(trace.Law(10, 0.5, 7200), 10)
    bursting, _ = trace.generate(trace.Law(10, 0.5, 7200, bursts=(6, 10, 20)), 10)
    most = [np.histogram(asked.time, bins=720)[0].max() for asked in (calm, bursting)]
    assert most[1] > 3 * most[0]
    churning, rates = trace.generate(trace.Law(20, 1.2, 86400, churn=1.0), 50)
    first, last = (np.bincount(part, minlength=50) for part in np.array_split(churning.model, 8)[::7])
    assert np.argmax(first) == np.argmax(rates)
    assert np.corrcoef(first, last)[0, 1] < 0.9


@pytest.mark.parametrize(
    "law",
    [
        trace.Law(0, 1, 10),
        trace.Law(1, -1, 10),
        trace.Law(1, 1, 0),
        trace.Law(1, 1, 10, swing=2),
        trace.Law(1, 1, 10, bursts=(1, 0.5, 1)),
        trace.Law(1, 1, 10, churn=-1),
        trace.Law(1e6, 1, 1e6),
    ],
)
def test_what_is_no_law_is_refused(law: trace.Law) -> None:
    with pytest.raises(UsageError):
        trace.generate(law, 10)


def test_planning_looks_at_the_busiest_time_with_a_burst() -> None:
    law = trace.Law(10, 0.9, 3600, swing=0.5, bursts=(2, 4, 60))
    asked, rates = trace.busiest_of(law, 20, 15_000)
    assert rates.sum() == pytest.approx(15)
    counts = np.histogram(asked.time, bins=np.arange(0, asked.time[-1], 10))[0] / 10
    assert np.median(counts) == pytest.approx(15, rel=0.15)
    assert counts.max() > 40


# ---- caches in theory


def test_the_characteristic_time_fills_the_cache() -> None:
    rates = 1.0 / np.arange(1, 101)
    sizes = np.full(100, 3)
    time = characteristic_time(rates, sizes, 90)
    assert (sizes * (1 - np.exp(-rates * time))).sum() == pytest.approx(90)
    assert characteristic_time(rates, sizes, 300) == float("inf")
    assert che_hit_ratio(rates, sizes, 300) == 1.0
    assert che_hit_ratio(np.zeros(3), np.ones(3), 1) == 1.0


# ---- CloudWatch


def test_a_live_endpoints_metrics_are_traffic(local_aws: LocalAws) -> None:
    cloudwatch: Any = boto3.client(
        "cloudwatch",
        endpoint_url=local_aws.url,
        region_name="us-east-1",
        aws_access_key_id=local_aws.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=local_aws.env["AWS_SECRET_ACCESS_KEY"],
    )
    name = f"e{uuid.uuid4().hex[:8]}"
    end = datetime.now(timezone.utc).replace(second=0, microsecond=0)
    dimensions = [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": "v"}]
    # Ninety requests of one minute and thirty of another, with other shares of hits, and one of the minute that runs.
    minutes = [(10, 90, 81, 45.0), (20, 30, 9, 35.0)]
    for minute, requests, hits, loaded in minutes:
        moment = end - timedelta(minutes=minute, seconds=-5)
        counted = {"SampleCount": requests, "Sum": hits, "Minimum": 0, "Maximum": 1}
        for space, metric, values in (
            ("AWS/SageMaker", "Invocations", {"Value": float(requests)}),
            ("AWS/SageMaker", "ModelCacheHit", {"StatisticValues": counted}),
            ("/aws/sagemaker/Endpoints", "LoadedModelCount", {"Value": loaded}),
        ):
            data = {"MetricName": metric, "Dimensions": dimensions, "Timestamp": moment, **values}
            cloudwatch.put_metric_data(Namespace=space, MetricData=[data])
    seen = live.read(cloudwatch, name, ["v"], end + timedelta(seconds=30), 1.0)
    assert (seen.per_minute.sum(), seen.per_minute.max(), seen.hit_ratio, seen.loaded) == (120, 90, 0.75, 40)
    assert list(np.flatnonzero(seen.per_minute)) == [39, 49], "CloudWatch's minutes, the running one last"
    power = live.exponent(seen, 200)
    assert power is not None
    weights = 1.0 / np.arange(1, 201) ** power
    assert che_hit_ratio(weights, np.ones(200), 40) == pytest.approx(0.75, abs=0.001)
    asked, rates = live.requests(seen, 200, power)
    assert len(asked) == 120
    assert rates.sum() == pytest.approx(120 / 3600)
    assert live.exponent(seen, 30) is None
    with pytest.raises(EndpointError, match="had no invocations"):
        live.read(cloudwatch, "nobody", ["v"], end, 1.0)
