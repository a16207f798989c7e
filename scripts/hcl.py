"""A small reader of Terraform files, for the scripts here: blocks, their attributes, and what expressions refer to.

It reads what `terraform fmt` writes. It evaluates nothing: an attribute is its name and the text of its expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LABELLED = re.compile(r'(\w+)((?:\s+"[^"]*")*)\s*\{')
_ATTRIBUTE = re.compile(r"([A-Za-z_][\w-]*)\s*=(?!=)\s*")
_HEREDOC = re.compile(r"<<-?(\w+)\n")


@dataclass(frozen=True)
class Block:
    """`type "label" "label" { … }`, with the line that it begins on (counting from 1)."""

    type: str
    labels: tuple[str, ...]
    line: int
    attributes: dict[str, str] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)

    def nested(self, kind: str) -> list[Block]:
        return [block for block in self.blocks if block.type == kind]


def read(path: Path) -> list[Block]:
    """The blocks of a file. Raises ValueError, with the file and the line, for what is not Terraform."""
    text = path.read_text(encoding="utf-8")
    try:
        root = Block("", (), 1)
        end = _body(text, 0, root)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    if end != len(text):
        raise ValueError(f"{path}: line {_line(text, end)}: a brace too many")
    return root.blocks


def walk(blocks: list[Block]) -> Iterator[Block]:
    """The blocks and all in them."""
    for block in blocks:
        yield block
        yield from walk(block.blocks)


def string(expression: str) -> str:
    """The text of a quoted string or a heredoc, as Terraform would read it; interpolation stays as it is written."""
    heredoc = re.match(r"<<(-?)(\w+)\n(.*?)\n?[ \t]*\2\s*$", expression, re.S)
    if heredoc:
        lines = heredoc[3].split("\n")
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        return "\n".join(line[indent:] if heredoc[1] else line for line in lines)
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), expression[1:-1])


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _space(text: str, at: int) -> int:
    """Past white space and comments."""
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif text[at] == "#" or text.startswith("//", at):
            at = _find(text, "\n", at)
        elif text.startswith("/*", at):
            at = _find(text, "*/", at) + 2
        else:
            break
    return at


def _find(text: str, what: str, at: int) -> int:
    position = text.find(what, at)
    return len(text) if position < 0 else position


def _body(text: str, at: int, block: Block) -> int:
    """Reads attributes and blocks up to the closing brace or the end; the place of that."""
    while (at := _space(text, at)) < len(text) and text[at] != "}":
        if match := _ATTRIBUTE.match(text, at):
            end = _expression(text, match.end())
            block.attributes[match[1]] = text[match.end() : end].rstrip()
            at = end
        elif match := _LABELLED.match(text, at):
            labels = tuple(re.findall(r'"([^"]*)"', match[2]))
            inner = Block(match[1], labels, _line(text, at))
            at = _body(text, match.end(), inner)
            if at >= len(text):
                raise ValueError(f"line {inner.line}: the block is never closed")
            at += 1
            block.blocks.append(inner)
        else:
            raise ValueError(f"line {_line(text, at)}: neither an attribute nor a block")
    return at


def _expression(text: str, at: int) -> int:
    """The end of the expression: the end of its line, outside of brackets, strings and comments."""
    depth = 0
    while at < len(text):
        here = text[at]
        if here == '"':
            at = _quoted(text, at)
        elif match := _HEREDOC.match(text, at):
            closing = re.compile(rf"^[ \t]*{match[1]}$", re.M).search(text, match.end())
            if not closing:
                raise ValueError(f"line {_line(text, at)}: the heredoc is never closed")
            at = closing.end()
        elif here == "#" or text.startswith("//", at):
            at = _find(text, "\n", at)
        elif here in "([{":
            depth, at = depth + 1, at + 1
        elif here in ")]}":
            if depth == 0:
                return at
            depth, at = depth - 1, at + 1
        elif here == "\n" and depth == 0:
            return at
        else:
            at += 1
    return at


def _quoted(text: str, at: int) -> int:
    """Past the quoted string that begins here, with the quoted strings inside its interpolations."""
    start, at = at, at + 1
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text.startswith(("${", "%{"), at) and text[at - 1] != text[at]:
            at = _interpolation(text, at + 2)
        elif text[at] == '"':
            return at + 1
        else:
            at += 1
    raise ValueError(f"line {_line(text, start)}: the string is never closed")


def _interpolation(text: str, at: int) -> int:
    depth = 1
    while at < len(text) and depth:
        if text[at] == '"':
            at = _quoted(text, at)
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return at
