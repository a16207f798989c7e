"""archive -> the handler run once on it, as the container on the endpoint would run it.

One container for all models of a run, started as a process on a free port of this machine, and spoken to by
SageMaker's contract alone. It gets no credentials, and its environment forbids downloads from the Hub.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from mme.archive.contents import Archive
from mme.archive.handler import SAMPLE
from mme.archive.plan import Plan
from mme.archive.untar import extract
from mme.archive.write import write_files
from mme.errors import VerifyError
from mme.handler_files import PIPELINE_MODULE
from mme.packaging import company, imports, samples
from mme.runner.errors import ContainerError, ContainerTimeout
from mme.runner.process import Container, Reply

START_S = 60.0
LOAD_S = 360.0  # what SageMaker allows
INVOKE_S = 60.0
STOP_S = 30.0

JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}

# Environment of a container under verification, beside what every local container gets.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # the same wherever it is packaged; and int8 is for the CPU alone
}


@dataclass(frozen=True)
class Verified:
    """What was seen: milliseconds to load and to answer, and the start of the answer (None when nothing was asked).

    ``doubt`` says what looks wrong about it, or is None.
    """

    load_ms: float
    invoke_ms: float | None
    content_type: str | None
    answer: str | None
    doubt: str | None = None


class Verifier:
    """A running container. Use it in a ``with`` block; it starts with the first archive and is stopped at the end.

    ``container`` is a kind of container or the words of a command, as ``mme.runner`` takes them.
    """

    def __init__(self, container: str | Sequence[str] = "ours") -> None:
        self._kind = container
        self._container: Container | None = None
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
        """The same for an archive that is not made yet: its files are put in a folder as unpacking would."""
        archive = Archive(None, planned.name, planned.digest, 0, planned.files, planned.manifest)
        return self._verify(archive, lambda model: write_files(planned, model))

    def _verify(self, archive: Archive, unpack: Callable[[Path], None]) -> Verified:
        container, folder = self.start(archive.manifest.get("trust_remote_code") is True)
        self._wait(container)
        self._number += 1
        name = f"{archive.digest[:12]}-{self._number}"
        model = folder / name / "model"
        try:
            unpack(model)
            verified = self._try(container, archive, name, model)
            return replace(verified, doubt=verified.doubt or _borrowed(model / "code"))
        finally:
            shutil.rmtree(model.parent, ignore_errors=True)

    def _try(self, container: Container, archive: Archive, name: str, model: Path) -> Verified:
        start = time.perf_counter()
        with self._said(archive, "LOAD"):
            loaded = container.load(name, model, timeout=LOAD_S)
        load_ms = (time.perf_counter() - start) * 1000
        if loaded.status != 200:
            raise self._failed(archive, f"it cannot be loaded ({loaded.status}): {_message(loaded.body)}")
        try:
            request = _sample(archive, model)
            if request is None:
                return Verified(load_ms, None, None, None, f"its handler has no {SAMPLE}, so it was only loaded")
            start = time.perf_counter()
            with self._said(archive, f"its {SAMPLE}"):
                reply = container.invoke(name, request, JSON_HEADERS, timeout=INVOKE_S)
            invoke_ms = (time.perf_counter() - start) * 1000
            if reply.status != 200:
                raise self._failed(archive, f"it answers its {SAMPLE} with {reply.status}: {_message(reply.body)}")
            content_type = reply.headers.get("content-type", "")
            answer = reply.body[:200].decode("utf-8", "replace")
            doubt = _doubt(content_type, reply.body)
            if doubt is None and company.batches(model):

                def ask(body: bytes) -> Reply:
                    return container.invoke(name, body, JSON_HEADERS, timeout=INVOKE_S)

                doubt = company.doubt(ask, request, reply, model)
            return Verified(load_ms, invoke_ms, content_type, answer, doubt)
        finally:
            with contextlib.suppress(ContainerError):
                container.unload(name, timeout=LOAD_S)

    # --- the container -----------------------------------------------------------------------------------------

    def start(self, trust_remote_code: bool = False) -> tuple[Container, Path]:
        """Start the container and do not wait: it gets ready while the archive is made. Raises VerifyError.

        With ``trust_remote_code`` it runs the code that comes with a model, as an endpoint does whose environment says
        HF_TRUST_REMOTE_CODE=true. A container that was started with the other setting is replaced. Returns the
        container and its folder.
        """
        if self._trusting != trust_remote_code:
            self.stop()
        self._trusting = trust_remote_code
        if self._container is None or self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="mme-verify-"))
            try:
                environment = {**ENVIRONMENT, "HF_TRUST_REMOTE_CODE": "true" if trust_remote_code else "false"}
                self._container = Container(
                    self._kind, self._folder, environment, self._folder / "log", grace_seconds=STOP_S
                )
            except ContainerError as error:
                self.stop()
                raise VerifyError(str(error), "Package with --no-verify to go without.") from None
        return self._container, self._folder

    def _wait(self, container: Container) -> None:
        try:
            container.wait_healthy(START_S)
        except ContainerTimeout:
            tail = self._log_tail()
            self.stop()
            raise VerifyError(
                f"The container that verifies archives was not ready within {START_S:.0f} seconds:\n{tail}",
                "Try again on a machine that is less busy, or package with --no-verify.",
            ) from None
        except ContainerError:
            tail = self._log_tail()
            self.stop()
            raise VerifyError(
                f"The container that verifies archives ended at once:\n{tail}",
                "It needs its libraries: pip install 'mme[container]'. Package with --no-verify to go without.",
            ) from None

    def stop(self) -> None:
        """End the container and everything it started; remove what it logged."""
        container, self._container = self._container, None
        if container is not None:
            container.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @contextlib.contextmanager
    def _said(self, archive: Archive, what: str) -> Iterator[None]:
        """Turns errors of the connection to the container into errors of the archive under test."""
        try:
            yield
        except ContainerTimeout:
            raise self._failed(
                archive, f"no answer to {what} in time ({LOAD_S:.0f} s for LOAD, {INVOKE_S:.0f} s otherwise)"
            ) from None
        except ContainerError as error:
            raise self._failed(archive, str(error).rstrip(".")) from None

    def _failed(self, archive: Archive, what: str) -> VerifyError:
        tail = self._log_tail()
        said = f"\nThe container's last words:\n{tail}" if tail else ""
        return VerifyError(
            f"{archive.target}: {what}.{said}",
            f"The archive is left at {archive.path} to look into; it is not built." if archive.path else None,
        )

    def _log_tail(self, lines: int = 15) -> str:
        said = self._container.last_output() if self._container else ""
        return "\n".join(f"  {line}" for line in said.splitlines()[-lines:])


def _borrowed(code: Path) -> str | None:
    """A warning for a handler that works here only because this machine has a library that containers lack; else
    None."""
    if not code.is_dir():
        return None
    present = {entry.name.partition(".")[0] for entry in code.iterdir()}
    files = [*code.glob("*.py"), *code.glob("common/**/*.py")]
    sources = {str(path.relative_to(code)): path.read_bytes() for path in sorted(files)}
    lacking = imports.lacking(sources, present)
    if not lacking:
        return None
    words = ", ".join(f"{imported} ({name})" for imported, name in lacking.items())
    return (
        f"its handler imports {words}, which is installed here, and neither in the archive nor in an image of ours or "
        "AWS's: name it in the handler's requirements.txt, unless your own image has it"
    )


def _sample(archive: Archive, model: Path) -> bytes | None:
    """The request to send: the handler's own sample, else one for the task; None when neither is known."""
    sample = model / "code" / SAMPLE
    if sample.is_file():
        return sample.read_bytes()
    task = archive.manifest.get("task")
    if (model / "code").is_dir() and not (model / "code" / PIPELINE_MODULE).is_file():
        return None
    return samples.for_task(str(task), model)


def _doubt(content_type: str, body: bytes) -> str | None:
    """What looks wrong about an answer that a container would pass on nevertheless; None if nothing does."""
    if not body:
        return "the answer is empty; see output_fn of its handler"
    if not content_type.startswith("application/json"):
        return None

    def no_constant(name: str) -> None:
        raise ValueError(f"it holds {name}")

    try:
        json.loads(body, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        return f"the answer is called JSON but is not ({error}); output_fn should return json.dumps(…), not str(…)"
    return None


def _message(body: bytes) -> str:
    try:
        said: Mapping[str, object] = json.loads(body)
        return str(said.get("message", said)).rstrip(".")
    except (ValueError, AttributeError, RecursionError):
        return body[:500].decode("utf-8", "replace").rstrip(".") or "no reason was given"


@contextlib.contextmanager
def maybe(wanted: bool) -> Iterator[Verifier | None]:
    """A verifier, or None."""
    if not wanted:
        yield None
        return
    with Verifier() as verifier:
        yield verifier
