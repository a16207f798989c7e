"""A source's files -> a snapshot: the model, saved again in safetensors, in one form for all readers, to be packed.

``mme.snapshot.sources`` finds the files, and ``mme.snapshot.checkpoint`` their tensors, which go from file to file
one by one. No code that comes with a model is run, and no pickle is opened, unless the catalogue says so.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mme.catalog.spec import HANDLER_TASKS, ModelSpec
from mme.errors import MmeError, SourceError
from mme.handler_files import GENERATION_MODULE, PIPELINE_MODULE, computes_in_int8, has_module
from mme.snapshot import (
    accuracy,
    adapters,
    classes,
    extra,
    foreign,
    libraries,
    own_code,
    pieces,
    portable,
    sentence,
    smoothing,
    tensors,
    weights,
)
from mme.snapshot.checkpoint import Skeleton, linear_layers, match
from mme.snapshot.sources import LICENCES, PICKLES, Located, locate
from mme.snapshot.weights import Piece

# Tasks whose inputs need a processor or feature extractor.
PREPARED = (
    *("image-", "audio-", "video-", "object-", "mask-", "depth-", "keypoint-", "visual-", "automatic-"),
    *("zero-shot-image-classification", "zero-shot-object-detection", "zero-shot-audio-classification"),
)
MAX_SHARD = 5_000_000_000  # bytes

# Tasks for which handlers of ours are asked what they answer.
ASKED_TASKS = (HANDLER_TASKS["embedding"], HANDLER_TASKS["generation"])


@dataclass(frozen=True)
class Snapshot:
    """A folder with a model's files. ``digests`` has the sha256 of those hashed on writing, by path.

    ``facts`` go into the archive's manifest: architecture, dtype, parameters, libraries, licence.
    """

    path: Path
    digests: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def snapshot(
    spec: ModelSpec, into: Path, located: Located | None = None, libraries_folder: Path | None = None
) -> Snapshot:
    """Save the model of ``spec`` anew into the new folder ``into``; where it is to lose accuracy, measure how much.

    Memory: that of the largest tensor, and a little. Where transformers has to load the model (see
    ``mme.snapshot.checkpoint``), all weights; and where accuracy is measured all weights too, in a process of its own.
    ``libraries_folder`` has what the handler imports. Raises SourceError for a source that is not a model, is broken,
    holds pickles or needs code of its own without permission, lacks weights (they would be random), or loses more
    accuracy than max_error allows.
    """
    located = located or locate(
        spec.source, spec.revision, allow_pickle=spec.allow_pickle, code=spec.trust_remote_code, more=spec.files
    )
    pickled = check_files(spec, located)
    config = portable.read_json(located.path / "config.json")
    what = f"{spec.name} ({spec.source})"
    if not pickled:
        foreign.check_numbers(what, located.path, config)
    foreign.check_size(what, located.path, config, pickled)
    own_code.check(spec, located.path, config)
    _check_processor(spec, located)
    if classes.reads_sentences(spec):
        sentence.check(spec, located.files)
    scratch = into.with_name(into.name + ".saved")
    try:
        scratch.mkdir(parents=True)
        adapter: Located | None = None
        with libraries.quiet(), _explained(spec):
            tokenizer = pieces.load(spec, located.path)
            if tokenizer is not None:
                tokenizer.save_pretrained(scratch / "tokenizer")
            if spec.adapter is not None:
                adapter = locate(spec.adapter, spec.adapter_revision)
                adapters.check_tokenizer(tokenizer, adapter.path, f"The adapter {spec.adapter} of {spec.name}")
            checkpoint = _checkpoint(spec, located.path, scratch, config, pickled, adapter)
            checkpoint = replace(
                checkpoint, pieces=tuple(tensors.without_nan(piece, what) for piece in checkpoint.pieces)
            )
        try:
            return _write(spec, located, scratch, checkpoint, tokenizer, into, libraries_folder)
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
    """Whether the source's weights are pickles. Raises SourceError unless its files are those of a complete model."""
    names = {file.path: file for file in located.files}
    what = f"{spec.name} ({spec.source})"
    sentence.check_first(what, located.files)
    if "config.json" not in names:
        raise foreign.no_model(what, located.path, located.files)
    foreign.check_fetched(what, located.files)
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
    raise foreign.no_weights(what, located.files)


