"""Sentence embeddings from any transformers encoder.

Runs unchanged in the Hugging Face inference containers (sagemaker-huggingface-inference-toolkit on multi-model-server)
and in `mme.container`. It needs torch, transformers (4.49 to 5.x) and numpy, and nothing else from this project. Where
onnxruntime is there too, it computes most encoders (`engine.py`), exactly and in less time.

Request: text/plain (one text), or application/json: "text", ["text", ...] or
{"inputs": "text" or [...], "parameters": {"pooling": ..., "normalize": ..., "max_length": ..., "truncate": ...}}.
Answer: {"embeddings": [[...], ...], "tokens": [...], "truncated": [...]}, one entry per text in the order they came in;
or, with `Accept: application/x-npy`, the vectors alone as a float32 array of shape (texts, dimensions).

Defaults come from `code/settings.json` in the model's folder (see SETTINGS), then from the files that
sentence-transformers keeps beside a model, then from here.
"""

import functools
import inspect
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import embedding_packed
import engine
import handler_adapter
import handler_format
import handler_int8
import numpy as np
import torch
from handler_common import (
    DTYPES,
    JSON,
    NPY,
    Request,
    check_choice,
    check_flag,
    check_integer,
    check_quantize,
    device_of,
    load_tokenizer,
    loading_options,
    name_of,
    negotiate,
    orjson,
    read_json,
    read_request,
    read_settings,
    tokenize,
)
from transformers import AutoConfig, AutoModel

POOLINGS = ("mean", "cls")
# For models that embedding_packed does not know. A text that sits in a batch beside a longer one is padded to its
# length, and padding costs as much as text. Texts are sorted by length, and a batch that is not small ends before more
# than a quarter of it would be padding.
SMALL_BATCH_TOKENS = 256
# Tokens, in a model whose vectors have 384 numbers; where they have more, a token is more work, and fewer will do. What
# each thread must have to do before every one of them gets texts of its own; with less they share each product.
SHARE_TOKENS = {"float32": 32, "bfloat16": 100, "float16": 100, "int8": 100}
# Used where neither the model's configuration nor its tokenizer says how much text it can read.
FALLBACK_MAX_LENGTH = 512
# These models number positions from padding_idx + 1, so they read that many tokens less than the table has rows.
POSITIONS_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "longformer",
    "mpnet",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
}

SETTINGS: dict[str, Any] = {
    "pooling": "mean",  # or "cls": the first token's vector
    "normalize": False,  # true: vectors of length 1
    "max_length": None,  # tokens read of one text, at most what the model can read
    "truncate": True,  # false: a text that is too long is an error
    "max_inputs": 256,  # texts in one request
    "batch_tokens": 8192,  # in one forward pass, with any padding: it bounds the memory
    "dtype": "float32",  # of the weights: float32, bfloat16 or float16. Answers are float32 always
    "accuracy": None,  # "exact", "close" or "small": chooses the two by the processor, see handler_format.py
    "quantize": None,  # "int8": the linear layers compute in int8. On the CPU, with dtype float32
}
PARAMETERS = ("pooling", "normalize", "max_length", "truncate")


@dataclass(frozen=True)
class Options:
    """What holds for one request: the settings with the request's parameters over them."""

    pooling: str
    normalize: bool
    max_length: int
    truncate: bool


@dataclass(frozen=True)
class Embedder:
    """A loaded model with all that serving it needs."""

    model: Any  # transformers' own; None where `engine` stands in for it
    config: Any
    tokenizer: Any
    device: torch.device
    settings: dict[str, Any]
    max_length: int  # what the model can read
    arguments: frozenset[str]  # of the model's forward method
    plan: embedding_packed.Plan | None  # how torch runs it without padding
    engine: engine.Engine | None


# --- The four functions that the toolkit calls -----------------------------------------------------------------------


