"""Every task that transformers has a pipeline for, and those that version 5 dropped; one for each model.

Runs unchanged in the Hugging Face inference containers (sagemaker-huggingface-inference-toolkit on multi-model-server)
and in `mme.container`. It needs torch and transformers (4.49 to 5.x), Pillow for images, soundfile for sound other than
WAV, and nothing else from this project.

The task is in `code/settings.json` ("task"), where packaging writes it. Requests and answers are those that
the toolkit documents: {"inputs": ..., "parameters": {...}}, images and sound as the body itself, as base64 or as data
URLs, and a list of inputs gives a list of answers. What a request may ask for is in pipeline_tasks.py.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import handler_adapter
import pipeline_answers
import pipeline_engine
import pipeline_own
import pipeline_requests
import torch
import transformers
from engine import Encoding
from handler_common import (
    DTYPES,
    check_choice,
    check_integer,
    check_number,
    device_of,
    load_tokenizer,
    load_whole,
    loading_options,
    read_json,
)
from pipeline_requests import Limits, Request
from pipeline_tasks import PROCESSOR, TASKS, TOKENIZER, Task, check_parameters, task_of

# Not imported from transformers: version 5's module of these needs torchvision, which most processors do not.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

SETTINGS: dict[str, Any] = {
    "task": None,  # such as "text-classification"; needed
    "dtype": "float32",  # of the weights: float32, bfloat16 or float16
    "max_inputs": 64,  # in one request
    "max_new_tokens_limit": 1024,  # that a request may ask a model to write
    "max_pixels": 50_000_000,  # of an image
    "max_audio_seconds": 1800,
}
# Tasks that answer with the names of classes.
LABELLED = (
    "text-classification",
    "token-classification",
    "image-classification",
    "audio-classification",
    "video-classification",
)
LENGTHS = ("max_new_tokens", "max_length", "min_new_tokens", "min_length")
LANGUAGES = "_build_translation_inputs"  # attributes of tokenizers of many languages


@dataclass(frozen=True)
class Served:
    """A loaded model with all that serving it needs."""

    name: str
    task: Task
    call: Callable[..., Any]
    parts: pipeline_own.Parts
    defaults: dict[str, Any]  # parameters that the settings give
    settings: dict[str, Any]
    limits: Limits
    reads: int | None  # tokens; None where the model does not say
    engine: Encoding | None = None  # what computes in the model's place
    shares: bool = False  # whether several texts share its passes


# --- The four functions that the toolkit calls -----------------------------------------------------------------------


def model_fn(model_dir: str, context: Any = None) -> Served:
    """Load the model in `model_dir`. Raises ValueError for settings that make no sense."""
    folder = Path(model_dir)
    written, name, task, settings, defaults = _settings(folder)
    if task.inputs == "table":
        _check_pandas(name)
    if name == "mask-generation" and importlib.util.find_spec("torchvision") is None:
        raise ValueError(f"{name} needs the library torchvision, which this container lacks.")
    device = device_of(context)
    auto, config = _class(folder, task)

    def load() -> Any:
        model = load_whole(auto, folder, loading_options(settings["dtype"]))
        model.to(device).eval().requires_grad_(False)
        handler_adapter.adapt(model, folder)
        return model

    between = _parts(folder, task)
    tokenizer = between.get(TOKENIZER)
    stands_in, reason = pipeline_engine.load(
        name, folder, _kind(auto, config), config, tokenizer, settings["dtype"], device, load
    )
    model = stands_in or load()
    encoding = stands_in.encoding if stands_in else None
    if hasattr(context, "note"):  # mme.container's
        context.note(
            engine="onnxruntime" if encoding else "torch",
            format=settings["dtype"],
            reason=reason,
            key=encoding.key if encoding else "",
        )
    names = getattr(model.config, "id2label", None)
    if names and not getattr(model.config, "label2id", None):  # transformers 5 does not make one of the other
        model.config.label2id = {label: number for number, label in names.items()}
    _check_labels(name, names)
    parts = pipeline_own.Parts(written, model, **between)
    reads = encoding.graph.positions if encoding else pipeline_own.positions(model)
    if tokenizer is not None and reads is not None and tokenizer.model_max_length > reads:
        tokenizer.model_max_length = reads
    shares = encoding is not None and name in pipeline_engine.SHARED and tokenizer.pad_token_id is not None
    call = pipeline_own.OWN[name](parts) if task.own else _pipeline(name, parts, device, shares)
    limits = Limits(settings["max_inputs"], settings["max_pixels"], settings["max_audio_seconds"])
    return Served(name, task, call, parts, defaults, settings, limits, reads, encoding, shares)


def input_fn(data: Any, content_type: str | None) -> Request:
    """Read one request's body. Raises ValueError with what is wrong with it."""
    return pipeline_requests.read(data, content_type)


