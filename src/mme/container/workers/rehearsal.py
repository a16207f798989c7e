"""Loads, asks and unloads a tiny model with the embedding handler in the parent before it forks.

What Python and the libraries do once and keep (specialise code, fill caches, compile patterns, import modules late)
writes to pages that the processes share with the parent. Done here, it is done for all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from mme.container import system
from mme.container.wire import Decoder, Kind, pack
from mme.container.workers.templates import Templates
from mme.container.workers.worker import Spec, Worker

ROUNDS = 4  # Python specialises code that has run some times
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "house", "was", "quiet")
TEXTS = ("the house", "The house was quiet.", "quiet", "the house")
HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
CHECKED = "MME_ENGINE_CHECKED"  # keys that the model's handler need not compare with transformers


class Failed(Exception):
    """The tiny model could not be loaded, or did not answer."""


def rehearse(families: Templates, roots: tuple[Path, ...]) -> None:
    """Load and ask the tiny model a few times. Afterwards this process is as before, except for what is cached now.
    Raises Failed, OSError, or whatever making the model does."""
    if system.has_gpu():  # nothing may begin CUDA before the forks
        return
    root = next(root for root in roots if (root / "embedding").is_dir())
    with tempfile.TemporaryDirectory(prefix="mme-") as folder:
        _make(Path(folder), root)
        checked = ""
        for _ in range(ROUNDS):
            checked = _live(families, folder, checked)


def _live(families: Templates, folder: str, checked: str) -> str:
    """Load the model, ask it, forget it. Returns the key of what its handler has compared."""
    here, path, environ = Path.cwd(), list(sys.path), os.environ.get(CHECKED)
    os.environ[CHECKED] = checked
    ours, theirs = socket.socketpair()
    front = _Front(ours, theirs)
    try:
        Worker(front, Spec("rehearsal", folder, "inference", -1, 1, 32, 4096), families).run()
    finally:
        ours.close()
        front.close()
        families.shipped.let_go()
        families.forget()
        os.chdir(here)
        sys.path[:] = path
        if environ is None:
            del os.environ[CHECKED]
        else:
            os.environ[CHECKED] = environ
    if front.left or front.failed:
        raise Failed(front.failed or "it did not answer")
    return front.key


class _Front(socket.socket):
    """Stands in for the worker's socket: what the worker sends is answered at once, as the front would, with one
    request after the other and then the end."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        super().__init__(fileno=theirs.detach())
        self._ours = ours
        self._decoder = Decoder()
        self.left = list(TEXTS)
        self.failed = ""
        self.key = ""

    def sendall(self, data: Any, flags: int = 0) -> None:
        for frame in self._decoder.feed(data):
            if frame.kind == Kind.READY:
                self.key = frame.meta["notes"]["key"]
            elif frame.kind == Kind.RESULT and frame.meta["status"] != 200:
                self.failed = str(frame.body)
            elif frame.kind == Kind.FAILED:
                self.failed = str(frame.meta)
            if frame.kind in (Kind.READY, Kind.RELEASED):
                self._go_on()

    def _go_on(self) -> None:
        if not self.left:
            self._ours.shutdown(socket.SHUT_WR)
            return
        body = json.dumps({"inputs": self.left.pop()}).encode()
        self._ours.sendall(pack(Kind.REQUEST, 1, HEADERS, body) + pack(Kind.GRANT, 1))


def _make(folder: Path, root: Path) -> None:
    from tokenizers import (  # type: ignore[import-untyped,unused-ignore]
        Tokenizer,
        models,
        pre_tokenizers,
        processors,
    )
    from transformers import BertConfig, BertModel

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(WORDS), intermediate_size=16, **small)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token=WORDS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "code").mkdir()
    for source in [*(root / "common").glob("*.py"), *(root / "embedding").glob("*.py")]:
        shutil.copyfile(source, folder / "code" / source.name)
