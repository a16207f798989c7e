"""Tokenizer and configuration files in a form that every transformers from 4.49 to 5.x reads alike.

transformers 5 writes less than 4 reads: no vocabulary files, class names that 4 does not know, lists where 4
wants a mapping, settings under new names. A container may run either, so a snapshot carries the files of the
source itself where there are any, and what a new version wrote is brought back to the form that both read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mme.errors import SourceError

# Files that belong to a tokenizer or to what prepares inputs, as the libraries name them.
FILES = (
    "added_tokens.json",
    "bpe.codes",
    "byte_maps.json",
    "chat_template.jinja",
    "chat_template.json",
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "feature_extractor_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "prophetnet.tokenizer",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "target.spm",
    "target_vocab.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab-src.json",
    "vocab-tgt.json",
    "vocab.json",
    "vocab.txt",
    "word_pronunciation.json",
    "word_shape.json",
)
# The folder of chat templates beside the first, each in a file NAME.jinja: one for tools, say.
TEMPLATES = "additional_chat_templates"

# One of these means that there is a tokenizer.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "prophetnet.tokenizer",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "tokenizer.model",
    "vocab-src.json",
)
# Tokenizers that read bytes or characters and have no file of them, and the models that go with no other.
WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
BY_CHARACTERS = ("canine", "perceiver")

# Configurations that in version 4 mean a backbone of the library timm unless they say otherwise; version 5 goes by
# backbone_config, and writes no more than that.
TIMM_UNLESS_SAID = ("conditional_detr", "dab-detr", "deformable_detr", "detr", "omdet-turbo", "table-transformer")
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# What a library notes for itself: paths of the machine, versions, the backend that happened to be there.
PRIVATE = (
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation_autoset",
    "transformers_version",
    "name_or_path",
    "backend",
    "is_local",
    "local_files_only",
    "special_tokens_map_file",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
)
BACKENDS = {
    "TokenizersBackend": "PreTrainedTokenizerFast",
    "SentencePieceBackend": "PreTrainedTokenizerFast",
    "PythonBackend": "PreTrainedTokenizer",
}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises SourceError when it is something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}.", "Download or copy it again.") from None
    if not isinstance(document, dict):
        raise SourceError(f"{path} is not a JSON object.", "Download or copy it again.")
    return document


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder of a model has all that a tokenizer is made from."""
    if any((folder / name).is_file() for name in VOCABULARIES):
        return True
    settings, config = folder / "tokenizer_config.json", folder / "config.json"
    if not settings.is_file():
        return False
    name = read_json(settings).get("tokenizer_class")
    if name is None and config.is_file():
        return read_json(config).get("model_type") in BY_CHARACTERS
    return name in WITHOUT_VOCABULARY


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
    # Half of a surrogate pair, which JSON can spell and UTF-8 cannot, stays as it was spelt.
    path.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))


def model_config(source: Mapping[str, Any], saved: Mapping[str, Any], keep_code: bool) -> dict[str, Any]:
    """The configuration of a snapshot: the source's own, with the class and number format of what was saved.

    ``saved`` is what save_pretrained wrote. ``keep_code`` keeps the reference to the model's own Python files.
    """
    config = {**({} if "model_type" in source else saved), **source}
    dtype = saved.get("dtype", saved.get("torch_dtype"))
    config = _for_all_versions(config)
    config["architectures"] = saved.get("architectures") or source.get("architectures") or []
    if dtype:
        config["torch_dtype"] = dtype  # versions 4 and 5 both read this name; 4.49 knows no other
    if not keep_code:
        config.pop("auto_map", None)
    return config


def _for_all_versions(config: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in config.items() if key not in PRIVATE}
    config.pop("dtype", None)
    if not config.get("quantization_config", True):  # null, which says nothing, and which version 5 trips over
        del config["quantization_config"]
    if config.get("model_type") in TIMM_UNLESS_SAID and isinstance(config.get("backbone_config"), dict):
        for name, value in (("use_timm_backbone", False), ("use_pretrained_backbone", False), ("backbone", None)):
            config.setdefault(name, value)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        # Version 5 keeps the base of the rotary embedding here alone; 4 would quietly take 10,000 for it.
        config.setdefault("rope_theta", rope["rope_theta"])
        kind = rope.get("rope_type", "default")
        if kind != "default":
            rest = {key: value for key, value in rope.items() if key != "rope_theta"}
            config.setdefault("rope_scaling", rest)
    return {
        key: _for_all_versions(value) if isinstance(value, dict) and key.endswith("_config") else value
        for key, value in config.items()
    }


