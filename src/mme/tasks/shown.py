"""Shows the progress of a run of uploads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from mme import console, publishing
from mme.packaging.job import Streamed
from mme.snapshot import extra
from mme.tasks import inspection
from mme.tasks.command import name_of, note, stage


class Shown(publishing.Events):
    """Prints what a run of uploads reports to standard error: progress on a terminal, and measured losses of
    accuracy."""

    def __init__(self) -> None:
        self.done, self.of = 0, 1

    def finished(self, done: int, of: int) -> None:
        self.done, self.of = done, of

    def sending(self, names: Sequence[str], size: int) -> AbstractContextManager[Callable[[int], object]]:
        if len(names) == 1:
            return console.progress(sys.stderr, f"{self._label(names[0])}: uploading", size)
        return console.progress(sys.stderr, lambda: f"uploading: {self.done} of {len(names)} models done", size)

    def packaging(self, name: str, step: str, size: int) -> AbstractContextManager[Callable[[int], object]]:
        return stage(self._label(name), step, size)

    def _label(self, name: str) -> str:
        return name_of(name, self.done + 1, self.of)

    def packaged(self, name: str, made: Streamed) -> None:
        if made.verified and made.verified.doubt:
            note(f"{name}: {made.verified.doubt}.")
        if tokenizer := made.planned.manifest.get("tokenizer"):
            note(f"{name}: its tokenizer: {tokenizer}.")
        if names := made.planned.manifest.get("left_out"):
            note(f"{name}: {extra.words(names)}.")
        for words in made.planned.manifest.get("unused", ()):
            note(f"{name}: {words}.")
        if made.planned.manifest.get("trust_remote_code"):
            note(f"{name}: its own code {inspection.TRUST}.")
        if measured := inspection.accuracy_text(made.planned.manifest.get("accuracy")):
            note(f"{name} in {measured}.")
