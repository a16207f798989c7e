"""Scores for pairs of texts from a cross-encoder: any transformers model for sequence classification.

Runs unchanged in the Hugging Face inference containers (sagemaker-huggingface-inference-toolkit on multi-model-server)
and in `mme.container`. It needs torch, transformers (4.49 to 5.x) and numpy, and nothing else from this project. Where
onnxruntime is there too, it computes most cross-encoders (`engine.py`), exactly and in less time.

Request, application/json, one of

- {"query": "text", "documents": ["text", ...], "top_k": 3, "parameters": {...}}, answered by
  {"results": [{"index": 1, "score": 0.98}, ...]}, best first; for models with one label;
- {"inputs": [["text", "text"], ...], "parameters": {...}}, answered by {"scores": [...]}: in the order of the pairs, a
  number each, or a list with one for each label. A pair may be {"text": ..., "text_pair": ...}, too.

Both answers have "tokens" and "truncated" beside that, one entry per document or pair in the order they came in.

Scores are those of sentence-transformers' CrossEncoder: its activation and prompts, where the model's files have any.
Defaults come from `code/settings.json` in the model's folder (see SETTINGS), then from these files, then from here.
"""

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import engine
import handler_adapter
import handler_exact
import handler_sentence
import numpy as np
import torch
from handler_common import (
    DTYPES,
    JSON,
    Request,
    check_choice,
    check_flag,
    check_integer,
    check_known,
    check_text,
    device_of,
    known_tokens,
    load_tokenizer,
    loading_options,
    lower_cased,
    negotiate,
    read_object,
    read_settings,
    readable_tokens,
    texts_of,
)
from handler_sentence import Pairs
from transformers import AutoConfig, AutoModelForSequenceClassification

SETTINGS: dict[str, Any] = {
    "activation": None,  # what is done to the model's numbers: one of ACTIVATIONS; null: what the model's files say
    "prompt": None,  # what is put before the first text of every pair
    "prompt_name": None,  # the same, by the name that the model has for it
    "max_length": None,  # tokens read of one pair, at most what the model can read
    "truncate": True,  # false: a pair that is too long is an error
    "return_documents": False,  # whether results have the documents' texts
    "max_inputs": 256,  # documents or pairs in one request
    "batch_tokens": 8192,  # in one forward pass, with any padding: it bounds the memory
    "dtype": "float32",  # of the weights: float32, bfloat16 or float16
}
PARAMETERS = ("activation", "prompt", "prompt_name", "max_length", "truncate", "return_documents", "top_k")
FIELDS = ("query", "documents", "inputs", "parameters", "top_k", "return_documents", "prompt", "prompt_name")

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda scores: scores,
    "sigmoid": torch.sigmoid,
    "softmax": lambda scores: torch.softmax(scores, dim=1),
    "tanh": torch.tanh,
}
PROBE = ("The house was quiet, and nobody was at home that day.", "Was anybody there on that day?")


@dataclass
class Ranking:
    """One request: its pairs and, once they are known, their tokens."""

    pairs: list[tuple[str, str]]
    ranked: bool  # one query for all, and the answer is in order of score
    parameters: dict[str, Any]
    rows: list["Row"] | None = None
    cut: list[bool] | None = None


@dataclass(frozen=True)
class Row:
    ids: list[int]
    types: list[int] | None  # of the tokens: whose text each is from; None: the tokenizer has no types

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Options:
    activation: Callable[[torch.Tensor], torch.Tensor]
    prompt: str
    max_length: int
    truncate: bool
    top_k: int | None
    return_documents: bool


@dataclass(frozen=True)
class Reranker:
    """A loaded model with all that serving it needs."""

    model: Any  # transformers' own; None where `engine` stands in for it
    config: Any
    tokenizer: Any
    device: torch.device
    settings: dict[str, Any]
    sentence: Pairs
    labels: int
    max_length: int  # what the model can read
    arguments: frozenset[str]  # of the model's forward method
    lower: bool  # whether texts are made lower case before it reads them
    engine: engine.Encoding | None
    way: str = handler_exact.PADDED  # which pairs can share a forward pass
    words: int | None = None  # tokens that the model knows, where its tokenizer has more


# --- The four functions that the toolkit calls -----------------------------------------------------------------------


