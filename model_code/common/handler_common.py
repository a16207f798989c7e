"""What every handler here needs: reading requests and settings, checking values, loading.

Packaging lays the modules of this folder that a handler imports beside its inference.py, so an archive stands alone.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

try:  # Ten times faster than json on long lists of numbers. The Hugging Face images do not carry it.
    import orjson
except ImportError:
    orjson = None

JSON = "application/json"
NPY = "application/x-npy"
TEXT = "text/plain"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Request:
    """One request: its texts, its parameters and, once they are known, the tokens of its texts."""

    texts: list[str]
    single: bool
    parameters: dict[str, Any]
    tokens: list[list[int]] | None = field(default=None, repr=False)
    types: list[list[int]] | None = field(default=None, repr=False)  # of the tokens, where they differ
    prefix: str = field(default="", repr=False)  # what is read before each text
    lower: bool = field(default=False, repr=False)  # whether texts are read in lower case

    def read(self, place: int) -> str:
        """A text as the tokenizer is to read it."""
        text = self.prefix + self.texts[place]
        return text.lower() if self.lower else text


def read_request(data: Any, content_type: str | None, known: tuple[str, ...], fields: tuple[str, ...] = ()) -> Request:
    """One request's body, with parameters out of `known`; those in `fields` may stand beside "inputs" too. Raises
    ValueError with what is wrong with it."""
    body = read_body(data, content_type)
    if content_type is not None and content_type.partition(";")[0].strip().lower() == TEXT:
        return Request([body], True, {})
    if not isinstance(body, dict):
        body = {"inputs": body}
    for name in body:
        if name not in ("inputs", "parameters", *fields):
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
    beside = {name: body[name] for name in fields if name in body}
    parameters = {name: value for name, value in {**parameters, **beside}.items() if value is not None}
    single = isinstance(body["inputs"], str)
    texts = [body["inputs"]] if single else body["inputs"]
    if not isinstance(texts, list):
        raise ValueError(f'"inputs" must be a text or a list of texts, not {_kind(texts)}.')
    if not texts:
        raise ValueError('"inputs" is an empty list.')
    return Request(texts_of("inputs", texts), single, parameters)


def read_body(data: Any, content_type: str | None) -> Any:
    """What a body holds: the value of its JSON, or its text. Raises ValueError with what is wrong with it."""
    kind, _, rest = (content_type or JSON).partition(";")
    kind = kind.strip().lower()
    if kind not in (JSON, TEXT):
        raise ValueError(f"Content type {kind!r} is not supported. Send {JSON} or {TEXT}.")
    text = _body_text(data, rest)
    if kind == TEXT:
        return text
    try:
        return _JSON.decode(text)
    except RecursionError:
        raise ValueError("The body is JSON nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"The body is not valid JSON: {error}.") from None


def read_object(data: Any, content_type: str | None, fields: tuple[str, ...]) -> dict[str, Any]:
    """A body that is a JSON object with some of these fields. Raises ValueError with what is wrong with it."""
    body = read_body(data, content_type)
    if not isinstance(body, dict):
        raise ValueError(f"The body must be a JSON object, not {_kind(body)}.")
    for name in body:
        if name not in fields:
            raise ValueError(f"Unknown field {name!r}. Known: {', '.join(fields)}.")
    return body


def texts_of(name: str, items: list[Any]) -> list[str]:
    """The items, all of which must be texts. Raises ValueError where one is not."""
    for place, item in enumerate(items):
        if not isinstance(item, str):
            raise ValueError(f'"{name}" must hold texts; {name}[{place}] is {_kind(item)}.')
        # JSON can spell half of a surrogate pair, which is no text in any encoding: tokenizers fail on it.
        if not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
            raise ValueError(f"{name}[{place}] holds half of a surrogate pair (\\ud800 to \\udfff), which is not text.")
    return items


def _body_text(data: Any, content_type_parameters: str) -> str:
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    charset = "utf-8"
    for parameter in content_type_parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip("\"'").lower().replace("_", "-")
    if charset not in ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1"):
        raise ValueError(f"The charset {charset!r} is not supported. Send UTF-8.")
    try:
        return bytes(data).decode("utf-8-sig" if charset in ("utf-8", "utf8") else charset)
    except UnicodeDecodeError as error:
        raise ValueError(f"The body is not valid {charset}: {error.reason} at byte {error.start}.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"The body is not valid JSON: {name} is not a JSON number.")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "null")


def name_of(request: Request, place: int) -> str:
    return "inputs" if request.single else f"inputs[{place}]"


def negotiate(accept: str | None, offered: tuple[str, ...]) -> str:
    """The media type of the answer: the offered one with the highest weight in `accept` (RFC 9110, 12.5.1); among
    equals the one that it names first, and for a range such as */* the one that is offered first."""
    if accept in offered:
        return accept
    ranges = []  # (type, weight), in the header's order
    for part in (accept or "").lower().split(","):
        kind, *parameters = [word.strip() for word in part.split(";")]
        if kind:
            ranges.append((kind, _weight(parameters)))
    ranges = ranges or [("*/*", 1.0)]
    best = None
    for place, kind in enumerate(offered):
        # The most specific range that holds it gives its weight.
        for name in (kind, kind.partition("/")[0] + "/*", "*/*"):
            at = next((number for number, (wanted, _) in enumerate(ranges) if wanted == name), None)
            if at is not None:
                if ranges[at][1] > 0:
                    best = max(best or (0.0, 0, 0), (ranges[at][1], -at, -place))
                break
    if best is None:
        raise ValueError(f"Accept {accept!r} cannot be answered. Ask for {' or '.join(offered)}.")
    return offered[-best[2]]


