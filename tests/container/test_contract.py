"""SageMaker's multi-model contract, call by call, against a running container."""

from __future__ import annotations

import gzip
import http.client
import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from container_process import Container, background, wait_until

Make = Callable[..., Path]

NAMED = """
    import pathlib
    def model_fn(model_dir):
        return pathlib.Path(model_dir).name
    def predict_fn(data, model):
        return {"model": model, "data": data}
"""


def waiting(folder: Path) -> str:
    """A handler that says in this folder that it has begun, and waits there for leave to go on."""
    return f"""
        import os, time
        def model_fn(d): return None
        def predict_fn(data, model):
            open({str(folder / "begun")!r}, "w").close()
            while not os.path.exists({str(folder / "go")!r}): time.sleep(0.01)
            return "done"
    """


def test_load_list_get_invoke_unload(container: Container, handler: Make) -> None:
    folder = handler("first", NAMED)
    assert container.load("one", folder).status == 200
    assert container.call("GET", "/models").json() == {"models": [{"modelName": "one", "modelUrl": str(folder)}]}
    assert container.call("GET", "/models/one").json() == {"modelName": "one", "modelUrl": str(folder)}
    answer = container.invoke("one", '{"a": 1}')
    assert (answer.status, answer.json()) == (200, {"model": "first", "data": {"a": 1}})
    assert answer.headers["content-type"] == "application/json"
    assert container.unload("one").status == 200
    assert container.call("GET", "/models").json() == {"models": []}
    for gone in (container.invoke("one"), container.unload("one"), container.call("GET", "/models/one")):
        assert gone.status == 404
        assert gone.json()["type"] == "ModelNotFoundException"
        assert "one" in gone.json()["message"]


def test_second_load_of_a_name_conflicts(container: Container, handler: Make) -> None:
    folder = handler("first", NAMED)
    assert container.load("one", folder).status == 200
    again = container.load("one", handler("second", NAMED))
    assert (again.status, again.json()["code"]) == (409, 409)
    assert container.invoke("one").json()["model"] == "first"


@pytest.mark.parametrize("name", ["a/b", "hash?&=%", "ünïcode", "with space", "x/invoke"])
def test_model_names_are_opaque(container: Container, handler: Make, name: str) -> None:
    path = quote(name, safe="")
    assert container.load(name, handler("it", NAMED)).status == 200
    assert container.call("POST", f"/models/{path}/invoke", "{}").json()["model"] == "it"
    assert container.call("GET", f"/models/{path}").json()["modelName"] == name
    assert container.call("DELETE", f"/models/{path}").status == 200
    assert container.names() == []


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        '"x"',
        "{}",
        '{"model_name": "x"}',
        '{"model_name": 1, "url": "/"}',
        '{"model_name": "", "url": "/"}',
    ],
)
def test_malformed_load_is_a_400(container: Container, body: str) -> None:
    answer = container.call("POST", "/models", body)
    assert answer.status == 400
    assert "model_name" in answer.json()["message"]
    assert container.names() == []


def test_load_of_a_missing_folder_is_a_404(container: Container, tmp_path: Path) -> None:
    answer = container.load("one", tmp_path / "nowhere")
    assert answer.status == 404
    assert str(tmp_path / "nowhere") in answer.json()["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models/one/invoke"),
        ("PUT", "/models/one/invoke"),
        ("DELETE", "/models"),
        ("POST", "/models/one"),
        ("POST", "/ping"),
        ("POST", "/metrics"),
    ],
)
def test_other_methods_are_refused(container: Container, handler: Make, method: str, path: str) -> None:
    assert container.load("one", handler("first", NAMED)).status == 200
    answer = container.call(method, path, "{}")
    assert answer.status == 405
    allowed = answer.headers["allow"].split(", ")
    assert allowed
    assert method not in allowed
    assert container.names() == ["one"]


def test_a_name_that_is_no_text_names_no_model(container: Container, handler: Make) -> None:
    """%FF is not UTF-8: read leniently it would be answered by the model that is called by the sign for such bytes."""
    assert container.load("\ufffd", handler("first", NAMED)).status == 200
    assert container.call("POST", "/models/%EF%BF%BD/invoke", "{}").status == 200
    for method, path in (("POST", "/models/%FF/invoke"), ("GET", "/models/%FF"), ("DELETE", "/models/%ff")):
        assert container.call(method, path, "{}").status == 400
    assert container.names() == ["\ufffd"]
    assert container.call("DELETE", "/models/%EF%BF%BD").status == 200


def test_a_body_in_a_content_coding_is_refused(container: Container, handler: Make) -> None:
    """A handler would take gzip's bytes for the body itself."""
    assert container.load("one", handler("first", NAMED)).status == 200
    answer = container.invoke("one", gzip.compress(b"{}"), Content_Encoding="gzip")
    assert (answer.status, "gzip" in answer.json()["message"]) == (415, True)
    assert container.invoke("one", b"{}", Content_Encoding="identity").status == 200


def test_unknown_path(container: Container) -> None:
    assert container.call("GET", "/nothing").status == 404
    assert container.call("POST", "/invocations", "{}").status == 404  # single-model mode alone has it


