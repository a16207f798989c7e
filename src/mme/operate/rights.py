"""The execution role: whether SageMaker may assume it, and whether it may do what an endpoint needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from mme.aws import code_of, concerns_every_call, explained
from mme.errors import EndpointError
from mme.operate import policies
from mme.operate.findings import Finding, Severity, error, ok, unknown, warning
from mme.operate.policies import Document, Verdict

if TYPE_CHECKING:
    from types_boto3_iam import IAMClient

SERVICE = "sagemaker.amazonaws.com"
_ROLE = re.compile(r"arn:(?P<partition>[\w-]+):iam::(?P<account>\d{12}):role/(?:.*/)?(?P<name>[\w+=,.@-]+)")


@dataclass(frozen=True)
class Right:
    """Something that the role has to be allowed, and what happens where it is not."""

    check: str
    actions: tuple[str, ...]
    resource: str
    why: str
    severity: Severity = "error"
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Role:
    """A role as IAM describes it. ``identity`` and ``boundary`` are its policies; None where they may not be read."""

    arn: str
    name: str
    account: str
    trust: Document
    identity: tuple[Document, ...] | None
    boundary: tuple[Document, ...] | None


def needed(
    partition: str,
    account: str,
    region: str,
    endpoint: str,
    bucket: str,
    prefix: str,
    images: Sequence[tuple[str, str, str]],
    key: str | None,
) -> list[Right]:
    """What the role of an endpoint needs. ``images``: account, region and repository of each; ``key``: the ARN of the
    key that the bucket encrypts with, where it has one of its own."""
    objects = f"arn:{partition}:s3:::{bucket}"
    rights = [
        Right(
            "role: read models",
            ("s3:GetObject",),
            f"{objects}/{prefix}model.tar.gz",
            "every request for a model then fails with MODEL_DATA_DOWNLOAD_FAILED",
        ),
        Right(
            "role: list models",
            ("s3:ListBucket",),
            objects,
            "a missing target is then reported as one that may not be read",
            "warning",
            {"s3:prefix": prefix},
        ),
    ]
    if key:
        rights.append(
            Right(
                "role: decrypt models",
                ("kms:Decrypt",),
                key,
                "the bucket encrypts with a key of its own, and no archive can then be read",
                context={"kms:ViaService": f"s3.{region}.amazonaws.com{'.cn' if partition == 'aws-cn' else ''}"},
            )
        )
    if images:
        rights.append(
            Right("role: pull image", ("ecr:GetAuthorizationToken",), "*", "the endpoint then fails after some minutes")
        )
    for owner, where, repository in images:
        rights.append(
            Right(
                "role: pull image",
                ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"),
                f"arn:{partition}:ecr:{where}:{owner}:repository/{repository}",
                "the endpoint then fails after some minutes",
            )
        )
    group = f"arn:{partition}:logs:{region}:{account}:log-group:/aws/sagemaker/Endpoints/{endpoint or 'NAME'}"
    rights += [
        Right(
            "role: write logs",
            ("logs:CreateLogStream", "logs:PutLogEvents"),
            f"{group}:log-stream:variant/i-0",
            "there is then no log to look into",
            "warning",
        ),
        Right(
            "role: write metrics",
            ("cloudwatch:PutMetricData",),
            "*",
            "there are then no metrics of the instances",
            "warning",
            {"cloudwatch:namespace": "/aws/sagemaker/Endpoints"},
        ),
    ]
    return rights


def parse(arn: str) -> tuple[str, str, str] | None:
    """Partition, account and name of a role's ARN; None for anything else."""
    match = _ROLE.fullmatch(arn)
    return (match["partition"], match["account"], match["name"]) if match else None


def read(iam: IAMClient, arn: str) -> Role | Finding:
    """The role, or what is wrong with it. Raises EndpointError where IAM cannot be asked."""
    parsed = parse(arn)
    if parsed is None:
        return error(
            "role", f"{arn!r} is not the ARN of a role.", "Give the ARN of a role: arn:aws:iam::ACCOUNT:role/NAME."
        )
    _, account, name = parsed
    with explained(f"read the role {name}", error=EndpointError):
        try:
            role: Any = iam.get_role(RoleName=name)["Role"]
        except ClientError as problem:
            if code_of(problem) == "NoSuchEntity":
                return error(
                    "role",
                    f"There is no role {arn}.",
                    "Create it (the module does), or give the role that there is.",
                    f"aws iam get-role --role-name {name}",
                )
            raise
        identity: tuple[Document, ...] | None
        try:
            identity, boundary = _policies(iam, name, role)
        except ClientError as problem:
            if concerns_every_call(problem):
                raise
            identity = boundary = None
    return Role(role["Arn"], name, account, policies.document(role["AssumeRolePolicyDocument"]), identity, boundary)


