"""What SageMaker's own description of its API allows in a request: lengths, ranges, patterns and lists of values.

boto3 carries that description and checks no more of it than what is required and what is too little; SageMaker checks
all of it before it looks at anything else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

_JAVA = (("\\p{Print}", " -~"), ("\\p{ASCII}", "[\\x00-\\x7f]"), ("\\z", "\\Z"))
"""What SageMaker's patterns have that Python's have not."""
_SHOWN = 80


def problem(shape: Any, given: Mapping[str, Any]) -> str | None:
    """What SageMaker's ValidationException says of a request with these parameters; None where they are all right.

    ``shape`` is the operation's input as botocore has it.
    """
    violations = list(_structure(shape, given, ""))
    if not violations:
        return None
    number = "1 validation error" if len(violations) == 1 else f"{len(violations)} validation errors"
    return f"{number} detected: {'; '.join(violations)}"


def _structure(shape: Any, given: Mapping[str, Any], path: str) -> Iterator[str]:
    for name in shape.required_members:
        if given.get(name) is None:
            yield _said(None, f"{path}{_lower(name)}", "not be null")
    for name, value in given.items():
        if value is not None and name in shape.members:
            yield from _value(shape.members[name], value, f"{path}{_lower(name)}")


def _value(shape: Any, value: Any, path: str) -> Iterator[str]:
    kind = shape.type_name
    if kind == "structure" and isinstance(value, Mapping):
        yield from _structure(shape, value, f"{path}.")
    elif kind == "list" and isinstance(value, list):
        yield from _size(shape, len(value), value, path, "length ")
        for number, item in enumerate(value, 1):
            yield from _value(shape.member, item, f"{path}.{number}.member")
    elif kind == "map" and isinstance(value, Mapping):
        yield from _size(shape, len(value), value, path, "length ")
        for key, item in value.items():
            yield from _value(shape.key, key, f"{path}.{key}.key")
            yield from _value(shape.value, item, f"{path}.{key}.member")
    elif kind in ("integer", "long", "float", "double") and isinstance(value, (int, float)):
        yield from _size(shape, value, value, path, "value ")
    elif kind == "string" and isinstance(value, str):
        yield from _text(shape, value, path)


def _text(shape: Any, value: str, path: str) -> Iterator[str]:
    too_long = list(_size(shape, len(value), value, path, "length "))
    yield from too_long
    if shape.enum and value not in shape.enum:
        yield _said(value, path, f"satisfy enum value set: [{', '.join(shape.enum)}]")
    pattern = shape.metadata.get("pattern")
    expression = _compiled(pattern) if pattern else None
    if expression is not None and not too_long and not expression.fullmatch(value):
        yield _said(value, path, f"satisfy regular expression pattern: {pattern}")


def _size(shape: Any, size: float, value: Any, path: str, what: str) -> Iterator[str]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if least is not None and size < least:
        yield _said(value, path, f"have {what}greater than or equal to {least}")
    if most is not None and size > most:
        yield _said(value, path, f"have {what}less than or equal to {most}")


def _said(value: Any, path: str, must: str) -> str:
    text = "null" if value is None else f"'{value if len(str(value)) <= _SHOWN else f'{str(value)[:_SHOWN]}…'}'"
    return f"Value {text} at '{path}' failed to satisfy constraint: Member must {must}"


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """The pattern; None for one that Python cannot read, which is then not held to."""
    for java, python in _JAVA:
        pattern = pattern.replace(java, python)
    try:
        return re.compile(pattern)
    except re.error:
        return None
