"""Text generation from any transformers decoder (GPT-2, Llama, Mistral, Qwen, ...).

Runs unchanged in the Hugging Face inference containers (sagemaker-huggingface-inference-toolkit on multi-model-server)
and in `mme.container`. It needs torch and transformers (4.49 to 5.x), and nothing else from this project.

Request: text/plain (one prompt), or application/json: "prompt", ["prompt", ...] or
{"inputs": "prompt" or [...], "parameters": {"max_new_tokens": 20, ...}}; PARAMETERS below lists them all.
Answer, in the shape of transformers' own text-generation pipeline: for one prompt
[{"generated_text": ..., "finish_reason": ..., "prompt_tokens": ..., "generated_tokens": ..., "truncated": ...}]
with one entry per returned sequence; for a list of prompts, a list of such lists.

Defaults come from `code/settings.json` in the model's folder (any parameter by its name, and LIMITS), then from here.
What the model's generation_config.json says of sampling is not used: the same request gives the same text whichever
model version wrote that file.

Decoding is done here rather than by `generate`, for one reason: requests with different parameters, lengths and seeds
share one forward pass per token, and each still gets what it would have got alone. For one request the tokens are
those that `generate` picks. Beam search, and models whose cache cannot be cut by rows, are left to `generate`.
"""

import inspect
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

try:  # Faster than json. The Hugging Face images do not carry it.
    import orjson
except ImportError:
    orjson = None

JSON = "application/json"
TEXT = "text/plain"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Used where the model's configuration does not say how long its context is.
FALLBACK_CONTEXT = 2048
MAX_SEED = 2**63 - 1
# `stop`: so many strings, each so long. The last tokens are searched after every step, so both cost time.
MAX_STOPS = 16
MAX_STOP_LENGTH = 100

# Every parameter of a request with its default. Any of them can be set for a model in code/settings.json.
PARAMETERS: dict[str, Any] = {
    "max_new_tokens": 64,  # from 1 to the setting max_new_tokens_limit
    "min_new_tokens": 0,
    "do_sample": False,  # true on its own where a request names one of SAMPLING
    "temperature": 1.0,  # 0 is greedy
    "top_k": 50,  # 0: all tokens
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "num_beams": 1,
    "length_penalty": 1.0,  # with beams
    "early_stopping": False,  # with beams
    "seed": None,  # the same seed gives the same text; sequence n of a prompt is drawn with seed + n
    "stop": [],  # texts that end the generation; they are not part of what is returned
    "return_full_text": False,  # true: the prompt first
    "truncate": False,  # true: of a prompt that is too long, its end is read; false: it is an error
}
FRACTIONS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
LIMITS: dict[str, Any] = {
    "max_new_tokens_limit": 512,
    "max_return_sequences": 8,
    "max_beams": 8,
    "max_inputs": 32,  # prompts in one request
    "batch_tokens": 8192,  # kept in the cache at once, prompts and new tokens and padding: it bounds the memory
    "dtype": "float32",  # of the weights: float32, bfloat16 or float16
}


