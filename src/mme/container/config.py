"""The container's settings. Each one is an environment variable; nothing is read from anywhere else."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mme.container import cgroup

MiB = 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """All times are seconds and all sizes are bytes."""

    host: str
    port: int
    multi_model: bool
    base_dir: str
    program: str
    cpus: int
    memory_limit: int | None
    memory_reserve: int | None
    invoke_timeout: float
    stall_timeout: float
    load_timeout: float
    drain_timeout: float
    max_body: int
    max_loads: int
    max_queue: int
    max_queue_bytes: int
    max_connections: int
    batch_requests: int
    batch_tokens: int
    park_after: float
    page_size: int
    device: str
    share_files: bool
    preload: tuple[str, ...]
    log_level: str
    access_log: bool
    metrics_models: int
    busy_answers: float
    notes: tuple[str, ...] = ()  # warnings about settings that are not used as they are written, for the log


class SettingsError(ValueError):
    """An environment variable holds something that cannot be used."""


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment. Raises :class:`SettingsError` that names the variable at fault."""

    def number(name: str, default: float, low: float, high: float) -> float:
        text = environ.get(name, "").strip()
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            raise SettingsError(f"{name}={text!r} is not a number") from None
        if not low <= value <= high:
            raise SettingsError(f"{name}={text} must lie between {low:g} and {high:g}")
        return value

    def size(name: str) -> int | None:
        text = environ.get(name, "").strip()
        return parse_size(name, text) if text else None

    def flag(name: str, default: bool) -> bool:
        text = environ.get(name, "").strip().lower()
        if text in ("", "true", "1", "yes", "on", "false", "0", "no", "off"):
            return default if not text else text in ("true", "1", "yes", "on")
        raise SettingsError(f"{name}={text!r} must be true or false")

    def text(name: str, default: str) -> str:
        return environ.get(name, "").strip() or default

    def within(name: str, default: float, low: float, high: float, factor: float = 1) -> float:
        """A number for which the stock server has no bounds: a value outside ours is moved to the nearest bound."""
        value = number(name, default / factor, -math.inf, math.inf) * factor
        if not low <= value <= high:
            notes.append(f"{name}={environ[name]} is taken as {min(max(value, low), high) / factor:g}")
        return min(max(value, low), high)

    notes: list[str] = []
    invoke_timeout = within("SAGEMAKER_MODEL_SERVER_TIMEOUT", 60, 0.1, DAY, factor=60)  # it is in minutes
    invoke_timeout = within("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", invoke_timeout, 0.1, DAY)
    # The platform forwards up to 6 MiB; the stock server's own bound is this odd number.
    max_body = within("SAGEMAKER_MAX_PAYLOAD_IN_MB", 6_553_500, MiB, 4095 * MiB, factor=MiB)
    for server in ("TS", "MMS"):  # the server's own settings, which it takes before the toolkit's
        invoke_timeout = within(f"{server}_DEFAULT_RESPONSE_TIMEOUT", invoke_timeout, 0.1, DAY)
        max_body = within(f"{server}_MAX_REQUEST_SIZE", max_body, MiB, 4095 * MiB)
    notes += [f"{name} has no meaning here{UNUSED.get(name, '')}" for name in _foreign(environ)]
    cpus = int(number("MME_CPUS", usable_cpus(), 1, 4096))
    device = text("MME_DEVICE", "auto").lower()
    if device not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"MME_DEVICE={device!r} must be auto, cpu or cuda")
    return Settings(
        host=text("MME_CONTAINER_HOST", "127.0.0.1"),
        port=int(number("SAGEMAKER_BIND_TO_PORT", 8080, 0, 65535)),
        multi_model=text("SAGEMAKER_MULTI_MODEL", "true").lower() in ("true", "1", "yes", "on"),
        base_dir=text("SAGEMAKER_BASE_DIR", "/opt/ml"),
        program=text("SAGEMAKER_PROGRAM", "inference.py").removesuffix(".py"),
        cpus=cpus,
        memory_limit=size("MME_MEMORY_LIMIT"),
        memory_reserve=size("MME_MEMORY_RESERVE"),
        invoke_timeout=invoke_timeout,
        stall_timeout=number("MME_STALL_TIMEOUT", 10, 0.1, 3600),
        load_timeout=number("MME_LOAD_TIMEOUT", 350, 0.1, 86400),
        drain_timeout=number("MME_DRAIN_TIMEOUT", 25, 0, 3600),
        max_body=int(max_body),
        max_loads=int(number("MME_MAX_LOADS", cpus, 1, 1024)),
        max_queue=int(number("MME_MAX_QUEUE", 1000, 1, 1_000_000)),
        max_queue_bytes=size("MME_MAX_QUEUE_BYTES") or 256 * MiB,
        max_connections=int(number("MME_MAX_CONNECTIONS", default_connections(), 1, 1_000_000)),
        batch_requests=int(number("MME_BATCH_REQUESTS", 32, 1, 4096)),
        batch_tokens=int(number("MME_BATCH_TOKENS", 4096, 1, 10_000_000)),
        park_after=number("MME_PARK_AFTER", 900, 0, 10_000_000),
        page_size=int(number("MME_PAGE_SIZE", 100, 1, 100_000)),
        device=device,
        share_files=flag("MME_SHARE_FILES", True),
        # Imported once, before the forks. Add what your handlers import; leave out what none of them does.
        preload=tuple(environ.get("MME_PRELOAD", ",".join(default_preload())).replace(",", " ").split()),
        log_level=log_level(environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL", "20")),
        access_log=flag("MME_ACCESS_LOG", True),
        metrics_models=int(number("MME_METRICS_MODELS", 50, 0, 100_000)),
        busy_answers=number("MME_BUSY_ANSWERS", 3, 0, 1_000_000),
        notes=tuple(notes),
    )


DAY = 86400.0

# Why a setting of the stock servers does nothing, where that needs a reason.
UNUSED = dict.fromkeys(
    ("MMS_DEFAULT_WORKERS_PER_MODEL", "TS_DEFAULT_WORKERS_PER_MODEL", "SAGEMAKER_MODEL_SERVER_WORKERS"),
    ": a model has one process, which answers several requests in one pass",
)


# Settings of the stock servers that are taken (``read``).
TAKEN = tuple(
    f"{server}_{name}" for server in ("MMS", "TS") for name in ("DEFAULT_RESPONSE_TIMEOUT", "MAX_REQUEST_SIZE")
)


def _foreign(environ: Mapping[str, str]) -> list[str]:
    """The settings of the stock servers that are set and that this server does not use."""
    theirs = [name for name in environ if name.startswith(("MMS_", "TS_")) or name in UNUSED]
    return sorted(name for name in theirs if name not in TAKEN and environ[name].strip())


def default_connections() -> int:
    """Half of the files that may be open (models need the other half), at most 10,000."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # the front raises its own limit to this (system.py)
    return 10_000 if hard == resource.RLIM_INFINITY else max(1, min(10_000, hard // 2))


def default_preload() -> tuple[str, ...]:
    """torch and transformers, and the library that the embedding handler computes with where it is installed."""
    optional = ("onnxruntime",) if importlib.util.find_spec("onnxruntime") else ()
    return ("torch", "transformers", *optional)


def parse_size(name: str, text: str) -> int:
    """``"512M"``, ``"24GiB"`` or ``"1048576"`` in bytes (units of 1024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.lower())
    if not match:
        raise SettingsError(f"{name}={text!r} is not a size; write for example 512M or 24G")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))


def log_level(text: str) -> str:
    """SageMaker gives the level as Python's number (20 is info); a name is accepted too."""
    names = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "error"}
    if text.strip().isdigit():
        return names.get(int(text) // 10 * 10, "info")
    return text.strip().lower() if text.strip().lower() in names.values() else "info"


def usable_cpus() -> int:
    """Cores that this process may use: its affinity, less where its control groups' quota is lower."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup.cpus()
    return count if quota is None else max(1, min(count, int(quota + 0.5)))
