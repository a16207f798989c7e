"""Handlers as people bring them from the Hugging Face inference container, in the styles that public ones have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container, alive, processes, wait_until

from mme.container.config import SettingsError, read

Make = Callable[..., Path]

PLAIN = """
import json
def model_fn(model_dir):
    return model_dir
def predict_fn(data, model):
    return {"got": data}
"""


def answer(container: Container, folder: Path, body: bytes | str = "{}", **headers: str) -> object:
    loaded = container.load("m", folder)
    assert loaded.status == 200, loaded.body
    reply = container.invoke("m", body, **headers)
    assert reply.status == 200, reply.body
    return reply.json()


STYLES = {
    "the toolkit's decoder_encoder": """
from sagemaker_huggingface_inference_toolkit import decoder_encoder
def model_fn(model_dir): return 2
def input_fn(data, content_type): return decoder_encoder.decode(data, content_type)
def predict_fn(data, model): return data["x"] * model
def output_fn(prediction, accept): return decoder_encoder.encode(prediction, accept)
""",
    "SageMaker's encoder and decoder": """
from sagemaker_inference import content_types, decoder, encoder, errors
def model_fn(model_dir): return 2
def input_fn(data, content_type):
    assert content_type == content_types.JSON
    return decoder.decode('[1, 2, 3]', content_type)
def predict_fn(data, model): return int((data * model).sum()) - 6
def output_fn(prediction, accept): return encoder.encode(prediction, accept)
""",
    "a star import": "from impl import *\n",
    "a class with methods behind functions": """
class Service:
    def __init__(self, folder): self.factor = 2
    def run(self, data): return data["x"] * self.factor
def model_fn(model_dir): return Service(model_dir)
def predict_fn(data, service): return service.run(data)
""",
    "transform_fn alone": """
import json
def transform_fn(model, data, content_type, accept): return json.dumps(json.loads(data)["x"] * 2)
def model_fn(model_dir): return None
""",
    "output_fn alone, over a model that is a function": """
import json
def model_fn(model_dir): return lambda inputs: inputs
def output_fn(prediction, accept): return json.dumps(prediction["x"] * 2)
""",
    "an answer as a tuple": """
import json
def model_fn(model_dir): return 2
def predict_fn(data, model): return data["x"] * model
def output_fn(prediction, accept): return json.dumps(prediction), accept
""",
    "functions under if and try": """
try:
    import surely_not_installed
except ImportError:
    def model_fn(model_dir): return 2
if True:
    def predict_fn(data, model): return data["x"] * model
""",
    "a file beside the script, by a relative path": """
import json
FACTOR = json.load(open("code/factor.json"))
def model_fn(model_dir): return FACTOR
def predict_fn(data, model): return data["x"] * model
""",
    "the model's folder as the working folder": """
import os
def model_fn(model_dir):
    assert os.path.samefile(".", model_dir), os.getcwd()
    assert "code" in os.listdir()
    with open("scratch.txt", "w") as file: file.write("2")
    return int(open("scratch.txt").read())
def predict_fn(data, model): return data["x"] * model
""",
    "a module at the archive's root": """
import at_the_root
def model_fn(model_dir): return at_the_root.FACTOR
def predict_fn(data, model): return data["x"] * model
""",
    "a program of its own": """
import subprocess, sys
def model_fn(model_dir): return sys.executable
def predict_fn(data, model):
    return int(subprocess.run([model, "-c", f"print({data['x']} * 2)"], capture_output=True, check=True).stdout)
""",
    "a client at import": """
