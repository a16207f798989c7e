"""Judges IAM policy documents: statements, wildcards, conditions, policy variables. Pure: values in, a verdict out."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

Verdict = Literal["allow", "deny", "none"]
"""``deny`` is an explicit Deny; ``none`` means that no statement speaks about the request."""

Context = Mapping[str, Sequence[str]]
"""Condition keys (in lower case) and their values; a key that the request does not have is absent."""


@dataclass(frozen=True)
class Request:
    """One action on one resource, by one principal.

    ``resource`` None means that the resource is not known: an Allow then counts whatever its Resource is, a Deny only
    where its Resource is ``*``.
    """

    action: str
    resource: str | None
    context: Context = field(default_factory=dict)
    principals: frozenset[str] = frozenset()
    """Every way in which a resource policy may name the caller: its ARN, its role's, its account's, a service."""


def judge(documents: Iterable[Mapping[str, Any]], request: Request) -> Verdict:
    """The verdict of all policies together: an explicit Deny wins, then an Allow. Conditions that cannot be read
    deny."""
    verdict: Verdict = "none"
    for document in documents:
        for statement in _list(document.get("Statement")):
            if not _applies(statement, request):
                continue
            if statement.get("Effect") == "Deny":
                return "deny"
            verdict = "allow"
    return verdict


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _applies(statement: Mapping[str, Any], request: Request) -> bool:
    deny = statement.get("Effect") == "Deny"
    if "NotAction" in statement:
        if any(_glob(p.lower(), request.action.lower()) for p in _list(statement["NotAction"])):
            return False
    elif not any(_glob(p.lower(), request.action.lower()) for p in _list(statement.get("Action"))):
        return False
    if not _resource_matches(statement, request, deny):
        return False
    if not _principal_matches(statement, request):
        return False
    conditions: Mapping[str, Mapping[str, Any]] = statement.get("Condition") or {}
    for operator, keys in conditions.items():
        for key, wanted in keys.items():
            try:
                met = _condition(operator, key, [str(w) for w in _words(wanted)], request.context)
            except (KeyError, ValueError):
                # An operator or a value that is not understood: to be safe, a Deny applies.
                met = deny
            if not met:
                return False
    return True


def _words(value: Any) -> list[Any]:
    return [str(item).lower() if isinstance(item, bool) else item for item in _list(value)]


def _resource_matches(statement: Mapping[str, Any], request: Request, deny: bool) -> bool:
    if "NotResource" in statement:
        patterns = _list(statement["NotResource"])
        if request.resource is None:
            return not deny
        return not any(_glob(_filled(p, request.context), request.resource) for p in patterns)
    if "Resource" not in statement:
        return True  # a trust policy: it hangs on its resource
    patterns = _list(statement["Resource"])
    if request.resource is None:
        return "*" in patterns or not deny
    return any(_glob(_filled(p, request.context), request.resource) for p in patterns)


def _principal_matches(statement: Mapping[str, Any], request: Request) -> bool:
    if "NotPrincipal" in statement:
        return not _names_principal(statement["NotPrincipal"], request)
    if "Principal" not in statement:
        return True  # an identity policy: it hangs on its principal
    return _names_principal(statement["Principal"], request)


def _names_principal(principal: Any, request: Request) -> bool:
    if principal == "*":
        return True
    names = [str(name) for group in principal.values() for name in _list(group)]
    return "*" in names or any(name in request.principals for name in names)


_VARIABLE = re.compile(r"\$\{([^}]*)\}")


def _filled(pattern: str, context: Context) -> str:
    """The pattern with its policy variables put in; one that has no value makes the pattern match nothing."""

    def value(match: re.Match[str]) -> str:
        name, _, default = match[1].partition(",")
        if name in ("*", "?", "$"):
            return f"\0{name}"
        values = context.get(name.strip().lower())
        if values:
            return "".join(f"\0{c}" if c in "*?" else c for c in values[0])
        return default.strip().strip("'") if default else "\0\0"

    return _VARIABLE.sub(value, pattern)


@functools.lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    parts = []
    literal = False
    for character in text:
        if character == "\0" and not literal:
            literal = True  # the next character stands for itself
            continue
        if literal:
            parts.append(re.escape(character))
            literal = False
        elif character == "*":
            parts.append(".*")
        elif character == "?":
            parts.append(".")
        else:
            parts.append(re.escape(character))
    return re.compile("".join(parts), re.DOTALL)


def _glob(pattern: str, text: str) -> bool:
    return _pattern(pattern).fullmatch(text) is not None


# -- conditions


def _condition(operator: str, key: str, wanted: Sequence[str], context: Context) -> bool:
    """Whether one line of a Condition block holds. Raises KeyError (operator) or ValueError (value)."""
    actual = context.get(key.lower())
    quantifier, _, rest = operator.rpartition(":")
    if rest == "Null":
        return (actual is None) == (wanted[0].lower() == "true")
    if_exists = rest.endswith("IfExists")
    name = rest.removesuffix("IfExists")
    negated, compare = _OPERATORS[name]
    filled = [_filled(w, context) for w in wanted]

    def matches(value: str) -> bool:
        return any(compare(w, value) for w in filled) != negated

    if actual is None or not actual:
        if quantifier == "ForAllValues":
            return True
        if quantifier == "ForAnyValue":
            return False
        return if_exists or negated
    if quantifier == "ForAllValues":
        return all(matches(value) for value in actual)
    if quantifier == "ForAnyValue" or not negated:
        return any(matches(value) for value in actual)
    return all(matches(value) for value in actual)


def _number(compare: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    return lambda wanted, value: compare(float(value), float(wanted))


def _date(compare: Callable[[datetime, datetime], bool]) -> Callable[[str, str], bool]:
    return lambda wanted, value: compare(_moment(value), _moment(wanted))


def _moment(text: str) -> datetime:
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return datetime.fromtimestamp(float(text), timezone.utc)
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _plain(text: str) -> str:
    return text.replace("\0", "")


def _equal(wanted: str, value: str) -> bool:
    return _plain(wanted) == value


def _equal_any_case(wanted: str, value: str) -> bool:
    return _plain(wanted).lower() == value.lower()


def _in_network(wanted: str, value: str) -> bool:
    return ipaddress.ip_address(value) in ipaddress.ip_network(wanted, strict=False)


_OPERATORS: dict[str, tuple[bool, Callable[[str, str], bool]]] = {
    "StringEquals": (False, _equal),
    "StringNotEquals": (True, _equal),
    "StringEqualsIgnoreCase": (False, _equal_any_case),
    "StringNotEqualsIgnoreCase": (True, _equal_any_case),
    "StringLike": (False, _glob),
    "StringNotLike": (True, _glob),
    "ArnEquals": (False, _glob),
    "ArnNotEquals": (True, _glob),
    "ArnLike": (False, _glob),
    "ArnNotLike": (True, _glob),
    "BinaryEquals": (False, _equal),
    "Bool": (False, _equal_any_case),
    "NumericEquals": (False, _number(lambda a, b: a == b)),
    "NumericNotEquals": (True, _number(lambda a, b: a == b)),
    "NumericLessThan": (False, _number(lambda a, b: a < b)),
    "NumericLessThanEquals": (False, _number(lambda a, b: a <= b)),
    "NumericGreaterThan": (False, _number(lambda a, b: a > b)),
    "NumericGreaterThanEquals": (False, _number(lambda a, b: a >= b)),
    "DateEquals": (False, _date(lambda a, b: a == b)),
    "DateNotEquals": (True, _date(lambda a, b: a == b)),
    "DateLessThan": (False, _date(lambda a, b: a < b)),
    "DateLessThanEquals": (False, _date(lambda a, b: a <= b)),
    "DateGreaterThan": (False, _date(lambda a, b: a > b)),
    "DateGreaterThanEquals": (False, _date(lambda a, b: a >= b)),
    "IpAddress": (False, _in_network),
    "NotIpAddress": (True, _in_network),
}
