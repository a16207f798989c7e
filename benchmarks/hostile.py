"""Hostile archives, requests and uploads: how often something escapes, is lost, is misrouted or is left behind.

    python -m benchmarks.hostile [--only archives|requests|uploads] [--archives 2000] [--requests 20000] [--uploads 100]

Archives: real ones, mutated by seed in eight ways, each unpacked, listed and inspected in a process of its own.
Requests: clients ask for four models while kill -9 ends the models' processes all the time and their parent at times.
Uploads: ``mme upload`` of an archive in parts, ended by kill -9 at a random moment, then run again. The exit code is 0
where nothing escaped, was lost, was misrouted, was visible before it was complete, or was left behind. Slow and hostile
HTTP clients are in ``benchmarks.http_server``. Linux alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._mutations import mutated, originals
from benchmarks._processor import processor

ROOT = Path(__file__).resolve().parents[1]
MAX_MEMORY = 100_000_000  # bytes
MAX_SECONDS = 10  # of processor time


# -- archives -------------------------------------------------------------------------------------------------------


def archives(count: int, folder: Path) -> dict[str, Any]:
    import mme.tasks.inspection  # noqa: F401 - once, before the processes that each need it

    tars = originals(folder)
    kinds: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    bad: list[str] = []
    most, longest, escapes = 0, 0.0, 0
    for seed in range(count):
        kind = ""
        box = folder / f"box-{seed}"
        (box / "inside").mkdir(parents=True)

        def make(box: Path = box, seed: int = seed) -> str:
            kind, data = mutated(tars, seed)
            (box / "x.tar.gz").write_bytes(data)
            return kind

        kind, _, _ = in_process(make)
        kinds[kind] += 1
        said, memory, seconds = in_process(lambda box=box: read(box))
        end, _, touched = said.partition("\n")
        ends[end.partition(":")[0]] += 1
        out = [touched] if touched else []
        if {path.name for path in box.iterdir()} != {"x.tar.gz", "inside"}:
            out.append(f"beside the folder: {sorted(path.name for path in box.iterdir())}")
        if not (end.startswith("ended") or {path.name for path in (box / "inside").iterdir()} <= {"out"}):
            out.append(f"left beside: {sorted(path.name for path in (box / 'inside').iterdir())}")
        out += [str(path) for path in box.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
        escapes += bool(out)
        if out or end.partition(":")[0] not in ("unpacked", "refused") or memory > MAX_MEMORY or seconds > MAX_SECONDS:
            bad.append(f"seed {seed} ({kind}): {end}, {memory / 1e6:.0f} MB, {seconds:.1f} s {out}")
        most, longest = max(most, memory), max(longest, seconds)
        shutil.rmtree(box)
    return {
        "archives": count,
        "kinds": dict(kinds),
        "ends": dict(ends),
        "escapes": escapes,
        "most memory, MB": round(most / 1e6, 1),
        "longest, s of processor time": round(longest, 2),
        "bad": bad,
    }


def read(box: Path) -> str:
    """What became of the archive in ``box`` (a whole path), and on a second line what was written outside of it."""
    from mme.archive.read import contents, read_manifest
    from mme.archive.untar import extract
    from mme.errors import ArchiveError
    from mme.tasks.inspection import text

    outside: list[str] = []
    inside = f"{(box / 'inside').resolve()}/"

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            changes = (given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        else:
            changes = event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown")
        if changes and isinstance(given[0], str | bytes | os.PathLike):
            link = event in ("os.link", "os.symlink")  # a link through which a path inside could lead out
            for name in given[: 2 if link or event == "os.rename" else 1]:
                if link or not f"{os.path.normpath(os.fsdecode(name))}/".startswith(inside):
                    outside.append(f"{event} {name!r}")

    sys.addaudithook(watch)
    path, end = box / "x.tar.gz", "unpacked"
    tries: tuple[Callable[[], object], ...] = (
        lambda: extract(path, box / "inside" / "out"),
        lambda: contents(path),
        lambda: text(read_manifest(path), True).encode(),
    )
    for number, attempt in enumerate(tries):
        try:
            attempt()
        except ArchiveError as error:
            if number == 0:
                end = "refused"
                if (box / "inside" / "out").exists():
                    return f"half unpacked: {error}"
        except Exception as error:
            return f"broke: {error!r}"
    return f"{end}\n{'; '.join(outside)}"


def in_process(work: Callable[[], str]) -> tuple[str, int, float]:
    """Runs ``work`` in a process of its own. Returns its result, peak memory (bytes) and seconds of processor time."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_CPU, (2 * MAX_SECONDS, 2 * MAX_SECONDS))
        with contextlib.suppress(BaseException), open(writer, "w") as file:  # noqa: PTH123 - a descriptor
            file.write(work())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:  # noqa: PTH123 - a descriptor
        said = file.read()
    _, status, used = os.wait4(pid, 0)
    if status or not said:
        said = f"ended: wait status {status}"
    return said, used.ru_maxrss * 1024, used.ru_utime + used.ru_stime


