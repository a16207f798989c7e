"""Where releases lie, and the errors for an account that may not see all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from release_tools import STORE, TARGET, Watched, publish, refusal

from mme import channels, releases
from mme.errors import ReleaseError, UsageError
from mme.releases import Store


def test_what_lies_beside_the_models_is_in_the_same_folder() -> None:
    assert Store("bucket", "models/").root == ""
    assert Store("bucket", "a/b/models/").root == "a/b/"
    assert Store("bucket", "a/models/").uri("bert-0.tar.gz") == "s3://bucket/a/models/bert-0.tar.gz"


@pytest.mark.parametrize(
    "prefix",
    ["", "/", "models", "/models/", "a//models/", "models//", "channels/", "a/channels/", "plans/", "a/plans/"],
)
def test_a_prefix_that_cannot_work_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="prefix"):
        Store("bucket", prefix)


@pytest.mark.parametrize("bucket", ["s3://bucket", "bucket/models", "Bucket", "b", ""])
def test_a_bucket_that_is_no_name_is_refused(bucket: str) -> None:
    with pytest.raises(UsageError, match="not a bucket name"):
        Store(bucket)


def test_a_bucket_that_is_not_there(s3: Any) -> None:
    with pytest.raises(ReleaseError, match=r"no bucket no-such-bucket") as error:
        releases.check_bucket(s3, Store("no-such-bucket"))
    assert "--bucket" in str(error.value)


def test_a_bucket_in_another_region(s3: Any) -> None:
    elsewhere = boto3.client("s3", region_name="eu-west-1")
    elsewhere.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    with pytest.raises(ReleaseError, match="far-away is in eu-west-1, not in us-east-1") as error:
        releases.check_bucket(s3, Store("far-away"))
    assert "--region eu-west-1" in str(error.value)
    releases.check_bucket(elsewhere, Store("far-away"))


class PrefixOnly(Watched):
    """S3 as somebody sees it who may list below a prefix only: what is missing is forbidden, and so is the bucket."""

    def __getattr__(self, name: str) -> Any:
        real = super().__getattr__(name)
        if name not in ("head_bucket", "head_object", "get_object"):
            return real

        def call(**given: Any) -> Any:
            try:
                answer = real(**given)
            except ClientError:
                raise refusal("403", 403, name) from None
            if name == "head_bucket":
                raise refusal("403", 403, "HeadBucket")
            return answer

        return call


def test_a_publisher_who_may_list_below_the_prefix_only(s3: Any, tmp_path: Path) -> None:
    limited = PrefixOnly(s3)
    releases.check_bucket(limited, STORE)
    assert publish(limited, b"small", tmp_path).status == "uploaded"
    assert publish(limited, b"small", tmp_path).status == "present"
    channel = channels.read(limited, STORE, "bert")
    assert channel.etag is None
    channels.change(limited, STORE, channel, {TARGET: 1}, action="promote", author="ada")
    assert channels.read(limited, STORE, "bert").revision == 1
    with pytest.raises(ReleaseError, match="is not released"):
        channels.change(limited, STORE, channel, {"bert-000000000000.tar.gz": 1}, action="promote", author="ada")


def test_expired_credentials_are_reported_although_a_head_has_no_body(s3: Any, tmp_path: Path) -> None:
    watched = Watched(s3)

    def refuse(**_: Any) -> None:
        raise refusal("400", 400, "HeadBucket")

    watched.before["head_bucket"] = watched.before["head_object"] = refuse
    releases.check_bucket(watched, STORE)  # the listing that follows gives the reason
    with pytest.raises(ReleaseError, match="without a reason") as error:
        publish(watched, b"small", tmp_path)
    assert "sign in again" in str(error.value)


def test_a_forbidden_object_that_is_there_is_not_called_missing(s3: Any, tmp_path: Path) -> None:
    publish(s3, b"small", tmp_path)
    watched = Watched(s3)

    def denied(**_: Any) -> None:
        raise refusal("403", 403, "HeadObject")

    watched.before["head_object"] = denied
    with pytest.raises(ReleaseError, match="no permission for HeadObject"):
        publish(watched, b"small", tmp_path)
