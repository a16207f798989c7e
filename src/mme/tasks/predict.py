"""Asking a model on the endpoint."""

from __future__ import annotations

import contextlib
import json as jsonlib
import sys
from pathlib import Path
from typing import Any

from invoke import Context

from mme import aws, console
from mme import channels as channel_objects
from mme import releases as versions
from mme.client import endpoint as endpoints
from mme.errors import UsageError
from mme.settings import Settings
from mme.tasks.command import command, note


@command(
    {
        "model": "the model, or one of its channels as in bert@staging",
        "target": "or an exact version, as the target model",
        "text": "the input",
        "file": "a file with the input: .json, .npy, or text; - is standard input",
        "parameters": "a JSON object that goes with the text, as in '{\"max_new_tokens\": 20}'",
        "accept": "the type of answer to ask for: application/json or application/x-npy",
        "content-type": "the type of the input, where it is not clear from the file's name",
        "key": "the same key always gets the same version of a channel (a user's or session's id)",
        "save": "write the answer as it came to this file",
    },
    where=("bucket", "prefix", "endpoint", "region", "terraform"),
)
def predict(
    context: Context,
    settings: Settings,
    model: str | None = None,
    target: str | None = None,
    text: str | None = None,
    file: str | None = None,
    parameters: str | None = None,
    accept: str = endpoints.JSON,
    content_type: str | None = None,
    key: str | None = None,
    save: str | None = None,
) -> None:
    """Ask a model on the endpoint and print the answer as JSON.

    --model asks the version that its channel means (by weight, when there are several), or the newest one when it has
    no channel. The input is --text, --file, or standard input: text is sent as {"inputs": TEXT}, JSON as
    it is.
    """
    if bool(model) == bool(target):
        raise UsageError("Give either --model or --target.", "As in: invoke predict --model bert --text hello.")
    body, kind = _input(text, file, parameters, content_type)
    name = settings.endpoint
    if model:
        store = versions.Store(settings.bucket, settings.prefix)
        split, _ = channel_objects.current_split(aws.s3_client(settings.region), store, model)
        target = channel_objects.pick(split, key)
    answer = endpoints.predict(
        aws.runtime_client(settings.region),
        name,
        str(target),
        body,
        content_type=kind,
        accept=accept,
        waiting=lambda: note(f"{target} is still loading; asking again ...") if sys.stderr.isatty() else None,
    )
    if save:
        try:
            Path(save).write_bytes(answer.body)
        except OSError as error:
            raise UsageError(f"Cannot write {save}: {error.strerror}.") from error
    else:
        print(jsonlib.dumps(endpoints.decode(answer), ensure_ascii=False))
    if sys.stderr.isatty():
        note(f"{answer.target} answered {console.size(len(answer.body))} in {answer.seconds * 1000:.0f} ms.")


def _input(text: str | None, file: str | None, parameters: str | None, content_type: str | None) -> tuple[bytes, str]:
    """The body to send and its type."""
    if text is not None and file:
        raise UsageError("Give either --text or --file.")
    if text is None:
        data, kind = _read_input(file)
        if content_type or kind:
            if parameters:
                raise UsageError("--parameters goes with text alone.", "Put the parameters into the JSON.")
            return data, content_type or kind
        try:
            text = data.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError("The input is not text in UTF-8.", "Say what it is with --content-type.") from error
    if content_type and content_type != endpoints.JSON:
        return text.encode(), content_type
    return jsonlib.dumps({"inputs": text, **_parameters(parameters)}).encode(), endpoints.JSON


def _read_input(file: str | None) -> tuple[bytes, str]:
    """What is in the file or on standard input, and its type; no type for text."""
    if not file or file == "-":
        if sys.stdin is None or (sys.stdin.isatty() and not file):
            raise UsageError("There is no input.", "Give --text or --file, or pipe it in.")
        data = sys.stdin.buffer.read()
        if not data:
            raise UsageError("Standard input is empty.", "Give --text or --file, or pipe the input in.")
        suffix = ""
    else:
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"Cannot read {file}: {error.strerror}.") from error
        suffix = Path(file).suffix.lower()
    if suffix in (".json", ".npy"):
        return data, endpoints.JSON if suffix == ".json" else endpoints.NPY
    if suffix != ".txt" and data.lstrip()[:1] in (b"{", b"["):
        with contextlib.suppress(ValueError):  # "[CLS] is a word" is text
            jsonlib.loads(data)
            return data, endpoints.JSON
    return data, ""


def _parameters(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        parsed = jsonlib.loads(text)
    except ValueError as error:
        raise UsageError(f"--parameters is not JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise UsageError("--parameters is not a JSON object.", "As in: --parameters '{\"max_new_tokens\": 20}'.")
    return {"parameters": parsed}
