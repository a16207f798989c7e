"""A provider of whose schemas Terraform gets a few."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attached_provider
import few_resources
import grpc
import pytest
from few_resources import few


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(number: int, name: str, schema: bytes) -> bytes:
    return field(number, field(1, name.encode()) + field(2, schema))


def test_schemas_of_others_are_left_out_and_everything_else_stays_as_it_is() -> None:
    provider = field(1, b"the provider's own schema")
    bucket = entry(2, "aws_s3_bucket", b"b" * 300)  # its size takes two bytes
    region = entry(3, "aws_region", b"r")
    secret = entry(8, "aws_secret", b"s")
    function = entry(7, "arn_parse", b"f")
    entries = [
        provider,
        bucket,
        entry(2, "aws_s3_bucket_acl", b"a"),
        entry(3, "aws_vpc", b"v"),
        region,
        secret,
        function,
    ]
    assert few(b"".join(entries), {"aws_s3_bucket", "aws_region"}) == provider + bucket + region + function
    assert few(b"".join(entries), {"aws_secret"}) == provider + secret + function
    assert few(b"", {"aws_s3_bucket"}) == b""


def test_what_is_no_answer_of_that_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="wire type 0"):
        few(varint(2 << 3) + b"\x01", set())


def between(provider: str, place: Path, *names: str) -> list[str]:
    return [sys.executable, "-I", few_resources.__file__, provider, str(place), *names]


def test_it_is_the_program_that_ends_where_there_is_no_provider(tmp_path: Path) -> None:
    done = subprocess.run(between("unix:/nowhere", tmp_path / "schemas", "aws_vpc"), capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "UNAVAILABLE" in done.stderr
    assert list(tmp_path.iterdir()) == []


class Provider(grpc.GenericRpcHandler):  # type: ignore[misc]
    """One that has two resources, and answers everything else with what it was sent, or an error."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]

        def answer(request: bytes, context: Any) -> Any:
            self.asked.append((name, request))
            if request == b"bad":
                context.abort(grpc.StatusCode.INTERNAL, "it is bad")
            resources = entry(2, "aws_s3_bucket", b"b") + entry(2, "aws_vpc", b"v")
            return resources if name == "GetSchema" else request * 2

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[tuple[str, Provider]]:
    server, handler = grpc.server(ThreadPoolExecutor(4)), Provider()
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{tmp_path}/provider")
    server.start()
    yield f"unix:{tmp_path}/provider", handler
    server.stop(None)


def test_what_it_has_is_asked_for_once_and_everything_else_each_time(
    provider: tuple[str, Provider], tmp_path: Path
) -> None:
    address, handler = provider
    place = tmp_path / "of" / "schemas"
    place.parent.mkdir()
    for _ in range(2):  # the second finds the file of the first
        with subprocess.Popen(
            between(address, place, "aws_vpc"), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            socket = program.stdout.readline().strip()
            with grpc.insecure_channel(f"unix:{socket}") as channel:

                def call(name: str, request: bytes, channel: Any = channel) -> Any:
                    return channel.unary_unary(f"/tfplugin5.Provider/{name}")(request)

                for _ in range(2):
                    assert call("GetSchema", b"") == entry(2, "aws_vpc", b"v")
                    assert call("PrepareProviderConfig", b"1") == b"11"
                    assert call("PrepareProviderConfig", b"2") == b"22"
                    assert call("Configure", b"1") == b"11"
                    for name in ("PrepareProviderConfig", "Configure"):
                        with pytest.raises(grpc.RpcError, match="it is bad") as caught:
                            call(name, b"bad")
                        assert caught.value.code() == grpc.StatusCode.INTERNAL
            program.stdin.close()
    assert list(place.parent.iterdir()) == [place]
    prepare, configure = "PrepareProviderConfig", "Configure"
    once = {("GetSchema", b""): 1, (prepare, b"1"): 2, (prepare, b"2"): 2, (prepare, b"bad"): 4}
    assert Counter(handler.asked) == {**once, (configure, b"1"): 4, (configure, b"bad"): 4}


def test_threads_share_one_folder_with_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that asked at once, the first was left with a folder that was deleted."""
    made: list[str] = []

    def init(words: list[str], folder: Path) -> None:
        made.append(words[0])
        time.sleep(0.05)  # long enough for the others to ask as well

    attached_provider._install.cache_clear()
    monkeypatch.setattr(attached_provider.terraform, "run", init)
    try:
        with ThreadPoolExecutor(4) as pool:
            folders = set(pool.map(lambda _: attached_provider._installed(), range(4)))
        assert made == ["init"]
        assert [folder.is_dir() for folder in folders] == [True]
    finally:
        attached_provider._install.cache_clear()
