"""Sentence embeddings from any transformers encoder.

Runs unchanged in the Hugging Face inference containers (sagemaker-huggingface-inference-toolkit on multi-model-server)
and in `mme.container`. It needs torch, transformers (4.49 to 5.x) and numpy, and nothing else from this project.

Request: text/plain (one text), or application/json: "text", ["text", ...] or
{"inputs": "text" or [...], "parameters": {"pooling": ..., "normalize": ..., "max_length": ..., "truncate": ...}}.
Answer: {"embeddings": [[...], ...], "tokens": [...], "truncated": [...]}, one entry per text in the order they came in;
or, with `Accept: application/x-npy`, the vectors alone as a float32 array of shape (texts, dimensions).

Defaults come from `code/settings.json` in the model's folder (see SETTINGS), then from the files that
sentence-transformers keeps beside a model, then from here.
"""

import inspect
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

try:  # Ten times faster than json on long lists of numbers. The Hugging Face images do not carry it.
    import orjson
except ImportError:
    orjson = None

JSON = "application/json"
NPY = "application/x-npy"
TEXT = "text/plain"

POOLINGS = ("mean", "cls")
# A text that sits in a batch beside a longer one is padded to its length, and padding costs as much as text. Texts are
# sorted by length, and a batch that is not small ends before more than a quarter of it would be padding.
SMALL_BATCH_TOKENS = 256
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
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SETTINGS: dict[str, Any] = {
    "pooling": "mean",  # or "cls": the first token's vector
    "normalize": False,  # true: vectors of length 1
    "max_length": None,  # tokens read of one text, at most what the model can read
    "truncate": True,  # false: a text that is too long is an error
    "max_inputs": 256,  # texts in one request
    "batch_tokens": 8192,  # in one forward pass, padding included: it bounds the memory
    "dtype": "float32",  # of the weights: float32, bfloat16 or float16. Answers are float32 always
}
PARAMETERS = ("pooling", "normalize", "max_length", "truncate")


@dataclass
class Request:
    """One request: its texts, what it asks for and, once they are known, the texts' tokens."""

    texts: list[str]
    single: bool
    parameters: dict[str, Any]
    tokens: list[list[int]] | None = field(default=None, repr=False)


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

    model: Any
    tokenizer: Any
    device: torch.device
    settings: dict[str, Any]
    max_length: int  # what the model can read
    arguments: frozenset[str]  # of the model's forward method


# --- The four functions that the toolkit calls -----------------------------------------------------------------------


def model_fn(model_dir: str, context: Any = None) -> Embedder:
    """Load the model in `model_dir`. Raises ValueError for settings that make no sense."""
    folder = Path(model_dir)
    noted = _sentence_transformers_settings(folder)
    settings = {**SETTINGS, **noted, "max_length": None, **_read_settings(folder)}
    _check_settings(settings)
    tokenizer = _load_tokenizer(folder)
    dtype = DTYPES[settings["dtype"]]
    model = AutoModel.from_pretrained(model_dir, local_files_only=True, **{_dtype_keyword(): dtype})
    device = _device(context)
    model.to(device).eval().requires_grad_(False)
    limit = _readable_tokens(model.config, tokenizer)
    if settings["max_length"] is None:
        settings["max_length"] = min(noted.get("max_length", limit), limit)
    _check_integer("code/settings.json: max_length", settings["max_length"], _shortest(tokenizer), limit)
    arguments = frozenset(inspect.signature(model.forward).parameters)
    return Embedder(model, tokenizer, device, settings, limit, arguments)


def input_fn(data: Any, content_type: str | None) -> Request:
    """Read one request's body. Raises ValueError with what is wrong with it."""
    return Request(*_read_request(data, content_type, PARAMETERS))


def predict_fn(data: Request, model: Embedder) -> dict[str, Any]:
    """Embed one request's texts. Raises ValueError where the request cannot be answered."""
    result = batch_fn([data], model)[0]
    if isinstance(result, Exception):
        raise result
    return result


