"""Shared by all tasks: flags, settings, output, and errors as a message and an exit code.

Every path is relative to the folder where ``invoke`` runs. Results for scripts go to standard output, everything else
to standard error. Exit codes are those of ``mme.errors``; 1 is Invoke's own (an unknown flag), 130 an interrupt.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import inspect as introspection
import io
import json as jsonlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke import Context, Exit, task

from mme import aws, console, releases
from mme.catalog import reader
from mme.catalog.spec import COMPRESSIONS, Catalog
from mme.errors import MmeError, UsageError
from mme.settings import Flags, Settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

WHERE_HELP = {
    "bucket": "the bucket with the models; else MME_BUCKET, else the Terraform output",
    "prefix": "the model prefix in the bucket; else MME_PREFIX, else the Terraform output, else models/",
    "endpoint": "the endpoint's name; else MME_ENDPOINT, else the Terraform output",
    "region": "the AWS region; else AWS_REGION, AWS_DEFAULT_REGION, else the Terraform output, else the profile's",
    "terraform": "a folder in which terraform apply has run, to read the names from, or DIR#OUTPUT for one of several "
    "endpoints in it; else MME_TERRAFORM",
}

CATALOG_HELP = "the catalogue (models.toml)"
JSON_HELP = "print JSON for a script to read"
AGAIN = "Run the same command again."
DRY_RUN_HELP = "say what would be done, and do nothing"


def command(
    help: Mapping[str, str],
    *,
    where: Sequence[str] = (),
    repeatable: Sequence[str] = (),
    positional: Sequence[str] = (),
) -> Callable[[Callable[..., None]], Any]:
    """An Invoke task whose errors end in a message and an exit code, never in a traceback.

    ``where`` names flags of WHERE_HELP that the task takes besides its own; the function gets them as ``settings``.
    ``repeatable`` flags may be given several times and arrive as a list; ``positional`` ones need no flag. There are no
    one-letter flags: Invoke would choose them by the order of the parameters.
    """

    def decorate(function: Callable[..., None]) -> Any:
        own = introspection.signature(function)

        @functools.wraps(function)
        def run(context: Context, **given: Any) -> None:
            _usable_streams()
            if where:
                given["settings"] = Settings(Flags(**{flag: given.pop(flag) for flag in where}), os.environ)
            with _errors_as_exit_codes(json=given.get("json") is True), _in_order_on_sigterm():
                for flag in ("notes", "author"):
                    _check_text(f"--{flag}", given.get(flag))
                function(context, **given)

        ordinary = [
            # With None, Invoke makes a list; with a tuple, it would take a word apart into its letters.
            parameter.replace(default=None) if parameter.name in repeatable else parameter
            for parameter in own.parameters.values()
            if parameter.name != "settings"
        ]
        added = [introspection.Parameter(flag, introspection.Parameter.KEYWORD_ONLY, default=None) for flag in where]
        run.__signature__ = own.replace(parameters=[*ordinary, *added])  # type: ignore[attr-defined]
        texts = {flag: _with_default(text, own.parameters.get(flag.replace("-", "_"))) for flag, text in help.items()}
        texts |= {flag: WHERE_HELP[flag] for flag in where}
        return task(auto_shortflags=False, positional=list(positional), iterable=list(repeatable), help=texts)(run)

    return decorate


def _with_default(text: str, parameter: introspection.Parameter | None) -> str:
    """The help of a flag with its default, which Invoke leaves out, where it has one and the text does not say it."""
    default = parameter.default if parameter is not None else None
    if not isinstance(default, str) or not default or re.search(rf"(\(|else |default ){re.escape(default)}\b", text):
        return text
    return f"{text}; default {default}"


_printed: ContextVar[bool] = ContextVar("printed")
"""Whether the running task has printed its JSON document."""


def print_error(kind: str, message: str, hint: str | None, code: int) -> None:
    """Print the error as a JSON document on standard output, if that can be written to."""
    # On one line, so that it is valid after the lines of a task that prints one document a line (--follow), too.
    about = {"kind": kind, "message": message, "hint": hint, "exit_code": code}
    with contextlib.suppress(OSError):
        print_json_line({"error": about})


def _usable_streams() -> None:
    """What a shell has closed (``>&-``) is nothing to fail on, nor are characters that the locale does not have."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _check_text(flag: str, value: str | None) -> None:
    """Raise UsageError for bytes from the command line that are not text in this locale."""
    if value and any("\ud800" <= character <= "\udfff" for character in value):
        raise UsageError(
            f"{flag} is not text in this locale ({sys.getfilesystemencoding()}).",
            "Give it in UTF-8, with a UTF-8 locale, as in LC_ALL=C.UTF-8.",
        )


