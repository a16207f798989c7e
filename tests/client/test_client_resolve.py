"""What a name means is remembered, looked up again in the background, and kept while the bucket is out of reach."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import EndpointConnectionError

from mme.aws import explain
from mme.client.resolve import Resolver
from mme.errors import ReleaseError

OLD, NEW = {"bert-000000000000.tar.gz": 100.0}, {"bert-111111111111.tar.gz": 100.0}


def unreachable() -> ReleaseError:
    cause = EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
    error = explain(cause, "read channel bert")
    error.__cause__ = cause
    assert isinstance(error, ReleaseError)
    return error


class Bucket:
    """``lookup`` answers ``now`` (a split or an error), once ``gate`` is open."""

    def __init__(self, now: dict[str, float] | Exception) -> None:
        self.now = now
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()
        self.ended = threading.Semaphore(0)
        self.time = 0.0
        self.resolver = Resolver(self.lookup, fresh=5, stale=60, wait=0.01, clock=lambda: self.time)

    def lookup(self, name: str) -> dict[str, float]:
        self.asked += 1
        self.gate.wait(20)
        try:
            if isinstance(self.now, Exception):
                raise self.now
            return self.now
        finally:
            self.ended.release()

    def until(self, is_so: Callable[[], bool]) -> None:
        """Ask until what is known is as it should be: the look-up runs in another thread."""
        assert self.ended.acquire(timeout=20)
        for _ in range(10_000):
            if is_so():
                return
            threading.Event().wait(0.001)
        raise AssertionError("it did not happen")


def test_a_name_is_looked_up_once_while_it_is_fresh() -> None:
    bucket = Bucket(OLD)
    assert [bucket.resolver.split("bert") for _ in range(100)] == [OLD] * 100
    bucket.time = 4.9
    assert bucket.resolver.split("bert") == OLD
    assert bucket.asked == 1
    bucket.resolver.split("gpt2")
    assert bucket.asked == 2


def test_an_older_one_is_answered_at_once_and_looked_up_in_the_background() -> None:
    bucket = Bucket(OLD)
    bucket.resolver.split("bert")
    assert bucket.ended.acquire(timeout=20)
    bucket.now, bucket.time = NEW, 6
    bucket.gate.clear()
    assert [bucket.resolver.split("bert") for _ in range(50)] == [OLD] * 50  # nobody waits
    bucket.gate.set()
    bucket.until(lambda: bucket.resolver.split("bert") == NEW)
    assert bucket.asked == 2


def test_one_that_is_too_old_is_looked_up_first() -> None:
    bucket = Bucket(OLD)
    bucket.resolver = Resolver(bucket.lookup, fresh=5, stale=60, wait=20, clock=lambda: bucket.time)
    bucket.resolver.split("bert")
    bucket.now, bucket.time = NEW, 61
    assert bucket.resolver.split("bert") == NEW


def test_a_bucket_that_hangs_is_not_waited_for() -> None:
    bucket = Bucket(OLD)
    bucket.resolver.split("bert")
    bucket.time = 1000
    bucket.gate.clear()
    assert bucket.resolver.split("bert") == OLD
    bucket.gate.set()


def test_the_last_good_one_is_used_while_the_bucket_is_out_of_reach(caplog: pytest.LogCaptureFixture) -> None:
    bucket = Bucket(OLD)
    bucket.resolver.split("bert")
    assert bucket.ended.acquire(timeout=20)
    bucket.now, bucket.time = unreachable(), 100.0
    assert bucket.resolver.split("bert") == OLD
    bucket.until(lambda: any("going on with what bert meant" in record.message for record in caplog.records))
    assert bucket.resolver.split("bert") == OLD
    assert bucket.asked == 2  # not again before `fresh` has passed
    bucket.now, bucket.time = NEW, 106
    bucket.resolver.split("bert")
    bucket.until(lambda: bucket.resolver.split("bert") == NEW)
    assert len(caplog.records) == 1


def test_a_name_that_is_gone_is_an_error() -> None:
    bucket = Bucket(OLD)
    bucket.resolver = Resolver(bucket.lookup, fresh=5, stale=60, wait=20, clock=lambda: bucket.time)
    bucket.resolver.split("bert")
    bucket.now, bucket.time = ReleaseError("There is no channel bert."), 61
    with pytest.raises(ReleaseError, match="no channel"):
        bucket.resolver.split("bert")
    bucket.now = NEW
    assert bucket.resolver.split("bert") == NEW


def test_the_first_look_up_that_fails_is_an_error_and_not_remembered() -> None:
    bucket = Bucket(unreachable())
    for _ in range(2):
        with pytest.raises(ReleaseError, match="Could not connect"):
            bucket.resolver.split("bert")
    bucket.now = OLD
    assert bucket.resolver.split("bert") == OLD


def test_threads_that_ask_at_once_share_one_look_up() -> None:
    bucket = Bucket(OLD)
    bucket.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(bucket.resolver.split, "bert") for _ in range(16)]
        bucket.gate.set()
        assert [one.result(20) for one in asked] == [OLD] * 16
    assert bucket.asked == 1


def test_a_look_up_that_another_thread_ended_meanwhile_is_not_made_again() -> None:
    asked = []

    def clock() -> float:
        if threading.current_thread() is threading.main_thread():  # which has just seen that nothing is known
            other = threading.Thread(target=resolver.split, args=("bert",))
            other.start()
            other.join()
        return 0.0

    def look_up(name: str) -> dict[str, float]:
        asked.append(name)
        return OLD

    resolver = Resolver(look_up, clock=clock)
    assert resolver.split("bert") == OLD
    assert asked == ["bert"]


def test_a_look_up_whose_thread_a_fork_took_away_does_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(OLD)
    bucket.resolver.split("bert")
    bucket.now, bucket.time = NEW, 6
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: None)
        assert bucket.resolver.split("bert") == OLD
    bucket.time = 400
    bucket.resolver.split("bert")
    bucket.until(lambda: bucket.resolver.split("bert") == NEW)