@dataclass
class Request:
    """One request: its prompts, what it asks for and, once they are known, the prompts' tokens."""

    texts: list[str]
    single: bool
    parameters: dict[str, Any]
    tokens: list[list[int]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Options:
    """What holds for one request: the settings with the request's parameters over them."""

    max_new_tokens: int
    min_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    num_return_sequences: int
    num_beams: int
    length_penalty: float
    early_stopping: bool
    seed: int | None
    stop: tuple[str, ...]
    return_full_text: bool
    truncate: bool


@dataclass(frozen=True)
class Generator:
    """A loaded model with all that serving it needs."""

    model: Any
    tokenizer: Any
    device: torch.device
    settings: dict[str, Any]
    context: int  # tokens, prompt and new ones together
    end_tokens: frozenset[int]
    arguments: frozenset[str]  # of the model's forward method


@dataclass
class Prompt:
    """One prompt of one request, ready to be read."""

    text: str
    tokens: list[int]
    truncated: bool
    options: Options
    limit: int  # new tokens that fit
    sequences: list["Sequence"] = field(default_factory=list)


@dataclass
class Sequence:
    """One continuation of a prompt while it grows."""

    prompt: Prompt
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""


# --- The four functions that the toolkit calls -----------------------------------------------------------------------


def model_fn(model_dir: str, context: Any = None) -> Generator:
    """Load the model in `model_dir`. Raises ValueError for settings that make no sense."""
    folder = Path(model_dir)
    settings = {**PARAMETERS, **LIMITS, **_read_settings(folder)}
    _check_settings(settings)
    tokenizer = _load_tokenizer(folder)
    dtype = DTYPES[settings["dtype"]]
    model = AutoModelForCausalLM.from_pretrained(model_dir, local_files_only=True, **{_dtype_keyword(): dtype})
    device = _device(context)
    model.to(device).eval().requires_grad_(False)
    return Generator(
        model=model,
        tokenizer=tokenizer,
        device=device,
        settings=settings,
        context=_context_length(model.config),
        end_tokens=_end_tokens(model, tokenizer),
        arguments=frozenset(inspect.signature(model.forward).parameters),
    )


def input_fn(data: Any, content_type: str | None) -> Request:
    """Read one request's body. Raises ValueError with what is wrong with it."""
    return Request(*_read_request(data, content_type, tuple(PARAMETERS)))


def predict_fn(data: Request, model: Generator) -> list[Any]:
    """Continue one request's prompts. Raises ValueError where the request cannot be answered."""
    result = batch_fn([data], model)[0]
    if isinstance(result, Exception):
        raise result
    answer: list[Any] = result
    return answer


def output_fn(prediction: list[Any], accept: str | None) -> bytes:
    """Write the answer as JSON."""
    _negotiate(accept, (JSON,))
    if orjson is not None:
        return orjson.dumps(prediction)
    return json.dumps(prediction, ensure_ascii=False, separators=(",", ":")).encode()


# --- The hooks with which a server batches concurrent requests -------------------------------------------------------


def tokens_fn(data: Request, model: Generator) -> int:
    """How many tokens the request costs: its prompts' and the new ones that it may bring, for every sequence. The
    tokens are kept in `data`, so they are counted only once."""
    try:
        option = _options(data, model)
    except ValueError:
        return 1  # batch_fn will refuse it
    _tokenize([data], model)
    width = max(option.num_return_sequences, option.num_beams)
    return sum(min(len(ids) + option.max_new_tokens, model.context) for ids in data.tokens or ()) * width


def batch_fn(inputs: list[Request], model: Generator) -> list[Any]:
    """Continue many requests together: for each, in order, what predict_fn would return, or the exception that it would
    raise. Parameters may differ from one request to the next."""
    results: list[Any] = [None] * len(inputs)
    options: list[Options | None] = [None] * len(inputs)
    for index, request in enumerate(inputs):
        try:
            options[index] = _options(request, model)
        except ValueError as error:
            results[index] = error
    _tokenize([request for request, option in zip(inputs, options, strict=True) if option], model)

    prompts: dict[int, list[Prompt]] = {}
    for index, (request, option) in enumerate(zip(inputs, options, strict=True)):
        if option is not None:
            try:
                prompts[index] = _prompts(request, option, model)
            except ValueError as error:
                results[index] = error

    everything = [prompt for group in prompts.values() for prompt in group]
    with torch.inference_mode():
        for batch in _batches([prompt for prompt in everything if _is_ours(prompt, model)], model):
            _decode(batch, model)
        for prompt in everything:
            if not prompt.sequences:
                _generate(prompt, model)
    for index, group in prompts.items():
        answers = [[_answer(sequence, model) for sequence in prompt.sequences] for prompt in group]
        results[index] = answers[0] if inputs[index].single else answers
    return results


# --- Decoding --------------------------------------------------------------------------------------------------------


def _is_ours(prompt: Prompt, model: Generator) -> bool:
    return prompt.options.num_beams == 1 and "past_key_values" in model.arguments


def _batches(prompts: list[Prompt], model: Generator) -> list[list[Prompt]]:
    """Split the prompts into batches that keep within batch_tokens. Those of like length go together, because all are
    padded to the longest."""
    batches: list[list[Prompt]] = []
    rows = tokens = 0
    for prompt in sorted(prompts, key=lambda prompt: len(prompt.tokens)):
        width = prompt.options.num_return_sequences
        longest = max(tokens, len(prompt.tokens) + prompt.limit)
        if batches and (rows + width) * longest <= model.settings["batch_tokens"]:
            batches[-1].append(prompt)
            rows, tokens = rows + width, longest
        else:
            batches.append([prompt])
            rows, tokens = width, len(prompt.tokens) + prompt.limit
    return batches


def _decode(prompts: list[Prompt], model: Generator) -> None:
    """Grow every sequence of every prompt to its end, all of them in one forward pass per token. The prompts of a model
    whose cache cannot be cut by rows are left without sequences."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        # On the left, so that the last column is every prompt's last token.
        ids[row, longest - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, longest - len(prompt.tokens) :] = 1
    mask = mask.to(model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits, cache = _forward(ids.to(model.device), mask, positions, None, model)
    if not _can_select(cache):
        return  # without sequences, so that `generate` makes them

    live: list[Sequence] = []
    rows: list[int] = []
    for row, prompt in enumerate(prompts):
        prompt.sequences = [
            Sequence(prompt, _random(prompt, n, model)) for n in range(prompt.options.num_return_sequences)
        ]
        live.extend(prompt.sequences)
        rows.extend([row] * len(prompt.sequences))
    kept = list(range(len(prompts)))
    positions = positions[:, -1:]
    while True:
        if rows != kept:  # sequences of one prompt part here, and those that are done leave
            chosen = torch.tensor(rows, device=model.device)
            logits, mask, positions = logits[chosen], mask[chosen], positions[chosen]
            cache = _select(cache, chosen)
        tokens = _next_tokens(live, logits, model)
        rows = [
            row for row, (sequence, token) in enumerate(zip(live, tokens, strict=True)) if _grow(sequence, token, model)
        ]
        if not rows:
            return
        if len(rows) < len(live):
            chosen = torch.tensor(rows, device=model.device)
            mask, positions, cache = mask[chosen], positions[chosen], _select(cache, chosen)
            live = [live[row] for row in rows]
            tokens = [tokens[row] for row in rows]
        rows = kept = list(range(len(live)))
        mask = torch.cat([mask, mask.new_ones((len(live), 1))], dim=1)
        positions = positions + 1
        fed = torch.tensor(tokens, device=model.device)[:, None]
        logits, cache = _forward(fed, mask, positions, cache, model)


def _forward(
    ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any, model: Generator
) -> tuple[torch.Tensor, Any]:
    """The last column's logits, in float32, and the cache with these tokens in it."""
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if "position_ids" in model.arguments:
        arguments["position_ids"] = positions
    for name in ("logits_to_keep", "num_logits_to_keep"):  # the second is the name up to transformers 4.49
        if name in model.arguments:
            arguments[name] = 1
            break
    output = model.model(**arguments)
    return output.logits[:, -1, :].float(), output.past_key_values


def _can_select(cache: Any) -> bool:
    return isinstance(cache, tuple) or hasattr(cache, "batch_select_indices")


def _select(cache: Any, rows: torch.Tensor) -> Any:
    """The cache of these rows alone; a row may be taken more than once."""
    if isinstance(cache, tuple):  # GPT-2 and others up to transformers 4.49
        return tuple(tuple(tensor.index_select(0, rows) for tensor in layer) for layer in cache)
    cache.batch_select_indices(rows)
    return cache


def _random(prompt: Prompt, number: int, model: Generator) -> torch.Generator | None:
    if not prompt.options.do_sample:
        return None
    generator = torch.Generator(device=model.device)
    if prompt.options.seed is None:
        generator.seed()
    else:
        generator.manual_seed((prompt.options.seed + number) & MAX_SEED)
    return generator


def _next_tokens(live: list[Sequence], logits: torch.Tensor, model: Generator) -> list[int]:
    for row, sequence in enumerate(live):
        processors = _processors(sequence.prompt.options)
        if processors:
            seen = torch.tensor([sequence.prompt.tokens + sequence.tokens], device=logits.device)
            logits[row] = processors(seen, logits[row : row + 1])[0]
        if len(sequence.tokens) < sequence.prompt.options.min_new_tokens:
            logits[row, list(model.end_tokens)] = -math.inf
    tokens: list[int] = logits.argmax(dim=1).tolist()
    # Rows that are sampled with the same numbers are filtered together; each draws from a generator of its own.
    alike: dict[tuple[float, ...], list[int]] = {}
    for row, sequence in enumerate(live):
        if sequence.generator is not None:
            o = sequence.prompt.options
            alike.setdefault((o.temperature, o.top_k, o.top_p, o.min_p, o.typical_p), []).append(row)
    for rows in alike.values():
        warped = _warpers(live[rows[0]].prompt.options)(None, logits[rows])
        for probabilities, row in zip(warped.softmax(dim=-1), rows, strict=True):
            tokens[row] = int(torch.multinomial(probabilities, 1, generator=live[row].generator))
    return tokens


def _processors(o: Options) -> LogitsProcessorList:
    """What depends on the tokens so far. In the order in which `generate` applies them, here and below."""
    chain = LogitsProcessorList()
    if o.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(o.repetition_penalty))
    if o.no_repeat_ngram_size > 0:
        chain.append(NoRepeatNGramLogitsProcessor(o.no_repeat_ngram_size))
    return chain


