"""``Endpoint("…").model("bert").predict([...])``: the client that most programs want.

``mme.client.resolve`` looks up in the bucket what a name means, ``mme.client.batch`` cuts inputs into requests, and
``mme.client.endpoint.predict`` sends each request and repeats it where that can help.
"""

from __future__ import annotations

import contextvars
import functools
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from mme import aws, channels
from mme.channels import Split
from mme.client import batch, resolve
from mme.client.endpoint import JSON, NPY, PATIENCE_S, Answer, predict
from mme.client.errors import AnswerError, Failure, ModelError, PartialFailure
from mme.client.hooks import Call, Hook, watched
from mme.client.place import place_of
from mme.errors import MmeError, UsageError
from mme.releases import Store, parse_target

if TYPE_CHECKING:
    import boto3
    from types_boto3_s3 import S3Client
    from types_boto3_sagemaker_runtime import SageMakerRuntimeClient

CONCURRENCY = 8
CONNECTIONS = 64
ATTEMPTS = 4

T = TypeVar("T")

_making = threading.Lock()  # boto3 makes clients in one thread at a time


class Endpoint:
    """A multi-model endpoint, by its name; else by MME_ENDPOINT.

    ``bucket`` and ``prefix`` are where its models lie: left out, MME_BUCKET and MME_PREFIX, and without these SageMaker
    is asked once. ``region`` left out is AWS_REGION, AWS_DEFAULT_REGION or the profile's. ``concurrency`` bounds the
    requests of long lists that run at a time, over all calls of this object, and the number of ``apredict`` under way.
    ``patience`` (seconds) is how long a model that is being loaded is waited for, ``attempts`` the tries of a request
    that was throttled or met an endpoint that was not there for it. ``fresh`` (seconds) is how long the meaning of a
    name is not looked up again. ``on_request`` is called around each request: see ``mme.client.hooks``. ``session`` is
    the boto3 session whose credentials and region hold, such as another profile's or an assumed role's. ``runtime`` and
    ``s3`` are clients to use instead of those made here; such a runtime client should have boto3's own retries turned
    off, which would multiply with ours.

    Nothing is called before the first prediction. Any number of threads may use one Endpoint and its models at a time;
    one for the whole process is right. ``close``, or a with block, ends its threads.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        bucket: str | None = None,
        prefix: str | None = None,
        region: str | None = None,
        concurrency: int = CONCURRENCY,
        patience: float = PATIENCE_S,
        attempts: int = ATTEMPTS,
        fresh: float = resolve.FRESH_S,
        on_request: Hook | None = None,
        session: boto3.Session | None = None,
        runtime: SageMakerRuntimeClient | None = None,
        s3: S3Client | None = None,
    ) -> None:
        self.name = name or os.environ.get("MME_ENDPOINT") or ""
        if not self.name:
            raise UsageError("No endpoint is known.", 'Name it, Endpoint("my-endpoint"), or set MME_ENDPOINT.')
        for what, value in (("concurrency", concurrency), ("attempts", attempts)):
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{what} is a whole number, 1 or more, not {value!r}.")
        own = session.region_name if session else None
        self.region = region or own or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        self.concurrency = concurrency
        self.patience = patience
        self.attempts = attempts
        self._bucket = bucket or os.environ.get("MME_BUCKET")
        self._prefix = prefix or os.environ.get("MME_PREFIX")
        self._hook = on_request
        self._session = session
        self._runtime = runtime
        self._s3 = s3
        self._store: Store | None = None
        self._lock = threading.Lock()
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._resolver = resolve.Resolver(self._look_up, fresh=fresh)

    def model(self, name: str) -> Model:
        """The model or channel of this name: ``bert``, ``bert@staging``. Raises UsageError when it cannot be one."""
        if parse_target(name):
            raise UsageError(f"{name} is an archive, not the name of a model.", f'As in: endpoint.target("{name}").')
        channels.model_of(name)
        return Model(self, name, None)

    def target(self, target: str) -> Model:
        """One archive by its path under the model prefix, as in ``bert-0123456789ab.tar.gz``: no look-up is made."""
        if not target or target != target.strip():
            raise UsageError(f"{target!r} is not a target model.")
        return Model(self, target, {target: 100.0})

    def close(self) -> None:
        """End the threads once what is under way has ended."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.shutdown(wait=True)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what a Model uses ----

    def split(self, name: str) -> Split:
        """What a model's or channel's name means now, or meant when it could last be looked up: target to weight."""
        return self._resolver.split(name)

    def client(self) -> SageMakerRuntimeClient:
        """The client that asks, made when it is first needed."""
        if self._runtime is None:
            with _making:
                if self._runtime is None:
                    self._runtime = aws.runtime_client(
                        self.region, self._session, retries=False, connections=CONNECTIONS
                    )
        return self._runtime

    @property
    def hook(self) -> Hook | None:
        """What is called around each request."""
        return self._hook

    def submit(self, pool: str, do: Callable[[], T]) -> Future[T]:
        """Do it in a thread of the pool of this name, which has at most ``concurrency``."""
        with self._lock:
            if pool not in self._pools:
                self._pools[pool] = ThreadPoolExecutor(self.concurrency, thread_name_prefix=f"mme-{pool}")
            return self._pools[pool].submit(contextvars.copy_context().run, do)

    def _look_up(self, name: str) -> Split:
        if self._s3 is None:
            with _making:
                if self._s3 is None:
                    self._s3 = aws.s3_client(self.region, self._session)
        if self._store is None:
            if self._bucket:
                self._store = Store(self._bucket, self._prefix or "models/")
            else:
                with _making:
                    sagemaker = aws.sagemaker_client(self.region, self._session)
                self._store = place_of(sagemaker, self.name)
        return channels.current_split(self._s3, self._store, name)[0]


