"""A model's linear layers in int8, on the CPU: a quarter of the weights to read for every answer, and the processor's
int8 instructions.

Weights have one scale for each output, and activations one for each token. torch's own `quantize_dynamic` has one for
all activations of a batch: a single large value takes the precision from all others, and what a text gets depends on
the texts beside it. The cosine to float32 of all-MiniLM-L6-v2, on real sentences, is 0.91 that way and 0.99 this way.

Activations have eight bits (0 to 255) and weights seven (-63 to 63). An x86 processor without VNNI adds two products in
16 bits, and stops at their ends; 2 * 255 * 63 is within them. So the sums of whole numbers are the same on every
processor.

An archive can hold the weights in int8 already (`invoke package` makes such a file): it is smaller to fetch and to
unpack, and the layers never exist in float32. They are nearer to the exact ones then, since packaging also finds which
inputs are always larger than the others, and has them divided before they become int8.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, GenerationConfig
from transformers.pytorch_utils import Conv1D

SMALLEST = 1e-30  # used as the largest value of a row of zeros, to avoid a division by zero
GIVEN_SCALE = ("x86", "fbgemm")  # torch's engines that take the scale of activations from the caller
_product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
ROWS_AT_ONCE = 1 << 22  # numbers; it bounds the memory

# A model's tensors, with the weights of linear layers as int8, a row for each output, and beside each of them, under
# its name with these endings: what the rows are to be multiplied with; and, of some, what the inputs are to be
# multiplied with before they become int8. It is not called model.safetensors, which others would read as the weights
# themselves.
STORED = "model.int8.safetensors"
SCALES = "_scale"
INPUT_SCALES = "_input_scale"
LARGEST = 63  # of the weights that are made now; archives from before have up to 127


class Int8Linear(torch.nn.Module):
    """A linear layer whose products are of int8 numbers. Inputs and outputs are float32."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        reduce_range: bool = False,
        scales: torch.Tensor | None = None,
        input_scales: torch.Tensor | None = None,
    ) -> None:
        """`weight` has a row for each output: of any numbers, or of int8 and then with the `scales` of its rows. Inputs
        are multiplied with `input_scales` first. `reduce_range`: activations of seven bits, not eight."""
        super().__init__()
        if scales is None:
            weight, scales = rows_to_int8(weight)
        zeros = torch.zeros(len(scales), dtype=torch.long)
        quantised = torch._make_per_channel_quantized_tensor(weight, scales.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(quantised, None)
        self.bias = None if bias is None else bias.detach()
        self.reduce_range = reduce_range
        self.exact = False  # whether it computes in float32 with the same weights, slowly (`exactly`)
        self.input_scales = input_scales
        self.weight = torch.empty(0)  # some models ask for its type
        # Activations become whole numbers from -largest to largest, with this one added, since they have no sign.
        self.zero = 64 if reduce_range else 128
        self.scale = 1 / (self.zero - 1)
        self.given_scale = torch.backends.quantized.engine in GIVEN_SCALE
        self.ends = torch.zeros(weight.shape[1])
        self.ends[0], self.ends[1] = -1.0, 1.0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rows = values.reshape(-1, values.shape[-1])
        own = self.input_scales is not None
        if own:
            rows = rows * self.input_scales
        if self.exact:
            weight = torch.ops.quantized.linear_unpack(self.packed)[0].dequantize()
            return torch.nn.functional.linear(rows, weight, self.bias).view(*values.shape[:-1], -1)
        peaks = rows.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST)
        # So that all rows have the same scale.
        scaled = rows.mul_(peaks.reciprocal()) if own else rows * peaks.reciprocal()
        if self.given_scale:
            product = _product(scaled, self.scale, self.zero, self.packed)
        else:
            # The operator takes its scale from the smallest and the largest value of all rows: one more row holds them.
            scaled = torch.cat((scaled, self.ends[None]))
            product = torch.ops.quantized.linear_dynamic(scaled, self.packed, reduce_range=self.reduce_range)[:-1]
        if self.bias is None:
            product.mul_(peaks)
        else:
            torch.addcmul(self.bias, product, peaks, out=product)
        return product.view(*values.shape[:-1], product.shape[1])


def joined(layers: list[Any]) -> Int8Linear | None:
    """One layer that answers what these do, side by side, for layers that are given the same values; None where one of
    them is not in int8, or makes other int8 of the values. It computes sooner, since the values become int8 only once.
    Its weights are a copy."""
    if any(type(layer) is not Int8Linear or layer.bias is None for layer in layers):
        return None
    first = layers[0]
    if any(
        layer.reduce_range != first.reduce_range or not _same(layer.input_scales, first.input_scales)
        for layer in layers
    ):
        return None
    with _chosen_engine():
        weights = [torch.ops.quantized.linear_unpack(layer.packed)[0] for layer in layers]
        return Int8Linear(
            torch.cat([weight.int_repr() for weight in weights]),
            torch.cat([layer.bias for layer in layers]),
            first.reduce_range,
            torch.cat([weight.q_per_channel_scales().float() for weight in weights]),
            first.input_scales,
        )