def _check_processor(spec: ModelSpec, located: Located) -> None:
    """Raises SourceError where a model for images or sound comes without what prepares them."""
    task = spec.task or ""
    files = ("preprocessor_config.json", "processor_config.json", "feature_extractor_config.json")
    if not (task.startswith(PREPARED) or task in PREPARED) or any(file.path in files for file in located.files):
        return
    raise SourceError(
        f"{spec.name} ({spec.source}) is for {task}, and has no processor for its inputs: none of {', '.join(files)}.",
        "Put the image processor's or feature extractor's file beside the weights; save_pretrained of the processor "
        "writes it.",
    )


def load_model(
    spec: ModelSpec, path: Path, config: Mapping[str, Any], pickled: bool, dtype: Any
) -> tuple[Any, set[str]]:
    """The model, and the names of weights that the source lacks and its task does not need.

    ``dtype`` is torch's, or "auto" for that of the source.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    # The source's own number format unless another is asked for: transformers 4 would make all of it float32.
    kind = {"dtype" if version >= (4, 56) else "torch_dtype": dtype}
    model, report = classes.model_class(spec, config).from_pretrained(
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


@dataclass(frozen=True)
class _Checkpoint:
    """A model's tensors, with an adapter merged where one is to be merged.

    ``config`` is what save_pretrained writes. ``dtype`` is torch's name of the number format. ``skeleton`` is None when
    transformers had to load the model. ``apart`` is an adapter that is not merged, and where it is.
    """

    config: Mapping[str, Any]
    pieces: tuple[Piece, ...]
    dtype: str
    skeleton: Skeleton | None
    apart: tuple[adapters.Adapter, Located] | None
    facts: Mapping[str, Any]


def _checkpoint(
    spec: ModelSpec, source: Path, scratch: Path, config: Mapping[str, Any], pickled: bool, adapter: Located | None
) -> _Checkpoint:
    kind = classes.model_class(spec, config)
    matched = None if spec.trust_remote_code else match(source, kind, pickled)
    what = f"The adapter {spec.adapter} of {spec.name}"
    if adapter is not None and not spec.adapter_merge and not adapters.only_lora(adapter.path, what):
        matched = None  # whether its other tensors are the model's own takes the model's
    if matched is None:
        return _loaded(spec, source, scratch, config, pickled, adapter)
    model, pieces = matched.skeleton.model, matched.pieces
    facts: dict[str, Any] = {}
    apart = None
    if adapter is not None and spec.adapter_merge:
        changes = adapters.changes(model, adapter.path, what)
        facts["adapted"] = changes.count
        pieces = tuple(_merged(piece, matched.skeleton, changes) for piece in pieces)
    elif adapter is not None:
        apart = adapters.fit(model, adapter.path, what), adapter
    saved = {**model.config.to_diff_dict(), "architectures": [type(model).__name__], "torch_dtype": matched.dtype}
    saved.pop("dtype", None)
    return _Checkpoint(saved, pieces, matched.dtype, matched.skeleton, apart, facts)


def _merged(piece: Piece, built: Skeleton, changes: adapters.Changes) -> Piece:
    change = changes.by_id.get(id(built.tensors[piece.name]))
    return piece if change is None else tensors.changed(piece, change)


def _loaded(
    spec: ModelSpec, source: Path, scratch: Path, config: Mapping[str, Any], pickled: bool, adapter: Located | None
) -> _Checkpoint:
    """The same by loading it with transformers, which takes as much memory as the weights and twice their size on
    disk."""
    model, absent = load_model(spec, source, config, pickled, "auto")
    what = f"The adapter {spec.adapter} of {spec.name}"
    facts: dict[str, Any] = {}
    apart = None
    if adapter is not None and spec.adapter_merge:
        facts["adapted"] = adapters.merge(model, adapter.path, what)
    elif adapter is not None:
        apart = adapters.fit(model, adapter.path, what), adapter
    dtype = str(model.dtype).removeprefix("torch.")
    model.save_pretrained(scratch / "model", max_shard_size=MAX_SHARD)
    pieces = tuple(
        replace(piece, name=weights.modern(piece.name))
        for shard in sorted((scratch / "model").glob("*.safetensors"))
        for piece in weights.pieces(shard)
        if piece.name not in absent
    )
    return _Checkpoint(portable.read_json(scratch / "model" / "config.json"), pieces, dtype, None, apart, facts)


def _write(
    spec: ModelSpec,
    located: Located,
    scratch: Path,
    checkpoint: _Checkpoint,
    tokenizer: Any | None,
    into: Path,
    libraries_folder: Path | None,
) -> Snapshot:
    facts = dict(checkpoint.facts)
    dtype = spec.dtype or checkpoint.dtype
    config = _write_files(spec, located, scratch, {**checkpoint.config, "torch_dtype": dtype}, into)
    if tokenizer is not None:
        with libraries.quiet():
            pieces.check_same(spec, tokenizer, located.path, into)
    if checkpoint.apart is not None:
        adapter, changed = checkpoint.apart
        facts["adapter_apart"] = adapters.keep(adapter, changed, into / adapters.FOLDER)
    digests = _write_weights(spec, checkpoint, dtype, tokenizer, into)
    if spec.quantize is not None:
        facts["quantize"] = spec.quantize
    asked = _handler_to_ask(spec)
    differs = dtype != checkpoint.dtype or spec.quantize is not None
    if differs or (asked and spec.settings.get("dtype", "float32") != "float32"):
        exact = into
        if differs:
            exact = scratch / "exact"
            _write_files(spec, located, scratch, checkpoint.config, exact)
            if checkpoint.apart is not None:
                (exact / adapters.FOLDER).symlink_to(into.resolve() / adapters.FOLDER)
            _write_whole(checkpoint.pieces, exact)
        facts["accuracy"] = _measured(spec, exact, into, scratch, checkpoint, asked, config, libraries_folder).facts()
    facts |= {
        "architecture": (config.get("architectures") or [None])[0],
        "dtype": config.get("torch_dtype"),
        "parameters": sum(math.prod(piece.shape) for piece in checkpoint.pieces),
        "libraries": library_versions(),
        **({"licence": located.licence} if located.licence else {}),
        **sentence.facts(located.files),
        **pieces.facts(located.path, tokenizer, into),
        **extra.left_out(spec, located.files, into),
        **_unused(spec, located),
    }
    return Snapshot(into, digests, facts)


def _unused(spec: ModelSpec, located: Located) -> dict[str, Any]:
    """What the manifest says of the source's files that one of our handlers does not follow."""
    words: list[str] = []
    if spec.handler is not None and has_module(spec.handler, PIPELINE_MODULE):
        words += filter(None, [sentence.unused(spec, located.files)])
        settings = [located.path / name for name in ("preprocessor_config.json", "processor_config.json")]
        kinds = {portable.read_json(path).get("processor_class") for path in settings if path.is_file()}
        if "Wav2Vec2ProcessorWithLM" in kinds:
            words.append(
                "it has a language model for what it hears (Wav2Vec2ProcessorWithLM), which is not used: its answers "
                "are the letters that are likeliest one by one"
            )
    if spec.adapter is None and any(file.path == foreign.ADAPTER for file in located.files):
        words.append(
            f"it has an adapter beside its weights ({foreign.ADAPTER}), which is not applied; where the weights do not "
            "hold it already, name this source as adapter, too"
        )
    path = located.path / "generation_config.json"
    writes = spec.handler is not None and has_module(spec.handler, GENERATION_MODULE) and path.is_file()
    if writes and portable.read_json(path).get("do_sample"):
        words.append(
            "its generation_config.json has texts sampled (do_sample); here they are where a request or the setting "
            "do_sample asks for that, and else the most likely tokens"
        )
    if spec.handler is not None and has_module(spec.handler, GENERATION_MODULE):
        words += _unused_of_pipelines(portable.read_json(located.path / "config.json"))
    return {"unused": words} if words else {}


