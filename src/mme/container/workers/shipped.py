"""The modules of this project's own handlers, imported once before the fork.

Every archive with such a handler brings the same files in its ``code/``, and to import them takes each process 25 ms
and 4 MB. So the parent imports those that come with this container, and a process whose model has the very same bytes
under the same name finds them imported. The parent never runs a model's code: it runs its own copy of what is equal.

A model may bring another version of any module, of ours or of a library that ours import. Whatever depends on that
is imported from the model's folder, as it would be without this.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mme.container.files import read_regular
from mme.container.recipes import MAX_READ, code_key

COMMON = "common"
SUFFIXES = tuple(importlib.machinery.all_suffixes())
# They take long to import, so they are what MME_PRELOAD names, and nothing here brings one in that it leaves out.
HEAVY = frozenset({"onnxruntime", "torch", "transformers"})


@dataclass(frozen=True)
class Preimported:
    """An imported module that is not in ``sys.modules``, so that nothing finds it but :meth:`Shipped.adopt`."""

    module: ModuleType
    needs: frozenset[str]  # top-level names of all that it imports


class Shipped:
    def __init__(self) -> None:
        self._preimported: dict[tuple[str, str], Preimported] = {}  # by name and digest
        self._names: set[str] = set()

    def keep(self, roots: Iterable[Path]) -> None:
        """Import the handlers in the first of these folders that is there: each in a folder of its own, and what they
        have in common in ``common``. A handler whose libraries are not there is left out."""
        root = next((root for root in roots if (root / COMMON).is_dir()), None)
        if root is None:
            return
        common = _sources(root / COMMON)
        imported: dict[str, ModuleType] = {}
        for folder in sorted(path.parent for path in root.glob("*/inference.py")):
            sources = {**common, **_sources(folder)}
            needs = {name: _imported(source) for name, (_, source) in sources.items()}
            if any(_is_left_out(name) for name in HEAVY & frozenset().union(*needs.values())):
                continue
            if any(name in sys.modules for name in sources):
                continue  # not a module of this project
            modules = _import(folder, root / COMMON, sources, imported)
            imported |= {name: module for name, module in modules.items() if name in common}
            for name, module in modules.items():
                self._preimported[name, code_key(sources[name][1])] = Preimported(module, needs[name])
        self._names = {name for name, _ in self._preimported}

    def has(self, name: str) -> bool:
        """Whether a module of this name was imported."""
        return name in self._names

    def let_go(self) -> None:
        """Undo :meth:`adopt`."""
        for (name, _), item in self._preimported.items():
            if sys.modules.get(name) is item.module:
                del sys.modules[name]

    def adopt(self, model_dir: str) -> list[str]:
        """In a model's process: put the modules that are equal to those in the model's ``code/`` into ``sys.modules``,
        and return their names. To be called once the model's folders are on the path."""
        code = f"{model_dir}/code"
        in_code = _importable(code)
        beside = in_code.keys() | _importable(model_dir).keys()
        ours: dict[str, Preimported] = {}
        for name in self._names & in_code.keys():
            # Alone under its name: a package, or a module in another form, would go before it.
            if in_code[name] == [f"{name}.py"] and name not in sys.modules:
                with contextlib.suppress(OSError, ValueError):
                    item = self._preimported.get((name, code_key(read_regular(f"{code}/{name}.py", MAX_READ))))
                    if item is not None:
                        ours[name] = item
        # What depends on something that is the model's own has to be imported anew, and what depends on that, too.
        while strange := [name for name, item in ours.items() if item.needs & (beside - ours.keys())]:
            for name in strange:
                del ours[name]
        for name, item in ours.items():
            item.module.__file__ = f"{code}/{name}.py"
            if item.module.__spec__ is not None:
                item.module.__spec__.origin = item.module.__file__
            sys.modules[name] = item.module
        return sorted(ours)


def roots() -> tuple[Path, ...]:
    """Where the handlers of this project may be: in the installed package, or at the root of the repository."""
    package = Path(__file__).resolve().parents[2]
    return package / "model_code", package.parents[1] / "model_code"


def _sources(folder: Path) -> dict[str, tuple[Path, bytes]]:
    """The modules of a folder, by name."""
    return {path.stem: (path, path.read_bytes()) for path in sorted(folder.glob("*.py"))}


def _import(
    folder: Path, common: Path, sources: dict[str, tuple[Path, bytes]], imported: dict[str, ModuleType]
) -> dict[str, ModuleType]:
    """Import a handler with all that it imports of ``sources``, where some may be ``imported`` already."""
    path, writing = list(sys.path), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the folder may be a user's working tree
    sys.path[:0] = [str(folder), str(common)]
    sys.modules.update(imported)
    try:
        importlib.import_module("inference")
        return {name: sys.modules[name] for name in sources if name in sys.modules}
    except ImportError as error:
        sys.stderr.write(f"The handler {folder.name} is not imported before the forks: {error}\n")
        return {}
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writing
        for name in sources:
            sys.modules.pop(name, None)


def _imported(source: bytes) -> frozenset[str]:
    """The top-level names of all modules that the code imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return frozenset(names)


def _is_left_out(name: str) -> bool:
    """Whether importing our handlers would import this library, or fail without it (onnxruntime is optional)."""
    if name in sys.modules:
        return False
    return name != "onnxruntime" or importlib.machinery.PathFinder.find_spec(name) is not None


def _importable(folder: str) -> dict[str, list[str]]:
    """The names under which something in the folder might be imported, each with the files and folders that it may
    be."""
    items_of: dict[str, list[str]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as items:
        for item in items:
            if item.name.endswith(SUFFIXES) or item.is_dir():
                items_of.setdefault(item.name.partition(".")[0], []).append(item.name)
    return items_of
