"""On this machine: the local AWS, and the benchmarks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from invoke import Context

from mme import console
from mme.errors import MmeError, UsageError, nearest
from mme.tasks.command import command, note, whole_number


@command(
    {
        "port": "the port to listen on; 0 takes a free one",
        "data-dir": "the folder for everything it keeps",
        "container": "what serves the models: ours, stock (the real multi-model-server), or a command",
        "max-instances": "how many containers run for one variant; more instances are counted only",
        "minute": "seconds that AWS's minute lasts: of metrics, alarms, cool-downs and an update's waits, 0.1 to 60",
        "open": "open its page in the browser",
    }
)
def local(
    context: Context,
    port: str = "4566",
    data_dir: str = ".local/aws",
    container: str = "ours",
    max_instances: str = "2",
    minute: str = "60",
    open: bool = False,
) -> None:
    """Run AWS on this machine until interrupted: S3, IAM, SageMaker, and endpoints that really answer.

    Prints the lines to paste into any other shell; there the AWS CLI, boto3, Terraform and these tasks use it. And the
    address of a page for the browser: endpoints, models, requests, memory, the log, and a box to try a model.
    """
    number = whole_number("--port", port)
    whole_number("--max-instances", max_instances, 1)
    try:
        short = 0.1 <= float(minute) <= 60
    except ValueError:
        short = False
    if not short:
        raise UsageError(f"--minute takes a number of seconds, 0.1 to 60, not {minute!r}.")
    if importlib.util.find_spec("moto") is None:
        raise UsageError("The local AWS is not installed.", "pip install 'mme[local,container]'")
    sys.stdout.flush()
    words = ["--port", str(number), "--data-dir", data_dir, "--container", container]
    words += ["--max-instances", max_instances, "--minute", minute]
    words += ["--open"] if open else []
    # This process becomes the server: signals reach it directly and nothing is left behind.
    os.execv(sys.executable, [sys.executable, "-m", "mme.local", *words])  # noqa: S606 (a list, no shell)


def benchmarks() -> list[str]:
    """The names of the benchmarks in this folder; those that begin with _ are their helpers."""
    return [path.stem for path in sorted(Path("benchmarks").glob("*.py")) if not path.stem.startswith("_")]


@command(
    {
        "name": "the benchmark to run, repeatable, as in packaging; left out, all",
        "results": "the folder for the figures as JSON, one file for each benchmark",
    },
    repeatable=("name",),
)
def bench(context: Context, name: Sequence[str] = (), results: str = "build/benchmarks") -> None:
    """Run the benchmarks of this repository, side by side with what one would use instead."""
    known = benchmarks()
    if not known:
        raise UsageError(
            f"There are no benchmarks in {Path('benchmarks').absolute()}.", "Run this in the repository of mme."
        )
    unknown = [item for item in name if item not in known]
    if unknown:
        raise UsageError(f"There is no benchmark {unknown[0]}.", nearest(unknown[0], known, "There are", len(known)))
    Path(results).mkdir(parents=True, exist_ok=True)
    for item in name or known:
        note(f"== {item}")
        start = time.monotonic()
        figures = Path(results) / f"{item}.json"
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{item}", "--json", str(figures)])
        if done.returncode != 0:
            raise MmeError(f"Benchmark {item} failed (exit code {done.returncode}).")
        note(f"== {item} took {console.duration(time.monotonic() - start)}; its figures are in {figures}")
