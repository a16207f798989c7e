"""Checks a request's head for anything that could make its body be read differently than the client meant, and refuses
it.

The parser itself refuses invalid or contradictory lengths, wrong line ends, folded lines, and forbidden characters in
names and values. These are the checks that it leaves out.
"""

from __future__ import annotations

from mme.container.errors import ServingError, bad_request

# Headers that a request may have once: servers differ in which of two they use (RFC 9110, 5.3).
ONCE = frozenset(["host", "content-type", "x-amzn-sagemaker-target-model", "x-amzn-sagemaker-inference-id"])


def joined(name: str, values: list[str]) -> str:
    """The value of a header that came in several lines (RFC 9110, 5.3). Raises ServingError where it may not."""
    if name in ONCE:
        raise bad_request(f"The request has {len(values)} headers {name}; send one")
    return ", ".join(values)


def check(version: str, headers: dict[str, str]) -> None:
    """Raises ServingError for a head that is not to be answered as it is (RFC 9112, 2.3 and 6.1)."""
    if version not in ("1.0", "1.1"):
        # 400 as for the versions that the parser itself refuses. A first line without a version is HTTP/0.9's.
        raise bad_request(f"This is a request of HTTP/{version}, which is not spoken here; send HTTP/1.1")
    codings = headers.get("transfer-encoding")
    if codings is not None:
        if version == "1.0":
            raise bad_request("HTTP/1.0 has no Transfer-Encoding; send a Content-Length, or HTTP/1.1")
        names = [name for part in codings.split(",") if (name := part.strip().lower())]
        if names[-1:] != ["chunked"]:
            raise bad_request(
                f"Where the body ends cannot be known with the transfer coding {codings!r:.100}; send chunked"
            )
        if len(names) > 1:
            raise ServingError(
                501, "NotImplementedException", f"The transfer coding {codings!r:.100} is not known here; send chunked"
            )
    expected = headers.get("expect")
    if expected and version != "1.0" and expected.lower() != "100-continue":
        raise ServingError(417, "ExpectationFailedException", f"{expected!r:.100} cannot be expected of this server")


def continues(version: str, headers: dict[str, str]) -> bool:
    """Whether the client waits to be told to send the body, which HTTP/1.0 does not (RFC 9110, 10.1.1)."""
    return version != "1.0" and headers.get("expect", "").lower() == "100-continue"
