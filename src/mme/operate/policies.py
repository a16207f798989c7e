"""Reads IAM policies: what a principal may do, as far as its policy documents alone say.

Used where IAM's own simulation is not permitted. It follows the evaluation logic in AWS's IAM user guide ("Policy
evaluation logic") for identity policies and a permissions boundary. Session policies and an organisation's policies are
not considered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote

Document = Mapping[str, Any]
Verdict = Literal["allowed", "denied", "perhaps"]


def document(value: Any) -> Document:
    """A policy document as boto3 gives it: parsed, or as text in percent-encoding. Empty where it cannot be read."""
    if isinstance(value, str):
        try:
            value = json.loads(unquote(value) if value.lstrip().startswith("%") else value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def statements(policy: Document) -> list[Mapping[str, Any]]:
    """The statements of a policy, also where there is a single one without a list."""
    items = policy.get("Statement") or []
    return [item for item in (items if isinstance(items, list) else [items]) if isinstance(item, dict)]


def several(value: Any) -> list[str]:
    """A value or a list of values, as a list."""
    return [str(item) for item in (value if isinstance(value, list) else [] if value is None else [value])]


def judge(policies: Iterable[Document], action: str, resource: str, context: Mapping[str, str]) -> Verdict:
    """Whether the policies allow the action. "perhaps": a condition decides whose key is not in ``context``."""
    allowed: Verdict = "denied"
    perhaps_denied = False
    for policy in policies:
        for item in statements(policy):
            if not _concerns(item, action, resource):
                continue
            holds = conditions_hold(item.get("Condition"), context)
            if item.get("Effect") == "Deny":
                if holds is True:
                    return "denied"
                perhaps_denied = perhaps_denied or holds is None
            elif holds is True:
                allowed = "allowed"
            elif holds is None and allowed == "denied":
                allowed = "perhaps"
    return "perhaps" if perhaps_denied and allowed == "allowed" else allowed


def both(one: Verdict, other: Verdict) -> Verdict:
    """The verdict of two sets of policies that both have to allow."""
    if "denied" in (one, other):
        return "denied"
    return "perhaps" if "perhaps" in (one, other) else "allowed"


def _concerns(item: Mapping[str, Any], action: str, resource: str) -> bool:
    if "NotAction" in item:
        if any(matches(pattern, action, any_case=True) for pattern in several(item["NotAction"])):
            return False
    elif not any(matches(pattern, action, any_case=True) for pattern in several(item.get("Action"))):
        return False
    if "NotResource" in item:
        return not any(matches(pattern, resource) for pattern in several(item["NotResource"]))
    return any(matches(pattern, resource) for pattern in several(item.get("Resource", "*")))


def matches(pattern: str, text: str, *, any_case: bool = False) -> bool:
    """Whether the text fits a pattern in which * stands for any characters, ? for one."""
    parts = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(parts, text, re.DOTALL | (re.IGNORECASE if any_case else 0)) is not None


def conditions_hold(conditions: Any, context: Mapping[str, str]) -> bool | None:
    """Whether all conditions of a statement hold; None where ``context`` lacks a key for that."""
    if not conditions:
        return True
    if not isinstance(conditions, dict):
        return None
    known = {key.lower(): value for key, value in context.items()}
    verdicts = [
        _holds(operator, known.get(str(key).lower()), several(wanted))
        for operator, keys in conditions.items()
        for key, wanted in (keys.items() if isinstance(keys, dict) else [("", None)])
    ]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _holds(operator: str, value: str | None, wanted: Sequence[str]) -> bool | None:
    kind = operator.rpartition(":")[2]
    if value is None:
        return True if kind.endswith("IfExists") else None
    kind = kind.removesuffix("IfExists")
    if kind in ("StringEquals", "ArnEquals", "Bool", "StringEqualsIgnoreCase"):
        any_case = kind in ("Bool", "StringEqualsIgnoreCase")
        exact = kind != "ArnEquals"
        return any(
            (value.lower() == item.lower() if any_case else value == item) if exact else matches(item, value)
            for item in wanted
        )
    if kind in ("StringLike", "ArnLike"):
        return any(matches(item, value) for item in wanted)
    if kind in ("StringNotEquals", "ArnNotEquals"):
        return value not in wanted
    if kind in ("StringNotLike", "ArnNotLike"):
        return not any(matches(item, value) for item in wanted)
    return None