def model_fn(model_dir: str, context: Any = None) -> Embedder:
    """Load the model in `model_dir`. Raises ValueError for settings that make no sense."""
    folder = Path(model_dir)
    noted = _sentence_transformers_settings(folder)
    device = device_of(context)
    own = handler_format.chosen(read_settings(folder, tuple(SETTINGS)), device)
    settings = {**SETTINGS, **noted, "max_length": None, **own}
    _check_settings(settings)
    check_quantize(settings, device)
    settings["dtype"], slow = handler_format.computing(settings["dtype"], device)
    tokenizer = load_tokenizer(folder)
    config = AutoConfig.from_pretrained(model_dir, **loading_options())
    limit = _readable_tokens(config, tokenizer)
    model = None
    found, reason = _engine(folder, config, settings, device)
    if found is None or not engine.checked(found):
        model = _model(folder, settings, device)
    if found is not None and model is not None:
        apart = engine.differs(found, model, limit)
        found, reason, model = (found, "", None) if apart is None else (None, apart, model)
    if hasattr(context, "note"):  # mme.container's
        context.note(
            engine="torch" if found is None else "onnxruntime",
            format=settings["quantize"] or settings["dtype"],
            reason="; ".join(filter(None, (reason, slow))),
            key=found.key if found else "",
        )
    if settings["max_length"] is None:
        settings["max_length"] = min(noted.get("max_length", limit), limit)
    check_integer("code/settings.json: max_length", settings["max_length"], _shortest(tokenizer), limit)
    arguments = frozenset(inspect.signature(model.forward).parameters) if model is not None else frozenset()
    # A GPU has enough to do with padding, and does not like many small pieces.
    plan = embedding_packed.plan(model) if model is not None and device.type == "cpu" else None
    return Embedder(model, config, tokenizer, device, settings, limit, arguments, plan, found)


def _engine(
    folder: Path, config: Any, settings: dict[str, Any], device: torch.device
) -> tuple[engine.Engine | None, str]:
    """What runs the model in torch's place; or None, and why."""
    if device.type != "cpu":
        return None, "it is on a GPU"
    if settings["dtype"] != "float32":
        return None, f"it computes in {settings['dtype']}"
    if (folder / handler_adapter.FOLDER).is_dir():
        return None, "it has an adapter"
    try:
        return engine.load(folder, config, handler_int8.STORED if settings["quantize"] else engine.WEIGHTS), ""
    except engine.Unsupported as error:
        return None, str(error)


def _model(folder: Path, settings: dict[str, Any], device: torch.device) -> Any:
    options = loading_options(settings["dtype"])
    if settings["quantize"]:
        model = handler_int8.load(AutoModel, folder, options)
    else:
        model = AutoModel.from_pretrained(str(folder), **options)
    model.to(device).eval().requires_grad_(False)
    handler_adapter.adapt(model, folder)
    return model


def input_fn(data: Any, content_type: str | None) -> Request:
    """Read one request's body. Raises ValueError with what is wrong with it."""
    return read_request(data, content_type, PARAMETERS)


def predict_fn(data: Request, model: Embedder) -> dict[str, Any]:
    """Embed one request's texts. Raises ValueError where the request cannot be answered."""
    result = batch_fn([data], model)[0]
    if isinstance(result, Exception):
        raise result
    return result


def output_fn(prediction: dict[str, Any], accept: str | None) -> bytes:
    """Write the answer as JSON, or as npy (no pickle in it) where `accept` asks for that."""
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
    tokenize([data], model.tokenizer)
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
    tokenize([request for request, option in zip(inputs, options, strict=True) if option], model.tokenizer)

    rows: list[list[int]] = []  # the tokens of every text of every sound request
    places: list[tuple[int, int, bool]] = []  # of each sound request: itself, its first row; and whether it pools CLS
    truncated: dict[int, list[bool]] = {}
    cls_rows: list[bool] = []
    for index, (request, option) in enumerate(zip(inputs, options, strict=True)):
        if option is None:
            continue
        try:
            ids, cut = _fit(request, option, model)
        except ValueError as error:
            results[index] = error
            continue
        places.append((index, len(rows), option.normalize))
        truncated[index] = cut
        rows.extend(ids)
        cls_rows.extend([option.pooling == "cls"] * len(ids))

    vectors = _embed(rows, cls_rows, model) if rows else np.zeros((0, 0), np.float32)
    for index, first, normalize in places:
        count = len(inputs[index].texts)
        part = vectors[first : first + count]
        if normalize:
            part = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        lengths = [len(ids) for ids in rows[first : first + count]]
        results[index] = {"embeddings": part, "tokens": lengths, "truncated": truncated[index]}
    return results


# --- From texts to vectors -------------------------------------------------------------------------------------------


def _options(request: Request, model: Embedder) -> Options:
    values = {name: model.settings[name] for name in PARAMETERS} | request.parameters
    check_choice("parameters.pooling", values["pooling"], POOLINGS)
    check_flag("parameters.normalize", values["normalize"])
    check_flag("parameters.truncate", values["truncate"])
    check_integer("parameters.max_length", values["max_length"], _shortest(model.tokenizer), model.max_length)
    if len(request.texts) > model.settings["max_inputs"]:
        raise ValueError(
            f"inputs has {len(request.texts)} texts; at most {model.settings['max_inputs']} are taken in one request."
        )
    return Options(**values)


