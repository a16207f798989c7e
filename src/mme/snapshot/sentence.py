"""What sentence-transformers keeps beside a model: its modules and how they are used (https://sbert.net).

`modules.json` lists the modules of a model. The first is mostly the transformer, and the others have folders of their
own with a config.json and, where they have any, weights. They are packed with the model, and a module that the model's
handler does not compute is refused here, by name: an answer without it would be a wrong one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mme.catalog.spec import ModelSpec
from mme.errors import SourceError
from mme.folder import FolderFile, is_safe
from mme.snapshot import portable, weights

MODULES = "modules.json"
CONFIG = "config_sentence_transformers.json"
TRANSFORMER = re.compile(r"sentence_[\w-]+_config\.json")
# Where the modules of a model are, by the names that sentence-transformers gives their folders.
FOLDER = re.compile(r"[0-9]+_\w+")
PICKLE = "pytorch_model.bin"

# What handler_sentence.py computes; see there.
KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout", "WeightedLayerPooling")
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# Kinds that bring weights, which an archive has as safetensors alone.
WEIGHTED = ("Dense", "LayerNorm", "WeightedLayerPooling")
# Task -> what config_sentence_transformers.json says of a model for it.
MODEL_TYPES = {"feature-extraction": "SentenceTransformer", "text-ranking": "CrossEncoder"}
OTHER_TYPES = {"SentenceTransformer": "embedding", "CrossEncoder": "reranking"}

# Of a model with an encoder and a decoder, the class of the encoder, which alone reads a text to be embedded. The
# embedding handler loads the same (handler_common.py).
ENCODERS = {
    "longt5": "LongT5EncoderModel",
    "mt5": "MT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
    "t5": "T5EncoderModel",
    "t5gemma": "T5GemmaEncoderModel",
    "umt5": "UMT5EncoderModel",
}


@dataclass(frozen=True)
class Module:
    """One entry of modules.json: its class, the class's last name, and the folder of its files ("" is the model's)."""

    type: str
    kind: str
    path: str


def modules(files: Sequence[FolderFile]) -> tuple[Module, ...]:
    """The modules that the files name, in order; none where there is no modules.json. Raises SourceError."""
    listed = _read(files, MODULES)
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(item, dict) and "type" in item for item in listed):
        raise SourceError(f"{MODULES} is not a list of modules.", "Download or copy it again.")
    made = []
    for item in listed:
        path = str(item.get("path") or "").rstrip("/")
        if path and not is_safe(path):
            raise SourceError(f"{MODULES} names {path!r}, which is not a folder beside it.", "Do not use this model.")
        kind = str(item["type"])
        made.append(Module(kind, kind.rpartition(".")[2], path))
    return tuple(made)


def rooted(path: Path, files: tuple[FolderFile, ...]) -> tuple[Path, tuple[FolderFile, ...]]:
    """The folder and its files as they would be if the transformer had no folder of its own, as it has in models of
    before 2021 (0_Transformer, 0_BERT): everything else reads a model's files at the root."""
    names = {item.path for item in files}
    if MODULES not in names or "config.json" in names:
        return path, files
    first = (modules(files) or (None,))[0]
    if first is None or not first.path or f"{first.path}/config.json" not in names:
        return path, files
    prefix = first.path + "/"
    moved = [replace(item, path=item.path.removeprefix(prefix)) for item in files if item.path.startswith(prefix)]
    taken = {item.path for item in moved}
    others = [item for item in files if not item.path.startswith(prefix) and item.path not in taken]
    return path / first.path, tuple(sorted(moved + others, key=lambda item: item.path.encode()))


def needed(names: Sequence[str], allow_pickle: bool) -> list[str]:
    """Of a repository's files, those of sentence-transformers' modules: of the weights, one format."""
    chosen = [name for name in names if name in (MODULES, CONFIG) or TRANSFORMER.fullmatch(name)]
    for name in names:
        folder, _, file = name.partition("/")
        if not file or not FOLDER.fullmatch(folder):
            continue
        weights_there = f"{folder}/{weights.WHOLE}" in names or f"{folder}/{weights.INDEX}" in names
        if file.endswith((".json", ".txt", ".model", ".safetensors")) or (
            allow_pickle and file.endswith(".bin") and not weights_there
        ):
            chosen.append(name)
    return chosen


def check(spec: ModelSpec, files: Sequence[FolderFile]) -> None:
    """Raise SourceError where the model is made of something that its handler, one of ours, does not compute."""
    what = f"{spec.name} ({spec.source})"
    wanted = MODEL_TYPES.get(spec.task or "")
    if wanted is None:
        return
    config = _read(files, CONFIG)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in (None, wanted):
        other = OTHER_TYPES.get(str(kind))
        raise SourceError(
            f"{what} is a {kind} of sentence-transformers, which this handler does not compute.",
            f'handler = "{other}" does.' if other else "Give it a handler of your own.",
        )
    made = modules(files)
    reason = _reason(made, wanted, files) if made else None
    if reason is not None:
        raise SourceError(
            f"{what}: {MODULES} {reason}, and the handler does not compute that.",
            "Without it the answers would be others than the model's own. Give it a handler of your own, with "
            "sentence-transformers in its requirements.txt.",
        )


