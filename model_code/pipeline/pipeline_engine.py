"""ONNX Runtime (`engine.py`) in the place of a pipeline's model. What a pipeline does before and after the forward pass
stays transformers' own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine
import engine_heads
import handler_adapter
import numpy as np
import torch
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

HEADS = {
    "text-classification": engine_heads.TEXTS,
    "zero-shot-classification": engine_heads.TEXTS,
    "token-classification": engine_heads.TOKENS,
    "question-answering": engine_heads.SPANS,
    "feature-extraction": engine_heads.NONE,
    "fill-mask": engine_heads.WORDS,
}
# Tasks whose texts, or labels, can share a pass, and how many of them are in work at once.
SHARED = ("text-classification", "zero-shot-classification", "token-classification")
BATCH = 32
LETTERS = 4  # of a token, about
MOST = 1 << 20  # tokens that a model without a table of positions is compared with: any number


class Forward(torch.nn.Module):
    """A model as far as a pipeline looks at it, computed by the engine. Texts of a batch are computed without their
    padding, each as if it were alone."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, config: Any, encoding: engine.Encoding, mask: int | None = None) -> None:
        """`mask` is the token that stands for a word that is asked for."""
        super().__init__()
        self.config = config
        self.base_model_prefix = config.model_type  # which a pipeline names in what it says of a text without a mask
        self.encoding = encoding
        self.mask = mask

    def can_generate(self) -> bool:
        return False

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        ids = input_ids.numpy()
        real = np.ones(ids.shape, bool) if attention_mask is None else attention_mask.numpy().astype(bool)
        rows = [own[mask].tolist() for own, mask in zip(ids, real, strict=True)]
        types = None
        if token_type_ids is not None:
            types = [own[mask].tolist() for own, mask in zip(token_type_ids.numpy(), real, strict=True)]
        words = self.encoding.graph.head == engine_heads.WORDS
        asked = [np.flatnonzero(np.array(row) == self.mask) for row in rows] if words else None
        answers = self._answers(rows, types, asked)
        if self.encoding.graph.head == engine_heads.TEXTS:
            return SequenceClassifierOutput(logits=torch.from_numpy(np.stack(answers)))
        spread = np.zeros((*ids.shape, self.encoding.width), np.float32)  # 0 for what is not asked for, and padding
        if words:
            spread[real & (ids == self.mask)] = np.concatenate(answers)
            return MaskedLMOutput(logits=torch.from_numpy(spread))
        spread[real] = np.concatenate(answers)
        if self.encoding.graph.head == engine_heads.SPANS:
            starts, ends = torch.from_numpy(spread).unbind(-1)
            return QuestionAnsweringModelOutput(start_logits=starts, end_logits=ends)
        if self.encoding.graph.head == engine_heads.TOKENS:
            return TokenClassifierOutput(logits=torch.from_numpy(spread))
        return BaseModelOutput(last_hidden_state=torch.from_numpy(spread))

    def _answers(
        self, rows: list[list[int]], types: list[list[int]] | None, asked: list[np.ndarray] | None
    ) -> list[np.ndarray]:
        """What the graph answers to each text: a row, or one for each of its tokens, or for those that are `asked`."""
        counts = list(map(len, rows if asked is None else asked))
        answers: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
        for batch in engine.batches(order, rows, engine.PASS_TOKENS):
            own = [types[row] for row in batch] if types is not None else None
            places = [asked[row] for row in batch] if asked is not None else None
            got = self.encoding.run([rows[row] for row in batch], torch.get_num_threads(), own, places)
            if self.encoding.graph.head != engine_heads.TEXTS:
                parts = np.split(got, np.cumsum([counts[row] for row in batch])[:-1])
            else:
                parts = list(got)
            for row, part in zip(batch, parts, strict=True):
                answers[row] = part
        return answers


def stand_in(kind: str, config: Any, encoding: engine.Encoding, mask: int | None = None) -> Forward:
    """What a pipeline takes for a model of the class of this name, which is not imported for it."""
    made: Forward = type(kind, (Forward,), {})(config, encoding, mask)
    return made


def cost(inputs: Any, parameters: dict[str, Any]) -> int:
    """About how many tokens a request has, which need not be a sound one: each label of a zero-shot classification is
    read with the text."""
    labels = parameters.get("candidate_labels") or ("",)
    count = labels.count(",") + 1 if isinstance(labels, str) else len(labels) if isinstance(labels, list) else 1
    return count * (2 + len(str(inputs)) // LETTERS)


def alone(name: str, text: Any, options: dict[str, Any], answer: Any) -> Any:
    """What the pipeline answers to a text alone that it answers thus as one of a list."""
    return [answer] if name == "text-classification" and isinstance(text, str) and "top_k" not in options else answer


def load(
    name: str,
    folder: Path,
    kind: str | None,
    config: Any,
    tokenizer: Any,
    dtype: str,
    device: torch.device,
    model: Callable[[], Any],
) -> tuple[Forward | None, str]:
    """What computes the task `name` in the place of a model of the class named `kind`; or None, and why. `model` loads
    transformers' own, which the answers are compared with unless they are known to be equal."""
    if name not in HEADS:
        return None, f"no graph is known for {name}"
    if device.type != "cpu":
        return None, "it is on a GPU"
    if dtype != "float32":
        return None, f"it computes in {dtype}"
    if kind is None:
        return None, "its class is not one of transformers' own"
    if name == "token-classification" and tokenizer.padding_side != "right":
        return None, "its tokenizer puts padding first, and positions are counted from there"
    try:
        encoding = engine.load(folder, config, head=HEADS[name], adapter=handler_adapter.matrices(folder))
    except engine.Unsupported as error:
        return None, str(error)
    if not engine.checked(encoding):
        most = encoding.graph.positions or MOST
        typed = engine.typed(tokenizer, config)
        unequal = engine.compared(lambda: engine.differs(encoding, model(), most, typed))
        if unequal is not None:
            return None, unequal
    return stand_in(kind, config, encoding, tokenizer.mask_token_id), ""
