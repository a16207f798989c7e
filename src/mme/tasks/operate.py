"""Tasks that operate an endpoint: status, doctor, logs."""

from __future__ import annotations

import contextlib
import re
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone

from invoke import Context, Exit

from mme import aws, channels, releases
from mme.errors import EndpointError, MmeError, UsageError
from mme.operate import doctor as endpoint_doctor
from mme.operate import facts as endpoint_facts
from mme.operate import findings, lines, metrics
from mme.operate import logs as endpoint_logs
from mme.operate import status as endpoint_status
from mme.settings import Settings
from mme.tasks import screen
from mme.tasks.command import (
    JSON_HELP,
    command,
    note,
    print_json,
    print_json_line,
    whole_number,
)

ALL = ("bucket", "prefix", "endpoint", "region", "terraform")
_AGO = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def hours_of(flag: str, text: str, most: float = metrics.MOST_HOURS) -> float:
    """The value of a flag as a number of hours. Raises UsageError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise UsageError(f"{flag} takes a number of hours, more than 0 and at most {most:g}, not {text!r}.")
    return value


def moment_of(flag: str, text: str, now: datetime) -> datetime:
    """What a flag says as a time in UTC: so long ago (90s, 10m, 2h, 1d), or a time as 2026-11-27T01:20. Raises
    UsageError."""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            return now - timedelta(seconds=float(ago[1]) * _SECONDS[ago[2]])
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        if datetime(1970, 1, 2, tzinfo=timezone.utc) <= moment <= now:
            return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        pass
    raise UsageError(
        f"{flag} takes a time in the past, not {text!r}.", "As in 90s, 10m, 2h, 1d, or in UTC 2026-11-27T01:20."
    )


def store_of(settings: Settings, facts: endpoint_facts.Facts) -> releases.Store:
    """The bucket of the settings, else the one that the endpoint reads models from."""
    read = [store for data in facts.data if (store := endpoint_facts.store_of(data))]
    if settings.knows_bucket or not read:
        return releases.Store(settings.bucket, settings.prefix)
    return read[0]


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """For tasks that run until Ctrl-C, which ends them without an error."""
    try:
        yield
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            note("")


# ---- status -------------------------------------------------------------------------------------------------------


@command(
    {
        "hours": "the hours over which metrics are added up",
        "rows": "at most this many models, and as many names",
        "watch": "refresh it until Ctrl-C; with --json, a line of JSON each time",
        "every": "with --watch: seconds in between",
        "json": JSON_HELP,
    },
    where=ALL,
)
def status(
    context: Context,
    settings: Settings,
    hours: str = "1",
    rows: str = "10",
    watch: bool = False,
    every: str = "5",
    json: bool = False,
) -> None:
    """Show what the endpoint is doing: instances, alarms, cache hits, loads, the most used models, releases.

    Only the endpoint's name is needed: the bucket is the one that the endpoint reads its models from, unless --bucket
    or another setting names one. What may not be read is named, and the rest shown.
    """
    window, most = hours_of("--hours", hours), whole_number("--rows", rows, 1)
    pause = whole_number("--every", every, 1)
    name = settings.endpoint
    store = releases.Store(settings.bucket, settings.prefix) if settings.knows_bucket else None
    clients = endpoint_status.Clients(
        aws.sagemaker_client(settings.region),
        aws.cloudwatch_client(settings.region),
        aws.s3_client(settings.region),
        aws.client("logs", settings.region),
        aws.client("application-autoscaling", settings.region),
    )
    if not watch:
        now = endpoint_status.read(clients, name, store, hours=window, rows=None if json else most)
        if json:
            print_json(endpoint_status.as_json(now))
        else:
            print(screen.status(now, most))
        return
    known: dict[str, channels.Channel] = {}
    with until_interrupted():
        while True:
            now = endpoint_status.read(clients, name, store, hours=window, known=known, rows=None if json else most)
            if json:
                print_json_line(endpoint_status.as_json(now))
            else:
                clear = "\x1b[H\x1b[2J\x1b[3J" if sys.stdout.isatty() else ""
                print(f"{clear}{screen.status(now, most)}", flush=True)
            time.sleep(pause)


# ---- doctor -------------------------------------------------------------------------------------------------------


@command(
    {
        "role": "the execution role's ARN, before there is an endpoint that has one",
        "image": "an image's URI, repeatable, likewise",
        "type": "an instance type, repeatable, likewise; with a count as in ml.m5.xlarge=2",
        "archives": "the archives to look into, at most: what channels mean, then the newest of each model",
        "ignore": "a check whose findings are accepted, repeatable, as in processor",
        "all": "show what is all right, too",
        "json": JSON_HELP,
    },
    where=ALL,
    repeatable=("image", "type", "ignore"),
)
def doctor(
    context: Context,
    settings: Settings,
    role: str | None = None,
    image: Sequence[str] = (),
    type: Sequence[str] = (),
    archives: str = str(endpoint_doctor.MOST_ARCHIVES),
    ignore: Sequence[str] = (),
    all: bool = False,
    json: bool = False,
) -> None:
    """Say what is wrong, or will be: each finding with its fix and its command. Exit code 1 when something is.

    Looks at the sign-in, the region, the endpoint, its bucket and archives, its role, image and instances. Changes
    nothing. A check that cannot be made says so, which is not a pass. Before there is an endpoint: --bucket, --role,
    --image, --type.
    """
    most = whole_number("--archives", archives, 1)
    subject = endpoint_doctor.Subject(
        settings.endpoint if settings.knows_endpoint else None,
        releases.Store(settings.bucket, settings.prefix) if settings.knows_bucket else None,
        role,
        tuple(image),
        tuple(_counted(item) for item in type),
        most,
    )
    region = settings.region
    try:
        clients = endpoint_doctor.Clients(
            aws.client("sts", region),
            aws.sagemaker_client(region),
            aws.s3_client(region),
            aws.client("iam", region),
            aws.client("ecr", region),
            aws.client("service-quotas", region),
            aws.client("application-autoscaling", region),
            _fetch,
        )
    except MmeError as problem:  # no region, or a profile that is not there
        results = [findings.error("region", problem.message, problem.hint or "", "aws configure list")]
    else:
        results = endpoint_doctor.without(endpoint_doctor.run(clients, subject), ignore)
    wrong = any(item.wrong for item in results)
    if json:
        print_json({"ok": not wrong, "findings": [item.as_json() for item in results]})
    else:
        print(screen.findings(results, with_ok=all))
        note(endpoint_doctor.summary(results))
    if wrong:
        raise Exit(code=1)


def _counted(text: str) -> tuple[str, int]:
    kind, equals, count = text.partition("=")
    if not re.fullmatch(r"ml\.[a-z0-9-]+\.[a-z0-9-]+", kind):
        raise UsageError(f"--type takes an instance type, not {kind!r}.", "As in ml.m5.xlarge, or ml.m5.xlarge=2.")
    return kind, whole_number("--type", count, 1) if equals else 1


def _fetch(url: str) -> bytes:
    if not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
        raise OSError(f"{url.partition(':')[0]} is not fetched")
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 (checked above)
        data: bytes = answer.read(1 << 20)
    return data


# ---- logs ---------------------------------------------------------------------------------------------------------


@command(
    {
        "model": "only lines of this model: its name (all versions), a channel as in bert@staging, or a target model",
        "errors": "only errors: failed requests, lines of level error, tracebacks",
        "since": "from when on: 90s, 10m, 2h, 1d ago, or a time in UTC as 2026-11-27T01:20",
        "follow": "go on with what comes, until Ctrl-C; with --json, a line of JSON for each",
        "variant": "only of this variant",
        "json": JSON_HELP,
    },
    where=ALL,
)
def logs(
    context: Context,
    settings: Settings,
    model: str | None = None,
    errors: bool = False,
    since: str = "1h",
    follow: bool = False,
    variant: str | None = None,
    json: bool = False,
) -> None:
    """Show what the endpoint's containers have written: by model, errors only, followed.

    Our container names the target model of each request. The stock container's log does not, so --model finds nothing
    there. What a handler prints has no model either: it comes without --model.
    """
    start = moment_of("--since", since, datetime.now(timezone.utc))
    name = settings.endpoint
    chosen = endpoint_logs.Filter(_wanted(settings, model) if model else None, errors=errors, variant=variant)
    client = aws.client("logs", settings.region)
    if follow:
        with until_interrupted():
            for item in endpoint_logs.follow(client, name, start):
                for shown in chosen(item) if item else ():
                    if json:
                        print_json_line(shown.as_json())
                    else:
                        print(screen.line(shown, several=True), flush=True)
        return
    shown_lines = (shown for item in endpoint_logs.read(client, name, start) for shown in chosen(item))
    if json:
        print_json({"log_group": endpoint_logs.group_of(name), "lines": [item.as_json() for item in shown_lines]})
    else:
        _print_lines(shown_lines)
    if model and not chosen.named:
        raise EndpointError(
            f"No line of the log since {since} names a target model.",
            "There was no request, or the container is the stock one, whose log names none: leave --model out.",
        )


def _print_lines(items: Iterable[lines.Line]) -> None:
    for item in items:
        print(screen.line(item, several=True))


def _wanted(settings: Settings, model: str) -> endpoint_logs.Wanted:
    """Which targets are meant: those of a channel with a stage now, else all versions of the model, or one target."""
    if "@" not in model:
        return endpoint_logs.of_model(model)
    store = releases.Store(settings.bucket, settings.prefix)
    split, _ = channels.current_split(aws.s3_client(settings.region), store, model)
    return split.__contains__
