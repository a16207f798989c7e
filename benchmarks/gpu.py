"""The serving container on one GPU: correctness, speed, memory of a model, and what happens when the card is full.

    python -m benchmarks.gpu [--out FOLDER] [--only correct,full,...] [--without stock]
    python -m benchmarks.gpu --device cpu --quick --minutes 20      the same without a GPU: small models, a made-up card

It ends within six minutes (--minutes), prints a table as it goes, and writes gpu.json and gpu.txt into FOLDER (else
into $OUT, else into build/benchmarks) after every row. Each part is a process with a deadline of its own: one that runs
over is stopped, the table says so, and the next begins; time that a part does not need goes to those after it. The
exit code is 1 where an answer was wrong or a part did not finish; then gpu.log has the ends of the containers' logs.

Parts: correct (embeddings, texts, scores and a model without a handler, equal to the CPU's within the format's error,
in float32, bfloat16 and float16, alone and many at once); load (LOAD to the first answer); full (507 on a full card,
and that it recovers); memory (of the GPU and of the machine, of a further MiniLM and GPT-2, and what parking gives
back); speed (answers a second with 1, 8 and 64 clients); turns (up to 200 models in turns).

What the machine needs:

- one NVIDIA GPU with its driver and 8 GB or more, 2 GB of disk, Python 3.10 to 3.12. No network: models are made on the
  spot, of the real ones' sizes (MiniLM: 6 layers, 384 wide, 30,522 words; GPT-2: 124M) and with random weights;
- of a clone of the project these folders: benchmarks, model_code, src (3 MB). Nothing has to be installed of it;
- the packages that the container needs, torch with CUDA among them. With a network: python3 -m venv .venv, then
  .venv/bin/pip install -e '.[container]'. Without one, where torch and transformers are there: wheels of what
  `python -m benchmarks.gpu --check` says is missing (mostly httptools), fetched elsewhere by `pip download` and
  installed by `pip install --no-index --no-deps --target FOLDER WHEEL...`, with FOLDER in PYTHONPATH;
- for the stock stack beside it, Java (11 or 17) and .venv-stock (`make stock`, with a torch that has CUDA). Where they
  are not there, the table says so and has ours alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seconds that each part has at least. Time that a part does not need goes to those after it.
PARTS = {"correct": 45, "load": 60, "full": 30, "memory": 30, "speed": 75, "turns": 85}
NEEDED = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "httptools", "prometheus_client")
MODELS_SECONDS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder for gpu.json and gpu.txt")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: cuda, or nothing at all"
    )
    parser.add_argument("--quick", action="store_true", help="small models and little of everything")
    parser.add_argument("--minutes", type=float, default=5.8, help="it ends within this time")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--without", choices=("stock",), help="leave the stock stack out")
    parser.add_argument("--check", action="store_true", help="say what is missing here, and end")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # this process is one part
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("mme") is None:  # it is not installed: a clone is enough
        sys.path.insert(0, str(ROOT / "src"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    if options.part:
        from benchmarks import _gpu_parts

        _gpu_parts.run(options.part, options.work, options.device == "cuda", options.quick, options.without == "stock")
        return 0
    parts = [part for part in options.only.split(",") if part]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    why_not = lacking(options.device)
    if options.check or why_not:
        print(why_not or "Nothing is missing.")
        if (
            options.json and options.device == "auto" and not options.check
        ):  # `invoke bench`, on a machine without a GPU
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"left out": why_not}) + "\n")
            return 0
        return 2 if why_not else 0
    out = options.out or Path(os.environ.get("OUT") or ROOT / "build" / "benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    return measure(options, parts, out)


def lacking(device: str) -> str:
    """What keeps this from running here, or nothing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"These packages are missing: {', '.join(missing)}. --help says what is needed."
    if device == "cpu":
        return ""
    import torch

    if importlib.util.find_spec("pynvml") is None:
        return "The package nvidia-ml-py is missing: without it the container sees no GPU."
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU here. Without one: --device cpu --quick"
    return ""


