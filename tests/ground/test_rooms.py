"""The rules of the house: who may import whom, read from the import statements of every module."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"

# Modules longer than this are looked at once more; the ones that stay longer are named here with the reason.
LONG = 500
LONG_WITH_A_REASON: dict[str, str] = {}

# Ground: plain helpers, which import nothing above them.
GROUND = (
    "errors",
    "aws",
    "console",
    "folder",
    "handler_files",
    "jobs",
    "outputs",
    "processor",
    "settings",
    "terraform",
)


# The floors of the toolchain, from the ground up: a room imports what lies below it, and nothing beside or above.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("catalog", "multipart", "runner"),
    ("archive", "snapshot"),
    ("packaging", "releases"),
    ("channels", "publishing"),
    ("client",),
    ("operate",),
    ("capacity",),
    ("page",),
    ("tasks",),
    ("chain",),
    ("__main__",),
)

# Folders of tests that are not named after a room of src/mme, and what they are of.
OTHER_TESTS = {
    "ground": "plain helpers, and the rules of the house",
    "releases": "releases, channels, publishing, multipart: modules beside the rooms",
    "handlers": "model_code",
    "module": "the Terraform module",
    "conformance": "every kind of model, against transformers",
    "stock": "the stock serving stack",
    "system": "whole journeys",
}
TESTED_BY_ITS_USERS = {"runner": "every test of a container or of the local AWS uses it"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for path in sorted(SOURCE.rglob("*.py")) if not {"model_code", "standins"} & set(path.parts)
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def statements(tree: ast.AST, typing_too: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements; without those for the type checker alone, unless ``typing_too``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif typing_too or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from statements(node, typing_too)


def imports(name: str, typing_too: bool = True) -> set[str]:
    """The names of the modules that a module imports, ours and others."""
    names: set[str] = set()
    for node in statements(TREES[name], typing_too):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{name} imports relatively"
            module = node.module or ""
            names |= {f"{module}.{a.name}" if f"{module}.{a.name}" in MODULES else module for a in node.names}
    return names


def room(name: str) -> str:
    """The room that a module is in: the part of its name behind mme., container and local by their own rooms."""
    parts = name.split(".")[1:]
    if not parts:
        return ""
    return ".".join(parts[:2]) if parts[0] in ("container", "local") and len(parts) > 2 else parts[0]


def inside(name: str, *places: str) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@functools.cache
def private_names(name: str) -> set[str]:
    """The private functions, classes, methods, fields and attributes of self that a module defines."""
    names: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Attribute) and is_self(target.value):
                    names.add(target.attr)
                elif isinstance(target, ast.Name):
                    names.add(target.id)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts with more than one member (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []
    numbers = itertools.count()

    def visit(node: str) -> None:
        index[node] = low[node] = next(numbers)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = []
            while not part or part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                components.append(sorted(part))

    for node in edges:
        if node not in index:
            visit(node)
    return components


def test_no_module_is_in_a_circle_of_imports() -> None:
    assert circles({name: imports(name, typing_too=False) & MODULES.keys() for name in MODULES}) == []


def test_no_room_is_in_a_circle_of_imports() -> None:
    edges: dict[str, set[str]] = {}
    for name in MODULES:
        here = room(name)
        edges.setdefault(here, set()).update(
            room(other) for other in imports(name, typing_too=False) & MODULES.keys() if room(other) not in ("", here)
        )
    # The face of the container and of the local AWS starts what is in their rooms.
    edges.pop("container", None)
    edges.pop("local", None)
    assert circles(edges) == []


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_what_lies_below_it(name: str) -> None:
    """The container stands apart, and the local AWS uses the toolchain's rooms from outside."""
    here = room(name).split(".")[0]
    if here in ("", "container", "local"):
        return
    floors = {each: number for number, floor in enumerate((GROUND, *FLOORS)) for each in floor}
    assert here in floors, f"{here} has no floor: add it to FLOORS"
    for other in imports(name) & MODULES.keys():
        there = room(other).split(".")[0]
        if there not in ("", here) and not floors[here] == floors[there] == 0:
            assert floors[there] < floors[here], f"{name} imports {other}, which is not below it"


