"""Python that comes with a model: where its answers need it, the catalogue has to trust it.

Without trust transformers takes a class of its own where it has one for the kind of model, without a word, and the
tokenizer or the layers that the author has written do nothing. That is right where the class has since become part of
transformers, which its name shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mme.catalog.spec import ModelSpec
from mme.errors import SourceError
from mme.snapshot import libraries, portable

# What prepares a model's inputs, by the files that name a class for it.
PARTS = {
    "tokenizer_config.json": ("AutoTokenizer", "its tokenizer"),
    "processor_config.json": ("AutoProcessor", "its processor"),
    "preprocessor_config.json": ("", "what prepares its inputs"),
    "video_preprocessor_config.json": ("", "what prepares its videos"),
}


def check(spec: ModelSpec, folder: Path, config: Mapping[str, Any]) -> None:
    """Raise SourceError where the model, or what prepares its inputs, needs Python code of its own without leave."""
    if spec.trust_remote_code:
        return
    named = {name: portable.read_json(folder / name) for name in PARTS if (folder / name).is_file()}
    if "auto_map" not in config and not any("auto_map" in part for part in named.values()):
        return
    try:
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError:
        raise libraries.missing() from None
    known = {name.lower() for name in dir(transformers)}
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise _needed(spec, "it")
    models = [name for auto, name in _classes(config) if auto.startswith("AutoModel")]
    if models and not any(name.lower() in known for name in models):
        raise _needed(spec, f"it ({models[0]})")
    for file, part in named.items():
        auto, what = PARTS[file]
        classes = [name for key, name in _classes(part) if not auto or key == auto]
        if classes and not any(name.lower().removesuffix("fast") in known for name in classes):
            raise _needed(spec, f"{what} ({classes[0]})")


def _classes(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each Auto class of an auto_map with the name of a class that stands for it."""
    mapped = config.get("auto_map")
    for auto, value in mapped.items() if isinstance(mapped, dict) else ():
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                yield str(auto), name.rpartition(".")[2]


def _needed(spec: ModelSpec, what: str) -> SourceError:
    return SourceError(
        f"{spec.name} ({spec.source}) needs Python code that comes with the model: {what} is of a class that "
        "transformers does not have.",
        "If you have read that code and trust it, say trust_remote_code = true in the catalogue.",
    )