class Model:
    """A model on an endpoint, by a name or by one archive: see ``Endpoint.model`` and ``Endpoint.target``."""

    def __init__(self, endpoint: Endpoint, name: str, split: Split | None) -> None:
        self.endpoint = endpoint
        self.name = name
        self._split = split

    def resolve(self, key: str | None = None) -> str:
        """The archive (TargetModel) that a prediction would ask: by weight where the name means several, and always the
        same one for the same ``key`` as long as the weights stay."""
        return channels.pick(self._split or self.endpoint.split(self.name), key)

    def predict(
        self,
        inputs: Any,
        *,
        parameters: Mapping[str, Any] | None = None,
        key: str | None = None,
        accept: str | None = None,
        content_type: str | None = None,
        max_items: int | None = None,
    ) -> Any:
        """What the model answers to ``inputs``: parsed JSON, a numpy array (``accept="application/x-npy"``), or text.

        A text, number or object asks once. A list, tuple or generator is cut into requests of at most ``max_items``
        (32) inputs and SageMaker's 6 MiB, which run at the same time and ask the same version; their answers are joined
        in the order of the inputs. A numpy array is sent and asked for as x-npy, cut along its first axis by bytes.
        Bytes go as they are, with a ``content_type``. A mapping is the body itself. ``parameters`` go beside the
        inputs.

        Raises UsageError for inputs that cannot be sent (before anything is), ReleaseError for a name that means
        nothing, PartialFailure when some of several requests failed, and the other errors of ``mme.client.errors``.
        """
        if max_items is not None and (not isinstance(max_items, int) or max_items < 1):
            raise UsageError(f"max_items is a whole number, 1 or more, not {max_items!r}.")
        work = batch.cut(inputs, parameters, content_type, max_items)
        accept = accept or (NPY if work.content_type == NPY else JSON)
        target = self.resolve(key)
        if len(work.requests) == 1:
            request = work.requests[0]
            return batch.read(self._ask(target, request.body, work.content_type, accept, request.inputs))
        return batch.join(target, self._many(target, work, accept))

    async def apredict(self, inputs: Any, **more: Any) -> Any:
        """``predict`` for asyncio, with the same arguments: in a thread, of which the endpoint has ``concurrency``.

        A caller that stops waiting (a time-out, a cancelled task) does not stop the request.
        """
        import asyncio  # only programs that await load it

        return await asyncio.wrap_future(self.endpoint.submit("await", functools.partial(self.predict, inputs, **more)))

    def ask(
        self,
        body: bytes,
        *,
        content_type: str = JSON,
        accept: str = JSON,
        key: str | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> Answer:
        """One request with this body, to the answer as it came: for bodies and answers of other types.

        ``waiting`` is called before each further try.
        """
        return self._ask(self.resolve(key), body, content_type, accept, None, waiting)

    def _ask(
        self,
        target: str,
        body: bytes,
        content_type: str,
        accept: str,
        inputs: range | None,
        waiting: Callable[[], None] = lambda: None,
    ) -> Answer:
        endpoint = self.endpoint
        call = Call(endpoint.name, self.name, target, len(body), content_type, inputs)
        do = functools.partial(
            predict,
            endpoint.client(),
            endpoint.name,
            target,
            body,
            content_type=content_type,
            accept=accept,
            patience=endpoint.patience,
            attempts=endpoint.attempts,
            waiting=waiting,
        )
        return do() if endpoint.hook is None else watched(endpoint.hook, call, do)

    def _many(self, target: str, work: batch.Work, accept: str) -> list[tuple[range, Any]]:
        """The answers to the requests, in their order. Raises PartialFailure, or the one error that stops them all."""

        def one(request: batch.Request, inputs: range) -> Any:
            return batch.read(self._ask(target, request.body, work.content_type, accept, inputs))

        answers: list[tuple[range, Any]] = []
        failures: list[Failure] = []
        not_tried: list[range] = []
        left = [(request, request.inputs) for request in reversed(work.requests) if request.inputs is not None]
        running: dict[Future[Any], range] = {}
        while left or running:
            while left and len(running) < self.endpoint.concurrency:
                request, inputs = left.pop()
                running[self.endpoint.submit("part", functools.partial(one, request, inputs))] = inputs
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                inputs = running.pop(future)
                try:
                    answers.append((inputs, future.result()))
                except MmeError as error:
                    failures.append(Failure(inputs, error))
                    if not isinstance(error, (ModelError, AnswerError)):  # the next request would fail alike
                        not_tried += [inputs for _, inputs in reversed(left)]
                        left.clear()
        if not failures:
            return sorted(answers, key=_start)
        failures.sort(key=lambda failure: failure.inputs.start)
        if not answers and not_tried:
            raise failures[0].error
        raise PartialFailure(target, failures, not_tried, sorted(answers, key=_start)) from failures[0].error


def _start(part: tuple[range, Any]) -> int:
    return part[0].start
