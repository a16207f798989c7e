"""The parameters of a generation request, with their defaults and bounds."""

from dataclasses import dataclass
from typing import Any

from handler_common import DTYPES, Request, check_choice, check_flag, check_integer, check_number

MAX_SEED = 2**63 - 1
COLDEST = 1e-5  # a temperature below it is greedy: divided by it, numbers would be past what float32 holds
# `stop`: the number of strings and their length, at most. They are searched for after every step, so both cost time.
MAX_STOPS = 16
MAX_STOP_LENGTH = 100

# Every parameter of a request with its default. Any of them can be set for a model in code/settings.json.
PARAMETERS: dict[str, Any] = {
    "max_new_tokens": 64,  # from 1 to the setting max_new_tokens_limit
    "min_new_tokens": 0,
    "do_sample": False,  # true on its own where a request names one of SAMPLING
    "temperature": 1.0,  # 0, and what is below COLDEST, is greedy
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
    "accuracy": None,  # "exact", "close" or "small": chooses the two by the processor, see handler_format.py
    "quantize": None,  # "int8": the linear layers compute in int8. On the CPU, with dtype float32
}


@dataclass(frozen=True)
class Options:
    """The options of one request: the settings, overridden by the request's parameters."""

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
    early_stopping: bool | str  # "never": until no better one can come
    seed: int | None
    stop: tuple[str, ...]
    return_full_text: bool
    truncate: bool


def options_of(request: Request, settings: dict[str, Any]) -> Options:
    """The settings with the request's parameters over them. Raises ValueError for what is out of bounds."""
    asked = request.parameters
    values = {name: settings[name] for name in PARAMETERS} | asked
    if "do_sample" not in asked and any(name in asked for name in SAMPLING):
        values["do_sample"] = True
    _check_parameters("parameters.", values, settings)
    if len(request.texts) > settings["max_inputs"]:
        raise ValueError(
            f"inputs has {len(request.texts)} prompts; at most {settings['max_inputs']} are taken in one request."
        )
    if "min_new_tokens" not in asked:
        values["min_new_tokens"] = min(values["min_new_tokens"], values["max_new_tokens"])
    if values["temperature"] < COLDEST:
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
    for name in FRACTIONS:  # JSON may write 1.0 as 1
        values[name] = float(values[name])
    stop = values.pop("stop")
    return Options(**values, stop=(stop,) if isinstance(stop, str) else tuple(stop))


def check_defaults(where: str, defaults: dict[str, Any]) -> None:
    """Raises ValueError where one of these parameters is out of bounds; those that settings set are left to them."""
    values = {**PARAMETERS, **defaults}
    free = {"max_new_tokens_limit": 1_000_000, "max_return_sequences": 1000, "max_beams": 1000}
    _check_parameters(where, values, free)


def defaults_of(defaults: dict[str, Any], own: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the model's generation_config.json (`defaults`) and its settings (`own`) have them. Raises
    ValueError where the first is past the bounds that the settings give."""
    given = {name: value for name, value in defaults.items() if name not in own}
    if "min_new_tokens" in given:
        given["min_new_tokens"] = min(given["min_new_tokens"], settings["max_new_tokens_limit"])
    values = {name: given.get(name, settings[name]) for name in PARAMETERS}
    _check_parameters("generation_config.json, with what the settings allow: ", values, settings)
    return values


def settings_of(own: dict[str, Any]) -> dict[str, Any]:
    """The model's own settings over the defaults. Raises ValueError for what is out of bounds."""
    where = "code/settings.json: "
    settings = {**PARAMETERS, **LIMITS, **own}
    check_choice(where + "dtype", settings["dtype"], tuple(DTYPES))
    for name, high in (
        ("max_new_tokens_limit", 1_000_000),
        ("max_return_sequences", 1000),
        ("max_beams", 1000),
        ("max_inputs", 100_000),
        ("batch_tokens", 10**9),
    ):
        check_integer(where + name, settings[name], 1, high)
    if "max_new_tokens" not in own:
        settings["max_new_tokens"] = min(settings["max_new_tokens"], settings["max_new_tokens_limit"])
    _check_parameters(where, settings, settings)
    return settings


def _check_parameters(where: str, values: dict[str, Any], limits: dict[str, Any]) -> None:
    check_integer(where + "max_new_tokens", values["max_new_tokens"], 1, limits["max_new_tokens_limit"])
    check_integer(where + "min_new_tokens", values["min_new_tokens"], 0, limits["max_new_tokens_limit"])
    check_integer(where + "num_return_sequences", values["num_return_sequences"], 1, limits["max_return_sequences"])
    check_integer(where + "num_beams", values["num_beams"], 1, limits["max_beams"])
    check_integer(where + "top_k", values["top_k"], 0, 1_000_000)
    check_integer(where + "no_repeat_ngram_size", values["no_repeat_ngram_size"], 0, 1000)
    check_number(where + "temperature", values["temperature"], 0.0, 100.0)
    check_number(where + "min_p", values["min_p"], 0.0, 1.0)
    check_number(where + "top_p", values["top_p"], 0.0, 1.0, above=True)
    check_number(where + "typical_p", values["typical_p"], 0.0, 1.0, above=True)
    check_number(where + "repetition_penalty", values["repetition_penalty"], 0.01, 100.0)
    check_number(where + "length_penalty", values["length_penalty"], -100.0, 100.0)
    for name in ("do_sample", "return_full_text", "truncate"):
        check_flag(where + name, values[name])
    if values["early_stopping"] != "never":
        check_flag(where + "early_stopping", values["early_stopping"])
    if values["seed"] is not None:
        check_integer(where + "seed", values["seed"], 0, MAX_SEED)
    _check_stop(where + "stop", values["stop"])


def _check_stop(name: str, value: Any) -> None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{name} must be a text or a list of texts, none of them empty, not {value!r}.")
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_LENGTH for text in texts):
        raise ValueError(f"{name} may hold {MAX_STOPS} texts of {MAX_STOP_LENGTH} characters each.")
