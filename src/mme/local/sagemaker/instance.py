"""One instance of a variant: a container, and which models are loaded in it.

What SageMaker does between a request and its container: models are loaded when they are first asked for, unloaded when
memory or disk is short, loaded again when the container lost them; a container that dies is started again. It gets
plain values (``VariantSpec``), and a function that fetches archives.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mme.local.console import log
from mme.local.sagemaker.archive import bring
from mme.local.sagemaker.errors import InvokeFailed, ModelFailed, NotReady, Unavailable
from mme.local.sagemaker.spec import INVOKE_SECONDS, LOAD_SECONDS, Fetch, Observer, VariantSpec
from mme.local.sagemaker.state import InstanceState, ModelState
from mme.local.sagemaker.usage import Usage
from mme.runner.errors import ContainerError, ContainerRefused, ContainerTimeout
from mme.runner.process import Container, Reply

_LOADS_AT_ONCE = 4
_RESTART_PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass
class _Model:
    target: str
    name: str
    state: str = "loading"  # then "loaded", then "unloading"
    changed: threading.Event = field(default_factory=threading.Event)
    error: InvokeFailed | None = None
    users: int = 0
    waits: bool = False
    """Whether its load waits for others to leave room."""
    used_at: float = field(default_factory=time.monotonic)
    hit: bool = False


class Instance:
    """One container and the models in it. All methods may be called from any thread."""

    def __init__(
        self, label: str, spec: VariantSpec, container: str, folder: Path, fetch: Fetch, observer: Observer
    ) -> None:
        self.spec = spec
        self.label = label
        self.id = f"i-{uuid.uuid4().hex[:17]}"
        self._container_kind = container
        self._folder = folder
        self._fetch = fetch
        self._observer = observer
        self._lock = threading.Condition()
        self._models: dict[str, _Model] = {}
        self._on_disk: dict[str, int] = {}
        """Extracted archives and their bytes, by the model's name; the one that was loaded longest ago comes first."""
        self._container: Container | None = None
        """The container that takes requests; None while there is none."""
        self._launched: Container | None = None
        self._launching = threading.Lock()
        self._usage = Usage()
        self._stopping = False
        self._served = False
        """Whether the container was healthy once."""
        self._visitors = 0
        self._loads = threading.BoundedSemaphore(_LOADS_AT_ONCE)

    # -- the container's life

    def start(self) -> None:
        """Starts the container and returns when it is healthy. Raises ContainerError; nothing is left then."""
        try:
            container = self._launch()
            container.wait_healthy(self.spec.startup_seconds)
        except ContainerError:
            self.stop()
            raise
        self._put_in_service(container)
        threading.Thread(target=self._watch, args=(container,), name=f"watch-{self.label}", daemon=True).start()

    def _launch(self) -> Container:
        """A new process, which ``stop`` knows of from its first moment. Raises ContainerError."""
        with self._launching:
            if self._stopping:
                raise ContainerError("The endpoint was deleted before its container was up.")
            self._folder.mkdir(parents=True, exist_ok=True)
            self._launched = Container(
                self._container_kind,
                self._folder,
                {**self.spec.environment, "SAGEMAKER_MULTI_MODEL": "true"},
                lambda line: self._observer.output(self.spec.name, self.id, line),
            )
            return self._launched

    def _put_in_service(self, container: Container) -> None:
        with self._lock:
            self._container = container
            self._served = True
            self._lock.notify_all()

    def _watch(self, container: Container) -> None:
        """Puts a new container in the place of one that dies, and forgets what was loaded in the old one."""
        failures = 0
        started = time.monotonic()
        while True:
            container.wait()
            with self._lock:
                self._container = None
                for model in self._models.values():
                    if model.state != "loading":  # a loading one is settled by the thread that loads it
                        model.changed.set()
                self._models = {k: m for k, m in self._models.items() if m.state == "loading"}
                self._lock.notify_all()
                if self._stopping:
                    return
            log(f"{self.label}: {container.epitaph()}")
            container.stop()
            failures = failures + 1 if time.monotonic() - started < 10 else 0
            time.sleep(_RESTART_PAUSES[min(max(0, failures - 1), len(_RESTART_PAUSES) - 1)])
            log(f"{self.label}: starting the container again")
            started = time.monotonic()
            try:
                container = self._launch()
            except ContainerError as problem:
                if self._stopping:
                    return
                log(f"{self.label}: {problem}")
                continue  # the old one has ended, so this comes straight back here, after a longer pause
            try:
                container.wait_healthy(self.spec.startup_seconds)
            except ContainerError as problem:
                log(f"{self.label}: {problem}")
                container.stop()
                continue
            self._put_in_service(container)

    def stop(self) -> None:
        """Ends the container and removes its files; returns when it is gone."""
        with self._lock:
            self._stopping = True
            self._container = None
            self._lock.notify_all()
        with self._launching:
            container = self._launched
        if container is not None:
            container.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def enter(self) -> None:
        """Counts a request that is on its way to this host."""
        with self._lock:
            self._visitors += 1

    def leave(self) -> None:
        """Counts it out again."""
        with self._lock:
            self._visitors -= 1
            self._lock.notify_all()

    def drain(self, timeout: float) -> None:
        """Returns when no request is on its way any more, or after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while self._visitors and time.monotonic() < deadline:
                self._lock.wait(0.5)

    @property
    def ready(self) -> bool:
        """Whether its container is up."""
        container = self._container
        return container is not None and container.alive

    @property
    def outstanding(self) -> int:
        """How many requests are on their way to this host."""
        return self._visitors

    @property
    def loaded(self) -> int:
        """How many models are loaded now."""
        with self._lock:
            return sum(model.state == "loaded" for model in self._models.values())

    def measure(self) -> None:
        """Says what the instance uses of the machine, and how many models are loaded."""
        with self._lock:
            container, disk = self._container, sum(self._on_disk.values())
        if container is None:
            return
        processor, memory = self._usage.measure(container.pid)
        for name, value in (
            ("CPUUtilization", processor),
            ("MemoryUtilization", memory),
            ("DiskUtilization", 100.0 * disk / self.spec.volume_bytes),
        ):
            self._observer.gauge(self.spec.name, self.id, name, value, "Percent")
        self.report_loaded()

    def state(self) -> InstanceState:
        """What is up, at this moment. Models are in the order in which they were first asked for."""
        now, ticks = time.time(), time.monotonic()
        with self._lock:
            alive = self._container is not None and self._container.alive
            state = "InService" if alive else "Restarting" if self._served else "Starting"
            launched = self._launched
            models = tuple(
                ModelState(
                    target=model.target,
                    state=model.state,
                    requests=model.users,
                    last_used=now - (ticks - model.used_at),
                    disk_bytes=self._on_disk.get(model.name, 0),
                )
                for model in self._models.values()
            )
            return InstanceState(
                id=self.id,
                state="Stopping" if self._stopping else state,
                pid=launched.pid if launched is not None and launched.alive else None,
                requests=self._visitors,
                disk_bytes=sum(self._on_disk.values()),
                models=models,
            )

    def _healthy_container(self, deadline: float) -> Container:
        with self._lock:
            while self._container is None or not self._container.alive:
                left = deadline - time.monotonic()
                if self._stopping or left <= 0:
                    raise Unavailable("The container is not running.")
                self._lock.wait(min(left, 0.5))
            return self._container

    def _wait_for_another(self, container: Container, deadline: float) -> None:
        with self._lock:
            while self._container is container and not self._stopping:
                if time.monotonic() > deadline:
                    raise Unavailable("The container does not accept connections.")
                self._lock.wait(0.1)

    # -- invocation

    def invoke(self, target: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Answers one request with what the container said, a status below 400. Raises InvokeFailed."""
        arrived = time.monotonic()
        deadline = arrived + INVOKE_SECONDS
        metrics = {"hit": True}
        tries = 0
        while True:
            tries += 1
            last_try = tries >= 3
            model = self._acquire(target, deadline, metrics)
            try:
                container = self._healthy_container(deadline)
                began = time.monotonic()
                reply = container.request(
                    "POST",
                    f"/models/{model.name}/invoke",
                    body=body,
                    headers=headers,
                    timeout=INVOKE_SECONDS,
                )
                took = time.monotonic() - began
            except ContainerTimeout as problem:
                raise ModelFailed(
                    0, "Your invocation timed out while waiting for a response from container primary."
                ) from problem
            except ContainerRefused:
                # It died a moment ago and was not sent anything: the next one gets the request.
                self._wait_for_another(container, deadline)
                continue
            except ContainerError as problem:
                # It is not known whether the model saw the request, so it is not sent a second time.
                raise ModelFailed(500, f"The container ended while it was at work. {problem}") from problem
            finally:
                self._release(model)
            if reply.status == 404 and not last_try and self._forgotten_by_container(model, container):
                continue
            if reply.status == 507 and not last_try and self._evict_one(besides=target):
                continue
            break
        observe = self._observer.metric
        observe(self.spec.name, "ModelLatency", took * 1e6, "Microseconds")
        observe(self.spec.name, "OverheadLatency", (time.monotonic() - arrived - took) * 1e6, "Microseconds")
        observe(self.spec.name, "ModelCacheHit", 1.0 if metrics["hit"] else 0.0, "None")
        if reply.status >= 400:
            raise ModelFailed(reply.status, reply.body.decode("utf-8", "replace"))
        return reply

    def _forgotten_by_container(self, model: _Model, container: Container) -> bool:
        """Whether the container really lacks the model (a handler may answer 404 too); then it is dropped here."""
        try:
            if container.request("GET", f"/models/{model.name}", timeout=10.0).status != 404:
                return False
        except ContainerError:
            return False
        with self._lock:
            if self._models.get(model.target) is model:
                del self._models[model.target]
        return True

    def _acquire(self, target: str, deadline: float, metrics: dict[str, bool]) -> _Model:
        """The loaded model, marked as in use. The first caller starts the load; the others wait for the same one."""
        while True:
            with self._lock:
                if self._stopping:
                    raise Unavailable("The endpoint is being deleted.")
                model = self._models.get(target)
                if model is None:
                    metrics["hit"] = False
                    name = hashlib.sha256(f"s3://{self.spec.bucket}/{self.spec.prefix}{target}".encode()).hexdigest()[
                        :32
                    ]
                    model = self._models[target] = _Model(target, name)
                    threading.Thread(target=self._load, args=(model,), name=f"load-{target[:40]}", daemon=True).start()
                model.users += 1
                model.used_at = time.monotonic()
                if model.state == "loaded":
                    return model
                if model.state == "loading":
                    metrics["hit"] = False
            arrived = model.changed.wait(max(0.0, deadline - time.monotonic()))
            with self._lock:
                if model.state == "loaded" and self._models.get(target) is model:
                    return model
            self._release(model)
            if not arrived:
                raise NotReady(f"Model {target} is still loading.")
            if model.error is not None:
                raise model.error

    def _release(self, model: _Model) -> None:
        with self._lock:
            model.users -= 1
            model.used_at = time.monotonic()
            self._lock.notify_all()

    # -- loading and unloading

    def _load(self, model: _Model) -> None:
        began = time.monotonic()
        container: Container | None = None
        try:
            container = self._download_and_load(model, began + LOAD_SECONDS, began)
        except InvokeFailed as problem:
            model.error = problem
        except Exception as problem:
            model.error = ModelFailed(500, f"{type(problem).__name__}: {problem}")
        with self._lock:
            if model.error is None and self._container is container:
                model.state = "loaded"
            elif self._models.get(model.target) is model:
                del self._models[model.target]  # a failed load leaves nothing; the next request tries again
                if model.error is None:
                    model.error = ModelFailed(500, "The container ended while the model was loading.")
            self._lock.notify_all()
        model.changed.set()
        what = "loaded" if model.error is None else f"could not be loaded: {str(model.error)[:300]}"
        log(f"{self.label}: {model.target} {what} ({time.monotonic() - began:.2f} s)")
        self.report_loaded()

    def report_loaded(self) -> None:
        """Says how many models are loaded now."""
        self._observer.gauge(self.spec.name, self.id, "LoadedModelCount", float(self.loaded), "None")

    def _download_and_load(self, model: _Model, deadline: float, began: float) -> Container:
        home = self._folder / "models" / model.name
        observe = self._observer.metric
        observe(self.spec.name, "ModelLoadingWaitTime", (time.monotonic() - began) * 1e6, "Microseconds")
        # A downloaded archive stays until the endpoint is deleted: SageMaker, too, caches an archive by its key.
        downloading = None
        if not (home / "model").is_dir():
            downloading = time.monotonic()
            self._download(model, home, deadline)
            size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        else:
            size = self._on_disk[model.name]
        with self._lock:
            self._on_disk.pop(model.name, None)
            self._on_disk[model.name] = size
        self._trim_disk(self.spec.volume_bytes)
        if downloading is not None:
            observe(self.spec.name, "ModelDownloadingTime", (time.monotonic() - downloading) * 1e6, "Microseconds")
        loading = time.monotonic()
        while True:
            container = self._healthy_container(deadline)
            try:
                with (
                    self._loads
                ):  # not held while an archive is fetched and unpacked: others may be on the disk already
                    left = max(0.001, deadline - time.monotonic())
                    reply = container.load(model.name, home / "model", timeout=left)
            except ContainerTimeout as problem:
                raise ModelFailed(0, f"LOAD took longer than {LOAD_SECONDS:.0f} s.") from problem
            except ContainerRefused:
                self._wait_for_another(container, deadline)
                continue
            except ContainerError as problem:
                raise ModelFailed(500, f"The container ended while it loaded the model. {problem}") from problem
            if reply.status < 300 or reply.status == 409:
                observe(self.spec.name, "ModelLoadingTime", (time.monotonic() - loading) * 1e6, "Microseconds")
                return container
            if reply.status == 507 and self._make_room(model, deadline):
                continue
            raise ModelFailed(reply.status, reply.body.decode("utf-8", "replace"))

    def _trim_disk(self, limit: int) -> bool:
        """Removes extracted archives that are not loaded, the oldest first, until ``limit`` bytes or fewer are left.

        Answers whether any was removed.
        """
        with self._lock:
            in_use = {model.name for model in self._models.values()}
            total = sum(self._on_disk.values())
            unused = [name for name in self._on_disk if name not in in_use]
            for number, name in enumerate(unused):
                if total <= limit:
                    return number > 0
                total -= self._on_disk.pop(name)
                shutil.rmtree(self._folder / "models" / name, ignore_errors=True)
            return bool(unused)

    def _download(self, model: _Model, home: Path, deadline: float) -> None:
        """Fetches the archive and unpacks it. Where the disk is full, archives that are not loaded are removed, then
        idle models."""
        from mme.archive.untar import FULL, NoRoom

        while True:
            try:
                bring(self._fetch, self.spec, model.target, home, deadline)
                return
            except (NoRoom, OSError) as problem:
                if isinstance(problem, OSError) and problem.errno not in FULL:
                    raise
                room = self._trim_disk(0)
                if not room and self._make_room(model, deadline):
                    self._trim_disk(0)
                    room = True  # also where another load, which meets the same full disk, has removed it meanwhile
                if not room:
                    words = f"There is no room on the disk for {model.target}, and nothing left to unload: {problem}"
                    raise ModelFailed(507, words) from problem

    def _make_room(self, model: _Model, deadline: float) -> bool:
        """Unloads the least recently used model that nobody uses; whether another try to load may succeed.

        While others are in use or on their way into the container it waits: they can be unloaded soon. It does not
        wait for those that wait for room themselves.
        """
        waited = False
        while True:
            if self._evict_one(besides=model.target):
                return True
            with self._lock:
                model.waits = any(other is not model and not other.waits for other in self._models.values())
                left = deadline - time.monotonic()
                if left <= 0 or self._stopping:
                    model.waits = False
                    return False
                if not model.waits:
                    return waited  # those that it waited for are gone: what they took is free
                self._lock.wait(min(left, 1.0))
                model.waits = False
                waited = True

    def _evict_one(self, *, besides: str) -> bool:
        with self._lock:
            idle = [m for m in self._models.values() if m.state == "loaded" and m.users == 0 and m.target != besides]
            if not idle:
                return False
            victim = min(idle, key=lambda m: m.used_at)
            victim.state = "unloading"
            victim.changed.clear()
        began = time.monotonic()
        container = self._container
        with contextlib.suppress(ContainerError):
            if container is not None:
                container.request("DELETE", f"/models/{victim.name}", timeout=LOAD_SECONDS)
        with self._lock:
            if self._models.get(victim.target) is victim:
                del self._models[victim.target]
            self._lock.notify_all()
        victim.changed.set()
        self._observer.metric(self.spec.name, "ModelUnloadingTime", (time.monotonic() - began) * 1e6, "Microseconds")
        log(f"{self.label}: {victim.target} unloaded to make room")
        self.report_loaded()
        return True
