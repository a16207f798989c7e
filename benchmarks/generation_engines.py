"""Our generation handler beside CTranslate2, in one process: a model of GPT-2's size, one text and eight at once.

    make engines          (once: installs the others into .venv-engines)
    .venv-engines/bin/python -m benchmarks.generation_engines [--json FILE] [--rounds 5] [--new-tokens 20]

Tokens a second of processor time, with one thread: the median, the engines taking turns, because a machine's speed
drifts. The weights are random, which cost as much as real ones. "Busy" is ours with packed weights, as mme.container
has it while a model is busy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from benchmarks._processor import processor
from benchmarks.decoding import ROOT, make

Engine = Callable[[int, int], Any]  # so many texts, so many new tokens of each
CLIENTS = (1, 8)


def ours(folder: Path, quantize: str | None = None, busy: bool = False, torchs: bool = False) -> Engine:
    import inference

    (folder / "code" / "settings.json").write_text(json.dumps({"quantize": quantize} if quantize else {}))
    os.environ["MME_ENGINE"] = "torch" if torchs else ""
    model = inference.model_fn(str(folder))
    os.environ["MME_ENGINE"] = ""
    if busy:
        inference.busy_fn(model).begin()

    def run(texts: int, tokens: int) -> Any:
        more = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        bodies = [{"inputs": "It was a very good sort of man" + " indeed" * place} for place in range(texts)]
        asked = [inference.input_fn(json.dumps({**body, "parameters": more}), "application/json") for body in bodies]
        return inference.batch_fn(asked, model)

    return run


def ctranslate2_(folder: Path, kind: str) -> Engine:
    import ctranslate2
    from ctranslate2.converters import transformers as converters

    converted = folder.parent / "ctranslate2"
    if not converted.is_dir():
        from transformers import AutoConfig

        size = AutoConfig.from_pretrained(folder).vocab_size
        # The tokenizer at hand is smaller than the model, and nothing here is read.
        converters.GPT2Loader.get_vocabulary = lambda *_: [f"t{token}" for token in range(size)]
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(converted))
    generator = ctranslate2.Generator(str(converted), compute_type=kind, intra_threads=1, inter_threads=1)

    def run(texts: int, tokens: int) -> Any:
        prompts = [[f"t{100 + token}" for token in range(12 + place)] for place in range(texts)]
        return generator.generate_batch(
            prompts, max_length=tokens, min_length=tokens, sampling_topk=1, include_prompt_in_result=False
        )

    return run


def engines(folder: Path) -> dict[str, Engine]:
    made = {
        "ours": ours(folder),
        "ours, busy": ours(folder, busy=True),
        "ours, torch": ours(folder, torchs=True),
        "ours, int8": ours(folder, "int8"),
    }
    try:
        made["CTranslate2"] = ctranslate2_(folder, "float32")
        made["CTranslate2, int8"] = ctranslate2_(folder, "int8")
    except ImportError:
        print("Not installed here, so left out: ctranslate2 (`make engines`, .venv-engines)", file=sys.stderr)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    parser.add_argument("--new-tokens", type=int, default=20, help="tokens that each request generates")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "model_code" / room) for room in ("generation", "common")]
    import torch

    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="mme-generation-") as work:
        folder = Path(work) / "gpt2"
        make(folder)
        made = engines(folder)
        for texts in CLIENTS:
            rates: dict[str, list[float]] = {name: [] for name in made}
            for _ in range(options.rounds):
                for name, run in made.items():
                    began = time.process_time()
                    run(texts, options.new_tokens)
                    rates[name].append(texts * options.new_tokens / (time.process_time() - began))
            for name, measured in rates.items():
                figures.setdefault(name, {})[f"{texts}"] = round(statistics.median(measured), 1)
    print(f"{processor()}; 1 thread; tokens a second of processor time")
    print(f"{'':20}" + "".join(f"{f'{texts} text' + 's' * (texts > 1):>12}" for texts in CLIENTS))
    for name, row in figures.items():
        print(f"{name:20}" + "".join(f"{row[str(texts)]:>12.1f}" for texts in CLIENTS))
    if options.json:
        options.json.write_text(json.dumps({"processor": processor(), "tokens_per_second": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
