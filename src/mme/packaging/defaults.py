"""Defaults for what a model's table leaves out: the handler for its task, and the task among the handler's settings."""

from __future__ import annotations

from dataclasses import replace

from mme import handler_files
from mme.catalog.spec import DEFAULT_HANDLERS, PIPELINE_HANDLER, ModelSpec
from mme.errors import HandlerError


def completed(spec: ModelSpec) -> ModelSpec:
    """``spec`` with these defaults filled in. A complete one is returned unchanged.

    The default pipeline of a container is a matter of its version of transformers, and some tasks have none; so a
    model for which the catalogue names a task and no handler travels with ours.
    """
    if spec.handler is None and spec.task is not None:
        name = DEFAULT_HANDLERS.get(spec.task, PIPELINE_HANDLER)
        folders = [root / name for root in handler_files.shipped_roots()]
        folder = next((folder for folder in folders if (folder / "inference.py").is_file()), None)
        if folder is None:
            raise HandlerError(f"The handler {name!r} is missing from this installation of mme.", "Install it again.")
        spec = replace(spec, handler=folder)
    if spec.handler is not None and spec.task is not None and handler_files.is_pipeline(spec.handler):
        spec = replace(spec, settings={"task": spec.task, **spec.settings})
    return spec
