"""A model's linear layers in int8, on the CPU: a quarter of the weights to read for every answer, and the processor's
int8 instructions.

Weights have one scale for each output, and activations one for each token. torch's own `quantize_dynamic` has one for
all activations of a batch: a single large value takes the precision from all others, and what a text gets depends on
the texts beside it. The cosine to float32 of all-MiniLM-L6-v2, on real sentences, is 0.91 that way and 0.99 this way.

An archive can hold the weights in int8 already (`invoke package` makes such a file): it is smaller to fetch and to
unpack, and the layers never exist in float32.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, GenerationConfig
from transformers.pytorch_utils import Conv1D

SMALLEST = 1e-30  # stands in for the largest value of a row of zeros, which has none to divide by
TOLD_SCALE = ("x86", "fbgemm")  # the engines of torch that can be told the scale of activations
_product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
ROWS_AT_ONCE = 1 << 22  # numbers; it bounds the memory

# A model's tensors, with the weights of linear layers as int8, a row for each output, and beside each of them, under
# its name with this ending, what the rows are to be multiplied with. It is not called model.safetensors, which others
# would read as the weights themselves.
STORED = "model.int8.safetensors"
SCALES = "_scale"


class Int8Linear(torch.nn.Module):
    """A linear layer whose products are of int8 numbers. Inputs and outputs are float32."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        reduce_range: bool,
        scales: torch.Tensor | None = None,
    ) -> None:
        """`weight` has a row for each output: of any numbers, or of int8 and then with the `scales` of its rows.
        `reduce_range`: activations of seven bits, not eight."""
        super().__init__()
        if scales is None:
            weight, scales = rows_to_int8(weight)
        zeros = torch.zeros(len(scales), dtype=torch.long)
        whole = torch._make_per_channel_quantized_tensor(weight, scales.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(whole, None)
        self.bias = None if bias is None else bias.detach()
        self.reduce_range = reduce_range
        self.weight = torch.empty(0)  # some models ask for its type
        # Activations become whole numbers from -largest to largest, with this one added, since they have no sign.
        self.zero = 64 if reduce_range else 128
        self.scale = 1 / (self.zero - 1)
        self.told_scale = torch.backends.quantized.engine in TOLD_SCALE
        self.ends = torch.zeros(weight.shape[1])
        self.ends[0], self.ends[1] = -1.0, 1.0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rows = values.reshape(-1, values.shape[-1])
        peaks = rows.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST)
        scaled = rows * peaks.reciprocal()  # so that all rows have the same scale
        if self.told_scale:
            product = _product(scaled, self.scale, self.zero, self.packed)
        else:
            # The operator takes its scale from the smallest and the largest value of all rows: one more row holds them.
            scaled = torch.cat((scaled, self.ends[None]))
            product = torch.ops.quantized.linear_dynamic(scaled, self.packed, reduce_range=self.reduce_range)[:-1]
        product.mul_(peaks)
        if self.bias is not None:
            product.add_(self.bias)
        return product.view(*values.shape[:-1], product.shape[1])


def joined(layers: list[Any]) -> Int8Linear | None:
    """One layer that answers what these do, side by side, for layers that are given the same values; None where one of
    them is not in int8. It computes sooner, since the values become int8 only once. Its weights are a copy."""
    if any(type(layer) is not Int8Linear or layer.bias is None for layer in layers):
        return None
    with _chosen_engine():
        weights = [torch.ops.quantized.linear_unpack(layer.packed)[0] for layer in layers]
        return Int8Linear(
            torch.cat([weight.int_repr() for weight in weights]),
            torch.cat([layer.bias for layer in layers]),
            layers[0].reduce_range,
            torch.cat([weight.q_per_channel_scales().float() for weight in weights]),
        )


def rows_to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as int8, and the float32 scale of each: its largest number is 127. The same bits on every processor,
    since every step is one operation that IEEE 754 defines to the last bit."""
    whole = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    step = max(1, ROWS_AT_ONCE // max(1, weight.shape[1]))
    for first in range(0, len(weight), step):
        rows = weight[first : first + step].float()
        peaks = rows.abs().amax(dim=1)
        scale = torch.div(peaks, torch.full_like(peaks, 127.0)).clamp_(min=SMALLEST)
        scales[first : first + step] = scale
        whole[first : first + step] = torch.div(rows, scale[:, None]).round_().clamp_(-127, 127)
    return whole, scales


def quantize(model: torch.nn.Module) -> None:
    """Put an Int8Linear in the place of every linear layer. Raises RuntimeError where torch cannot compute in int8."""
    with _chosen_engine():
        _replace(model, _saturates())


def load(kind: Any, folder: Path, options: dict[str, Any]) -> torch.nn.Module:
    """A model of `kind` (one of transformers' Auto classes) whose linear layers compute in int8. `options` are those of
    from_pretrained. Raises RuntimeError where torch cannot compute in int8."""
    if (folder / STORED).is_file():
        model = _hollow(kind, folder)
        with _chosen_engine():
            _fill(model, folder / STORED, _saturates())
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
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # a far-off end of quantized tensors
            yield
    finally:
        torch.backends.quantized.engine = before


class _NoMemory(TorchFunctionMode):
    """Tensors that wait for their numbers (torch.empty, as all layers begin) get no memory, in this thread."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def _hollow(kind: Any, folder: Path) -> torch.nn.Module:
    """The model without its weights, but with all that it computes for itself, such as tables of positions."""
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", torch.float32)  # transformers 5 and 4
    with _NoMemory():
        model: torch.nn.Module = kind.from_config(config)
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    return model


def _fill(model: torch.nn.Module, path: Path, reduce_range: bool) -> None:
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        layers = {name for name in names if name + SCALES in names}
        others = names - layers - {name + SCALES for name in layers}
        # Float32 numbers stay in the file, which is mapped; those of another format are made float32.
        state = {name: file.get_tensor(name) for name in others}
        state = {name: held.float() if held.is_floating_point() else held for name, held in state.items()}
        for name in sorted(layers):
            layer = name.removesuffix(".weight")
            quantized = Int8Linear(
                file.get_tensor(name), state.pop(f"{layer}.bias", None), reduce_range, file.get_tensor(name + SCALES)
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


def _saturates() -> bool:
    """Whether the largest products are too much for this processor: without VNNI, two of them are added in 16 bits."""
    layer = Int8Linear(torch.ones(16, 64), None, reduce_range=False)
    return bool((layer(torch.ones(1, 64)) - 64).abs().max() > 2)


def _replace(parent: torch.nn.Module, reduce_range: bool) -> None:
    for name, child in parent.named_children():
        weight: Any = getattr(child, "weight", None)
        if type(child) is torch.nn.Linear and child.in_features > 1:
            setattr(parent, name, Int8Linear(weight.detach(), child.bias, reduce_range))
        elif type(child) is Conv1D:  # GPT-2's linear layers, whose weights have a row for each input
            setattr(parent, name, Int8Linear(weight.detach().t().contiguous(), child.bias, reduce_range))
        else:
            _replace(child, reduce_range)