def test_pages_of_the_list(container: Container, handler: Make) -> None:
    folder = handler("first", NAMED)
    for number in range(4):
        assert container.load(f"m{number}", folder).status == 200
    first = container.call("GET", "/models?limit=2").json()
    assert [model["modelName"] for model in first["models"]] == ["m0", "m1"]
    # A page stays right when models come and go between the calls.
    assert container.unload("m1").status == 200
    second = container.call("GET", f"/models?limit=2&next_page_token={first['nextPageToken']}").json()
    # The last page is exactly full, and says that it is the last.
    assert second == {"models": [{"modelName": f"m{n}", "modelUrl": str(folder)} for n in (2, 3)]}
    for bad in ("next_page_token=x", "limit=0", "limit=-1", "limit=x", "next_page_token=-1"):
        assert container.call("GET", f"/models?{bad}").status == 400


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def model_fn(d):\n    raise ValueError('no weights here')", "no weights here"),
        ("import a_library_that_is_not_there", "a_library_that_is_not_there"),
        ("def model_fn(d)\n    return 1", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def model_fn():\n    pass", "model_fn takes 0 arguments"),
        ("def transform_fn(m, d, c, a):\n    pass\ndef input_fn(d, c):\n    pass", "transform_fn cannot stand beside"),
    ],
)
def test_a_handler_that_fails_to_load_leaves_nothing(
    container: Container, handler: Make, source: str, message: str
) -> None:
    folder = handler("bad", None)
    (folder / "code" / "inference.py").write_text(source)
    answer = container.load("bad", folder)
    assert answer.status == 500
    assert message in answer.json()["message"]
    assert container.names() == []
    assert container.invoke("bad").status == 404
    assert container.get("/ping").status == 200
    (folder / "code" / "inference.py").write_text(
        "def predict_fn(data, model):\n    return 1\ndef model_fn(d):\n    return 2\n"
    )
    assert container.load("bad", folder).status == 200  # the name is free again


def test_a_handler_that_ends_its_process_while_loading(container: Container, handler: Make) -> None:
    answer = container.load("bad", handler("bad", "import os; os._exit(3)"))
    assert answer.status == 500
    assert "exit code 3" in answer.json()["message"]
    assert container.names() == []


def test_a_handler_without_memory_is_a_507(container: Container, handler: Make) -> None:
    answer = container.load("fat", handler("fat", "def model_fn(d):\n    raise MemoryError('no 80 GB')"))
    assert answer.status == 507
    assert container.names() == []


