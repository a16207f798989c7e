"""Continuous batching: requests join the others between two tokens, and leave when they are done."""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from generation_decoding import Generator, Prompt, Rows, generate, is_ours


@dataclass
class Asked:
    """A request while it is worked on."""

    prompts: list[Prompt]
    answer: Callable[[], Any]


class Decoder:
    """The requests that one model works on. Not for several threads at once.

    A request gets what it would have got alone. The memory is bounded by batch_tokens: a prompt for which there is no
    room waits, and none overtakes it.
    """

    def __init__(self, model: Generator, read: Callable[[Any, Generator], Asked]) -> None:
        self._model = model
        self._read = read
        self._rows = Rows(model)
        self._asked: dict[Hashable, Asked] = {}
        self._waiting: deque[Prompt] = deque()

    def __len__(self) -> int:
        """How many requests are in work or wait."""
        return len(self._asked)

    def add(self, key: Hashable, data: Any) -> None:
        """Add one request (input_fn's result) under a key of the caller's. Computes nothing yet. Raises ValueError
        where the request cannot be answered, or the key is in use; then nothing is added."""
        if key in self._asked:
            raise ValueError(f"A request with the key {key!r} is in work already.")
        asked = self._read(data, self._model)
        self._asked[key] = asked
        self._waiting.extend(asked.prompts)

    def drop(self, key: Hashable) -> None:
        """Forget a request that nobody waits for any more. A key that is not in use is no error."""
        asked = self._asked.pop(key, None)
        if asked is not None:
            with torch.inference_mode():
                self._rows.leave(asked.prompts)
            gone = {id(prompt) for prompt in asked.prompts}
            self._waiting = deque(prompt for prompt in self._waiting if id(prompt) not in gone)

    def step(self) -> list[tuple[Hashable, Any]]:
        """One token for every request in work, and the first for those that join. Returns the requests that are done,
        each with its key and what predict_fn would have returned. After an exception the decoder is of no more use."""
        with torch.inference_mode():
            self._rows.step()
            self._admit()
        done = [key for key, asked in self._asked.items() if all(_is_done(prompt) for prompt in asked.prompts)]
        return [(key, self._asked.pop(key).answer()) for key in done]

    def _admit(self) -> None:
        joining: list[Prompt] = []
        while self._waiting:
            prompt = self._waiting[0]
            if not is_ours(prompt, self._model):
                if not joining:
                    # Beam search, for which the others wait: transformers decodes it to its end.
                    generate(self._waiting.popleft(), self._model)
                break
            room = self._rows.open and self._rows.fits([*joining, prompt])
            if not room and (self._rows or joining):
                break
            joining.append(self._waiting.popleft())
        if joining and not self._rows.join(joining):
            for prompt in joining:
                generate(prompt, self._model)


def _is_done(prompt: Prompt) -> bool:
    return bool(prompt.sequences) and all(sequence.finish_reason for sequence in prompt.sequences)
