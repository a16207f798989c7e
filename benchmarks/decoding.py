"""The generation handler with 8 requests at a time: one by one, in one batch, and joining a running batch.

    python -m benchmarks.decoding [--json FILE] [--rounds 3] [--threads 1] [--new-tokens 20]

A model of GPT-2's size (124M) with random weights, which cost as much as real ones. The ways take turns, because a
machine's speed drifts. With one thread the times are those of the processor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 8


def make(folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "demo" / "tiny-gpt2").save_pretrained(folder)
    (folder / "code").mkdir()


def load(folder: Path, settings: dict[str, str]) -> tuple[Any, float]:
    import inference

    (folder / "code" / "settings.json").write_text(json.dumps(settings))
    began = time.thread_time()
    return inference.model_fn(str(folder)), time.thread_time() - began


def requests(new_tokens: int) -> list[Any]:
    import inference

    more = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    texts = ["It was a very good sort of man" + " indeed" * place for place in range(CLIENTS)]
    bodies = [json.dumps({"inputs": text, "parameters": more}) for text in texts]
    return [inference.input_fn(body, "application/json") for body in bodies]


def one_by_one(model: Any, asked: list[Any]) -> None:
    import inference

    for request in asked:
        inference.predict_fn(request, model)


def batch(model: Any, asked: list[Any]) -> None:
    import inference

    inference.batch_fn(asked, model)


def joining(model: Any, asked: list[Any]) -> None:
    """One more request before each of the first steps."""
    import inference

    decoder = inference.decoder_fn(model)
    for place, request in enumerate(asked):
        decoder.add(place, request)
        decoder.step()
    while len(decoder):
        decoder.step()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", type=Path, help="write the figures to this file")
    arguments.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    arguments.add_argument("--threads", type=int, default=1, help="threads of each computation")
    arguments.add_argument("--new-tokens", type=int, default=20, help="tokens that each request generates")
    options = arguments.parse_args()
    sys.path[:0] = [str(ROOT / "model_code" / name) for name in ("generation", "common")]
    import torch

    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        exact, exact_load = load(Path(folder), {})
        int8, int8_load = load(Path(folder), {"quantize": "int8"})
    ways: dict[str, tuple[Callable[[Any, list[Any]], None], Any]] = {
        "float32, one by one": (one_by_one, exact),
        "float32, one batch": (batch, exact),
        "float32, joining": (joining, exact),
        "int8, one by one": (one_by_one, int8),
        "int8, one batch": (batch, int8),
        "int8, joining": (joining, int8),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (way, model) in ways.items():
            began = clock()
            way(model, requests(options.new_tokens))
            times[name].append(clock() - began)
    speeds = {name: CLIENTS * options.new_tokens / statistics.median(taken) for name, taken in times.items()}
    first = speeds["float32, one by one"]
    for name, speed in speeds.items():
        print(f"{name:22}{speed:8.1f} tokens/s  {speed / first:5.2f} times")
    print(f"load: float32 {exact_load:.2f} s, int8 {int8_load:.2f} s")
    if options.json:
        result = {"tokens_per_second": speeds, "load_seconds": {"float32": exact_load, "int8": int8_load}}
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