def _weight(parameters: list[str]) -> float:
    text = next((text[2:] for text in parameters if text.startswith("q=")), "1")
    try:
        return float(text)
    except ValueError:
        return 1.0


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}.")


def check_integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")


def check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} must be a text, not {value!r}.")


def check_number(name: str, value: Any, low: float, high: float, above: bool = False) -> None:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not sound or (above and value == low):
        raise ValueError(f"{name} must be a number {'above' if above else 'from'} {low:g} to {high:g}, not {value!r}.")


def check_quantize(settings: dict[str, Any], device: torch.device) -> None:
    where = "code/settings.json: "
    if settings["quantize"] is None:
        return
    check_choice(where + "quantize", settings["quantize"], ("int8",))
    if settings["dtype"] != "float32":
        raise ValueError(f"{where}quantize needs dtype float32, not {settings['dtype']}. Leave one of the two out.")
    if device.type != "cpu":
        raise ValueError(f'{where}quantize is for the CPU, and this model goes to a GPU. Use dtype "bfloat16" there.')


def read_json(path: Path) -> Any:
    """What the JSON file holds, or None where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None


def loading_options(dtype: str | None = None) -> dict[str, Any]:
    """For from_pretrained: nothing is fetched, a model's own code runs only where the operator has said so (as the
    toolkit has it), and a model's weights are of this type."""
    trust = os.environ.get("HF_TRUST_REMOTE_CODE", "").lower() in ("1", "on", "t", "true", "y", "yes")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust}
    if dtype is not None:
        # Its name is torch_dtype until transformers 5.
        old = int(transformers.__version__.partition(".")[0]) < 5
        options["torch_dtype" if old else "dtype"] = DTYPES[dtype]
    return options


def load_whole(auto: Any, folder: Path, options: dict[str, Any]) -> Any:
    """The model that the Auto class makes of the folder. Raises ValueError where some of its weights are not there by
    the names that this version of transformers looks for: it would leave them to chance, and answer nonsense."""
    model, report = auto.from_pretrained(str(folder), output_loading_info=True, **options)
    # A pooler is the only part that some checkpoints lack and that no output depends on.
    missing = sorted(name for name in report["missing_keys"] if "pooler." not in name)
    if missing:
        raise ValueError(
            f"transformers {transformers.__version__} finds no weights for {len(missing)} parts of "
            f"{type(model).__name__}, such as {missing[0]}. Another version of it wrote this model."
        )
    return model


def load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(str(folder), **loading_options())
    except ValueError:
        # transformers 5 saves a tokenizer that has no class of its own under a class name that 4 does not know.
        if not (folder / "tokenizer.json").is_file():
            raise
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def device_of(context: Any) -> torch.device:
    """The GPU that the model server gave this worker, else the first one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    properties = getattr(context, "system_properties", None) or {}
    gpu = properties.get("gpu_id")
    return torch.device("cuda", int(gpu) if gpu is not None and int(gpu) >= 0 else 0)


# Where transformers' own code for fast tokenizers lies: tokenization_utils_base, _fast (4), _tokenizers (5).
_OF_TRANSFORMERS = "transformers.tokenization_utils"
_READING = ("__call__", "_call_one", "_encode_plus", "_batch_encode_plus", "_convert_encoding")
# What says whether two ways of reading texts are the same: special tokens, spaces, accents and no text at all.
_PROBES = ["The house was quiet.", "", " Ünïcode \n東京 \t naïve ", "[MASK] <s> </s> <unk> [SEP] <|endoftext|>"]


def direct(tokenizer: Any, typed: bool = False) -> Any:
    """The tokenizers library's own tokenizer, where transformers adds nothing to what that makes of a text; else None.
    What transformers does around it takes as long again, and a request of one text feels it."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    methods = [getattr(type(tokenizer), name, None) for name in _READING]
    if not all(str(method.__module__).startswith(_OF_TRANSFORMERS) for method in methods if method is not None):
        return None
    reads = tokenizer.backend_tokenizer
    try:
        wanted = tokenizer(_PROBES, return_attention_mask=False, return_token_type_ids=typed, verbose=False)
        made = reads.encode_batch_fast(_PROBES)
    except Exception:  # it cannot read all of this: its users will see when it matters
        return None
    same = [list(ids) for ids in wanted["input_ids"]] == [encoded.ids for encoded in made]
    if same and typed:
        same = [list(types) for types in wanted["token_type_ids"]] == [encoded.type_ids for encoded in made]
    return reads if same else None


