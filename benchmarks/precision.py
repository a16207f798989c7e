"""The embedding handler in float32, bfloat16 and int8: speed, and how far the vectors are from the exact ones.

"stored int8" is int8 as `invoke package` writes it (quantize in the catalogue): only its size and its load differ from
those of int8 that is made of float32 weights on loading.

    python -m benchmarks.precision [--json FILE] [--seconds 5] [--threads 1]

The three take turns within each row, because a machine's speed drifts. With one thread the times are those of the
processor, which other work disturbs less than time by the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, dict[str, str]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "stored int8": {"quantize": "int8"},
}


def load(folder: Path, settings: dict[str, str], stored: bool = False) -> tuple[Any, float]:
    """The real all-MiniLM-L6-v2 with these settings, and the seconds that it took to load."""
    import inference
    from handler_tools import linked, minilm, stored_int8

    if stored:
        stored_int8(minilm(), folder, "AutoModel")
    else:
        linked(minilm(), folder, **settings)
    began = time.thread_time()
    return inference.model_fn(str(folder)), time.thread_time() - began


def vectors(model: Any, texts: list[str]) -> np.ndarray:
    import inference

    body = json.dumps(texts)
    embeddings: np.ndarray = inference.predict_fn(inference.input_fn(body, "application/json"), model)["embeddings"]
    return embeddings


def lowest_cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


def measure(models: dict[str, Any], texts: list[str], seconds: float, clock: Any) -> dict[str, float]:
    """The median seconds of one request with these texts, for each model."""
    times: dict[str, list[float]] = {name: [] for name in models}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times["float32"]) < 4:
        for name, model in models.items():
            began = clock()
            vectors(model, texts)
            times[name].append(clock() - began)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", type=Path, help="write the figures to this file")
    arguments.add_argument("--seconds", type=float, default=5.0, help="for each row")
    arguments.add_argument("--threads", type=int, default=1, help="threads of each computation")
    options = arguments.parse_args()
    sys.path[:0] = [str(ROOT / folder) for folder in ("model_code/embedding", "model_code/common", "tests/handlers")]
    import torch
    from sentences import SENTENCES

    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    result: dict[str, Any] = {name: {} for name in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        load(Path(folder, "first"), {})  # so that no model pays for the imports
        models = {}
        for name, settings in SETTINGS.items():
            models[name], result[name]["load_ms"] = load(Path(folder, name), settings, name == "stored int8")
            result[name]["load_ms"] *= 1000
            result[name]["weights_mb"] = sum(p.stat().st_size for p in Path(folder, name).glob("*.safetensors")) / 1e6
    alone = {name: np.concatenate([vectors(model, [text]) for text in SENTENCES]) for name, model in models.items()}
    for name, model in models.items():
        result[name]["cosine"] = lowest_cosine(alone[name], alone["float32"])
        together = vectors(model, SENTENCES)
        result[name]["cosine_in_a_batch"] = lowest_cosine(together, alone["float32"])
        result[name]["cosine_alone_to_batch"] = lowest_cosine(together, alone[name])
    rows = {
        "1 short": SENTENCES[3:4],
        "8 short": SENTENCES[3:4] * 8,
        "32 short": SENTENCES[3:4] * 32,
        "32 mixed": (SENTENCES * 3)[:32],
    }
    for row, texts in rows.items():
        for name, seconds in measure(models, texts, options.seconds, clock).items():
            result[name][row] = seconds * 1000
    print(
        f"{'':12}{'load ms':>9}{'MB':>7}"
        + "".join(f"{row + ' ms':>18}" for row in rows)
        + "   cosine  batch   alone~batch"
    )
    for name, values in result.items():
        cells = "".join(f"{values[row]:>10.1f} ({result['float32'][row] / values[row]:4.2f}x)" for row in rows)
        near = f"{values['cosine']:.4f}  {values['cosine_in_a_batch']:.4f}  {values['cosine_alone_to_batch']:.5f}"
        print(f"{name:12}{values['load_ms']:>9.0f}{values['weights_mb']:>7.1f}{cells}   {near}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