@pytest.mark.parametrize("name", MODULES)
def test_heavy_libraries_are_imported_where_they_are_used(name: str) -> None:
    """So that publishing, predicting and ``--help`` need neither torch nor transformers, nor wait for them. The
    container imports them in its workers alone."""
    if inside(name, "mme.container") and not inside(name, "mme.container.workers"):
        nodes = list(statements(TREES[name], typing_too=True))
    else:
        nodes = [node for node in TREES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in nodes:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        assert not [each for each in names if inside(each, "torch", "transformers")], f"{name}, line {node.lineno}"


@pytest.mark.parametrize("name", MODULES)
def test_the_network_is_reached_through_boto3_and_the_runner(name: str) -> None:
    others = {
        "mme.runner.process": "speaks to a container",
        "mme.tasks.operate": "reads an image's configuration at the address that ECR gives",
        "mme.container": "is a server",
        "mme.local": "is a server",
    }
    clients = ("http.client", "urllib.request", "socket", "ssl", "requests", "urllib3", "httpx", "aiohttp")
    if not inside(name, *others):
        assert not {other for other in imports(name) if inside(other, *clients)}, name


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_room_may(name: str) -> None:
    ours = {other for other in imports(name) if inside(other, "mme")}
    if inside(name, "mme.container"):
        assert not {other for other in ours if not inside(other, "mme.container") and other != "mme"}
    if inside(name, "mme.container.front"):
        assert not {other for other in imports(name) if inside(other, "torch", "transformers", "mme.container.workers")}
    if not inside(name, "mme.local"):
        assert not {other for other in ours if inside(other, "mme.local")}, "AWS is reached through boto3 alone"
    if not inside(name, "mme.tasks", "mme.chain", "mme.__main__"):
        assert not {other for other in ours if inside(other, "mme.tasks")}, "tasks call, and are not called"
    if inside(name, *(f"mme.{ground}" for ground in GROUND)):
        assert {other.split(".")[1] for other in ours if other != "mme"} <= set(GROUND), "ground imports ground alone"


@pytest.mark.parametrize("name", MODULES)
def test_nothing_reads_the_private_names_of_another_module(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and inside(node.module or "", "mme"):
            private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            assert private == [], f"{name} takes {private} from {node.module}"
    own = private_names(name)
    others = set().union(*(private_names(other) for other in MODULES if other != name)) - own
    if inside(name, "mme.local"):
        others -= {"_models"}  # moto's SageMaker has one, too, and no other way to its models
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute) and not is_self(node.value):
            assert node.attr not in others, f"{name} reads {node.attr} of another module's object, line {node.lineno}"


@pytest.mark.parametrize("name", MODULES)
def test_printing_is_for_tasks(name: str) -> None:
    """And for programs of their own: what is run with python -m, and the container's and the local AWS's logs."""
    programs = ("mme.terraform",)  # python -m mme.terraform stands in for the program
    if inside(name, "mme.tasks", "mme.console", *programs) or name.endswith("__main__"):
        return
    main = [node for node in TREES[name].body if isinstance(node, ast.If) and "__main__" in ast.dump(node.test)]
    allowed = {id(call) for node in main for call in ast.walk(node)}
    calls = [
        node.lineno
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if id(node) not in allowed and not any(keyword.arg == "file" for keyword in node.keywords)
    ]
    assert calls == [], f"{name} prints to standard output"
    if not inside(name, "mme.container"):  # it writes its log there
        streams = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute) and node.attr == "stdout"]
        assert not [node.lineno for node in streams if ast.unparse(node) == "sys.stdout"], f"{name} writes there"


HANDLERS = sorted((ROOT / "model_code").rglob("*.py"))


@pytest.mark.parametrize("path", [*MODULES.values(), *HANDLERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_long_module_has_a_reason(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONG or LONG_WITH_A_REASON.get(str(path.relative_to(ROOT))), f"{path} has {lines} lines"


def test_handlers_stand_alone() -> None:
    """They travel in archives into containers that have no mme."""
    for path in (ROOT / "model_code").rglob("*.py"):
        for node in statements(ast.parse(path.read_text(encoding="utf-8")), True):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not [name for name in names if inside(name, "mme")], path


def test_containers_are_started_by_the_runner_alone() -> None:
    """Whoever else starts one, or speaks HTTP to one, does it in another way."""
    for name, tree in TREES.items():
        if inside(name, "mme.runner", "mme.container"):
            continue
        words = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert "mme.container" not in words, name
        assert not {other for other in imports(name) if inside(other, "http.client", "mme.container")}, name


def test_benchmarks_start_containers_by_the_runner() -> None:
    alone = {"http_server.py": "it compares HTTP servers, and starts each by itself"}
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert path.name in alone or "mme.container" not in strings, path.name


def test_a_folder_of_tests_mirrors_a_room() -> None:
    rooms = {path.name for path in (SOURCE / "mme").iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
    assert folders - rooms == OTHER_TESTS.keys()
    assert rooms - folders == TESTED_BY_ITS_USERS.keys()


def test_terraform_needs_the_aws_provider_alone() -> None:
    for path in (*ROOT.glob("*.tf"), *(ROOT / "examples").rglob("*.tf")):
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"required_providers\s*{(.*?)\n  }", text, re.DOTALL):
            assert re.findall(r'source\s*=\s*"([^"]+)"', block) == ["hashicorp/aws"], path
        kinds = re.findall(r'^(?:resource|data|ephemeral) "([^"]+)"', text, re.MULTILINE)
        assert not [kind for kind in kinds if not kind.startswith("aws_") and kind != "terraform_data"], path


def test_a_test_imports_other_tests_modules_from_where_they_can_be_found() -> None:
    """A process that runs one folder of the tests has that folder, those above it and what they add in its path."""
    tests = ROOT / "tests"
    folders: dict[str, set[Path]] = {}
    modules = [path for path in tests.rglob("*.py") if "notebook_archives" not in path.parts]
    for path in modules:
        folders.setdefault(path.stem, set()).add(path.parent)
    beside = {  # by their own sys.path
        tests / "module": {ROOT / "scripts"},
        tests / "operate": {tests / "local"},
        tests / "page": {tests / "local"},
    }
    for path in modules:
        near = {path.parent, *path.parents, *beside.get(path.parent, set())}
        for node in statements(ast.parse(path.read_text(encoding="utf-8")), True):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                where = folders.get(name.split(".")[0])
                assert where is None or where & near, f"{path.relative_to(tests)} imports {name} of {where}"
