"""A handler's folder, checked before it travels: it parses, and defines what a container will call.

The code is read, never run.
"""

from __future__ import annotations

import ast
import difflib
import functools
from pathlib import Path

from mme import handler_files
from mme.errors import HandlerError
from mme.folder import Found

# Function -> how many arguments it is called with. Those of the toolkit may take a trailing ``context`` too.
TOOLKIT = {"model_fn": 1, "input_fn": 2, "predict_fn": 2, "output_fn": 2, "transform_fn": 4}
BATCHING = {"batch_fn": 2, "tokens_fn": 2}

SAMPLE = "sample.json"
REQUIREMENTS = "requirements.txt"
SETTINGS = "settings.json"


def check(folder: Path) -> tuple[Found, ...]:
    """The files that the handler in ``folder`` needs, the modules it imports from ``common`` among them.

    Raises HandlerError when a container could not use it."""
    script = folder / "inference.py"
    if not script.is_file():
        raise HandlerError(f"There is no inference.py in {folder}.", "A handler is a folder with that file.")
    found = handler_files.collect(folder)
    if any(item.path == SETTINGS for item in found):
        raise HandlerError(
            f"{folder / SETTINGS} would be overwritten by the model's settings.",
            "Move what it says to [models.NAME.settings] in the catalogue.",
        )
    for item in found:
        if item.path.endswith(".py"):
            _check_source(item.origin, item.origin.read_bytes(), item.path == "inference.py")
    return found


@functools.lru_cache(maxsize=256)  # one handler serves many models of a catalogue, and is read for each
def _check_source(path: Path, source: bytes, is_script: bool) -> None:
    tree = _parse(path, source)
    if is_script:
        _check_functions(path, tree)


def _parse(path: Path, source: bytes) -> ast.Module:
    try:
        return ast.parse(source, str(path), feature_version=(3, 10))
    except SyntaxError as error:
        raise HandlerError(
            f"{path}:{error.lineno or 1}: this is not valid Python: {error.msg}.",
            "It must be Python 3.10, which is what the containers understand.",
        ) from None
    except ValueError as error:  # null bytes, an encoding that is not what it says
        raise HandlerError(f"{path} is not Python source: {error}.", "Save it as UTF-8.") from None


def _check_functions(script: Path, tree: ast.Module) -> None:
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    names = set(functions) | _other_names(tree)
    defined = [name for name in TOOLKIT if name in names]
    if not defined:
        close = next((m[0] for name in names if (m := difflib.get_close_matches(name, TOOLKIT, n=1, cutoff=0.7))), "")
        guess = f"Did you mean {close}? " if close else ""
        raise HandlerError(
            f"{script} defines none of {', '.join(TOOLKIT)}.",
            f"{guess}Define at least model_fn(model_dir) and predict_fn(data, model), or transform_fn.",
        )
    clash = [name for name in ("input_fn", "predict_fn", "output_fn") if name in names]
    if "transform_fn" in names and clash:
        raise HandlerError(
            f"{script} defines transform_fn and also {', '.join(clash)}.",
            "transform_fn does the work of all three: keep it, or them.",
        )
    for name, function in functions.items():
        if name not in TOOLKIT and name not in BATCHING:
            continue
        if isinstance(function, ast.AsyncFunctionDef):
            raise HandlerError(
                f"{script}:{function.lineno}: {name} is async, and containers call it as a plain function.",
                "Remove the word async.",
            )
        wanted = TOOLKIT.get(name) or BATCHING[name]
        if not _takes(function.args, wanted) and not (name in TOOLKIT and _takes(function.args, wanted + 1)):
            raise HandlerError(
                f"{script}:{function.lineno}: {name} is called with {wanted} argument{'s' * (wanted > 1)}, "
                f"which it does not take.",
                "Give it the arguments that docs/handlers.md lists.",
            )


def _other_names(tree: ast.Module) -> set[str]:
    """Names bound at the top of the module by assignment or import."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and node in tree.body:
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _takes(arguments: ast.arguments, count: int) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    required = positional - len(arguments.defaults)
    keyword_only = sum(default is None for default in arguments.kw_defaults)
    return required <= count and (count <= positional or arguments.vararg is not None) and not keyword_only
