"""A plan for the traffic that a live endpoint has: `invoke capacity plan --live`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from operate_tools import Corner


def test_a_plan_for_the_traffic_of_a_live_endpoint(
    corner: Corner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    endpoint = corner.endpoint()
    targets = [corner.publish(f"m{n}-00000000000a.tar.gz", times=2) for n in range(3)]
    for number in range(12):
        corner.invoke(endpoint, targets[number % 3])
    keys = ("archive_bytes", "disk_bytes", "weights_bytes", "private_bytes", "parked_bytes", "load_seconds")
    sample = dict.fromkeys((*keys, "wake_seconds", "answer_seconds", "answer_cores"), 0.01)
    document = {"format": 1, "container": "ours", "models": {targets[0]: sample}}
    (tmp_path / "needs.json").write_text(json.dumps(document))
    given = ("--bucket", corner.bucket, "--needs", "needs.json", "--live", "--endpoint", endpoint)
    fleet = ("--type", "ml.m5.large", "--hours", "1")
    vague = corner("capacity", "plan", *given, *fleet)
    assert vague.code != 0
    assert "do not tell how popular the popular models are" in vague.err, "all models are loaded"
    done = corner(
        "capacity", "plan", *given, *fleet, "--zipf", "0.9", "--json", "--tfvars", "x.tfvars.json", "--publish", "now"
    )
    assert done.code == 0, done.err
    assert done.json["models"] == 3
    assert any(f"12 requests of {endpoint} in 1 h, Zipf 0.90" in line for line in done.json["assumptions"])
    variant = json.loads((tmp_path / "x.tfvars.json").read_text())["variants"]["primary"]
    assert 1 <= variant["autoscaling"]["invocations_per_instance"] <= 12
    assert corner.s3.list_objects_v2(Bucket=corner.bucket, Prefix="plans/")["Contents"][0]["Key"] == "plans/now.json"
    gone = corner("capacity", "plan", *given[:-1], "nobody", *fleet)
    assert gone.code != 0
    assert "nobody" in gone.err
