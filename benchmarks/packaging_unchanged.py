"""A nightly run over a catalogue in which nothing has changed: `invoke package`, 1,000 models.

    python -m benchmarks.packaging_unchanged [--models 1000] [--json FILE]

The models are small, so that they are built quickly; recognising one costs the same whatever its size, since no
weights are read for it. The whole command is measured, from the start of Python to the printed table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASKS = "import mme.tasks\nfrom invoke import Collection\n\nns = Collection.from_module(mme.tasks)\n"
HANDLER = "def model_fn(model_dir):\n    return None\n\n\ndef predict_fn(data, model):\n    return data\n"


def make_model(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(vocab_size=6, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    )
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")


def package(folder: Path) -> tuple[float, dict[str, int]]:
    start = time.perf_counter()
    command = [sys.executable, "-m", "invoke", "package", "--no-verify", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    statuses = [model["status"] for model in json.loads(done.stdout)["models"]]
    return seconds, {status: statuses.count(status) for status in sorted(set(statuses))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000, help="how many models there are")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mme-bench-") as temporary:
        folder = Path(temporary)
        make_model(folder / "model")
        (folder / "handler").mkdir()
        (folder / "handler" / "inference.py").write_text(HANDLER)
        (folder / "tasks.py").write_text(TASKS)
        tables = []
        for number in range(options.models):
            shutil.copytree(folder / "model", folder / "models" / str(number))
            lines = f'[models.m{number}]\nsource = "folder:models/{number}"\nhandler = "./handler"\n'
            tables.append(lines + f'task = "feature-extraction"\n[models.m{number}.settings]\nnumber = {number}\n')
        (folder / "models.toml").write_text("\n".join(tables))
        result = {}
        for name in ("built", "unchanged, times new", "unchanged"):
            seconds, statuses = package(folder)
            result[name] = {"seconds": seconds, **statuses}
            print(f"{name:<24}{seconds:>8.2f} s   {statuses}", flush=True)
        if options.json:
            options.json.write_text(json.dumps({"models": options.models, "runs": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