def _unused_of_pipelines(config: Mapping[str, Any]) -> list[str]:
    """What a configuration has for transformers' text-generation pipeline alone, which `generate` does not know."""
    tasks = config.get("task_specific_params")
    special = tasks.get("text-generation") if isinstance(tasks, dict) else None
    special = special if isinstance(special, dict) else {}
    # How long a text is and whether it is sampled is a request's to say.
    names = sorted(name for name in special if name not in ("do_sample", "max_length", "max_new_tokens"))
    said = [f"task_specific_params ({', '.join(names)})"] if names else []
    said += ["prefix"] if config.get("prefix") else []
    if not said:
        return []
    way = 'handler = "pipeline" follows them; the handler\'s settings can say the former'
    return [f"its config.json has {' and '.join(said)}, for transformers' pipeline alone, not followed here: {way}"]


def _write_files(
    spec: ModelSpec, located: Located, scratch: Path, saved: Mapping[str, Any], into: Path
) -> dict[str, Any]:
    """Write all but the weights; return the configuration."""
    source = located.path
    into.mkdir(parents=True)
    config = portable.model_config(portable.read_json(source / "config.json"), saved, spec.trust_remote_code)
    portable.write_json(into / "config.json", config)
    if (source / "generation_config.json").is_file():
        generation = portable.generation_config(portable.read_json(source / "generation_config.json"))
        portable.write_json(into / "generation_config.json", generation)
    portable.copy(source, scratch / "tokenizer" if (scratch / "tokenizer").is_dir() else None, into)
    sentence.write(spec, located.files, into)
    for file in located.files:
        code = spec.trust_remote_code and file.path.endswith(".py")
        if "/" not in file.path and (code or file.path.upper().startswith(LICENCES)):
            shutil.copyfile(file.origin, into / file.path)
    extra.write(spec, located.files, into)
    return config