def predict_fn(data: Request, model: Served) -> Any:
    """Answer one request. Raises ValueError where it cannot be answered."""
    return _computed(*_asked(data, model), model)


# --- The hooks with which a server batches concurrent requests, and gives a busy model more memory -------------------


def tokens_fn(data: Request, model: Served) -> int:
    """About how many tokens the request costs; 0 where it shares no pass with others."""
    return pipeline_engine.cost(data.inputs, data.parameters) if model.shares else 0


def batch_fn(inputs: list[Request], model: Served) -> list[Any]:
    """Answer many requests: for each, in order, what predict_fn would return, or the ValueError that it would raise.
    Those with equal parameters share passes of the engine."""
    results: list[Any] = [None] * len(inputs)
    alike: dict[str, list[tuple[int, Any, dict[str, Any]]]] = {}
    for place, data in enumerate(inputs):
        try:
            asked, options = _asked(data, model)
        except ValueError as error:
            results[place] = error
            continue
        key = json.dumps(options, sort_keys=True) if model.shares else str(place)
        alike.setdefault(key, []).append((place, asked, options))
    for group in alike.values():
        if len(group) == 1:
            place, asked, options = group[0]
            try:
                results[place] = _computed(asked, options, model)
            except ValueError as error:
                results[place] = error
            continue
        together = [text for _, asked, _ in group for text in (asked if isinstance(asked, list) else [asked])]
        answers = iter(_computed(together, group[0][2], model))
        for place, asked, options in group:
            if isinstance(asked, list):
                results[place] = [next(answers) for _ in asked]
            else:
                results[place] = pipeline_engine.alone(model.name, asked, options, next(answers))
    return results


def busy_fn(model: Served) -> Encoding | None:
    """What can be had for more memory while the model is busy: packed weights."""
    return model.engine


def _asked(data: Request, model: Served) -> tuple[Any, dict[str, Any]]:
    """The request's inputs, and its parameters as the task's pipeline takes them."""
    asked = {**model.defaults, **_checked(data.parameters, model)}
    for name in model.task.needs:
        if not asked.get(name):
            raise ValueError(f"parameters.{name} is missing: without it, {model.name} has nothing to answer.")
    config = model.parts.model.config
    count = asked.pop("num_frames", getattr(config, "num_frames", 0)) if model.task.inputs == "video" else 0
    frames = (count, asked.pop("frame_sampling_rate", 1) if model.task.inputs == "video" else 1)
    rate = getattr(model.parts.feature_extractor, "sampling_rate", 0)
    inputs = pipeline_requests.inputs_of(data, model.task.inputs, model.limits, rate, frames)
    _check_tokens(inputs, model)
    _check_fits(inputs, asked, model)
    return inputs, _spread(model, asked)


def _computed(inputs: Any, options: dict[str, Any], model: Served) -> Any:
    options = dict(options)
    seed = options.pop("seed", None) if not model.task.own else None
    try:
        with torch.inference_mode(), pipeline_own.seeded(seed, model.parts.model.device):
            return _answer(inputs, options, model)
    except Exception as error:
        if type(error).__name__ == "PipelineException":  # what fill-mask raises for a text without a mask
            raise ValueError(str(error)) from None
        raise


def output_fn(prediction: Any, accept: str | None) -> Any:
    """Write the answer: JSON; or npy for numbers, a PNG for an image, a WAV for sound, CSV for a list of labels."""
    return pipeline_answers.write(prediction, accept)


# --- Loading ---------------------------------------------------------------------------------------------------------


