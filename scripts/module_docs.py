"""Writes docs/module-reference.md from the module's files, in the sections and the format of terraform-docs.

`python scripts/module_docs.py` writes it; `--check` writes nothing, and exits with 1 when the page is out of date.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import hcl

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs/module-reference.md")
HEAD = """# The module's inputs, outputs and resources

Written by `python scripts/module_docs.py` from the module's files: change those, and write it again.
Why things are as they are is in [module.md](module.md).

<!-- BEGIN_TF_DOCS -->
"""
TAIL = "<!-- END_TF_DOCS -->\n"


def render(root: Path) -> str:
    """The page for the module in ``root``."""
    blocks = [block for path in sorted(root.glob("*.tf")) for block in hcl.read(path)]
    by_type = {kind: [b for b in blocks if b.type == kind] for kind in ("variable", "output", "resource", "data")}
    terraform = next(block for block in blocks if block.type == "terraform")
    needs = {"terraform": terraform.attributes["required_version"].strip('"')}
    for provider in (block for block in hcl.walk([terraform]) if block.type == "required_providers"):
        for name, value in provider.attributes.items():
            version = next(line.split("=", 1)[1] for line in value.splitlines() if line.strip().startswith("version"))
            needs[name] = version.strip(' "')
    parts = [
        HEAD,
        _table("Requirements", ("Name", "Version"), needs.items()),
        _table("Providers", ("Name", "Version"), [(name, v) for name, v in needs.items() if name != "terraform"]),
        _table("Resources", ("Name", "Type"), sorted(map(_resource, by_type["resource"] + by_type["data"]))),
        "## Inputs\n",
        *(_input(block) for block in sorted(by_type["variable"], key=_order)),
        _table("Outputs", ("Name", "Description"), [_output(block) for block in sorted(by_type["output"], key=_order)]),
        TAIL,
    ]
    return "\n".join(parts)


def _order(block: hcl.Block) -> tuple[bool, str]:
    """Required inputs first, then by name."""
    return block.type == "variable" and "default" in block.attributes, block.labels[0]


def _table(title: str, heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {first} | {second} |" for first, second in rows]
    return "\n".join([f"## {title}\n", f"| {heads[0]} | {heads[1]} |", "|------|------|", *lines, ""])


def _resource(block: hcl.Block) -> tuple[str, str]:
    return f"`{'.'.join(block.labels)}`", "data source" if block.type == "data" else "resource"


def _output(block: hcl.Block) -> tuple[str, str]:
    return f"`{block.labels[0]}`", _cell(hcl.string(block.attributes["description"]))


def _input(block: hcl.Block) -> str:
    kind = textwrap.dedent(_aligned(block.attributes["type"]))
    default = block.attributes.get("default")
    text = hcl.string(block.attributes["description"]).strip()
    type_said = f"Type:\n\n```hcl\n{kind}\n```" if "\n" in kind else f"Type: `{kind}`"
    if default is None:
        default_said = "Required."
    elif "\n" in default:
        default_said = f"Default:\n\n```hcl\n{_aligned(default)}\n```"
    else:
        default_said = f"Default: `{default}`"
    return f"### {block.labels[0]}\n\nDescription: {text}\n\n{type_said}\n\n{default_said}\n"


def _aligned(expression: str) -> str:
    """An expression of several lines, moved left by the indent that its place in the file gave it."""
    first, *rest = expression.split("\n")
    return "\n".join([first, *textwrap.dedent("\n".join(rest)).split("\n")]) if rest else first


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(words: list[str]) -> int:
    if words not in ([], ["--check"]):
        print(f"usage: python {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    page, wanted = ROOT / PAGE, render(ROOT)
    if words:
        if page.exists() and page.read_text(encoding="utf-8") == wanted:
            return 0
        print(f"{PAGE} is out of date. Write it again: python scripts/module_docs.py", file=sys.stderr)
        return 1
    page.parent.mkdir(exist_ok=True)
    page.write_text(wanted, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
