"""One model in one process: reads requests, gathers batches, runs the handler, sends results.

A handler with ``decoder_fn`` works a step at a time (in generation, a token), and requests join and leave in between.

The process has one thread, and a second while a busy model takes more memory or gives it back. While it computes,
further requests gather in the socket's buffer (and behind it in the front); before each batch it takes all that are
there. It computes only while it holds a grant from the front, which is how the models of a machine share its cores.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mme.container import memory, system
from mme.container.errors import ServingError, internal
from mme.container.wire import Decoder, Frame, Kind, pack
from mme.container.workers import cuda
from mme.container.workers.handler import Answer, Handler, Offer, Steps, client_error, ruins_process
from mme.container.workers.templates import Templates

IDLE_SECONDS = 1.0
RECEIVE_BYTES = 256 * 1024
# Clients that were answered together mostly ask again together. After a batch of several, the next one waits for as
# many, for a tenth of the time that the last one took, and never longer than this. A single client never waits.
COMPANY_SECONDS = 0.005
# Answers are sent together with what follows them, the last of a batch with the grant that is given back, since each
# message wakes the front. They are held for at most so many bytes and seconds.
HELD_BYTES = 64 * 1024
HELD_SECONDS = 0.002
# This many refusals (ValueError and the like: a client's mistake, or the handler's) are logged with their traceback, so
# that a handler's author sees where. With more, clients could fill the log.
REFUSALS_SHOWN = 20


@dataclass
class Pending:
    """A request that waits in the worker. ``data`` is what input_fn returned, once it has run."""

    id: int
    headers: dict[str, str]
    body: bytes
    data: Any = None
    tokens: int = 0  # 0 of one that shares no batch
    began: float = 0.0  # monotonic seconds: when decoding began
    decoded: float = 0.0


@dataclass(frozen=True)
class Spec:
    """What to load and how to run it."""

    name: str
    model_dir: str
    program: str
    device: int
    threads: int
    batch_requests: int
    batch_tokens: int


class Worker:
    def __init__(self, sock: socket.socket, spec: Spec, families: Templates) -> None:
        self._refusals = 0
        self._sock = sock
        self._spec = spec
        self._templates = families
        self._pid = os.getpid()
        self._decoder = Decoder()
        self._pending: deque[Pending] = deque()
        self._granted = self._yield = self._worked = False
        self._threads = 0
        self._idle_reported = False
        self._expected = 1  # requests in the next batch, going by the last one
        self._wait_until = 0.0  # monotonic seconds
        self._handler: Handler | None = None
        self._steps: Steps | None = None
        self._joined: dict[int, Pending] = {}  # in work, a step at a time
        self._reported: list[int] = []  # the requests in work that the front knows of
        self._foreseen: int | None = None  # the request that the front knows to be next
        self._sending = threading.Lock()
        self._held: list[bytes] = []  # messages to be sent
        self._held_since = 0.0
        self._more: More | None = None
        self._ruined = False  # an error has left this process without the use of its GPU

    def run(self) -> None:
        """Load the model, then serve until the front closes the socket."""
        began = time.monotonic()
        self._set_threads(self._spec.threads)
        try:
            spec = self._spec
            self._templates.root = spec.model_dir + os.sep
            self._handler = Handler(spec.name, spec.model_dir, spec.program, spec.device, self._templates.shipped)
        except BaseException as error:
            self._only_here()
            traceback.print_exc()
            refusal = client_error(error)
            if refusal.status == 400:  # the fault is the model's, not the caller's
                refusal = ServingError(500, "ModelLoadException", refusal.message)
            self._send(Kind.FAILED, meta={"status": refusal.status, "type": refusal.kind, "message": refusal.message})
            return
        self._only_here()
        self._templates.close()
        system.trim_heap()
        used = os.times()  # the processor time of what the handler started counts, too
        meta = {
            "seconds": time.monotonic() - began,
            "cpu": time.process_time() + used.children_user + used.children_system,
            "private": memory.private(fresh=memory.written_lately(spec.model_dir)),
            "recipes": [recipe.plain() for recipe in self._templates.noted],
            "shared": sorted([*self._templates.used, *(["handler"] if self._handler.adopted else [])]),
            "notes": self._handler.context.notes,
            "offered": 0,
        }
        if self._handler.offer is not None:
            self._more = More(self._handler.offer, self._report_extra)
            meta["offered"] = int(self._handler.offer.bytes)
        self._send(Kind.READY, meta=meta)
        self._serve(self._handler)
        self._send_held()

    def _serve(self, handler: Handler) -> None:
        while True:
            if not self._receive(wait=not (self._granted and (self._pending or self._joined))):
                return
            if not self._granted:
                continue
            if (self._pending or self._joined) and not (self._yield and self._worked):
                self._worked = True  # each grant is good for one batch, or one step, at least
                if handler.stepwise:
                    self._step(handler)
                else:
                    if self._wait_until and not self._await_company():
                        return
                    self._batch(handler)
                if self._ruined or not self._receive(wait=False):
                    return
                if (self._pending or self._joined) and not self._yield:
                    self._send_held()
            left = len(self._pending) + len(self._joined)
            if not left or self._yield:
                self._granted = self._yield = False
                self._reported = []
                self._send(Kind.RELEASED, meta={"left": left})

    # -- the socket ---------------------------------------------------------------------------------------------

    def _send(self, kind: Kind, number: int = 0, meta: dict[str, Any] | None = None, body: bytes = b"") -> None:
        with self._sending:
            self._held.append(pack(kind, number, meta, body))
            self._flush()

    def _hold(self, kind: Kind, number: int, meta: dict[str, Any], body: bytes) -> None:
        """Send it with the next message, unless too much is held, or for too long."""
        with self._sending:
            now = time.monotonic()
            if not self._held:
                self._held_since = now
            self._held.append(pack(kind, number, meta, body))
            if now - self._held_since > HELD_SECONDS or sum(map(len, self._held)) > HELD_BYTES:
                self._flush()

    def _send_held(self) -> None:
        with self._sending:
            self._flush()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._sock.sendall(held[0] if len(held) == 1 else b"".join(held))

    def _receive(self, wait: bool) -> bool:
        """Take in what has arrived. False once the front is gone."""
        while True:
            timeout = None if self._idle_reported else IDLE_SECONDS
            if not select.select([self._sock], [], [], timeout if wait else 0)[0]:
                if wait:
                    self._report_idle()
                    continue
                return True
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                return False
            for frame in self._decoder.feed(data):
                self._take(frame)
                wait = False
            self._idle_reported = False

    def _await_company(self) -> bool:
        """Give those who were answered together a moment to ask again. False once the front is gone."""
        while len(self._pending) < self._expected:
            left = self._wait_until - time.monotonic()
            if left <= 0:
                break
            if select.select([self._sock], [], [], left)[0] and not self._receive(wait=False):
                return False
        self._wait_until = 0.0
        return True

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.REQUEST:
            self._pending.append(Pending(frame.id, frame.meta, frame.body))
        elif frame.kind == Kind.CANCEL:
            self._pending = deque(entry for entry in self._pending if entry.id != frame.id)
            if self._joined.pop(frame.id, None) and self._steps is not None:
                self._steps.drop(frame.id)
                self._tell()  # or the front would think that all this process does is work that nobody wants
        elif frame.kind == Kind.GRANT:
            if not self._granted:
                self._worked = False
                self._foreseen = self._pending[0].id if len(self._pending) == 1 else None
            self._granted = True
            self._yield = False
            self._set_threads(frame.id)
        elif frame.kind == Kind.YIELD:
            self._yield = self._granted
        elif frame.kind == Kind.BUSY and self._more is not None:
            self._more.want(frame.id == 1)

    def _report_idle(self) -> None:
        self._idle_reported = True
        system.trim_heap()
        cuda.give_back()
        self._send(Kind.MEMORY, meta={"private": memory.private()})

    def _report_extra(self, private: int, extra: int, error: str) -> None:
        with contextlib.suppress(OSError):  # the front is gone; the other thread notices
            self._send(Kind.MEMORY, meta={"private": private, "extra": extra, "error": error})

    def _set_threads(self, count: int) -> None:
        if count != self._threads and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(count)
            self._threads = count

    def _only_here(self) -> None:
        """End a copy of this process that the handler forked and that came back from the handler's code."""
        if os.getpid() != self._pid:
            os._exit(0)

    # -- computing ----------------------------------------------------------------------------------------------

    def _batch(self, handler: Handler) -> None:
        """Answer the next request, or as many as fit one batch."""
        batch = self._gather(handler)
        if not batch:
            return
        ids = [entry.id for entry in batch]
        if ids != [self._foreseen]:
            self._send(Kind.STARTED, meta={"ids": ids})
        self._foreseen = None
        if handler.transforms:
            self._transform(handler, batch[0])
            return
        started = time.monotonic()
        results = self._predict(handler, batch)
        predicted = time.monotonic()
        tokens = sum(max(1, entry.tokens) for entry in batch)
        for entry, result in zip(batch, results, strict=True):
            times = [entry.began, entry.decoded, predicted]
            self._answer(handler, entry, result, times, len(batch), tokens)
        self._expected = len(batch)
        if len(batch) > 1:
            now = time.monotonic()
            self._wait_until = now + min(COMPANY_SECONDS, (now - started) / 10)

    def _step(self, handler: Handler) -> None:
        """Take in every request that has come, do one step for all, and answer those that are done."""
        results: list[tuple[int, Any]] = []
        try:
            if self._steps is None:
                self._steps = handler.steps()
            while self._pending:
                self._join(handler, self._steps, self._pending.popleft())
            self._tell()
            self._send_held()
            if len(self._steps):
                results = list(self._steps.step())
            self._only_here()
        except BaseException as error:
            self._only_here()
            results = [(key, error) for key in self._joined]
            self._steps = None  # who knows what state it is in; the next request gets a new one
        size = len(self._joined)
        tokens = sum(entry.tokens for entry in self._joined.values())
        for key, result in results:
            entry = self._joined.pop(key, None)
            if entry is not None:
                self._answer(handler, entry, result, [entry.began, entry.decoded, time.monotonic()], size, tokens)
        if self._joined and self._steps is not None and not len(self._steps):
            lost = internal("The object of the handler's decoder_fn forgot the request")
            for entry in self._joined.values():
                self._fail(entry, lost)
            self._joined.clear()

    def _join(self, handler: Handler, steps: Steps, entry: Pending) -> None:
        entry.began = time.monotonic()
        if not self._decode(handler, entry):
            return
        try:
            steps.add(entry.id, entry.data)
            self._only_here()
        except BaseException as error:
            self._fail(entry, error)
            return
        entry.decoded = time.monotonic()
        self._joined[entry.id] = entry

    def _tell(self) -> None:
        """Tell the front which requests are in work, if that has changed."""
        ids = list(self._joined)
        if ids != self._reported:
            self._reported = ids
            self._send(Kind.STARTED, meta={"ids": ids})

    def _gather(self, handler: Handler) -> list[Pending]:
        batch: list[Pending] = []
        longest = 0
        limit = self._spec.batch_requests if handler.batch_fn else 1
        while self._pending and len(batch) < limit:
            entry = self._pending[0]
            if entry.began == 0.0:
                entry.began = time.monotonic()
                if not handler.transforms and not self._decode(handler, entry):
                    self._pending.popleft()
                    continue
                entry.decoded = time.monotonic()
            # Padding makes every request of a batch cost as much as the longest one.
            size = max(longest, entry.tokens) * (len(batch) + 1)
            if batch and (size > self._spec.batch_tokens or not entry.tokens or not longest):
                break
            longest = max(longest, entry.tokens)
            batch.append(self._pending.popleft())
        return batch

    def _decode(self, handler: Handler, entry: Pending) -> bool:
        try:
            entry.data = handler.decode(entry.body, entry.headers)
            entry.tokens = handler.tokens(entry.data)
        except BaseException as error:
            self._fail(entry, error)
            return False
        self._only_here()
        return True

    def _predict(self, handler: Handler, batch: list[Pending]) -> list[Any]:
        """Results in order; an exception instance stands for a request that failed."""
        if handler.batch_fn is None:
            return [self._one(handler.predict, batch[0].data)]
        try:
            results = handler.batch([entry.data for entry in batch])
            self._only_here()
            return results
        except BaseException as error:
            self._only_here()
            if len(batch) == 1:
                return [error]
        # One request made the batch fail: answer each by itself.
        return [self._one(lambda data: handler.batch([data])[0], entry.data) for entry in batch]

    def _one(self, function: Any, data: Any) -> Any:
        try:
            result = function(data)
            self._only_here()
            return result
        except BaseException as error:
            self._only_here()
            return error

    def _answer(
        self, handler: Handler, entry: Pending, result: Any, times: list[float], size: int, tokens: int
    ) -> None:
        if isinstance(result, BaseException):
            self._fail(entry, result)
            return
        try:
            answer = handler.encode(result, entry.headers)
        except BaseException as error:
            self._fail(entry, error)
            return
        self._only_here()
        self._result(entry, answer, times, size, tokens)

    def _transform(self, handler: Handler, entry: Pending) -> None:
        try:
            answer = handler.transform(entry.body, entry.headers)
        except BaseException as error:
            self._fail(entry, error)
            return
        self._only_here()
        self._result(entry, answer, [entry.began, entry.began, time.monotonic()], 1, 1)

    def _result(self, entry: Pending, answer: Answer, times: list[float], size: int, tokens: int) -> None:
        meta = {
            "status": answer.status,
            "type": answer.content_type,
            "times": [*times, time.monotonic()],
            "batch": size,
            "tokens": tokens,
            "own": max(1, entry.tokens),
            "headers": answer.headers,
        }
        self._hold(Kind.RESULT, entry.id, meta, answer.body)

    def _fail(self, entry: Pending, error: BaseException) -> None:
        self._only_here()
        refusal = client_error(error)
        self._ruined |= ruins_process(error)
        if not isinstance(error, ServingError):
            refused = refusal.status < 500
            self._refusals += refused
            if not refused or self._refusals <= REFUSALS_SHOWN:
                traceback.print_exception(error)
        now = time.monotonic()
        meta = {
            "status": refusal.status,
            "type": "application/json",
            "times": [entry.began, entry.decoded or now, now, now],
            "batch": 1,
            "tokens": entry.tokens,
            "own": max(1, entry.tokens),
            "error": refusal.kind,
        }
        self._hold(Kind.RESULT, entry.id, meta, refusal.body())