import boto3
S3 = boto3.client("s3")
def model_fn(model_dir): return 2
def predict_fn(data, model): return data["x"] * model
""",
}


@pytest.mark.parametrize("style", STYLES)
def test_a_style_of_public_handlers(container: Container, handler: Make, style: str) -> None:
    folder = handler("m", STYLES[style])
    (folder / "code" / "factor.json").write_text("2")
    (folder / "at_the_root.py").write_text("FACTOR = 2\n")
    (folder / "code" / "impl.py").write_text(
        "def model_fn(model_dir): return 2\ndef predict_fn(data, model): return data['x'] * model\n"
    )
    assert answer(container, folder, '{"x": 3}') == 6


def test_a_script_at_the_archives_root(container: Container, handler: Make) -> None:
    """The stock server uses it; answering by the default pipeline would be a wrong answer with status 200."""
    folder = handler("m", None)
    (folder / "inference.py").write_text(PLAIN)
    assert answer(container, folder, "[1]") == {"got": [1]}


def test_the_code_folder_comes_before_the_root(container: Container, handler: Make) -> None:
    folder = handler("m", PLAIN)
    (folder / "inference.py").write_text("raise RuntimeError('not this one')\n")
    assert answer(container, folder, "[1]") == {"got": [1]}


@pytest.mark.parametrize("program", ["", "inference.py", " "])
def test_an_empty_program_is_none(start: Callable[..., Container], handler: Make, program: str) -> None:
    """The SDK's MultiDataModel writes SAGEMAKER_PROGRAM="" into the model's environment."""
    assert answer(start(SAGEMAKER_PROGRAM=program), handler("m", PLAIN), "[1]") == {"got": [1]}


def test_handlers_get_the_headers_as_they_were_sent(container: Container, handler: Make) -> None:
    script = """
    import json
    def model_fn(model_dir): return None
    def input_fn(data, content_type): return [content_type, len(data)]
    def predict_fn(data, model): return data
    def output_fn(prediction, accept): return json.dumps([*prediction, accept])
    """
    folder = handler("m", script)
    sent = {"Content_Type": "audio/L16; rate=16000; channels=1", "Accept": "application/json;q=0.9, text/plain"}
    got = answer(container, folder, b"\x00\x01", **sent)
    assert got == ["audio/L16; rate=16000; channels=1", 2, "application/json;q=0.9, text/plain"]
    assert container.invoke("m", b"", Content_Type="text/x").json() == ["text/x", 0, "application/json"]


def test_json_with_parameters_still_reaches_a_handler_as_text(container: Container, handler: Make) -> None:
    script = """
    import json
    def model_fn(model_dir): return None
    def input_fn(data, content_type): return type(data).__name__
    def predict_fn(data, model): return data
    """
    sent = {"Content_Type": "application/json; charset=utf-8"}
    assert answer(container, handler("m", script), "{}", **sent) == "str"


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        ("mms.service.PredictionException('too long', 413)", 413, "too long"),
        ("mms.service.PredictionException('no code')", 500, "no code"),
        ("sagemaker_inference.errors.UnsupportedFormatError('text/odd')", 415, "text/odd"),
        ("sagemaker_inference.errors.GenericInferenceToolkitError(422, 'no such label')", 422, "no such label"),
        ("ValueError('Unknown label \\ud800')", 400, "Unknown label"),
        ("KeyboardInterrupt()", 500, "KeyboardInterrupt"),
        ("GeneratorExit()", 500, "GeneratorExit"),
        ("SystemExit('gone')", 500, "gone"),
        ("Mute()", 500, "Mute"),
        ("ValueError('x' * 100_000)", 400, "x … (100,000 characters in all)"),
    ],
)
def test_what_a_handler_raises(container: Container, handler: Make, raised: str, status: int, message: str) -> None:
    """The status that it names, and the model goes on."""
    script = f"""
    import mms.service, sagemaker_inference.errors
    class Mute(Exception):
        def __str__(self): raise RuntimeError("no words")
    def model_fn(model_dir): return None
    def predict_fn(data, model):
        if data: return data
        raise {raised}
    """
    assert container.load("m", handler("m", script)).status == 200
    reply = container.invoke("m", "{}")
    assert (reply.status, message in reply.json()["message"]) == (status, True), reply.body
    assert container.invoke("m", "[1]").json() == [1]


def test_a_script_without_a_function_is_named(container: Container, handler: Make) -> None:
    reply = container.load("m", handler("m", "def handle(data, context): return [1]\n"))
    assert (reply.status, "code/inference.py has no function that is called" in reply.json()["message"]) == (500, True)


def test_what_a_handler_says_may_be_anything(container: Container, handler: Make) -> None:
    """Text that no encoding knows reaches the client as JSON's own escape, and the log as one."""
    script = """
    def model_fn(model_dir): return None
    def predict_fn(data, model):
        print(data["label"])
        return data
    """
    folder = handler("m", script)
    assert answer(container, folder, '{"label": "\\ud800"}') == {"label": "\ud800"}
    raising = handler("n", "def model_fn(model_dir): raise ValueError('odd \\ud800')\n")
    reply = container.load("n", raising)
    assert (reply.status, "odd" in reply.json()["message"]) == (500, True)
    assert container.names() == ["m"]


