"""Writes docs/module-reference.md, the module's inputs and outputs, from variables.tf and outputs.tf.

`python scripts/module_docs.py` writes it; `--check` writes nothing, and exits with 1 when the page is out of date.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import hcl

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs/module-reference.md")
HEAD = """# The module's inputs and outputs

Written by `python scripts/module_docs.py` from `variables.tf` and `outputs.tf`: change those, and write it again.
Why things are as they are is in [module.md](module.md).
"""


def render(root: Path) -> str:
    """The page for the module in ``root``."""
    variables = [block for block in hcl.read(root / "variables.tf") if block.type == "variable"]
    outputs = [block for block in hcl.read(root / "outputs.tf") if block.type == "output"]
    versions = hcl.read(root / "versions.tf")
    terraform = versions[0].attributes["required_version"].strip('"')
    provider = next(block for block in hcl.walk(versions) if block.type == "required_providers").attributes["aws"]
    aws = next(line.split("=", 1)[1].strip(' "') for line in provider.splitlines() if "version" in line)
    parts = [HEAD, f"Terraform {terraform}, provider hashicorp/aws {aws}, and nothing else.\n", "## Inputs\n"]
    for variable in sorted(variables, key=lambda block: "default" in block.attributes):
        parts.append(_variable(variable))
    parts.append("## Outputs\n\n| name | what it is |\n| --- | --- |")
    for output in outputs:
        parts.append(f"| `{output.labels[0]}` | {_cell(hcl.string(output.attributes['description']))} |")
    return "\n".join(parts) + "\n"


def _variable(block: hcl.Block) -> str:
    kind = textwrap.dedent(_aligned(block.attributes["type"]))
    default = block.attributes.get("default")
    if default is None:
        said = "Required."
    elif "\n" in default:
        said = f"Default:\n\n```hcl\n{_aligned(default)}\n```"
    else:
        said = f"Default: `{default}`."
    text = hcl.string(block.attributes["description"]).strip()
    shape = f"```hcl\n{kind}\n```" if "\n" in kind else f"Type: `{kind}`. {said}"
    tail = f"\n\n{said}" if "\n" in kind else ""
    return f"### {block.labels[0]}\n\n{text}\n\n{shape}{tail}\n"


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
