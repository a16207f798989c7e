"""Unpacking: whatever is in an archive, nothing is written outside the folder, and nothing half."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st

from mme.archive import untar
from mme.archive.read import contents
from mme.archive.untar import NoRoom, extract
from mme.errors import ArchiveError


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = len(content)
    info.mode = 0o4777
    return info


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w:gz", format=format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar(tmp_path: Path, format: int) -> None:
    long = (
        "/".join(["a-long-name-of-a-folder"] * 6) + "/file" if format == tarfile.USTAR_FORMAT else "ü" * 70 + "/ß" * 90
    )
    path = archive(
        tmp_path / "x.tar.gz",
        (member("./", kind=tarfile.DIRTYPE), b""),
        (member("./config.json", b"{}"), b"{}"),
        (member("code/", kind=tarfile.DIRTYPE), b""),
        (member(long, b"x" * 1000), b"x" * 1000),
        (member("empty"), b""),
        format=format,
    )
    extract(path, tmp_path / "out")
    assert files(tmp_path / "out") == {"config.json": b"{}", long: b"x" * 1000, "empty": b""}
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "out" / "code").stat().st_mode & 0o7777 == 0o755


def test_what_tar_itself_makes(tmp_path: Path) -> None:
    """As in the notebooks that people start from: tar over the whole folder, which gives ./ before every name."""
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "inference.py").write_text("x = 1\n")
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "model", arcname=".")
    extract(tmp_path / "m.tar.gz", tmp_path / "out")
    assert files(tmp_path / "out") == {"code/inference.py": b"x = 1\n"}


HOSTILE: dict[str, tuple[Callable[[], list[tuple[tarfile.TarInfo, bytes]]], str]] = {
    "an absolute path": (lambda: [(member("/etc/owned", b"x"), b"x")], "not a path inside"),
    "a path that climbs": (lambda: [(member("a/../../owned", b"x"), b"x")], "not a path inside"),
    "a path of dots": (lambda: [(member("..", kind=tarfile.DIRTYPE), b"")], "not a path inside"),
    "a backslash": (lambda: [(member("..\\owned", b"x"), b"x")], "not a path inside"),
    "a line break": (lambda: [(member("a\nb", b"x"), b"x")], "not a path inside"),
    "a link": (lambda: [(member("a", kind=tarfile.SYMTYPE, link="/etc"), b"")], "is a link"),
    "a link, then a file through it": (
        lambda: [(member("a", kind=tarfile.SYMTYPE, link="/tmp"), b""), (member("a/owned", b"x"), b"x")],
        "is a link",
    ),
    "a hard link": (lambda: [(member("a", kind=tarfile.LNKTYPE, link="/etc/passwd"), b"")], "is a hard link"),
    "a device": (lambda: [(member("a", kind=tarfile.CHRTYPE), b"")], "is a device"),
    "a pipe": (lambda: [(member("a", kind=tarfile.FIFOTYPE), b"")], "is a pipe"),
    "a file where a folder was": (lambda: [(member("a/b", b"x"), b"x"), (member("a", b"y"), b"y")], "twice"),
    "a file below a file": (lambda: [(member("a", b"x"), b"x"), (member("a/b", b"y"), b"y")], "twice"),
}


@pytest.mark.parametrize(("members", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_leaves_nothing(
    tmp_path: Path, members: Callable[[], list[tuple[tarfile.TarInfo, bytes]]], message: str
) -> None:
    path = archive(tmp_path / "x.tar.gz", (member("first", b"1"), b"1"), *members())
    inside = tmp_path / "inside"
    with pytest.raises(ArchiveError, match=message):
        extract(path, inside / "out")
    assert list(inside.iterdir()) == []
    assert not (tmp_path / "owned").exists()


def test_the_last_of_a_file_that_comes_twice_counts(tmp_path: Path) -> None:
    """As after tar -r, which puts the new one behind the old one."""
    path = archive(
        tmp_path / "x.tar.gz", (member("a", b"old"), b"old"), (member("b"), b""), (member("./a", b"n"), b"n")
    )
    extract(path, tmp_path / "out")
    assert files(tmp_path / "out") == {"a": b"n", "b": b""}
    assert [(file.path, file.size) for file in contents(path)] == [("a", 1), ("b", 0)]


def pax(*records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header of these records, each made as long as it says."""
    data = b"".join(records)
    return member("x", data, kind).tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while length != len(str(length)) + len(key) + len(value) + 3:
        length = len(str(length)) + len(key) + len(value) + 3
    return f"{length} ".encode() + key + b"=" + value + b"\n"


