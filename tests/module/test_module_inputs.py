"""What the module refuses at plan time, and how it says so: in its own words, with the key at fault where it is a map.

The inputs are planned alone (``inputs/``), without the resources, which takes a fraction of a second each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mme import terraform

OFFLINE = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
RANGE = {"min_capacity": 1, "max_capacity": 2}
ALIAS = "arn:aws:kms:us-east-1:123456789012:alias/mine"
LATER = "2026-12-31T23:59:59Z"
TARGET = {"target": "bert-*", "p99_seconds": 1}


def scaled(**scaling: Any) -> dict[str, Any]:
    return {"variants": {"fine": {}, "wrong": {"autoscaling": {**RANGE, **scaling}}}}


def scheduled(schedule: Any) -> dict[str, Any]:
    return scaled(schedules={"night": schedule})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # nulls where there has to be something
    ("variants", {"variants": {"fine": {}, "wrong": None}}, "null says nothing about wrong"),
    ("variants", {"variants": {"wrong": None}}, "null says nothing about wrong"),
    ("variants", scheduled(None), '{"night":null}'),
    ("variants", scheduled({"schedule": None, "min_capacity": None, "max_capacity": None}), '"night":[null,null]'),
    ("variants", {"variants": {"wrong": {"autoscaling": {"min_capacity": None, "max_capacity": None}}}}, '"wrong"'),
    ("variants", {"variants": {"wrong": {"core_dump": {"destination_uri": None}}}}, "core_dump.destination_uri"),
    ("vpc", {"vpc": {"subnet_ids": None, "security_group_ids": None}}, "two subnets at least"),
    ("vpc", {"vpc": {"subnet_ids": [None, None], "security_group_ids": [None]}}, "two subnets at least"),
    ("vpc", {"vpc": {"subnet_ids": ["a", "b"], "security_group_ids": ["c"]}}, 'begins with "subnet-"'),
    ("bucket", {"bucket": {"former_kms_key_arns": [None]}}, "former_kms_key_arns has [null]"),
    ("bucket", {"bucket": {"access_log": {"bucket": None}}}, 'access_log.bucket is "null"'),
    ("role", {"role": {"policy_arns": {"wrong": None}}}, '"wrong":null'),
    ("invoke_policies", {"invoke_policies": {"fine": ["*"], "wrong": None}}, "allow nothing: wrong."),
    ("invoke_policies", {"invoke_policies": {"wrong": [None]}}, '{"wrong":[null]}'),
    ("deployment", {"deployment": {"rollback_on": [None]}}, "does not have: [null]"),
    ("deployment", {"deployment": {"rollback_alarm_names": [None]}}, "rollback_alarm_names has [null]"),
    ("alarms", {"alarms": {"targets": {"wrong": None}}}, '{"wrong":null}'),
    ("notifications", {"notifications": {"topic_arns": {"wrong": None}}}, '{"wrong":null}'),
    ("notifications", {"notifications": {"create_topic": True, "emails": [None]}}, "[null]"),
    ("notifications", {"notifications": {"create_topic": True, "subscriptions": {"wrong": None}}}, '{"wrong":null}'),
    ("data_capture", {"data_capture": {"modes": [None]}}, "modes is Input, Output or both"),
    ("data_capture", {"data_capture": {"json_content_types": [None]}}, "json_content_types has [null]"),
    # the key at fault
    ("tags", {"tags": {"fine": "x", "aws:wrong": "x"}}, 'Rename "aws:wrong".'),
    ("tags", {"tags": {"fine": "x", "wrong": "x" * 257}}, "Too long: wrong."),
    ("tags", {"tags": {"fine": "x", "wrong": "a (b)"}}, 'Something else is in "wrong".'),
    ("tags", {"tags": {"fine": "x", "wr!ong": "x"}}, 'Something else is in "wr!ong".'),
    ("tags", {"tags": {"fine": "x", "Team": "x", "team": "x"}}, 'Rename one of "Team", "team".'),
    ("tags", {"tags": {"wrong": "one\ntwo"}}, 'Something else is in "wrong".'),
    ("environment", {"environment": {"FINE": "x", "WR-ONG": "x"}}, 'Rename "WR-ONG".'),
    ("environment", {"environment": {"FINE": "x", "WRONG": "x" * 1025}}, "Too long: WRONG."),
    ("environment", {"environment": {f"E{n}": "x" for n in range(200)}}, "environment has 200 entries"),
    (
        "variants",
        {
            "environment": {f"E{n}": "x" for n in range(60)},
            "variants": {"wrong": {"environment": {f"F{n}": "x" for n in range(60)}}},
        },
        '{"wrong":120}',
    ),
    ("variants", {"variants": {"fine": {}, "wr_ong": {}}}, 'Rename "wr_ong".'),
    ("variants", {"variants": {"wrong": {"environment": {"A-B": "x"}}}}, '{"wrong":["A-B"]}'),
    ("variants", {"variants": {"wrong": {"environment": {"A": "x" * 1025}}}}, '{"wrong":["A"]}'),
    ("variants", {"variants": {"fine": {}, "wrong": {"instance_count": 0}}}, '{"fine":1,"wrong":0}'),
    ("variants", {"variants": {"wrong": {"volume_size_gb": 1.5}}}, '{"wrong":1.5}'),
    ("variants", {"variants": {"wrong": {"startup_timeout_seconds": 90.5}}}, '{"wrong":[null,90.5]}'),
    ("variants", {"variants": {"wrong": {"core_dump": {"destination_uri": "cores"}}}}, '"destination_uri":"cores"'),
    ("variants", scaled(), "nothing to act on"),
    ("variants", scaled(cpu_utilization=-1), "is more than 0"),
    ("variants", scaled(memory_utilization=101), '"wrong":101'),
    ("variants", scaled(cpu_utilization=1, scale_in_cooldown_seconds=-1), "scale_in_cooldown_seconds"),
    ("variants", scheduled({"schedule": "cron(banana)", **RANGE}), '"wrong":{"night":"cron(banana)"}'),
    ("variants", scheduled({"schedule": "cron(0 25 * * ? *)", **RANGE}), "cron(0 25 * * ? *)"),
    ("variants", scheduled({"schedule": "cron(0 20 * * ?)", **RANGE}), "six fields"),
    ("variants", scheduled({"schedule": "rate(1 days)", **RANGE}), "rate(1 days)"),
    ("variants", scheduled({"schedule": "at(tomorrow)", **RANGE}), "at(tomorrow)"),
    ("variants", scheduled({"schedule": "rate(1 day)", "min_capacity": 2, "max_capacity": 1}), '"night":[2,1]'),
    (
        "variants",
        scheduled({"schedule": "rate(1 day)", **RANGE, "start_time": "2026-12-31T23:59:59+01:00"}),
        "are in UTC",
    ),
    ("variants", scaled(schedules={"mon/fri": {"schedule": "rate(1 day)", **RANGE}}), '"wrong":["mon/fri"]'),
    ("variants", scaled(schedules={" night": {"schedule": "rate(1 day)", **RANGE}}), '"wrong":[" night"]'),
    (
        "variants",
        scheduled({"schedule": "rate(1 day)", **RANGE, **dict.fromkeys(("start_time", "end_time"), LATER)}),
        "not before its end_time",
    ),
    # keys by alias, policies that are none, statements that would replace the module's
    ("logs", {"logs": {"kms_key_arn": ALIAS}}, f'logs.kms_key_arn is "{ALIAS}"'),
    ("logs", {"logs": {"kms_key_arn": "alias/mine"}}, "not its ID or alias"),
    ("logs", {"logs": {"create": False, "kms_key_arn": ALIAS.replace("alias/mine", "key/1")}}, "Leave it out"),
    ("notifications", {"notifications": {"create_topic": True, "kms_key_arn": ALIAS}}, "not its ID or alias"),
    ("notifications", {"notifications": {"topic_arns": {"this": "arn:aws:sns:x:123456789012:y"}}}, "another name"),
    ("volume_kms_key_arn", {"volume_kms_key_arn": ALIAS}, "not its ID or alias"),
    ("bucket", {"bucket": {"kms_key_arn": ALIAS}}, "not its ID or alias"),
    ("bucket", {"bucket": {"name": "two..dots"}}, "single dots"),
    ("bucket", {"bucket": {"name": "192.168.0.1"}}, "no IP address"),
    ("bucket", {"bucket": {"name": "amzn-s3-demo-bucket"}}, "keeps for itself"),
    ("bucket", {"bucket": {"create": False, "name": "express--use1-az4--x-s3"}}, "keeps for itself"),
    ("bucket", {"name": "Sthree-search"}, "Give another bucket.name"),
    ("bucket", {"bucket": {"noncurrent_version_expiration_days": 1.5}}, "whole numbers"),
    ("bucket", {"bucket": {"policy_json": "{"}}, "bucket.policy_json is not a policy"),
    ("bucket", {"bucket": {"policy_json": '{"Statement":[{"Sid":"DenyPlainHttp"}]}'}}, "Choose another Sid"),
    ("role", {"role": {"policy_json": "nothing"}}, "role.policy_json is not a policy"),
    ("role", {"role": {"policy_json": '{"Statement":{"Sid":"ReadModels"}}'}}, "Choose a Sid"),
    ("data_capture", {"data_capture": {"kms_key_arn": ALIAS}}, "not its ID or alias"),
    ("data_capture", {"data_capture": {"json_content_types": ["json"]}}, "such as application/json"),
    ("model_prefix", {"model_prefix": "deep/channels/"}, "Choose another last folder"),
    ("model_prefix", {"model_prefix": "plans/"}, "Choose another last folder"),
    ("model_prefix", {"model_prefix": "/models"}, 'model_prefix is "/models"'),
    ("name", {"name": "a_b"}, 'name is "a_b"'),
    # updates that could not end
    (
        "deployment",
        {
            "variants": {"wrong": {"instance_count": 10}},
            "deployment": {
                "strategy": "LINEAR",
                "step": {"type": "CAPACITY_PERCENT", "value": 10},
                "wait_seconds": 3600,
            },
        },
        "36000 seconds for wrong",
    ),
    (
        "deployment",
        {"deployment": {"timeout_seconds": 600, "wait_seconds": 3600, "termination_wait_seconds": 3600}},
        "7200 seconds for primary",
    ),
    ("deployment", {"deployment": {"timeout_seconds": 600, "wait_seconds": 600}}, "600 seconds for primary"),
    ("deployment", {"deployment": {"wait_seconds": 3600}}, "3600 seconds for primary"),
    (
        "deployment",
        {
            "variants": {"wrong": {"instance_count": 20}},
            "deployment": {"strategy": "ROLLING", "step": {"value": 1}, "wait_seconds": 300},
        },
        "6000 seconds for wrong",
    ),
    ("deployment", {"deployment": {"wait_seconds": 1.5}}, "whole numbers"),
    ("deployment", {"deployment": {"rollback_alarm_names": ["arn:aws:cloudwatch:x:1:alarm:y"]}}, "not their ARNs"),
    ("deployment", {"deployment": {"rollback_enabled": False}}, "Set rollback_on = []"),
    # alarms and what reads the access log
    ("alarms", {"alarms": {"settings": {"cpu": {}, "latency": {}}}}, "does not have: cpu."),
    ("alarms", {"alarms": {"settings": {"latency": {"period_seconds": 45}}}}, '{"latency":45}'),
    ("alarms", {"alarms": {"settings": {"latency": {"evaluation_periods": 0}}}}, "whole numbers, 1 or more"),
    ("alarms", {"alarms": {"settings": {"latency": {"datapoints_to_alarm": 6}}}}, '{"latency":[6,null]}'),
    ("alarms", {"alarms": {"settings": {"disk": {"period_seconds": 43260}}}}, '{"disk":[43260,null]}'),
    ("alarms", {"alarms": {"settings": {"errors_5xx": {"enabled": False}}}}, "needs: errors_5xx."),
    ("alarms", {"alarms": {"targets": {"wrong": {**TARGET, "p99_seconds": 0}}}}, '"p99_seconds":0'),
    (
        "alarms",
        {"alarms": {"targets": {"fine": TARGET, "latency": TARGET}}, "variants": {"target": {}}},
        "the name of an alarm (latency)",
    ),
    ("alarms", {"alarms": {"targets": {"fine": TARGET}}, "logs": {"create": False}}, "Set logs.create = true"),
    ("invoke_policies", {"invoke_policies": {"Team": ["a"], "team": ["b"]}}, "differ in capitals only"),
    (
        "invoke_policies",
        {"invoke_policies": {"a": ["a"], "x-eu-west-1-publish": ["b"]}},
        'Rename "x-eu-west-1-publish".',
    ),
    ("invoke_policies", {"invoke_policies": {"eu-west-1-invoke-x": ["b"]}}, 'Rename "eu-west-1-invoke-x".'),
    ("contributor_insights", {"contributor_insights": True, "logs": {"create": False}}, "Set logs.create = true"),
]

TAKEN: list[dict[str, Any]] = [
    # null is as good as nothing
    dict.fromkeys(
        (
            *("create", "revision", "tags", "image_uri", "huggingface", "environment", "model_cache_enabled"),
            *("variants", "network_isolation", "vpc", "volume_kms_key_arn", "bucket", "model_prefix", "role"),
            *("invoke_policies", "create_publisher_policy", "deployment", "alarms", "dashboard"),
            *("contributor_insights", "logs", "notifications", "data_capture"),
        )
    ),
    {"tags": {"a": None}, "environment": {"A": None}, "alarms": {"settings": {"latency": None}}},
    {"variants": {"a": {"autoscaling": None, "core_dump": None, "environment": None, "weight": None}}},
    {"bucket": {"access_log": None, "former_kms_key_arns": None}, "role": {"policy_arns": None, "policy_json": None}},
    # what fits just so
    {"deployment": {"timeout_seconds": 601, "wait_seconds": 600}},
    {"deployment": {"wait_seconds": 3000}},
    {"variants": {"a": {"weight": 0.9}, "b": {"weight": 0}}},
    scheduled({"schedule": "cron(0/15 8-17 ? * MON-FRI *)", **RANGE, "start_time": "2026-12-31T23:59:59Z"}),
    scheduled({"schedule": "cron(0 20 L * ? 2026,2027)", **RANGE}),
    scheduled({"schedule": "at(2026-12-31T23:59:59)", **RANGE}),
    scheduled({"schedule": "rate(12 hours)", **RANGE}),
    scaled(schedules={"night on weekdays": {"schedule": "rate(1 day)", **RANGE}}, cpu_utilization=70),
    {"tags": {"Kostenstelle Büro/Süd": "e-mail=a@b.example + _.:", "empty": ""}},
    {"invoke_policies": {"may-publish": ["a"], "re-invoke-all": ["a"], "v-2-invoke": ["b"]}},
    {"bucket": {"name": "a.name.with.dots"}, "alarms": {"targets": {"latency": TARGET}}},
]


@pytest.fixture(scope="module")
def inputs(module_copy: Path) -> Path:
    folder = module_copy / "tests" / "module" / "inputs"
    terraform.run(["init", "-input=false", "-no-color"], folder, OFFLINE)
    return folder


def plan(folder: Path, given: dict[str, Any], tmp_path: Path) -> tuple[int, str]:
    """The exit code of a plan, and its words on one line, without the frame around them."""
    values = tmp_path / "values.tfvars.json"
    values.write_text(json.dumps({"name": "unit", **given}))
    words = ["plan", "-input=false", "-no-color", "-lock=false", f"-var-file={values}"]
    done = terraform.run(words, folder, OFFLINE, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).replace("│", " ").split())


@pytest.mark.parametrize(("variable", "given", "words"), REFUSED, ids=[f"{n}-{c[0]}" for n, c in enumerate(REFUSED)])
def test_a_bad_input_is_refused_in_the_modules_own_words(
    variable: str, given: dict[str, Any], words: str, inputs: Path, tmp_path: Path
) -> None:
    code, printed = plan(inputs, given, tmp_path)
    assert code == 1, given
    assert words in printed
    # Nothing but validations speaks: no "Invalid function argument", no "Attempt to get attribute from null value".
    assert printed.count("Error: ") == printed.count("Error: Invalid value for variable"), printed
    assert printed.count("Error: Invalid value for variable") == printed.count(
        "This was checked by the validation rule"
    )


@pytest.mark.parametrize("given", TAKEN, ids=range(len(TAKEN)))
def test_a_good_input_is_taken(given: dict[str, Any], inputs: Path, tmp_path: Path) -> None:
    code, printed = plan(inputs, given, tmp_path)
    assert code == 0, printed
