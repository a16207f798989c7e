"""What goes wrong with handlers, processes and memory, and what the container makes of it. All of it for real."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container, Reply, alive, background, processes, wait_until

Make = Callable[..., Path]
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

HOLD = """
    import os, time
    def model_fn(d): return d
    def input_fn(data, c): return data
    def predict_fn(data, model):
        if data == "pid": return os.getpid()
        if data.startswith("hold"):
            open(model + "/" + data, "w").close()
            while not os.path.exists(model + "/go"): time.sleep(0.005)
        return data
"""


def pid_of(container: Container, name: str) -> int:
    return int(container.invoke(name, "pid").json())


@linux
def test_a_killed_model_fails_what_it_held_and_answers_404(container: Container, handler: Make) -> None:
    folder = handler("hold", HOLD)
    for name in ("victim", "other"):
        assert container.load(name, handler(name, HOLD)).status == 200
    pid = pid_of(container, "victim")
    answers = [background(container.invoke, "victim", f"hold-{n}") for n in range(3)]
    wait_until(lambda: container.metric('mme_model_open_requests{model="victim"}') == 3)
    os.kill(pid, signal.SIGKILL)
    for answer in answers:
        assert answer.result().status == 500
        assert "signal 9" in answer.result().json()["message"]
    assert container.invoke("victim", "x").status == 404
    assert container.names() == ["other"]
    assert container.invoke("other", "x").json() == "x"
    assert container.get("/ping").status == 200
    assert container.load("victim", folder).status == 200  # as the platform does
    assert container.invoke("victim", "x").json() == "x"


@linux
def test_a_killed_parent_is_started_again_and_models_come_back(start: Callable[..., Container], handler: Make) -> None:
    container = start()
    for name in ("one", "two"):
        assert container.load(name, handler(name, HOLD)).status == 200
    workers = {pid_of(container, "one"), pid_of(container, "two")}
    parent = next(iter(processes(container.process.pid) - workers))
    held = background(container.invoke, "one", "hold")
    wait_until(lambda: (handler and Path(container.call("GET", "/models/one").json()["modelUrl"], "hold")).exists())
    os.kill(parent, signal.SIGKILL)
    assert held.result().status == 500
    wait_until(lambda: not any(alive(pid) for pid in workers))
    assert container.names() == ["one", "two"]
    assert [container.invoke(name, "x").json() for name in ("one", "two")] == ["x", "x"]
    assert container.get("/ping").status == 200
    assert container.metric("mme_parent_starts_total") == 2


@linux
def test_nothing_outlives_a_killed_front(start: Callable[..., Container], handler: Make) -> None:
    container = start()
    assert container.load("one", handler("one", HOLD)).status == 200
    held = background(container.invoke, "one", "hold")
    family = processes(container.process.pid)
    assert len(family) == 2
    container.process.kill()
    container.process.wait()
    wait_until(lambda: not any(alive(pid) for pid in family))
    with pytest.raises((OSError, Exception)):
        held.result()


@linux
def test_a_handler_that_hangs_is_ended_and_its_model_answers_again(
    start: Callable[..., Container], handler: Make
) -> None:
    container = start(SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="1")
    source = """
        import os, time
        def model_fn(d): return None
        def input_fn(data, c):
            if data == "input": time.sleep(3600)
            return data
        def predict_fn(data, model):
            if data == "predict": time.sleep(3600)
            return os.getpid()
    """
    assert container.load("hangs", handler("hangs", source)).status == 200
    for where in ("predict", "input"):
        before = container.invoke("hangs", "x").json()
        answer = container.invoke("hangs", where)
        assert answer.status == 504
        wait_until(lambda before=before: not alive(before))
        after = container.invoke("hangs", "x")
        assert after.status == 200
        assert after.json() != before
    assert container.names() == ["hangs"]


@linux
def test_work_that_nobody_waits_for_is_ended_and_the_queue_behind_it_is_not(
    container: Container, handler: Make
) -> None:
    import http.client

    folder = handler("hold", HOLD)
    assert container.load("hold", folder).status == 200
    pid = pid_of(container, "hold")
    leaver = http.client.HTTPConnection("127.0.0.1", container.port)
    leaver.request("POST", "/models/hold/invoke", "hold")
    wait_until((folder / "hold").exists)
    behind = background(container.invoke, "hold", "behind")
    wait_until(lambda: container.metric('mme_model_open_requests{model="hold"}') == 2)
    leaver.close()
    assert behind.result().json() == "behind"
    assert not alive(pid)


@linux
def test_handlers_that_exit_fork_and_print(container: Container, handler: Make) -> None:
    source = """
        import os, subprocess, sys
        def model_fn(d): return None
        def input_fn(data, c): return data
        def predict_fn(data, model):
            if data == "exit": os._exit(7)
            if data == "fork": return ["child", os.fork()][0]
            if data == "spawn": return subprocess.Popen(["sleep", "3600"]).pid
            if data == "print":
                for _ in range(1000): print("x" * 8000)
            return data
    """
    folder = handler("wild", source)
    assert container.load("wild", folder).status == 200
    assert container.invoke("wild", "fork").json() == "child"
    assert [container.invoke("wild", f"after-{n}").json() for n in range(5)] == [f"after-{n}" for n in range(5)]
    assert container.invoke("wild", "print").json() == "print"
    child = container.invoke("wild", "spawn").json()
    assert alive(child)
    assert container.unload("wild").status == 200
    wait_until(lambda: not alive(child))
    assert container.load("wild", folder).status == 200
    answer = container.invoke("wild", "exit")
    assert answer.status == 500
    assert "exit code 7" in answer.json()["message"]
    assert container.invoke("wild", "x").status == 404


@linux
def test_a_handler_that_closes_every_file_does_not_stay(container: Container, handler: Make) -> None:
    source = """
        import os, time
        def model_fn(d): return None
        def predict_fn(data, model):
            os.closerange(3, 1000)
            time.sleep(3600)
    """
    assert container.load("closes", handler("closes", source)).status == 200
    assert container.invoke("closes").status == 500
    assert container.names() == []


def test_a_load_whose_caller_leaves_leaves_nothing(container: Container, handler: Make, tmp_path: Path) -> None:
    import http.client
    import json

    source = f"""
        import time
        open({str(tmp_path / "begun")!r}, "w").close()
        time.sleep(3600)
    """
    caller = http.client.HTTPConnection("127.0.0.1", container.port)
    body = json.dumps({"model_name": "slow", "url": str(handler("slow", source))})
    caller.request("POST", "/models", body)
    wait_until((tmp_path / "begun").exists)
    assert container.names() == []
    assert container.load("slow", handler("again", "x = 1")).status == 409
    caller.close()
    wait_until(lambda: container.load("slow", handler_ok(tmp_path)).status == 200)


def handler_ok(tmp_path: Path) -> Path:
    code = tmp_path / "ok" / "code"
    code.mkdir(parents=True, exist_ok=True)
    (code / "inference.py").write_text("def model_fn(d): return 1\ndef predict_fn(d, m): return m")
    return tmp_path / "ok"


def test_a_load_that_takes_too_long(start: Callable[..., Container], handler: Make) -> None:
    container = start(MME_LOAD_TIMEOUT="1")
    answer = container.load("slow", handler("slow", "import time; time.sleep(3600)"))
    assert answer.status == 504
    assert container.names() == []
    wait_until(lambda: len(processes(container.process.pid)) == 1)


def test_unload_ends_a_load_that_is_under_way(container: Container, handler: Make, tmp_path: Path) -> None:
    source = f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\ntime.sleep(3600)"
    load = background(container.load, "slow", handler("slow", source))
    wait_until((tmp_path / "begun").exists)
    assert container.unload("slow").status == 200
    assert load.result().status == 503
    assert container.names() == []


@linux
@pytest.mark.parametrize("when", ["importing", "loading", "idle"])
def test_sigterm_ends_everything_at_any_time(
    start: Callable[..., Container], handler: Make, tmp_path: Path, when: str
) -> None:
    container = start(wait=when != "importing", MME_PRELOAD="torch" if when == "importing" else "")
    load = None
    if when == "loading":
        source = f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\ntime.sleep(3600)"
        load = background(container.load, "slow", handler("slow", source))
        wait_until((tmp_path / "begun").exists)
    family = processes(container.process.pid)
    assert family
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(20) == 0
    wait_until(lambda: not any(alive(pid) for pid in family))
    assert "Traceback" not in container.log()
    if load is not None:
        assert load.result().status == 503


# -- memory ---------------------------------------------------------------------------------------------------------


def test_a_model_that_does_not_fit_is_a_507_before_it_is_loaded(start: Callable[..., Container], handler: Make) -> None:
    container = start(MME_MEMORY_LIMIT="2G", MME_MEMORY_RESERVE="100M")
    folder = handler("fat", "raise RuntimeError('must not be imported')")
    with (folder / "pytorch_model.bin").open("wb") as file:
        file.truncate(3 * 1024**3)
    answer = container.load("fat", folder)
    assert answer.status == 507
    assert "MiB" in answer.json()["message"]
    assert container.names() == []
    assert container.load("thin", handler("thin", HOLD)).status == 200


@linux
def test_idle_models_are_parked_for_a_new_one_and_come_back(start: Callable[..., Container], handler: Make) -> None:
    """Six models that take 150 MB each, where not all of them fit: all stay loaded, all answer."""
    container = start(MME_MEMORY_LIMIT="700M", MME_MEMORY_RESERVE="100M")
    source = """
        import pathlib
        def model_fn(d): return pathlib.Path(d).name, bytearray(b"x" * 150_000_000)
        def predict_fn(data, model): return [model[0], len(model[1])]
    """
    names = [f"m{number}" for number in range(6)]
    for name in names:
        assert container.load(name, handler(name, source)).status == 200
    assert container.names() == names
    assert container.metric("mme_parks_total") > 0
    for name in [*names, *reversed(names)]:
        assert container.invoke(name).json() == [name, 150_000_000]
    assert container.metric("mme_wakes_total") > 0


@linux
def test_a_leak_is_ended_before_the_kernel_does_it(start: Callable[..., Container], handler: Make) -> None:
    container = start(MME_MEMORY_LIMIT="700M", MME_MEMORY_RESERVE="200M")
    source = """
        import time
        def model_fn(d): return []
        def predict_fn(data, model):
            for _ in range(data):
                model.append(bytearray(b"x" * 20_000_000))
                time.sleep(0.03)
            return len(model)
    """
    for name in ("leaks", "other"):
        assert container.load(name, handler(name, source)).status == 200
    answer = container.invoke("leaks", "1000")
    assert answer.status == 507
    assert "memory" in answer.json()["message"]
    assert container.names() == ["leaks", "other"]
    assert container.invoke("other", "1").json() == 1
    assert container.invoke("leaks", "1").json() == 1  # in a new process


def test_an_idle_model_is_parked_after_a_while(start: Callable[..., Container], handler: Make) -> None:
    container = start(MME_PARK_AFTER="0.3")
    assert container.load("idle", handler("idle", HOLD)).status == 200
    wait_until(lambda: container.metric('mme_models{state="parked"}') == 1)
    wait_until(lambda: len(processes(container.process.pid)) == 1)
    assert container.names() == ["idle"]
    assert container.invoke("idle", "x").json() == "x"
    wait_until(lambda: container.metric('mme_models{state="parked"}') == 1)
    assert container.unload("idle").status == 200
    assert container.invoke("idle", "x").status == 404


@linux
@pytest.mark.alone
def test_memory_comes_back_with_unload(container: Container, handler: Make) -> None:
    """A hundred loads and unloads of a model that takes 20 MB: the container's own processes do not grow."""
    from mme.container import memory

    source = "def model_fn(d): return bytearray(b'x' * 20_000_000)\ndef predict_fn(d, m): return len(m)"
    folder = handler("m", source)
    own = [container.process.pid, *processes(container.process.pid)]
    assert len(own) == 2

    def turn() -> None:
        assert container.load("m", folder).status == 200
        assert container.invoke("m").json() == 20_000_000
        assert container.unload("m").status == 200
        # Unload answers only when the process and its memory are gone.
        assert len(processes(container.process.pid)) == 1

    for _ in range(20):
        turn()
    before = sum(memory.private(pid) for pid in own)
    for _ in range(100):
        turn()
    after = sum(memory.private(pid) for pid in own)
    assert after - before < 2 * 1024 * 1024