def generation_config(source: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key not in PRIVATE}


def copy(source: Path, saved: Path | None, into: Path) -> None:
    """Bring every tokenizer file into ``into``: the source's own first, else what save_pretrained put in ``saved``."""
    for name in FILES:
        # Version 4 writes the map of special tokens, 5 does not: it is made below, the same by whichever.
        places = (source, saved) if name not in ("special_tokens_map.json", "added_tokens.json") else (source,)
        origin = next((folder / name for folder in places if folder and (folder / name).is_file()), None)
        if origin is not None:
            shutil.copyfile(origin, into / name)
    if saved is not None:
        _complete(into)
    _part_processors(into)
    # They go with the first template: where it is the saved one, the source has all of them in tokenizer_config.json.
    owner = source if (source / "chat_template.jinja").is_file() else saved
    if owner is not None and (owner / TEMPLATES).is_dir():
        shutil.copytree(owner / TEMPLATES, into / TEMPLATES, ignore=_but_templates)
    settings = into / "tokenizer_config.json"
    if settings.is_file():
        template = into / "chat_template.jinja"
        text = template.read_text(encoding="utf-8") if template.is_file() else None
        more = {path.stem: path.read_text(encoding="utf-8") for path in sorted((into / TEMPLATES).glob("*.jinja"))}
        write_json(settings, tokenizer_config(read_json(settings), text, more))
        special = into / "special_tokens_map.json"
        if not special.is_file():
            write_json(special, _special_tokens(read_json(settings)))


def _but_templates(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".jinja")]


# Where version 4 looks for what version 5 writes into processor_config.json, by its name there.
_PARTS = (
    ("image_processor", "preprocessor_config.json"),
    ("feature_extractor", "preprocessor_config.json"),
    ("video_processor", "video_preprocessor_config.json"),
)


def _part_processors(folder: Path) -> None:
    """Bring what prepares images and sound into the files and under the names that all versions read."""
    path = folder / "processor_config.json"
    if path.is_file():
        config = read_json(path)
        for name, file in _PARTS:
            part = config.get(name)
            if isinstance(part, dict) and not (folder / file).exists():
                more = {"processor_class": config["processor_class"]} if "processor_class" in config else {}
                write_json(folder / file, {**more, **part})
                del config[name]
        write_json(path, {key: value for key, value in config.items() if key not in PRIVATE})
    for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if (folder / file).is_file():
            write_json(folder / file, preprocessor_config(read_json(folder / file)))


def preprocessor_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` in the form that all versions read: the class without the backend that happened to save it."""
    config = {key: value for key, value in config.items() if key not in PRIVATE}
    name = config.get("image_processor_type")
    if isinstance(name, str):
        config["image_processor_type"] = name.removesuffix("Pil").removesuffix("Fast")
    return config


def tokenizer_config(
    config: Mapping[str, Any], chat_template: str | None, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """``config`` in the form that all versions read. ``more`` has the chat templates beside the first, by name."""
    config = {key: value for key, value in config.items() if key not in PRIVATE}
    name = config.get("tokenizer_class")
    if name in BACKENDS:
        config["tokenizer_class"] = BACKENDS[name]
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # 4 wants a mapping under this name, and reads a list under the older one
        del config["extra_special_tokens"]
        config.setdefault("additional_special_tokens", extra)
    if chat_template is not None:  # 4.49 looks for them here alone
        named = {"default": chat_template, **(more or {})}
        listed = [{"name": name, "template": text} for name, text in named.items()]
        config.setdefault("chat_template", listed if more else chat_template)
    return config


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    special: dict[str, Any] = {name: config[name] for name in SPECIAL if config.get(name) is not None}
    if config.get("additional_special_tokens"):
        special["additional_special_tokens"] = config["additional_special_tokens"]
    return special


def _complete(folder: Path) -> None:
    """Write the vocabulary files that version 5 no longer writes, from tokenizer.json, where they are missing."""
    path = folder / "tokenizer.json"
    if not path.is_file() or any((folder / name).is_file() for name in VOCABULARIES[1:]):
        return
    model = read_json(path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return
    vocabulary: dict[str, int] = model["vocab"]
    if model.get("type") == "WordPiece":
        if sorted(vocabulary.values()) == list(range(len(vocabulary))):  # a token's id is its line number
            words = sorted(vocabulary, key=vocabulary.__getitem__)
            (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    elif model.get("type") == "BPE" and not model.get("byte_fallback"):
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
        ordered = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
        (folder / "vocab.json").write_text(json.dumps(ordered, ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{m}\n" for m in merges), encoding="utf-8")
