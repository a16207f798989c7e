"""Tokenizers that exist only as a SentencePiece model: made into a fast one where that is possible, and checked.

transformers reads such a file with the help of protobuf. Where that fails it takes the file for one of tiktoken's: it
then says that tiktoken is missing, or, with tiktoken installed, makes a tokenizer of it that cuts texts in half.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from mme.catalog.spec import ModelSpec
from mme.errors import SourceError
from mme.snapshot import libraries, portable

MODELS = (
    *("sentencepiece.bpe.model", "sentencepiece.model", "spiece.model", "spm.model", "spm_char.model"),
    *("tokenizer.model", "source.spm"),
)
FAST = "tokenizer.json"
TEKKEN = "tekken.json"
MOST_UNKNOWN = 0.02  # of the model's pieces: what tokenizers drop or rename on purpose
INSTALL = "pip install 'mme[package]' brings versions that go together."

# Tasks whose input is not a text, or not only one: their models may have no tokenizer.
NO_TEXT = ("image-", "audio-", "video-", "object-", "mask-", "depth-", "keypoint-", "automatic-", "document-")


def load(spec: ModelSpec, source: Path) -> Any | None:
    """The tokenizer in ``source``; None when there is none and the task needs none. Raises SourceError."""
    from transformers import AutoTokenizer

    what = f"{spec.name} ({spec.source})"
    if not portable.has_tokenizer(source):
        if (source / TEKKEN).is_file():
            raise SourceError(
                f"{what} has its tokenizer only as {TEKKEN}, which takes the library mistral-common to read; the "
                "containers of transformers do not have it.",
                "Take the tokenizer of a repository that has the same model with a tokenizer.json.",
            )
        if spec.task is not None and not spec.task.startswith(NO_TEXT):
            raise SourceError(
                f"{what} has no tokenizer: none of {', '.join(portable.VOCABULARIES)}.",
                "Put the tokenizer's files beside the weights.",
            )
        return None
    file = model(source)
    if file is not None:
        _check_format(what, file)
        check_readable(what, file)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=spec.trust_remote_code)
    if file is not None:
        check_whole(what, file, tokenizer)
    return tokenizer


def model(folder: Path) -> Path | None:
    """The SentencePiece model of a folder that has no fast tokenizer."""
    if (folder / FAST).is_file():
        return None
    return next((folder / name for name in MODELS if (folder / name).is_file()), None)


def check_readable(what: str, path: Path) -> None:
    """Raise SourceError, with the cause, where this environment cannot read a SentencePiece model."""
    try:
        import sentencepiece
    except ImportError as error:
        raise SourceError(
            f"{what} has its tokenizer only as a SentencePiece model ({path.name}), which takes the library "
            f"sentencepiece to read: {libraries.first_line(error)}.",
            INSTALL,
        ) from None
    try:
        from sentencepiece import sentencepiece_model_pb2  # noqa: F401
    except Exception as error:  # whatever protobuf raises: it has errors of its own for versions that do not fit
        raise SourceError(
            f"{what} has its tokenizer only as a SentencePiece model ({path.name}), and protobuf "
            f"{_version('protobuf')} cannot read it for sentencepiece {_version('sentencepiece')}: "
            f"{libraries.first_line(error)}.",
            INSTALL,
        ) from None
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(path))
    except Exception as error:
        raise SourceError(
            f"{what}: {path.name} is not a SentencePiece model: {libraries.first_line(error)}.",
            "Download or copy it again.",
        ) from None


def _check_format(what: str, path: Path) -> None:
    """Raise SourceError for a file of tiktoken's: lines of a token in base64 and its number."""
    with path.open("rb") as file:
        line = file.readline(200)
    if re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+\s*", line):
        raise SourceError(
            f"{what} has its tokenizer only as {path.name}, in the format of tiktoken, which says neither how texts "
            "are cut nor which tokens are special.",
            "Take the model in the form of transformers, with a tokenizer.json.",
        )


def check_whole(what: str, path: Path, tokenizer: Any) -> None:
    """Raise SourceError where the tokenizer made of the SentencePiece model does not know its pieces."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    count = processor.get_piece_size()
    normal = [
        processor.id_to_piece(number)
        for number in range(count)
        if not (processor.is_control(number) or processor.is_unknown(number) or processor.is_unused(number))
    ]
    vocabulary = tokenizer.get_vocab()
    unknown = [piece for piece in normal if piece not in vocabulary]
    if len(unknown) > MOST_UNKNOWN * len(normal):
        raise SourceError(
            f"{what}: the tokenizer that transformers makes of {path.name} lacks {len(unknown)} of its {len(normal)} "
            f"pieces, such as {unknown[0]!r}.",
            f"It was read as another kind of file. {INSTALL}",
        )


PROBES = (
    *(
        "The house is QUIET, and nobody's at home!",
        "Café déjà vu, naïve: 日本語 Ελληνικά",
        "1234.56 + 7 = (8*9) #10 @x_y",
    ),
    *("  two  spaces\n\na tab\tand more ", "<s> </s> [MASK] <unk> <pad>"),
)
SOME = 200  # words of the vocabulary, which are read, too


def check_same(spec: ModelSpec, tokenizer: Any, source: Path, into: Path) -> None:
    """Raise SourceError where the tokenizer as it is packed, in ``into``, reads texts otherwise than that of the
    source, or has other chat templates. Where a tokenizer.json that was made for it is at fault, it is removed."""
    difference = _difference(spec, tokenizer, into)
    if difference is not None and (into / FAST).is_file() and not (source / FAST).is_file():
        (into / FAST).unlink()
        difference = _difference(spec, tokenizer, into)
    if difference is not None:
        raise SourceError(
            f"{spec.name} ({spec.source}): its tokenizer is another one once it is packed: {difference}.",
            "Load it with AutoTokenizer in Python, call save_pretrained, and look into the tokenizer_config.json and "
            "tokenizer.json that it writes.",
        )


def _difference(spec: ModelSpec, tokenizer: Any, into: Path) -> str | None:
    from transformers import AutoTokenizer

    try:
        packed = AutoTokenizer.from_pretrained(into, local_files_only=True, trust_remote_code=spec.trust_remote_code)
    except Exception as error:  # whatever a tokenizer raises that misses a file
        return f"it cannot be loaded ({type(error).__name__}: {libraries.first_line(error)})"
    words = sorted(tokenizer.get_vocab()) if hasattr(tokenizer, "get_vocab") else []
    some = " ".join(words[:: max(1, len(words) // SOME)])
    for text in (*PROBES, some):
        try:
            right = tokenizer(text)["input_ids"]
        except Exception:  # it does not read a text alone, but with boxes, a table or an entity
            break
        read = packed(text)["input_ids"]
        if read != right:
            place = next((n for n, pair in enumerate(zip(read, right, strict=False)) if pair[0] != pair[1]), 0)
            return (
                f"{text[:40]!r} is {right[place : place + 5]} from token {place} on, and then {read[place : place + 5]}"
            )
    if getattr(tokenizer, "chat_template", None) != getattr(packed, "chat_template", None):
        return "its chat template is not the same"
    return None


def facts(folder: Path, tokenizer: Any | None, into: Path) -> dict[str, Any]:
    """What a manifest says of the tokenizer, where it was only a SentencePiece model."""
    path = model(folder)
    if path is None or tokenizer is None:
        return {}
    fast = (into / FAST).is_file()
    return {"tokenizer": f"{FAST} made from {path.name}" if fast else f"needs sentencepiece for {path.name}"}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