# -- races ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_load_unload_and_invoke_of_the_same_models_raced(start: Callable[..., Container], handler: Make) -> None:
    """Every answer is one that the contract knows, every 200 is the right one, and in the end all is well.

    Six callers do 500 things each; 3,000 in continuous integration; or as many as MME_RACE_ACTIONS says.
    """
    actions = int(os.environ.get("MME_RACE_ACTIONS") or (3000 if os.environ.get("CI") else 500))
    container = start(MME_PARK_AFTER="0.025")
    source = """
        import pathlib
        def model_fn(d): return pathlib.Path(d).name
        def predict_fn(data, model): return [model, data]
    """
    names = [f"m{number}" for number in range(12)]
    folders = {name: handler(name, source) for name in names}
    wrong: list[tuple[str, str, Reply]] = []
    seen: dict[str, set[int]] = {"load": set(), "unload": set(), "invoke": set()}
    allowed = {"load": {200, 409, 503}, "unload": {200, 404}, "invoke": {200, 404}}

    def actor(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(actions):
            time.sleep(choice.random() / 60)  # a model has to be left alone now and then, to be parked
            name = choice.choice(names)
            action = choice.choices(["load", "unload", "invoke"], [3, 1, 20])[0]
            if action == "load":
                reply = container.load(name, folders[name])
            elif action == "unload":
                reply = container.unload(name)
            else:
                number = choice.randrange(10**9)
                reply = container.invoke(name, str(number))
                if reply.status == 200 and reply.json() != [name, number]:
                    wrong.append((action, name, reply))
            seen[action].add(reply.status)
            if reply.status not in allowed[action]:
                wrong.append((action, name, reply))

    threads = [threading.Thread(target=actor, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert seen["invoke"] == {200, 404}
    assert container.metric("mme_wakes_total") > 0
    for name in container.names():
        assert container.unload(name).status == 200
    wait_until(lambda: len(processes(container.process.pid)) == 1)
    for name in names:
        assert container.load(name, folders[name]).status == 200
        assert container.invoke(name, "1").json() == [name, 1]


@linux
def test_unload_waits_for_the_request_that_woke_the_model(start: Callable[..., Container], handler: Make) -> None:
    """Also where the process that was parked has not ended yet, and the new one has to wait for another load."""
    container = start(MME_PARK_AFTER="0.3", MME_MAX_LOADS="1")
    slow = handler("slow", "import time\ndef model_fn(d): time.sleep(1)")
    assert container.load("m", handler("m", HOLD)).status == 200
    parent = next(iter(processes(container.process.pid) - {pid_of(container, "m")}))
    os.kill(parent, signal.SIGSTOP)
    try:
        wait_until(lambda: container.metric('mme_models{state="parked"}') == 1)
        other = background(container.load, "slow", slow)
        wait_until(lambda: container.metric('mme_models{state="loading"}') == 1)
        asked = background(container.invoke, "m", "x")
        wait_until(lambda: container.metric('mme_models{state="waking"}') == 1)
        unloaded = background(container.unload, "m")
        wait_until(lambda: container.metric('mme_models{state="unloading"}') == 1)
    finally:
        os.kill(parent, signal.SIGCONT)
    assert (asked.result().status, asked.result().body) == (200, b'"x"')
    assert [reply.result().status for reply in (unloaded, other)] == [200, 200]
    assert container.names() == ["slow"]


@linux
def test_unload_waits_for_a_request_that_outlives_the_parent(start: Callable[..., Container], handler: Make) -> None:
    container = start()
    folder = handler("m", HOLD)
    assert container.load("m", folder).status == 200
    parent = next(iter(processes(container.process.pid) - {pid_of(container, "m")}))
    begun = background(container.invoke, "m", "hold")
    wait_until((folder / "hold").exists)
    waiting = background(container.invoke, "m", "x")
    wait_until(lambda: container.metric('mme_model_open_requests{model="m"}') == 2)
    unloaded = background(container.unload, "m")
    wait_until(lambda: container.metric('mme_models{state="unloading"}') == 1)
    os.kill(parent, signal.SIGKILL)
    assert begun.result().status == 500
    assert (waiting.result().status, waiting.result().body) == (200, b'"x"')
    assert unloaded.result().status == 200
    assert container.names() == []
    wait_until(lambda: len(processes(container.process.pid)) == 1)


@pytest.mark.alone
def test_a_slow_model_does_not_starve_the_others(start: Callable[..., Container], handler: Make) -> None:
    """With a single core to give, four models that hold it for good do not stop a fifth from answering."""
    container = start(MME_CPUS="1")
    folders = {name: handler(name, HOLD) for name in ("s1", "s2", "s3", "s4", "quick")}
    for name, folder in folders.items():
        assert container.load(name, folder).status == 200
    held = [background(container.invoke, name, "hold") for name in ("s1", "s2", "s3", "s4")]
    for name in ("s1", "s2", "s3", "s4"):
        wait_until((folders[name] / "hold").exists)  # each of them got its turn although none gave it back
    assert [container.invoke("quick", str(n)).body for n in range(20)] == [f'"{n}"'.encode() for n in range(20)]
    for folder in folders.values():
        (folder / "go").touch()
    assert [answer.result().json() for answer in held] == ["hold"] * 4


def test_too_many_waiting_requests_are_refused_with_503(start: Callable[..., Container], handler: Make) -> None:
    container = start(MME_MAX_QUEUE="3")
    folder = handler("hold", HOLD)
    assert container.load("hold", folder).status == 200
    held = [background(container.invoke, "hold", "hold") for _ in range(3)]
    wait_until(lambda: container.metric('mme_model_open_requests{model="hold"}') == 3)
    refused = container.invoke("hold", "x")
    assert refused.status == 503
    assert "try again" in refused.json()["message"]
    (folder / "go").touch()
    assert [answer.result().status for answer in held] == [200] * 3
