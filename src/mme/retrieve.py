"""A source's files -> a snapshot: the model, loaded by transformers and saved again in safetensors, ready to be packed.

``mme.sources`` finds the files. No code that comes with a model is run, and no pickle is opened, unless the
catalogue says so.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mme import accuracy, adapters, libraries, portable, weights
from mme.catalog import TASKS, ModelSpec
from mme.errors import MmeError, SourceError
from mme.sources import LICENCES, PICKLES, Located, locate

FOREIGN = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".gguf": "GGUF",
    ".onnx": "ONNX",
    ".pt": "PyTorch, saved as a whole",
    ".pth": "PyTorch, saved as a whole",
    ".ckpt": "a training checkpoint",
}
MAX_SHARD = "5GB"

# Tasks whose input is text: without a tokenizer, no handler could use the model.
TEXT_TASKS = frozenset(task for task in TASKS if not task.startswith(("image", "audio", "automatic")))


@dataclass(frozen=True)
class Snapshot:
    """A folder with a model's files. ``digests`` has the sha256 of those hashed on writing, by path.

    ``facts`` go into the archive's manifest: architecture, dtype, parameters, libraries, licence.
    """

    path: Path
    digests: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def snapshot(spec: ModelSpec, into: Path, located: Located | None = None) -> Snapshot:
    """Load the model of ``spec`` with transformers and save it into the new folder ``into``.

    Memory: as much as the model's weights. Raises SourceError for a source that is no model, is broken, holds
    pickles without leave, needs code of its own without leave, or would leave weights to chance.
    """
    located = located or locate(spec.source, spec.revision, allow_pickle=spec.allow_pickle, code=spec.trust_remote_code)
    pickled = check_files(spec, located)
    config = portable.read_json(located.path / "config.json")
    _check_code(spec, config)
    scratch = into.with_name(into.name + ".saved")
    try:
        with libraries.quiet(), _explained(spec):
            tokenizer = _load_tokenizer(spec, located.path)
            absent, facts = _save_model(spec, located.path, scratch, config, pickled, tokenizer)
            if tokenizer is not None:
                tokenizer.save_pretrained(scratch / "tokenizer")
        into.mkdir(parents=True)
        try:
            taken = _assemble(spec, located, scratch, tokenizer is not None, absent, into)
            if (scratch / adapters.FOLDER).is_dir():
                (scratch / adapters.FOLDER).rename(into / adapters.FOLDER)
            return replace(taken, facts={**taken.facts, **facts})
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise
    except OSError as error:
        raise SourceError(
            f"The snapshot of {spec.name} cannot be written: {error.strerror or error}.", "Check the disk's space."
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_files(spec: ModelSpec, located: Located) -> bool:
    """Whether the source's files are those of a whole model; True when its weights are pickles. Raises SourceError."""
    names = {found.path: found for found in located.files}
    what = f"{spec.name} ({spec.source})"
    if "config.json" not in names:
        nested = sorted({str(Path(path).parent) for path in names if path.endswith("/config.json")})
        hint = f"Is it in {nested[0]}?" if nested else "A model's folder has config.json and its weights."
        raise SourceError(f"{what} is no model: there is no config.json in {located.path}.", hint)
    if weights.INDEX in names or "model.safetensors" in names:
        if "model.safetensors" in names:
            weights.read_header(names["model.safetensors"].origin)
        else:
            for shard in weights.shards(located.path / weights.INDEX):
                weights.read_header(names[shard].origin)
        return False
    pickles = sorted(path for path in names if path in PICKLES)
    if pickles:
        if not spec.allow_pickle:
            raise SourceError(
                f"{what} has its weights only as a pickle ({pickles[0]}), which can carry code.",
                "If you trust its author, say allow_pickle = true in the catalogue. The archive is safetensors "
                "in any case.",
            )
        for index in (path for path in pickles if path.endswith(".json")):
            weights.shards(located.path / index)
        return True
    for path in sorted(names):
        if kind := FOREIGN.get(Path(path).suffix):
            raise SourceError(
                f"{what} has its weights only in another format: {path} ({kind}).",
                "Convert it with transformers' save_pretrained, and give that folder as the source.",
            )
    others = sorted(path for path in names if path.endswith((".safetensors", ".bin")))
    hint = f"There is {others[0]}, which is not the name that transformers looks for." if others else ""
    raise SourceError(f"{what} has no weights: no model.safetensors.", hint or "Was the download complete?")