def _settings(folder: Path) -> tuple[str, str, Task, dict[str, Any], dict[str, Any]]:
    """The task as it is written, its own name, the task, the settings, and the parameters among them."""
    where = "code/settings.json: "
    own = read_json(folder / "code" / "settings.json") or {}
    if not isinstance(own, dict):
        raise ValueError("code/settings.json must hold a JSON object.")
    written = own.get("task") or os.environ.get("HF_TASK")
    if not isinstance(written, str):
        raise ValueError(f"{where}the setting task is missing. Known: {', '.join(TASKS)}.")
    name, task = task_of(written)
    for key in own:
        if key not in SETTINGS and key not in task.parameters:
            known = ", ".join((*SETTINGS, *task.parameters))
            raise ValueError(f"{where}unknown setting {key!r}. Known for {name}: {known}.")
    settings = {**SETTINGS, **{key: value for key, value in own.items() if key in SETTINGS}}
    check_choice(where + "dtype", settings["dtype"], tuple(DTYPES))
    for key, high in (("max_inputs", 100_000), ("max_new_tokens_limit", 10**6), ("max_pixels", 10**9)):
        check_integer(where + key, settings[key], 1, high)
    check_number(where + "max_audio_seconds", settings["max_audio_seconds"], 0, 10**6, above=True)
    defaults = {key: value for key, value in own.items() if key in task.parameters}
    check_parameters(where, defaults, task.parameters)
    return written, name, task, settings, defaults


def _check_labels(name: str, names: Any) -> None:
    """Raises ValueError where the model may answer with a class that its configuration has no name for: the pipeline
    fails then, and only when such an answer comes."""
    if name not in LABELLED or not isinstance(names, dict):
        return
    unnamed = [number for number in range(len(names)) if number not in names]
    if unnamed:
        raise ValueError(
            f"config.json: id2label has {len(names)} labels and none for {unnamed[0]}: they are numbered from 0 on, "
            "without gaps, as the model's classes are."
        )


def _check_pandas(name: str) -> None:
    try:
        import pandas
    except ImportError:
        raise ValueError(f"{name} needs the library pandas, which this container lacks.") from None
    if int(pandas.__version__.partition(".")[0]) > 2:
        raise ValueError(f"{name} needs pandas 2: what transformers does with a table fails with {pandas.__version__}.")


def _class(folder: Path, task: Task) -> tuple[Any, Any]:
    """The Auto class that loads the model, and the model's configuration."""
    config = transformers.AutoConfig.from_pretrained(str(folder), **loading_options())
    # Some versions lack some of them.
    classes = [cls for name in task.classes if (cls := getattr(transformers, name, None)) is not None]
    kinds = [cls for cls in classes if type(config) in getattr(cls, "_model_mapping", {})]
    named = [cls for cls in kinds if set(_names(cls, config)) & set(config.architectures or ())]
    return (named or kinds or classes)[0], config


def _names(auto: Any, config: Any) -> list[str]:
    """Of the classes that the Auto class has for this configuration. None of them is imported for it, which takes
    longer than all else of a load by the engine."""
    mapping = auto._model_mapping
    mapped = getattr(mapping, "_model_mapping", {}).get(getattr(config, "model_type", None))
    if mapped is None:  # one that was registered
        mapped = mapping[type(config)]
    listed = mapped if isinstance(mapped, (tuple, list)) else (mapped,)
    return [kind if isinstance(kind, str) else kind.__name__ for kind in listed]


def _kind(auto: Any, config: Any) -> str | None:
    """The name of the class of which the Auto class makes the model, where that is one of transformers' own."""
    if type(config) not in getattr(auto, "_model_mapping", {}):
        return None
    return _names(auto, config)[0]


