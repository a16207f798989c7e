"""Recognises sources that are not models of transformers: the error names what they are and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mme.errors import SourceError
from mme.folder import FolderFile
from mme.snapshot import weights

LFS = b"version https://git-lfs.github.com/spec/"
LFS_SIZE = 1024  # bytes; a pointer has about 130
ORIGINAL = "Take the folder or repository that it was made from, with config.json and model.safetensors."
SAVE = "Load it with transformers in Python, call save_pretrained on the model and its tokenizer, and give that folder."


@dataclass(frozen=True)
class Kind:
    """``name`` is what such files are called; ``hint`` says what to do."""

    name: str
    hint: str


# By the end of a file's name.
SUFFIXES = {
    ".gguf": Kind("GGUF, the format of llama.cpp", ORIGINAL),
    ".ggml": Kind("GGML, an old format of llama.cpp", ORIGINAL),
    ".onnx": Kind("ONNX", f"Neither transformers nor the handlers here read it. {ORIGINAL}"),
    ".tflite": Kind("TensorFlow Lite", ORIGINAL),
    ".mlmodel": Kind("Core ML", ORIGINAL),
    ".mlpackage": Kind("Core ML", ORIGINAL),
    ".h5": Kind("TensorFlow", "Load it with from_pretrained(folder, from_tf=True) in transformers 4, and save it."),
    ".keras": Kind("Keras", ORIGINAL),
    ".msgpack": Kind("Flax", "Load it with from_pretrained(folder, from_flax=True) in transformers 4, and save it."),
    ".nemo": Kind("NVIDIA NeMo", ORIGINAL),
    ".ot": Kind("rust-bert", ORIGINAL),
    ".engine": Kind("TensorRT, made for one GPU", ORIGINAL),
    ".skops": Kind("scikit-learn (skops)", "This endpoint serves models of transformers alone."),
    ".joblib": Kind("a pickle of joblib, as scikit-learn saves", "This endpoint serves models of transformers alone."),
    ".pkl": Kind("a pickle, as scikit-learn saves", "This endpoint serves models of transformers alone."),
    ".pickle": Kind("a pickle, as scikit-learn saves", "This endpoint serves models of transformers alone."),
    ".distcp": Kind(
        "a checkpoint in the parts of several processes (FSDP)",
        "accelerate merge-weights makes one model.safetensors of them.",
    ),
    ".ckpt": Kind("a training checkpoint", SAVE),
    ".pt": Kind("PyTorch, saved as a whole", SAVE),
    ".pth": Kind("PyTorch, saved as a whole", SAVE),
}
# By a file's own name.
NAMES = {
    "saved_model.pb": Kind("TensorFlow (SavedModel)", ORIGINAL),
    "openvino_model.xml": Kind("OpenVINO", ORIGINAL),
    "model.neuron": Kind("AWS Neuron", ORIGINAL),
}
MLFLOW = "MLmodel"
ADAPTER = "adapter_config.json"
# Names that are never a label map or a word list: files that training, editors and model pages leave beside a model.
JUNK_SUFFIXES = (
    *(".bin", ".ckpt", ".engine", ".gguf", ".h5", ".md", ".mlmodel", ".msgpack", ".onnx", ".onnx_data", ".ot"),
    *(".pt", ".pth", ".safetensors", ".tflite", ".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp", ".pdf", ".ipynb"),
)
JUNK_NAMES = frozenset(
    {
        *("all_results.json", "dataset_infos.json", "eval_results.json", "eval_results.txt", "model_card.json"),
        *("optimizer.pt", "predict_results.json", "rng_state.pth", "scheduler.pt", "test_results.json"),
        *("train_results.json", "trainer_state.json", "training_args.bin", "flax_model.msgpack", "tf_model.h5"),
        *("quantize_config.json", "vocab.bpe", "encoder.json", "modeling_output.json", "similarity_evaluation.csv"),
    }
)
JUNK_FOLDERS = ("checkpoint-", "coreml", "eval", "logs", "onnx", "openvino", "runs", "wandb", "original")


# Tensors that quantised checkpoints have beside a layer's weight: scales, zero points and the like.
QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_inv|weight_zero_point|input_scale|SCB"
    r"|weight\.(absmax|quant_map|nested_absmax|quant_state\.\w+))$"
)
# How many layers a model has, by the names that configurations have for it; and a number that is never doubted.
LAYERS = re.compile(r"(n|num)_?(\w+_)?layers?|\w+_layers|layers|depth|n_blocks|num_blocks")
MOST_LAYERS = 1000
MOST_NESTED = 4
WHOLE_NUMBERS = frozenset(["I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL", "C64"])


def check_numbers(what: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Raise SourceError where the safetensors in ``folder`` are quantised and the configuration does not say how to
    read them, or says it in a way that transformers does not know: it would take them for the weights themselves."""
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    if said and (method is None or _is_known(str(method))):
        return  # where it is not whole, transformers says so
    for file in weights.files(folder):
        for tensor in weights.read_header(file):
            integers = tensor.dtype in WHOLE_NUMBERS and tensor.name.endswith((".weight", ".bias"))
            if integers or QUANTIZED.search(tensor.name):
                kind = f" ({tensor.dtype})" if integers else ""
                why = f"names a way that transformers does not know ({method})" if said else "does not say how"
                raise SourceError(
                    f"{what} has weights that are not plain numbers, {tensor.name}{kind} among them, and its "
                    f"config.json {why} they are to be read (quantization_config).",
                    ORIGINAL,
                )