def longlink(path: bytes) -> bytes:
    return (
        member("././@LongLink", path, tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
        + path
        + bytes(-len(path) % 512)
    )


FILE = member("a").tobuf(tarfile.GNU_FORMAT)
END = bytes(1024)
BOMBS: dict[str, tuple[Callable[[], Iterable[bytes]], str]] = {
    "a pax path of many folders": (lambda: [pax(record(b"path", b"a/" * 30_000)), FILE], "longer than"),
    "a GNU path of many folders": (lambda: [longlink(b"a/" * 30_000), FILE], "longer than"),
    "a path that is only deep": (lambda: [pax(record(b"path", b"a/" * 900 + b"b")), FILE], "deeper than"),
    "a path of ./ again and again": (lambda: [longlink(b"./" * 30_000 + b"a"), FILE], "longer than"),
    "a path in a large header": (lambda: [pax(record(b"path", b"a/" * 100_000)), FILE], "too large"),
    "records of nothing": (lambda: [pax(b"5 a=\n" * 200_000), FILE], "too large"),
    "records of nothing in every header": (
        lambda: (pax(b"5 a=\n" * 12_000) + FILE for _ in range(6)),
        "header of the archive is broken",
    ),
    "headers without a member": (lambda: (pax(record(b"mtime", b"1")) for _ in range(2000)), "two extended headers"),
    "global headers without end": (
        lambda: (pax(record(b"a", b"1"), kind=tarfile.XGLTYPE) for _ in range(200)),
        "two extended headers",
    ),
    "headers that count as members": (lambda: (longlink(b"a") + FILE for _ in range(2000)), "more than 3,000"),
    "folders that names imply": (
        lambda: (longlink(b"/".join(b"%d.%d" % (n, d) for d in range(30))) + FILE for n in range(120)),
        "more than 3,000",
    ),
    "long names without end": (lambda: (longlink(b"%d" % n + b"a" * 2000) + FILE for n in range(700)), "too long"),
    "a size of a thousand digits": (lambda: [pax(record(b"size", b"9" * 1000)), FILE], "larger than the space"),
    "a negative size": (lambda: [pax(record(b"size", b"-1")), FILE], "not a number"),
    "a path for all": (lambda: [pax(record(b"path", b"b"), kind=tarfile.XGLTYPE), FILE], "all its members one path"),
    "a size for all": (lambda: [pax(record(b"size", b"0"), kind=tarfile.XGLTYPE), FILE], "all its members one path"),
    "a sparse map for all": (lambda: [pax(record(b"GNU.sparse.major", b"1"), kind=tarfile.XGLTYPE), FILE], "one path"),
    "a second tar behind the end": (lambda: [FILE, END, FILE, END], "follows the end"),
    "a member behind one block of zeros": (lambda: [FILE, bytes(512), FILE, END], "follows the end"),
    "something behind the end": (lambda: [FILE, END, *(bytes(1 << 20) for _ in range(8))], "follows the end"),
}


@pytest.mark.parametrize(("parts", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_what_would_take_all_memory_or_time_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Callable[[], Iterable[bytes]], message: str
) -> None:
    for name, bound in {"MAX_FILES": 3000, "MAX_RECORDS": 50_000, "MAX_NAMES": 1 << 20}.items():
        monkeypatch.setattr(untar, name, bound)  # the real ones take seconds to reach
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as file:
        for part in parts():
            file.write(part)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=message):
            extract(tmp_path / "x.tar.gz", tmp_path / "out")
        with pytest.raises(ArchiveError, match=message):
            contents(tmp_path / "x.tar.gz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert not (tmp_path / "out").exists()


def test_what_is_claimed_is_judged_before_anybody_makes_room_for_it(tmp_path: Path) -> None:
    """No room on the disk is what others are unloaded for; an archive that cannot hold what it claims is broken."""
    info = member("model.safetensors")
    info.size = 500 << 30
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(ArchiveError, match="larger than the space") as caught:
        extract(tmp_path / "x.tar.gz", tmp_path / "out")
    assert not isinstance(caught.value, NoRoom)


def test_a_name_that_this_machines_locale_cannot_spell(tmp_path: Path) -> None:
    """As where file names must be ASCII: an error of the archive, with its name and the way out, and nothing left."""
    path = archive(tmp_path / "x.tar.gz", (member("gr\u00fc\u00dfe.txt", b"x"), b"x"))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from mme.archive.untar import extract\nfrom mme.errors import ArchiveError\n"
        "try:\n  extract(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except ArchiveError as error:\n  print(ascii(str(error)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, str(path), str(tmp_path / "into" / "out")],
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot be written here" in done.stdout, done
    assert "x.tar.gz" in done.stdout
    assert list((tmp_path / "into").iterdir()) == []


def test_unpacking_can_be_given_up(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", (member("a", bytes(5 << 20)), bytes(5 << 20)))

    def late(count: int) -> None:
        raise TimeoutError

    with pytest.raises((TimeoutError, ArchiveError)):
        extract(path, tmp_path / "out", progress=late)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("read", [contents, lambda path: extract(path, path.with_name("out"))])
@pytest.mark.parametrize("cut", [0.2, 0.6, 0.95])
def test_a_cut_inside_a_large_file_names_the_archive(
    tmp_path: Path, cut: float, read: Callable[[Path], object]
) -> None:
    path = archive(tmp_path / "x.tar.gz", (member("a", b"x" * 5_000_000), os.urandom(5_000_000)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(ArchiveError, match=r"x\.tar\.gz: "):
        read(path)


def test_more_than_allowed(tmp_path: Path) -> None:
    """Ten megabytes of nothing compress to ten thousand bytes: the sizes claimed are added up before writing."""
    path = archive(tmp_path / "x.tar.gz", *[(member(str(n), bytes(1 << 20)), bytes(1 << 20)) for n in range(10)])
    assert path.stat().st_size < 20_000
    with pytest.raises(ArchiveError, match="larger than the space"):
        extract(path, tmp_path / "out", max_bytes=5 << 20)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_size_far_beyond_what_is_there(tmp_path: Path) -> None:
    info = member("a")
    info.size = 1 << 40
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"little"))
    with pytest.raises(ArchiveError, match="larger than the space"):
        extract(tmp_path / "x.tar.gz", tmp_path / "out")


def test_an_extended_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = member("a", kind=tarfile.XHDTYPE)
    info.size = 1 << 33
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    with pytest.raises(ArchiveError, match="too large"):
        extract(tmp_path / "x.tar.gz", tmp_path / "out")


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mme.archive.untar.MAX_FILES", 3)
    path = archive(tmp_path / "x.tar.gz", *[(member(str(n)), b"") for n in range(4)])
    with pytest.raises(ArchiveError, match="more than 3 members"):
        extract(path, tmp_path / "out")


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_an_archive_cut_short(tmp_path: Path, cut: float) -> None:
    path = archive(tmp_path / "x.tar.gz", (member("a", b"x" * 5000), bytes(range(250)) * 20))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(ArchiveError, match=r"x\.tar\.gz"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", (member("a", b"x" * 5000), b"x" * 5000))
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the checksum
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="not a whole gzip file"):
        extract(path, tmp_path / "out")


def test_neither_gzip_nor_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello")
    with pytest.raises(ArchiveError, match="not a whole gzip file"):
        extract(tmp_path / "x", tmp_path / "out")
    with pytest.raises(ArchiveError, match="no archive"):
        extract(tmp_path / "y", tmp_path / "out")


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", (member("a", b"x"), b"x"))
    (tmp_path / "out").mkdir()
    extract(path, tmp_path / "out")
    with pytest.raises(ArchiveError, match="not an empty folder"):
        extract(path, tmp_path / "out")


@bounded
@given(at=st.integers(0, 3000), with_=st.binary(min_size=1, max_size=30))
def test_no_change_to_the_tar_gets_out_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, at: int, with_: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member("ü" * 60, b"x" * 600), io.BytesIO(b"x" * 600))
        tar.addfile(member("code/inference.py", b"pass"), io.BytesIO(b"pass"))
    data = bytearray(buffer.getvalue()[:4096])
    data[at : at + len(with_)] = with_
    (folder / "x.tar.gz").write_bytes(gzip.compress(data, 1))
    try:
        extract(folder / "x.tar.gz", folder / "inside" / "out")
    except ArchiveError:
        assert not (folder / "inside" / "out").exists()
    assert {path.name for path in folder.iterdir()} <= {"x.tar.gz", "inside"}
    assert {path.name for path in (folder / "inside").iterdir()} <= {"out"}


PAX_KEYS = (b"path", b"size", b"linkpath", b"GNU.sparse.map", b"GNU.sparse.name", b"mtime", b"", b"a")
PAX_VALUES = (b"", b"0", b"-1", b"9" * 40, b"../x", b"/x", b"a/../../x", b"a/" * 200, b"a\0b", b"\xff", b"inside/out")
ODD_FIELDS = (b"", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777", b"-1", b"..", b"/x", b"../../x", b"a/", b"x")


@st.composite
def tars(draw: Any) -> bytes:
    """Members with odd fields and a right checksum, with extended headers of odd records before them."""
    data = b""
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            records = draw(st.lists(st.tuples(st.sampled_from(PAX_KEYS), st.sampled_from(PAX_VALUES)), max_size=4))
            kind = draw(st.sampled_from([tarfile.XHDTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE]))
            data += pax(*(record(*item) for item in records), draw(st.binary(max_size=8)), kind=kind)
        if draw(st.booleans()):
            data += longlink(draw(st.sampled_from(PAX_VALUES)))
        content = draw(st.binary(max_size=600))
        header = bytearray(member(draw(st.sampled_from("ab")), content).tobuf(tarfile.USTAR_FORMAT))
        for at, length in draw(
            st.lists(st.sampled_from([(0, 100), (100, 8), (124, 12), (156, 1), (345, 155)]), max_size=2)
        ):
            value = draw(st.sampled_from(ODD_FIELDS) | st.binary(max_size=length))[:length]
            header[at : at + length] = value.ljust(length, b"\0")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data += bytes(header) + content + bytes(-len(content) % 512)
    return data + bytes(draw(st.sampled_from([0, 512, 1024])))


@bounded
@given(tars())
def test_whatever_the_headers_say_all_readers_agree_and_nothing_gets_out(
    tmp_path_factory: pytest.TempPathFactory, tar: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "x.tar.gz"
    path.write_bytes(gzip.compress(tar, 1))
    try:
        extract(path, folder / "inside" / "out")
        unpacked = files(folder / "inside" / "out")
    except ArchiveError:
        unpacked = None
    try:
        listed = {file.path: file.size for file in contents(path)}
    except ArchiveError:
        listed = None
    assert listed == (None if unpacked is None else {name: len(data) for name, data in unpacked.items()})
    assert {item.name for item in folder.iterdir()} == {"x.tar.gz", "inside"}
    assert {item.name for item in (folder / "inside").iterdir()} == ({"out"} if unpacked is not None else set())
    assert not [item for item in folder.rglob("*") if item.is_symlink() or not (item.is_file() or item.is_dir())]


@pytest.mark.parametrize("flag", [b"\x08", b"\x10"], ids=["name", "comment"])
def test_a_gzip_header_without_an_end(tmp_path: Path, flag: bytes) -> None:
    data = archive(tmp_path / "x.tar.gz", (member("a"), b"")).read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(data[:3] + flag + data[4:10] + b"a" * (1 << 20) + data[10:])
    for read in (contents, lambda path: extract(path, tmp_path / "out")):
        with pytest.raises(ArchiveError, match="not a whole gzip file"):
            read(tmp_path / "x.tar.gz")
    assert not (tmp_path / "out").exists()
