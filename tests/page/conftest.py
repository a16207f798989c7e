"""Fixtures of the page's tests."""

from __future__ import annotations

from collections.abc import Iterator

import page_tools  # noqa: F401 (finds the module below)
import pytest
from local_tools import Cloud

from mme.local import LocalAws


@pytest.fixture
def cloud(local_aws: LocalAws) -> Iterator[Cloud]:
    """One test's corner of the local AWS that the whole run shares."""
    corner = Cloud(local_aws)
    yield corner
    corner.close()
