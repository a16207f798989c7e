"""archive -> the handler run once on it, as the container on the endpoint would run it.

One container for all models of a run, started as a process on a free port of this machine, and spoken to by
SageMaker's contract alone. It sees no credentials and no network address of the Hub.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mme.archive.contents import Archive
from mme.archive.handler import SAMPLE
from mme.archive.plan import Plan
from mme.archive.untar import extract
from mme.archive.write import lay_out
from mme.errors import VerifyError

START_S = 60.0
LOAD_S = 360.0  # what SageMaker allows
INVOKE_S = 60.0
STOP_S = 30.0

# A request for a model without a handler of its own, by task.
SAMPLES = {
    "question-answering": {"inputs": {"question": "What is quiet?", "context": "The house is quiet."}},
    "fill-mask": {"inputs": "The house is [MASK]."},
}
SAMPLE_TEXT = {"inputs": "The house is quiet."}

# Starts the container so that the kernel ends it when this process dies, however that happens (Linux).
GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""

SECRETS = ("AWS_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MME_")


@dataclass(frozen=True)
class Verified:
    """What was seen: milliseconds to load and to answer, and the start of the answer (None when nothing was asked).

    ``doubt`` says what is odd about it, if anything is.
    """

    load_ms: float
    invoke_ms: float | None
    content_type: str | None
    answer: str | None
    doubt: str | None = None


class Verifier:
    """A running container. Use it in a ``with`` block; it starts with the first archive and is stopped at the end.

    ``command`` starts the container, which finds its port in SAGEMAKER_BIND_TO_PORT.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "mme.container", "serve")) -> None:
        self.command = tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._folder: Path | None = None
        self._number = 0
        self._trusting = False

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def verify(self, archive: Archive) -> Verified:
        """Unpack, load, ask the sample, unload. Raises VerifyError with what the container said."""
        path = archive.path
        if path is None:
            raise VerifyError(f"{archive.target} was not written to disk, so it cannot be verified.")
        return self._verify(archive, lambda model: extract(path, model))

    def verify_plan(self, planned: Plan) -> Verified:
        """The same for an archive that is not made yet: its files are laid out as it would be unpacked."""
        archive = Archive(None, planned.name, planned.digest, 0, planned.files, planned.manifest)
        return self._verify(archive, lambda model: lay_out(planned, model))

    def _verify(self, archive: Archive, unpack: Callable[[Path], None]) -> Verified:
        self.start(archive.manifest.get("trust_remote_code") is True)
        self._wait()
        folder = self._folder or Path()
        self._number += 1
        name = f"{archive.digest[:12]}-{self._number}"
        model = folder / name / "model"
        try:
            unpack(model)
            return self._try(archive, name, model)
        finally:
            shutil.rmtree(model.parent, ignore_errors=True)

    def _try(self, archive: Archive, name: str, model: Path) -> Verified:
        start = time.perf_counter()
        load = json.dumps({"model_name": name, "url": str(model)}).encode()
        status, _, body = self._call("POST", "/models", load, LOAD_S, archive)
        load_ms = (time.perf_counter() - start) * 1000
        if status != 200:
            raise self._failed(archive, f"it cannot be loaded ({status}): {_message(body)}")
        try:
            request = _sample(archive, model)
            if request is None:
                return Verified(load_ms, None, None, None, f"its handler has no {SAMPLE}, so it was only loaded")
            start = time.perf_counter()
            status, content_type, body = self._call("POST", f"/models/{name}/invoke", request, INVOKE_S, archive)
            invoke_ms = (time.perf_counter() - start) * 1000
            if status != 200:
                raise self._failed(archive, f"it answers its {SAMPLE} with {status}: {_message(body)}")
            answer = body[:200].decode("utf-8", "replace")
            return Verified(load_ms, invoke_ms, content_type, answer, _doubt(content_type, body))
        finally:
            with contextlib.suppress(VerifyError):
                self._call("DELETE", f"/models/{name}", b"", LOAD_S, archive)

    # --- the process -----------------------------------------------------------------------------------------

    def start(self, trust_remote_code: bool = False) -> None:
        """Start the container and do not wait: it gets ready while the archive is made. Raises VerifyError.

        With ``trust_remote_code`` it runs the code that comes with a model, as an endpoint does whose environment says
        HF_TRUST_REMOTE_CODE=true. A container that was started otherwise is replaced.
        """
        if self._process is not None and self._trusting == trust_remote_code:
            return
        self.stop()
        self._trusting = trust_remote_code
        self._folder = Path(tempfile.mkdtemp(prefix="mme-verify-"))
        self._port = _free_port()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(SECRETS)}
        environment.update(
            SAGEMAKER_BIND_TO_PORT=str(self._port),
            SAGEMAKER_MULTI_MODEL="true",
            HF_HUB_OFFLINE="1",
            TRANSFORMERS_OFFLINE="1",
            HF_TRUST_REMOTE_CODE="true" if trust_remote_code else "false",
            PYTHONUNBUFFERED="1",
            CUDA_VISIBLE_DEVICES="",  # the same wherever it is packaged; and int8 is for the CPU alone
        )
        command = self.command
        if sys.platform == "linux":
            command = (sys.executable, "-c", GUARD, str(os.getpid()), *self.command)
        with (self._folder / "log").open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                shutil.rmtree(self._folder, ignore_errors=True)
                raise VerifyError(
                    f"The container cannot be started: {self.command[0]}: {error.strerror}.",
                    "Package with --no-verify to go without.",
                ) from None

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            if self._process is None or self._process.poll() is not None:
                tail = self._log_tail()
                self.stop()
                raise VerifyError(
                    f"The container that verifies archives ended at once:\n{tail}",
                    "It needs its libraries: pip install 'mme[container]'. Package with --no-verify to go without.",
                )
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._request("GET", "/ping", b"", 2.0)[0] == 200:
                    return
            if time.monotonic() > deadline:
                tail = self._log_tail()
                self.stop()
                raise VerifyError(
                    f"The container that verifies archives was not ready within {START_S:.0f} seconds:\n{tail}",
                    "Try again on a machine that is less busy, or package with --no-verify.",
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """End the container and everything it started; remove what it logged."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            # Whatever is left of its session, workers included.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _call(self, method: str, path: str, body: bytes, seconds: float, archive: Archive) -> tuple[int, str, bytes]:
        try:
            return self._request(method, path, body, seconds)
        except TimeoutError:
            raise self._failed(archive, f"no answer to {method} {path} within {seconds:.0f} seconds") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(archive, f"the container broke off: {error or type(error).__name__}") from None

    def _request(self, method: str, path: str, body: bytes, seconds: float) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=seconds)
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            connection.request(method, path, body or None, headers if body else {})
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        finally:
            connection.close()

    def _failed(self, archive: Archive, what: str) -> VerifyError:
        tail = self._log_tail()
        said = f"\nThe container's last words:\n{tail}" if tail else ""
        return VerifyError(
            f"{archive.target}: {what}.{said}",
            f"The archive is left at {archive.path} to look into; it is not built." if archive.path else None,
        )

    def _log_tail(self, lines: int = 15) -> str:
        if self._folder is None:
            return ""
        try:
            text = (self._folder / "log").read_bytes()[-20_000:].decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _sample(archive: Archive, model: Path) -> bytes | None:
    if (model / "code").is_dir():
        sample = model / "code" / SAMPLE
        return sample.read_bytes() if sample.is_file() else None
    task = str(archive.manifest.get("task", ""))
    return json.dumps(SAMPLES.get(task, SAMPLE_TEXT)).encode()


def _doubt(content_type: str, body: bytes) -> str | None:
    """What is odd about an answer that a container would pass on all the same."""
    if not body:
        return "the answer is empty; see output_fn of its handler"
    if not content_type.startswith("application/json"):
        return None

    def no_constant(name: str) -> None:
        raise ValueError(f"it holds {name}")

    try:
        json.loads(body, parse_constant=no_constant)
    except ValueError as error:
        return f"the answer is called JSON but is not ({error}); output_fn should return json.dumps(…), not str(…)"
    return None


def _message(body: bytes) -> str:
    try:
        said: Mapping[str, object] = json.loads(body)
        return str(said.get("message", said)).rstrip(".")
    except (ValueError, AttributeError):
        return body[:500].decode("utf-8", "replace").rstrip(".") or "no reason was given"


@contextlib.contextmanager
def maybe(wanted: bool) -> Iterator[Verifier | None]:
    """A verifier, or None."""
    if not wanted:
        yield None
        return
    with Verifier() as verifier:
        yield verifier
