"""What an endpoint is doing now: what SageMaker, CloudWatch, its log and the bucket say, asked all at once.

A source that cannot be read (for lack of a permission, for example) does not hide the others: ``unknown`` says what was
not read and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mme import channels, releases
from mme.aws import explained
from mme.errors import EndpointError, MmeError
from mme.operate import facts as endpoint_facts
from mme.operate import metrics, usage
from mme.operate.facts import Facts

if TYPE_CHECKING:
    from types_boto3_cloudwatch import CloudWatchClient
    from types_boto3_s3 import S3Client
    from types_boto3_sagemaker import SageMakerClient

T = TypeVar("T")

RESOURCE = "endpoint/{endpoint}/variant/{variant}"
ALARMS_AT_ONCE = 100  # names that one call of DescribeAlarms takes


@dataclass(frozen=True)
class Policy:
    """A scaling policy: the metric that it holds near ``target``; for another kind than target tracking, neither."""

    name: str
    kind: str
    metric: str | None
    target: float | None
    alarms: tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """A scheduled change of the least and the greatest number of instances."""

    name: str
    when: str
    minimum: int | None
    maximum: int | None


@dataclass(frozen=True)
class Scaling:
    """How a variant is scaled: between ``minimum`` and ``maximum`` instances. ``suspended``: what of it is switched
    off."""

    variant: str
    minimum: int
    maximum: int
    policies: tuple[Policy, ...]
    schedules: tuple[Schedule, ...]
    suspended: tuple[str, ...]


@dataclass(frozen=True)
class Alarm:
    """An alarm. ``scaling``: it belongs to a scaling policy, and being in ALARM is its everyday work; ``rolls_back``:
    it ends an update that is under way."""

    name: str
    state: str
    metric: str
    since: datetime | None
    reason: str
    scaling: bool
    rolls_back: bool


@dataclass(frozen=True)
class Meaning:
    """What one name means: targets with their shares. ``channel`` is False for a model without one: its newest
    version."""

    name: str
    model: str
    channel: bool
    revision: int
    targets: Mapping[str, float]


@dataclass(frozen=True)
class Released:
    """What lies in the bucket. ``newest``: the newest version of each model, the latest release first. ``meanings`` is
    by name, of all ``names``, ``channels`` of which are channels, or of those that were asked for."""

    bucket: str
    prefix: str
    models: int
    versions: int
    size: int
    newest: tuple[releases.Version, ...]
    meanings: tuple[Meaning, ...]
    names: int
    channels: int

    def names_of(self, target: str) -> tuple[str, ...]:
        """The names that mean this target, by themselves or among others."""
        return tuple(item.name for item in self.meanings if target in item.targets)


@dataclass(frozen=True)
class Status:
    """An endpoint at a moment. What could not be read is None, and ``unknown`` says why, by what it is."""

    at: datetime
    endpoint: Facts
    scaling: tuple[Scaling, ...] | None
    alarms: tuple[Alarm, ...] | None
    figures: Mapping[str, metrics.Figures] | None
    used: usage.Usage | None
    released: Released | None
    unknown: Mapping[str, str]


@dataclass(frozen=True)
class Clients:
    """What ``read`` asks. The last three are boto3's clients of the services of that name."""

    sagemaker: SageMakerClient
    cloudwatch: CloudWatchClient
    s3: S3Client
    logs: Any
    autoscaling: Any


