"""Documented changes, applied there and back, with an empty second plan after each; and what goes wrong in between.

Each test is the life of one endpoint. They share one local AWS and run two at a time, since most of the time goes into
waiting for Terraform.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from caller import Caller
from lives_of_inputs import (
    ARCHIVE,
    IMAGE,
    New,
    every_input_may_be_unknown,
    former_keys_still_open_archives,
    values_come_back_as_they_were,
    what_it_waits_for_changes_nothing_about_it,
)
from stack import archive, environment, refused

from mme import terraform
from mme.errors import TerraformError
from mme.local import LocalAws

pytestmark = pytest.mark.slow


def a_bucket_with_archives_keeps_its_protection(new: New) -> None:
    """Terraform takes what depends on a bucket away first: here it asks before it does."""
    caller = new("kept")
    caller.write(bucket={"force_destroy": False})
    caller.apply()
    caller.publish(ARCHIVE, 2)
    bucket = caller.outputs()["bucket"]
    s3 = caller.client("s3")

    def protection() -> list[Any]:
        calls = ("public_access_block", "bucket_policy", "bucket_encryption", "bucket_ownership_controls")
        answers = [getattr(s3, f"get_{call}")(Bucket=bucket) for call in (*calls, "bucket_versioning")]
        return [{key: value for key, value in answer.items() if key != "ResponseMetadata"} for answer in answers]

    before = protection()
    assert before[-1] == {"Status": "Enabled"}
    for _ in range(2):
        with pytest.raises(TerraformError) as caught:
            caller.destroy()
        words = " ".join(str(caught.value).split())
        assert f"The bucket {bucket} stays, with all that protects it: there are objects in it" in words
        assert "bucket.force_destroy = true" in words
        assert protection() == before
    assert caller.left() == [bucket]
    # The way out: an emptied bucket goes.
    for version in s3.list_object_versions(Bucket=bucket)["Versions"]:
        s3.delete_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
    caller.destroy()
    assert caller.left() == []


def a_second_of_the_name_takes_nothing(first: Caller, inputs: dict[str, Any]) -> None:
    """Another call with the name, or the same one whose state was lost: it fails before it has anything of the first in
    its state, so that its destroy leaves the first as it is."""
    (first.folder / "second").mkdir()
    second = Caller(first.folder / "second", first.aws, first.env, first.name)
    second.write(**inputs, tags={"whose": "second"})
    assert "BucketAlreadyExists" in second.apply_and_fail()
    second.destroy()
    shutil.rmtree(second.folder.parent)
    assert first.changes() == ""


def what_goes_by_hand_comes_back(new: New) -> None:
    """A plan that only looks says what somebody deleted, and an apply makes it again, with nothing left to do."""
    caller = new("byhand")
    inputs: dict[str, Any] = {
        "deployment": {"wait_seconds": 0},
        "notifications": {"create_topic": True},
        "variants": {"primary": {"autoscaling": {"min_capacity": 1, "max_capacity": 2, "cpu_utilization": 60}}},
        "alarms": {"targets": {"bert": {"target": "bert-*", "p99_seconds": 1}}},
        "contributor_insights": True,
        "dashboard": True,
    }
    try:
        caller.write(**inputs)
        caller.look()  # before anything is there
        caller.settle(**inputs)
        a_second_of_the_name_takes_nothing(caller, inputs)
        outputs = caller.outputs()
        bucket, role = outputs["bucket"], outputs["role_name"]
        sagemaker, s3, iam = caller.client("sagemaker"), caller.client("s3"), caller.client("iam")
        cloudwatch, logs, sns = caller.client("cloudwatch"), caller.client("logs"), caller.client("sns")

        def a_bucket_goes() -> None:
            held = s3.list_object_versions(Bucket=bucket)
            for version in held.get("Versions", []) + held.get("DeleteMarkers", []):
                s3.delete_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
            s3.delete_bucket(Bucket=bucket)

        def a_role_goes() -> None:
            iam.delete_role_policy(RoleName=role, PolicyName="sagemaker-endpoint")
            iam.delete_role(RoleName=role)

        gone: list[tuple[str, Callable[[], Any]]] = [
            ("aws_s3_bucket_policy.this", lambda: s3.delete_bucket_policy(Bucket=bucket)),
            ("aws_s3_bucket.this", a_bucket_goes),
            ("aws_iam_role.this", a_role_goes),
            (
                "aws_cloudwatch_metric_alarm.this",
                lambda: cloudwatch.delete_alarms(AlarmNames=list(outputs["alarm_names"].values())),
            ),
            (
                "aws_cloudwatch_log_group.this",
                lambda: logs.delete_log_group(logGroupName=outputs["log_group_name"]),
            ),
            ("aws_sns_topic.this", lambda: sns.delete_topic(TopicArn=outputs["topic_arn"])),
            (
                "aws_sagemaker_endpoint_configuration.this",
                lambda: sagemaker.delete_endpoint_config(EndpointConfigName=outputs["endpoint_configuration_name"]),
            ),
            ("aws_sagemaker_model.this", lambda: sagemaker.delete_model(ModelName=outputs["model_names"]["primary"])),
            ("aws_sagemaker_endpoint.this", lambda: sagemaker.delete_endpoint(EndpointName=caller.name)),
        ]
        for _, goes in gone:
            goes()
        seen = caller.look()
        for address, _ in gone:
            assert re.search(rf"module\.endpoint\.{address}\[.*\] has been deleted", seen), address
        caller.settle(**inputs)
        caller.publish(ARCHIVE, 2)
        with caller.calls(ARCHIVE, 21, 42):
            pass
        # An endpoint that is gone is none to take away.
        sagemaker.delete_endpoint(EndpointName=caller.name)
    finally:
        caller.destroy()
    assert caller.left() == []


def an_endpoint_that_exists_is_adopted(new: New) -> None:
    """Made by hand, imported as docs/module.md has it, and updated in place."""
    name, log_group = "adopted", "/aws/sagemaker/Endpoints/adopted"
    caller = new(name)
    iam, s3, sagemaker = caller.client("iam"), caller.client("s3"), caller.client("sagemaker")
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="by-hand", AssumeRolePolicyDocument=policy)["Role"]["Arn"]
    s3.create_bucket(Bucket="by-hand")
    s3.put_object(Bucket="by-hand", Key=f"models/{ARCHIVE}", Body=b"1")
    container = {"Image": IMAGE, "Mode": "MultiModel", "ModelDataUrl": "s3://by-hand/models/"}
    sagemaker.create_model(ModelName="by-hand", ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {"VariantName": "AllTraffic", "ModelName": "by-hand", "InstanceType": "ml.m5.xlarge"}
    sagemaker.create_endpoint_config(
        EndpointConfigName="by-hand", ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
    )
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="by-hand")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig={"Delay": 1})
    if not caller.client("logs").describe_log_groups(logGroupNamePrefix=log_group)["logGroups"]:
        caller.client("logs").create_log_group(logGroupName=log_group)
    created = caller.endpoint()["CreationTime"]
    inputs = {
        "bucket": {"create": False, "name": "by-hand"},
        "variants": {"AllTraffic": {}},
        "deployment": {"rollback_enabled": False, "rollback_on": []},
    }
    caller.blocks["import"] = [
        {"to": "module.endpoint.aws_sagemaker_endpoint.this[0]", "id": name},
        {"to": "module.endpoint.aws_cloudwatch_log_group.this[0]", "id": log_group},
    ]
    try:
        printed = caller.settle(**inputs)
        assert "2 imported" in printed
        assert "0 destroyed" in printed
        assert caller.endpoint()["CreationTime"] == created, "the endpoint was replaced"
        assert caller.endpoint()["EndpointConfigName"] == caller.outputs()["endpoint_configuration_name"]
        del caller.blocks["import"]
        caller.write(**inputs)
        assert caller.changes() == ""
    finally:
        caller.blocks.pop("import", None)
        caller.write(**inputs)
        caller.destroy()
    assert caller.left() == []


def a_bucket_and_a_role_that_exist_become_its_own(new: New) -> None:
    """Imported under their own names: the module's settings replace theirs, and archives stay as they are."""
    caller = new("owned")
    iam, s3 = caller.client("iam"), caller.client("s3")
    s3.create_bucket(Bucket="owned-by-hand")
    s3.put_object(Bucket="owned-by-hand", Key=f"models/{ARCHIVE}", Body=archive(2))
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    iam.create_role(RoleName="owned-by-hand", AssumeRolePolicyDocument=json.dumps({"Statement": [trust]}))
    inputs: dict[str, Any] = {"bucket": {"name": "owned-by-hand"}, "role": {"name": "owned-by-hand"}}
    caller.blocks["import"] = [
        {"to": "module.endpoint.aws_s3_bucket.this[0]", "id": "owned-by-hand"},
        {"to": "module.endpoint.aws_iam_role.this[0]", "id": "owned-by-hand"},
    ]
    try:
        printed = caller.settle(**inputs)
        assert "2 imported" in printed
        assert "0 destroyed" in printed
        role = iam.get_role(RoleName="owned-by-hand")["Role"]
        assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == {"Service": "sagemaker.amazonaws.com"}
        assert s3.get_bucket_versioning(Bucket="owned-by-hand")["Status"] == "Enabled"
        with caller.calls(ARCHIVE, 21, 42):
            pass
    finally:
        caller.blocks.pop("import", None)
        caller.write(**inputs)
        caller.destroy()
    assert caller.left() == []