def _check_code(spec: ModelSpec, config: Mapping[str, Any]) -> None:
    if spec.trust_remote_code or "auto_map" not in config:
        return
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError:
        raise libraries.missing() from None
    if config.get("model_type") not in CONFIG_MAPPING:
        raise SourceError(
            f"{spec.name} ({spec.source}) needs Python code that comes with the model.",
            "If you have read that code and trust it, say trust_remote_code = true in the catalogue.",
        )


def _model_class(spec: ModelSpec, config: Mapping[str, Any]) -> Any:
    import transformers

    if spec.task is not None:
        return getattr(transformers, TASKS[spec.task])
    names = config.get("architectures") or []
    name = names[0] if isinstance(names, list) and names else ""
    found = getattr(transformers, str(name), None)
    if found is None and not spec.trust_remote_code:
        raise SourceError(
            f"{spec.name} ({spec.source}): transformers {transformers.__version__} has no class {name!r}.",
            f"Give the model a task in the catalogue ({', '.join(TASKS)}), or use a newer transformers.",
        )
    return found or transformers.AutoModel


def load_model(
    spec: ModelSpec, path: Path, config: Mapping[str, Any], pickled: bool, dtype: Any
) -> tuple[Any, set[str]]:
    """The model, and the names of weights that the source lacks and its use can do without.

    ``dtype`` is torch's, or "auto" for that of the source.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    # The source's own number format, unless told otherwise: transformers 4 would make all of it float32.
    kind = {"dtype" if version >= (4, 56) else "torch_dtype": dtype}
    model, report = _model_class(spec, config).from_pretrained(
        path,
        local_files_only=True,
        trust_remote_code=spec.trust_remote_code,
        use_safetensors=not pickled,
        output_loading_info=True,
        **kind,
    )
    missing = set(report["missing_keys"])
    # A pooler is the only part that some checkpoints lack and that no output of a plain encoder depends on.
    absent = {name for name in missing if "pooler." in name}
    if missing - absent:
        some = sorted(missing - absent)
        raise SourceError(
            f"{spec.name} ({spec.source}) lacks weights that {type(model).__name__} needs: {', '.join(some[:3])}"
            f"{f' and {len(some) - 3} more' if len(some) > 3 else ''}. They would be random.",
            "Give the task that the model was trained for, or take a checkpoint that has them.",
        )
    return model.eval(), absent


def _save_model(
    spec: ModelSpec, source: Path, scratch: Path, config: Mapping[str, Any], pickled: bool, tokenizer: Any | None
) -> tuple[set[str], dict[str, Any]]:
    """Save the model as the catalogue wants it; return the weights to leave out, and facts for the manifest."""
    facts: dict[str, Any] = {}
    model, absent = load_model(spec, source, config, pickled, "auto")
    adapter: Located | None = None
    apart: adapters.Adapter | None = None
    if spec.adapter is not None:
        adapter = locate(spec.adapter, spec.adapter_revision)
        what = f"The adapter {spec.adapter} of {spec.name}"
        if spec.adapter_merge:
            facts["adapted"] = adapters.merge(model, adapter.path, what)
        else:
            apart = adapters.fit(model, adapter.path, what)
    original = str(model.dtype).removeprefix("torch.")
    if spec.dtype is not None and spec.dtype != original:
        what = f"{spec.name} ({spec.source})"
        with adapters.attached(apart):
            model, measured = accuracy.convert(model, tokenizer, spec.dtype, spec.max_error, what)
        facts["accuracy"] = {"against": original, **asdict(measured)}
    model.save_pretrained(scratch, max_shard_size=MAX_SHARD)
    if adapter is not None and apart is not None:
        facts["adapter_apart"] = adapters.keep(apart, adapter, scratch / adapters.FOLDER)
    return absent, facts


def _load_tokenizer(spec: ModelSpec, source: Path) -> Any | None:
    """The tokenizer; None when the source has none and the task does without."""
    from transformers import AutoTokenizer

    if not any((source / name).is_file() for name in portable.VOCABULARIES):
        if spec.task in TEXT_TASKS:
            raise SourceError(
                f"{spec.name} ({spec.source}) has no tokenizer: none of {', '.join(portable.VOCABULARIES)}.",
                "Put the tokenizer's files beside the weights.",
            )
        return None
    return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=spec.trust_remote_code)


def _assemble(
    spec: ModelSpec, located: Located, scratch: Path, has_tokenizer: bool, absent: set[str], into: Path
) -> Snapshot:
    source = located.path
    saved = portable.read_json(scratch / "config.json")
    config = portable.model_config(portable.read_json(source / "config.json"), saved, spec.trust_remote_code)
    portable.write_json(into / "config.json", config)
    if (source / "generation_config.json").is_file():
        generation = portable.generation_config(portable.read_json(source / "generation_config.json"))
        portable.write_json(into / "generation_config.json", generation)
    portable.copy(source, scratch / "tokenizer" if has_tokenizer else None, into)
    for found in located.files:
        if found.path in portable.SENTENCE_FILES or portable.POOLING.fullmatch(found.path):
            (into / found.path).parent.mkdir(exist_ok=True)
            shutil.copyfile(found.origin, into / found.path)
        code = spec.trust_remote_code and found.path.endswith(".py")
        if "/" not in found.path and (code or found.path.upper().startswith(LICENCES)):
            shutil.copyfile(found.origin, into / found.path)
    digests = {}
    parameters = 0
    for shard in sorted(scratch.glob("*.safetensors")):
        digests[shard.name] = weights.canonical(shard, into / shard.name, frozenset(absent))
        parameters += sum(tensor.elements for tensor in weights.read_header(into / shard.name))
        shard.unlink()  # so that a large model is on the disk twice at most for one shard
    if (scratch / weights.INDEX).is_file():
        index = portable.read_json(scratch / weights.INDEX)
        kept = {weights.modern(name): shard for name, shard in index["weight_map"].items() if name not in absent}
        total = index.get("metadata", {}).get("total_size")
        portable.write_json(into / weights.INDEX, {"metadata": {"total_size": total}, "weight_map": kept})
    facts = {
        "architecture": (config.get("architectures") or [None])[0],
        "dtype": config.get("torch_dtype"),
        "parameters": parameters,
        "libraries": library_versions(),
        **({"licence": located.licence} if located.licence else {}),
    }
    return Snapshot(into, digests, facts)


def library_versions() -> dict[str, str]:
    """The versions that made a snapshot what it is."""
    return {name: importlib.metadata.version(name) for name in ("safetensors", "tokenizers", "torch", "transformers")}


@contextlib.contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    """Turn what transformers raises about a model into an error of ours. Anything else is a fault and goes on."""
    try:
        yield
    except (MmeError, MemoryError):
        raise
    except ImportError as error:
        raise SourceError(
            f"{spec.name} ({spec.source}) needs a library that is not installed: {libraries.first_line(error)}.",
            "Install it in this environment; pip install 'mme[package]' brings torch and transformers.",
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault; transformers raises OSError without a number for a model's
        raise SourceError(
            f"{spec.name} ({spec.source}) cannot be loaded by transformers: {libraries.first_line(error)}.",
            "Try from_pretrained on it by hand: what fails there fails here.",
        ) from error