def _reason(made: Sequence[Module], wanted: str, files: Sequence[FolderFile]) -> str | None:
    for module in made:
        if not module.type.startswith("sentence_transformers."):
            return f"has the module {module.type}, whose code is not that of sentence-transformers"
        if module.kind not in KINDS or (wanted == "CrossEncoder" and module.kind != "Transformer"):
            return f"has the module {module.type}"
    kinds = [module.kind for module in made]
    if kinds[0] != "Transformer":
        return f"begins with {made[0].type}, not with a Transformer"
    if kinds.count("Transformer") > 1:
        return "has two Transformers"
    if wanted == "CrossEncoder":
        return None
    if kinds.count("Pooling") != 1:
        return f"has {kinds.count('Pooling') or 'no'} Pooling among its modules, where one is needed"
    pooling = _read(files, f"{made[kinds.index('Pooling')].path}/config.json")
    stated = pooling.get("pooling_mode") if isinstance(pooling, dict) else None
    for mode in [stated] if isinstance(stated, str) else stated or []:
        if mode not in MODES:
            return f"pools by {mode!r}"
    return None


def check_first(what: str, files: Sequence[FolderFile]) -> None:
    """Raise SourceError for a model of sentence-transformers without a transformer to begin with: static vectors of
    words, a bag of words, a choice between two models."""
    made = modules(files)
    if not made or made[0].kind == "Transformer" or not made[0].type.startswith("sentence_transformers."):
        return
    raise SourceError(
        f"{what} is a model of sentence-transformers that begins with {made[0].kind} ({MODULES}), not with a "
        "Transformer: it is not a model of transformers.",
        "An archive holds one model of transformers. A folder in this one that has its own is only a part of it."
        if made[0].kind in ("Router", "Asym")
        else "Take a model that begins with a Transformer; only those are served.",
    )


def unused(spec: ModelSpec, files: Sequence[FolderFile]) -> str | None:
    """What the model's handler, which does not follow modules.json, answers in place of what sentence-transformers
    does; None where there is no such thing."""
    config = _read(files, CONFIG)
    kind = config.get("model_type") if isinstance(config, dict) else None
    made = [module.kind for module in modules(files)]
    if not made and kind is None:
        return None
    other = OTHER_TYPES.get(str(kind or "SentenceTransformer"))
    way = f'; handler = "{other}" answers as sentence-transformers does' if other else ""
    return (
        f"it is a {kind or 'SentenceTransformer'} of sentence-transformers ({', '.join(made) or CONFIG}), and its "
        f"handler follows neither modules nor prompts: it answers what transformers does for {spec.task}{way}"
    )


def write(spec: ModelSpec, files: Sequence[FolderFile], into: Path) -> None:
    """Write the modules' files into the snapshot. Raises SourceError where one is missing or a pickle without leave."""
    made = modules(files)
    top = {item.path: item for item in files}
    for name in sorted(top):
        if TRANSFORMER.fullmatch(name):
            shutil.copyfile(top[name].origin, into / name)
    config = _read(files, CONFIG)
    if isinstance(config, dict):
        portable.write_json(into / CONFIG, {key: value for key, value in config.items() if key != "__version__"})
    if not made:
        for name in sorted(top):  # a folder from before there was a list
            if name == "1_Pooling/config.json":
                (into / "1_Pooling").mkdir(exist_ok=True)
                shutil.copyfile(top[name].origin, into / name)
        return
    at_root = [replace(module, path="") if number == 0 else module for number, module in enumerate(made)]
    listed = [
        {"idx": number, "name": str(number), "path": module.path, "type": module.type}
        for number, module in enumerate(at_root)
    ]
    (into / MODULES).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    for module in at_root:
        if module.path:
            _write_module(spec, module, files, into)


def _write_module(spec: ModelSpec, module: Module, files: Sequence[FolderFile], into: Path) -> None:
    prefix = module.path + "/"
    own = {item.path.removeprefix(prefix): item.origin for item in files if item.path.startswith(prefix)}
    folder = into / module.path
    folder.mkdir(parents=True, exist_ok=True)
    has_weights = False
    for name, origin in sorted(own.items()):
        target = folder / PurePosixPath(name)
        if name.endswith(".safetensors"):
            target.parent.mkdir(parents=True, exist_ok=True)
            weights.canonical(origin, target)
            has_weights = True
        elif not name.endswith(".bin"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, target)
    if has_weights or (module.kind not in WEIGHTED and PICKLE not in own):
        return
    what = f"{spec.name} ({spec.source})"
    if PICKLE not in own:
        raise SourceError(f"{what}: {module.path} has no weights.", "Was the download complete?")
    if not spec.allow_pickle:
        raise SourceError(
            f"{what}: {module.path} has its weights only as a pickle ({PICKLE}), which can carry code.",
            "If you trust its author, say allow_pickle = true in the catalogue. The archive is safetensors "
            "in any case.",
        )
    from mme.snapshot.checkpoint import pickled_pieces

    pieces = pickled_pieces(own[PICKLE])
    if pieces is None:
        raise SourceError(
            f"{what}: {module.path}/{PICKLE} is of an older kind that cannot be read without running it.",
            "Save the model anew with today's sentence-transformers.",
        )
    weights.write(folder / weights.WHOLE, pieces)


def facts(files: Sequence[FolderFile]) -> dict[str, Any]:
    """What a manifest says of the model: by what its vectors are compared."""
    if not any(item.path == MODULES for item in files):
        return {}
    config = _read(files, CONFIG)
    stated = config.get("similarity_fn_name") if isinstance(config, dict) else None
    kind = config.get("model_type", "SentenceTransformer") if isinstance(config, dict) else "SentenceTransformer"
    return {"similarity_fn_name": stated or "cosine"} if kind == "SentenceTransformer" else {}


def _read(files: Sequence[FolderFile], name: str) -> Any:
    """What the JSON file holds; None where there is none."""
    origin = next((item.origin for item in files if item.path == name), None)
    if origin is None:
        return None
    try:
        document: Mapping[str, Any] | list[Any] = json.loads(origin.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{name} is not JSON: {error}.", "Download or copy it again.") from None
    if name == CONFIG and not isinstance(document, dict):
        raise SourceError(f"{name} is not a JSON object.", "Download or copy it again.")
    return document