def _write_weights(
    spec: ModelSpec, checkpoint: _Checkpoint, dtype: str, tokenizer: Any | None, into: Path
) -> dict[str, str]:
    """Write the weights as the catalogue wants them; return the files' sha256."""
    pieces = [tensors.cast(piece, dtype) for piece in checkpoint.pieces]
    # Beside an adapter that is kept apart, the base's file stays what it is elsewhere, and is quantised on loading; so
    # is a model whose layers are not known by the names of their tensors.
    if spec.quantize is None or checkpoint.skeleton is None or checkpoint.apart is not None:
        return _write_whole(pieces, into)
    layers = linear_layers(checkpoint.skeleton)
    if not layers:
        return _write_whole(pieces, into)
    with libraries.quiet():
        divisors = smoothing.divisors(checkpoint.skeleton, tokenizer, checkpoint.pieces)
    small: list[Piece] = []
    for exact, piece in zip(checkpoint.pieces, pieces, strict=True):
        if exact.name in layers and exact.dtype in tensors.FLOATS:
            small += tensors.int8(exact, layers[exact.name], divisors.get(exact.name))
        else:
            small.append(piece)
    return {tensors.INT8: weights.write(into / tensors.INT8, small)}


def _write_whole(pieces: Sequence[Piece], into: Path) -> dict[str, str]:
    shards = weights.shared_out(pieces, MAX_SHARD)
    digests = {name: weights.write(into / name, group) for name, group in shards.items()}
    if len(shards) > 1:
        size = sum(piece.size for piece in pieces)
        places = {piece.name: name for name, group in shards.items() for piece in group}
        portable.write_json(into / weights.INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    return digests


def _handler_to_ask(spec: ModelSpec) -> Path | None:
    """The model's handler, if it is one of those whose answers can be compared: ours, or one made after them."""
    if spec.handler is None or spec.task not in ASKED_TASKS:
        return None
    return spec.handler if computes_in_int8(spec.handler) else None


def _measured(
    spec: ModelSpec,
    exact: Path,
    changed: Path,
    scratch: Path,
    checkpoint: _Checkpoint,
    asked: Path | None,
    config: Mapping[str, Any],
    libraries_folder: Path | None,
) -> accuracy.Accuracy:
    """What the changes cost. Raises SourceError when it is more than the catalogue allows."""
    settings = {key: value for key, value in spec.settings.items() if key not in ("dtype", "quantize")}
    forms = [spec.quantize, spec.dtype if spec.dtype != checkpoint.dtype else None, spec.settings.get("dtype")]
    measured = accuracy.measure(
        accuracy.Side(exact, settings),
        accuracy.Side(changed, spec.settings),
        handler=asked,
        kind=classes.model_class(spec, config).__name__
        if spec.task
        else str((config.get("architectures") or ["AutoModel"])[0]),
        work=scratch / "measure",
        form=" and ".join(dict.fromkeys(form for form in forms if form)),
        against="float32" if asked else checkpoint.dtype,
        max_error=spec.max_error,
        trust=spec.trust_remote_code,
        path=(libraries_folder,) if libraries_folder else (),
    )
    if spec.quantize is not None and measured.nothing:
        raise SourceError(
            f"{spec.name} ({spec.source}) answers the same with quantize and without: no layer of it computes in int8.",
            "Leave quantize out.",
        )
    if measured.exceeds_bound:
        raise SourceError(
            f"{spec.name} ({spec.source}) loses more accuracy than max_error allows, compared with {measured.against}. "
            f"In {accuracy.words(measured.facts())}.",
            "Keep more bits (leave out quantize, or choose another dtype), or raise max_error if it is good enough.",
        )
    return measured


def library_versions() -> dict[str, str]:
    """The versions of the libraries that made a snapshot."""
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