def test_a_folder_that_is_no_model(container: Container, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = container.load("empty", tmp_path / "empty")
    assert answer.status == 500
    assert "config.json" in answer.json()["message"]


def test_ping_and_list_answer_before_the_libraries_are_imported(start: Callable[..., Container]) -> None:
    container = start(wait=False, MME_PRELOAD="torch")
    assert container.call("GET", "/ping").status == 503
    assert container.call("GET", "/models").json() == {"models": []}
    container.wait_healthy()


def test_sigterm_answers_what_is_under_way(start: Callable[..., Container], handler: Make, tmp_path: Path) -> None:
    container = start()
    assert container.load("slow", handler("slow", waiting(tmp_path))).status == 200
    answer = background(container.invoke, "slow")
    wait_until((tmp_path / "begun").exists)
    container.process.send_signal(signal.SIGTERM)
    container.wait_for_log('"event": "draining"')
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", container.port), 5):
        pass  # nothing new is taken
    (tmp_path / "go").touch()
    assert answer.result().json() == "done"
    assert container.process.wait(30) == 0


def test_while_draining_ping_says_so_and_nothing_new_begins(
    start: Callable[..., Container], handler: Make, tmp_path: Path
) -> None:
    """On the connections that are open already, for nobody gets a new one."""
    container = start()
    folder = handler("slow", waiting(tmp_path))
    assert container.load("slow", folder).status == 200
    connections = [http.client.HTTPConnection("127.0.0.1", container.port, timeout=60) for _ in range(3)]
    for connection in connections:
        connection.request("GET", "/ping")
        assert connection.getresponse().read() == b'{"status": "Healthy"}'
    held = background(container.invoke, "slow")
    wait_until((tmp_path / "begun").exists)
    container.process.send_signal(signal.SIGTERM)
    container.wait_for_log('"event": "draining"')
    asked = [
        ("GET", "/ping", None),
        ("POST", "/models/slow/invoke", "{}"),
        ("POST", "/models", json.dumps({"model_name": "late", "url": str(folder)})),
    ]
    answers = []
    for connection, (method, path, body) in zip(connections, asked, strict=True):
        connection.request(method, path, body)
        answers.append(connection.getresponse().status)
    assert answers == [503, 503, 503]
    (tmp_path / "go").touch()
    assert held.result().json() == "done"
    assert container.process.wait(30) == 0


def test_unload_answers_what_is_under_way(container: Container, handler: Make, tmp_path: Path) -> None:
    folder = handler("slow", waiting(tmp_path))
    assert container.load("slow", folder).status == 200
    answers = [background(container.invoke, "slow") for _ in range(3)]
    wait_until((tmp_path / "begun").exists)
    wait_until(lambda: container.metric('mme_model_open_requests{model="slow"}') == 3)
    unload = background(container.unload, "slow")
    wait_until(lambda: container.call("GET", "/models/slow").status == 404)
    assert container.invoke("slow").status == 404
    assert container.load("slow", folder).status == 409
    assert container.unload("slow").status == 404
    assert not unload.done()
    (tmp_path / "go").touch()
    assert [answer.result().json() for answer in answers] == ["done"] * 3
    assert unload.result().status == 200
    assert container.load("slow", folder).status == 200


def test_a_body_at_the_limit_passes_and_one_above_does_not(start: Callable[..., Container], handler: Make) -> None:
    container = start(SAGEMAKER_MAX_PAYLOAD_IN_MB="1")
    length = "def model_fn(d): pass\ndef input_fn(d, c): return d\ndef predict_fn(d, m): return len(d)"
    assert container.load("length", handler("length", length)).status == 200
    kind = "application/octet-stream"
    assert container.invoke("length", b"x" * 1024 * 1024, Content_Type=kind).json() == 1024 * 1024
    refused = container.invoke("length", b"x" * (1024 * 1024 + 1), Content_Type=kind)
    assert refused.status == 413
    assert "1048576" in refused.json()["message"]
    # The same without a length in the header.
    with socket.create_connection(("127.0.0.1", container.port)) as client:
        client.sendall(b"POST /models/length/invoke HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"100001\r\n" + b"x" * 0x100001 + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_expect_continue_and_keep_alive_and_pipelining(container: Container, handler: Make) -> None:
    assert container.load("one", handler("first", NAMED)).status == 200
    with socket.create_connection(("127.0.0.1", container.port)) as client:
        client.sendall(
            b"POST /models/one/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"{}")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        bodies = [json.dumps({"n": n}).encode() for n in range(20)]
        client.sendall(
            b"".join(
                b"POST /models/one/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
                for body in bodies
            )
        )
        stream = client.makefile("rb")
        for number in range(20):
            assert stream.readline().startswith(b"HTTP/1.1 200 ")
            headers = dict(row.decode().rstrip().split(": ", 1) for row in iter(stream.readline, b"\r\n"))
            assert json.loads(stream.read(int(headers["Content-Length"])))["data"] == {"n": number}


def test_what_is_not_http_gets_a_400(container: Container) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/9.9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", container.port)) as client:
            client.sendall(sent)
            assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(("127.0.0.1", container.port)) as client:
        client.sendall(b"GET /ping HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 431 ")
    assert container.get("/ping").status == 200


def test_single_model_mode(start: Callable[..., Container], handler: Make, tmp_path: Path) -> None:
    handler("one", NAMED).rename(tmp_path / "model")
    container = start(SAGEMAKER_MULTI_MODEL="false", SAGEMAKER_BASE_DIR=str(tmp_path))
    assert container.call("POST", "/invocations", "{}").json() == {"model": "model", "data": {}}


@pytest.mark.parametrize(
    ("name", "value"),
    [("SAGEMAKER_BIND_TO_PORT", "http"), ("MME_CPUS", "0"), ("MME_MEMORY_LIMIT", "lots"), ("MME_DEVICE", "tpu")],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str) -> None:
    from mme.container.config import SettingsError, read

    with pytest.raises(SettingsError, match=name):
        read({name: value})


def test_metrics_count(container: Container, handler: Make) -> None:
    assert container.load("one", handler("first", NAMED)).status == 200
    for _ in range(3):
        reply = container.invoke("one")
        assert reply.status == 200
        stages = [part.partition(";dur=")[0] for part in reply.headers["server-timing"].split(", ")]
        assert stages == ["queue", "decode", "predict", "encode", "total"]
    assert container.invoke("one", "{").status == 400
    assert container.metric('mme_model_answers_total{model="one",status="200"}') == 3
    assert container.metric('mme_model_answers_total{model="one",status="400"}') == 1
    assert container.metric('mme_models{state="active"}') == 1
    assert container.metric('mme_model_private_bytes{model="one"}') > 0
    wait_until(lambda: [row["status"] for row in container.events("invoke")[-4:]] == [200, 200, 200, 400])
    line = container.events("invoke")[-2]
    assert line["model"] == "one"
    assert {"queue_ms", "decode_ms", "predict_ms", "encode_ms", "total_ms", "batch"} <= line.keys()


def test_the_access_log_tells_a_first_call_since_a_load(container: Container, handler: Make) -> None:
    folder = handler("first", NAMED)
    for _ in range(2):
        assert container.load("cold", folder).status == 200
        for _ in range(2):
            assert container.invoke("cold").status == 200
        assert container.unload("cold").status == 200

    def lines() -> list[dict[str, object]]:
        return [row for row in container.events("invoke") if row["model"] == "cold"]

    wait_until(lambda: len(lines()) == 4, container=container)
    assert [row.get("cold") for row in lines()] == [True, None, True, None]
