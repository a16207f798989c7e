"""The client against the local AWS: channels in a bucket, an endpoint that is found by its name, what is not there."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import boto3
import endpoints_here
import pytest
from botocore.exceptions import EndpointConnectionError

from mme import channels
from mme.client import Endpoint, errors
from mme.client.place import place_of
from mme.errors import EndpointError, MmeError, ReleaseError, UsageError
from mme.local import LocalAws
from mme.releases import Store

OLD, NEW = "bert-000000000000.tar.gz", "bert-111111111111.tar.gz"


@dataclass
class Place:
    name: str
    s3: Any
    store: Store

    def promote(self, split: dict[str, float], name: str = "bert") -> None:
        channels.change(
            self.s3, self.store, channels.read(self.s3, self.store, name), split, action="promote", author="test"
        )


@pytest.fixture(scope="module")
def made(local_aws: LocalAws) -> str:
    return endpoints_here.create(local_aws, f"client-{uuid4().hex[:8]}")


@pytest.fixture
def place(made: str, aws_env: LocalAws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("MME_BUCKET", "MME_PREFIX", "MME_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    s3 = boto3.client("s3")
    store = Store(made)
    for target in (OLD, NEW):
        s3.put_object(Bucket=made, Key=store.key(target), Body=tarball())
    yield Place(made, s3, store)
    for channel in channels.read_all(s3, store):
        channels.delete(s3, store, channel)


def tarball() -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("model.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    return buffer.getvalue()


def test_three_lines_are_enough(place: Place) -> None:
    """Only the endpoint's name is given: where its models lie, SageMaker says."""
    place.promote({OLD: 100})
    answer = Endpoint(place.name).model("bert").predict(["a", "b"])
    assert answer["target"] == OLD
    assert answer["body"] == '{"inputs": ["a", "b"]}'


def test_a_model_without_a_channel_is_its_newest_version_and_a_stage_is_its_own(place: Place) -> None:
    with Endpoint(place.name, fresh=0) as endpoint:
        assert endpoint.model("bert").resolve() in (OLD, NEW)
        with pytest.raises(ReleaseError, match="no channel bert@staging"):
            endpoint.model("bert@staging").predict("a")
        place.promote({NEW: 100}, "bert@staging")
        assert endpoint.model("bert@staging").predict("a")["target"] == NEW
        with pytest.raises(ReleaseError, match="Did you mean 'bert'"):
            endpoint.model("brt").predict("a")


def test_a_split_is_by_weight_and_sticky_by_key(place: Place) -> None:
    place.promote({OLD: 50, NEW: 50})
    with Endpoint(place.name, bucket=place.name) as endpoint:
        model = endpoint.model("bert")
        asked = [model.resolve() for _ in range(400)]
        assert 100 < asked.count(OLD) < 300
        by_key = {str(n): model.resolve(str(n)) for n in range(40)}
        assert set(by_key.values()) == {OLD, NEW}
        assert all(model.predict("a", key=key)["target"] == target for key, target in by_key.items())
        split, _ = channels.current_split(place.s3, place.store, "bert")
        assert all(channels.pick(split, key) == target for key, target in by_key.items())


def test_a_channel_that_moves_under_load_takes_the_clients_with_it(place: Place) -> None:
    place.promote({OLD: 100})
    moved, stop = threading.Event(), threading.Event()
    with Endpoint(place.name, bucket=place.name, fresh=0.05) as endpoint:
        model = endpoint.model("bert")

        def ask(_: int) -> list[str]:
            seen = []
            while not stop.is_set():
                seen.append(model.predict("a")["target"])
                if seen[-1] == NEW:
                    moved.set()
            return seen

        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(ask, n) for n in range(6)]
            place.promote({NEW: 100})
            assert moved.wait(30)
            stop.set()
            seen = [one.result(30) for one in asking]
    assert all(len(list(itertools.groupby(one))) <= 2 for one in seen), "nobody went back"


def test_a_bucket_that_goes_away_in_the_middle_of_a_run(place: Place) -> None:
    place.promote({OLD: 100})
    reachable = boto3.client("s3")
    with Endpoint(place.name, bucket=place.name, s3=reachable, fresh=0) as endpoint:
        model = endpoint.model("bert")
        assert model.predict("a")["target"] == OLD
        reachable.meta.events.register("before-sign.s3", _unreachable)
        assert [model.predict("a")["target"] for _ in range(5)] == [OLD] * 5
        with pytest.raises(MmeError):  # nothing was ever known of this one
            endpoint.model("gpt2").predict("a")


