"""Computes what sentence-transformers computes around a transformer, by the files that it writes beside the model.

`modules.json` lists the modules of a model in the order in which they work (https://sbert.net): a Transformer, a
Pooling, and then any of Dense, LayerNorm, Normalize and Dropout. Both forms of their files are read: that of version 6
("pooling_mode": "cls", "embedding_dimension") and the older one (pooling_mode_cls_token and its like,
"word_embedding_dimension"). A module that is not computed here is an error that names it; it is never skipped.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from handler_common import check_text, read_json
from safetensors.torch import load_file

CONFIG = "config_sentence_transformers.json"
MODULES = "modules.json"
WEIGHTS = "model.safetensors"
# In the order in which vectors of several modes stand side by side where the files have the older form.
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES = tuple(OLD_MODES.values())
# The settings of a Transformer: its file was called after the model's kind for a time.
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Activations, as sentence-transformers makes them by their name alone: without settings.
ACTIVATIONS = {
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
}
# Those that read all numbers of a row together, for the scores of a pair. What they do without settings depends on how
# many dimensions they are given: of vectors of tokens they would mix those of different texts.
ROWS = {"LogSoftmax", "Softmax", "Softmin"}
TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"
MOST_FEATURES = 1 << 16  # of a vector, so that no file makes this allocate more than there is
NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)*")

Step = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Sentence:
    """How a model's texts become vectors. The defaults are those of a folder that has none of these files."""

    path: str = ""  # of the transformer, below the model's folder
    layers: "Layers | None" = None  # what stands in for the last hidden state
    before: tuple[Step, ...] = ()  # on the vectors of tokens
    pooling: tuple[str, ...] | None = None
    include_prompt: bool = True  # whether the prompt's tokens are pooled
    after: tuple[Step, ...] = ()  # on the vectors of texts
    normalize: bool = False  # whether a Normalize is the last of them; it is not in `after`
    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    default_prompt: str | None = None
    dimensions: int | None = None  # how many of a vector's numbers are kept
    max_length: int | None = None  # tokens
    lower_case: bool = False


@dataclass(frozen=True)
class Pairs:
    """How a cross-encoder's pairs become scores. The defaults are those of a folder that has none of these files."""

    activation: Step | None = None  # on the model's numbers; None: the usual one
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None  # tokens
    lower_case: bool = False