def an_interrupt_needs_one_more_apply(new: New) -> None:
    """Ctrl-C while the endpoint is made: the provider gives it up, and the next applies say what is so, and mend it."""
    caller = new("interrupted")
    caller.write(environment={"FAKE_START_SECONDS": "3"})
    words = [*terraform.command(), "apply", "-auto-approve", "-input=false", "-no-color"]
    env = terraform.environment(caller.env)
    with subprocess.Popen(words, cwd=caller.folder, env=env, stdout=subprocess.PIPE, text=True) as applying:
        assert applying.stdout is not None
        for line in applying.stdout:
            if "aws_sagemaker_endpoint.this[0]: Creating" in line:
                while refused(caller.endpoint):
                    pass  # the request is on its way
                applying.send_signal(signal.SIGINT)
    assert applying.returncode != 0
    with environment(caller.aws, attached=True) as caller.env:
        try:
            for _ in range(3):
                code, printed = caller._run("apply", "-auto-approve", "-input=false", check=False)
                assert "Invalid index" not in printed
                if code == 0:
                    break
                assert "Cannot create already existing endpoint" in printed
            assert code == 0, printed
            assert caller.changes() == ""
            assert caller.endpoint()["EndpointStatus"] == "InService"
        finally:
            caller.destroy()
    assert caller.left() == []