def model_fn(model_dir: str, context: Any = None) -> Reranker:
    """Load the model in `model_dir`. Raises ValueError for settings that make no sense."""
    folder = Path(model_dir)
    sentence = handler_sentence.read_pairs(folder)
    settings = {**SETTINGS, **read_settings(folder, tuple(SETTINGS))}
    _check_settings(settings)
    device = device_of(context)
    tokenizer = load_tokenizer(folder)
    lower = sentence.lower_case and lower_cased(tokenizer)
    config = AutoConfig.from_pretrained(model_dir, **loading_options())
    limit, usual = readable_tokens(config, tokenizer, sentence.max_length)
    if settings["max_length"] is None:
        settings["max_length"] = usual
    check_integer("code/settings.json: max_length", settings["max_length"], _shortest(tokenizer), limit)
    encoding, reason = _engine(folder, config, settings, device)

    def load() -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(model_dir, **loading_options(settings["dtype"]))
        model.to(device).eval().requires_grad_(False)
        handler_adapter.adapt(model, folder)
        if model.config.pad_token_id is None:  # models that look for a text's last token go by it
            model.config.pad_token_id = tokenizer.pad_token_id
        return model

    if encoding is not None and not engine.checked(encoding):
        unequal = engine.compared(lambda: engine.differs(encoding, load(), limit, engine.typed(tokenizer, config)))
        encoding, reason = (encoding, "") if unequal is None else (None, unequal)
    model = None
    if encoding is None:
        model = load()
        config = model.config
    if hasattr(context, "note"):  # mme.container's
        context.note(
            engine="torch" if encoding is None else "onnxruntime",
            format=settings["dtype"],
            reason=reason,
            key=encoding.key if encoding else "",
        )
    reranker = Reranker(
        model,
        config,
        tokenizer,
        device,
        settings,
        sentence,
        int(config.num_labels),
        limit,
        frozenset(inspect.signature(model.forward).parameters) if model is not None else frozenset(),
        lower,
        encoding,
        words=known_tokens(config, tokenizer),
    )
    _options(Ranking([], False, {}), reranker)  # the settings, against what the model has
    if model is None:
        return reranker
    way = _way(reranker)
    if way != handler_exact.PADDED:
        one = "pairs of one length run together" if way == handler_exact.EQUAL else "each pair runs alone"
        sys.stderr.write(f"{config.model_type}: {one}, since padding would change its answers\n")
    return replace(reranker, way=way)


def _engine(
    folder: Path, config: Any, settings: dict[str, Any], device: torch.device
) -> tuple[engine.Encoding | None, str]:
    """The engine that runs the model in torch's place; or None, and the reason."""
    if device.type != "cpu":
        return None, "it is on a GPU"
    if settings["dtype"] != "float32":
        return None, f"it computes in {settings['dtype']}"
    try:
        return engine.load(folder, config, head=engine.TEXTS, adapter=handler_adapter.matrices(folder)), ""
    except engine.Unsupported as error:
        return None, str(error)


def _way(model: Reranker) -> str:
    most = max(model.max_length // 4, _shortest(model.tokenizer))
    row = _tokenized([PROBE], replace(model, lower=False), "", most)[0]
    rows = []
    for ids in handler_exact.probes(row.ids, model.max_length):
        types = row.types
        if types is not None and len(types) > 1:
            types = [*types[:-1], *[types[-2]] * max(0, len(ids) - len(types)), types[-1]][-len(ids) :]
        rows.append(Row(ids, types))

    def forward(asked: list[Row]) -> list[torch.Tensor]:
        return list(_scores(asked, model))

    return handler_exact.way(forward, rows, model.config.model_type, model.settings["dtype"])


def input_fn(data: Any, content_type: str | None) -> Ranking:
    """Read one request's body. Raises ValueError with what is wrong with it."""
    body = read_object(data, content_type, FIELDS)
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ValueError('"parameters" must be a JSON object.')
    beside = {name: body[name] for name in ("top_k", "return_documents", "prompt", "prompt_name") if name in body}
    parameters = {name: value for name, value in {**parameters, **beside}.items() if value is not None}
    for name in parameters:
        if name not in PARAMETERS:
            raise ValueError(f"Unknown parameter {name!r}. Known: {', '.join(PARAMETERS)}.")
    if "inputs" in body and ("query" in body or "documents" in body):
        raise ValueError('A request has "query" and "documents", or "inputs", not both.')
    if "inputs" in body:
        if "top_k" in parameters or "return_documents" in parameters:
            raise ValueError('"top_k" and "return_documents" go with "query" and "documents".')
        return Ranking(_pairs(body["inputs"]), False, parameters)
    if "query" not in body or "documents" not in body:
        raise ValueError(
            'A request has "query", a text, and "documents", a list of texts; or "inputs", pairs of texts.'
        )
    query = texts_of("query", [body["query"]])[0]
    documents = body["documents"]
    if not isinstance(documents, list) or not documents:
        raise ValueError('"documents" must be a list of texts, and not an empty one.')
    documents = [item["text"] if isinstance(item, dict) and item.keys() == {"text"} else item for item in documents]
    return Ranking([(query, text) for text in texts_of("documents", documents)], True, parameters)


def _pairs(inputs: Any) -> list[tuple[str, str]]:
    if isinstance(inputs, dict) or (
        isinstance(inputs, list) and len(inputs) == 2 and all(isinstance(item, str) for item in inputs)
    ):
        inputs = [inputs]
    if not isinstance(inputs, list) or not inputs:
        raise ValueError('"inputs" must be a list of pairs of texts, and not an empty one.')
    pairs = []
    for place, pair in enumerate(inputs):
        if isinstance(pair, dict) and pair.keys() == {"text", "text_pair"}:
            pair = [pair["text"], pair["text_pair"]]
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f'inputs[{place}] must be a pair of texts: ["text", "text"].')
        one, other = texts_of(f"inputs[{place}]", pair)
        pairs.append((one, other))
    return pairs


