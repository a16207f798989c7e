"""How long hypothesis goes on: as much as the suite has time for, the same each time, or more by hand:
``HYPOTHESIS_EXAMPLES=5000 pytest …``, with new examples each time."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES") or 150)
bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not os.environ.get("HYPOTHESIS_EXAMPLES"),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ODD_TEXT = ("", "a", "\ud800", "\x1b[2J", "a\nb", "../x", "\0", "ü" * 40, "a" * 300, "NaN", "2026-01-01T00:00:00")
ODD_NUMBERS = (0, 1, -1, 1.5, 1e308, float("inf"), float("-inf"), float("nan"), 2**63, 10**400)
odd = st.recursive(
    st.none() | st.booleans() | st.sampled_from(ODD_NUMBERS) | st.sampled_from(ODD_TEXT) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ODD_TEXT), inner, max_size=3),
    max_leaves=6,
)
"""Any value that JSON has, those among them that many programs do not expect."""


def places(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value in a JSON document, the document itself first."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


@st.composite
def changed(draw: Any, document: Any) -> Any:
    """The document with some of its values replaced by odd ones, or left out."""
    copy = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(places(copy)[1:] or [("",)]))
        inner = copy
        for key in above:
            inner = inner[key]
        if draw(st.integers(0, 4)):
            inner[last] = draw(odd)
        elif isinstance(inner, dict | list) and inner:
            del inner[last]
    return copy