def output_fn(prediction: dict[str, Any], accept: str | None) -> bytes:
    """Write the answer as JSON, or as npy (no pickle in it) where `accept` asks for that."""
    kind = _negotiate(accept, (JSON, NPY))
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
    _tokenize([data], model)
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
    _tokenize([request for request, option in zip(inputs, options, strict=True) if option], model)

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
    _check_choice("parameters.pooling", values["pooling"], POOLINGS)
    _check_flag("parameters.normalize", values["normalize"])
    _check_flag("parameters.truncate", values["truncate"])
    _check_integer("parameters.max_length", values["max_length"], _shortest(model.tokenizer), model.max_length)
    if len(request.texts) > model.settings["max_inputs"]:
        raise ValueError(
            f"inputs has {len(request.texts)} texts; at most {model.settings['max_inputs']} are taken in one request."
        )
    return Options(**values)


def _tokenize(requests: list[Request], model: Embedder) -> None:
    """Give every request its tokens, whole, with one call of the tokenizer for all that have none yet."""
    missing = [request for request in requests if request.tokens is None]
    texts = [text for request in missing for text in request.texts]
    if not texts:
        return
    encoded = iter(_token_ids(model.tokenizer, texts))
    for request in missing:
        request.tokens = [next(encoded) for _ in request.texts]


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
            raise ValueError(f"{_name(request, place)} has no tokens.")
        if cut[place]:
            if not option.truncate:
                raise ValueError(
                    f"{_name(request, place)} has {len(text)} tokens; at most {option.max_length} are read. "
                    "Shorten it, or set parameters.truncate to true to have its beginning read."
                )
            # The tokenizer cuts, because it knows which special tokens stand at the end.
            ids[place] = _token_ids(
                model.tokenizer, [request.texts[place]], truncation=True, max_length=option.max_length
            )[0]
    return ids, cut