def predict_fn(data: Ranking, model: Reranker) -> dict[str, Any]:
    """Score one request's pairs. Raises ValueError where the request cannot be answered."""
    result = batch_fn([data], model)[0]
    if isinstance(result, Exception):
        raise result
    return result


def output_fn(prediction: dict[str, Any], accept: str | None) -> bytes:
    """Write the answer as JSON."""
    negotiate(accept, (JSON,))
    return json.dumps(prediction, ensure_ascii=False, separators=(",", ":")).encode()


# --- The hooks with which a server batches concurrent requests -------------------------------------------------------


def tokens_fn(data: Ranking, model: Reranker) -> int:
    """How many tokens the request costs. The tokens are kept in `data`, so they are counted only once."""
    try:
        _fit(data, _options(data, model), model)
    except ValueError:
        return 1  # batch_fn will refuse it
    return sum(map(len, data.rows or ()))


def batch_fn(inputs: list[Ranking], model: Reranker) -> list[Any]:
    """Score the pairs of many requests together: for each, in order, what predict_fn would return, or the exception
    that it would raise. Parameters may differ from one request to the next."""
    results: list[Any] = [None] * len(inputs)
    rows: list[Row] = []
    places: list[tuple[int, int, Options]] = []  # of each sound request: itself, and its first row
    for index, request in enumerate(inputs):
        try:
            option = _options(request, model)
            fitting = _fit(request, option, model)
        except ValueError as error:
            results[index] = error
            continue
        places.append((index, len(rows), option))
        rows.extend(fitting)
    if not rows:
        return results
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
    scores = torch.empty((len(rows), model.labels))
    most = model.settings["batch_tokens"]
    for batch in (
        handler_exact.batches(order, rows, most, packed=False, way=model.way)
        if model.engine is None
        else engine.batches(order, rows, most)
    ):
        scores[batch] = _scores([rows[row] for row in batch], model)
    for index, first, option in places:
        request = inputs[index]
        part = option.activation(scores[first : first + len(request.pairs)])
        try:
            results[index] = _answer(request, option, part.numpy().astype(np.float32))
        except ArithmeticError as error:
            results[index] = error
    return results


def busy_fn(model: Reranker) -> engine.Encoding | None:
    """Packed weights, which make a busy model faster and take more memory."""
    return model.engine


# --- From pairs to scores --------------------------------------------------------------------------------------------


def _options(request: Ranking, model: Reranker) -> Options:
    values = {name: model.settings.get(name) for name in PARAMETERS} | request.parameters
    if request.ranked and model.labels != 1:
        raise ValueError(
            f"This model gives {model.labels} scores for a pair, so documents have no order. Send pairs as inputs."
        )
    activation = values["activation"]
    if activation is not None:
        check_choice("parameters.activation", activation, tuple(ACTIVATIONS))
    check_flag("parameters.truncate", values["truncate"])
    check_flag("parameters.return_documents", values["return_documents"])
    check_integer("parameters.max_length", values["max_length"], _shortest(model.tokenizer), model.max_length)
    if values["top_k"] is not None:
        check_integer("top_k", values["top_k"], 1, 1_000_000)
    if len(request.pairs) > model.settings["max_inputs"]:
        raise ValueError(
            f"There are {len(request.pairs)} pairs; at most {model.settings['max_inputs']} are taken in one request."
        )
    own = request.parameters if {"prompt", "prompt_name"} & request.parameters.keys() else values
    default = model.sentence.activation or (torch.sigmoid if model.labels == 1 else ACTIVATIONS["identity"])
    return Options(
        default if activation is None else ACTIVATIONS[activation],
        handler_sentence.prompt(model.sentence, own.get("prompt"), own.get("prompt_name")),
        values["max_length"],
        values["truncate"],
        values["top_k"],
        values["return_documents"],
    )


