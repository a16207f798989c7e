"""Which of transformers' classes reads a model: its task's, or the one that its configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mme.catalog.spec import TASKS, ModelSpec, auto_classes
from mme.errors import SourceError
from mme.handler_files import SENTENCE_HANDLER, has_module
from mme.snapshot import sentence


def model_class(spec: ModelSpec, config: Mapping[str, Any]) -> Any:
    """The class. Raises SourceError where transformers has none."""
    import transformers

    if spec.task == "feature-extraction":
        name = sentence.ENCODERS.get(str(config.get("model_type")), "")
        encoder = reads_sentences(spec) or str((config.get("architectures") or [""])[0]).endswith("EncoderModel")
        return getattr(transformers, name) if name and encoder else _class_for_task(spec, spec.task, config)
    if spec.task is not None:
        return _class_for_task(spec, spec.task, config)
    names = config.get("architectures") or []
    name = names[0] if isinstance(names, list) and names else ""
    named = getattr(transformers, str(name), None)
    if named is None and not spec.trust_remote_code:
        raise SourceError(
            f"{spec.name} ({spec.source}): transformers {transformers.__version__} has no class {name!r}.",
            f"Give the model a task in the catalogue ({', '.join(TASKS)}), or use a newer transformers.",
        )
    return named or transformers.AutoModel


def _class_for_task(spec: ModelSpec, task: str, config: Mapping[str, Any]) -> Any:
    """The Auto class for the task that knows this kind of model. Raises SourceError where none does."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    # Some versions of transformers lack some of them.
    classes = [auto for name in auto_classes(task) if (auto := getattr(transformers, name, None)) is not None]
    kind = str(config.get("model_type"))
    if not classes:
        raise SourceError(
            f"{spec.name} ({spec.source}): transformers {transformers.__version__} has no class for {task}.",
            "Use a version that has one, or give the model a handler of your own.",
        )
    if spec.trust_remote_code or kind not in CONFIG_MAPPING:
        return classes[0]
    known = [auto for auto in classes if CONFIG_MAPPING[kind] in auto._model_mapping]
    named = set(config.get("architectures") or ())
    best = [auto for auto in known if named & _class_names(auto, CONFIG_MAPPING[kind])]
    if known:
        return (best or known)[0]
    able = [
        other
        for other, names in TASKS.items()
        if any(
            CONFIG_MAPPING[kind] in getattr(transformers, name)._model_mapping
            for name in names
            if hasattr(transformers, name)
        )
    ]
    raise SourceError(
        f"{spec.name} ({spec.source}): transformers {transformers.__version__} has no {task} for a model of the kind "
        f"{kind!r}.",
        f"What it has for this kind: {', '.join(able) or 'no task'}. Or give the model a handler of your own.",
    )


def _class_names(auto: Any, kind: Any) -> set[str]:
    mapped = auto._model_mapping[kind]
    return {part.__name__ for part in (mapped if isinstance(mapped, list | tuple) else (mapped,))}


def reads_sentences(spec: ModelSpec) -> bool:
    """Whether the handler is one of those that follow sentence-transformers' files, or made after them."""
    return spec.handler is not None and has_module(spec.handler, SENTENCE_HANDLER)
