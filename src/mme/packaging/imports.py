"""Compares what a handler imports with what the images have: this machine may have more installed than a container."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Mapping

from mme.packaging.vendor import IMAGE

# Distributions whose import name differs, and those that only some images have.
_IMPORTED_AS = {
    "pyyaml": "yaml",
    "huggingface-hub": "huggingface_hub",
    "charset-normalizer": "charset_normalizer",
    "typing-extensions": "typing_extensions",
}
IMAGE_IMPORTS = frozenset(_IMPORTED_AS.get(name, name) for name in IMAGE) | {
    *(
        "PIL",
        "pandas",
        "scipy",
        "sklearn",
        "sentencepiece",
        "soundfile",
        "google",
        "onnxruntime",
        "orjson",
        "accelerate",
    ),
    *("peft", "boto3", "botocore", "sagemaker_inference", "sagemaker_huggingface_inference_toolkit", "mms", "psutil"),
    *("prometheus_client", "pynvml", "dateutil", "pkg_resources", "torchvision", "torchaudio", "librosa", "protobuf"),
}


def name_of(requirement: str) -> str:
    """The name that a requirement's package is imported under."""
    name = requirement
    for mark in "=<>~![; @":
        name = name.partition(mark)[0]
    name = name.strip().lower()
    return _IMPORTED_AS.get(name, {"pillow": "PIL", "scikit-learn": "sklearn"}.get(name, name.replace("-", "_")))


def needed(source: bytes) -> set[str]:
    """The top-level names that a module imports as soon as it is loaded, outside of any try."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def lacking(sources: Mapping[str, bytes], present: Collection[str]) -> dict[str, str]:
    """Imports of these modules' sources, by file, that neither Python nor an image has, nor ``present`` names: the file
    that imports each, by import."""
    importers: dict[str, str] = {}
    for name, source in sources.items():
        for imported in needed(source) - IMAGE_IMPORTS - set(present) - set(sys.stdlib_module_names):
            importers.setdefault(imported, name)
    return dict(sorted(importers.items()))
