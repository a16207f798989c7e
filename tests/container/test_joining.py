"""Handlers with decoder_fn: requests join the work in hand between steps, and leave it when they are done."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container, background, wait_until

Make = Callable[..., Path]

# A request is [name, steps]; it is answered with its name after so many steps. Every step leaves a line that says who
# was in it, and waits for the file `go`, so that a test decides what happens in between.
COUNTDOWN = """
    import json, pathlib, time
    def model_fn(d): return pathlib.Path(d)
    def batch_fn(inputs, model): raise AssertionError("decoder_fn goes first")
    class Countdown:
        def __init__(self, folder):
            self.folder, self.left = folder, {}
            self.log("new")
        def log(self, text):
            with (self.folder / "log").open("a") as file:
                file.write(text + "\\n")
        def add(self, key, data):
            name, steps = data
            if steps < 1:
                raise ValueError("steps is 1 or more")
            self.left[key] = [name, steps]
        def drop(self, key):
            if self.left.pop(key, None):
                self.log("dropped")
        def __len__(self):
            return len(self.left)
        def step(self):
            self.log(" ".join(sorted(name for name, _ in self.left.values())))
            if any(name == "break" for name, _ in self.left.values()):
                raise RuntimeError("the step broke")
            while not (self.folder / "go").exists():
                time.sleep(0.005)
            done = []
            for key, entry in list(self.left.items()):
                entry[1] -= 1
                if entry[1] == 0:
                    del self.left[key]
                    done.append((key, ValueError("no luck") if entry[0] == "unlucky" else entry[0]))
            time.sleep(0.01)
            return done
    def decoder_fn(model): return Countdown(model)
"""


@pytest.fixture
def countdown(container: Container, handler: Make) -> Path:
    folder = handler("countdown", COUNTDOWN)
    assert container.load("countdown", folder).status == 200
    return folder


def log(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def ask(name: str, steps: int) -> str:
    return json.dumps([name, steps])


def test_a_late_request_joins_and_a_short_one_leaves_first(container: Container, countdown: Path) -> None:
    long = background(container.invoke, "countdown", ask("long", 300))
    wait_until(lambda: "long" in log(countdown), container=container)
    short = background(container.invoke, "countdown", ask("short", 2))
    (countdown / "go").touch()
    assert short.result().json() == "short"
    assert not long.done()
    assert long.result().json() == "long"
    assert "long short" in log(countdown)
    assert log(countdown).count("new") == 1


def test_one_that_is_refused_and_one_that_fails_leave_the_others_alone(container: Container, countdown: Path) -> None:
    (countdown / "go").touch()
    long = background(container.invoke, "countdown", ask("long", 50))
    refused = container.invoke("countdown", ask("x", 0))
    assert (refused.status, refused.json()["message"]) == (400, "steps is 1 or more")
    unlucky = container.invoke("countdown", ask("unlucky", 3))
    assert (unlucky.status, unlucky.json()["message"]) == (400, "no luck")
    assert long.result().json() == "long"


def test_a_step_that_breaks_fails_what_is_in_work_and_the_next_request_starts_anew(
    container: Container, countdown: Path
) -> None:
    broken = container.invoke("countdown", ask("break", 1))
    assert broken.status == 500
    assert "the step broke" in broken.json()["message"]
    (countdown / "go").touch()
    assert container.invoke("countdown", ask("fine", 1)).json() == "fine"
    assert log(countdown).count("new") == 2


def test_a_request_that_nobody_waits_for_is_dropped_and_no_more(
    container: Container, countdown: Path, handler: Make
) -> None:
    body = ask("gone", 10_000).encode()
    (countdown / "go").touch()
    client = socket.create_connection(("127.0.0.1", container.port))
    client.sendall(
        b"POST /models/countdown/invoke HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    wait_until(lambda: "gone" in log(countdown), container=container)
    client.close()
    wait_until(lambda: "dropped" in log(countdown), container=container)
    # A process is left for a while to do work that nobody wants, the longer the slower its model loads. One that was
    # left later and loaded more slowly is ended, so the time of the countdown's has passed, too.
    loaded = container.metric('mme_model_load_seconds{model="countdown"}')
    source = f"""
        import pathlib, time
        def model_fn(d): time.sleep({2 * loaded}); return pathlib.Path(d)
        def predict_fn(data, folder):
            (folder / "begun").touch()
            time.sleep(3600)
    """
    folder = handler("stuck", source)
    assert container.load("stuck", folder).status == 200
    assert container.metric('mme_model_load_seconds{model="stuck"}') > loaded
    killed = container.metric("mme_killed_total")
    client = http.client.HTTPConnection("127.0.0.1", container.port)
    client.request("POST", "/models/stuck/invoke", "{}")
    wait_until((folder / "begun").exists, container=container)
    client.close()
    wait_until(lambda: container.metric("mme_killed_total") == killed + 1, container=container)
    assert container.invoke("countdown", ask("after", 1)).json() == "after"
    assert log(countdown).count("new") == 1, "the process was ended although it had nothing to do"


def test_a_request_that_takes_too_long_is_dropped_and_the_others_go_on(
    start: Callable[..., Container], handler: Make
) -> None:
    container = start(SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="3")
    folder = handler("countdown", COUNTDOWN)
    (folder / "go").touch()
    assert container.load("countdown", folder).status == 200
    late = background(container.invoke, "countdown", ask("late", 100_000))
    wait_until(lambda: "late" in log(folder), container=container)
    while not late.done():
        assert container.invoke("countdown", ask("short", 3)).json() == "short"
    assert late.result().status == 504
    wait_until(lambda: "dropped" in log(folder), container=container)
    assert container.invoke("countdown", ask("after", 1)).json() == "after"
    assert log(folder).count("new") == 1, "the process was ended although only one request was late"


def test_two_models_share_the_core_between_steps(start: Callable[..., Container], handler: Make) -> None:
    container = start(MME_CPUS="1")
    folders = [handler(name, COUNTDOWN) for name in ("one", "two")]
    for folder in folders:
        (folder / "go").touch()
        assert container.load(folder.name, folder).status == 200
    long = background(container.invoke, "one", ask("long", 200))
    wait_until(lambda: "long" in log(folders[0]), container=container)
    assert container.invoke("two", ask("short", 3)).json() == "short"
    assert not long.done()
    assert long.result().json() == "long"


def test_decoder_fn_and_transform_fn_exclude_each_other(container: Container, handler: Make) -> None:
    source = "def transform_fn(m, d, c, a): return d\ndef decoder_fn(model): return None"
    answer = container.load("both", handler("both", source))
    assert answer.status == 500
    assert "decoder_fn" in answer.json()["message"]