# -- requests -------------------------------------------------------------------------------------------------------


def requests(count: int, folder: Path) -> dict[str, Any]:
    sys.path[:0] = [str(ROOT / "tests" / "container")]
    from container_process import Container, processes
    from killing import SOURCE, Clients, kill_one

    folders = {}
    for name in ("a", "b", "c", "d"):
        folders[name] = folder / name
        (folders[name] / "code").mkdir(parents=True)
        (folders[name] / "code" / "inference.py").write_text(textwrap.dedent(SOURCE))
    container = Container(folder / "log", {"MME_PRELOAD": "", "MME_ACCESS_LOG": "false"})
    choice = random.Random(0)

    def settled() -> dict[str, int]:
        """The footprint with all models loaded and no request under way."""
        container.wait_healthy()
        for name, model in folders.items():
            status = container.load(name, model).status
            reply = container.invoke(name, "1")
            if status not in (200, 409) or reply.status != 200:
                raise SystemExit(f"{name} is not well after the kills: LOAD {status}, then {reply}")
        return footprint(container.process.pid) | {"processes": len(processes(container.process.pid))}

    try:
        before: dict[str, int] = {}
        seen: Counter[int] = Counter()
        kills = parents = 0
        faults: dict[str, list[object]] = {"lost": [], "misrouted": [], "wrong": []}
        for share in (count // 10, count - count // 10):  # the first tenth warms it up
            with Clients(container, folders) as clients:
                while sum(clients.seen.values()) < share:
                    time.sleep(0.05)
                    kills += 1
                    kill_one(container, "mme-model", choice)
                    if kills % 100 == 50:
                        parents += 1
                        kill_one(container, "mme-parent", choice)
            seen += clients.seen
            for what, errors in faults.items():
                errors += getattr(clients, what)
            after = settled()
            before = before or after
    finally:
        container.stop()
    return {
        "requests": sum(seen.values()),
        "by status": {str(status): number for status, number in sorted(seen.items())},
        "kills of models": kills,
        "kills of the parent": parents,
        **{what: len(errors) for what, errors in faults.items()},
        "container after a tenth": before,
        "container at the end": after,
        "bad": [str(item) for errors in faults.values() for item in errors[:5]],
    }


def footprint(pid: int) -> dict[str, int]:
    import psutil

    process = psutil.Process(pid)
    return {"files": process.num_fds(), "threads": process.num_threads(), "MB": process.memory_info().rss // 1_000_000}


# -- uploads --------------------------------------------------------------------------------------------------------


def upload(folder: str, words: list[str], environment: dict[str, str], output: str) -> None:
    """``mme upload``, in a process that has imported everything."""
    import mme.__main__

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "w") as file:  # noqa: PTH123 - for its descriptor
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["mme", *words]
    mme.__main__.program.run(["mme", *words])


def uploads(count: int, folder: Path) -> dict[str, Any]:
    import boto3

    from mme.archive import write
    from mme.catalog.spec import ModelSpec, Source
    from mme.local import LocalAws
    from mme.multipart import PART
    from mme.packaging import records

    chance = random.Random(0)
    project = folder / "project"
    (project / "source").mkdir(parents=True)
    (project / "source" / "config.json").write_text("{}")
    (project / "source" / "weights.bin").write_bytes(chance.randbytes(5 * PART))
    (project / "models.toml").write_text('[models.bert]\nsource = "folder:source"\nhandler = "embedding"\n')
    made = write.build(ModelSpec("bert", Source("folder", "source")), project / "source", project / "dist")
    assert made.path is not None
    records.note(project / "dist", made)
    right = hashlib.sha256(made.path.read_bytes()).hexdigest()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mme.__main__", "boto3", "botocore.session"])
    seen: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    bad: list[str] = []
    half = orphaned = 0
    with LocalAws(folder / "data", container="true", iam=False) as aws:
        # no credentials of its own: those of the local AWS
        s3 = boto3.client(
            "s3",
            endpoint_url=aws.url,
            region_name="us-east-1",
            aws_access_key_id=aws.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=aws.env["AWS_SECRET_ACCESS_KEY"],
        )
        bucket, key = "killed-uploads", f"models/{made.target}"
        s3.create_bucket(Bucket=bucket)
        environment = {**aws.client_env(), "PYTHONPATH": str(ROOT / "src")}
        words = ["upload", "--model", "bert", "--bucket", bucket, "--author", "ada", "--json"]

        def start() -> Any:
            process = context.Process(target=upload, args=(str(project), words, environment, str(folder / "said")))
            process.start()
            return process

        def held() -> str | None:
            """The sha256 of the object, read whole; None when there is none."""
            try:
                return hashlib.sha256(s3.get_object(Bucket=bucket, Key=key)["Body"].read()).hexdigest()
            except s3.exceptions.NoSuchKey:
                return None

        def unfinished() -> int:
            return len(s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []))

        def stored() -> int:
            return sum(path.is_file() for path in (folder / "data").rglob("*"))

        def next_run() -> float:
            """Run it to its end and look at what is there then; the seconds that it took."""
            nonlocal orphaned
            began = time.perf_counter()
            process = start()
            process.join(120)
            seconds = time.perf_counter() - began
            text = (folder / "said").read_text()
            if process.exitcode != 0 or held() != right:
                bad.append(f"the next run ended with {process.exitcode}, and the object is {held()}: {text[-500:]}")
            else:
                statuses[json.loads(text)["models"][0]["status"]] += 1
            s3.delete_object(Bucket=bucket, Key=key)
            left = unfinished()
            files = stored() - empty
            if left or files:
                orphaned += 1
                bad.append(f"after the next run {left} unfinished uploads and {files} files are left")
            return seconds

        empty = stored()
        took = sorted(next_run() for _ in range(5))[2]
        statuses.clear()
        before = footprint(aws.pid or 0)
        for _ in range(count):
            process = start()
            process.join(chance.uniform(0.05, 1.0) * took)
            process.kill()
            process.join()
            there = held()
            if there not in (None, right):
                half += 1
                bad.append("an object is there that is not the archive")
            begun = "an unfinished upload" if unfinished() else "nothing yet"
            seen["the whole object" if there == right else begun] += 1
            next_run()
        deadline = time.monotonic() + 30  # connections of the last run may still be closing
        while (after := footprint(aws.pid or 0))["files"] > before["files"] and time.monotonic() < deadline:
            time.sleep(0.2)
    return {
        "kills": count,
        "bytes": made.size,
        "found after the kill": dict(seen),
        "the next run": dict(statuses),
        "half visible": half,
        "orphaned": orphaned,
        "local AWS before": before,
        "local AWS after": after,
        "bad": bad[:10],
    }


PARTS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "archives": archives,
    "requests": requests,
    "uploads": uploads,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS), help="only this part")
    for name, number in (("archives", 2000), ("requests", 20_000), ("uploads", 100)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    print(f"{processor()}, Python {platform.python_version()}")
    for name, part in PARTS.items():
        if options.only in (None, name):
            # In memory: what a disk takes for thousands of empty files is no figure of ours.
            place = "/dev/shm" if name == "archives" and os.access("/dev/shm", os.W_OK) else None
            with tempfile.TemporaryDirectory(dir=place) as folder:
                began = time.perf_counter()
                figures[name] = part(getattr(options, name), Path(folder).resolve())
            print(f"\n{name} ({time.perf_counter() - began:.0f} s)")
            for what, value in figures[name].items():
                print(f"  {what:<30}{json.dumps(value)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(1 if any(part["bad"] for part in figures.values()) else 0)


if __name__ == "__main__":
    main()
