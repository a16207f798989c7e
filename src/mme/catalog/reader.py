"""models.toml -> ModelSpec: which models there are, where each comes from, and which handler serves it.

Reading a catalogue touches no network and no weights. Every complaint names the file, the line and the fix.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mme import handler_files
from mme.errors import CatalogError
from mme.folder import is_safe

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the tests run on 3.11 and later
    import tomli as tomllib
from mme.catalog.spec import (
    COMMIT,
    COMPRESSIONS,
    DTYPES,
    HANDLER_TASKS,
    KEYS,
    KINDS,
    MAX_NAME,
    NAME,
    PACKAGE,
    PIPELINE_HANDLER,
    PYTHON,
    QUANTIZES,
    REFUSED_TASKS,
    REPOSITORY,
    SENTENCE_SIMILARITY,
    TASK_ALIASES,
    TASKS,
    TEXT_RANKING,
    TRANSLATION,
    Catalog,
    ModelSpec,
    Source,
)
from mme.catalog.suggestion import missing_line
from mme.catalog.toml_lines import line_numbers

P = ParamSpec("P")
T = TypeVar("T")


def load(path: Path) -> Catalog:
    """Read and check the catalogue at ``path``.

    Raises CatalogError with file, line and fix of every mistake: the first as its message, the others in its hint.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CatalogError(
            f"There is no catalogue at {path}.",
            "Run this where models.toml is, or name the file with --catalog. A first one: the lines [models.NAME], "
            'source = "folder:PATH" and task = "text-classification".',
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path} cannot be read: {error}.", "It must be a text file in UTF-8.") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"\(at (?:line (\d+)|end of document)", str(error))
        line = int(where[1]) if where and where[1] else max(1, len(text.splitlines()))
        reason = re.sub(r" \(at .*", "", str(error))
        raise CatalogError(f"{path}:{line}: this is not valid TOML: {reason}.", _toml_hint(text, line)) from None
    except (ValueError, RecursionError) as error:
        raise CatalogError(
            f"{path}:1: this cannot be read: {str(error).partition(':')[0]}.",
            "Look for a value of enormous length or depth.",
        ) from None
    return _Reader(path, text).catalog(document)


def handler_roots(catalog: Path) -> tuple[Path, ...]:
    """The folders in which a handler's name is looked up, first match wins.

    model_code/ beside the catalogue, then the handlers that ship with mme.
    """
    return catalog.resolve().parent / "model_code", *handler_files.shipped_roots()


def _toml_hint(text: str, line: int) -> str:
    lines = text.splitlines()
    content = lines[line - 1] if line <= len(lines) else ""
    name = re.match(r"\s*\[models\.([\w/-]+)\]", content)
    if name and "/" in name[1]:
        return f'A name with a slash is quoted: [models."{name[1]}"]'
    return "Correct this line; the README shows a whole table."


class _Reader:
    """Turns a parsed document into specs, and knows on which line each key stands."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines = line_numbers(text)
        self.errors: list[CatalogError] = []

    def fail(self, keys: tuple[str, ...], message: str, hint: str) -> CatalogError:
        line = 1
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.lines:
                line = self.lines[keys[:length]]
                break
        return CatalogError(f"{self.path}:{line}: {message}", hint)

    def catalog(self, document: Mapping[str, Any]) -> Catalog:
        for key in document:
            if key != "models":
                hint = _did_you_mean(key, ["models"], "[models.NAME]")
                self.errors.append(self.fail((key,), f"unknown key {key!r}.", hint))
        models = document.get("models", {})
        if not isinstance(models, dict) or not (models or self.errors):
            raise self.fail(("models",), "the catalogue has no models.", "Add a table: [models.NAME]")
        specs = [self.attempt(self.model, name, table) for name, table in models.items()]
        if self.errors:
            raise self.all_errors()
        return Catalog(self.path, tuple(spec for spec in specs if spec is not None))

    def attempt(self, read: Callable[P, T], *given: P.args, **named: P.kwargs) -> T | None:
        """What ``read`` returns. A mistake is recorded and gives None, so that the rest is still checked."""
        try:
            return read(*given, **named)
        except CatalogError as error:
            self.errors.append(error)
            return None

    def all_errors(self) -> CatalogError:
        first, *others = self.errors
        if not others:
            return first
        lines = [*([first.hint] if first.hint else []), *map(str, others)]
        return CatalogError(first.message, "\n".join([*lines, f"{len(self.errors)} mistakes in {self.path}."]))

    def model(self, name: str, table: Any) -> ModelSpec | None:
        """The table as a spec; None when it has mistakes, which are noted."""
        before = len(self.errors)
        here = ("models", name)
        if not isinstance(table, dict):
            raise self.fail(here, f"{name!r} is not a table.", f"Write it as [models.{name}] with keys below it.")
        if not NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise self.fail(
                here,
                f"{name!r} cannot be a model's name.",
                f"A name is made of lower-case letters, digits and hyphens (neither first nor last), at most 63 "
                f"in a row, with / between parts, {MAX_NAME} characters in all: {_suggest_name(name)!r}.",
            )
        for key, value in table.items():
            self.attempt(self.check_key, here, name, key, value)
        if len(self.errors) > before:
            return None  # what follows relies on known keys with values of the right type
        source, revision = self.attempt(self.source_and_revision, here, name, table) or (None, None)
        adapter, adapter_revision = self.attempt(self.adapter_and_revision, here, table) or (None, None)
        served = self.attempt(self.task_and_handler, here, name, table)
        self.check_values(here, table)
        if source is None or served is None:
            return None
        task, handler = served
        self.attempt(self.check_adapter_merge, here, table, handler)
        settings = self.attempt(self.settings, here, name, table, handler)
        if settings is None or len(self.errors) > before:
            return None
        max_error = table.get("max_error")
        return ModelSpec(
            name=name,
            source=source,
            revision=revision,
            handler=handler,
            task=task,
            settings=settings,
            files=tuple(table.get("files", ())),
            dtype=table.get("dtype"),
            quantize=table.get("quantize"),
            max_error=None if max_error is None else float(max_error),
            adapter=adapter,
            adapter_revision=adapter_revision,
            adapter_merge=table.get("adapter_merge", True),
            compression=table.get("compression"),
            allow_pickle=table.get("allow_pickle", False),
            trust_remote_code=table.get("trust_remote_code", False),
            python=table.get("python", "3.12"),
            platform=table.get("platform", "manylinux_2_28_x86_64"),
            notes=table.get("notes", ""),
        )

    def source_and_revision(
        self, here: tuple[str, ...], name: str, table: Mapping[str, Any]
    ) -> tuple[Source, str | None]:
        if "source" not in table:
            raise self.fail(here, f"model {name!r} has no source.", 'Add one: source = "hub:OWNER/NAME"')
        source = self.source((*here, "source"), table["source"])
        return source, self.revision(here, "revision", source, table.get("revision"))

    def adapter_and_revision(self, here: tuple[str, ...], table: Mapping[str, Any]) -> tuple[Source | None, str | None]:
        adapter = self.source((*here, "adapter"), table["adapter"]) if "adapter" in table else None
        return adapter, self.revision(here, "adapter_revision", adapter, table.get("adapter_revision"))

    def settings(
        self, here: tuple[str, ...], name: str, table: Mapping[str, Any], handler: Path | None
    ) -> Mapping[str, Any]:
        settings = table.get("settings", {})
        self.check_settings((*here, "settings"), settings)
        if settings and handler is None:
            raise self.fail(
                (*here, "settings"),
                f"model {name!r} has settings but no handler to read them.",
                'Say whose they are: handler = "pipeline" reads those of nearly every task. Or remove the settings.',
            )
        return self.quantized(here, name, table, settings, handler)

    def check_values(self, here: tuple[str, ...], table: Mapping[str, Any]) -> None:
        """Note the mistakes among the keys whose values stand for themselves."""
        for key, allowed in (("dtype", DTYPES), ("quantize", QUANTIZES), ("compression", COMPRESSIONS)):
            if key in table and table[key] not in allowed:
                hint = _did_you_mean(table[key], allowed, ", ".join(allowed))
                self.errors.append(self.fail((*here, key), f"{key} {table[key]!r} is not known.", hint))
        if "max_error" in table and not 0 < table["max_error"] <= 2:
            message = "max_error must be above 0 and at most 2."
            self.errors.append(self.fail((*here, "max_error"), message, "0.01 is usual."))
        for pattern in table.get("files", ()):
            if not isinstance(pattern, str) or not is_safe(pattern):
                message = f"files must be a list of names and patterns below the source, not {pattern!r}."
                self.errors.append(self.fail((*here, "files"), message, 'Such as ["label_map.json", "extra/**"].'))
        if "python" in table and not PYTHON.fullmatch(table["python"]):
            message = f"python {table['python']!r} is not a version."
            self.errors.append(self.fail((*here, "python"), message, 'Write it as "3.12".'))

    def check_key(self, here: tuple[str, ...], name: str, key: str, value: Any) -> None:
        if key not in KEYS:
            if isinstance(value, dict) and "source" in value:
                raise self.fail(
                    (*here, key),
                    f"{key!r} is a table inside model {name!r}.",
                    f'A name with parts is quoted: [models."{name}/{key}"]',
                )
            raise self.fail((*here, key), f"unknown key {key!r}.", _did_you_mean(key, KEYS, ", ".join(KEYS)))
        kind, words = KEYS[key]
        numeric = kind is float and isinstance(value, int) and not isinstance(value, bool)
        if not isinstance(value, kind) and not numeric:
            raise self.fail((*here, key), f"{key} must be {words}.", f"It is {value!r} now.")

    def source(self, here: tuple[str, ...], text: str) -> Source:
        kind, colon, location = text.partition(":")
        examples = '"hub:OWNER/NAME", "folder:PATH" or "package:NAME"'
        if not colon or kind not in KINDS:
            guess = f'Did you mean "hub:{text}"? ' if not colon and REPOSITORY.fullmatch(text) else ""
            raise self.fail(here, f"{text!r} is not a source.", f"{guess}A source is one of {examples}.")
        pattern = {"hub": REPOSITORY, "package": PACKAGE}.get(kind)
        wrong = not location or (pattern is not None and not pattern.fullmatch(location)) or "\0" in location
        if wrong or (kind == "package" and ".." in location.split("/")):
            raise self.fail(here, f"{text!r} is not a source: {location!r} cannot be followed.", f"Write {examples}.")
        if kind == "folder":
            folder = self.folder(here, location)
            return Source(kind, location, folder)
        return Source(kind, location)

    def folder(self, here: tuple[str, ...], written: str) -> Path:
        """The folder that a path in the catalogue means, relative to the catalogue. It need not exist."""
        try:
            folder = (self.path.parent / Path(written).expanduser()).absolute()
            (folder / "code" / "inference.py").is_file()  # fails for what cannot be a path
        except RuntimeError:
            raise self.fail(here, f"{written!r} names a user who has no home.", "Write the folder's path.") from None
        except OSError as error:
            raise self.fail(
                here, f"{written[:80]!r} is not a path: {error.strerror}.", "Write the folder's path."
            ) from None
        return folder

    def revision(self, model: tuple[str, ...], key: str, source: Source | None, revision: str | None) -> str | None:
        if source is None or source.kind != "hub":
            if revision is not None:
                raise self.fail(
                    (*model, key),
                    f"{key} is only for a source on the Hub.",
                    "Remove it: the files themselves say which version it is.",
                )
            return None
        owner = "source" if key == "revision" else "adapter"
        if revision is None:
            raise self.fail(
                (*model, owner),
                f"a model from the Hub needs its {key}.",
                f'Add {key} = "…" with the full commit, 40 hexadecimal digits, so that it cannot change unseen.',
            )
        if not COMMIT.fullmatch(revision):
            raise self.fail(
                (*model, key),
                f"{key} {revision!r} is not a full commit.",
                "A branch or a tag can move. Take the 40 hexadecimal digits of the commit from the model's page "
                "(Files and versions, History).",
            )
        return revision

    def check_adapter_merge(self, here: tuple[str, ...], table: Mapping[str, Any], handler: Path | None) -> None:
        key = (*here, "adapter_merge")
        if "adapter_merge" in table and "adapter" not in table:
            raise self.fail(key, "adapter_merge is only for a model with an adapter.", "Remove it, or add the adapter.")
        if table.get("adapter_merge", True):
            return
        if handler is None:
            raise self.fail(
                key,
                "an adapter that is not merged needs a handler that applies it.",
                'Add handler = "embedding" or "generation", or one of your own; or remove adapter_merge.',
            )
        # The modules that come with this project speak of adapters whether or not the handler has them applied.
        scripts = [item for item in handler_files.collect(handler) if item.path.endswith(".py")]
        own = [item.origin for item in scripts if handler in item.origin.parents]
        applied = any(item.path == handler_files.ADAPTER_MODULE for item in scripts)
        if not applied and not any(b"adapter" in script.read_bytes() for script in own):
            raise self.fail(
                (*here, "handler"),
                f"the handler {table['handler']!r} knows of no adapter: it would answer as the base alone.",
                "docs/handlers.md says how a handler applies one; or remove adapter_merge, and it is merged.",
            )

    def quantized(
        self,
        here: tuple[str, ...],
        name: str,
        table: Mapping[str, Any],
        settings: Mapping[str, Any],
        handler: Path | None,
    ) -> Mapping[str, Any]:
        """The settings, with ``quantize`` among them where the model's table says it."""
        if "quantize" not in table and "quantize" not in settings:
            return settings
        able = handler is not None and handler_files.computes_in_int8(handler)
        if able and "quantize" in settings:
            table_name = json.dumps(name) if "/" in name else name
            raise self.fail(
                (*here, "settings", "quantize"),
                "quantize is a key of the model, not of its settings: what it costs is measured at packaging.",
                f'Write quantize = "int8" under [models.{table_name}], above [models.{table_name}.settings].',
            )
        quantize = table.get("quantize")
        if quantize is None:
            return settings
        if not able:
            raise self.fail(
                (*here, "quantize"),
                f"quantize needs a handler that computes in int8: one with {handler_files.INT8_HANDLER}.",
                'handler = "embedding" and "generation" do; one of your own does where it imports that module.',
            )
        if settings.get("dtype", "float32") != "float32":
            raise self.fail(
                (*here, "settings", "dtype"),
                f"quantize needs the setting dtype float32, not {settings['dtype']!r}.",
                "Remove one of the two. (The model's own dtype goes with quantize: it is how the rest is stored.)",
            )
        return {**settings, "quantize": quantize}

    def task_and_handler(
        self, here: tuple[str, ...], name: str, table: Mapping[str, Any]
    ) -> tuple[str | None, Path | None]:
        written: str | None = table.get("handler")
        task = self.task(here, table.get("task"), written)
        if task == SENTENCE_SIMILARITY:
            task, written = HANDLER_TASKS["embedding"], written or "embedding"
        if task == TEXT_RANKING:
            written = written or "reranking"
        if written is not None:
            handler = self.handler((*here, "handler"), written)
            task = task or HANDLER_TASKS.get(written)
            if task is None and handler_files.is_pipeline(handler):
                raise self.fail(
                    (*here, "handler"),
                    f"the handler {written!r} needs the model's task.",
                    f"Add task, one of {', '.join(TASKS)}.",
                )
            return task, handler
        own = self.own_handler(here, table)
        if own is not None:
            return task, own
        if task is None:
            line = self.suggestion(here, table)
            raise self.fail(
                here,
                f"model {name!r} has neither a handler nor a task.",
                (f"Add {line} Or " if line else "Add ")
                + 'handler = "embedding", "generation" or "reranking", a folder of your own ("./my_handler"), or a '
                'task such as "text-classification" (docs/handlers.md has them all).',
            )
        return task, None

    def suggestion(self, here: tuple[str, ...], table: Mapping[str, Any]) -> str | None:
        """The line that the table of a folder most likely lacks, and why; else None."""
        folder = self.source_folder(here, table)
        return missing_line(folder) if folder is not None else None

    def task(self, here: tuple[str, ...], task: str | None, handler: str | None) -> str | None:
        """The task under its own name."""
        if task is None:
            return None
        task = TASK_ALIASES.get(task, task)
        if task in TASKS or TRANSLATION.fullmatch(task):
            return task
        if task in (SENTENCE_SIMILARITY, TEXT_RANKING):
            if handler != PIPELINE_HANDLER:
                return task
            own = "embedding" if task == SENTENCE_SIMILARITY else "reranking"
            raise self.fail(
                (*here, "handler"),
                f"the handler {handler!r} has no task {task!r}.",
                f'Leave the handler out, or say handler = "{own}".',
            )
        if task in REFUSED_TASKS:
            raise self.fail((*here, "task"), f"task {task!r} cannot be served as it is.", REFUSED_TASKS[task])
        known = (*TASKS, SENTENCE_SIMILARITY, TEXT_RANKING, *TASK_ALIASES)
        raise self.fail((*here, "task"), f"task {task!r} is not known.", _did_you_mean(task, known, ", ".join(known)))

    def own_handler(self, here: tuple[str, ...], table: Mapping[str, Any]) -> Path | None:
        """The handler that a folder brings with it, as a model for SageMaker has it: code/inference.py. Raises
        CatalogError where it brings one that lies elsewhere: to serve it by ours would be to leave its own out."""
        folder = self.source_folder(here, table)
        if folder is None:
            return None
        if (folder / "code" / "inference.py").is_file():
            return folder / "code"
        if (folder / "inference.py").is_file():
            raise self.fail(
                (*here, "source"),
                f"{folder} has a handler of its own, inference.py, at its root, and the table names none.",
                "Move it, and what it imports, into a folder code/ beside the weights; or name the handler that is to "
                "serve the model.",
            )
        return None

    def source_folder(self, here: tuple[str, ...], table: Mapping[str, Any]) -> Path | None:
        """The folder that is the table's source; None where it is another source, or not there."""
        kind, _, location = str(table.get("source", "")).partition(":")
        if kind != "folder" or not location or "\0" in location:
            return None
        try:
            return self.folder((*here, "source"), location)
        except CatalogError:
            return None  # which is said of the source

    def handler(self, here: tuple[str, ...], written: str) -> Path:
        if written.startswith((".", "/", "~")):
            folder = self.folder(here, written)
            if not (folder / "inference.py").is_file():
                raise self.fail(here, f"handler {written!r} has no inference.py.", f"It was looked for in {folder}.")
            return folder
        roots = handler_roots(self.path)
        known = sorted({p.parent.name for root in roots for p in root.glob("*/inference.py")})
        if written in known:
            return next(root / written for root in roots if (root / written / "inference.py").is_file())
        folder = self.folder(here, written)
        guess = f'Did you mean "./{written}"? ' if (folder / "inference.py").is_file() else ""
        raise self.fail(
            here,
            f"there is no handler {written!r}.",
            guess or _did_you_mean(written, known, f"{', '.join(known) or 'none'}, or a path such as ./{written}"),
        )

    def check_settings(self, here: tuple[str, ...], settings: Any) -> None:
        try:
            json.dumps(settings, allow_nan=False)
        except (TypeError, ValueError) as error:
            bad = next((key for key, value in settings.items() if not _is_json(value)), "")
            raise self.fail(
                (*here, bad), f"settings become JSON, and {bad!r} cannot: {error}.", "Write it as a string."
            ) from None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}? Known: {otherwise}." if close else f"Known: {otherwise}."


def _suggest_name(name: str) -> str:
    parts = (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:63].strip("-") for part in name.split("/"))
    return "/".join(part for part in parts if part) or "my-model"