def tokenize(requests: list[Request], tokenizer: Any, typed: bool = False, reads: Any = None) -> None:
    """Give every request its tokens, uncut, with one call of the tokenizer for all that have none yet; and, if `typed`,
    their types. `reads` is what `direct` answers for the tokenizer."""
    missing = [request for request in requests if request.tokens is None]
    texts = [request.read(place) for request in missing for place in range(len(request.texts))]
    if not texts:
        return
    if reads is not None:
        if reads.truncation is not None:  # as transformers left it when a text was cut
            reads.no_truncation()
        if reads.padding is not None:
            reads.no_padding()
        made = iter(reads.encode_batch_fast(texts))
        for request in missing:
            own = [next(made) for _ in request.texts]
            request.tokens = [text.ids for text in own]
            request.types = [text.type_ids for text in own] if typed else None
        return
    encoded = tokenizer(texts, return_attention_mask=False, return_token_type_ids=typed, verbose=False)
    ids = iter(encoded["input_ids"])
    types = iter(encoded["token_type_ids"]) if typed else None
    for request in missing:
        request.tokens = [list(next(ids)) for _ in request.texts]
        request.types = [list(next(types)) for _ in request.texts] if types else None


def known_tokens(config: Any, tokenizer: Any) -> int | None:
    """How many tokens a model with this configuration has embeddings for, where its tokenizer has more; else None."""
    known = getattr(config, "vocab_size", None)
    return known if isinstance(known, int) and len(tokenizer) > known else None


def check_known(name: str, ids: list[int], tokenizer: Any, known: int | None) -> None:
    """Raises ValueError for a token that the model has no embedding for: looking it up would fail the whole batch."""
    if known is not None and ids and max(ids) >= known:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise ValueError(
            f"{name} has the token {token!r}, which the model does not know: its tokenizer has more tokens than it has "
            f"embeddings ({known})."
        )


def lower_cased(tokenizer: Any) -> bool:
    """Have the tokenizer read everything in lower case; True where it cannot, and its texts have to be."""
    if not getattr(tokenizer, "is_fast", False):
        return True
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return False


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


def readable_tokens(config: Any, tokenizer: Any, noted: int | None = None) -> tuple[int, int]:
    """How many tokens of a text the model can read, and how many it reads by default. `noted` is sentence-transformers'
    value for the latter, which takes precedence over the tokenizer's."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        positions = None
    elif getattr(config, "model_type", "") in POSITIONS_AFTER_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    # Where nothing is known the tokenizer says 10**30.
    stated = getattr(tokenizer, "model_max_length", None)
    stated = int(stated) if stated is not None and 0 < stated < 10**9 else None
    limits = [limit for limit in (positions, stated) if limit is not None]
    limit = min(limits) if limits else FALLBACK_MAX_LENGTH
    if noted is None:
        return limit, limit
    usual = noted if positions is None else min(noted, positions)
    return max(limit, usual), usual


# Models with an encoder and a decoder of which the encoder alone reads a text (as sentence-transformers has it): those
# with a class for it, and those of which it is a part.
ENCODERS = {
    "longt5": "LongT5EncoderModel",
    "mt5": "MT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
    "t5": "T5EncoderModel",
    "t5gemma": "T5GemmaEncoderModel",
    "umt5": "UMT5EncoderModel",
}
ENCODER_PARTS = frozenset(["blenderbot", "blenderbot-small", "m2m_100", "marian", "pegasus", "pegasus_x", "prophetnet"])


def encoder_of(config: Any) -> tuple[Any, bool]:
    """The class that loads what reads texts in a model with this configuration, and whether that is a part of it."""
    kind = getattr(config, "model_type", "")
    if kind == "t5gemma":
        config.is_encoder_decoder = False
    name = ENCODERS.get(kind, "AutoModel")
    return getattr(transformers, name), kind in ENCODER_PARTS


def read_settings(folder: Path, known: tuple[str, ...]) -> dict[str, Any]:
    """The model's settings, from code/settings.json. Raises ValueError for one that is not `known`."""
    settings = read_json(folder / "code" / "settings.json")
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ValueError("code/settings.json must hold a JSON object.")
    for name in settings:
        if name not in known:
            raise ValueError(f"code/settings.json: unknown setting {name!r}. Known: {', '.join(known)}.")
    return settings
