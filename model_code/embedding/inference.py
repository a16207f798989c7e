"""Sentence embeddings from any transformers encoder.

Runs unchanged in the Hugging Face inference containers (sagemaker-huggingface-inference-toolkit on multi-model-server)
and in `mme.container`. It needs torch, transformers (4.49 to 5.x) and numpy, and nothing else from this project. Where
onnxruntime is there too, it computes most encoders (`engine.py`), exactly and in less time.

Request: text/plain (one text), or application/json: "text", ["text", ...] or
{"inputs": "text" or [...], "prompt_name": ..., "parameters": {"pooling": ..., "normalize": ..., ...}} (see PARAMETERS).
Answer: {"embeddings": [[...], ...], "tokens": [...], "truncated": [...]}, one entry per text in the order they came in;
or, with `Accept: application/x-npy`, the vectors alone as a float32 array of shape (texts, dimensions).

The modules that sentence-transformers lists beside a model are computed as it computes them (handler_sentence.py).
Defaults come from `code/settings.json` in the model's folder (see SETTINGS), then from those files, then from here.
"""

import inspect
import io
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import embedding_packed
import embedding_similarity
import engine
import handler_adapter
import handler_exact
import handler_format
import handler_int8
import handler_sentence
import numpy as np
import torch
from embedding_passes import Embedder, Row, embed, hidden_states
from handler_common import (
    DTYPES,
    JSON,
    NPY,
    Request,
    check_choice,
    check_flag,
    check_integer,
    check_known,
    check_quantize,
    check_text,
    device_of,
    direct,
    encoder_of,
    known_tokens,
    load_tokenizer,
    loading_options,
    lower_cased,
    name_of,
    negotiate,
    orjson,
    read_settings,
    readable_tokens,
    tokenize,
)
from handler_sentence import MODES, Sentence
from transformers import AutoConfig

SETTINGS: dict[str, Any] = {
    "pooling": None,  # one of MODES, or several in a list; null: what the model's files say, else "mean"
    "normalize": None,  # true: vectors of length 1; false: as they are; null: what the model's files say
    "prompt": None,  # what is put before every text
    "prompt_name": None,  # the same, by the name that the model has for it
    "dimensions": None,  # how many of a vector's first numbers are answered
    "max_length": None,  # tokens read of one text, at most what the model can read
    "truncate": True,  # false: a text that is too long is an error
    "max_inputs": 256,  # texts in one request
    "batch_tokens": 8192,  # in one forward pass, with any padding: it bounds the memory
    "dtype": "float32",  # of the weights: float32, bfloat16 or float16. Answers are float32 always
    "accuracy": None,  # "exact", "close" or "small": chooses the two by the processor, see handler_format.py
    "quantize": None,  # "int8": the linear layers compute in int8. On the CPU, with dtype float32
}
PARAMETERS = ("pooling", "normalize", "max_length", "truncate", "prompt", "prompt_name", "dimensions")
FIELDS = ("prompt", "prompt_name")  # parameters that may stand beside "inputs", too
MOST_DIMENSIONS = 1_000_000
PROBE = "The house was quiet, and nobody was at home that day."


@dataclass(frozen=True)
class Options:
    """The options of one request: the settings, overridden by the request's parameters."""

    pooling: tuple[str, ...]
    normalize: bool | None  # None: as the model's modules have it
    max_length: int
    truncate: bool
    prompt: str
    dimensions: int | None


# --- The four functions that the toolkit calls -----------------------------------------------------------------------