@contextlib.contextmanager
def exactly(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model's linear layers compute in float32, with the numbers that their int8 weights stand
    for: the reference for the loss by int8 activations."""
    layers = [layer for layer in model.modules() if type(layer) is Int8Linear]
    for layer in layers:
        layer.exact = True
    try:
        with _chosen_engine():
            yield
    finally:
        for layer in layers:
            layer.exact = False


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def rows_to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as int8, and the float32 scale of each: its largest number is 63. The same bits on every processor,
    since every step is one operation that IEEE 754 defines to the last bit."""
    quantised = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    step = max(1, ROWS_AT_ONCE // max(1, weight.shape[1]))
    for first in range(0, len(weight), step):
        rows = weight[first : first + step].float()
        peaks = rows.abs().amax(dim=1)
        scale = torch.div(peaks, torch.full_like(peaks, LARGEST)).clamp_(min=SMALLEST)
        scales[first : first + step] = scale
        quantised[first : first + step] = torch.div(rows, scale[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return quantised, scales


def quantize(model: torch.nn.Module) -> None:
    """Put an Int8Linear in the place of every linear layer. Raises RuntimeError where torch cannot compute in int8."""
    with _chosen_engine():
        _replace(model)


def load(kind: Any, folder: Path, options: dict[str, Any]) -> torch.nn.Module:
    """A model of `kind` (one of transformers' Auto classes) whose linear layers compute in int8. `options` are those of
    from_pretrained. Raises RuntimeError where torch cannot compute in int8."""
    if (folder / STORED).is_file():
        model = _hollow(kind, folder)
        with _chosen_engine():
            _fill(model, folder / STORED)
    else:
        model = kind.from_pretrained(str(folder), **options)
    model.eval().requires_grad_(False)
    quantize(model)  # of a model that was stored so, the layers whose weight another one shares
    return model


@contextlib.contextmanager
def _chosen_engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = _engine()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # its deprecation warning
            yield
    finally:
        torch.backends.quantized.engine = before


class _NoMemory(TorchFunctionMode):
    """Within the block, uninitialised tensors (torch.empty, with which all layers begin) get no memory, in this
    thread."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def _hollow(kind: Any, folder: Path) -> torch.nn.Module:
    """The model without its weights, but with the tensors that it computes itself, such as tables of positions."""
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", torch.float32)  # transformers 5 and 4
    with _NoMemory():
        # A class of one model's own, such as T5EncoderModel, has it under another name.
        make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
        model: torch.nn.Module = make(config)
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    return model


def _fill(model: torch.nn.Module, path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        layers = {name for name in names if name + SCALES in names}
        others = names - layers - {name + ending for name in layers for ending in (SCALES, INPUT_SCALES)}
        # Float32 numbers stay in the file, which is mapped; those of another format are made float32.
        state = {name: file.get_tensor(name) for name in others}
        state = {name: held.float() if held.is_floating_point() else held for name, held in state.items()}
        for name in sorted(layers):
            layer = name.removesuffix(".weight")
            weight = file.get_tensor(name)
            quantized = Int8Linear(
                weight,
                state.pop(f"{layer}.bias", None),
                _is_wide(weight) and _saturates(),
                file.get_tensor(name + SCALES),
                file.get_tensor(name + INPUT_SCALES) if name + INPUT_SCALES in names else None,
            )
            parent, _, own = layer.rpartition(".")
            setattr(model.get_submodule(parent), own, quantized)
    unknown = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    for name, held in [*model.named_parameters(), *model.named_buffers()]:
        if held.is_meta and "pooler." in name:  # a part that some checkpoints lack, and no answer depends on
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, torch.nn.Parameter(torch.zeros(held.shape)))
        elif held.is_meta:
            unknown.append(name)
    if unknown:
        raise RuntimeError(f"{path.name} does not fit {type(model).__name__}: {', '.join(sorted(unknown)[:3])}.")


def _engine() -> str:
    supported = torch.backends.quantized.supported_engines
    for engine in ("x86", "fbgemm", "qnnpack", "onednn"):
        if engine in supported:
            return engine
    raise RuntimeError(
        'code/settings.json: quantize is "int8", and this torch has no engine for it on this processor '
        f"({', '.join(supported)}). Leave the setting out."
    )


def _is_wide(weight: torch.Tensor) -> bool:
    """Whether the weights have eight bits, as in archives from before they had seven."""
    smallest, largest = weight.aminmax()
    return bool(smallest < -LARGEST or largest > LARGEST)


@functools.cache
def _saturates() -> bool:
    """Whether this processor adds two products of eight bits in 16 bits, which can overflow."""
    layer = Int8Linear(torch.full((16, 64), 127, dtype=torch.int8), None, scales=torch.full((16,), 1 / 127))
    return bool((layer(torch.ones(1, 64)) - 64).abs().max() > 2)


def _replace(parent: torch.nn.Module) -> None:
    for name, child in parent.named_children():
        weight: Any = getattr(child, "weight", None)
        if type(child) is torch.nn.Linear and child.in_features > 1:
            setattr(parent, name, Int8Linear(weight.detach(), child.bias))
        elif type(child) is Conv1D:  # GPT-2's linear layers, whose weights have a row for each input
            setattr(parent, name, Int8Linear(weight.detach().t().contiguous(), child.bias))
        else:
            _replace(child)
