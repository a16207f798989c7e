"""Keeps the Hugging Face libraries quiet and shortens their errors to a line."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from mme.errors import SourceError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own warnings and progress bars off the terminal, which is the task's alone."""
    loggers = {name: logging.getLogger(name) for name in ("transformers", "huggingface_hub")}
    before = {name: logger.level for name, logger in loggers.items()}
    bars_off = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    restore = []
    for module, on, off in (
        ("huggingface_hub.utils", "enable_progress_bars", "disable_progress_bars"),
        ("transformers.utils.logging", "enable_progress_bar", "disable_progress_bar"),
    ):
        with contextlib.suppress(ImportError, AttributeError):
            loaded = sys.modules.get(module) or importlib.import_module(module)
            getattr(loaded, off)()
            restore.append(getattr(loaded, on))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers.values():
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(before[name])
        for turn_on in restore:
            turn_on()
        if bars_off is None:
            os.environ.pop("TQDM_DISABLE", None)
        else:
            os.environ["TQDM_DISABLE"] = bars_off


def missing() -> SourceError:
    return SourceError(
        "Packaging a model needs torch, transformers and safetensors.",
        "Install them: pip install 'mme[package]'. (docs/installing.md: torch without the libraries for GPUs.)",
    )


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0].strip().rstrip(".")[:300] if text else "") or type(error).__name__