def _unreachable(request: Any, **_: object) -> None:
    request.url = "http://127.0.0.1:1/"


def test_an_endpoint_that_is_not_there(place: Place) -> None:
    with pytest.raises(errors.EndpointNotFound, match="no endpoint nowhere in us-east-1"):
        Endpoint("nowhere").model("bert").predict("a")
    with pytest.raises(errors.EndpointNotFound, match="nowhere"):
        Endpoint("nowhere", bucket=place.name).model("bert").predict("a")
    with pytest.raises(errors.EndpointNotFound, match="eu-west-1"):
        Endpoint(place.name, region="eu-west-1").model("bert").predict("a")
    with pytest.raises(errors.EndpointNotFound):
        Endpoint(place.name, region="eu-west-1").target(OLD).predict("a")


def test_a_target_that_is_not_there(place: Place) -> None:
    with pytest.raises(errors.TargetNotFound):
        Endpoint(place.name).target("bert-999999999999.tar.gz").predict("a")


def test_credentials_that_are_none_or_not_accepted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODYKNOWSTHIS0")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(errors.AccessDenied):
        Endpoint(place.name).target(OLD).predict("a")
    with pytest.raises(EndpointError):
        Endpoint(place.name).model("bert").predict("a")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(errors.AccessDenied, match="no AWS credentials"):
        Endpoint(place.name).target(OLD).predict("a")


class Described:
    """What SageMaker says of an endpoint with these containers, one variant each."""

    def __init__(self, *containers: dict[str, Any]) -> None:
        self.containers = containers
        self.exceptions = boto3.client("sagemaker", region_name="us-east-1").exceptions

    def describe_endpoint(self, **_: str) -> Any:
        return {"EndpointConfigName": "config"}

    def describe_endpoint_config(self, **_: str) -> Any:
        return {"ProductionVariants": [{"ModelName": str(n)} for n in range(len(self.containers))]}

    def describe_model(self, ModelName: str) -> Any:
        return {"PrimaryContainer": self.containers[int(ModelName)]}


def multi(uri: str) -> dict[str, Any]:
    return {"Mode": "MultiModel", "ModelDataUrl": uri}


def test_where_the_models_lie(aws_env: LocalAws) -> None:
    same = Described(multi("s3://my-bucket/a/models/"), multi("s3://my-bucket/a/models/"))
    assert place_of(same, "e") == Store("my-bucket", "a/models/")  # type: ignore[arg-type]
    assert place_of(Described(multi("s3://my-bucket/models")), "e") == Store("my-bucket")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="s3://my-bucket/a/, s3://my-bucket/b/"):
        place_of(Described(multi("s3://my-bucket/a/"), multi("s3://my-bucket/b/")), "e")  # type: ignore[arg-type]
    single = Described({"Mode": "SingleModel", "ModelDataUrl": "s3://my-bucket/a.tar.gz"})
    with pytest.raises(EndpointError, match="not a multi-model endpoint"):
        place_of(single, "e")  # type: ignore[arg-type]


def test_a_session_brings_its_own_credentials_and_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    session = boto3.Session(aws_access_key_id="theirs", aws_secret_access_key="x", region_name="eu-west-1")
    asked: list[tuple[str, str]] = []

    def sent(request: Any, **_: Any) -> None:
        asked.append((request.url, request.headers["Authorization"].decode().partition("/")[0]))
        raise EndpointConnectionError(endpoint_url=request.url)

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    session.events.register("before-send.*.*", sent)
    endpoint = Endpoint("e", session=session, attempts=1)
    with endpoint, pytest.raises(MmeError):
        endpoint.model("bert").predict("a text")
    with Endpoint("e", session=session, attempts=1, bucket="b-ucket") as named, pytest.raises(MmeError):
        named.model("bert").predict("a text")
    with pytest.raises(MmeError):
        endpoint.target("bert-000000000001.tar.gz").predict("a text")
    assert {url.split(".")[0].rpartition("/")[2] for url, _ in asked} == {"api", "runtime", "b-ucket"}
    assert all("eu-west-1" in url for url, _ in asked)
    assert {who for _, who in asked} == {"AWS4-HMAC-SHA256 Credential=theirs"}
    with Endpoint("e", session=session, region="us-west-2") as other:
        assert other.client().meta.region_name == "us-west-2"
