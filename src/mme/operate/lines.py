"""The lines that a container writes, read: our container's JSON, multi-model-server's, and what handlers print."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

# multi-model-server (log4j): 2026-11-27 01:20:00,123 [INFO ] W-9000-3bf2… com.amazonaws.ml.mms.wlm.WorkerLifeCycle -
# text
_STOCK = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d),(?P<ms>\d{3}) "
    r"\[(?P<level>[A-Z]+) *\] (?P<thread>\S.*?) (?P<logger>[\w.$]+) - (?P<message>.*)",
    re.DOTALL,
)
# its access log: /127.0.0.1:43212 "POST /models/3bf2…/invoke HTTP/1.1" 200 45
_STOCK_ACCESS = re.compile(
    r'/\S+ "(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[\d.]+" (?P<status>\d{3})(?: (?P<ms>\d+))?', re.DOTALL
)
_STOCK_MODEL = re.compile(r"/models/(?P<model>[^/?]+)")
_STOCK_WORKER = re.compile(r"W-(?:\d+-)?(?P<model>[0-9a-f]{16,})\b")
_LEVELS = {"WARN": "warning", "FATAL": "error"}
_PRINTED_ERROR = re.compile(r"\s*(?:\[?(?:ERROR|CRITICAL|FATAL)\b|\w*(?:Error|Exception): )")


@dataclass(frozen=True)
class Line:
    """One event of a log stream, as it was written (``text``) and as it was understood.

    ``time`` is CloudWatch's (UTC). ``event`` is our container's word ("invoke", "load", ...), "access" for
    multi-model-server's line of a request, "" for what was merely printed. ``model`` is the platform's opaque name,
    ``target`` the target model, where the line names one. ``fields`` are all values of a line of ours.
    """

    time: datetime
    stream: str
    text: str
    level: str = "info"
    event: str = ""
    model: str | None = None
    target: str | None = None
    status: int | None = None
    message: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """The variant: a stream is called VARIANT/i-…"""
        return self.stream.rpartition("/")[0] or self.stream

    @property
    def instance(self) -> str:
        return self.stream.rpartition("/")[2]

    @property
    def failed(self) -> bool:
        """Whether the line reports an error by itself: its level, or the status of an answer."""
        return self.level == "error" or (self.status or 0) >= 400

    def as_json(self) -> dict[str, Any]:
        """The line as plain JSON values; only those that it has."""
        values = {
            "time": self.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "variant": self.variant,
            "instance": self.instance,
            "level": self.level,
            "event": self.event,
            "target": self.target,
            "model": self.model,
            "status": self.status,
            "message": self.message,
            **{name: value for name, value in self.fields.items() if name not in ("time", "level", "event")},
        }
        return {name: value for name, value in values.items() if value not in (None, "")}


def parse(stream: str, milliseconds: int, text: str) -> Line:
    """The event that CloudWatch Logs gives with a time in milliseconds since 1970. Never raises: a line is a line."""
    time = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    text = text.rstrip("\r\n")
    return _ours(time, stream, text) or _stock(time, stream, text) or _printed(time, stream, text)


def _ours(time: datetime, stream: str, text: str) -> Line | None:
    if not text.startswith("{"):
        return None
    try:
        fields = json.loads(text)
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()  # a lone surrogate cannot be shown
    except (ValueError, RecursionError):
        return None
    level, event = (fields.get(name) for name in ("level", "event")) if isinstance(fields, dict) else (None, None)
    if not isinstance(level, str) or not isinstance(event, str):
        return None  # a handler prints JSON too
    status = fields.get("status")
    return Line(
        time,
        stream,
        text,
        level,
        event,
        _text(fields.get("model")),
        _text(fields.get("target")),
        status if type(status) is int else None,
        _text(fields.get("message")) or "",
        fields,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _stock(time: datetime, stream: str, text: str) -> Line | None:
    match = _STOCK.fullmatch(text)
    if not match:
        return None
    level = _LEVELS.get(match["level"], match["level"].lower())
    access = _STOCK_ACCESS.fullmatch(match["message"]) if match["logger"] == "ACCESS_LOG" else None
    if access:
        model = _STOCK_MODEL.match(access["path"])
        status = int(access["status"])
        level = "error" if status >= 500 else "warning" if status >= 400 else level
        return Line(time, stream, text, level, "access", model and model["model"], None, status, match["message"])
    worker = _STOCK_WORKER.search(match["thread"])
    return Line(time, stream, text, level, "", worker and worker["model"], None, None, match["message"])


def _printed(time: datetime, stream: str, text: str) -> Line:
    level = "error" if _PRINTED_ERROR.match(text) else "info"
    return Line(time, stream, text, level, message=text)


class Tracebacks:
    """Tells which lines belong to a Python traceback, stream by stream, as they come in order."""

    def __init__(self) -> None:
        self._inside: set[str] = set()

    def has(self, line: Line) -> bool:
        """Whether the line is part of a traceback: from its first line to the one that names the exception."""
        text = line.message or line.text
        if line.event:
            return False
        if text.startswith("Traceback (most recent call last)"):
            self._inside.add(line.stream)
            return True
        if line.stream not in self._inside:
            return False
        if text[:1] not in ("", " ", "\t"):
            self._inside.discard(line.stream)
        return True