def _warpers(o: Options) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if o.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(o.temperature))
    if o.top_k > 0:
        chain.append(TopKLogitsWarper(o.top_k))
    if o.top_p < 1.0:
        chain.append(TopPLogitsWarper(o.top_p))
    if o.min_p > 0.0:
        chain.append(MinPLogitsWarper(o.min_p))
    if o.typical_p < 1.0:
        chain.append(TypicalLogitsWarper(o.typical_p))
    return chain


def _grow(sequence: Sequence, token: int, model: Generator) -> bool:
    """Add the token. False when the sequence is done, and then it says why."""
    if token in model.end_tokens:
        sequence.finish_reason = "eos_token"
        return False
    sequence.tokens.append(token)
    stop = sequence.prompt.options.stop
    if stop:
        # A token is at least one byte and a character at most four, so a stop text lies within so many last tokens.
        tail = sequence.tokens[-4 * max(map(len, stop)) - 1 :]
        text = _text(tail, model)
        if any(wanted in text for wanted in stop):
            sequence.finish_reason = "stop_sequence"
            return False
    if len(sequence.tokens) >= sequence.prompt.limit:
        sequence.finish_reason = "length"
        return False
    return True


def _generate(prompt: Prompt, model: Generator) -> None:
    """Grow one prompt's sequences with `generate`."""
    o = prompt.options
    ids = torch.tensor([prompt.tokens], device=model.device)
    arguments: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": prompt.limit,
        "min_new_tokens": min(o.min_new_tokens, prompt.limit),
        "do_sample": o.do_sample,
        "num_beams": o.num_beams,
        "num_return_sequences": o.num_return_sequences,
        "repetition_penalty": o.repetition_penalty,
        "no_repeat_ngram_size": o.no_repeat_ngram_size,
        "pad_token_id": min(model.end_tokens, default=0),
    }
    if o.num_beams > 1:
        arguments |= {"length_penalty": o.length_penalty, "early_stopping": o.early_stopping}
    if o.do_sample:
        arguments |= {"temperature": o.temperature, "top_k": o.top_k, "top_p": o.top_p}
        arguments |= {"min_p": o.min_p or None, "typical_p": o.typical_p}
    if o.stop:
        arguments |= {"stop_strings": list(o.stop), "tokenizer": model.tokenizer}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if o.seed is None:
            torch.seed()
        else:
            torch.manual_seed(o.seed)
        rows = model.model.generate(ids, **arguments)
    prompt.sequences = []
    for row in rows[:, len(prompt.tokens) :].tolist():
        sequence = Sequence(prompt, None)
        prompt.sequences.append(sequence)
        for token in row:
            if not _grow(sequence, token, model):
                break
        sequence.finish_reason = sequence.finish_reason or "length"


