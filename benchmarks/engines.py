"""Our handlers beside the engines that one would pick instead, in one process: all-MiniLM-L6-v2, and a DeBERTa, an
adapter and a classifier.

    make engines          (once: installs the others into .venv-engines)
    .venv-engines/bin/python -m benchmarks.engines [--json FILE] [--rounds 30] [--threads 1,2] [--only NAME;...]
        [--models minilm,deberta,adapter,classifier]

An answer begins with texts and ends with one normalised vector for each: tokenising and pooling are part of it. Engines
take turns within each row, because a machine's speed drifts, and the figure is the median of processor time, of all
threads together, which a busy neighbour disturbs less than the clock's. With more threads than one, the time by the
clock stands beside it. The last column is the lowest cosine to transformers' own answers in float32 (vectors, or a
classifier's probabilities), over real sentences, each alone and all of them together.

Others are the engines' own usual way: ONNX Runtime and OpenVINO with the exported graph and padded batches, CTranslate2
with its converted model, fastembed and infinity (its torch engine) as they are. int8 is what each makes of the same
weights by itself; ours is that of `invoke package`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the container sets them
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np

from benchmarks._engine_models import KINDS, Models, padded, pooled, tokens_of
from benchmarks._processor import processor

ROOT = Path(__file__).resolve().parents[1]
WORDS = "the ship crossed a wide bay before sunrise while gulls followed its wake and the crew counted ropes and sails"
Engine = Callable[[list[str]], np.ndarray]
ENDS: list[Callable[[], None]] = []  # what ends the engines that have to be ended


def text(words: int, seed: int) -> str:
    """So many words, which are a token each; the model adds two."""
    return " ".join(np.random.default_rng(seed).choice(WORDS.split(), words))


ROWS: dict[str, list[str]] = {
    "17 tokens": [text(15, 1)],
    "86 tokens": [text(84, 2)],
    "8 x 17": [text(15, seed) for seed in range(8)],
    "32 mixed": [text(words, words) for words in (4, 84, 9, 12, 38, 15, 15, 18, 5, 7, 11, 22, 30, 9, 14, 17)] * 2,
}


# -- the engines ----------------------------------------------------------------------------------------------------


def ours(models: Models, threads: int, **settings: Any) -> Engine:
    folder = models.work / f"ours-{'-'.join(map(str, settings.values())) or 'float32'}-{threads}"
    shutil.copytree(models.source, folder)
    return handled(models, folder, threads, settings)


def ours_int8(models: Models, threads: int) -> Engine:
    """As `invoke package` stores it."""
    from handler_tools import stored_int8

    folder = models.work / f"ours-int8-{threads}"
    stored_int8(models.source, folder, "AutoModel")
    return handled(models, folder, threads, {"quantize": "int8"})


def ours_busy(models: Models, threads: int) -> Engine:
    """With packed weights, as mme.container has it while a model is busy."""
    folder = models.work / f"ours-busy-{threads}"
    shutil.copytree(models.source, folder)
    return handled(models, folder, threads, {}, busy=True)


def handled(models: Models, folder: Path, threads: int, settings: dict[str, Any], busy: bool = False) -> Engine:
    """Our handler over the model in this folder."""
    import torch
    from handler_tools import load

    handler = load(models.handler)
    torch.set_num_threads(threads)
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "settings.json").write_text(json.dumps({**models.settings, **settings}))
    model = handler.model_fn(str(folder))
    if busy:
        handler.busy_fn(model).begin()
    answer = models.ours(handler, model)

    def run(texts: list[str]) -> np.ndarray:
        torch.set_num_threads(threads)
        return answer(texts)

    return run


def ours_torch(models: Models, threads: int) -> Engine:
    os.environ["MME_ENGINE"] = "torch"
    try:
        return ours(models, threads, max_inputs=255)
    finally:
        del os.environ["MME_ENGINE"]


def onnxruntime_(models: Models, threads: int, path: Path | None = None) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = path or models.onnx() / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokens = tokens_of(models.source)

    def run(texts: list[str]) -> np.ndarray:
        feed = padded(tokens(texts))
        taken = {name: feed[name] for name in models.inputs}
        return models.answer(session.run(None, taken)[0], feed["attention_mask"])

    return run


def openvino_(models: Models, threads: int) -> Engine:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(models.onnx() / "model.onnx"), "CPU", settings)
    tokens = tokens_of(models.source)

    def run(texts: list[str]) -> np.ndarray:
        feed = padded(tokens(texts))
        return pooled(compiled(feed)[0], feed["attention_mask"])

    return run


def ctranslate2_(models: Models, threads: int, kind: str = "float32") -> Engine:
    import ctranslate2

    encoder = ctranslate2.Encoder(str(models.ctranslate2()), compute_type=kind, intra_threads=threads, inter_threads=1)
    tokens = tokens_of(models.source)

    def run(texts: list[str]) -> np.ndarray:
        rows = tokens(texts)
        hidden = np.array(encoder.forward_batch(rows).last_hidden_state)
        return pooled(hidden, padded(rows)["attention_mask"])

    return run


def fastembed_(models: Models, threads: int) -> Engine:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    name = f"local/minilm-{threads}"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(url="file:///nowhere"),
        dim=384,
        model_file="model.onnx",
    )
    model = TextEmbedding(name, threads=threads, specific_model_path=str(models.onnx()))
    return lambda texts: np.stack(list(model.embed(texts, batch_size=64)))


def infinity_(models: Models, threads: int) -> Engine:
    import asyncio
    import logging
    import threading

    import torch

    os.environ.update(HF_HUB_OFFLINE="1", DO_NOT_TRACK="1", INFINITY_ANONYMOUS_USAGE_STATS="0")
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    logging.disable(logging.INFO)
    torch.set_num_threads(threads)  # for its own threads, which it starts now
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    settings = {"engine": "torch", "device": "cpu", "bettertransformer": False, "model_warmup": False, "batch_size": 64}
    engine = AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=str(models.source), **settings))

    def wait(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    wait(engine.astart())
    ENDS.append(lambda: wait(engine.astop()))
    return lambda texts: np.stack(wait(engine.embed(sentences=texts))[0])


ENGINES: dict[str, tuple[str, Callable[[Models, int], Engine]]] = {
    "ours": ("onnxruntime", ours),
    "ours, busy": ("onnxruntime", ours_busy),
    "ours, torch": ("torch", ours_torch),
    "ours, int8": ("onnxruntime", ours_int8),
    "ONNX Runtime": ("onnxruntime", onnxruntime_),
    "ONNX Runtime, int8": ("onnxruntime", lambda models, threads: onnxruntime_(models, threads, models.onnx_int8())),
    "OpenVINO": ("openvino", openvino_),
    "CTranslate2": ("ctranslate2", ctranslate2_),
    "CTranslate2, int8": ("ctranslate2", lambda models, threads: ctranslate2_(models, threads, "int8")),
    "fastembed": ("fastembed", fastembed_),
    "infinity": ("infinity_emb", infinity_),
}


# -- measuring ------------------------------------------------------------------------------------------------------


def lowest_cosine(engine: Engine, sentences: list[str], want: np.ndarray) -> float:
    rows = np.concatenate([*(engine([sentence]) for sentence in sentences), engine(sentences)])
    want = np.concatenate([want, want])
    return float(((rows * want).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(want, axis=1)).min())


def measure(engines: dict[str, Engine], texts: list[str], rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of an answer for each engine: of the processor, and by the clock."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(rounds + 2):
        for name, engine in engines.items():
            clock, busy = time.perf_counter(), time.process_time()
            engine(texts)
            spent[name].append((1000 * (time.process_time() - busy), 1000 * (time.perf_counter() - clock)))
    return {
        name: (statistics.median(cpu for cpu, _ in taken[2:]), statistics.median(clock for _, clock in taken[2:]))
        for name, taken in spent.items()
    }


def table(models: Models, wanted: Sequence[str], threads: int, rounds: int) -> dict[str, Any]:
    from sentences import SENTENCES

    engines: dict[str, Engine] = {}
    for name in wanted:
        try:
            engines[name] = ENGINES[name][1](models, threads)
        except Exception as error:  # a release of an engine that wants it otherwise: the others are measured
            print(f"{name} could not be made ready: {type(error).__name__}: {error}", file=sys.stderr)
    want = models.exact(list(SENTENCES))
    figures: dict[str, Any] = {name: {} for name in engines}
    for row, texts in ROWS.items():
        for name, (cpu, clock) in measure(engines, texts, rounds).items():
            figures[name][row] = {"processor_ms": round(cpu, 2), "clock_ms": round(clock, 2)}
    print(
        f"\n{models.title}\n{processor()}; {threads} thread{'s' if threads > 1 else ''}; processor ms an answer", end=""
    )
    print(" (ms by the clock)" if threads > 1 else "", flush=True)
    print(f"{'':20}" + "".join(f"{row:>20}" for row in ROWS) + f"{'lowest cosine':>16}")
    for name, engine in engines.items():
        figures[name]["lowest_cosine"] = round(lowest_cosine(engine, list(SENTENCES), want), 6)
        cells = ""
        for row in ROWS:
            figure = figures[name][row]
            clock = f" ({figure['clock_ms']:.1f})" if threads > 1 else ""
            cells += f"{figure['processor_ms']:.1f}{clock}".rjust(20)
        print(f"{name:20}{cells}{figures[name]['lowest_cosine']:>16.6f}", flush=True)
    while ENDS:
        ENDS.pop()()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--rounds", type=int, default=30, help="answers of each engine in each row")
    parser.add_argument("--threads", default="1,2", help="how many, one table for each")
    parser.add_argument("--only", help=f"some of: {', '.join(ENGINES)} (separated by semicolons)")
    parser.add_argument("--models", default=",".join(KINDS), help="one table for each (%(default)s)")
    options = parser.parse_args()
    kinds = [name.strip() for name in options.models.split(",")]
    if unknown := [name for name in kinds if name not in KINDS]:
        parser.error(f"--models: {unknown[0]!r} is none of {', '.join(KINDS)}")
    wanted = [name.strip() for name in options.only.split(";")] if options.only else list(ENGINES)
    unknown = [name for name in wanted if name not in ENGINES]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(ENGINES)}")
    missing = sorted({ENGINES[name][0] for name in wanted if not importlib.util.find_spec(ENGINES[name][0])})
    if missing:
        print(f"Not installed here, so left out: {', '.join(missing)} (`make engines`, .venv-engines)")
        wanted = [name for name in wanted if ENGINES[name][0] not in missing]
    result: dict[str, Any] = {"processor": processor()}
    sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "tests/handlers", "src")]
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="mme-engines-") as work:
            models = KINDS[kind](Path(work))
            measured = [name for name in wanted if models.engines is None or name in models.engines]
            for threads in map(int, options.threads.split(",")):
                result.setdefault(kind, {})[f"threads_{threads}"] = table(models, measured, threads, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