def read(
    clients: Clients,
    endpoint: str,
    store: releases.Store | None,
    *,
    hours: float = 1.0,
    now: datetime | None = None,
    known: dict[str, channels.Channel] | None = None,
    rows: int | None = None,
) -> Status:
    """All of it. Without a ``store``, the bucket that the endpoint itself reads models from. ``known`` is for who reads
    again: see ``channels.read_all``. With ``rows``, no channels are read but those that as many rows show: the names of
    the models that were released last, and of those that are used most. Raises EndpointError where there is no such
    endpoint or SageMaker cannot be asked."""
    at = now or datetime.now(timezone.utc)
    facts = endpoint_facts.read(clients.sagemaker, endpoint)
    if store is None:
        store = next((location for data in facts.data if (location := endpoint_facts.store_of(data))), None)
    unknown: dict[str, str] = {}

    def ask(what: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except MmeError as error:
            unknown[what] = error.message
            return None

    names = [variant.name for variant in facts.variants]
    with ThreadPoolExecutor(5) as pool:
        figures = pool.submit(ask, "metrics", partial(metrics.read, clients.cloudwatch, endpoint, names, at, hours))
        used = pool.submit(ask, "most used models", partial(usage.read, clients.logs, endpoint, at, hours))

        def most_used() -> list[str]:
            result = used.result()
            return [use.target for use in result.models[:rows]] if result else []

        reading = partial(read_released, clients.s3, store, known, rows, most_used) if store else None
        released = pool.submit(ask, "releases", reading) if reading else None
        scaling = ask("autoscaling", partial(read_scaling, clients.autoscaling, endpoint, names))
        owned = [name for item in scaling or () for policy in item.policies for name in policy.alarms]
        alarms = ask("alarms", partial(read_alarms, clients.cloudwatch, endpoint, owned, facts.rollback_alarms))
        if released is None:
            unknown["releases"] = "No bucket is known: no variant reads models from a folder in one."
        return Status(
            at,
            facts,
            scaling,
            alarms,
            figures.result(),
            used.result(),
            released.result() if released else None,
            unknown,
        )


def read_scaling(autoscaling: Any, endpoint: str, variants: Sequence[str]) -> tuple[Scaling, ...]:
    """How the variants are scaled; those that are not registered for it are left out. Raises EndpointError."""
    scaling = []
    with explained(f"read the autoscaling of endpoint {endpoint}", error=EndpointError):
        resources = {RESOURCE.format(endpoint=endpoint, variant=variant): variant for variant in variants}
        targets = [
            item
            for page in autoscaling.get_paginator("describe_scalable_targets").paginate(
                ServiceNamespace="sagemaker", ResourceIds=list(resources)
            )
            for item in page["ScalableTargets"]
            if item["ResourceId"] in resources
        ]
        for target in targets:
            where = {"ServiceNamespace": "sagemaker", "ResourceId": target["ResourceId"]}
            policies = autoscaling.describe_scaling_policies(**where).get("ScalingPolicies", [])
            actions = autoscaling.describe_scheduled_actions(**where).get("ScheduledActions", [])
            scaling.append(
                Scaling(
                    resources[target["ResourceId"]],
                    target["MinCapacity"],
                    target["MaxCapacity"],
                    tuple(_policy(item) for item in policies),
                    tuple(_schedule(item) for item in actions),
                    tuple(
                        sorted(name for name, is_so in (target.get("SuspendedState") or {}).items() if is_so is True)
                    ),
                )
            )
    return tuple(scaling)


def _policy(item: Mapping[str, Any]) -> Policy:
    tracking = item.get("TargetTrackingScalingPolicyConfiguration") or {}
    metric = (tracking.get("PredefinedMetricSpecification") or {}).get("PredefinedMetricType")
    if not metric:
        metric = (tracking.get("CustomizedMetricSpecification") or {}).get("MetricName")
    target = tracking.get("TargetValue")
    alarms = tuple(alarm["AlarmName"] for alarm in item.get("Alarms") or [] if alarm.get("AlarmName"))
    return Policy(item["PolicyName"], item["PolicyType"], metric, None if target is None else float(target), alarms)


def _schedule(item: Mapping[str, Any]) -> Schedule:
    action = item.get("ScalableTargetAction") or {}
    zone = f" {item['Timezone']}" if item.get("Timezone") else ""
    return Schedule(
        item["ScheduledActionName"], item["Schedule"] + zone, action.get("MinCapacity"), action.get("MaxCapacity")
    )


def read_alarms(
    cloudwatch: CloudWatchClient, endpoint: str, scaling: Iterable[str], rollback: Iterable[str]
) -> tuple[Alarm, ...]:
    """The endpoint's alarms by name: those called ``ENDPOINT-…`` that watch it, as the module names them, those of its
    scaling policies, and those that roll an update back. Raises EndpointError."""
    own, others = set(rollback), set(scaling)
    items: dict[str, Any] = {}
    with explained(f"read the alarms of endpoint {endpoint}", error=EndpointError):
        pages = cloudwatch.get_paginator("describe_alarms").paginate(
            AlarmNamePrefix=f"{endpoint}-", AlarmTypes=["MetricAlarm", "CompositeAlarm"]
        )
        composite: list[Any] = []
        for page in pages:
            items.update((item["AlarmName"], item) for item in page.get("MetricAlarms", []) if _watches(item, endpoint))
            composite += page.get("CompositeAlarms", [])
        # Of an endpoint whose name begins in the same way, there are alarms among them that are none of this one's.
        items.update(
            (item["AlarmName"], item)
            for item in composite
            if any(
                f'"{name}"' in item.get("AlarmRule", "") or f"({name})" in item.get("AlarmRule", "") for name in items
            )
        )
        missing = sorted((own | others) - items.keys())
        for start in range(0, len(missing), ALARMS_AT_ONCE):
            page = cloudwatch.describe_alarms(
                AlarmNames=missing[start : start + ALARMS_AT_ONCE], AlarmTypes=["MetricAlarm", "CompositeAlarm"]
            )
            for item in [*page.get("MetricAlarms", []), *page.get("CompositeAlarms", [])]:
                items[item["AlarmName"]] = item
    return tuple(
        Alarm(
            name,
            item.get("StateValue", "INSUFFICIENT_DATA"),
            item.get("MetricName") or "",
            _utc(item.get("StateUpdatedTimestamp")),
            item.get("StateReason") or "",
            name in others,
            name in own,
        )
        for name, item in sorted(items.items())
    )


def _watches(alarm: Mapping[str, Any], endpoint: str) -> bool:
    dimensions = {item["Name"]: item["Value"] for item in alarm.get("Dimensions") or []}
    if "EndpointName" in dimensions:
        return bool(dimensions["EndpointName"] == endpoint)
    return bool(alarm.get("Namespace") == f"mme/{endpoint}")  # of a single model, from the container's log


def _utc(time: datetime | None) -> datetime | None:
    return time.astimezone(timezone.utc) if time else None


def read_released(
    s3: S3Client,
    store: releases.Store,
    known: dict[str, channels.Channel] | None = None,
    rows: int | None = None,
    most_used: Callable[[], Sequence[str]] = list,
) -> Released:
    """What is released, and what each name means; with ``rows``, what so many names mean, those that ``shown_first``
    begins with, and those of the targets that ``most_used`` answers. Raises ReleaseError."""
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(channels.listed, s3, store)
        versions = releases.list_versions(s3, store)
        tags = listing.result()
    newest: dict[str, releases.Version] = {}
    for version in versions:
        newest.setdefault(version.name, version)
    models = {name: channels.model_of(name) for name in tags}
    models.update((name, name) for name in newest)
    wanted = set(models)
    if rows is not None:
        parsed = filter(None, map(releases.parse_target, most_used()))
        used = {name for name, _ in parsed}
        wanted = set(shown_first(models, tags, newest)[:rows]) | {name for name in models if models[name] in used}
    every = channels.read_these(s3, store, {name: tag for name, tag in tags.items() if name in wanted}, known)
    meanings = [Meaning(item.name, item.model, True, item.revision, item.split) for item in every]
    meanings += [
        Meaning(name, name, False, 0, {version.target: 100.0})
        for name, version in newest.items()
        if name in wanted and name not in tags
    ]
    return Released(
        store.bucket,
        store.prefix,
        len(newest),
        len(versions),
        sum(version.size for version in versions),
        tuple(newest.values()),
        tuple(sorted(meanings, key=lambda item: item.name)),
        len(models),
        len(tags),
    )


def shown_first(models: Mapping[str, str], channel: Iterable[str], newest: Iterable[str]) -> list[str]:
    """Names in the order in which people look for them: channels first, then models whose newest version is meant, each
    by the latest release. ``models``: the model of each name; ``channel``: the names of channels; ``newest``: models,
    the latest release first."""
    place, of_channels = {model: number for number, model in enumerate(newest)}, set(channel)
    return sorted(sorted(models), key=lambda name: (name not in of_channels, place.get(models[name], len(place))))


def as_json(status: Status) -> dict[str, Any]:
    """The status as plain JSON values. Times are UTC, durations seconds."""
    facts = status.endpoint
    released = status.released
    figures = status.figures or {}
    scaling = {item.variant: item for item in status.scaling or ()}
    return {
        "time": stamp(status.at),
        "endpoint": facts.name,
        "arn": facts.arn,
        "status": facts.status,
        "failure": facts.failure,
        "config": facts.config,
        "created": stamp(facts.created),
        "modified": stamp(facts.modified),
        "update": facts.update,
        "variants": [
            {
                "name": item.name,
                "shadow": item.shadow,
                "instance_type": item.instance_type,
                "instances": {"current": item.current, "desired": item.desired},
                "weight": {"current": item.weight, "desired": item.desired_weight},
                "image": item.container.image if item.container else None,
                "models_at": item.container.data if item.container else None,
                "autoscaling": _plain(scaling.get(item.name)),
                "metrics": _plain(figures.get(item.name)),
            }
            for item in facts.variants
        ],
        "alarms": None if status.alarms is None else [_plain(item) for item in status.alarms],
        "most_used": status.used
        and {
            "source": status.used.source,
            "since": stamp(status.used.since),
            "until": stamp(status.used.until),
            "sampled": status.used.sampled,
            "models": [
                {**asdict(use), "names": list(released.names_of(use.target)) if released else None}
                for use in status.used.models
            ],
        },
        "released": released
        and {
            "bucket": released.bucket,
            "prefix": released.prefix,
            "models": released.models,
            "versions": released.versions,
            "size": released.size,
            "names": [_plain(item) for item in released.meanings],
        },
        "unknown": dict(status.unknown),
    }


def stamp(time: datetime) -> str:
    """A time as the JSON of all tasks has it."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    """A value of this room as JSON has it."""
    if value is None:
        return None

    def plain(item: Any) -> Any:
        if isinstance(item, datetime):
            return stamp(item)
        if isinstance(item, Mapping):
            return {key: plain(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(inner) for inner in item]
        return item

    return plain(asdict(value))