DAEMONS = {
    "a session of its own": "subprocess.Popen(['sleep', '600'], start_new_session=True).pid",
    "a group of its own": "subprocess.Popen(['sleep', '600'], preexec_fn=os.setpgrp).pid",
    "an orphan in a session of its own": "daemon()",
}


@pytest.mark.parametrize("kind", DAEMONS)
@pytest.mark.parametrize("end", ["unload", "crash"])
def test_nothing_of_a_model_outlives_it(container: Container, handler: Make, kind: str, end: str) -> None:
    script = f"""
    import os, signal, subprocess
    def daemon():
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(write, str(os.getpid()).encode())
                os.execvp("sleep", ["sleep", "600"])
            os._exit(0)
        os.wait()
        return int(os.read(read, 20))
    def model_fn(model_dir): return {DAEMONS[kind]}
    def predict_fn(data, model):
        if data: os.kill(os.getpid(), signal.SIGKILL)
        return model
    """
    pid = answer(container, handler("m", script))
    assert isinstance(pid, int)
    assert alive(pid)
    if end == "unload":
        assert container.unload("m").status == 200
        assert not alive(pid), "its memory is given back when UNLOAD answers"
    else:
        assert container.invoke("m", "[1]").status == 500
    wait_until(lambda: not alive(pid))
    wait_until(lambda: pid not in processes(container.process.pid))


FOUND_IN_THE_WILD = {
    "SAGEMAKER_MODEL_SERVER_TIMEOUT": "3600",
    "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "9999999",
    "SAGEMAKER_MODEL_SERVER_WORKERS": "4",
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": "100000",
    "SAGEMAKER_CONTAINER_LOG_LEVEL": "DEBUG",
    "SAGEMAKER_REQUIREMENTS": "requirements.txt",
    "SAGEMAKER_STARTUP_TIMEOUT": "3600",
    "SAGEMAKER_PROGRAM": "",
    "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
    "MMS_DEFAULT_WORKERS_PER_MODEL": "2",
    "MMS_JOB_QUEUE_SIZE": "500",
    "MMS_DEFAULT_RESPONSE_TIMEOUT": "900",
    "MMS_MAX_REQUEST_SIZE": "100000000",
    "TS_MAX_RESPONSE_SIZE": "100000000",
}


def test_settings_found_in_the_wild(start: Callable[..., Container], handler: Make) -> None:
    """All at once: the container starts, takes what has a meaning here, and names the rest once."""
    container = start(**FOUND_IN_THE_WILD)
    notes = [event["message"] for event in container.events("setting")]
    for name in ("MMS_JOB_QUEUE_SIZE", "TS_MAX_RESPONSE_SIZE", "MMS_DEFAULT_WORKERS_PER_MODEL"):
        assert len([note for note in notes if note.startswith(name)]) == 1, name
    assert not [note for note in notes if "RESPONSE_TIMEOUT" in note or "REQUEST_SIZE" in note]
    assert answer(container, handler("m", PLAIN), json.dumps("x" * 7_000_000)) == {"got": "x" * 7_000_000}


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 60),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "2"}, 120),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "3600"}, 86400),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "2", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "7"}, 7),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "7", "MMS_DEFAULT_RESPONSE_TIMEOUT": "9"}, 9),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "0"}, 0.1),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": ""}, 60),
    ],
)
def test_how_long_an_answer_may_take(environ: dict[str, str], seconds: float) -> None:
    assert read(environ).invoke_timeout == seconds


def test_every_setting_may_be_empty() -> None:
    source = Path(__file__).parents[2] / "src" / "mme" / "container" / "config.py"
    names = {word for word in source.read_text().split('"') if word.startswith(("SAGEMAKER_", "MME_"))}
    assert len(names) > 20
    plain = read({})
    given = read(dict.fromkeys(names - {"MME_PRELOAD"}, ""))  # whose empty list means what it says
    assert given == plain


def test_what_is_not_a_number_is_still_named() -> None:
    with pytest.raises(SettingsError, match="SAGEMAKER_MODEL_SERVER_TIMEOUT"):
        read({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "an hour"})