def _policies(
    iam: IAMClient, name: str, role: Mapping[str, Any]
) -> tuple[tuple[Document, ...], tuple[Document, ...] | None]:
    inline = [
        policies.document(iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"])
        for page in iam.get_paginator("list_role_policies").paginate(RoleName=name)
        for policy in page["PolicyNames"]
    ]
    attached = [
        _managed(iam, policy["PolicyArn"])
        for page in iam.get_paginator("list_attached_role_policies").paginate(RoleName=name)
        for policy in page["AttachedPolicies"]
    ]
    limit = (role.get("PermissionsBoundary") or {}).get("PermissionsBoundaryArn")
    return (*inline, *attached), (_managed(iam, limit),) if limit else None


def _managed(iam: IAMClient, arn: str) -> Document:
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    return policies.document(iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"])


def check_trust(role: Role, account: str, endpoint_arn: str | None) -> Finding:
    """Whether SageMaker, acting for ``account``, may assume the role."""
    context = {"aws:SourceAccount": account, **({"aws:SourceArn": endpoint_arn} if endpoint_arn else {})}
    trusting: list[Document] = [
        {"Statement": [{**item, "Resource": "*"}]} for item in policies.statements(role.trust) if _names_sagemaker(item)
    ]
    verdict = policies.judge(trusting, "sts:AssumeRole", "*", context)
    fix = (
        'Let its trust policy allow sts:AssumeRole to {"Service": "sagemaker.amazonaws.com"}'
        f" (a condition on aws:SourceAccount may say {account})."
    )
    command = f"aws iam update-assume-role-policy --role-name {role.name} --policy-document file://trust.json"
    if verdict == "denied":
        return error(
            "role trust", f"SageMaker may not assume {role.arn}: its trust policy does not allow it.", fix, command
        )
    if verdict == "perhaps":
        return unknown(
            "role trust", f"Whether SageMaker may assume {role.name} depends on a condition of its trust.", fix
        )
    return ok("role trust", f"SageMaker may assume {role.name}")


def _names_sagemaker(item: Mapping[str, Any]) -> bool:
    principal = item.get("Principal")
    if principal == "*":
        return True
    return isinstance(principal, dict) and bool({SERVICE, "*"} & set(policies.several(principal.get("Service"))))


def check_rights(iam: IAMClient, role: Role, rights: Sequence[Right]) -> list[Finding]:
    """One finding for each right: by IAM's simulation; where that is not to be had, from the role's policies."""
    results = []
    simulated = True
    for right in rights:
        verdicts: dict[str, Verdict] | None = None
        if simulated:
            try:
                verdicts = _simulate(iam, role, right)
            except ClientError as problem:
                if concerns_every_call(problem):
                    with explained(f"simulate the policies of {role.name}", error=EndpointError):
                        raise
                simulated = False
        if verdicts is None and role.identity is not None:
            verdicts = {
                action: _both(role.identity, role.boundary, action, right.resource, right.context)
                for action in right.actions
            }
        results.append(_of_right(role, right, verdicts, simulated))
    return results


def _both(
    identity: Sequence[Document],
    boundary: Sequence[Document] | None,
    action: str,
    resource: str,
    context: Mapping[str, str],
) -> Verdict:
    own = policies.judge(identity, action, resource, context)
    return own if boundary is None else policies.both(own, policies.judge(boundary, action, resource, context))


def _simulate(iam: IAMClient, role: Role, right: Right) -> dict[str, Verdict]:
    answer: Any = iam.simulate_principal_policy(
        PolicySourceArn=role.arn,
        ActionNames=list(right.actions),
        ResourceArns=[right.resource],
        ContextEntries=[
            {"ContextKeyName": name, "ContextKeyValues": [value], "ContextKeyType": "string"}
            for name, value in right.context.items()
        ],
    )
    verdicts: dict[str, Verdict] = {}
    for item in answer["EvaluationResults"]:
        allowed = item["EvalDecision"] == "allowed"
        open_question = bool(item.get("MissingContextValues")) and item["EvalDecision"] == "implicitDeny"
        verdicts[item["EvalActionName"]] = "allowed" if allowed else "perhaps" if open_question else "denied"
    return verdicts


def _of_right(role: Role, right: Right, verdicts: Mapping[str, Verdict] | None, simulated: bool) -> Finding:
    how = "by simulation" if simulated else "by reading its policies"
    if verdicts is None:
        return unknown(
            right.check,
            f"Whether {role.name} may {', '.join(right.actions)} is not known: neither simulating nor reading its "
            "policies "
            "is permitted.",
            "Ask for iam:SimulatePrincipalPolicy, or for iam:GetRolePolicy and iam:ListAttachedRolePolicies.",
        )
    lacking = [action for action, verdict in verdicts.items() if verdict == "denied"]
    if lacking:
        fix = f"Allow {role.name} {', '.join(lacking)} on {right.resource}."
        command = (
            f"aws iam put-role-policy --role-name {role.name} --policy-name mme --policy-document file://policy.json"
        )
        what = f"{role.name} may not {', '.join(lacking)} on {right.resource} ({how}): {right.why}."
        return (error if right.severity == "error" else warning)(right.check, what, fix, command)
    open_ones = [action for action, verdict in verdicts.items() if verdict == "perhaps"]
    if open_ones:
        return unknown(right.check, f"Whether {role.name} may {', '.join(open_ones)} depends on a condition ({how}).")
    return ok(right.check, f"{role.name} may {', '.join(right.actions)} ({how})")
