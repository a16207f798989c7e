"""Publishing, beside `aws s3 cp` and boto3's upload_file. All in one run, on one machine.

    python -m benchmarks.releases [--megabytes 498] [--rounds 3] [--models 1000] [--versions 10000] [--small 500]
                                  [--json FILE]

The bucket is that of the local AWS on this machine, so the figures compare clients; they say nothing about a network.
What is compared takes turns, round by round; every figure is the median of the rounds. Besides seconds by the
clock there are seconds of processor time, of the command and of the local AWS, which hold on a busy machine too.
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
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # its packaging.py is not the library of that name, which transformers needs

import boto3
import psutil

from mme import releases
from mme.archive import write
from mme.catalog.spec import ModelSpec, Source
from mme.local import LocalAws
from mme.packaging import records
from mme.releases import Store

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
STORE = Store("benchmark-models")
TASKS = "import mme.tasks\nfrom invoke import Collection\n\nns = Collection.from_module(mme.tasks)\n"


def make_gpt2(folder: Path, megabytes: int) -> None:
    """A GPT-2 of about this size, with weights that were never trained."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers = max(1, round((megabytes - 155) / 28.35))
    GPT2LMHeadModel(GPT2Config(n_layer=layers)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(REPOSITORY / "demo" / "tiny-gpt2" / name, folder)


def make_tiny(folder: Path) -> None:
    """The smallest BERT: what it costs to recognise a model as unchanged does not depend on its size."""
    from transformers import BertConfig, BertModel

    sizes = {
        "vocab_size": 6,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 4,
    }
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")


@dataclass(frozen=True)
class Taken:
    """Seconds: by the clock, and of processor time in the client and in the local AWS."""

    seconds: float
    client_cpu: float
    server_cpu: float

    @classmethod
    def median(cls, rounds: list[Taken]) -> Taken:
        return cls(
            *(statistics.median(values) for values in zip(*(asdict(one).values() for one in rounds), strict=True))
        )


def cpu_of_clients() -> float:
    """Of this process and of its children that have ended; the local AWS has not."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Bench:
    def __init__(self, folder: Path, aws: LocalAws, rounds: int) -> None:
        self.folder = folder
        self.server = psutil.Process(aws.pid)
        self.rounds = rounds
        self.env = {**aws.client_env(), "MME_BUCKET": STORE.bucket}
        self.s3: Any = boto3.client("s3")
        (folder / "tasks.py").write_text(TASKS)
        (folder / "invoke.yaml").write_text("tasks: {executor_class: mme.chain.Executor}\n")

    def run(self, *words: str | Path) -> str:
        done = subprocess.run(
            [str(word) for word in words], cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, words))} failed:\n{done.stderr}")
        return done.stdout

    def invoke(self, *words: str) -> str:
        return self.run(sys.executable, "-m", "invoke", *words)

    def empty(self) -> None:
        """Empty the bucket, so that every round starts alike."""
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=STORE.bucket):
            objects = [{"Key": item["Key"]} for item in page.get("Contents", [])]
            if objects:
                self.s3.delete_objects(Bucket=STORE.bucket, Delete={"Objects": objects})

    def take(self, work: Callable[[], object]) -> Taken:
        def cpu_of_server() -> float:
            used = self.server.cpu_times()
            return float(used.user + used.system)

        before = time.perf_counter(), cpu_of_clients(), cpu_of_server()
        work()
        after = time.perf_counter(), cpu_of_clients(), cpu_of_server()
        return Taken(*(new - old for old, new in zip(before, after, strict=True)))

    def turns(self, works: dict[str, Callable[[], object]], before: Callable[[str], None]) -> dict[str, Taken]:
        """The medians of each, taken in turns."""
        taken: dict[str, list[Taken]] = {name: [] for name in works}
        for _ in range(self.rounds):
            for name, work in works.items():
                before(name)
                taken[name].append(self.take(work))
        return {name: Taken.median(rounds) for name, rounds in taken.items()}

    # ---- what is measured -----------------------------------------------------------------------------------------

    def uploads(self) -> dict[str, Taken]:
        """One archive from the disk to the bucket."""
        (made,) = (self.folder / "dist").glob("*.tar.gz")

        def publish() -> None:
            digest = hashlib.sha256(made.name.encode()).hexdigest()
            releases.publish(self.s3, STORE, name="library", digest=digest, content=made, author="benchmark")

        return self.turns(
            {
                "aws s3 cp": lambda: self.run(BIN / "aws", "s3", "cp", "--quiet", made, f"{STORE.uri()}cp.tar.gz"),
                "invoke upload": lambda: self.invoke("upload"),
                "boto3 upload_file": lambda: self.s3.upload_file(str(made), STORE.bucket, "models/file.tar.gz"),
                "mme.releases.publish": publish,
            },
            lambda _: self.empty(),
        )

    def stages(self) -> dict[str, Taken]:
        """From weights to a released version: the two stages, one after the other and at once."""

        def before(name: str) -> None:
            self.empty()
            if name != "invoke upload":  # the archive of the line before
                shutil.rmtree(self.folder / "dist", ignore_errors=True)

        return self.turns(
            {
                "invoke package": lambda: self.invoke("package", "--no-verify"),
                "invoke upload": lambda: self.invoke("upload"),
                "invoke package upload": lambda: self.invoke("package", "--no-verify", "upload"),
                "invoke package upload --stream": lambda: self.invoke("package", "--no-verify", "upload", "--stream"),
            },
            before,
        )

    def small_ones(self, count: int) -> dict[str, Taken]:
        """Many new archives of 1 MB."""
        folder, out = self.folder / "snapshot", self.folder / "small"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        for number in range(count):
            (folder / "model.safetensors").write_bytes(os.urandom(1_000_000))
            spec = ModelSpec(f"small-{number}", Source("folder", "tiny"))
            records.note(out, write.build(spec, folder, out))
        tables = [
            f'[models.small-{number}]\nsource = "folder:tiny"\nhandler = "embedding"\n' for number in range(count)
        ]
        (self.folder / "small.toml").write_text("\n".join(tables))
        copy = (BIN / "aws", "s3", "cp", "--quiet", "--recursive", "--exclude", "*.json", out, STORE.uri())
        return self.turns(
            {
                "aws s3 cp --recursive": lambda: self.run(*copy),
                "invoke upload": lambda: self.invoke("upload", "--catalog", "small.toml", "--out", "small"),
            },
            lambda _: self.empty(),
        )

    def nothing_to_do(self, models: int) -> dict[str, Taken]:
        """A catalogue of unchanged models, packaged and uploaded before."""
        make_tiny(self.folder / "tiny")
        tables = [
            f'[models."team-{number % 10}/model-{number}"]\nsource = "folder:tiny"\nhandler = "embedding"\n'
            for number in range(models)
        ]
        (self.folder / "many.toml").write_text("\n".join(tables))
        words = ("--catalog", "many.toml", "--out", "many")
        first = self.take(lambda: self.invoke("package", *words, "--no-verify", "upload", *words))
        work = {
            "package upload": lambda: self.invoke("package", *words, "--no-verify", "upload", *words),
            "upload": lambda: self.invoke("upload", *words),
        }
        return {"the first time": first, **self.turns(work, lambda _: None)}

    def listing(self, versions: int) -> Taken:
        """All versions, listed once."""

        def put(number: int) -> None:
            key = f"models/model-{number % 100}-{number:012x}.tar.gz"
            self.s3.put_object(Bucket=STORE.bucket, Key=key, Body=b"")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(versions)))
        work = {"list": lambda: self.invoke("releases", "--limit", str(versions), "--json")}
        return self.turns(work, lambda _: None)["list"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=498, help="size of the model's weights, in MB")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured; the figures are medians")
    parser.add_argument("--models", type=int, default=1000, help="how many models there are")
    parser.add_argument("--versions", type=int, default=10_000, help="how many versions are listed")
    parser.add_argument("--small", type=int, default=500, help="how many small archives are uploaded")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mme-bench-") as temporary:
        folder = Path(temporary) / "work"
        folder.mkdir()
        make_gpt2(folder / "gpt2", options.megabytes)
        (folder / "models.toml").write_text('[models.gpt2]\nsource = "folder:gpt2"\nhandler = "generation"\n')
        with LocalAws(Path(temporary) / "aws") as aws:
            os.environ.update(aws.env)
            bench = Bench(folder, aws, options.rounds)
            bench.s3.create_bucket(Bucket=STORE.bucket)
            result = measure(bench, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def show(title: str, taken: dict[str, Taken], last: str = "", figure: Callable[[Taken], str] = lambda one: "") -> None:
    print(f"\n{title:<32}{'s':>8}{'client cpu':>12}{'server cpu':>12}{last:>22}")
    for name, one in taken.items():
        print(f"{name:<32}{one.seconds:>8.2f}{one.client_cpu:>12.2f}{one.server_cpu:>12.2f}{figure(one):>22}".rstrip())


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    bench.invoke("package", "--no-verify")
    size = next((bench.folder / "dist").glob("*.tar.gz")).stat().st_size
    print(f"An archive of {size / 1e6:.0f} MB, {os.cpu_count()} cores, medians of {options.rounds}")
    uploads = bench.uploads()
    yardstick = uploads["aws s3 cp"].seconds
    show("uploading it", uploads, "times aws s3 cp", lambda one: f"{yardstick / one.seconds:.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)

    stages = bench.stages()
    slower = max(stages["invoke package"].seconds, stages["invoke upload"].seconds)
    show("from weights to a version", stages, "of the slower stage", lambda one: f"{one.seconds / slower:.2f}")

    bench.empty()
    small = bench.small_ones(options.small)
    show(f"{options.small:,} archives of 1 MB", small)

    bench.empty()
    unchanged = bench.nothing_to_do(options.models)
    names = {name: name if name == "the first time" else f"unchanged: {name}" for name in unchanged}
    show(f"{options.models:,} models", {names[name]: one for name, one in unchanged.items()})

    bench.empty()
    listing = bench.listing(options.versions)
    show(f"{options.versions:,} versions", {"listing them": listing})
    return {
        "bytes": size,
        "upload": {name: asdict(one) for name, one in uploads.items()},
        "peak_mb": peak,
        "stages": {name: asdict(one) for name, one in stages.items()},
        "small_archives": options.small,
        "small": {name: asdict(one) for name, one in small.items()},
        "models": options.models,
        "unchanged": {name: asdict(one) for name, one in unchanged.items()},
        "versions": options.versions,
        "listing": asdict(listing),
    }


if __name__ == "__main__":
    main()