@contextlib.contextmanager
def _errors_as_exit_codes(json: bool) -> Iterator[None]:
    """Print an error's message and hint to standard error, and exit with its code.

    With ``json``, the error is printed as JSON on standard output as well, unless the task has printed its own
    document.
    """

    def fail(error: Exception, message: str, hint: str | None, code: int) -> Exit:
        with contextlib.suppress(OSError):  # standard error, too, may be a full disk
            note(f"Error: {error if isinstance(error, MmeError) else MmeError(message, hint)}")
        if json and not _printed.get():
            print_error(type(error).__name__, message, hint, code)
        return Exit(code=code)

    _printed.set(False)
    try:
        yield
        sys.stdout.flush()
    except MmeError as error:
        raise fail(error, error.message, error.hint, error.exit_code) from error
    except KeyboardInterrupt as end:
        terminated = isinstance(end, _Terminated)
        how, code = ("Ended by SIGTERM", 143) if terminated else ("Interrupted", 130)
        message, hint = f"{how}.", "Nothing half-done is visible; run the same command again."
        with contextlib.suppress(OSError):
            note(f"{message} {hint}" if terminated else f"\n{message} {hint}")
        if json and not _printed.get():
            print_error("Interrupted", message, hint, code)
        raise Exit(code=code) from None
    except BrokenPipeError:
        raise Exit(code=reader_gone()) from None
    except aws.BROKEN_OFF as error:
        raise fail(error, f"The connection broke off in the middle of an answer ({error}).", AGAIN, 1) from error
    except OSError as error:
        raise fail(error, f"{error.filename or 'this machine'}: {error.strerror or error}.", None, 1) from error


def reader_gone() -> int:
    """The exit code where the reader of a pipe has gone (as in: invoke releases | head), of which Python would complain
    again at its end."""
    with contextlib.suppress(OSError):  # standard output may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


class _Terminated(KeyboardInterrupt):
    """A SIGTERM, as a service manager or a CI system that cancels a job sends it."""


@contextlib.contextmanager
def _in_order_on_sigterm() -> Iterator[None]:
    """Has a SIGTERM end the task as Ctrl-C does: folders to build in go, containers end. A second ends it at once."""
    outermost = threading.current_thread() is threading.main_thread()
    if not outermost or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def note(text: str) -> None:
    """Print a line for people on standard error. Commands in the text are named as the user calls them: ``mme
    upload``."""
    named = re.sub(r"\binvoke (?=[a-z])", f"{program_name()} ", text)
    print(console.plain(named), file=sys.stderr, flush=True)


def program_name() -> str:
    """The program that the user called: ``invoke``, ``mme`` or ``python -m mme``."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" and called.parent.name == "mme":
        return "python -m mme"
    return "mme" if called.stem == "mme" else "invoke"


def print_json(value: Any) -> None:
    """Print a JSON document for scripts on standard output."""
    _printed.set(True)
    print(json_text(value, indent=2), flush=True)


def print_json_line(value: Any) -> None:
    """Print a JSON document on one line, for tasks that print one after the other."""
    print(json_text(value), flush=True)


def json_text(value: Any, indent: int | None = None) -> str:
    """The value as JSON. Where standard output has no UTF-8, all that is not ASCII is written as escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = jsonlib.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return jsonlib.dumps(value, indent=indent)
    return text


def whole_number(flag: str, text: str, least: int = 0) -> int:
    """The value of a flag as a whole number (Invoke's own conversion ends in a traceback)."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise UsageError(f"{flag} takes a whole number, {least} or more, not {text!r}.")
    return value


def confirm(question: str, yes: bool) -> bool:
    """Whether the user agrees; with ``--yes`` without asking."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(
            "This needs a yes, and nobody is there to ask.", "Give --yes, or --dry-run to see what it does."
        )
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def check_compression(compression: str | None) -> None:
    """Raise UsageError for a value of --compression that is not known."""
    if compression is not None and compression not in COMPRESSIONS:
        raise UsageError(f"There is no compression {compression!r}.", f"Known: {', '.join(COMPRESSIONS)}.")


def who(author: str | None) -> str:
    """The author to record: the flag, MME_AUTHOR, or the user of this machine."""
    named = author or os.environ.get("MME_AUTHOR")
    if named:
        _check_text("MME_AUTHOR", named)
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user database
        return "unknown"


def load_catalog(context: Context, path: str) -> Catalog:
    """The catalogue, read once for all tasks of one call of ``invoke``. Raises CatalogError."""
    key = f"mme_catalog_{path}"
    if key not in context.config:
        context.config[key] = reader.load(Path(path))
    loaded: Catalog = context.config[key]
    return loaded


def open_store(settings: Settings) -> tuple[S3Client, releases.Store]:
    """The client and the place of the releases, after one call that shows they can be used."""
    store = releases.Store(settings.bucket, settings.prefix)
    s3 = aws.s3_client(settings.region)
    releases.check_bucket(s3, store)
    return s3, store


def name_of(name: str, number: int, of: int) -> str:
    """A model's name in a line of progress: which of how many it is, where there are several."""
    return f"{name} ({number} of {of})" if of > 1 else name


@contextlib.contextmanager
def stage(name: str, title: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show on a terminal what is being done to a model, with a rate where the amount is known."""
    if total:
        with console.progress(sys.stderr, f"{name}: {title}", total) as advance:
            yield advance
        return
    terminal = sys.stderr.isatty()
    if terminal:
        print(f"\r\x1b[K{name}: {title} …", end="", file=sys.stderr, flush=True)
    try:
        yield lambda _: None
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