def _embed(rows: list[list[int]], cls_rows: list[bool], model: Embedder) -> np.ndarray:
    """One float32 vector per row, in the order of `rows`."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
    vectors: np.ndarray | None = None
    for batch in _batches(order, rows, model.settings["batch_tokens"]):
        pooled = _forward([rows[row] for row in batch], [cls_rows[row] for row in batch], model)
        if vectors is None:
            vectors = np.empty((len(rows), pooled.shape[1]), np.float32)
        vectors[batch] = pooled
    if vectors is None:
        raise ValueError("There is nothing to embed.")
    return vectors


def _batches(order: list[int], rows: list[list[int]], most: int) -> list[list[int]]:
    """Split `order` (longest row first) into batches of at most so many tokens and with little padding."""
    batches: list[list[int]] = []
    text_tokens = 0
    for row in order:
        length = len(rows[row])
        if batches:
            padded = (len(batches[-1]) + 1) * len(rows[batches[-1][0]])
            wasteful = padded > SMALL_BATCH_TOKENS and padded - text_tokens - length > padded // 4
            if padded <= most and not wasteful:
                batches[-1].append(row)
                text_tokens += length
                continue
        batches.append([row])
        text_tokens = length
    return batches


def _forward(rows: list[list[int]], cls_rows: list[bool], model: Embedder) -> np.ndarray:
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
    pooling = _read_json(folder / "1_Pooling" / "config.json")
    if isinstance(pooling, dict):
        modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        if len(modes) == 1 and modes[0] in known:
            found["pooling"] = known[modes[0]]
    modules = _read_json(folder / "modules.json")
    if isinstance(modules, list):
        found["normalize"] = any(str(module.get("type", "")).endswith(".Normalize") for module in modules)
    length = _read_json(folder / "sentence_bert_config.json")
    if isinstance(length, dict) and isinstance(length.get("max_seq_length"), int):
        found["max_length"] = length["max_seq_length"]
    return found


def _read_settings(folder: Path) -> dict[str, Any]:
    settings = _read_json(folder / "code" / "settings.json")
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ValueError("code/settings.json must hold a JSON object.")
    for name in settings:
        if name not in SETTINGS:
            raise ValueError(f"code/settings.json: unknown setting {name!r}. Known: {', '.join(SETTINGS)}.")
    return settings


def _check_settings(settings: dict[str, Any]) -> None:
    where = "code/settings.json: "
    _check_choice(where + "pooling", settings["pooling"], POOLINGS)
    _check_choice(where + "dtype", settings["dtype"], tuple(DTYPES))
    _check_flag(where + "normalize", settings["normalize"])
    _check_flag(where + "truncate", settings["truncate"])
    _check_integer(where + "max_inputs", settings["max_inputs"], 1, 100_000)
    _check_integer(where + "batch_tokens", settings["batch_tokens"], 1, 10**9)


# --- The same in every handler here: a handler's folder must stand alone ---------------------------------------------


def _read_request(
    data: Any, content_type: str | None, known: tuple[str, ...]
) -> tuple[list[str], bool, dict[str, Any]]:
    """The texts of a request, whether it was one text and not a list, and its parameters."""
    kind, _, rest = (content_type or JSON).partition(";")
    kind = kind.strip().lower()
    if kind not in (JSON, TEXT):
        raise ValueError(f"Content type {kind!r} is not supported. Send {JSON} or {TEXT}.")
    text = _body_text(data, rest)
    if kind == TEXT:
        return [text], True, {}
    try:
        body = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("The body is JSON nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        body = {"inputs": body}
    for name in body:
        if name not in ("inputs", "parameters"):
            raise ValueError(f'Unknown field {name!r}. A request is {{"inputs": ..., "parameters": {{...}}}}.')
    if "inputs" not in body:
        raise ValueError('The request has no "inputs": a text, or a list of texts.')
    parameters = body.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise ValueError('"parameters" must be a JSON object.')
    for name in parameters:
        if name not in known:
            raise ValueError(f"Unknown parameter {name!r}. Known: {', '.join(known)}.")
    parameters = {name: value for name, value in parameters.items() if value is not None}
    single = isinstance(body["inputs"], str)
    texts = [body["inputs"]] if single else body["inputs"]
    if not isinstance(texts, list):
        raise ValueError(f'"inputs" must be a text or a list of texts, not {_kind(texts)}.')
    if not texts:
        raise ValueError('"inputs" is an empty list.')
    for place, item in enumerate(texts):
        if not isinstance(item, str):
            raise ValueError(f'"inputs" must hold texts; inputs[{place}] is {_kind(item)}.')
        # JSON can spell half of a surrogate pair, which is no text in any encoding: tokenizers fail on it.
        if not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
            raise ValueError(f"inputs[{place}] holds half of a surrogate pair (\\ud800 to \\udfff), which is not text.")
    return texts, single, parameters


def _body_text(data: Any, content_type_parameters: str) -> str:
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    charset = "utf-8"
    for parameter in content_type_parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip("\"'").lower().replace("_", "-")
    if charset not in ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1"):
        raise ValueError(f"The charset {charset!r} is not supported. Send UTF-8.")
    try:
        return bytes(data).decode("utf-8-sig" if charset in ("utf-8", "utf8") else charset)
    except UnicodeDecodeError as error:
        raise ValueError(f"The body is not valid {charset}: {error.reason} at byte {error.start}.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"The body is not valid JSON: {name} is not a JSON number.")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "null")


def _name(request: Request, place: int) -> str:
    return "inputs" if request.single else f"inputs[{place}]"


def _negotiate(accept: str | None, offered: tuple[str, ...]) -> str:
    """The media type to answer in: the first of `accept` that is offered. Weights (q=) are not looked at."""
    for wanted in (accept or "*/*").split(","):
        kind = wanted.partition(";")[0].strip().lower()
        if kind in ("*/*", "application/*", ""):
            return offered[0]
        if kind in offered:
            return kind
    raise ValueError(f"Accept {accept!r} cannot be answered. Ask for {' or '.join(offered)}.")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}.")


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")


def _read_json(path: Path) -> Any:
    """What the JSON file holds, or None where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None


def _load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except ValueError:
        # transformers 5 saves a tokenizer that has no class of its own under a class name that 4 does not know.
        if not (folder / "tokenizer.json").is_file():
            raise
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def _dtype_keyword() -> str:
    """`from_pretrained` names it dtype from transformers 5 on; until then torch_dtype was the name."""
    return "dtype" if int(transformers.__version__.partition(".")[0]) >= 5 else "torch_dtype"


def _device(context: Any) -> torch.device:
    """The GPU that the model server gave this worker, else the first one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    properties = getattr(context, "system_properties", None) or {}
    gpu = properties.get("gpu_id")
    return torch.device("cuda", int(gpu) if gpu is not None and int(gpu) >= 0 else 0)
