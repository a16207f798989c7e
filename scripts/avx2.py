"""Runs a command as on an x86-64 processor with AVX2 and without AVX-512 and VNNI, at this processor's own speed.

    python scripts/avx2.py COMMAND [ARGUMENT …]

torch, numpy, ONNX Runtime and other engines choose their kernels by what the instruction CPUID says. So each library of
this project's virtual environments is copied, with each CPUID replaced by what raises a signal, and avx2_cpuid.c
answers in the processor's place. For the command and what it starts, and for nothing else, the copies lie where the
libraries do, and /proc/cpuinfo says the same. What is no library of a virtual environment sees the processor as it is:
the C library (copying, searching), Java, git. The first time takes a minute or two, the next ones seconds. A virtual
environment that the command itself makes out of these libraries has copies and nothing that answers: its Python ends by
SIGTRAP.

It takes Linux on x86-64, root or user namespaces, and a C compiler with binutils (apt-get install gcc).
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# Linux's names for what is hidden (arch/x86/include/asm/cpufeatures.h).
HIDDEN = re.compile(r" (avx512\w*|avx10\w*|amx_\w+|avx_vnni\w*|avx_ifma|avx_ne_convert|gfni|movdiri|movdir64b)\b")
CPUID, TRAP = b"\x0f\xa2", b"\xcc\x90"
EXECUTABLE, PROGRAM_BITS, X86_64 = 4, 1, 62  # SHF_EXECINSTR, SHT_PROGBITS and EM_X86_64 of elf(5)
NOPS = b"\x90" * 16  # longer than any instruction, so that the disassembler is in step again behind it
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000  # CLONE_NEWNS and CLONE_NEWUSER of unshare(2)
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18  # MS_BIND, MS_REC and MS_PRIVATE of mount(2)


class Section(NamedTuple):
    """A section of an ELF file: its address when loaded, its place and size in the file, in bytes."""

    address: int
    offset: int
    size: int


def sections(elf: mmap.mmap) -> Iterator[tuple[str, int, int, Section]]:
    """(name, type, flags, section) of an x86-64 ELF file's sections (elf(5)); none of another file's."""
    if elf[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", elf, 18)[0] != X86_64:
        return
    table = struct.unpack_from("<Q", elf, 40)[0]
    width, count, names = struct.unpack_from("<HHH", elf, 58)
    rows = [struct.unpack_from("<IIQQQQ", elf, table + number * width) for number in range(count)]
    for name, kind, flags, address, offset, size in rows:
        start = rows[names][4] + name
        yield elf[start : elf.find(b"\0", start)].decode(), kind, flags, Section(address, offset, size)


def functions(elf: mmap.mmap, header: Section | None) -> list[int]:
    """Where functions start, as addresses in order, by .eh_frame_hdr (Linux Standard Base, "Exception Frames")."""
    if header is None:
        return []
    version, _, counted, encoding = elf[header.offset : header.offset + 4]
    if (version, counted, encoding) != (1, 0x03, 0x3B):  # counted in 32 bits; a table of 32 bits from here on
        return []
    count = struct.unpack_from("<I", elf, header.offset + 8)[0]
    table = struct.unpack_from(f"<{2 * count}i", elf, header.offset + 12)
    return [header.address + start for start in table[::2]]


def cpuids(library: Path, objdump: str) -> list[int]:
    """Where in a library's file its CPUID instructions are.

    Bytes of other instructions may look like one, so each function that has such bytes is disassembled from its start.
    A library that does not say where functions start counts as one without: it is Go's, whose runtime takes the signal.

    Raises:
        subprocess.CalledProcessError: objdump failed
    """
    if library.stat().st_size == 0:
        return []
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as elf:
        parts = list(sections(elf))
        starts = functions(elf, next((part for name, _, _, part in parts if name == ".eh_frame_hdr"), None))
        pieces: dict[int, int] = {}  # where a function starts in the file, and ends
        for _, kind, flags, part in parts:
            if not starts or kind != PROGRAM_BITS or not flags & EXECUTABLE:
                continue
            shift, end = part.offset - part.address, part.offset + part.size
            at = elf.find(CPUID, part.offset, end)
            while at >= 0:
                number = bisect_right(starts, at - shift)
                first = max(part.offset, starts[number - 1] + shift) if number else part.offset
                pieces[first] = min(end, starts[number] + shift) if number < len(starts) else end
                at = elf.find(CPUID, at + 1, end)
        if not pieces:
            return []
        return _cpuids(elf, pieces, objdump)


def _cpuids(elf: mmap.mmap, pieces: dict[int, int], objdump: str) -> list[int]:
    places, length = [], 0  # (where a piece starts in what is disassembled, and in the file)
    with tempfile.NamedTemporaryFile(prefix="avx2-") as code:
        for first, last in pieces.items():
            places.append((length, first))
            length += code.write(elf[first:last] + NOPS)
        code.flush()
        words = [objdump, "-D", "-b", "binary", "-m", "i386:x86-64", "--no-show-raw-insn", code.name]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = []
    for address in re.findall(r"^ *([0-9a-f]+):\t[^\n]*\bcpuid\b", done.stdout, re.MULTILINE):
        here = int(address, 16)
        start, first = places[bisect_right(places, (here, len(elf))) - 1]
        at = elf.find(CPUID, first + here - start)  # a prefix may stand before it
        found.append(at)
    return found


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` in one step: another run may have that in use."""
    own = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield own
        own.replace(path)
    finally:
        own.unlink(missing_ok=True)


