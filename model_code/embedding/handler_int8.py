"""A model's linear layers in int8, on the CPU: a quarter of the weights to read for every answer, and the processor's
int8 instructions. A handler's folder must stand alone, so each has a copy of this file; a test keeps them the same.

Weights have one scale for each output, and activations one for each token. torch's own `quantize_dynamic` has one for
all activations of a batch: a single large value takes the precision from all others, and what a text gets depends on
the texts beside it. The cosine to float32 of all-MiniLM-L6-v2, on real sentences, is 0.91 that way and 0.99 this way.
"""

import warnings
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

SMALLEST = 1e-30  # stands in for the largest value of a row of zeros, which has none to divide by


class Int8Linear(torch.nn.Module):
    """A linear layer whose products are of int8 numbers. Inputs and outputs are float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, reduce_range: bool) -> None:
        """`weight` has a row for each output. `reduce_range`: activations of seven bits, not eight."""
        super().__init__()
        scales = (weight.abs().amax(dim=1) / 127).clamp_(min=SMALLEST).double()
        zeros = torch.zeros(len(scales), dtype=torch.long)
        whole = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(whole, None)
        self.bias = None if bias is None else bias.detach()
        self.reduce_range = reduce_range
        self.weight = torch.empty(0)  # some models ask for its type
        self.ends = torch.zeros(weight.shape[1])
        self.ends[0], self.ends[1] = -1.0, 1.0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rows = values.reshape(-1, values.shape[-1])
        peaks = rows.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST)
        # The operator takes its scale from the smallest and the largest value of all rows. With every row divided by
        # its own largest, and one more row that holds -1 and 1, that scale is always the same.
        scaled = rows.new_empty((len(rows) + 1, rows.shape[1]))
        torch.div(rows, peaks, out=scaled[:-1])
        scaled[-1] = self.ends
        product = torch.ops.quantized.linear_dynamic(scaled, self.packed, reduce_range=self.reduce_range)[:-1]
        product.mul_(peaks)
        if self.bias is not None:
            product.add_(self.bias)
        return product.view(*values.shape[:-1], product.shape[1])


def quantize(model: torch.nn.Module) -> None:
    """Put an Int8Linear in the place of every linear layer. Raises RuntimeError where torch cannot compute in int8."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = _engine()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # a far-off end of quantized tensors
            _replace(model, _saturates())
    finally:
        torch.backends.quantized.engine = before


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