def what_would_lose_the_models_is_refused(new: New) -> None:
    """A prefix without archives, another bucket, a role of the same name on another path; and others' topics stay."""
    topic = {"aws_sns_topic": {"theirs": {"name": "moved"}}}
    caller = new("moved", resource=topic)
    role = {"name": "moved-role"}
    try:
        # With nothing published there is nothing to lose.
        caller.settle(role=role, notifications={"create_topic": True})
        topics = caller.client("sns").list_topics()["Topics"]
        assert len([t for t in topics if t["TopicArn"].rpartition(":")[2].startswith("moved")]) == 2
        caller.settle(role=role, model_prefix="v2/models/", bucket={"force_destroy": False})
        assert len([t for t in caller.client("sns").list_topics()["Topics"] if t["TopicArn"].endswith(":moved")]) == 1
        caller.publish(ARCHIVE, 2)
        unchanged: dict[str, Any] = {"role": role, "bucket": {"force_destroy": False}}
        words = caller.refuse(**unchanged, model_prefix="v3/models/")
        assert "No archive lies below s3://moved-123456789012-us-east-1/v3/models/" in words
        words = caller.refuse(
            role=role, bucket={**unchanged["bucket"], "name": "moved-elsewhere"}, model_prefix="v2/models/"
        )
        assert "The bucket's name changes to moved-elsewhere." in words
        words = caller.refuse(**{**unchanged, "role": {**role, "path": "/ml/"}}, model_prefix="v2/models/")
        assert 'role.path changes while role.name stays "moved-role".' in words
        source = {"Bucket": caller.outputs()["bucket"], "Key": f"v2/models/{ARCHIVE}"}
        caller.client("s3").copy_object(Bucket=source["Bucket"], Key=f"v3/models/{ARCHIVE}", CopySource=source)
        caller.settle(role={"name": "moved-other", "path": "/ml/"}, model_prefix="v3/models/")
    finally:
        caller.destroy()
    assert caller.left() == []


