"""The application between the HTTP server and moto: one request at a time, and none waits for another's client."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from local_tools import Cloud

from mme.local.app import App
from mme.local.repeats import Repeats
from mme.local.settings import Settings

BODY = b'{"ModelName": "m"}'


class OneAtATime:
    """Stands for moto, and for the judge of rights, who reads the same records: notes when two threads are inside."""

    def __init__(self) -> None:
        self._inside = 0
        self.most = 0
        self.bodies: list[bytes] = []

    def enter(self) -> None:
        self._inside += 1
        self.most = max(self.most, self._inside)
        threading.Event().wait(0.002)  # gives the others the chance to come in
        self._inside -= 1

    def gate(self, environ: dict[str, Any], region: str) -> None:
        self.enter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.bodies.append(environ["wsgi.input"].read())
        self.enter()
        start_response("200 OK", [])
        return [b"{}"]


def request(stream: Any, length: int, **more: Any) -> dict[str, Any]:
    scope = "AKIA/20260101/us-east-1/sagemaker/aws4_request"
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/",
        "HTTP_HOST": "127.0.0.1:1",
        "HTTP_X_AMZ_TARGET": "SageMaker.DeleteModel",
        "HTTP_AUTHORIZATION": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
        "CONTENT_LENGTH": str(length),
        "wsgi.input": stream,
        **more,
    }


def application(folder: Path, moto: OneAtATime) -> App:
    settings = Settings(data_dir=folder)
    return App(settings, folder, moto, lambda *_: [b""], moto)


def ask(app: App, environ: dict[str, Any]) -> bytes:
    return b"".join(app(environ, lambda *_: None))


def test_one_request_is_in_moto_at_a_time(tmp_path: Path) -> None:
    """moto walks over dictionaries that other requests change, and ends in a RuntimeError where two threads are in."""
    moto = OneAtATime()
    app = application(tmp_path, moto)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(app, request(io.BytesIO(BODY), len(BODY))), range(40)))
    assert answers == [b"{}"] * 40
    assert moto.bodies == [BODY] * 40
    assert moto.most == 1


def test_a_client_that_is_slow_to_send_holds_nobody_up(tmp_path: Path) -> None:
    class Slow(io.BytesIO):
        """A body whose first byte comes when somebody else has been answered."""

        def read(self, size: int | None = -1) -> bytes:
            reading.set()
            assert answered.wait(30)
            return super().read(size)

    reading, answered = threading.Event(), threading.Event()
    moto = OneAtATime()
    app = application(tmp_path, moto)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, app, request(Slow(BODY), len(BODY)))
        assert reading.wait(30)
        assert ask(app, request(io.BytesIO(b"{}"), 2)) == b"{}"
        answered.set()
        assert slow.result(30) == b"{}"
    assert moto.bodies == [b"{}", BODY]


def test_a_body_in_chunks_and_a_large_one_arrive_whole(tmp_path: Path) -> None:
    moto = OneAtATime()
    app = application(tmp_path, moto)
    large = bytes(5 << 20)
    chunked = request(io.BytesIO(BODY), 0, **{"wsgi.input_terminated": True})
    del chunked["CONTENT_LENGTH"]
    ask(app, chunked)
    ask(app, request(io.BytesIO(large + b"the next request"), len(large)))
    assert moto.bodies == [BODY, large]


def numbered(number: str, **more: Any) -> dict[str, Any]:
    return request(io.BytesIO(BODY), len(BODY), HTTP_AMZ_SDK_INVOCATION_ID=number, **more)


def test_a_request_that_is_sent_again_is_not_carried_out_twice(tmp_path: Path) -> None:
    """A client that lost the answer sends the same invocation again: AWS would say that the model exists already."""
    moto = OneAtATime()
    app = application(tmp_path, moto)
    started: list[Any] = []
    for _ in range(3):
        assert b"".join(app(numbered("a"), lambda *given: started.append(given))) == b"{}"
    assert len(moto.bodies) == 1
    assert [status for status, _ in started] == ["200 OK"] * 3
    ask(app, numbered("b"))
    ask(app, request(io.BytesIO(BODY), len(BODY)))
    assert len(moto.bodies) == 3
    read = {"HTTP_X_AMZ_TARGET": "SageMaker.DescribeModel"}  # what changes may be asked for as often as one likes
    ask(app, numbered("c", **read))
    ask(app, numbered("c", **read))
    assert len(moto.bodies) == 5


def test_a_refusal_is_judged_anew(tmp_path: Path) -> None:
    class Refusing(OneAtATime):
        def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            self.bodies.append(b"")
            start_response("400 Bad Request" if len(self.bodies) == 1 else "200 OK", [])
            return [b"{}"]

    moto = Refusing()
    app = application(tmp_path, moto)
    for _ in range(3):
        ask(app, numbered("a"))
    assert len(moto.bodies) == 2


def test_what_was_answered_is_forgotten_after_a_while() -> None:
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    moto = OneAtATime()
    for moment in (0.0, 100.0, 300.0):
        now[0] = moment
        repeats.ask(moto, numbered("a"), lambda *_: None)
    assert len(moto.bodies) == 2
    for number in range(1000):
        repeats.ask(moto, numbered(str(number)), lambda *_: None)
    repeats.ask(moto, numbered("999"), lambda *_: None)
    repeats.ask(moto, numbered("0"), lambda *_: None)
    assert len(moto.bodies) == 1003


def test_models_and_roles_come_and_go_under_many_clients(cloud: Cloud) -> None:
    """The real thing: eight clients at once, whose calls walk over what the others make and delete."""
    sagemaker = cloud.client("sagemaker")
    role = cloud.role()

    def come_and_go(number: int) -> None:
        for turn in range(12):
            name = f"crowd-{number}-{turn}"
            sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer={"Image": "an-image"})
            sagemaker.list_models(NameContains=f"crowd-{number}")
            sagemaker.delete_model(ModelName=name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(8)))
    assert sagemaker.list_models(NameContains="crowd-")["Models"] == []
