"""Headers of a request."""

from __future__ import annotations

from collections.abc import Mapping


def retrieve_content_type_header(request_property: Mapping[str, str]) -> str | None:
    """The Content-Type, however its name is written."""
    return next((value for name, value in request_property.items() if name.lower() == "content-type"), None)
