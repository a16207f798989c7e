"""What the page's tests share: asking it as its own script does, and as others would."""

from __future__ import annotations

import gzip
import http.client
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "local"))

OURS = {"X-Mme-Page": "1", "Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    base: str,
    path: str = "",
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    **query: str,
) -> Reply:
    """One request to the page below ``base``, with the headers that its own script sends, or with those given."""
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    where = f"{parts.path}{path}" + (f"?{urlencode(query)}" if query else "")
    connection.request(method, where, body=body, headers=OURS if headers is None else headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    answer_headers = {name.lower(): value for name, value in answer.getheaders()}
    if answer_headers.get("content-encoding") == "gzip":
        data = gzip.decompress(data)
    return Reply(answer.status, answer_headers, data)