# --- From requests to prompts, from tokens to answers ----------------------------------------------------------------


def _options(request: Request, model: Generator) -> Options:
    asked = request.parameters
    values = {name: model.settings[name] for name in PARAMETERS} | asked
    if "do_sample" not in asked and any(name in asked for name in SAMPLING):
        values["do_sample"] = True
    _check_parameters("parameters.", values, model.settings)
    if len(request.texts) > model.settings["max_inputs"]:
        raise ValueError(
            f"inputs has {len(request.texts)} prompts; at most {model.settings['max_inputs']} are taken in one request."
        )
    if values["temperature"] == 0:
        values |= {"do_sample": False, "temperature": 1.0}
    beams, sequences = values["num_beams"], values["num_return_sequences"]
    if beams > 1 and values["do_sample"]:
        raise ValueError("parameters.num_beams: beams are not sampled. Set do_sample to false, or num_beams to 1.")
    if sequences > beams and not values["do_sample"]:
        raise ValueError(
            f"parameters.num_return_sequences is {sequences}, but without sampling they would all be the same. "
            "Set do_sample to true, or num_beams to as many."
        )
    if values["min_new_tokens"] > values["max_new_tokens"]:
        raise ValueError("parameters.min_new_tokens is more than max_new_tokens.")
    for name in FRACTIONS:  # JSON writes 1.0 as 1 where it likes
        values[name] = float(values[name])
    stop = values.pop("stop")
    return Options(**values, stop=(stop,) if isinstance(stop, str) else tuple(stop))


