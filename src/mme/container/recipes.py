"""Digests of what a tokenizer or a configuration is made of, so that equal ones can be shared between models."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from mme.container.files import open_regular, read_regular
from mme.container.memory import WEIGHT_FILES

MAX_READ = 64 * 1024 * 1024  # bytes of tokenizer and configuration files that are worth a digest
PIECE = 32 * 1024  # bytes of a file that are read at a time
# Options under which a result depends on more than the folder.
_REFUSED = {
    *("config", "device_map", "gguf_file", "output_loading_info", "return_unused_kwargs", "revision", "subfolder"),
    "trust_remote_code",
}
_TOKENIZER_FILES = ("tokenizer", "vocab.", "merges.", "special_tokens_map", "added_tokens", "chat_template")
# The manifest of our archives, and the folder of an adapter beside its base (docs/handlers.md), which a handler reads:
# from_pretrained looks at neither.
_UNREAD = {"mme-manifest.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
# Fields that describe a classifier's head: fine-tuned models differ in them and have the same tokenizer nevertheless.
_NOT_FOR_TOKENIZERS = {"architectures", "dtype", "id2label", "label2id", "num_labels", "problem_type", "torch_dtype"}


@dataclass(frozen=True)
class Recipe:
    """One call of ``transformers.<factory>.from_pretrained(folder, **options)``. ``key`` says what it results in."""

    kind: str  # "tokenizer", "config", "model" or "code"
    key: str
    factory: str
    options: dict[str, Any]
    folder: str

    def plain(self) -> dict[str, Any]:
        return asdict(self)


# -- recipes --------------------------------------------------------------------------------------------------------


def recipe(kind: str, factory: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Recipe | None:
    """The recipe of a call, or None where its result cannot be shared."""
    if len(arguments) != 1 or not isinstance(arguments[0], (str, Path)):
        return None
    written: dict[str, Any] = {}
    for name, value in options.items():
        if name in _REFUSED and value:
            return None
        if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
            written[name] = {"dtype": str(value).removeprefix("torch.")}
        elif value is None or isinstance(value, (str, bool, int, float)):
            written[name] = value
        else:
            return None
    folder = str(arguments[0])
    content = _content(kind, folder)
    return Recipe(kind, _key(kind, factory, written, content), factory, written, folder) if content else None


def foresee(known: list[tuple[dict[str, Any], str]], root: str) -> list[dict[str, Any]]:
    """Which of these plain recipes, each with the folder of its model, the model in the folder ``root`` will have too
    if its handler asks for the same; as recipes of its own. Blocks: reads that model's files, weights apart."""
    root = root.rstrip("/")
    recipes: dict[str, dict[str, Any]] = {}
    contents: dict[tuple[str, str], str | None] = {}
    for plan, other in ((plan, folder.rstrip("/")) for plan, folder in known):
        if plan["key"] in recipes or not plan["folder"].startswith(other):
            continue
        kind, folder = plan["kind"], root + plan["folder"][len(other) :]
        if (kind, folder) not in contents:
            contents[kind, folder] = _content(kind, folder)
        content = contents[kind, folder]
        if content is None:
            continue
        key = content if kind == "code" else _key(kind, plan["factory"], plan["options"], content)
        if key == plan["key"]:
            recipes[key] = {**plan, "folder": folder}
    return list(recipes.values())


def _key(kind: str, factory: str, options: dict[str, Any], content: str) -> str:
    text = repr((kind, factory, sorted(options.items(), key=lambda item: item[0]), content))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _content(kind: str, path: str) -> str | None:
    """A digest of all that can matter to a recipe's result; None where that cannot be known."""
    try:
        return code_key(read_regular(path, MAX_READ)) if kind == "code" else _digest(path, kind)
    except (OSError, ValueError, RecursionError, struct.error):
        return None


def code_key(source: bytes) -> str:
    """The key of compiled source."""
    return hashlib.blake2b(source, digest_size=16).hexdigest()


def _digest(folder: str, kind: str) -> str | None:
    """A digest of all that can matter to the result but the weights' values; None where that cannot be known."""
    total = hashlib.blake2b(digest_size=16)
    size = 0
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in ("code", "__pycache__") and name[0] != ".")
        if kind == "config":  # it lies in the folder itself
            folders.clear()
            names = [name for name in names if name.startswith("config") and name.endswith(".json")]
        for name in sorted(names):
            path = Path(root, name)
            suffix = path.suffix.lower()
            if suffix == ".md" or name[0] == ".":
                continue
            if kind == "model" and name.startswith(_TOKENIZER_FILES):
                continue
            relative = path.relative_to(folder).as_posix()
            if relative in _UNREAD:
                continue
            total.update(relative.encode() + b"\0")
            if suffix in WEIGHT_FILES:
                if kind == "tokenizer":
                    continue
                if suffix != ".safetensors":
                    return None
                content = _header(path)
            else:
                if name != "config.json":
                    mark, length = _mark(path, MAX_READ - size)
                    size += length
                    total.update(mark)
                    continue
                raw = read_regular(path, MAX_READ - size)
                size += len(raw)
                content = _configuration(path, raw, kind)
            total.update(hashlib.blake2b(content, digest_size=16).digest())
    return total.hexdigest()


def _mark(path: Path, limit: int) -> tuple[bytes, int]:
    """A digest of a file and its size, without all of it in memory. Raises ValueError where it is larger."""
    mark = hashlib.blake2b(digest_size=16)
    size = 0
    piece = bytearray(PIECE)
    with open_regular(path) as file:
        while count := file.readinto(piece):
            size += count
            if size > limit:
                raise ValueError(f"{path} is larger than {limit} bytes")
            mark.update(memoryview(piece)[:count])
    return mark.digest(), size


def _configuration(path: Path, raw: bytes, kind: str) -> bytes:
    """config.json without the fields that do not matter to the result."""
    config = json.loads(raw)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no object")
    unread = {"_name_or_path"} | (_NOT_FOR_TOKENIZERS if kind == "tokenizer" else set())
    return json.dumps({name: config[name] for name in sorted(config) if name not in unread}).encode()


def _header(path: Path) -> bytes:
    """A safetensors file's header (names, types, shapes, places) and the file's size."""
    with open_regular(path) as raw, BufferedReader(raw) as file:
        length = struct.unpack("<Q", file.read(8))[0]
        size = os.fstat(file.fileno()).st_size
        if length > min(size, MAX_READ):
            raise ValueError(f"{path} has a header of {length} bytes")
        return file.read(length) + str(size).encode()
