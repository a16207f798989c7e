"""Broken archives, made from real ones in eight ways. The same seed gives the same archive."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from mme.archive import write
from mme.catalog.spec import ModelSpec, Source

BLOCK = 512
NAMES = (
    *("../escaped", "a/../../escaped", "/tmp/mme-escaped", "..", ".", "", "/", "//a", "./../escaped", "a//b", "a/./b"),
    *("..\\escaped", "C:\\escaped", "a\nb", "a\0b", "\x1b[2J", "config.json", "config.json/a", "weights.bin/../../x"),
    *("code", "code/", "ü" * 40, "\udcff", "a" * 3000, "a/" * 200 + "a", "./" * 500 + "a", "~/escaped", "-rf", "a/"),
)
NUMBERS = (0, 1, 511, 512, 513, 1 << 20, 1 << 31, 1 << 33, 1 << 40, 1 << 62, 8**11 - 1, 10**30, -1, -512)
# offset and length of each field of a header (POSIX.1-1988, ustar)
FIELDS = {
    **{"name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12)},
    **{"checksum": (148, 8), "type": (156, 1), "link": (157, 100), "magic": (257, 6), "version": (263, 2)},
    **{"owner": (265, 32), "group": (297, 32), "major": (329, 8), "minor": (337, 8), "prefix": (345, 155)},
}


def originals(folder: Path) -> list[bytes]:
    """The tars inside of what ``mme package`` makes, and of what Python's tarfile makes in three formats."""
    snapshot = folder / "snapshot"
    snapshot.mkdir()
    files = {"config.json": b"{}", "weights.bin": random.Random(1).randbytes(200_000), "ä/" * 40 + "vocab.txt": b"a\n"}
    for path, content in files.items():
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).write_bytes(content)
    made = write.build(ModelSpec("bert", Source("folder", "source")), snapshot, folder / "dist")
    assert made.path is not None
    tars = [gzip.decompress(made.path.read_bytes())]
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        tars.append(buffer.getvalue())
    return tars


def mutated(tars: list[bytes], seed: int) -> tuple[str, bytes]:
    """The kind of mutation, and the archive."""
    chance = random.Random(seed)
    kind, change = list(KINDS.items())[seed % len(KINDS)]
    tar = chance.choice(tars)
    for _ in range(1 if kind == "bombs" else chance.choice((1, 1, 2, 4))):
        tar = change(tar, chance)
    packed = gzip.compress(tar, 1, mtime=0)
    if kind == "gzip":
        packed = _gzip(packed, chance)
    elif kind == "bytes":
        packed = _bytes(packed, chance)
    return kind, packed


def _headers(tar: bytes) -> list[int]:
    """Where the headers are, as far as the tar can be followed."""
    places, at = [], 0
    while at + BLOCK <= len(tar) and tar[at : at + BLOCK].strip(b"\0"):
        places.append(at)
        try:
            size = tarfile.TarInfo.frombuf(tar[at : at + BLOCK], "utf-8", "surrogateescape").size
        except tarfile.TarError:
            break
        if not 0 <= size < len(tar):
            break
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return places or [0]


