"""Checks an endpoint, or the plan for one, for what would make SageMaker fail minutes later.

It can be asked before there is an endpoint: role, image and instance types are then given. Each check ends in at least
one finding; one that could not be made says so, which is not a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from mme import channels, releases
from mme.aws import code_of, concerns_every_call, explained, is_local
from mme.errors import EndpointError, MmeError
from mme.operate import archives, bucket, images, policies, processors, rights
from mme.operate import facts as endpoint_facts
from mme.operate.facts import Facts
from mme.operate.findings import Finding, error, ok, unknown, warning
from mme.packaging.vendor import IMAGE_VERSIONS

if TYPE_CHECKING:
    from types_boto3_iam import IAMClient
    from types_boto3_s3 import S3Client
    from types_boto3_sagemaker import SageMakerClient

MOST_ARCHIVES = 200


@dataclass(frozen=True)
class Clients:
    """The clients. ``fetch`` gets what is at a URL (an image's configuration) and raises OSError."""

    sts: Any
    sagemaker: SageMakerClient
    s3: S3Client
    iam: IAMClient
    ecr: Any
    quotas: Any
    autoscaling: Any
    fetch: images.Fetch


@dataclass(frozen=True)
class Subject:
    """What to check. Values that are not given are taken from the endpoint; ``types`` are instance types with
    counts."""

    endpoint: str | None = None
    store: releases.Store | None = None
    role: str | None = None
    images: tuple[str, ...] = ()
    types: tuple[tuple[str, int], ...] = ()
    most_archives: int = MOST_ARCHIVES


@dataclass
class _Seen:
    """What one check has learned for those that follow."""

    account: str = ""
    partition: str = "aws"
    region: str = ""
    facts: Facts | None = None
    places: list[releases.Store] = field(default_factory=list)
    key: str | None = None


def run(clients: Clients, subject: Subject) -> list[Finding]:
    """Every finding, in the order of the checks. If the sign-in fails, nothing else is checked."""
    seen = _Seen(region=str(clients.sagemaker.meta.region_name or ""))
    results = list(_account(clients, seen))
    if any(finding.severity == "error" for finding in results):
        return [*results, unknown("everything else", "Nothing else was checked: it needs the sign-in and the region.")]
    checks: tuple[tuple[str, Callable[[Clients, Subject, _Seen], Iterator[Finding]]], ...] = (
        ("endpoint", _endpoint),
        ("bucket", _bucket),
        ("role", _role),
        ("image", _images),
        ("quota", _quotas),
        ("prefix", _prefix),
    )
    for name, check in checks:
        try:
            with explained(f"look at: {name}", error=EndpointError):
                results += check(clients, subject, seen)
        except MmeError as problem:
            results.append(unknown(name, f"{problem.message}", problem.hint or ""))
    if all(finding.severity == "unknown" for finding in results if finding.check not in ("credentials", "region")):
        what = "Nothing could be looked at, so nothing is known to be right."
        results.append(
            error("everything", what, "See above what each check needs; the module has a policy for it.", "")
        )
    return results


# ---- sign-in, region, endpoint ------------------------------------------------------------------------------------


def _account(clients: Clients, seen: _Seen) -> Iterator[Finding]:
    try:
        with explained("ask who is signed in", error=EndpointError):
            answer = clients.sts.get_caller_identity()
    except EndpointError as problem:
        yield error("credentials", problem.message, problem.hint or "Sign in.", "aws sts get-caller-identity")
        return
    seen.account = answer["Account"]
    seen.partition = answer["Arn"].split(":")[1]
    yield ok("credentials", f"signed in as {answer['Arn']}")
    known = boto3.session.Session().get_available_regions("sagemaker", partition_name=seen.partition)
    if seen.region in known:
        yield ok("region", f"{seen.region}")
    else:
        yield error(
            "region",
            f"SageMaker is not known in the region {seen.region!r} (partition {seen.partition}).",
            f"Give --region, or set AWS_REGION, as in {known[0] if known else 'us-east-1'}.",
            "aws configure list",
        )


def _endpoint(clients: Clients, subject: Subject, seen: _Seen) -> Iterator[Finding]:
    name = subject.endpoint
    if name is None:
        yield unknown("endpoint", "No endpoint is named, so none was looked at.", "Give --endpoint or MME_ENDPOINT.")
    else:
        with explained(f"describe endpoint {name}", error=EndpointError):
            try:
                clients.sagemaker.describe_endpoint(EndpointName=name)
            except ClientError as problem:
                if code_of(problem) == "ValidationException" and "not find" in str(problem):
                    missing = endpoint_facts.missing(clients.sagemaker, name)
                    yield error("endpoint", missing.message, missing.hint or "Create it.", "terraform apply")
                    name = None
                else:
                    raise
    if name is not None:
        facts = seen.facts = endpoint_facts.read(clients.sagemaker, name)
        if facts.status in ("Failed", "UpdateRollbackFailed"):
            why = facts.failure or "SageMaker gives no reason"
            yield error(
                "endpoint",
                f"{name} is {facts.status}: {why}",
                "See what its containers wrote, put it right, and create it again.",
                f"invoke logs --endpoint {name} --errors --since 1d",
            )
        elif facts.status in endpoint_facts.SILENT:
            hint = endpoint_facts.SILENT[facts.status].format(name=name)
            yield warning(
                "endpoint", f"{name} is {facts.status} and answers nobody.", hint, f"invoke status --endpoint {name}"
            )
        elif facts.failure:
            what = f"{name} serves, but its last update failed: {facts.failure}"
            yield error("endpoint", what, "Put it right, and update again.", f"invoke logs --endpoint {name} --errors")
        else:
            yield ok("endpoint", f"{name} is {facts.status}")
        for variant in facts.variants:
            if variant.container is None:
                what = f"The model of variant {variant.name} is deleted: no new instance can start."
                yield error("endpoint", what, "Make the model again.", "terraform apply")
            elif variant.container.mode != "MultiModel":
                what = (
                    f"The model of variant {variant.name} is in mode {variant.container.mode}: it takes no TargetModel."
                )
                yield error(
                    "endpoint", what, 'Create it with Mode="MultiModel", as the module does.', "terraform apply"
                )
    yield from _places(subject, seen)


def _places(subject: Subject, seen: _Seen) -> Iterator[Finding]:
    """Which folders the endpoint reads, and whether the settings publish into them."""
    for data in seen.facts.data if seen.facts else ():
        store = endpoint_facts.store_of(data)
        if store is None:
            what = f"The endpoint reads models from {data!r}, which is no folder in a bucket."
            yield error(
                "prefix",
                what,
                "ModelDataUrl is a prefix that ends with a slash: s3://BUCKET/models/.",
                "terraform apply",
            )
        else:
            if not data.endswith("/"):
                what = f"ModelDataUrl {data} does not end with a slash: targets are then looked for beside the folder."
                yield error("prefix", what, f"Give {data}/.", "terraform apply")
            seen.places.append(store)
    if subject.store and seen.places and subject.store not in seen.places:
        reads = ", ".join(place.uri() for place in seen.places)
        yield error(
            "prefix",
            f"Models are published to {subject.store.uri()}, and the endpoint reads {reads}.",
            "Set bucket and prefix to what the endpoint reads.",
            f"export MME_BUCKET={seen.places[0].bucket} MME_PREFIX={seen.places[0].prefix}",
        )
    if subject.store and not seen.places:
        seen.places.append(subject.store)


# ---- bucket -------------------------------------------------------------------------------------------------------


def _bucket(clients: Clients, subject: Subject, seen: _Seen) -> Iterator[Finding]:
    if not seen.places:
        yield unknown("bucket", "No bucket is known.", "Give --bucket, or an endpoint that reads from one.")
    for store in list(seen.places):
        try:
            releases.check_bucket(clients.s3, store)
        except MmeError as problem:
            seen.places.remove(store)
            fix = problem.hint or "Name the bucket that there is."
            yield error("bucket", problem.message, fix, f"aws s3api head-bucket --bucket {store.bucket}")
            continue
        yield ok("bucket", f"{store.bucket} is there, in {seen.region}")
        seen.key = bucket.key_of(clients.s3, store.bucket) or seen.key


# ---- role ---------------------------------------------------------------------------------------------------------


def _role(clients: Clients, subject: Subject, seen: _Seen) -> Iterator[Finding]:
    containers = [item.container for item in seen.facts.variants if item.container] if seen.facts else []
    arns = [subject.role] if subject.role else list(dict.fromkeys(item.role for item in containers if item.role))
    if not arns:
        yield unknown("role", "No role is known.", "Give --role, or an endpoint that has one.")
    parsed = [image for uri in _uris(subject, seen) if (image := images.parse(uri))]
    for arn in arns:
        role = rights.read(clients.iam, arn)
        if isinstance(role, Finding):
            yield role
            continue
        yield rights.check_trust(role, seen.account, seen.facts.arn if seen.facts else None)
        for store in seen.places:
            wanted = rights.needed(
                seen.partition,
                seen.account,
                seen.region,
                subject.endpoint or "",
                store.bucket,
                store.prefix,
                [(image.account, image.region, image.repository) for image in parsed],
                seen.key,
            )
            yield from rights.check_rights(clients.iam, role, wanted)
            yield from _bucket_policy(clients.s3, store, role, seen.partition)


def _bucket_policy(s3: S3Client, store: releases.Store, role: rights.Role, partition: str) -> Iterator[Finding]:
    """Whether the bucket's own policy forbids the role to read, whatever the role's policies say."""
    check = "bucket policy"
    try:
        policy = policies.document(s3.get_bucket_policy(Bucket=store.bucket)["Policy"])
    except ClientError as problem:
        if concerns_every_call(problem):
            raise
        if code_of(problem) != "NoSuchBucketPolicy":
            yield unknown(check, f"The policy of {store.bucket} may not be read ({code_of(problem)}).")
        return
    who = {"*", role.arn, f"arn:{partition}:iam::{role.account}:root", role.account}
    concerned = []
    for item in policies.statements(policy):
        principal = item.get("Principal")
        named = {"*"} if principal == "*" else set(policies.several((principal or {}).get("AWS")))
        if item.get("Effect") == "Deny" and named & who:
            concerned.append({**item, "Resource": item.get("Resource", "*")})
    allow = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    context = {"aws:SecureTransport": "true", "aws:PrincipalArn": role.arn, "aws:PrincipalAccount": role.account}
    resource = f"arn:{partition}:s3:::{store.bucket}/{store.prefix}model.tar.gz"
    verdict = policies.judge([{"Statement": [allow, *concerned]}], "s3:GetObject", resource, context)
    if verdict == "denied":
        yield error(
            check,
            f"The policy of {store.bucket} forbids {role.name} to read {store.uri()}.",
            "Take the role out of that statement.",
            f"aws s3api get-bucket-policy --bucket {store.bucket}",
        )
    elif verdict == "perhaps":
        yield unknown(check, f"Whether the policy of {store.bucket} lets {role.name} read depends on a condition.")
    else:
        yield ok(check, f"the policy of {store.bucket} does not forbid {role.name} to read")


# ---- image and instances ------------------------------------------------------------------------------------------


def _uris(subject: Subject, seen: _Seen) -> tuple[str, ...]:
    if subject.images:
        return subject.images
    variants = seen.facts.variants if seen.facts else ()
    return tuple(dict.fromkeys(item.container.image for item in variants if item.container and item.container.image))


def _types(subject: Subject, seen: _Seen) -> tuple[tuple[str, int], ...]:
    if subject.types:
        return subject.types
    variants = seen.facts.variants if seen.facts else ()
    return tuple((item.instance_type, item.desired or 1) for item in variants)


def _images(clients: Clients, subject: Subject, seen: _Seen) -> Iterator[Finding]:
    uris = _uris(subject, seen)
    if not uris:
        yield unknown("image", "No image is known.", "Give --image, or an endpoint that has one.")
    for uri in uris:
        image = images.parse(uri)
        if image is None:
            what = f"{uri!r} is not an image in ECR: SageMaker pulls from ECR alone."
            yield error(
                "image", what, "Push it to a repository in ECR, and give ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG."
            )
            continue
        yield from images.check(clients.ecr, image, account=seen.account, region=seen.region, fetch=clients.fetch)
        oldest = min(tuple(map(int, version.split("."))) for version in IMAGE_VERSIONS["transformers"])
        if image.transformers and image.transformers[:2] < oldest[:2]:
            yield warning(
                "transformers",
                f"{uri} has transformers {'.'.join(map(str, image.transformers))}; the handlers are tested with "
                f"{'.'.join(map(str, oldest))} and later.",
                "Take a later image, as the module's default is.",
                "terraform apply",
            )
    arm = [kind for kind, _ in _types(subject, seen) if processors.is_arm(kind)]
    if arm and any("arm64" not in uri and "graviton" not in uri for uri in uris):
        what = f"{arm[0]} has an arm64 processor, and the image's name does not say that it is built for one."
        yield warning("processor", what, "Take an image for arm64, or instances with an x86-64 processor.")


def _quotas(clients: Clients, subject: Subject, seen: _Seen) -> Iterator[Finding]:
    wanted: dict[str, int] = {}
    for kind, count in _types(subject, seen):
        wanted[kind] = wanted.get(kind, 0) + count
    most = dict(wanted)
    if seen.facts and not subject.types:
        most = _at_most(clients.autoscaling, seen.facts)
    wanted = {kind: count for kind, count in wanted.items() if kind.startswith("ml.")}
    if not wanted:
        yield unknown("quota", "No instance type is known.", "Give --type, or an endpoint.")
        return
    try:
        limits = _limits(clients.quotas, wanted)
    except ClientError as problem:
        if concerns_every_call(problem):
            raise
        if code_of(problem) == "UnknownOperationException" and is_local(clients.quotas):
            yield unknown("quota", "The local AWS has no quotas.")
            return
        yield unknown(
            "quota",
            f"The quotas of SageMaker cannot be read ({code_of(problem)}).",
            "Ask for servicequotas:ListServiceQuotas.",
        )
        return
    for kind, count in wanted.items():
        if kind in limits:
            yield _quota(kind, count, most.get(kind, 0), *limits[kind])
        else:
            yield unknown("quota", f"There is no quota called {kind} for endpoint usage in this region.")


def _limits(quotas: Any, kinds: Iterable[str]) -> dict[str, tuple[float, str]]:
    """The quota of each instance type that has one, and the quota's code. Raises ClientError."""
    names = {f"{kind} for endpoint usage": kind for kind in kinds}
    limits: dict[str, tuple[float, str]] = {}
    for page in quotas.get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker"):
        for quota in page["Quotas"]:
            if quota["QuotaName"] in names:
                limits[names[quota["QuotaName"]]] = (quota["Value"], quota["QuotaCode"])
        if len(limits) == len(names):
            break
    return limits


def _quota(kind: str, count: int, most: int, limit: float, code: str) -> Finding:
    """Whether ``limit`` instances of a type are enough for ``count``, and for ``most``, which autoscaling may want."""
    fix = "Ask for more; AWS may take a day or two."
    command = (
        f"aws service-quotas request-service-quota-increase --service-code sagemaker --quota-code {code} "
        f"--desired-value {2 * max(count, most)}"
    )
    if limit < count:
        return error("quota", f"{count} of {kind} are wanted, and the quota is {limit:g}.", fix, command)
    if limit < most:
        what = f"Autoscaling may go to {most} of {kind}, and the quota is {limit:g}."
        return error("quota", what, fix, command)
    if limit < 2 * count:
        what = f"A blue/green update needs {2 * count} of {kind} for a while, and the quota is {limit:g}."
        return warning("quota", what, f"{fix} Or update in a rolling way.", command)
    return ok("quota", f"{limit:g} of {kind}; {count} are wanted (what other endpoints use is not counted)")


def _at_most(autoscaling: Any, facts: Facts) -> dict[str, int]:
    """How many instances of each type autoscaling may want. Where it cannot be asked, none are counted."""
    ids = {f"endpoint/{facts.name}/variant/{item.name}": item.instance_type for item in facts.variants}
    counts: dict[str, int] = {}
    try:
        targets = autoscaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=list(ids))[
            "ScalableTargets"
        ]
    except ClientError:
        return counts
    for target in targets:
        if target["ResourceId"] in ids:
            kind = ids[target["ResourceId"]]
            counts[kind] = counts.get(kind, 0) + target["MaxCapacity"]
    return counts


