"""The JSON schema of models.toml, for editors that complete and check it.

Made from the same tables that the reader checks with (``mme.catalog.spec``). It cannot say what only files tell:
whether a handler's folder is there, and what that handler can do. ``models.schema.json`` beside this module is its
output.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mme.catalog.spec import (
    COMMIT,
    COMPRESSIONS,
    DTYPES,
    HANDLER_TASKS,
    KEYS,
    MAX_NAME,
    NAME,
    PACKAGE,
    PIPELINE_HANDLER,
    PYTHON,
    QUANTIZES,
    REPOSITORY,
    SENTENCE_SIMILARITY,
    TASK_ALIASES,
    TASKS,
    TEXT_RANKING,
    TRANSLATION,
)

FILE = Path(__file__).with_name("models.schema.json")
"""The schema as it is shipped."""

DESCRIPTIONS = {
    "source": "Where the model comes from: hub:OWNER/NAME, folder:PATH (relative to this file) or "
    "package:NAME[/FOLDER].",
    "revision": "For a source on the Hub: the full commit, 40 hexadecimal digits.",
    "handler": "Who answers requests: a folder of model_code/ beside this file, one that comes with mme, or a path "
    "that starts with ./",
    "task": "What the model does, which says the class that loads it.",
    "settings": "What the handler reads from code/settings.json.",
    "files": "Further files of the source that the archive is to hold: names and patterns (*, ? and **).",
    "dtype": "The number format of the weights in the archive; left out, the source's own.",
    "quantize": "Store the linear layers in int8 and compute with them.",
    "max_error": "How far dtype and quantize may move the answers.",
    "adapter": "A LoRA adapter, written like a source.",
    "adapter_revision": "For an adapter on the Hub: the full commit, 40 hexadecimal digits.",
    "adapter_merge": "false keeps the adapter apart from its base; left out, it is merged.",
    "compression": "How the archive is compressed; left out, auto.",
    "allow_pickle": "Take weights that exist only as a pickle. They are read without running what is in them.",
    "trust_remote_code": "Pack and run the Python that comes with the model.",
    "python": "The container's Python, for a handler's libraries; left out, 3.12.",
    "platform": "The container's platform, for a handler's libraries; left out, manylinux_2_28_x86_64.",
    "notes": "Kept in the archive's manifest.",
}

_TYPES = {str: "string", list: "array", dict: "object", float: "number", bool: "boolean"}


def schema() -> dict[str, Any]:
    """The schema (JSON Schema draft 7)."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "models.toml of mme",
        "description": "The catalogue: which models are hosted, where each comes from, and which handler serves it.",
        "type": "object",
        "required": ["models"],
        "additionalProperties": False,
        "properties": {
            "models": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": _whole(NAME), "maxLength": MAX_NAME},
                "additionalProperties": _model(),
            }
        },
    }


def text() -> str:
    """The schema as the file has it."""
    return json.dumps(schema(), indent=2) + "\n"


def _model() -> dict[str, Any]:
    on_hub = {"pattern": "^hub:"}
    folder = {"properties": {"source": {"pattern": "^folder:"}}, "required": ["source"]}  # may bring code/inference.py
    by_task = {"properties": {"task": {"enum": [SENTENCE_SIMILARITY, TEXT_RANKING]}}, "required": ["task"]}
    handled = {"anyOf": [{"required": ["handler"]}, by_task, folder]}
    return {
        "type": "object",
        "required": ["source"],
        "anyOf": [{"required": ["handler"]}, {"required": ["task"]}, folder],
        "additionalProperties": False,
        "properties": {key: _key(key) for key in KEYS},
        "dependencies": {"settings": handled, "quantize": handled, "adapter_merge": ["adapter"]},
        "allOf": [
            _only_with("source", on_hub, "revision"),
            _only_with("adapter", on_hub, "adapter_revision"),
            {
                "if": {"properties": {"adapter_merge": {"const": False}}, "required": ["adapter_merge"]},
                "then": handled,
            },
            {
                "if": {"properties": {"handler": {"const": PIPELINE_HANDLER}}, "required": ["handler"]},
                "then": {
                    "required": ["task"],
                    "properties": {"task": {"not": {"enum": [SENTENCE_SIMILARITY, TEXT_RANKING]}}},
                },
            },
        ],
    }


def _key(key: str) -> dict[str, Any]:
    kind, _ = KEYS[key]
    described: dict[str, Any] = {"type": _TYPES[kind]}
    if key in DESCRIPTIONS:
        described["description"] = DESCRIPTIONS[key]
    described.update(_values(key))
    return described


def _values(key: str) -> dict[str, Any]:
    """What a key's value must be, beyond its type."""
    enums = {"dtype": DTYPES, "quantize": QUANTIZES, "compression": COMPRESSIONS}
    if key in enums:
        return {"enum": list(enums[key])}
    if key == "task":
        names = [*TASKS, SENTENCE_SIMILARITY, TEXT_RANKING, *TASK_ALIASES]
        return {"anyOf": [{"enum": names}, {"pattern": _whole(TRANSLATION)}]}
    if key in ("source", "adapter"):
        package = rf"package:(?!.*(?:^|[:/])\.\.(?:/|$)){_inner(PACKAGE)}"
        return {"pattern": rf"^(?:hub:{_inner(REPOSITORY)}|folder:[^\0]+|{package})$"}
    if key in ("revision", "adapter_revision"):
        return {"pattern": _whole(COMMIT)}
    if key == "python":
        return {"pattern": _whole(PYTHON)}
    if key == "files":  # names and patterns that stay below the source
        return {"items": {"type": "string", "pattern": r"^(?!.*(?:^|/)\.{0,2}(?:/|$))[^\x00-\x1f\x7f\\]+$"}}
    if key == "max_error":
        return {"exclusiveMinimum": 0, "maximum": 2}
    if key == "handler":
        return {"examples": [*HANDLER_TASKS, PIPELINE_HANDLER, "./my_handler"]}
    return {}


def _only_with(key: str, value: dict[str, Any], other: str) -> dict[str, Any]:
    """``other`` is required where ``key`` is like ``value``, and not allowed elsewhere."""
    return {
        "if": {"properties": {key: value}, "required": [key]},
        "then": {"required": [other]},
        "else": {"not": {"required": [other]}},
    }


def _inner(pattern: re.Pattern[str]) -> str:
    return rf"(?:{pattern.pattern})"


def _whole(pattern: re.Pattern[str]) -> str:
    return f"^{_inner(pattern)}$"