class More:
    """A busy model's further memory: taken and given back in a thread of its own, since that takes longer than a
    request should wait. ``report`` is called there with the private bytes, those beyond the need, and an error."""

    def __init__(self, offer: Offer, report: Callable[[int, int, str], None]) -> None:
        self._offer = offer
        self._report = report
        self._wanted = self._has = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def want(self, wanted: bool) -> None:
        with self._lock:
            self._wanted = wanted
            if self._thread is None:
                self._thread = threading.Thread(target=self._change, name="busy", daemon=True)
                self._thread.start()

    def _change(self) -> None:
        """Take or give back memory until the state is the wanted one, which may change meanwhile."""
        while True:
            extra, error = 0, ""
            before = memory.private()
            try:
                if self._wanted:
                    self._offer.begin()
                    self._has = True
                    extra = max(1, memory.private() - before)
                elif self._has:
                    self._has = False
                    self._offer.end()
                    system.trim_heap()
            except BaseException as raised:
                self._has = self._wanted = False
                error = f"{type(raised).__name__}: {raised}"
            self._report(memory.private(), extra, error)
            with self._lock:
                if self._has == self._wanted:
                    self._thread = None
                    return


def main(sock: socket.socket, spec: Spec, families: Templates) -> None:
    """Run as a freshly forked process. Never returns."""
    code = 0
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a handler may print anything
        sys.dont_write_bytecode = True  # the model's folder is the platform's, not ours to write in
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        Worker(sock, spec, families).run()
    except (BrokenPipeError, ConnectionError):
        pass  # the front is gone: nobody waits for an answer
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        os._exit(code)
