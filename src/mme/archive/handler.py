"""A handler's folder, checked before it travels: it parses, and defines what a container will call.

The code is read, never run.
"""

from __future__ import annotations

import ast
import difflib
import functools
from collections.abc import Iterator
from pathlib import Path

from mme import handler_files
from mme.errors import HandlerError
from mme.folder import FolderFile

# Function -> how many arguments it is called with. Those of the toolkit may take a trailing ``context`` too.
TOOLKIT = {"model_fn": 1, "input_fn": 2, "predict_fn": 2, "output_fn": 2, "transform_fn": 4}
BATCHING = {"batch_fn": 2, "tokens_fn": 2}

SAMPLE = "sample.json"
REQUIREMENTS = "requirements.txt"
SETTINGS = "settings.json"


def check(folder: Path) -> tuple[FolderFile, ...]:
    """The files that the handler in ``folder`` needs, the modules it imports from ``common`` among them.

    Raises HandlerError when a container could not use it."""
    script = folder / "inference.py"
    if not script.is_file():
        raise HandlerError(f"There is no inference.py in {folder}.", "A handler is a folder with that file.")
    entries = handler_files.collect(folder)
    if any(item.path == SETTINGS for item in entries):
        raise HandlerError(
            f"{folder / SETTINGS} would be overwritten by the model's settings.",
            "Move what it says to [models.NAME.settings] in the catalogue.",
        )
    for item in entries:
        if item.path.endswith(".py"):
            _check_source(item.origin, item.origin.read_bytes(), item.path == "inference.py")
    return entries


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
    """Refuse what surely cannot work; verification finds the rest."""
    module = _Module(tree)
    if not module.open and not module.names & TOOLKIT.keys():
        close = next((m[0] for n in module.names if (m := difflib.get_close_matches(n, TOOLKIT, n=1, cutoff=0.7))), "")
        guess = f"Did you mean {close}? " if close else ""
        raise HandlerError(
            f"{script} defines none of {', '.join(TOOLKIT)}.",
            f"{guess}Define at least model_fn(model_dir) and predict_fn(data, model), or transform_fn.",
        )
    clash = [name for name in ("input_fn", "predict_fn", "output_fn") if name in module.functions]
    if "transform_fn" in module.functions and clash:
        raise HandlerError(
            f"{script} defines transform_fn and also {', '.join(clash)}.",
            "transform_fn does the work of all three: keep it, or them.",
        )
    for name, function in module.functions.items():
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


class _Module:
    """What a module's top level certainly defines, and what it may.

    ``functions`` are those that stand as they are written: at the top level, without a decorator, and bound nowhere
    else. ``names`` is everything that is bound at the top level or inside its if, try, with, for and match. ``open``
    says that more may be bound than can be read: by a star import, exec, globals() or setattr.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self.names: set[str] = set()
        self.open = False
        bound: dict[str, int] = {}
        for node in _top_level(tree):
            for name in self._bound_by(node):
                bound[name] = bound.get(name, 0) + 1
        self.names = set(bound)
        for function in tree.body:
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.decorator_list:
                continue
            if bound[function.name] == 1 and not self.open:
                self.functions[function.name] = function

    def _bound_by(self, node: ast.AST) -> list[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return [node.name]
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            return [node.id]
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.open = self.open or any(alias.name == "*" for alias in node.names)
            return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            self.open = self.open or node.func.id in ("exec", "globals", "setattr", "vars", "locals")
        return []


def _top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node of the module that is not inside a function, a lambda or a class."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


def _takes(arguments: ast.arguments, count: int) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    required = positional - len(arguments.defaults)
    keyword_only = sum(default is None for default in arguments.kw_defaults)
    return required <= count and (count <= positional or arguments.vararg is not None) and not keyword_only