def _is_known(method: str) -> bool:
    """Whether transformers knows this way of quantizing. One that it does not know it passes over with a warning."""
    from transformers.quantizers import auto

    known = auto.AUTO_QUANTIZATION_CONFIG_MAPPING
    return method in known or any(name.startswith(f"{method}_") for name in known)


def check_size(what: str, folder: Path, config: Mapping[str, Any], pickled: bool) -> None:
    """Raise SourceError where the configuration has more layers than the checkpoint could hold: a model of millions of
    layers would be built for hours, and fill the memory, before anybody misses their weights."""
    many = [(key, count) for key, count in _layers(config) if count > MOST_LAYERS]
    tensors = 0  # of a pickle they are not counted
    if many and not pickled:
        tensors = sum(len(weights.read_header(file)) for file in weights.files(folder))
    for key, count in many:
        if count > tensors:
            raise SourceError(
                f"{what}: config.json says {key} = {count:,}, and its weights are "
                f"{f'{tensors:,} tensors' if tensors else 'a pickle'}: there is no such model.",
                "A layer has one tensor or more. Is the config.json that of another model?",
            )


def _layers(config: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and depth < MOST_NESTED:
            yield from ((f"{key}.{name}", count) for name, count in _layers(value, depth + 1))
        elif LAYERS.fullmatch(key) and type(value) is int:
            yield key, value


def check_fetched(what: str, files: Sequence[FolderFile]) -> None:
    """Raise SourceError where a file of the model is only a git-lfs pointer."""
    safe = any(item.path.endswith(".safetensors") for item in files)
    for item in files:
        weights = item.path.endswith(".safetensors") or (item.path.endswith(".bin") and not safe)
        if item.size > LFS_SIZE or (is_junk(item.path) and not weights):
            continue
        with item.origin.open("rb") as file:
            start = file.read(len(LFS))
        if start == LFS:
            raise SourceError(
                f"{what}: {item.path} is a git-lfs pointer of {item.size} bytes"
                f"{', not a safetensors file' if item.path.endswith('.safetensors') else ''}: it was not fetched.",
                "Git LFS did not run here: git lfs install and git lfs pull in the repository fetch it; or take the "
                "model from the Hub (hub:).",
            )


def _with_its_base(adapter: FolderFile) -> str:
    """The way out for an adapter that was given as a model."""
    base = _base(adapter)
    return f"Give its base as source{f' (it says {base})' if base else ''} and this folder or repository as adapter."


def no_model(what: str, folder: Path, files: Sequence[FolderFile]) -> SourceError:
    """The error for a source without config.json."""
    names = {item.path: item for item in files}
    if ADAPTER in names:
        return SourceError(
            f"{what} is a LoRA adapter, not a model: there is {ADAPTER} and no config.json.",
            _with_its_base(names[ADAPTER]),
        )
    if MLFLOW in names:
        inner = sorted(str(PurePosixPath(path).parent) for path in names if path.endswith("/config.json"))
        return SourceError(
            f"{what} is an MLflow model: there is {MLFLOW}.",
            f"The model of transformers in it is the folder {inner[0]}, with the tokenizer's files copied beside it "
            "(MLflow keeps them in components/tokenizer)."
            if inner
            else "It holds no model of transformers, and this endpoint serves no others.",
        )
    if (kind := _kind(names)) is not None:
        path, of = kind
        return SourceError(f"{what} is not a model of transformers: {path} is {of.name}.", of.hint)
    nested = sorted({str(PurePosixPath(path).parent) for path in names if path.endswith("/config.json")})
    return SourceError(
        f"{what} is not a model: there is no config.json in {folder}.",
        f"Is it in {nested[0]}?" if nested else "A model's folder has config.json and its weights.",
    )


def no_weights(what: str, files: Sequence[FolderFile]) -> SourceError:
    """The error for a source with config.json and without weights that transformers reads."""
    names = {item.path: item for item in files}
    if ADAPTER in names:
        return SourceError(
            f"{what} has the weights of a LoRA adapter alone: there is {ADAPTER} and no model.safetensors.",
            _with_its_base(names[ADAPTER]),
        )
    if (kind := _kind(names)) is not None:
        path, of = kind
        return SourceError(f"{what} has its weights only in another format: {path} ({of.name}).", of.hint)
    others = sorted(path for path in names if path.endswith((".safetensors", ".bin")))
    hint = f"There is {others[0]}, which is not the name that transformers looks for." if others else ""
    return SourceError(f"{what} has no weights: no model.safetensors.", hint or "Was the download complete?")


def _kind(names: Mapping[str, FolderFile]) -> tuple[str, Kind] | None:
    for path in sorted(names, key=lambda path: (path.count("/"), path)):
        parts = PurePosixPath(path)
        kind = NAMES.get(parts.name) or SUFFIXES.get(parts.suffix.lower())
        kind = kind or next(
            (
                SUFFIXES[PurePosixPath(part).suffix]
                for part in parts.parts[:-1]
                if PurePosixPath(part).suffix == ".mlpackage"
            ),
            None,
        )
        if kind is not None:
            return path, kind
    return None


def _base(config: FolderFile) -> str:
    try:
        said: Any = json.loads(config.origin.read_text(encoding="utf-8"))
        return str(said.get("base_model_name_or_path") or "")[:200]
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def is_junk(path: str) -> bool:
    """Whether a file beside a model is one of those that are often there and never part of it."""
    parts = PurePosixPath(path)
    return (
        parts.name in JUNK_NAMES
        or parts.suffix.lower() in JUNK_SUFFIXES
        or parts.parts[0].startswith(JUNK_FOLDERS)
        or parts.name.upper().startswith(
            ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY", "README", "CITATION")
        )
    )