# ---- what is released ---------------------------------------------------------------------------------------------


def _prefix(clients: Clients, subject: Subject, seen: _Seen) -> Iterator[Finding]:
    versions_known = [image.transformers for uri in _uris(subject, seen) if (image := images.parse(uri))]
    lowest = min((version for version in versions_known if version), default=None)
    place = archives.Place(lowest, tuple(kind for kind, _ in _types(subject, seen)))
    for store in seen.places:
        keys, others, elsewhere = bucket.keys(clients.s3, store)
        if not keys:
            hint = f" There are archives at {', '.join(elsewhere[:3])}." if elsewhere else ""
            what = f"There is no archive under {store.uri()}.{hint}"
            if elsewhere:
                yield error("prefix", what, "Give the endpoint that prefix, or move them.", f"aws s3 ls {store.uri()}")
            else:
                yield warning("prefix", what, "Release a model.", "invoke package upload")
            continue
        yield ok("prefix", f"{len(keys)} archives under {store.uri()}")
        if others:
            yield warning(
                "keys",
                f"{len(others)} objects under {store.uri()} are no archives, the first is {others[0]}.",
                "Keep the model prefix for archives: the endpoint's role reads it, and a TargetModel names what is "
                "in it.",
                f"aws s3 mv s3://{store.bucket}/{others[0]} s3://{store.bucket}/other/",
            )
        every = channels.read_all(clients.s3, store)
        yield from bucket.meanings(every, keys)
        looked = {target: keys[target] for target in bucket.worth(every, keys)[: subject.most_archives]}
        yield from archives.check(archives.look(clients.s3, store.bucket, looked), place)
        if len(looked) < len(keys):
            what = (
                f"{len(looked)} of {len(keys)} archives were looked into: those of channels, and each model's newest."
            )
            yield unknown("archives", what, "Look into more with --archives.")


def summary(results: Sequence[Finding]) -> str:
    """How many there are of each kind, in words."""
    counts = {
        severity: sum(item.severity == severity for item in results) for severity in ("error", "warning", "unknown")
    }

    def count(severity: str, word: str) -> str:
        return f"{counts[severity]} {word}{'' if counts[severity] == 1 else 's'}"

    unmade = f"; {count('unknown', 'check')} could not be made" if counts["unknown"] else ""
    return f"{count('error', 'error')}, {count('warning', 'warning')}{unmade}."


def without(results: Sequence[Finding], ignored: Sequence[str]) -> list[Finding]:
    """The findings; those of the accepted checks are marked as such and no longer count as wrong."""
    return [
        replace(item, severity="ok", what=f"accepted: {item.what}") if item.wrong and item.check in ignored else item
        for item in results
    ]
