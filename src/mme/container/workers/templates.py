"""Tokenizers, configurations and model structures that several models have in common, made once before the fork.

Most of what a small model's process costs is not its weights, which are mapped from their file, but its tokenizer and
the hundreds of Python objects of its layers: 30 MB and 100 ms. Models of one family have the same. So:

- a worker notes each plain ``from_pretrained(folder)`` of its handler as a :class:`Recipe`, with a digest of everything
  in the folder that can matter to the result except the weights' values;
- as soon as two models have a recipe in common, the parent carries it out itself and keeps the result without weights:
  mostly before the second one is loaded, for its files tell what its handler will ask for if it asks as the first did;
- the same holds for the handler's source code, which the parent compiles once (it never runs it);
- a worker forked after that finds the finished object in its memory, maps its own weights into it, and is done.

A result is shared only where it is provably the same: every parameter must be a piece of the weights' file as it lies
there (nothing converted, merged or made up while loading). Everything else is loaded as ever.
"""

from __future__ import annotations

import contextlib
import importlib.machinery as machinery
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

from mme.container.recipes import Recipe, code_key, recipe
from mme.container.workers.shipped import Shipped

# -- in the worker --------------------------------------------------------------------------------------------------


class Templates:
    """What the parent has made, as a worker has it after the fork, and what the worker itself makes."""

    def __init__(self) -> None:
        self.templates: dict[str, Template] = {}
        self.code: dict[str, CodeType] = {}
        self.shipped = Shipped()
        self.noted: list[Recipe] = []
        self.used: list[str] = []  # kinds of recipes whose results the parent had made
        self.root = ""  # the model's folder: in a worker alone
        self._inside = False
        self._unused: dict[str, Template] = {}

    def install(self) -> None:
        """Let transformers' from_pretrained look here first. Done in the parent, once, for all workers."""
        machinery.SourceFileLoader.source_to_code = self._compiling(  # type: ignore[method-assign]
            machinery.SourceFileLoader.source_to_code
        )
        if "transformers" not in sys.modules:
            return
        from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
        from transformers.models.auto import modeling_auto

        models = [PreTrainedModel, *(value for name, value in vars(modeling_auto).items() if name.startswith("Auto"))]
        tokenizers, configurations = [AutoTokenizer, PreTrainedTokenizerBase], [AutoConfig, PretrainedConfig]
        for kind, bases in (("tokenizer", tokenizers), ("config", configurations), ("model", models)):
            for base in bases:
                original = vars(base).get("from_pretrained")
                if original is not None:
                    base.from_pretrained = classmethod(self._wrapped(kind, original.__func__))

    def make(self, plan: dict[str, Any]) -> str | None:
        """Carry out a recipe and store the result. Returns the reason where that is not possible, else None."""
        self._inside = True
        try:
            if plan["kind"] == "code":
                self.code[plan["key"]] = compile(
                    Path(plan["folder"]).read_bytes(), "handler", "exec", dont_inherit=True
                )
            else:
                self.templates[plan["key"]] = carry_out(plan)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self._inside = False
        return None

    def drop(self, key: str) -> None:
        self.templates.pop(key, None)
        self.code.pop(key, None)

    def forget(self) -> None:
        """Forget what was noted."""
        self.noted.clear()
        self.used.clear()

    def close(self) -> None:
        """In a worker: from here on no result is taken. The results for other families stay where they are, in pages
        shared with the parent: freeing them would write to these pages, and so copy them."""
        self._unused, self.templates = self.templates, {}
        self.root = ""

    def _compiling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def source_to_code(loader: Any, data: Any, path: str, **options: Any) -> Any:
            if self._inside or not isinstance(data, bytes) or not self.root or not path.startswith(self.root):
                return original(loader, data, path, **options)
            key = code_key(data)
            self.noted.append(Recipe("code", key, "", {}, path))
            code = self.code.get(key)
            if code is None:
                return original(loader, data, path, **options)
            self.used.append("code")
            return _located(code, path)

        return source_to_code

    def _wrapped(self, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def from_pretrained(cls: type, *arguments: Any, **options: Any) -> Any:
            if self._inside or getattr(sys.modules.get("transformers"), cls.__name__, None) is not cls:
                return original(cls, *arguments, **options)
            self._inside = True
            try:
                plain = {name: value for name, value in options.items() if name != "output_loading_info"}
                recorded = recipe(kind, cls.__name__, arguments, plain)
                # Once for each process: a second call must not get the same object again.
                template = self.templates.pop(recorded.key, None) if recorded else None
                if template is not None and recorded is not None:
                    self.used.append(kind)
                    self.noted.append(recorded)
                    made = template.make(recorded.folder)
                    # A template has a place in the weights for every parameter (``_places``), so none is missing.
                    return (made, dict(NOTHING_MISSING)) if options.get("output_loading_info") else made
                result = original(cls, *arguments, **options)
                if recorded is not None:
                    self.noted.append(recorded)
                return result
            finally:
                self._inside = False

        return from_pretrained


def _located(code: CodeType, path: str) -> CodeType:
    """The code with this file in its tracebacks, the functions inside it too."""
    constants = tuple(_located(item, path) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.replace(co_filename=path, co_consts=constants)


# -- in the parent --------------------------------------------------------------------------------------------------


NOTHING_MISSING: dict[str, list[str]] = {
    name: [] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
}


@dataclass
class Template:
    """A tokenizer, a configuration, or a model whose parameters are empty. ``make`` uses it up."""

    result: Any
    folder: str
    places: list[Place] = field(default_factory=list)

    def make(self, folder: str) -> Any:
        """The finished object for a folder with the same recipe."""
        if self.places:
            _map(self.places, folder)
        _rename(self.result, self.folder, folder)
        return self.result


@dataclass(frozen=True)
class Place:
    """Where a tensor's values lie: in which file, from which element on, in which shape."""

    tensor: Any
    file: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class NotShareable(Exception):
    """The result of a recipe depends on the weights' values beyond containing them."""


def carry_out(plan: dict[str, Any]) -> Template:
    """Make a recipe's result, without its weights. Raises NotShareable, or whatever transformers raises."""
    import torch
    import transformers

    options = {
        name: getattr(torch, value["dtype"]) if isinstance(value, dict) else value
        for name, value in plan["options"].items()
    }
    result = getattr(transformers, plan["factory"]).from_pretrained(plan["folder"], **options)
    if plan["kind"] != "model":
        return Template(result, plan["folder"])
    places = _places(result, plan["folder"])
    for place in places:
        place.tensor.data = torch.empty(0, dtype=place.tensor.dtype)
    return Template(result, plan["folder"], places)


def _places(model: Any, folder: str) -> list[Place]:
    """Every parameter's place in the folder's weights. Raises NotShareable where one has none."""
    ranges = _mappings(folder)
    persistent = set(model.state_dict(keep_vars=True))
    places: dict[int, Place] = {}
    tensors = [(name, tensor, True) for name, tensor in model.named_parameters(remove_duplicate=False)]
    tensors += [(name, tensor, name in persistent) for name, tensor in model.named_buffers(remove_duplicate=False)]
    for name, tensor, needed in tensors:
        if id(tensor) in places:
            continue
        pointer, width = tensor.data_ptr(), tensor.element_size()
        for start, end, file, at in ranges:
            if start <= pointer < end and (at + pointer - start) % width == 0:
                offset = (at + pointer - start) // width
                places[id(tensor)] = Place(tensor, file, offset, tuple(tensor.shape), tuple(tensor.stride()))
                break
        else:
            if needed and tensor.numel():
                raise NotShareable(f"{name} is not a piece of the weights' file as it lies there")
    return list(places.values())


def _mappings(folder: str) -> list[tuple[int, int, str, int]]:
    """(first address, last address, file relative to the folder, offset) of the folder's mapped weights."""
    ranges = []
    root = os.path.realpath(folder)
    for row in Path("/proc/self/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+\s+(/.*\.safetensors)$", row)
        if match and match[4].startswith(root + os.sep):
            relative = os.path.relpath(match[4], root)
            ranges.append((int(match[1], 16), int(match[2], 16), relative, int(match[3], 16)))
    return ranges


def _map(places: list[Place], folder: str) -> None:
    """Give each tensor its values from the weights in this folder, mapped, not read."""
    import torch

    storages: dict[str, Any] = {}
    for place in places:
        storage = storages.get(place.file)
        if storage is None:
            path = Path(folder, place.file)
            storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
            storages[place.file] = storage
        values: Any = torch.empty(0, dtype=place.tensor.dtype)
        values.set_(storage, place.offset, place.shape, place.stride)
        place.tensor.data = values


def _rename(result: Any, old: str, new: str) -> None:
    """Set the folder's name in the few places where handlers may look for it."""
    holders = [vars(result), getattr(result, "init_kwargs", None)]
    config = getattr(result, "config", None)
    holders.append(vars(config) if config is not None else None)
    for holder in holders:
        if isinstance(holder, dict):
            for name, value in list(holder.items()):
                if isinstance(value, str) and (value == old or value.startswith(old + os.sep)):
                    holder[name] = new + value[len(old) :]


def exercise() -> None:
    """Load and run two tiny models once, so that what transformers and torch make at first use (compiled patterns,
    tables, modules imported late) is there before the fork and not in every worker anew."""
    import tempfile

    import torch
    from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    small = {"vocab_size": 32}
    bert = BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **small)
    )
    gpt2 = GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0, **small)
    )
    ids = torch.ones((2, 4), dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    for model, auto in ((bert, AutoModel), (gpt2, AutoModelForCausalLM)):
        with tempfile.TemporaryDirectory(prefix="mme-") as folder:
            model.save_pretrained(folder)
            loaded: Any = auto.from_pretrained(folder, local_files_only=True)
            with torch.inference_mode():
                output = loaded.eval()(input_ids=ids, attention_mask=mask)
                if auto is AutoModelForCausalLM:
                    loaded(ids[:, :1], past_key_values=output.past_key_values)


def threads() -> int:
    """How many threads this process has: a fork is clean only from one."""
    with contextlib.suppress(OSError):
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    return 1