def _bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 30))):
        at = chance.randrange(len(changed))
        changed[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
    return bytes(changed)


def _with_field(tar: bytes, at: int, field: str, value: bytes, chance: random.Random) -> bytes:
    """The tar with one field of the header at ``at`` replaced, and usually with a matching checksum."""
    start, length = FIELDS[field]
    header = bytearray(tar[at : at + BLOCK].ljust(BLOCK, b"\0"))
    header[start : start + length] = value[:length].ljust(length, b"\0")
    if field != "checksum" and chance.random() < 0.9:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return tar[:at] + bytes(header) + tar[at + BLOCK :]


def _field(tar: bytes, chance: random.Random) -> bytes:
    field = chance.choice(list(FIELDS))
    length = FIELDS[field][1]
    value = chance.choice(
        (
            lambda: chance.randbytes(length),
            lambda: chance.choice(b"0123456789xgLKSVDMNAX\0\xff").to_bytes(1, "big") * length,
            lambda: b"%0*o" % (length - 1, chance.choice((0, 1, 8 ** (length - 1) - 1))),
            lambda: b"\x80" + chance.randbytes(length - 1),
            lambda: b"\xff" * length,
            lambda: chance.choice(NAMES).encode("utf-8", "surrogateescape"),
        )
    )()
    return _with_field(tar, chance.choice(_headers(tar)), field, value, chance)


def _length(tar: bytes, chance: random.Random) -> bytes:
    number = chance.choice(NUMBERS)
    value = b"%011o" % number if 0 <= number < 8**11 else b"\x80" + (number % 2**88).to_bytes(11, "big")
    tar = _with_field(tar, chance.choice(_headers(tar)), "size", value, chance)
    return tar[: chance.randrange(len(tar))] if chance.random() < 0.3 else tar


def _name(tar: bytes, chance: random.Random) -> bytes:
    name = chance.choice(NAMES).encode("utf-8", "surrogateescape")
    at = chance.choice(_headers(tar))
    how = chance.randrange(4)
    if how == 0:
        return tar[:at] + extended(b"L", name) + tar[at:]
    if how == 1:
        tar = _with_field(tar, at, "type", chance.choice((b"1", b"2", b"5", b"6", b"3")), chance)
        return _with_field(tar, at, "link", name, chance)
    return _with_field(tar, at, chance.choice(("name", "prefix")), name, chance)


def _records(tar: bytes, chance: random.Random) -> bytes:
    keys = (b"path", b"size", b"linkpath", b"GNU.sparse.name", b"GNU.sparse.map", b"hdrcharset", b"mtime", b"", b"a")
    data = b""
    for _ in range(chance.choice((1, 2, 5, 2000))):
        key = chance.choice(keys)
        value = chance.choice(
            (chance.choice(NAMES).encode("utf-8", "surrogateescape"), str(chance.choice(NUMBERS)).encode(), b"")
        )
        row = b" " + key + b"=" + value + b"\n"
        length = len(row) + len(str(len(row) + 3))
        row = str(chance.choice((length, length, length, *NUMBERS))).encode() + row
        data += row if chance.random() < 0.9 else chance.randbytes(20)
    at = chance.choice(_headers(tar))
    return tar[:at] + extended(chance.choice((b"x", b"x", b"g")), data) * chance.choice((1, 1, 2)) + tar[at:]


def _bomb(tar: bytes, chance: random.Random) -> bytes:
    """Archives that are small when packed and large, long or deep when read."""
    at = chance.choice(_headers(tar))
    part = chance.choice(
        (
            lambda: extended(b"x", b"5 a=\n" * 200_000),
            lambda: extended(b"L", b"a/" * 100_000),
            lambda: extended(b"x", b"9 path=a\n" * chance.choice((1, 5000))) * 500,
            lambda: b"".join(extended(b"L", b"%d/" % n * 60) + _file(b"a", 0) for n in range(1000)),
            lambda: b"".join(_file(b"%d" % n, 0) for n in range(3_000)),
            lambda: _file(b"zeros", 24 << 20) + bytes(24 << 20),
            lambda: bytes(BLOCK * 2) + bytes(24 << 20),
        )
    )()
    return tar[:at] + part + tar[at:]


def _whole(tar: bytes, chance: random.Random) -> bytes:
    return tar


def _gzip(packed: bytes, chance: random.Random) -> bytes:
    """The gzip file itself: RFC 1952's header and trailer, its members and what is around them."""
    crc, size = packed[-8:-4], packed[-4:]
    return chance.choice(
        (
            lambda: packed[: chance.randrange(len(packed))],
            lambda: packed + packed,
            lambda: packed + chance.randbytes(chance.choice((1, 8, 1000))),
            lambda: packed + gzip.compress(bytes(8 << 20), 1),
            lambda: packed[:3] + bytes([chance.randrange(256)]) + packed[4:],
            lambda: packed[:3] + b"\x08" + packed[4:10] + b"a" * chance.choice((1, 1 << 20)) + packed[10:],
            lambda: packed[:3] + b"\x04" + packed[4:10] + b"\xff\xff" + packed[10:],
            lambda: packed[:-8] + zlib.crc32(crc).to_bytes(4, "little") + size,
            lambda: packed[:-4] + chance.randbytes(4),
            lambda: packed[:10] + b"\0\xff\xff\0\0" * 50 + packed[10:],
            lambda: gzip.compress(packed),
            lambda: zlib.compress(packed),
            lambda: b"",
            lambda: packed[:2] + chance.randbytes(8) + packed[10:],
        )
    )()


def extended(kind: bytes, data: bytes) -> bytes:
    """An extended header: GNU's long name (L), or pax records for one member (x) or for all (g)."""
    info = tarfile.TarInfo("././@LongLink" if kind == b"L" else "PaxHeaders/x")
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % BLOCK)


def _file(name: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name.decode())
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": _whole,
    "tar bytes": _bytes,
    "header fields": _field,
    "pax records": _records,
    "lengths": _length,
    "names": _name,
    "bombs": _bomb,
    "gzip": _whole,
}