def masked(environment: Path, folder: Path, objdump: str) -> dict[Path, Path]:
    """Each library of a virtual environment that has CPUID in it, and its copy in ``folder`` where that is replaced.

    Copies stay for the next time, as old as their libraries. In place of a library without CPUID is an empty file.
    """
    copies = {}
    for library in sorted(path for path in environment.rglob("*.so*") if path.is_file() and not path.is_symlink()):
        status, copy = library.stat(), folder / library.relative_to(environment)
        if not copy.exists() or copy.stat().st_mtime_ns != status.st_mtime_ns:
            places = cpuids(library, objdump)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with replaced(copy) as own:
                own.write_bytes(library.read_bytes() if places else b"")
                with own.open("r+b") as file:
                    for place in places:
                        file.seek(place)
                        file.write(TRAP)
                os.utime(own, ns=(status.st_atime_ns, status.st_mtime_ns))
        if copy.stat().st_size:
            copies[library] = copy
    return copies


def started(environment: Path, line: Path) -> dict[Path, Path]:
    """What an interpreter of the virtual environment runs as it starts (site, "path configuration files"), and what it
    runs for the command. The file has to be there to be covered; it stays, and is empty."""
    files = [packages / "avx2_cpuid.pth" for packages in environment.glob("lib/python*/site-packages")]
    for file in files:
        file.touch()
    return dict.fromkeys(files, line)


def seen(cpuinfo: str) -> str:
    """/proc/cpuinfo (proc_cpuinfo(5)) of the processor that the command sees."""
    text = re.sub(r"^(model name\s*:.*)", r"\1 (AVX-512 and VNNI hidden)", cpuinfo, flags=re.MULTILINE)
    text = re.sub(r"^(cpu family\s*: ).*", r"\g<1>25", text, flags=re.MULTILINE)
    text = re.sub(r"^(model\s*: ).*", r"\g<1>1", text, flags=re.MULTILINE)
    return re.sub(r"^flags\s*:.*", lambda row: HIDDEN.sub("", row[0]), text, flags=re.MULTILINE)


def cover(places: dict[Path, Path]) -> None:
    """For this process and those that it starts alone, each path shows what is at another.

    Raises:
        OSError: the system allows no mounts to this user
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    user, group = os.geteuid(), os.getegid()
    check(libc.unshare(NEW_MOUNTS | (NEW_USER if user else 0)))
    if user:  # who it is stays as it was
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    check(libc.mount(b"none", b"/", None, ctypes.c_ulong(RECURSIVE | PRIVATE), None))
    for place, other in places.items():
        check(libc.mount(bytes(other), bytes(place), None, ctypes.c_ulong(BIND), None))


def main(command: list[str], root: Path = ROOT) -> int:
    compiler, objdump = shutil.which("cc") or shutil.which("gcc"), shutil.which("objdump")
    if (sys.platform, platform.machine()) != ("linux", "x86_64") or compiler is None or objdump is None:
        print("This takes Linux on x86-64 and a C compiler with binutils (apt-get install gcc).", file=sys.stderr)
        return 1
    if not command or sys.prefix == sys.base_prefix:
        print("Use: .venv/bin/python scripts/avx2.py COMMAND [ARGUMENT …]", file=sys.stderr)
        return 1
    cache, source = root / ".cache" / "avx2", Path(__file__).with_name("avx2_cpuid.c")
    handler, line, cpuinfo = (cache / name for name in ("avx2_cpuid.so", "avx2_cpuid.pth", "cpuinfo"))
    cache.mkdir(parents=True, exist_ok=True)
    with replaced(handler) as own:
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(own), str(source)], check=True)
    with replaced(line) as own:
        own.write_text(f"import ctypes; ctypes.CDLL({str(handler)!r})\n")
    with replaced(cpuinfo) as own:
        own.write_text(seen(Path("/proc/cpuinfo").read_text()))
    places = {Path("/proc/cpuinfo"): cpuinfo}
    for environment in (Path(sys.prefix), *(path for path in sorted(root.glob(".venv-*")) if path.is_dir())):
        places |= masked(environment, cache / environment.name, objdump) | started(environment, line)
    try:
        cover(places)
    except OSError as error:
        print(f"This takes root or user namespaces: {error}.", file=sys.stderr)
        return 1
    if importlib.util.find_spec("torch"):
        words = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]
        capability = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        if capability != "AVX2":
            print(f"torch should see a processor with AVX2 alone; it takes it for {capability}.", file=sys.stderr)
            return 1
    try:
        os.execvp(command[0], command)  # noqa: S606 (signals and the status are its own)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
