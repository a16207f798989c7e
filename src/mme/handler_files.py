"""The files of a handler: those of its folder, and the modules that they import from a folder named ``common``.

Several handlers share modules in ``common``, beside their folders. An archive has to stand alone, so the modules that a
handler imports travel with it, in the same folder as its ``inference.py``. Which those are is read from the import
statements, in the handler's files and in the modules so added. The code is never run.

A module is looked for, in this order, in

1. the handler's own folder, so a copy of its own takes precedence;
2. ``common`` beside the handler's folder;
3. the ``common`` that comes with this project.

What is in none of them is left to the container: the standard library, torch, the handler's requirements.
"""

from __future__ import annotations

import ast
import functools
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from mme.errors import HandlerError
from mme.folder import FolderFile, files

COMMON = "common"
# A handler with this file computes in int8 where its settings say so, and reads weights that are stored so.
INT8_HANDLER = "handler_int8.py"
# A handler with this file applies an adapter that lies beside its base.
ADAPTER_MODULE = "handler_adapter.py"
# A handler with this file serves the task that its settings name.
PIPELINE_MODULE = "pipeline_tasks.py"
# A handler with this file writes texts as its generation_config.json says.
GENERATION_MODULE = "generation_config.py"
# A handler with this file computes what sentence-transformers keeps beside a model.
SENTENCE_HANDLER = "handler_sentence.py"


def shipped_roots() -> tuple[Path, ...]:
    """Where the handlers of this project may be: inside the installed package, or at the root of the repository when
    mme is installed from there in editable mode."""
    package = Path(__file__).resolve().parent
    return package / "model_code", package.parents[1] / "model_code"


def collect(folder: Path) -> tuple[FolderFile, ...]:
    """Every file that the handler in ``folder`` needs in an archive's ``code/``, by path inside it.

    Raises SourceError for a file that may not be packed, HandlerError for a module of ``common`` that is a link out of
    it. A file that is not valid Python imports nothing here; ``mme.archive.handler`` refuses it.
    """
    own = files(folder)
    by_path = {item.path: item for item in own}
    names = {Path(item.path).parts[0].partition(".")[0] for item in own if item.path.endswith((".py", ".so"))}
    roots = [root for root in _common_folders(folder) if root.is_dir()]
    todo = list(own)
    while todo and roots:
        item = todo.pop()
        if not item.path.endswith(".py"):
            continue
        for name in imported(_read(item.origin)) - names:
            names.add(name)
            added = next((module for root in roots if (module := _module(root, name))), [])
            by_path.update((item.path, item) for item in added)
            todo += added
    return tuple(sorted(by_path.values(), key=lambda item: item.path.encode()))


def computes_in_int8(folder: Path) -> bool:
    """Whether the handler in ``folder`` has or imports handler_int8.py."""
    return has_module(folder, INT8_HANDLER)


def has_module(folder: Path, name: str) -> bool:
    """Whether the file ``name`` is among those that the handler in ``folder`` has or imports."""
    return any(item.path == name for item in collect(folder))


def is_pipeline(folder: Path) -> bool:
    """Whether the handler in ``folder`` is made for any task, which its settings name."""
    return (folder / PIPELINE_MODULE).is_file()


def copy_handler(handler: Path, code: Path) -> None:
    """Copy the handler's files into ``code``, a folder, as an archive would hold them."""
    for item in collect(handler):
        target = code / item.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(item.origin, target)


def _common_folders(folder: Path) -> Iterable[Path]:
    return (folder.absolute().parent / COMMON, *(root / COMMON for root in shipped_roots()))


def _module(root: Path, name: str) -> list[FolderFile]:
    """The files of the module or package ``name`` in ``root``, by path below it; none where there is no such module."""
    script, package = root / f"{name}.py", root / name
    if (package / "__init__.py").is_file():
        _check_inside(root, package)
        return [FolderFile(f"{name}/{item.path}", item.origin, item.size) for item in files(package)]
    if not script.is_file():
        return []
    _check_inside(root, script)
    return [FolderFile(script.name, script, script.stat().st_size)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HandlerError(f"{path} cannot be read: {error.strerror}.", "Check the file.") from None


def _check_inside(root: Path, path: Path) -> None:
    if root.resolve() not in path.resolve().parents:
        raise HandlerError(
            f"{path} is a link that leads out of {root}.", "Put the file itself there: what is packed must be in sight."
        )


@functools.lru_cache(maxsize=256)  # one handler serves many models of a catalogue, and is read for each
def imported(source: bytes) -> frozenset[str]:
    """The top-level names of all modules that the Python code imports, wherever in it, but those of the standard
    library. Empty for what is not valid Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return frozenset(names - sys.stdlib_module_names)
