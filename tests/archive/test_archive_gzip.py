"""The gzip stream: one member, whatever it is made of, that every reader takes."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mme.archive.gzipstream import CHUNK, FAST, SMALL, STORED, Buffer, GzipStream, file_sink


class Collected:
    """A sink that keeps what it is given, copied: the buffers are used again."""

    def __init__(self) -> None:
        self.data = bytearray()

    def __call__(self, parts: Sequence[Buffer]) -> None:
        for part in parts:
            self.data += part


def packed(pieces: list[tuple[bytes, str]]) -> bytes:
    sink = Collected()
    with GzipStream(sink, threads=2) as stream:
        for data, how in pieces:
            stream.write(data, how)
        assert stream.close() == len(sink.data)
    return bytes(sink.data)


def one_member(data: bytes) -> bytes:
    """The content, read as a single gzip member with nothing after it."""
    reader = zlib.decompressobj(31)
    content = reader.decompress(data)
    assert reader.eof
    assert not reader.unused_data
    return content


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=200_000), st.sampled_from([STORED, FAST, SMALL])), max_size=8))
def test_what_goes_in_comes_out(pieces: list[tuple[bytes, str]]) -> None:
    assert one_member(packed(pieces)) == b"".join(data for data, _ in pieces)


@pytest.mark.parametrize("how", [STORED, FAST, SMALL])
@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7])
def test_sizes_at_the_edges(size: int, how: str) -> None:
    data = os.urandom(size // 2) + bytes(size - size // 2)
    assert one_member(packed([(data, how)])) == data


def test_the_header_tells_nothing_of_the_moment_or_the_machine() -> None:
    data = packed([(b"x", STORED)])
    assert data[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    assert packed([(b"x", STORED)]) == data


def test_what_is_stored_grows_by_five_bytes_a_block() -> None:
    """A head of 10 bytes, blocks of at most 65,535 bytes, an empty last block, and a checksum and size of 8 bytes."""
    for size in (0, 1, 65535, 65536, CHUNK, 3 * CHUNK + 5):
        assert len(packed([(bytes(size), STORED)])) == 10 + size + 5 * -(-size // 65_535) + 5 + 8


def test_compressing_makes_it_smaller_and_small_smallest() -> None:
    data = b" ".join(f"the {number % 977} houses".encode() for number in range(100_000))
    stored, fast, small = (len(packed([(data, how)])) for how in (STORED, FAST, SMALL))
    assert small < fast < stored / 2


def test_watches_see_everything_in_order() -> None:
    seen = bytearray()
    data = os.urandom(20 * CHUNK // 3)
    with GzipStream(Collected(), threads=2) as stream:
        source = io.BytesIO(data)
        while count := source.readinto(stream.room(FAST)):
            stream.advance(count, lambda piece: seen.extend(piece))
        stream.drain()
        assert seen == data


def test_an_error_of_the_sink_comes_out() -> None:
    def full(parts: Sequence[Buffer]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), GzipStream(full):
        pass


def test_an_error_of_a_watch_comes_out() -> None:
    def broken(piece: memoryview) -> None:
        raise ValueError("broken")

    with GzipStream(Collected()) as stream:
        stream.room(STORED)[:1] = b"x"
        stream.advance(1, broken)
        with pytest.raises(ValueError, match="broken"):
            stream.close()


def test_a_file_that_takes_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """writev may write less than it was given: at the end of a disk, or for no reason at all."""
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [b"".join(bytes(p) for p in parts)[:1000]]))
    data = os.urandom(300_000)
    path = tmp_path / "x.gz"
    with path.open("wb") as file, GzipStream(file_sink(file.fileno())) as stream:
        stream.write(data)
        stream.close()
    assert gzip.decompress(path.read_bytes()) == data


JAVA = """
import java.io.*;
import java.util.zip.GZIPInputStream;

public class Read {
    public static void main(String[] args) throws Exception {
        try (InputStream in = new GZIPInputStream(new FileInputStream(args[0]))) {
            in.transferTo(new FileOutputStream(args[1]));
        }
    }
}
"""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A tar in one gzip member of stored and of deflated blocks, and the content of its one file."""
    content = os.urandom(2 * CHUNK) + bytes(3 * CHUNK) + b"the end"
    info = tarfile.TarInfo("folder/file")
    info.size = len(content)
    member = info.tobuf() + content + bytes(-len(content) % 512 + 1024)
    third = len(member) // 3
    path = tmp_path_factory.mktemp("mixed") / "mixed.tar.gz"
    path.write_bytes(
        packed([(member[:third], STORED), (member[third : 2 * third], FAST), (member[2 * third :], SMALL)])
    )
    return path, content


def test_python_reads_it_as_a_file_and_as_a_stream(mixed: tuple[Path, bytes]) -> None:
    path, content = mixed
    for mode in ("r:gz", "r|gz"):
        with tarfile.open(path, mode) as tar:
            member = tar.next()
            assert member is not None
            read = tar.extractfile(member)
            assert read is not None
            assert read.read() == content


@pytest.mark.parametrize("command", [["tar", "-xzOf"], ["busybox", "tar", "-xzOf"]], ids=["tar", "busybox"])
def test_tar_reads_it(mixed: tuple[Path, bytes], command: list[str]) -> None:
    path, content = mixed
    try:
        done = subprocess.run([*command, str(path)], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    assert done.stdout == content
    assert not done.stderr


@pytest.mark.slow
def test_java_reads_it(mixed: tuple[Path, bytes], tmp_path: Path) -> None:
    path, content = mixed
    (tmp_path / "Read.java").write_text(JAVA)
    out = tmp_path / "out.tar"
    try:
        done = subprocess.run(["java", "Read.java", str(path), str(out)], cwd=tmp_path, capture_output=True)
    except FileNotFoundError:
        pytest.skip("Java is not installed")
    if b"jdk.compiler" in done.stderr or b"Could not find or load main class" in done.stderr:
        pytest.skip("this Java has no compiler")
    assert done.returncode == 0, done.stderr
    assert content in out.read_bytes()


GO = """
package main

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"os"
)

func main() {
	file, _ := os.Open(os.Args[1])
	inflated, problem := gzip.NewReader(file)
	if problem != nil {
		panic(problem)
	}
	archive := tar.NewReader(inflated)
	if _, problem = archive.Next(); problem != nil {
		panic(problem)
	}
	if _, problem = io.Copy(os.Stdout, archive); problem != nil {
		panic(problem)
	}
	if _, problem = io.Copy(io.Discard, inflated); problem != nil {
		panic(problem)
	}
}
"""


@pytest.mark.slow
def test_go_reads_it(mixed: tuple[Path, bytes], tmp_path: Path) -> None:
    path, content = mixed
    (tmp_path / "main.go").write_text(GO)
    environment = {**os.environ, "GO111MODULE": "off", "GOCACHE": str(tmp_path / "cache"), "GOFLAGS": ""}
    try:
        done = subprocess.run(["go", "run", "main.go", str(path)], cwd=tmp_path, capture_output=True, env=environment)
    except FileNotFoundError:
        pytest.skip("Go is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout == content
