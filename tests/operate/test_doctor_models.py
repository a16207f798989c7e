"""`invoke doctor`: what is wrong with the bucket, the prefix and its keys."""

from __future__ import annotations

from doctor_tools import Stack


def test_a_bucket_that_is_not_there(stack: Stack) -> None:
    image = stack.push()
    words = ["--image", image, "--type", "ml.m6i.large", "--role", stack.role()]
    problems = stack.problems("--bucket", f"none-{stack.corner.name}", *words)
    assert "there is no bucket" in problems["bucket", "error"]


def test_a_bucket_in_another_region(stack: Stack) -> None:
    name = f"{stack.corner.name}-far"
    stack.corner.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert "eu-west-1" in stack.problems("--bucket", name)["bucket", "error"]


def test_models_are_published_where_the_endpoint_does_not_read(stack: Stack) -> None:
    stack.push()
    stack.publish()
    endpoint = stack.endpoint()
    problem = stack.only(
        "prefix", "error", "--endpoint", endpoint, "--bucket", stack.corner.bucket, "--prefix", "other/models/"
    )
    assert "published to" in problem


def test_model_data_that_is_no_folder(stack: Stack) -> None:
    image = stack.push()
    target = stack.publish()
    for data, words in ((f"models/{target}", "no folder"), ("models", "does not end with a slash")):
        model = stack.corner.model(role=stack.role(), Image=image, ModelDataUrl=f"s3://{stack.corner.bucket}/{data}")
        endpoint = stack.corner.endpoint(stack.corner.config({"ModelName": model}))
        assert words in stack.problems("--endpoint", endpoint)["prefix", "error"]


def test_an_empty_prefix(stack: Stack) -> None:
    stack.push()
    endpoint = stack.endpoint()
    assert "no archive under" in stack.only("prefix", "warning", "--endpoint", endpoint)
    stack.corner.s3.put_object(Bucket=stack.corner.bucket, Key="elsewhere/bert.tar.gz", Body=b"x")
    assert "elsewhere/bert.tar.gz" in stack.only("prefix", "error", "--endpoint", endpoint)


def test_objects_among_the_models_that_are_none(stack: Stack) -> None:
    stack.push()
    stack.publish()
    stack.corner.s3.put_object(Bucket=stack.corner.bucket, Key="models/readme.txt", Body=b"x")
    assert "readme.txt" in stack.only("keys", "warning", "--endpoint", stack.endpoint())


def test_a_channel_that_means_what_is_gone(stack: Stack) -> None:
    stack.push()
    target = stack.publish()
    endpoint = stack.endpoint()
    assert stack.corner("promote", "--model", "bert", "--bucket", stack.corner.bucket).code == 0
    stack.publish("gpt")
    stack.corner.s3.delete_object(Bucket=stack.corner.bucket, Key=f"models/{target}")
    assert target in stack.only("channels", "error", "--endpoint", endpoint)