def _token_ids(tokenizer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(
        texts, return_attention_mask=False, return_token_type_ids=False, verbose=False, **options
    )["input_ids"]
    return ids


def _fit(request: Request, option: Options, model: Embedder) -> tuple[list[list[int]], list[bool]]:
    """The request's tokens, cut to the length that holds for it, and which texts were cut."""
    ids = list(request.tokens or ())
    cut = [len(text) > option.max_length for text in ids]
    for place, text in enumerate(ids):
        if not text:
            raise ValueError(f"{name_of(request, place)} has no tokens.")
        if cut[place]:
            if not option.truncate:
                raise ValueError(
                    f"{name_of(request, place)} has {len(text)} tokens; at most {option.max_length} are read. "
                    "Shorten it, or set parameters.truncate to true to have its beginning read."
                )
            # The tokenizer cuts, because it knows which special tokens stand at the end.
            ids[place] = _token_ids(
                model.tokenizer, [request.texts[place]], truncation=True, max_length=option.max_length
            )[0]
    return ids, cut


def _embed(rows: list[list[int]], cls_rows: list[bool], model: Embedder) -> np.ndarray:
    """One float32 vector per row, in the order of `rows`."""
    if not rows:
        raise ValueError("There is nothing to embed.")
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
    most = model.settings["batch_tokens"]
    if model.engine is not None:
        batches, pooled = _by_engine(order, rows, cls_rows, model)
    elif model.plan is None or not embedding_packed.can_run(model.plan, rows):
        batches = _batches(order, rows, most, packed=False)
        pooled = [_padded([rows[row] for row in batch], [cls_rows[row] for row in batch], model) for batch in batches]
    else:
        threads = torch.get_num_threads()
        shares, each = _threads(threads, rows, model)
        batches = [
            batch
            for share in _shares(order, rows, shares)
            for batch in _batches(share, rows, max(1, most // shares), packed=True)
        ]

        def compute(batch: list[int]) -> np.ndarray:
            if torch.get_num_threads() != each:  # which is a setting of the thread
                torch.set_num_threads(each)
            return _packed([rows[row] for row in batch], [cls_rows[row] for row in batch], model)

        try:
            pooled = list((map if shares == 1 else _executor().map)(compute, batches))
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
    vectors = np.empty((len(rows), pooled[0].shape[1]), np.float32)
    for batch, part in zip(batches, pooled, strict=True):
        vectors[batch] = part
    return vectors


def _by_engine(
    order: list[int], rows: list[list[int]], cls_rows: list[bool], model: Embedder
) -> tuple[list[list[int]], list[np.ndarray]]:
    """The batches into which the rows are split, and the vectors of each."""
    found = model.engine
    assert found is not None
    shares, each = _threads(torch.get_num_threads(), rows, model)
    most = max(1, model.settings["batch_tokens"] // shares)
    batches = [batch for share in _shares(order, rows, shares) for batch in engine.batches(share, rows, most)]

    def compute(batch: list[int]) -> np.ndarray:
        hidden = found.run([rows[row] for row in batch], each)
        vectors = np.empty((len(batch), found.width), np.float32)
        start = first = 0
        for length, same in groupby(len(rows[row]) for row in batch):
            count = len(list(same))
            texts = hidden[start : start + length * count].reshape(count, length, -1)
            vectors[first : first + count] = texts.mean(axis=1)
            for place in range(count):
                if cls_rows[batch[first + place]]:
                    vectors[first + place] = texts[place, 0]
            start += length * count
            first += count
        return vectors

    return batches, list((map if shares == 1 else _executor().map)(compute, batches))


def _threads(threads: int, rows: list[list[int]], model: Embedder) -> tuple[int, int]:
    """Into how many shares to split the rows, and how many threads each gets."""
    kind = model.settings["quantize"] or model.settings["dtype"]
    tokens = sum(map(len, rows)) * (model.config.hidden_size / 384) ** 2
    shares = max(1, min(threads, len(rows), int(tokens / SHARE_TOKENS[kind])))
    return shares, max(1, threads // shares)


def _shares(order: list[int], rows: list[list[int]], count: int) -> list[list[int]]:
    """Split `order` (longest row first) into shares that are done at about the same time: each row goes to the one that
    has the least."""
    shares: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for row in order:
        least = tokens.index(min(tokens))
        shares[least].append(row)
        tokens[least] += len(rows[row])
    return shares


@functools.cache
def _executor() -> ThreadPoolExecutor:
    """Threads for the shares of a batch. They start when they are first needed."""
    return ThreadPoolExecutor(os.cpu_count(), "embed")


def _batches(order: list[int], rows: list[list[int]], most: int, packed: bool) -> list[list[int]]:
    """Split `order` (longest row first) into batches of at most so many tokens; where texts are padded, with little
    padding."""
    batches: list[list[int]] = []
    text_tokens = 0
    for row in order:
        length = len(rows[row])
        if batches:
            tokens = text_tokens + length
            padded = tokens if packed else (len(batches[-1]) + 1) * len(rows[batches[-1][0]])
            wasteful = padded > SMALL_BATCH_TOKENS and padded - tokens > padded // 4
            if padded <= most and not wasteful:
                batches[-1].append(row)
                text_tokens += length
                continue
        batches.append([row])
        text_tokens = length
    return batches


def _packed(rows: list[list[int]], cls_rows: list[bool], model: Embedder) -> np.ndarray:
    assert model.plan is not None
    with torch.inference_mode():
        hidden = embedding_packed.run(model.plan, rows, model.device)
        means, firsts = embedding_packed.pool(hidden, rows)
        chosen = torch.tensor(cls_rows, device=model.device)[:, None]
        vectors: np.ndarray = torch.where(chosen, firsts, means).cpu().numpy()
    return vectors


def _padded(rows: list[list[int]], cls_rows: list[bool], model: Embedder) -> np.ndarray:
    longest = len(rows[0])
    right = getattr(model.tokenizer, "padding_side", "right") != "left"
    ids = np.full((len(rows), longest), model.tokenizer.pad_token_id or 0, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        span = slice(0, len(row)) if right else slice(longest - len(row), longest)
        ids[place, span] = row
        mask[place, span] = 1
    attention = torch.from_numpy(mask).to(model.device)
    arguments = {"input_ids": torch.from_numpy(ids).to(model.device), "attention_mask": attention}
    if "token_type_ids" in model.arguments:
        arguments["token_type_ids"] = torch.zeros_like(arguments["input_ids"])
    with torch.inference_mode():
        hidden = model.model(**arguments).last_hidden_state
        if all(cls_rows):
            pooled = _first_tokens(hidden, attention)
        elif not any(cls_rows):
            pooled = _means(hidden, attention)
        else:
            chosen = torch.tensor(cls_rows, device=model.device)[:, None]
            pooled = torch.where(chosen, _first_tokens(hidden, attention), _means(hidden, attention))
        vectors: np.ndarray = pooled.cpu().numpy()
    return vectors


def _first_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    first = mask.argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first].float()


def _means(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[:, None, :].float()
    return torch.bmm(weights, hidden.float())[:, 0] / weights.sum(dim=2)


# --- What the model can do and what its settings say -----------------------------------------------------------------


def _readable_tokens(config: Any, tokenizer: Any) -> int:
    limits = []
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        if getattr(config, "model_type", "") in POSITIONS_AFTER_PADDING:
            positions -= (config.pad_token_id or 0) + 1
        limits.append(positions)
    # Where nothing is known the tokenizer says 10**30.
    stated = getattr(tokenizer, "model_max_length", None)
    if stated is not None and 0 < stated < 10**9:
        limits.append(int(stated))
    return min(limits) if limits else FALLBACK_MAX_LENGTH


def _shortest(tokenizer: Any) -> int:
    """The fewest tokens that leave room for one of text beside the special ones."""
    return int(tokenizer.num_special_tokens_to_add()) + 1


def _sentence_transformers_settings(folder: Path) -> dict[str, Any]:
    """What sentence-transformers noted beside the model, where it did: pooling, normalising, length."""
    found: dict[str, Any] = {}
    pooling = read_json(folder / "1_Pooling" / "config.json")
    if isinstance(pooling, dict):
        modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        if len(modes) == 1 and modes[0] in known:
            found["pooling"] = known[modes[0]]
    modules = read_json(folder / "modules.json")
    if isinstance(modules, list):
        found["normalize"] = any(str(module.get("type", "")).endswith(".Normalize") for module in modules)
    length = read_json(folder / "sentence_bert_config.json")
    if isinstance(length, dict) and isinstance(length.get("max_seq_length"), int):
        found["max_length"] = length["max_seq_length"]
    return found


def _check_settings(settings: dict[str, Any]) -> None:
    where = "code/settings.json: "
    check_choice(where + "pooling", settings["pooling"], POOLINGS)
    check_choice(where + "dtype", settings["dtype"], tuple(DTYPES))
    check_flag(where + "normalize", settings["normalize"])
    check_flag(where + "truncate", settings["truncate"])
    check_integer(where + "max_inputs", settings["max_inputs"], 1, 100_000)
    check_integer(where + "batch_tokens", settings["batch_tokens"], 1, 10**9)
