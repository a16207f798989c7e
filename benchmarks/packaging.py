"""Packing and unpacking a model of GPT-2's size, beside tar, pigz and Python. All in one run, on one machine.

    python benchmarks/packaging.py [--megabytes 498] [--rounds 3] [--json FILE]

The input is float32 weights distributed as a real model's (so they compress alike), in the page cache.
Every figure is the median of the rounds. Each measurement runs in a process of its own, so that peak memory and
processor time (which holds on a busy machine too) are its own. What is not installed (pigz, busybox, java) is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HEADER_BLOCK = 1 << 20

JAVA = """
import java.io.*;
import java.util.zip.GZIPInputStream;

public class Inflate {
    public static void main(String[] args) throws Exception {
        byte[] buffer = new byte[1 << 20];
        try (InputStream in = new GZIPInputStream(new FileInputStream(args[0]), 1 << 16)) {
            while (in.read(buffer) >= 0) {}
        }
    }
}
"""


def make_model(folder: Path, megabytes: int) -> None:
    """Weights in layers of different spread, as a trained model has them."""
    import numpy as np

    folder.mkdir()
    (folder / "config.json").write_text("{}\n")
    (folder / "tokenizer.json").write_text(json.dumps({str(number): number for number in range(60_000)}))
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        left, layer = megabytes * 1_000_000, 0
        while left > 0:
            count = min(left, 28_000_000) // 4
            spread = 0.02 * (1 + (layer % 12) / 6)
            file.write((random.standard_normal(count, dtype=np.float32) * np.float32(spread)).tobytes())
            left -= count * 4
            layer += 1


def measured(work: Callable[[], None]) -> tuple[float, float, float]:
    """Run ``work`` in a child; return its seconds, its peak memory in MB and its seconds of processor time.

    Those of its own children count.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            start = time.perf_counter()
            work()
            seconds = time.perf_counter() - start
            usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            peak = max(used.ru_maxrss for used in usage) / 1024
            os.write(write, json.dumps([seconds, peak, sum(used.ru_utime + used.ru_stime for used in usage)]).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with open(read, "rb") as pipe:  # noqa: PTH123 - a descriptor
        said = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(f"{work} failed")
    seconds, peak, cpu = json.loads(said)
    return seconds, peak, cpu


def run(*command: str, **more: object) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **more)  # type: ignore[call-overload]


def has(*command: str) -> bool:
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def packers(model: Path, out: Path) -> dict[str, Callable[[], None]]:
    """Name -> what makes the archive ``out``."""

    def floor() -> None:
        """Read, hash and write: nothing that makes an archive with a digest can be faster on one thread."""
        digest = hashlib.sha256()
        with out.open("wb", buffering=0) as target:
            for path in sorted(model.iterdir()):
                with path.open("rb", buffering=0) as source:
                    while data := source.read(HEADER_BLOCK):
                        digest.update(data)
                        target.write(data)

    def python(level: int) -> Callable[[], None]:
        def pack() -> None:
            with tarfile.open(out, "w:gz", compresslevel=level) as tar:
                tar.add(model, arcname=".")

        return pack

    def ours(how: str) -> Callable[[], None]:
        code = (
            "import sys; from pathlib import Path\n"
            "from mme.archive import write; from mme.catalog.spec import ModelSpec, Source\n"
            "spec = ModelSpec('gpt2', Source('folder', 'gpt2'), task='text-generation')\n"
            "import time; start = time.perf_counter()\n"
            "made = write.build(spec, Path(sys.argv[1]), Path(sys.argv[2]), compression=sys.argv[3])\n"
            "print(time.perf_counter() - start)\n"
            "made.path.rename(sys.argv[4])"
        )
        return lambda: run(sys.executable, "-c", code, str(model), str(out.parent / "dist"), how, str(out))

    ways: dict[str, Callable[[], None]] = {"read + sha256 + write": floor}
    ways["tar -czf"] = lambda: run("tar", "-czf", str(out), "-C", str(model), ".")
    if has("pigz", "--version"):
        ways["pigz -6"] = lambda: run("tar", "-I", "pigz -6", "-cf", str(out), "-C", str(model), ".")
    ways["Python tarfile w:gz"] = python(9)
    for how in ("stored", "auto", "fast"):
        ways[f"mme {how}"] = ours(how)
    return ways