class Table:
    """The rows so far, printed and written as they come."""

    def __init__(self, out: Path, also: Path | None, quick: bool) -> None:
        self._out, self._also = out, also
        self.rows: list[dict[str, Any]] = []
        self.machine: dict[str, Any] = {"quick": quick}
        self._text = ""

    @property
    def bad(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("good") is False]

    def say(self, line: str) -> None:
        print(line, flush=True)
        self._text += line + "\n"
        (self._out / "gpu.txt").write_text(self._text)

    def add(self, row: dict[str, Any]) -> None:
        if "machine" in row:
            self.machine |= row["machine"]
            self.say("  " + ", ".join(f"{name} {value}" for name, value in row["machine"].items()))
        else:
            self.rows.append(row)
            mark = {True: "right ", False: "WRONG "}.get(row.get("good"), "")  # type: ignore[arg-type]
            self.say(f"  {row['what']:<46} {row['who']:<18} {mark}{row['figure']}")
        text = json.dumps({"machine": self.machine, "rows": self.rows}, indent=2) + "\n"
        (self._out / "gpu.json").write_text(text)
        if self._also:
            self._also.parent.mkdir(parents=True, exist_ok=True)
            self._also.write_text(text)


def measure(options: argparse.Namespace, parts: list[str], out: Path) -> int:
    device = "cpu" if options.device == "cpu" else "cuda"
    ends = time.monotonic() + options.minutes * 60
    table = Table(out, options.json, options.quick)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the parts end with this process
    work = Path(tempfile.mkdtemp(prefix="mme-gpu-"))
    try:
        for place, part in enumerate(["models", *parts]):
            later = sum(PARTS[name] for name in ["models", *parts][place + 1 :])
            share = options.minutes * 60 / (MODELS_SECONDS + sum(PARTS.values()))
            seconds = max(1.0, ends - time.monotonic() - later * min(1.0, share))
            if time.monotonic() >= ends:
                table.add({"what": part, "who": "", "figure": "left out: the time is over", "good": False})
                continue
            table.say(f"{part} (at most {seconds:.0f} s):")
            command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--work", str(work), "--device", device]
            command += ["--quick"] * options.quick + ["--without", "stock"] * (options.without == "stock")
            began = time.monotonic()
            if problem := one_part(command, seconds, table):
                table.add({"what": part, "who": "", "figure": problem, "good": False})
            table.say(f"  ({time.monotonic() - began:.1f} s)")
    finally:
        if table.bad:
            (out / "gpu.log").write_bytes(b"".join(ends_of_logs(work)))
        shutil.rmtree(work, ignore_errors=True)
    table.say(
        f"{len(table.bad)} of {len(table.rows)} rows are wrong or not finished." if table.bad else "All is right."
    )
    return 1 if table.bad else 0


def ends_of_logs(work: Path, most: int = 100_000) -> Iterator[bytes]:
    for log in sorted(work.glob("*.log")):
        yield f"--- {log.name}\n".encode() + log.read_bytes()[-most:] + b"\n"


def one_part(command: list[str], seconds: float, table: Table) -> str:
    """Run a part and collect its rows. Returns why it did not finish, or None."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    ends = time.monotonic() + seconds
    try:
        while (line := lines.get(timeout=max(0.01, ends - time.monotonic()))) is not None:
            if line.startswith("{"):
                table.add(json.loads(line))
            else:
                table.say("  " + line.rstrip())
        code = process.wait(max(0.01, ends - time.monotonic()))
        return f"ended with exit code {code}" if code else ""
    except (queue.Empty, subprocess.TimeoutExpired):
        return f"cut: not done after {seconds:.0f} s"
    finally:
        if process.poll() is None:  # its containers end with it: their guards see to that
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(1.0)


if __name__ == "__main__":
    raise SystemExit(main())
