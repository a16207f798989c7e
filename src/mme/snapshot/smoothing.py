"""How much each input of a linear layer is to be divided by before it becomes int8, found by running the model once.

Where a layer's inputs come straight out of a normalisation, a few of them are always many times larger than the rest,
and int8, with one scale for all inputs of a token, leaves those few bits. SmoothQuant (https://arxiv.org/abs/2211.10438)
moves the size of such an input into the weights that it is multiplied with: the input is divided by s, its weights are
multiplied by s, and the products stay the same,

    s = max|x| ** STRENGTH / max|w| ** (1 - STRENGTH)

with the maximum over the tokens of a few sentences, and over the weights of all layers that read this input. The sizes
of other inputs depend on the text rather than on the model; smoothing them by a few sentences did more harm than good,
so they are left as they are.

The same on every processor: the model runs in float64, and s keeps four bits of its fraction, so that what two
processors may differ in, the last of 53 bits, is gone. Its weights are read one after the other as they are needed, so
that the memory is that of the largest of them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mme.snapshot import tensors
from mme.snapshot.checkpoint import Skeleton, linear_layers
from mme.snapshot.weights import Piece

if TYPE_CHECKING:
    from torch import Tensor

STRENGTH = 0.5
FRACTION_BITS = 4
MOST_TOKENS = 256

# Prose, a question, numbers, code, several languages and scripts. None of them is among the texts that accuracy is
# measured with.
TEXT = (
    "In the spring of 1998 the old harbour was closed, and nearly 2,300 people had to look for other work; some moved "
    'to the city, others stayed and opened small shops. "Where do we go now?" asked Maria. Nobody knew. The function '
    'returns None if the list is empty: for i in range(10): print(items[i]["name"]). Wie spät ist es? Je ne sais pas '
    "encore, mais il fait froid. Send an e-mail to info@example.org before 5 p.m. on Friday, please! El perro duerme. "
    "Водород - самый лёгкий газ. 你好世界。"
)


def divisors(built: Skeleton, tokenizer: Any, pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """What the inputs of linear layers are to be divided by: a float32 tensor with a number for each input, by the name
    of the layer's weight. Layers whose inputs do not come out of a normalisation are left out.

    ``pieces`` are the model's tensors. Empty where the model cannot be run this way: it does not read text, or its code
    does something unsupported here.
    """
    layers = linear_layers(built)
    held = {piece.name: piece for piece in pieces}
    if tokenizer is None or not layers:
        return {}
    try:
        groups = _run(built, _tokens(built, tokenizer), held, layers)
    except Exception as error:
        if isinstance(error, MemoryError) or "alloc" in str(error):
            raise
        return {}
    divisors = {}
    for names, peaks in groups.items():
        sizes = [tensors.read_tensor(held[name]).abs().amax(dim=1 if layers[name] else 0) for name in names]
        divisors.update(dict.fromkeys(names, _divisor(peaks, sizes)))
    return divisors


def _divisor(peaks: Tensor, sizes: Sequence[Tensor]) -> Tensor:
    import torch

    weight = torch.stack([size.double() for size in sizes]).amax(dim=0)
    divisor = peaks**STRENGTH / weight ** (1 - STRENGTH)
    # An input that was never seen, or is never used, has no size to be moved.
    divisor = torch.where((peaks > 0) & (weight > 0), divisor, torch.ones_like(divisor))
    fraction, exponent = torch.frexp(divisor)
    steps = 2**FRACTION_BITS
    return torch.ldexp((fraction * steps).round() / steps, exponent).float()


def _tokens(built: Skeleton, tokenizer: Any) -> Tensor:
    limit = min(MOST_TOKENS, int(getattr(built.model.config, "max_position_embeddings", None) or MOST_TOKENS))
    ids: Tensor = tokenizer(TEXT, return_tensors="pt", truncation=True, max_length=limit)["input_ids"]
    return ids


class _AllSeenError(Exception):
    """Every linear layer has had its inputs; what would follow is of no interest."""


def _run(
    built: Skeleton, ids: Tensor, pieces: Mapping[str, Piece], layers: Mapping[str, bool]
) -> dict[tuple[str, ...], Tensor]:
    """The names of linear layers' weights, by the output of a normalisation that they read together; and the largest
    size of that in each place over all tokens."""
    import torch

    exact = _exact_mode()
    normalised: list[Tensor] = []  # held, so that no other tensor gets the same id
    readers: dict[int, list[str]] = {}
    left = set(layers)

    def note_output(module: Any, given: Any, output: Tensor) -> None:
        normalised.append(output)

    def reader(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def note(module: Any, given: tuple[Tensor, ...]) -> None:
            for place, output in enumerate(normalised):
                # A model may reshape it on the way; the numbers stay where they are.
                if output.data_ptr() == given[0].data_ptr() and output.numel() == given[0].numel():
                    readers.setdefault(place, []).append(name)
            left.discard(name)
            if not left:
                raise _AllSeenError

        return note

    with exact, torch.no_grad():
        config = copy.deepcopy(built.model.config)
        setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", torch.float64)  # transformers 5 and 4
        exact.building = True
        model = type(built.model)._from_config(config).eval()
        model.tie_weights()
        exact.building = False
        for name, tensor in model.state_dict(keep_vars=True).items():
            exact.pieces[id(tensor)] = pieces.get(built.aliases.get(name, name))
        for name, module in model.named_modules():
            if "Norm" in type(module).__name__:
                module.register_forward_hook(note_output)
            elif f"{name}.weight" in layers:
                module.register_forward_pre_hook(reader(f"{name}.weight"))
        more = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
        with contextlib.suppress(_AllSeenError):
            model(input_ids=ids, **more)
        largest: dict[tuple[str, ...], Tensor] = {}
        for place, names in readers.items():
            peaks = normalised[place].flatten(0, -2).abs().amax(dim=0)
            before = largest.get(tuple(names))  # of layers that a model runs more than once
            largest[tuple(names)] = peaks if before is None else torch.maximum(peaks, before)
        return largest


def _exact_mode() -> Any:
    """A mode of torch in which every number with a fraction is a float64, and the weights of a model that was built in
    it are read where they are used."""
    import torch
    from torch.overrides import TorchFunctionMode

    floats = (torch.float32, torch.bfloat16, torch.float16)
    narrowing = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}
    get_device, get_dtype = torch.Tensor.device.__get__, torch.Tensor.dtype.__get__  # type: ignore[attr-defined]

    class Exact(TorchFunctionMode):
        building = False  # weights get no memory

        def __init__(self) -> None:
            super().__init__()
            self.pieces: dict[int, Piece | None] = {}  # by the id of the model's own tensor

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if self.building and function is torch.empty:
                kwargs["device"] = "meta"
            if function == get_device and not self.building:
                return torch.device("cpu")
            if function == get_dtype and args[0].is_floating_point():
                return torch.float64
            if getattr(function, "__name__", "") == "__get__" and not isinstance(function(*args), torch.Tensor):
                return function(*args)  # such as its shape, for which its numbers need not be read
            if function in narrowing:
                function = torch.Tensor.double
            if not self.building and function is torch.nn.functional.embedding:  # a few rows of a large table
                args = (args[0], self.read(args[1]), *args[2:])
            else:
                args, kwargs = self.changed(args), self.changed(kwargs)
            return self.changed(function(*args, **kwargs))

        def changed(self, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                value = value if self.building else self.read(value)
                wide = value.dtype in floats and not isinstance(value, torch.nn.Parameter)
                return value.double() if wide and not value.is_meta else value
            if isinstance(value, torch.dtype):
                return torch.float64 if value in floats else value
            if type(value) in (list, tuple):
                return type(value)(self.changed(item) for item in value)
            if type(value) is dict:
                return {key: self.changed(item) for key, item in value.items()}
            return value

        def read(self, tensor: Tensor) -> Tensor:
            """What a tensor of the model holds."""
            if id(tensor) not in self.pieces:
                return tensor
            piece = self.pieces[id(tensor)]
            if piece is None:  # a part that some checkpoints lack, and that no answer depends on
                return torch.zeros(tensor.shape) if tensor.is_meta else tensor
            held: Tensor = tensors.read_tensor(piece)
            return held

    return Exact()
