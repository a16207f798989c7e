"""Checks when a request was signed: refuses expired presigned URLs and clocks that differ by more than AWS allows.

The signature itself is not checked, but its times are: S3 allows 15 minutes between the two clocks, the other services
5 (AWS's reference of Signature Version 4), and a presigned URL expires at its own time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl

from mme.local.answers import json_or_query, refusal
from mme.local.requests import signed_service

_S3_SKEW, _SKEW = timedelta(minutes=15), timedelta(minutes=5)
_LONGEST = timedelta(days=7)

Refusal = Callable[[Callable[..., Any]], Iterable[bytes]]


def out_of_time(environ: Mapping[str, Any], now: datetime) -> Refusal | None:
    """The refusal of a request that was signed for another time than ``now`` (with a time zone); None if the time is
    right."""
    service = signed_service(environ)
    if service is None:
        return None
    if environ.get("HTTP_AUTHORIZATION"):
        signed = _time(environ.get("HTTP_X_AMZ_DATE"))
        if signed is None or abs(now - signed) <= (_S3_SKEW if service == "s3" else _SKEW):
            return None
        if service == "s3":
            words = "The difference between the request time and the current time is too large."
            return refusal(service, 403, "RequestTimeTooSkewed", words)
        words = (
            f"Signature {'expired' if signed < now else 'not yet current'}: {_shown(signed)}; it is {_shown(now)} here."
        )
        code = json_or_query(environ, "InvalidSignatureException", "SignatureDoesNotMatch")
        return refusal(service, 403, code, words)
    query = {name.lower(): value for name, value in parse_qsl(str(environ.get("QUERY_STRING", "")))}
    signed, seconds, until = _time(query.get("x-amz-date")), query.get("x-amz-expires", ""), query.get("expires", "")
    if signed is not None and seconds:
        if not re.fullmatch("[0-9]{1,6}", seconds) or int(seconds) > _LONGEST.total_seconds():
            words = "X-Amz-Expires must be a number of seconds of less than a week, which is 604800"
            return refusal(service, 400, "AuthorizationQueryParametersError", words)
        over = now > signed + timedelta(seconds=int(seconds))
    else:
        over = re.fullmatch("[0-9]{1,12}", until) is not None and now.timestamp() > int(until)
    return refusal(service, 403, "AccessDenied", "Request has expired") if over else None


def _time(text: Any) -> datetime | None:
    try:
        return datetime.strptime(str(text), "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def _shown(time: datetime) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ")