def _tokenize(requests: list[Request], model: Generator) -> None:
    """Give every request its tokens, whole, with one call of the tokenizer for all that have none yet."""
    missing = [request for request in requests if request.tokens is None]
    texts = [text for request in missing for text in request.texts]
    if not texts:
        return
    encoded = iter(model.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"])
    for request in missing:
        request.tokens = [list(next(encoded)) for _ in request.texts]


def _prompts(request: Request, option: Options, model: Generator) -> list[Prompt]:
    prompts = []
    for place, (text, ids) in enumerate(zip(request.texts, request.tokens or (), strict=True)):
        if not ids:
            # An empty prompt: the model begins a text of its own, where it has a token to begin with.
            start = model.tokenizer.bos_token_id
            if start is None:
                raise ValueError(f"{_name(request, place)} has no tokens, and the model has none to begin with.")
            ids = [start]
        truncated = False
        if len(ids) >= model.context:
            room = model.context - min(option.max_new_tokens, model.context - 1)
            if not option.truncate:
                raise ValueError(
                    f"{_name(request, place)} has {len(ids)} tokens; the model's context is {model.context}, prompt "
                    "and new tokens together. Shorten it, or set parameters.truncate to true to have its end read."
                )
            ids, truncated = ids[-room:], True
        limit = min(option.max_new_tokens, model.context - len(ids))
        prompts.append(Prompt(text, ids, truncated, option, limit))
    return prompts


def _answer(sequence: Sequence, model: Generator) -> dict[str, Any]:
    prompt = sequence.prompt
    # Some tokenizers drop a space at the beginning of what they decode, so the new text is what follows the prompt's.
    before = _text(prompt.tokens, model)
    text = _text(prompt.tokens + sequence.tokens, model)[len(before) :]
    ends = [place for place in (text.find(stop) for stop in prompt.options.stop) if place >= 0]
    text = text[: min(ends)] if ends else text
    return {
        "generated_text": prompt.text + text if prompt.options.return_full_text else text,
        "finish_reason": sequence.finish_reason,
        "prompt_tokens": len(prompt.tokens),
        "generated_tokens": len(sequence.tokens),
        "truncated": prompt.truncated,
    }


def _text(tokens: list[int], model: Generator) -> str:
    text: str = model.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


# --- What the model can do and what its settings say -----------------------------------------------------------------


def _context_length(config: Any) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 1 else FALLBACK_CONTEXT


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    for owner in (model.generation_config, model.config, tokenizer):
        ends = getattr(owner, "eos_token_id", None)
        if ends is not None:
            return frozenset([ends] if isinstance(ends, int) else ends)
    return frozenset()


def _read_settings(folder: Path) -> dict[str, Any]:
    settings = _read_json(folder / "code" / "settings.json")
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ValueError("code/settings.json must hold a JSON object.")
    known = (*PARAMETERS, *LIMITS)
    for name in settings:
        if name not in known:
            raise ValueError(f"code/settings.json: unknown setting {name!r}. Known: {', '.join(known)}.")
    return settings


def _check_settings(settings: dict[str, Any]) -> None:
    where = "code/settings.json: "
    _check_choice(where + "dtype", settings["dtype"], tuple(DTYPES))
    for name, high in (
        ("max_new_tokens_limit", 1_000_000),
        ("max_return_sequences", 1000),
        ("max_beams", 1000),
        ("max_inputs", 100_000),
        ("batch_tokens", 10**9),
    ):
        _check_integer(where + name, settings[name], 1, high)
    _check_parameters(where, settings, settings)


def _check_parameters(where: str, values: dict[str, Any], limits: dict[str, Any]) -> None:
    _check_integer(where + "max_new_tokens", values["max_new_tokens"], 1, limits["max_new_tokens_limit"])
    _check_integer(where + "min_new_tokens", values["min_new_tokens"], 0, limits["max_new_tokens_limit"])
    _check_integer(where + "num_return_sequences", values["num_return_sequences"], 1, limits["max_return_sequences"])
    _check_integer(where + "num_beams", values["num_beams"], 1, limits["max_beams"])
    _check_integer(where + "top_k", values["top_k"], 0, 1_000_000)
    _check_integer(where + "no_repeat_ngram_size", values["no_repeat_ngram_size"], 0, 1000)
    _check_number(where + "temperature", values["temperature"], 0.0, 100.0)
    _check_number(where + "min_p", values["min_p"], 0.0, 1.0)
    _check_number(where + "top_p", values["top_p"], 0.0, 1.0, above=True)
    _check_number(where + "typical_p", values["typical_p"], 0.0, 1.0, above=True)
    _check_number(where + "repetition_penalty", values["repetition_penalty"], 0.0, 100.0, above=True)
    _check_number(where + "length_penalty", values["length_penalty"], -100.0, 100.0)
    for name in ("do_sample", "early_stopping", "return_full_text", "truncate"):
        _check_flag(where + name, values[name])
    if values["seed"] is not None:
        _check_integer(where + "seed", values["seed"], 0, MAX_SEED)
    _check_stop(where + "stop", values["stop"])


def _check_number(name: str, value: Any, low: float, high: float, above: bool = False) -> None:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not sound or (above and value == low):
        raise ValueError(f"{name} must be a number {'above' if above else 'from'} {low:g} to {high:g}, not {value!r}.")


def _check_stop(name: str, value: Any) -> None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{name} must be a text or a list of texts, none of them empty, not {value!r}.")
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_LENGTH for text in texts):
        raise ValueError(f"{name} may hold {MAX_STOPS} texts of {MAX_STOP_LENGTH} characters each.")


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