def _fit(request: Ranking, option: Options, model: Reranker) -> list[Row]:
    """The request's tokens, cut to the length that holds for it."""
    if request.rows is None:
        rows = _tokenized(request.pairs, model, option.prompt, None)
        request.cut = [len(row) > option.max_length for row in rows]
        for place, cut in enumerate(request.cut):
            if not rows[place].ids:
                raise ValueError(f"{_name(request, place)} has no tokens.")
            check_known(_name(request, place), rows[place].ids, model.tokenizer, model.words)
            if cut and not option.truncate:
                raise ValueError(
                    f"{_name(request, place)} has {len(rows[place])} tokens with what it is paired with; at most "
                    f"{option.max_length} are read. Shorten it, or set parameters.truncate to true to have it cut."
                )
            if cut:
                rows[place] = _tokenized([request.pairs[place]], model, option.prompt, option.max_length)[0]
        request.rows = rows
    return request.rows


def _name(request: Ranking, place: int) -> str:
    return f"{'documents' if request.ranked else 'inputs'}[{place}]"


def _tokenized(pairs: list[tuple[str, str]], model: Reranker, prompt: str, most: int | None) -> list[Row]:
    """The pairs' tokens, cut where they are more than `most`: from the longer of the two texts first."""
    ones = Request([one for one, _ in pairs], False, {}, prefix=prompt, lower=model.lower)
    others = Request([other for _, other in pairs], False, {}, lower=model.lower)
    encoded = model.tokenizer(
        [ones.read(place) for place in range(len(pairs))],
        [others.read(place) for place in range(len(pairs))],
        truncation=most is not None,
        max_length=most,
        return_attention_mask=False,
        return_token_type_ids="token_type_ids" in model.tokenizer.model_input_names,
        verbose=False,
    )
    types = encoded.get("token_type_ids")
    return [Row(list(ids), list(types[place]) if types else None) for place, ids in enumerate(encoded["input_ids"])]


def _scores(rows: list[Row], model: Reranker) -> torch.Tensor:
    """The model's numbers for each row, before any activation: float32 of (rows, labels)."""
    if model.engine is not None:
        types = [row.types or [0] * len(row) for row in rows] if engine.typed(model.tokenizer, model.config) else None
        return torch.from_numpy(model.engine.run([row.ids for row in rows], torch.get_num_threads(), types))
    inputs, _ = handler_exact.padded(
        [row.ids for row in rows], [row.types for row in rows], model.tokenizer, model.arguments, model.device
    )
    if hasattr(model.model, "base_model") and hasattr(model.model.base_model, "set_attention_type"):
        model.model.base_model.set_attention_type(model.config.attention_type)
    with torch.inference_mode():
        logits: torch.Tensor = model.model(**inputs).logits.float().cpu()
    return logits


def _answer(request: Ranking, option: Options, scores: np.ndarray) -> dict[str, Any]:
    rest = {"tokens": [len(row) for row in request.rows or ()], "truncated": request.cut}
    # As short as float32 allows: through float64, 0.1 would read 0.10000000149011612.
    rows = [[float(str(number)) for number in row] for row in scores]
    if not np.isfinite(scores).all():
        raise ArithmeticError("The model's scores hold numbers that are none (NaN or infinite).")
    if not request.ranked:
        return {"scores": [row[0] if len(row) == 1 else row for row in rows], **rest}
    order = sorted(range(len(rows)), key=lambda place: -rows[place][0])[: option.top_k]
    results = [
        {
            "index": place,
            "score": rows[place][0],
            **({"document": request.pairs[place][1]} if option.return_documents else {}),
        }
        for place in order
    ]
    return {"results": results, **rest}


def _shortest(tokenizer: Any) -> int:
    """The fewest tokens that leave room for one of each text beside the special ones."""
    return int(tokenizer.num_special_tokens_to_add(pair=True)) + 2


def _check_settings(settings: dict[str, Any]) -> None:
    where = "code/settings.json: "
    if settings["activation"] is not None:
        check_choice(where + "activation", settings["activation"], tuple(ACTIVATIONS))
    for name in ("prompt", "prompt_name"):
        if settings[name] is not None:
            check_text(where + name, settings[name])
    check_choice(where + "dtype", settings["dtype"], tuple(DTYPES))
    check_flag(where + "truncate", settings["truncate"])
    check_flag(where + "return_documents", settings["return_documents"])
    check_integer(where + "max_inputs", settings["max_inputs"], 1, 100_000)
    check_integer(where + "batch_tokens", settings["batch_tokens"], 1, 10**9)
