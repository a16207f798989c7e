"""Linear layers for a few rows at once, as in a batch of texts that are decoded, on the CPU in float32.

Between one row and some dozens, oneDNN needs about two thirds of the time that torch's usual way (MKL) needs; for
one row alone, three quarters, where the weights of an output lie together. The products are the same but for the last
bits, and the weights stay where they are: mapped from the file, and shared.
"""

import torch
from transformers.pytorch_utils import Conv1D

# With many rows both are the same, and oneDNN makes code for each number of rows that it meets, so there should not be
# too many of them either.
MOST = 64


class FewRowsLinear(torch.nn.Module):
    """A linear layer around another, whose weights it uses."""

    def __init__(self, layer: torch.nn.Module, weight: torch.Tensor) -> None:
        """`weight` has a row for each output."""
        super().__init__()
        self.layer = layer
        self.rows = weight.detach()
        # A product with a single row is better the usual way where the weights of an output lie apart, as in GPT-2.
        self.fewest = 1 if weight.is_contiguous() else 2
        self.bias = None if layer.bias is None else layer.bias.detach()

    @property
    def weight(self) -> torch.Tensor:
        return self.layer.weight

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.fewest <= values.numel() // values.shape[-1] <= MOST:
            return torch.ops.mkldnn._linear_pointwise(values, self.rows, self.bias, "none", [], "")
        return self.layer(values)


def wrap_linear_layers(model: torch.nn.Module) -> None:
    """Wrap every linear layer of a float32 model on the CPU, where this torch has oneDNN. Others stay as they are."""
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        _wrap(model)


def _wrap(parent: torch.nn.Module) -> None:
    for name, child in parent.named_children():
        if type(child) not in (torch.nn.Linear, Conv1D):
            _wrap(child)
        elif child.weight.dtype == torch.float32 and child.weight.device.type == "cpu":
            # Conv1D, of GPT-2, has a row for each input.
            weight = child.weight if type(child) is torch.nn.Linear else child.weight.t()
            setattr(parent, name, FewRowsLinear(child, weight))