@dataclass(frozen=True)
class Layers:
    """The weighted mean of the hidden states of a model, from the layer `start` on."""

    start: int
    weights: torch.Tensor

    def __call__(self, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        chosen = torch.stack([state.float() for state in states[self.start :]])
        return (self.weights.to(chosen.device).view(-1, 1, 1, 1) * chosen).sum(dim=0) / self.weights.sum()


class Normalize(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(values, p=2, dim=-1)


class Dense(torch.nn.Module):
    def __init__(self, config: dict[str, Any], activation: torch.nn.Module) -> None:
        super().__init__()
        into, out = config["in_features"], config["out_features"]
        self.linear = torch.nn.Linear(into, out, bias=config.get("bias", True))
        self.activation_function = activation  # its name in the files, where it has weights
        self.adds = bool(config.get("use_residual", False))
        if self.adds and into != out:
            self.residual = torch.nn.Linear(into, out, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.activation_function(self.linear(values))
        if self.adds:
            answer = answer + (self.residual(values) if hasattr(self, "residual") else values)
        return answer


class LayerNorm(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(size)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.norm(values)
        return answer


def pool(tokens: torch.Tensor, modes: tuple[str, ...], skip: int = 0) -> torch.Tensor:
    """One vector for each text of (texts, tokens, dimensions), all of one length: those of the modes side by side.

    The first `skip` tokens, a prompt's, are left out, and count as positions all the same.
    """
    rows = tokens[:, skip:].float()
    length = rows.shape[1]
    parts = []
    for mode in modes:
        if mode == "cls":
            parts.append(rows[:, 0])
        elif mode == "max":
            parts.append(rows.amax(dim=1))
        elif mode == "mean":
            parts.append(rows.mean(dim=1))
        elif mode == "mean_sqrt_len_tokens":
            parts.append(rows.sum(dim=1) / length**0.5)
        elif mode == "weightedmean":
            weights = torch.arange(skip + 1, skip + length + 1, device=rows.device, dtype=rows.dtype)
            parts.append((rows * weights[:, None]).sum(dim=1) / weights.sum())
        else:
            parts.append(rows[:, -1])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def prompt(sentence: Sentence | Pairs, text: str | None, name: str | None) -> str:
    """The prompt that is put before a text: `text` itself, else the model's prompt called `name`, else its default.
    Raises ValueError."""
    if text is not None:
        check_text("prompt", text)
        return text
    if name is None:
        name = sentence.default_prompt
    if name is None:
        return ""
    if name not in sentence.prompts:
        raise ValueError(f"This model has no prompt called {name!r}. It has: {', '.join(sentence.prompts) or 'none'}.")
    return sentence.prompts[name]


# --- from files ------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Sentence:
    """The modules in the model's folder. Raises ValueError for those that are not computed here, and for broken files.

    The modules' weights are loaded, as float32."""
    listed = read_json(folder / MODULES)
    if listed is None:
        pooling = _object(folder / "1_Pooling" / "config.json")
        return _noted(folder, folder, **(_pooling("1_Pooling", pooling) if pooling is not None else {}))
    modules = [_entry(item) for item in listed] if isinstance(listed, list) else []
    if not modules or modules[0][0] != "Transformer":
        raise _not_computed(f"its first module is {modules[0][0] if modules else 'missing'}, not a Transformer")
    fields: dict[str, Any] = {"path": modules[0][1]}
    before: list[Step] = []
    after: list[Step] = []
    for kind, path in modules[1:]:
        config = _object(folder / path / "config.json") or {}
        if kind == "Dropout":
            continue  # it does nothing but in training
        if kind == "WeightedLayerPooling" and not before and "pooling" not in fields:
            fields |= _layers(folder, path, config)
        elif kind == "Pooling" and "pooling" not in fields:
            fields |= _pooling(path, config)
        elif kind not in ("Dense", "LayerNorm", "Normalize"):
            raise _not_computed(f"{path} is a {kind}, where it stands")
        else:
            target = before if _reads(path, config, kind) == TOKENS else after
            if (target is before) == ("pooling" in fields):
                raise _not_computed(f"{path} ({kind}) reads what is not there at its place")
            target.append(_step(kind, folder / path, path, config))
    if "pooling" not in fields:
        raise _not_computed("there is no Pooling among its modules")
    while after and isinstance(after[-1], Normalize):
        after.pop()
        fields["normalize"] = True
    return _noted(folder, folder / modules[0][1], before=tuple(before), after=tuple(after), **fields)


def read_pairs(folder: Path) -> Pairs:
    """The same for a cross-encoder."""
    listed = read_json(folder / MODULES)
    modules = [_entry(item) for item in listed] if isinstance(listed, list) else [("Transformer", "")]
    if modules != [("Transformer", "")]:
        names = ", ".join(kind for kind, _ in modules)
        raise ValueError(f"{MODULES}: {names} is not computed here: a cross-encoder is one Transformer.")
    config = _object(folder / CONFIG) or {}
    kind = config.get("model_type", "CrossEncoder")
    if kind != "CrossEncoder":
        raise ValueError(f"{CONFIG}: this is a {kind}, which does not score pairs of texts.")
    model = _object(folder / "config.json") or {}
    newer = (model.get("sentence_transformers") or {}).get("activation_fn")
    stated = config.get("activation_fn") or newer or model.get("sbert_ce_default_activation_function")
    prompts, default = _prompts(config)
    return Pairs(
        None if stated is None else _activation("The model's configuration", str(stated), True),
        prompts,
        default,
        **read_as(folder, "sequence-classification", "logits"),
    )


def _entry(item: Any) -> tuple[str, str]:
    """A module's kind and its path."""
    kind, path = (str(item.get(key, "")) for key in ("type", "path")) if isinstance(item, dict) else ("", "")
    if path and (not NAME.fullmatch(path) or ".." in path.split("/")):
        raise ValueError(f"{MODULES}: {path!r} is not the path of a module.")
    if not kind.startswith("sentence_transformers."):
        raise _not_computed(f"{kind or 'what has no type'} is a module of its own")
    return kind.rpartition(".")[2], path


def _not_computed(what: str) -> ValueError:
    return ValueError(
        f"{MODULES}: {what}. This handler computes Transformer, Pooling, Dense, LayerNorm, Normalize, Dropout and "
        "WeightedLayerPooling."
    )


def _object(path: Path) -> dict[str, Any] | None:
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return value


def _reads(path: str, config: dict[str, Any], kind: str) -> str:
    """What the module reads, and writes again."""
    reads = config.get("module_input_name", SENTENCE)
    writes = config.get("module_output_name")
    writes = reads if writes is None else writes
    if reads != writes or reads not in (TOKENS, SENTENCE):
        raise _not_computed(f"{path} ({kind}) reads {reads} and writes {writes}")
    return str(reads)


def _pooling(path: str, config: dict[str, Any]) -> dict[str, Any]:
    stated = config.get("pooling_mode")
    modes = [mode for old, mode in OLD_MODES.items() if config.get(old)] if stated is None else stated
    modes = (modes,) if isinstance(modes, str) else tuple(modes) or ("mean",)
    for mode in modes:
        if mode not in MODES:
            raise _not_computed(f"{path} pools by {mode!r}")
    for name, on in config.items():
        if name.startswith("pooling_mode_") and name not in OLD_MODES and on:
            raise _not_computed(f"{path} pools by {name!r}")
    return {"pooling": modes, "include_prompt": bool(config.get("include_prompt", True))}


def _layers(folder: Path, path: str, config: dict[str, Any]) -> dict[str, Any]:
    if not (_object(folder / "config.json") or {}).get("output_hidden_states"):
        return {}  # as sentence-transformers has it: without these states, the module does nothing
    weights = _load(folder / path, path)["layer_weights"].float()
    return {"layers": Layers(int(config.get("layer_start", 4)), weights)}


def _step(kind: str, folder: Path, path: str, config: dict[str, Any]) -> Step:
    if kind == "Normalize":
        return Normalize()
    for name in ("in_features", "out_features") if kind == "Dense" else ("dimension",):
        size = config.get(name)
        if type(size) is not int or not 0 < size <= MOST_FEATURES:
            raise ValueError(
                f"{path}/config.json: {name} must be a whole number from 1 to {MOST_FEATURES}, not {size!r}."
            )
    if kind == "Dense":
        stated = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        module: torch.nn.Module = Dense(config, _activation(f"{MODULES}: {path}", stated, False))
    else:
        module = LayerNorm(config["dimension"])
    try:
        module.load_state_dict({name: held.float() for name, held in _load(folder, path).items()})
    except RuntimeError as error:
        raise ValueError(f"{path}/{WEIGHTS} does not fit its config.json: {str(error).splitlines()[-1]}") from None
    return module.eval().requires_grad_(False)


def _activation(where: str, name: str, of_scores: bool) -> torch.nn.Module:
    """The activation of this name; `of_scores` where it reads a row of scores for each pair."""
    kind = name.rpartition(".")[2]
    if name.startswith("torch.nn.") and kind in ROWS and of_scores:
        rows: torch.nn.Module = getattr(torch.nn, kind)(dim=1)
        return rows
    if not name.startswith("torch.nn.") or kind not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS | ROWS if of_scores else ACTIVATIONS))
        raise ValueError(
            f"{where} has the activation {name}, which is not computed here. Those of torch.nn are: {known}."
        )
    activation: torch.nn.Module = getattr(torch.nn, kind)()
    return activation.eval().requires_grad_(False)


def _load(folder: Path, path: str) -> dict[str, torch.Tensor]:
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{path} has no {WEIGHTS}.")
    return load_file(folder / WEIGHTS)


def _noted(folder: Path, transformer: Path, **fields: Any) -> Sentence:
    """With the settings of the whole model: prompts, dimensions, and how its texts are read."""
    config = _object(folder / CONFIG) or {}
    prompts, default = _prompts(config, "query", "document")
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ValueError(f"{CONFIG}: this is a {kind}, which does not give one vector for a text.")
    dimensions = config.get("truncate_dim")
    return Sentence(
        **fields,
        **read_as(transformer, "feature-extraction", "last_hidden_state"),
        prompts=prompts,
        default_prompt=default,
        dimensions=dimensions if isinstance(dimensions, int) else None,
    )


def _prompts(config: dict[str, Any], *usual: str) -> tuple[dict[str, str], str | None]:
    """The prompts by their names, and the name of the default one. The `usual` ones are empty where nothing is said."""
    stated = config.get("prompts") or {}
    if not isinstance(stated, dict) or not all(text is None or isinstance(text, str) for text in stated.values()):
        raise ValueError(f"{CONFIG}: prompts must be an object of texts, not {str(stated)[:100]}.")
    prompts = {**dict.fromkeys(usual, ""), **{name: text or "" for name, text in stated.items()}}
    default = config.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise ValueError(f"{CONFIG}: default_prompt_name is {default!r}, and prompts has {', '.join(prompts)}.")
    return prompts, default


def read_as(folder: Path, task: str, output: str) -> dict[str, Any]:
    """How a Transformer reads texts: `max_length` and `lower_case`. Raises ValueError where it is not for `task`, or
    has other settings than these."""
    for name in TRANSFORMER_FILES:
        config = _object(folder / name)
        if config is not None:
            break
    else:
        return {}
    stated = config.get("transformer_task", task)
    ways = config.get("modality_config") or {"text": {"method": "forward", "method_output_name": output}}
    text = ways.get("text") or {}
    if (
        stated != task
        or "message" in ways
        or (text.get("method"), text.get("method_output_name"))
        != (
            "forward",
            output,
        )
    ):
        raise ValueError(f"{name}: a Transformer for {stated}, with {ways}, is not computed here.")
    unknown = {
        f"{key}.{option}": value
        for key in ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
        for option, value in (config.get(key) or {}).items()
        if option not in HARMLESS
    }
    length = config.get("max_seq_length")
    for key in ("tokenizer_args.model_max_length", "processor_kwargs.model_max_length"):
        length = unknown.pop(key, length)
    if config.get("processing_kwargs"):
        unknown["processing_kwargs"] = config["processing_kwargs"]
    if unknown:
        raise ValueError(f"{name}: {', '.join(sorted(unknown))} would change the answers, and is not applied here.")
    return {
        "max_length": length if isinstance(length, int) else None,
        "lower_case": bool(config.get("do_lower_case", False)),
    }


# How a model is loaded, not what it answers.
HARMLESS = {
    "attn_implementation",
    "backend",
    "cache_dir",
    "device_map",
    "dtype",
    "file_name",
    "local_files_only",
    "low_cpu_mem_usage",
    "revision",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_fast",
    "use_safetensors",
}
