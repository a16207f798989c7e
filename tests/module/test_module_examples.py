"""Every example, as a user would run it: apply, plan again, update, plan again, destroy.

The examples live side by side in one local AWS, two at a time: most of the time goes into waiting for Terraform.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stack import Stack, archive, environment, refused

from mme import channels
from mme.client.place import place_of
from mme.local import LocalAws

pytestmark = pytest.mark.slow
OUTPUTS = {
    "endpoint_name",
    "endpoint_arn",
    "model_prefix_uri",
    "bucket",
    "model_prefix",
    "role_arn",
    "invoke_policy_json",
    "region",
}


@dataclass(frozen=True)
class Life:
    """What happens to an example between apply and destroy: checks, and updates by variable with a check each.

    ``trouble`` comes after them, and answers with the variables that it leaves the example with. Where it is ``called``
    the endpoint is called all the while it is updated.
    """

    check: Callable[[Stack], None]
    updates: list[tuple[dict[str, Any], Callable[[Stack, str], None]]]
    trouble: Callable[[Stack], dict[str, Any]] | None = None
    called: bool = False


def variants(stack: Stack) -> dict[str, dict[str, Any]]:
    name = stack.endpoint()["EndpointConfigName"]
    config = stack.client("sagemaker").describe_endpoint_config(EndpointConfigName=name)
    return {variant["VariantName"]: variant for variant in config["ProductionVariants"]}


def image(stack: Stack) -> str:
    model = stack.client("sagemaker").describe_model(ModelName=stack.models()[0])
    return str(model["PrimaryContainer"]["Image"])


# minimal


def a_model_answers(stack: Stack) -> None:
    stack.publish("times-three-0123456789ab.tar.gz", 3)
    runtime = stack.client("sagemaker-runtime")
    answer = runtime.invoke_endpoint(EndpointName=stack.name, TargetModel="times-three-0123456789ab.tar.gz", Body="14")
    assert json.loads(answer["Body"].read())["result"] == 42


def has_moved(stack: Stack, printed: str) -> None:
    assert variants(stack)["primary"]["InstanceType"] == "ml.c5.xlarge"


# complete


def everything_is_on(stack: Stack) -> None:
    [target] = [t for t in stack.scalable_targets() if t["ResourceId"].startswith(f"endpoint/{stack.name}/")]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (2, 6)
    outputs = stack.outputs()
    role = stack.client("iam").get_role(RoleName=outputs["role_arn"].rpartition("/")[2])["Role"]
    assert role["Path"] == "/ml/"
    assert role["PermissionsBoundary"]["PermissionsBoundaryArn"].endswith("policy/ml/mme-complete-boundary")
    s3, bucket = stack.client("s3"), outputs["bucket"]
    assert s3.get_bucket_encryption(Bucket=bucket)
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert {rule["ID"] for rule in rules} == {"abort-incomplete-uploads", "expire-old-versions"}
    assert s3.get_bucket_logging(Bucket=bucket)["LoggingEnabled"]["TargetPrefix"] == "s3/"
    config = stack.endpoint()["LastDeploymentConfig"]
    assert config["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["Type"] == "CANARY"
    # tags of the provider and of the module meet on a resource, and an object's tags stay within ten
    tags = stack.client("sagemaker").list_tags(ResourceArn=outputs["endpoint_arn"])["Tags"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"project": "mme", "example": "complete", "team": "search"}
    assert s3.get_object_tagging(Bucket=bucket, Key=outputs["model_prefix"])["TagSet"] == []


def scaled_variant_has_moved(stack: Stack, printed: str) -> None:
    assert variants(stack)["primary"]["InstanceType"] == "ml.m5.2xlarge"
    # AWS refuses to change the type of a registered variant: deregister, update, register
    steps = [
        'aws_appautoscaling_target.this["primary"]: Destruction complete',
        "aws_sagemaker_endpoint.this[0]: Modifying...",
        "aws_sagemaker_endpoint.this[0]: Modifications complete",
        'aws_appautoscaling_target.this["primary"]: Creating...',
        'aws_appautoscaling_policy.this["primary/target/invocations"]: Creation complete',
    ]
    places = [printed.index(step) for step in steps]
    assert places == sorted(places)
    scaling = stack.client("application-autoscaling")
    policies = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    ours = {p["PolicyName"] for p in policies if f"/{stack.name}/" in p["ResourceId"]}
    assert ours == {"invocations", "memory"}
    actions = scaling.describe_scheduled_actions(ServiceNamespace="sagemaker")["ScheduledActions"]
    assert {a["ScheduledActionName"] for a in actions if f"/{stack.name}/" in a["ResourceId"]} == {"evening", "morning"}


# existing bucket and role


def theirs_is_untouched(stack: Stack) -> None:
    bucket = stack.outputs()["bucket"]
    assert bucket == "mme-existing-bucket-and-role-artifacts-123456789012"
    assert refused(stack.client("s3").get_bucket_policy, Bucket=bucket) == "NoSuchBucketPolicy"
    assert stack.outputs()["role_arn"] == "arn:aws:iam::123456789012:role/mme-existing-bucket-and-role-inference"


def has_the_variable(stack: Stack, printed: str) -> None:
    model = stack.client("sagemaker").describe_model(ModelName=stack.models()[0])
    assert model["PrimaryContainer"]["Environment"] == {"OMP_NUM_THREADS": "2"}


# A/B


def both_share(stack: Stack) -> None:
    weights = {v["VariantName"]: v["CurrentWeight"] for v in stack.endpoint()["ProductionVariants"]}
    assert weights == {"baseline": 9, "challenger": 1}
    assert variants(stack)["challenger"]["InstanceType"] == "ml.c5.2xlarge"


def challenger_has_gone(stack: Stack, printed: str) -> None:
    assert set(variants(stack)) == {"baseline"}
    assert len(stack.models()) == 1


def challenger_is_back(stack: Stack, printed: str) -> None:
    assert variants(stack)["challenger"]["InitialVariantWeight"] == 9
    assert len(stack.models()) == 2


# VPC


def is_in_the_vpc(stack: Stack) -> None:
    model = stack.client("sagemaker").describe_model(ModelName=stack.models()[0])
    assert len(model["VpcConfig"]["Subnets"]) == 2
    config = stack.client("sagemaker").describe_endpoint_config(EndpointConfigName=stack.configurations()[0])
    assert ":key/" in config["KmsKeyId"]


def has_two_groups(stack: Stack, printed: str) -> None:
    model = stack.client("sagemaker").describe_model(ModelName=stack.models()[0])
    assert len(model["VpcConfig"]["SecurityGroupIds"]) == 2


# many tenants


def rights_are_what_they_say(stack: Stack) -> None:
    """IAM as the local AWS enforces it, for the execution role, the tenants and the publisher."""
    outputs = stack.outputs()
    bucket, prefix = outputs["bucket"], outputs["model_prefix"]
    for target in ("team-a/m-0123456789ab.tar.gz", "team-b/m-0123456789ab.tar.gz", "shared/m-0123456789ab.tar.gz"):
        stack.publish(target, 2)
    root = stack.client("s3")
    root.put_object(Bucket=bucket, Key="channels/m.json", Body=b"{}")

    # A tenant calls its own folder and the shared one.
    runtime = stack.client("sagemaker-runtime", stack.assumed(outputs["tenant_roles"]["team-a"]))
    for target, answer in {"team-a": "", "shared": "", "team-b": "AccessDeniedException"}.items():
        code = refused(
            runtime.invoke_endpoint,
            EndpointName=stack.name,
            TargetModel=f"{target}/m-0123456789ab.tar.gz",
            Body="1",
        )
        assert code == answer, target
    assert refused(runtime.invoke_endpoint, EndpointName=stack.name, Body="1") == "AccessDeniedException"

    # It looks up what a name means, of its own and of others, and reads no archive.
    keys = stack.assumed(outputs["tenant_roles"]["team-a"])
    store = place_of(stack.client("sagemaker", keys), stack.name)
    assert (store.bucket, store.prefix) == (bucket, prefix)
    for model in ("team-a/m", "team-b/m"):
        split, _ = channels.current_split(stack.client("s3", keys), store, model)
        assert list(split) == [f"{model}-0123456789ab.tar.gz"]
    key = f"{prefix}team-a/m-0123456789ab.tar.gz"
    assert refused(stack.client("s3", keys).get_object, Bucket=bucket, Key=key) == "AccessDenied"

    # The execution role reads archives and nothing else, and writes nothing.
    s3 = stack.client("s3", stack.assumed(outputs["role_arn"]))
    key = f"{prefix}team-a/m-0123456789ab.tar.gz"
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == archive(2)
    assert s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 4
    assert refused(s3.get_object, Bucket=bucket, Key="channels/m.json") == "AccessDenied"
    assert refused(s3.list_objects_v2, Bucket=bucket, Prefix="channels/") == "AccessDenied"
    assert refused(s3.list_objects_v2, Bucket=bucket) == "AccessDenied"
    assert refused(s3.put_object, Bucket=bucket, Key=f"{prefix}x.tar.gz", IfNoneMatch="*") == "AccessDenied"

    # The publisher adds archives and moves channels. It replaces and deletes none, whatever else it may do.
    iam = stack.client("iam")
    iam.create_user(UserName=f"{stack.name}-ci")
    iam.attach_user_policy(UserName=f"{stack.name}-ci", PolicyArn=outputs["publisher_policy_arn"])
    made = iam.create_access_key(UserName=f"{stack.name}-ci")["AccessKey"]
    s3 = stack.client("s3", made)
    new = f"{prefix}new-0123456789ab.tar.gz"
    assert refused(s3.put_object, Bucket=bucket, Key=new, Body=b"1") == "AccessDenied"
    assert refused(s3.put_object, Bucket=bucket, Key=new, Body=b"1", IfNoneMatch="*") == ""
    assert refused(s3.put_object, Bucket=bucket, Key=new, Body=b"2", IfNoneMatch="*") == "PreconditionFailed"
    assert refused(s3.put_object, Bucket=bucket, Key=new, Body=b"2") == "AccessDenied"
    assert refused(s3.put_object, Bucket=bucket, Key=f"{prefix}code.py", IfNoneMatch="*") == "AccessDenied"
    large = f"{prefix}large-0123456789ab.tar.gz"
    upload = s3.create_multipart_upload(Bucket=bucket, Key=large)["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key=large, UploadId=upload, PartNumber=1, Body=b"1" * 5_242_880)
    finish = {
        "Bucket": bucket,
        "Key": large,
        "UploadId": upload,
        "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    }
    assert [u["Key"] for u in s3.list_multipart_uploads(Bucket=bucket, Prefix=prefix)["Uploads"]] == [large]
    assert refused(s3.complete_multipart_upload, **finish) == "AccessDenied"
    assert refused(s3.complete_multipart_upload, **finish, IfNoneMatch="*") == ""
    for _ in range(2):
        assert refused(s3.put_object, Bucket=bucket, Key="channels/m.json", Body=b"{}") == ""
    assert s3.get_object(Bucket=bucket, Key="channels/m.json")["Body"].read() == b"{}"
    assert s3.list_objects_v2(Bucket=bucket, Prefix="channels/")["KeyCount"] == 1
    iam.attach_user_policy(UserName=f"{stack.name}-ci", PolicyArn="arn:aws:iam::aws:policy/AmazonS3FullAccess")
    assert refused(s3.delete_object, Bucket=bucket, Key=new) == "AccessDenied"
    assert refused(s3.put_object, Bucket=bucket, Key=new, Body=b"2") == "AccessDenied"
    for policy in (outputs["publisher_policy_arn"], "arn:aws:iam::aws:policy/AmazonS3FullAccess"):
        iam.detach_user_policy(UserName=f"{stack.name}-ci", PolicyArn=policy)
    iam.delete_access_key(UserName=f"{stack.name}-ci", AccessKeyId=made["AccessKeyId"])
    iam.delete_user(UserName=f"{stack.name}-ci")

    # The bucket holds even the account's root to it.
    assert refused(root.put_object, Bucket=bucket, Key=new, Body=b"2") == "AccessDenied"
    assert refused(root.put_object, Bucket=bucket, Key=new, Body=b"2", IfNoneMatch="*") == "PreconditionFailed"


def team_b_has_made_way(stack: Stack, printed: str) -> None:
    assert set(stack.outputs()["tenant_roles"]) == {"team-a", "team-c"}
    assert "aws_sagemaker_endpoint.this[0]: Modifying" not in printed


# own image


def runs_our_image(stack: Stack) -> None:
    assert image(stack) == f"{stack.outputs()['repository_url']}:0.1.0"
    policy = stack.client("iam").get_role_policy(
        RoleName=stack.outputs()["role_arn"].rpartition("/")[2], PolicyName="sagemaker-endpoint"
    )["PolicyDocument"]
    [pull] = [statement["Resource"] for statement in policy["Statement"] if statement["Sid"] == "PullImages"]
    assert pull == f"arn:aws:ecr:us-east-1:123456789012:repository/{stack.name}"


def runs_the_next(stack: Stack, printed: str) -> None:
    assert image(stack).endswith(":0.2.0")


def a_rolled_back_update_is_an_error(stack: Stack) -> dict[str, Any]:
    """AWS goes back to the old configuration; the provider alone would take that for success, and delete it."""
    in_use, [model] = stack.endpoint()["EndpointConfigName"], stack.models()

    # the small container takes this for a number, and ends
    printed = stack.apply_and_fail(image_tag="0.2.0", environment={"FAKE_ROOM": "broken"})
    words = " ".join(printed.split())
    assert f"The endpoint {stack.name} does not run the new configuration" in words, printed
    assert f"it is back on {in_use}" in words, printed
    assert stack.endpoint()["EndpointStatus"] == "InService"
    assert in_use in stack.configurations()
    assert model in stack.models()

    # back to the old settings, under new names
    settled = {"image_tag": "0.2.0", "revision": "2"}
    stack.apply(**settled)
    assert stack.configurations() == [stack.endpoint()["EndpointConfigName"]]
    assert len(stack.models()) == 1
    return settled


LIVES = {
    "complete": Life(everything_is_on, [({"instance_type": "ml.m5.2xlarge"}, scaled_variant_has_moved)]),
    "many-tenants": Life(rights_are_what_they_say, [({"tenants": ["team-a", "team-c"]}, team_b_has_made_way)]),
    "vpc-kms": Life(is_in_the_vpc, [({"more_security_group_ids": ["sg-0123456789abcdef0"]}, has_two_groups)]),
    "ab-variants": Life(
        both_share,
        [
            ({"challenger": None}, challenger_has_gone),
            ({"challenger": {"instance_type": "ml.c5.4xlarge", "weight": 9}}, challenger_is_back),
        ],
    ),
    "minimal": Life(a_model_answers, [({"instance_type": "ml.c5.xlarge"}, has_moved)], called=True),
    "own-image": Life(runs_our_image, [({"image_tag": "0.2.0"}, runs_the_next)], a_rolled_back_update_is_an_error),
    "existing-bucket-and-role": Life(
        theirs_is_untouched, [({"environment": {"OMP_NUM_THREADS": "2"}}, has_the_variable)]
    ),
}

# Made as a user makes it. Afterwards, and in the others, one provider process serves all of Terraform's commands.
ORDINARY = ("minimal",)


def live(example: str, folder: Path, aws: LocalAws) -> None:
    """The whole life of an example. Raises what goes wrong in it, and destroys it in any case."""
    with environment(aws, attached=True) as attached:
        stack = Stack(folder, aws, aws.client_env() if example in ORDINARY else attached)
        stack.name = f"mme-{example}"
        live_through(LIVES[example], stack, attached)


def live_through(life: Life, stack: Stack, attached: Mapping[str, str]) -> None:
    """``attached`` is Terraform's environment from when there is nothing to change any more."""
    stack.init()
    variables: dict[str, Any] = {}
    try:
        stack.apply()
        assert stack.outputs().keys() >= OUTPUTS
        assert stack.outputs()["endpoint_name"] == stack.name
        assert stack.changes() == ""
        stack.env = attached
        life.check(stack)
        before = stack.endpoint()
        for variables, check in life.updates:
            if life.called:  # callers notice nothing of an update
                with stack.calls("times-three-0123456789ab.tar.gz", 2, 6):
                    printed = stack.apply(**variables)
            else:
                printed = stack.apply(**variables)
            check(stack, printed)
            after = stack.endpoint()
            assert after["CreationTime"] == before["CreationTime"], "the endpoint was replaced"
            assert after["EndpointStatus"] == "InService"
            assert stack.configurations() == [after["EndpointConfigName"]], "old configurations are left"
            assert len(stack.models()) == len(after["ProductionVariants"]), "old models are left"
            assert stack.changes(**variables) == ""
        if life.trouble:
            variables = life.trouble(stack)
            assert stack.changes(**variables) == ""
    finally:
        stack.destroy(**variables)
    assert stack.left() == []


@pytest.fixture(scope="module")
def lives(request: pytest.FixtureRequest, module_copy: Path, local_aws: LocalAws) -> Iterator[dict[str, Future[None]]]:
    """The lives of the examples that this run of pytest asks for, started together."""
    here = [item for item in request.session.items if item.path == request.path]
    wanted = {item.callspec.params["example"] for item in here if hasattr(item, "callspec")}
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {
            name: pool.submit(live, name, module_copy / "examples" / name, local_aws)
            for name in LIVES
            if name in wanted
        }


@pytest.mark.parametrize("example", LIVES)
def test_an_example_is_applied_updated_and_destroyed(example: str, lives: dict[str, Future[None]]) -> None:
    lives[example].result()


def test_every_example_has_its_test_and_its_readme(module_copy: Path) -> None:
    examples = {folder.name: folder for folder in (module_copy / "examples").iterdir() if folder.is_dir()}
    assert examples.keys() == LIVES.keys()
    for folder in examples.values():
        assert (folder / "README.md").read_text().startswith("# ")