def _of_languages(folder: Path, tokenizer: Any) -> Any:
    """The tokenizer, of the class that its files name where that class knows languages: where a model's type goes with
    another class (mBART with MBart50Tokenizer), transformers 5 makes a plain one of it, which drops the language."""
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return tokenizer
    kind = getattr(transformers, str(json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")), None)
    if not hasattr(kind, LANGUAGES) or hasattr(tokenizer, LANGUAGES):
        return tokenizer
    return kind.from_pretrained(str(folder), local_files_only=True)


def _check_torchvision(folder: Path, part: str, error: Exception) -> None:
    """Name the library that a few image processors of transformers need (SegFormer's): without it, transformers says
    that it knows no such processor."""
    settings = folder / "preprocessor_config.json"
    if part != "image_processor" or not settings.is_file() or importlib.util.find_spec("torchvision") is not None:
        return
    kind = json.loads(settings.read_text(encoding="utf-8")).get("image_processor_type")
    if isinstance(kind, str) and hasattr(transformers, kind):
        raise ValueError(f"{kind} needs the library torchvision, which this container lacks.") from error


def _parts(folder: Path, task: Task) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    loaders = {
        "image_processor": AutoImageProcessor,
        "feature_extractor": transformers.AutoFeatureExtractor,
        "processor": transformers.AutoProcessor,
    }
    for part in task.parts:
        name, optional = part.rstrip("?"), part.endswith("?")
        try:
            if name == TOKENIZER:
                parts[name] = _of_languages(folder, load_tokenizer(folder))
            else:
                parts[name] = loaders[name].from_pretrained(str(folder), **loading_options())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not optional:
                _check_torchvision(folder, name, error)
                raise
    processor = parts.get(PROCESSOR)
    if processor is not None and PROCESSOR + "?" in task.parts and not hasattr(processor, "tokenizer"):
        del parts[PROCESSOR]  # where a folder has no processor, transformers gives its tokenizer
    return parts


def _pipeline(name: str, parts: pipeline_own.Parts, device: torch.device, shares: bool) -> Callable[..., Any]:
    given: dict[str, Any] = {
        key: value
        for key in ("tokenizer", "image_processor", "feature_extractor", "processor")
        if (value := getattr(parts, key)) is not None
    }
    if shares:
        given["batch_size"] = pipeline_engine.BATCH
    call: Any = transformers.pipeline(name, model=parts.model, device=device, **given)
    if name == "text-to-audio" and call.processor is None:
        call.tokenizer = pipeline_own.Features(call.tokenizer)
    made: Callable[..., Any] = call
    return made


# --- Predicting ------------------------------------------------------------------------------------------------------


def _checked(parameters: dict[str, Any], model: Served) -> dict[str, Any]:
    known = model.task.parameters
    given = {
        name: value
        for name, value in parameters.items()
        if value is not None or name not in known or _means_something(known[name])
    }
    check_parameters("parameters.", given, known)
    most = model.settings["max_new_tokens_limit"]
    inner = given.get("generate_kwargs") or {}
    for where, values in (("parameters.", given), ("parameters.generate_kwargs.", inner)):
        for name in LENGTHS:
            writes = name != "max_length" or "num_beams" in known or where != "parameters."
            if writes and name in values:
                check_integer(where + name, values[name], 0, most)
    return given


def _means_something(check: Callable[[str, Any], None]) -> bool:
    """Whether null is a value of its own: top_k null, all labels."""
    try:
        check("", None)
    except (ValueError, TypeError):
        return False
    return True


def _check_tokens(inputs: Any, model: Served) -> None:
    """Refuse a text that has no tokens (most tokenizers put special tokens around an empty one)."""
    if model.parts.tokenizer is None or model.task.inputs not in ("text", "text or pair"):
        return
    for place, item in enumerate(inputs if isinstance(inputs, list) else [inputs]):
        texts = (item["text"], item.get("text_pair", "")) if isinstance(item, dict) else (item,)
        if any(character.isalnum() for text in texts for character in text):
            continue
        blank = model.name == "zero-shot-classification" and not any(text.strip() for text in texts)
        if blank or not model.parts.tokenizer(*texts)["input_ids"]:
            name = f"inputs[{place}]" if isinstance(inputs, list) else "inputs"
            raise ValueError(f"{name} is empty.")


def _check_fits(inputs: Any, asked: dict[str, Any], model: Served) -> None:
    """Refuse a text that the model has no positions for, unless it is to be cut."""
    texts_alone = model.task.inputs in ("text", "text or pair", "text or messages")
    if model.reads is None or not texts_alone or asked.get("truncation"):
        return
    if model.name in ("zero-shot-classification", "text-to-audio"):
        return
    if model.name == "text-generation" and isinstance(inputs, list) and isinstance(inputs[0], dict):
        inputs = [inputs]  # one chat
    if model.name == "token-classification" and asked.get("stride"):
        return
    for place, item in enumerate(inputs if isinstance(inputs, list) else [inputs]):
        texts = (item["text"], item.get("text_pair")) if isinstance(item, dict) else (item,)
        if isinstance(item, list):
            texts = (model.parts.tokenizer.apply_chat_template(item, tokenize=False),)
        if sum(len(text) for text in texts if text) < model.reads // 2:
            continue  # a character is two tokens at the most, nearly always
        tokens = len(model.parts.tokenizer(*(text for text in texts if text), verbose=False)["input_ids"])
        if tokens > model.reads:
            name = f"inputs[{place}]" if isinstance(inputs, list) else "inputs"
            ways = {"token-classification": ", or give parameters.stride", "text-generation": ""}
            way = ways.get(model.name, ", or set parameters.truncation to true")
            raise ValueError(f"{name} has {tokens} tokens; the model reads {model.reads}. Shorten it{way}.")


def _spread(model: Served, asked: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the task's pipeline takes them."""
    name, options = model.name, dict(asked)
    if name in ("fill-mask", "feature-extraction"):
        inner = {key: options.pop(key) for key in ("truncation", "max_length") if key in options}
        if inner:
            options["tokenizer_kwargs" if name == "fill-mask" else "tokenize_kwargs"] = inner
    elif name == "token-classification" and "ignore_labels" in options:
        options["ignore_labels"] = _listed(options["ignore_labels"])
    elif name in ("zero-shot-image-classification", "zero-shot-object-detection", "zero-shot-audio-classification"):
        labels = options["candidate_labels"]
        options["candidate_labels"] = (
            [part.strip() for part in labels.split(",")] if isinstance(labels, str) else labels
        )
    if name == "fill-mask" and "targets" in options:
        options["targets"] = _listed(options["targets"])
    if name == "text-generation" and model.reads is not None:
        # A text ends with the model's table of positions, where the pipeline would fail.
        options["stopping_criteria"] = transformers.StoppingCriteriaList([pipeline_own.Full(model.reads)])
    if name == "mask-generation":
        # The pipeline never ends where the last batch of points is not a whole one.
        points, most = options.get("points_per_crop", 32) ** 2, options.get("points_per_batch", 64)
        options["points_per_batch"] = next(size for size in range(min(most, points), 0, -1) if points % size == 0)
    inner = options.get("generate_kwargs")
    if inner and "seed" in inner and not model.task.own:
        options["generate_kwargs"] = {key: value for key, value in inner.items() if key != "seed"}
        options["seed"] = inner["seed"]
    return options


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def _answer(inputs: Any, options: dict[str, Any], model: Served) -> Any:
    kind = model.task.inputs
    if model.task.own or kind in ("text", "text or pair", "text or messages"):
        return model.call(inputs, **options)  # the pipeline checks lists itself
    chat_or_pair = (
        kind in ("two images", "image and text") and isinstance(inputs, list) and not isinstance(inputs[0], list)
    )
    single = not isinstance(inputs, list) or (chat_or_pair and not _is_batch(inputs))
    answers = [_answer_one(item, options, model) for item in ([inputs] if single else inputs)]
    return answers[0] if single else answers


def _is_batch(inputs: list[Any]) -> bool:
    """Whether these are several requests of text and image, and not the two images or the messages of one."""
    return isinstance(inputs[0], dict) and "role" not in inputs[0]


def _answer_one(item: Any, options: dict[str, Any], model: Served) -> Any:
    if model.task.inputs == "image and text":
        if isinstance(item, dict):
            return model.call(images=item["images"], text=item["text"], **options)
        return model.call(text=item, **options)
    if model.task.inputs == "table":
        import pandas

        item = {**item, "table": pandas.DataFrame(item["table"])}
    answer = model.call(item, **options)
    if model.name == "mask-generation":  # a list of numbers for each pixel would be fifty times as long
        answer = {**answer, "masks": [pipeline_answers.picture(mask) for mask in answer["masks"]]}
    return answer