def readers(archive: Path, into: Path, java: Path | None) -> dict[str, Callable[[], None]]:
    def python() -> None:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(into, filter="data")

    def own() -> None:
        from mme.archive.write import extract

        into.rmdir()
        extract(archive, into)

    ways: dict[str, Callable[[], None]] = {
        "GNU tar": lambda: run("tar", "-xzf", str(archive), "-C", str(into)),
        "Python tarfile": python,
    }
    if has("busybox", "true"):
        ways["busybox tar"] = lambda: run("busybox", "tar", "-xzf", str(archive), "-C", str(into))
    if java is not None:
        ways["Java (inflate)"] = lambda: run("java", "-cp", str(java), "Inflate", str(archive))
    ways["mme"] = own
    return ways


def compiled(folder: Path) -> Path | None:
    (folder / "Inflate.java").write_text(JAVA)
    return folder if has("javac", "-d", str(folder), str(folder / "Inflate.java")) else None


def median(work: Callable[[], None], rounds: int, before: Callable[[], object]) -> tuple[float, float, float]:
    taken = []
    for _ in range(rounds):
        before()
        taken.append(measured(work))
    seconds, peaks, cpu = zip(*taken, strict=True)
    return statistics.median(seconds), max(peaks), statistics.median(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=498, help="size of the model's weights, in MB")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured; the figures are medians")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mme-bench-") as temporary:
        folder = Path(temporary)
        make_model(folder / "model", options.megabytes)
        java = compiled(folder)
        size = sum(path.stat().st_size for path in (folder / "model").iterdir())
        print(f"{size / 1e6:.0f} MB of float32 weights, {os.cpu_count()} cores, medians of {options.rounds}\n")
        packing: dict[str, dict[str, float]] = {}
        archives: dict[str, Path] = {}
        print(f"{'packing':<24}{'s':>8}{'cpu s':>8}{'MB/s':>8}{'ratio':>8}{'peak MB':>9}{'x tar -czf':>12}")
        for name, work in packers(folder / "model", folder / "out.tar.gz").items():
            # The slow ones take no more time than they need: their spread is small against their size.
            rounds = 1 if name in ("tar -czf", "pigz -6", "Python tarfile w:gz") else options.rounds
            seconds, peak, cpu = median(work, rounds, lambda: (folder / "out.tar.gz").unlink(missing_ok=True))
            ratio = (folder / "out.tar.gz").stat().st_size / size
            packing[name] = {"seconds": seconds, "cpu_seconds": cpu, "ratio": ratio, "peak_mb": peak}
            times = f"{packing['tar -czf']['seconds'] / seconds:.1f}" if "tar -czf" in packing else ""
            rate = size / 1e6 / seconds
            print(f"{name:<24}{seconds:>8.2f}{cpu:>8.2f}{rate:>8.0f}{ratio:>8.4f}{peak:>9.0f}{times:>12}")
            if name in ("tar -czf", "mme stored", "mme fast"):
                archives[name] = (folder / "out.tar.gz").rename(folder / f"{len(archives)}.tar.gz")
        extracting: dict[str, dict[str, float]] = {}
        names = list(archives)
        print(f"\n{'extracting, s':<24}" + "".join(f"{name:>14}" for name in names))
        for reader in readers(archives[names[0]], folder / "x", java):
            row = {}
            for name in names:
                work = readers(archives[name], folder / "x", java)[reader]

                def fresh() -> None:
                    shutil.rmtree(folder / "x", ignore_errors=True)
                    (folder / "x").mkdir()

                row[name] = median(work, options.rounds, fresh)[0]
            extracting[reader] = row
            print(f"{reader:<24}" + "".join(f"{row[name]:>14.2f}" for name in names))
        print(
            f"\n{'cold start, s':<24}" + "".join(f"{name:>14}" for name in names) + "   download, then Python's tarfile"
        )
        cold: dict[str, dict[str, float]] = {}
        for rate in (100, 250, 1000):
            cold[f"{rate} MB/s"] = {
                name: archives[name].stat().st_size / 1e6 / rate + extracting["Python tarfile"][name] for name in names
            }
            print(f"at {rate:<5}MB/s{'':<12}" + "".join(f"{cold[f'{rate} MB/s'][name]:>14.2f}" for name in names))
        if options.json:
            result = {"bytes": size, "packing": packing, "extracting": extracting, "cold_start": cold}
            options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