def instances_follow_the_load_and_an_alarm_rolls_back(new: New) -> None:
    """Under load an instance comes; an update whose container fails is rolled back by the module's own alarm."""
    caller = new("loaded")
    scaling = {"min_capacity": 1, "max_capacity": 2, "invocations_per_instance": 1, "scale_out_cooldown_seconds": 60}
    inputs: dict[str, Any] = {
        "variants": {"primary": {"autoscaling": scaling}},
        "deployment": {"wait_seconds": 2400},
        "alarms": {"enabled": True},
    }
    broken = {**inputs, "environment": {"FAKE_STATUS": "500"}}

    def instances() -> int:
        state = caller.endpoint()
        return int(state["ProductionVariants"][0]["CurrentInstanceCount"])

    try:
        caller.settle(**inputs)
        caller.publish(ARCHIVE, 2)
        with caller.calls(ARCHIVE, 21, 42):
            deadline = time.monotonic() + 60
            while instances() < 2:
                assert time.monotonic() < deadline, "no instance came"
                time.sleep(0.1)
        assert caller.changes() == "", "what autoscaling did is no change of the configuration"

        before = caller.endpoint()["EndpointConfigName"]
        caller.write(**broken)
        with caller.load(ARCHIVE, 21):
            printed = caller.apply_and_fail()
        assert "does not run the new configuration" in printed or "RollingBack" in printed, printed
        state = caller.endpoint()
        assert (state["EndpointStatus"], state["EndpointConfigName"]) == ("InService", before)
        assert "loaded-primary-errors_5xx" in state["FailureReason"]
        caller.settle(**inputs, revision="again")
        with caller.calls(ARCHIVE, 21, 42):
            pass
    finally:
        caller.destroy()
    assert caller.left() == []


LIVES: dict[str, Callable[[New], None]] = {
    life.__name__: life
    for life in (
        every_input_may_be_unknown,
        values_come_back_as_they_were,
        former_keys_still_open_archives,
        what_would_lose_the_models_is_refused,
        an_interrupt_needs_one_more_apply,
        a_bucket_with_archives_keeps_its_protection,
        what_goes_by_hand_comes_back,
        an_endpoint_that_exists_is_adopted,
        a_bucket_and_a_role_that_exist_become_its_own,
        instances_follow_the_load_and_an_alarm_rolls_back,
        what_it_waits_for_changes_nothing_about_it,
    )
}

# The apply that is interrupted there has to end a provider process of its own.
ORDINARY = ("an_interrupt_needs_one_more_apply",)


def live(life: str, folder: Path, aws: LocalAws) -> None:
    with environment(aws, attached=life not in ORDINARY) as env:
        LIVES[life](functools.partial(Caller, folder, aws, env))


@pytest.fixture(scope="module")
def lives(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, local_aws: LocalAws
) -> Iterator[dict[str, Future[None]]]:
    """The lives that this run of pytest asks for, started together."""
    folder = tmp_path_factory.mktemp("changes")
    here = [item for item in request.session.items if item.path == request.path]
    wanted = {item.callspec.params["life"] for item in here if hasattr(item, "callspec")}
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {life: pool.submit(live, life, folder, local_aws) for life in LIVES if life in wanted}


@pytest.mark.parametrize("life", LIVES)
def test_a_life_of_an_endpoint(life: str, lives: dict[str, Future[None]]) -> None:
    lives[life].result()