def model_fn(model_dir: str, context: Any = None) -> Embedder:
    """Load the model in `model_dir`. Raises ValueError for settings that make no sense, and for modules beside the
    model that are not computed here."""
    folder = Path(model_dir)
    sentence = handler_sentence.read(folder)
    device = device_of(context)
    settings = {**SETTINGS, **handler_format.chosen(read_settings(folder, tuple(SETTINGS)), device)}
    _check_settings(settings)
    check_quantize(settings, device)
    settings["dtype"], slow = handler_format.computing(settings["dtype"], device)
    where = folder / sentence.path
    tokenizer = load_tokenizer(where)
    lower = sentence.lower_case and lower_cased(tokenizer)
    config = AutoConfig.from_pretrained(str(where), **loading_options())
    limit, usual = readable_tokens(config, tokenizer, sentence.max_length)
    if settings["max_length"] is None:
        settings["max_length"] = usual
    check_integer("code/settings.json: max_length", settings["max_length"], _shortest(tokenizer), limit)
    encoding, reason = _engine(folder, sentence, config, settings, device)

    def load() -> Any:
        return _model(folder, sentence, config, settings, device)

    if encoding is not None and not engine.checked(encoding):
        unequal = engine.compared(lambda: engine.differs(encoding, load(), limit, exactly=handler_int8.exactly))
        encoding, reason = (encoding, "") if unequal is None else (None, unequal)
    model = load() if encoding is None else None
    if hasattr(context, "note"):  # mme.container's
        context.note(
            engine="torch" if encoding is None else "onnxruntime",
            format=settings["quantize"] or settings["dtype"],
            reason="; ".join(filter(None, (reason, slow))),
            key=encoding.key if encoding else "",
        )
    for step in (*sentence.before, *sentence.after):
        step.to(device)  # type: ignore[attr-defined]
    # A GPU has enough to do with padding, and does not like many small pieces.
    packs = model is not None and device.type == "cpu" and sentence.layers is None
    encoded = tokenizer(PROBE, truncation=True, max_length=max(limit // 4, _shortest(tokenizer)))
    embedder = Embedder(
        model,
        config,
        tokenizer,
        device,
        settings,
        sentence,
        limit,
        frozenset(inspect.signature(model.forward).parameters) if model is not None else frozenset(),
        embedding_packed.plan(model) if packs else None,
        encoding,
        any(encoded.get("token_type_ids") or ()),
        lower,
        similarity=embedding_similarity.function_of(folder),
        words=known_tokens(config, tokenizer),
        reads=direct(tokenizer, any(encoded.get("token_type_ids") or ())),
    )
    # The settings, against what the model has.
    embedder = replace(embedder, usual=_options(Request([], False, {}), embedder))
    if model is None or embedding_packed.known(model):
        return embedder
    way = _way(embedder, list(encoded["input_ids"]))
    if way != handler_exact.PADDED:
        one = "texts of one length run together" if way == handler_exact.EQUAL else "each text runs alone"
        sys.stderr.write(f"{config.model_type}: {one}, since padding would change its answers\n")
    return replace(embedder, way=way)


def _engine(
    folder: Path, sentence: Sentence, config: Any, settings: dict[str, Any], device: torch.device
) -> tuple[engine.Encoding | None, str]:
    """The engine that runs the model in torch's place; or None, and the reason."""
    if device.type != "cpu":
        return None, "it is on a GPU"
    if settings["dtype"] != "float32":
        return None, f"it computes in {settings['dtype']}"
    if sentence.layers is not None:
        return None, "it needs the hidden states of all layers"
    try:
        where, int8 = folder / sentence.path, bool(settings["quantize"])
        stored = int8 and (where / handler_int8.STORED).is_file()
        weights = handler_int8.STORED if stored else engine.WEIGHTS
        return engine.load(where, config, weights, int8=int8, adapter=handler_adapter.matrices(folder)), ""
    except engine.Unsupported as error:
        return None, str(error)


def _model(folder: Path, sentence: Sentence, config: Any, settings: dict[str, Any], device: torch.device) -> Any:
    options = loading_options(settings["dtype"])
    where = folder / sentence.path
    kind, part = encoder_of(config)
    if settings["quantize"]:
        model = handler_int8.load(kind, where, options)
    else:
        model = kind.from_pretrained(str(where), **options)
    model.to(device).eval().requires_grad_(False)
    handler_adapter.adapt(model, folder)
    return model.get_encoder() if part else model


def _way(model: Embedder, ids: list[int]) -> str:
    def forward(rows: list[Row]) -> list[torch.Tensor]:
        with torch.inference_mode():
            hidden, lengths = hidden_states(rows, model)
        return list(hidden.float().cpu().split(lengths))

    # The types of tokens are left out: a model that reads them reads padding alike with and without.
    rows = [Row(row, None, ("mean",), 0) for row in handler_exact.probes(ids, model.max_length)]
    precision = model.settings["quantize"] or model.settings["dtype"]
    return handler_exact.way(forward, rows, model.config.model_type, precision)


def input_fn(data: Any, content_type: str | None) -> Request:
    """Read one request's body. Raises ValueError with what is wrong with it."""
    return embedding_similarity.read(data, content_type, PARAMETERS, FIELDS)


def predict_fn(data: Request, model: Embedder) -> Any:
    """Embed one request's texts. Raises ValueError where the request cannot be answered."""
    result = batch_fn([data], model)[0]
    if isinstance(result, Exception):
        raise result
    return result


def output_fn(prediction: Any, accept: str | None) -> bytes:
    """Write the answer as JSON, or as npy (no pickle in it) where `accept` asks for that."""
    if isinstance(prediction, list):
        negotiate(accept, (JSON,))
        return json.dumps(prediction, allow_nan=False).encode()
    kind = negotiate(accept, (JSON, NPY))
    if kind == NPY:
        buffer = io.BytesIO()
        np.save(buffer, prediction["embeddings"], allow_pickle=False)
        return buffer.getvalue()
    if orjson is not None:
        return orjson.dumps(prediction, option=orjson.OPT_SERIALIZE_NUMPY)
    # As short as float32 allows: through float64, 0.1 would read 0.10000000149011612.
    rows = [[float(number) for number in map(str, row)] for row in prediction["embeddings"]]
    return json.dumps({**prediction, "embeddings": rows}, separators=(",", ":")).encode()


# --- The hooks with which a server batches concurrent requests -------------------------------------------------------


def tokens_fn(data: Request, model: Embedder) -> int:
    """How many tokens the request costs. The tokens are kept in `data`, so they are counted only once."""
    try:
        _options(data, model)
    except ValueError:
        return 1  # batch_fn will refuse it
    tokenize([data], model.tokenizer, model.typed, model.reads)
    return sum(min(len(ids), model.max_length) for ids in data.tokens or ())


def batch_fn(inputs: list[Request], model: Embedder) -> list[Any]:
    """Embed many requests together: for each, in order, what predict_fn would return, or the exception that it would
    raise. Parameters may differ from one request to the next."""
    results: list[Any] = [None] * len(inputs)
    options: list[Options | None] = [None] * len(inputs)
    for index, request in enumerate(inputs):
        try:
            options[index] = _options(request, model)
        except ValueError as error:
            results[index] = error
    sound = [request for request, option in zip(inputs, options, strict=True) if option]
    tokenize(sound, model.tokenizer, model.typed, model.reads)

    rows: list[Row] = []  # every text of every sound request
    places: list[tuple[int, int, Options]] = []  # of each sound request: itself, and its first row
    truncated: dict[int, list[bool]] = {}
    for index, (request, option) in enumerate(zip(inputs, options, strict=True)):
        if option is None:
            continue
        try:
            fitting, cut = _fit(request, option, model)
        except ValueError as error:
            results[index] = error
            continue
        places.append((index, len(rows), option))
        truncated[index] = cut
        rows.extend(fitting)

    vectors = embed(rows, model) if rows else []
    for index, first, option in places:
        count = len(inputs[index].texts)
        lengths = [len(row) for row in rows[first : first + count]]
        try:
            part = vectors[first][None] if count == 1 else np.stack(vectors[first : first + count])
            part = _finished(part, option, model)
            _check_numbers(inputs[index], part)
            if isinstance(inputs[index], embedding_similarity.Comparison):
                results[index] = embedding_similarity.compared(part, model.similarity)
                continue
        except (ValueError, ArithmeticError) as error:
            results[index] = error
        else:
            results[index] = {"embeddings": part, "tokens": lengths, "truncated": truncated[index]}
    return results


def busy_fn(model: Embedder) -> engine.Encoding | None:
    """Packed weights, which make a busy model faster and take more memory."""
    return model.engine


# --- From texts to tokens, and from vectors to the answer ------------------------------------------------------------


def _options(request: Request, model: Embedder) -> Options:
    """The request's options; its prompt is noted in it. Raises ValueError for invalid ones."""
    if len(request.texts) > model.settings["max_inputs"]:
        raise ValueError(
            f"inputs has {len(request.texts)} texts; at most {model.settings['max_inputs']} are taken in one request."
        )
    request.lower = model.lower
    usual: Options | None = model.usual
    if usual is not None and not request.parameters:
        request.prefix = usual.prompt
        return usual
    values = {name: model.settings[name] for name in PARAMETERS} | request.parameters
    pooling = _modes("parameters.pooling", values["pooling"])
    if values["normalize"] is not None:
        check_flag("parameters.normalize", values["normalize"])
    check_flag("parameters.truncate", values["truncate"])
    check_integer("parameters.max_length", values["max_length"], _shortest(model.tokenizer), model.max_length)
    dimensions = values["dimensions"]
    if dimensions is not None:
        check_integer("parameters.dimensions", dimensions, 1, MOST_DIMENSIONS)
    # A prompt in the request goes before a name in the settings.
    own = request.parameters if {"prompt", "prompt_name"} & request.parameters.keys() else values
    request.prefix = handler_sentence.prompt(model.sentence, own.get("prompt"), own.get("prompt_name"))
    return Options(
        pooling or model.sentence.pooling or ("mean",),
        values["normalize"],
        values["max_length"],
        values["truncate"],
        request.prefix,
        dimensions,
    )


def _modes(name: str, value: Any) -> tuple[str, ...] | None:
    """The modes of pooling that a setting or a parameter names."""
    if value is None:
        return None
    modes = tuple(value) if isinstance(value, list) and value else (value,)
    for mode in modes:
        check_choice(name, mode, MODES)
    return modes


def _fit(request: Request, option: Options, model: Embedder) -> tuple[list[Row], list[bool]]:
    """The request's tokens, cut to the length that holds for it, and which texts were cut."""
    ids = list(request.tokens or ())
    types = list(request.types or [None] * len(ids))
    cut = [len(text) > option.max_length for text in ids]
    skip = 0
    if option.prompt and not model.sentence.include_prompt:
        skip = _prompt_tokens(option.prompt, model, option.max_length)
    rows = []
    for place, text in enumerate(ids):
        if not text:
            raise ValueError(f"{name_of(request, place)} has no tokens.")
        if model.words is not None:
            check_known(name_of(request, place), text, model.tokenizer, model.words)
        if cut[place]:
            if not option.truncate:
                raise ValueError(
                    f"{name_of(request, place)} has {len(text)} tokens; at most {option.max_length} are read. "
                    "Shorten it, or set parameters.truncate to true to have its beginning read."
                )
            # The tokenizer cuts, because it knows which special tokens stand at the end.
            encoded = model.tokenizer(
                request.read(place),
                truncation=True,
                max_length=option.max_length,
                return_attention_mask=False,
                return_token_type_ids=model.typed,
                verbose=False,
            )
            text, types[place] = list(encoded["input_ids"]), encoded.get("token_type_ids")
        if len(text) <= skip:
            raise ValueError(f"{name_of(request, place)} has no tokens after the prompt, which is not pooled.")
        rows.append(Row(text, types[place], option.pooling, skip))
    return rows, cut


def _prompt_tokens(prompt: str, model: Embedder, most: int) -> int:
    """With how many tokens a text begins that has this prompt: those of the prompt alone, but for a special one at the
    end (as sentence-transformers counts them)."""
    request = Request([prompt], True, {}, lower=model.lower)
    ids = model.tokenizer(request.read(0), truncation=True, max_length=most, verbose=False)["input_ids"]
    return len(ids) - (1 if ids and ids[-1] in model.tokenizer.all_special_ids else 0)


def _finished(vectors: np.ndarray, option: Options, model: Embedder) -> np.ndarray:
    """The vectors of one request as they are answered."""
    if option.normalize is not False and model.sentence.normalize:
        vectors = _unit(vectors)
    if option.dimensions is not None and option.dimensions > vectors.shape[1]:
        raise ValueError(
            f"parameters.dimensions is {option.dimensions}, and this model's vectors have {vectors.shape[1]} numbers."
        )
    cut = vectors[:, : option.dimensions or model.sentence.dimensions]
    return _unit(cut) if option.normalize else np.ascontiguousarray(cut)


def _check_numbers(request: Request, vectors: np.ndarray) -> None:
    """Raises ArithmeticError for a vector that holds NaN or infinity: JSON has neither, and they answer nothing."""
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        name = name_of(request, int(finite.argmin()))
        raise ArithmeticError(f"The model's vector of {name} holds numbers that are none (NaN or infinite).")


def _unit(vectors: np.ndarray) -> np.ndarray:
    if len(vectors) == 1:  # the usual case, in fewer steps
        return vectors / np.float32(max(math.sqrt(np.vdot(vectors, vectors)), 1e-12))
    lengths = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
    unit: np.ndarray = vectors / np.maximum(lengths, np.float32(1e-12))
    return unit


# --- What the model can do and what its settings say -----------------------------------------------------------------


def _shortest(tokenizer: Any) -> int:
    """The fewest tokens that leave room for one of text beside the special ones."""
    return int(tokenizer.num_special_tokens_to_add()) + 1


def _check_settings(settings: dict[str, Any]) -> None:
    where = "code/settings.json: "
    _modes(where + "pooling", settings["pooling"])
    check_choice(where + "dtype", settings["dtype"], tuple(DTYPES))
    if settings["normalize"] is not None:
        check_flag(where + "normalize", settings["normalize"])
    for name in FIELDS:
        if settings[name] is not None:
            check_text(where + name, settings[name])
    if settings["dimensions"] is not None:
        check_integer(where + "dimensions", settings["dimensions"], 1, MOST_DIMENSIONS)
    check_flag(where + "truncate", settings["truncate"])
    check_integer(where + "max_inputs", settings["max_inputs"], 1, 100_000)
    check_integer(where + "batch_tokens", settings["batch_tokens"], 1, 10**9)
