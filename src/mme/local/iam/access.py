"""Authorizes every request by the IAM policies that moto stores.

The keys in the export lines are the account's root, which may do everything (and may assume every role, so that a test
can act as it). Keys made by IAM or STS are held to their user's or role's policies, permissions boundary and session
policy; bucket policies hold for everybody. For S3, SageMaker and STS the resource is judged exactly; for other services
an Allow counts whatever its Resource is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl

from mme.local.answers import json_or_query, refusal
from mme.local.iam import policy, s3_request
from mme.local.iam.directory import Directory, Document, Principal, UnknownKey, parsed_document
from mme.local.iam.policy import Request
from mme.local.requests import access_key, action_name, peek, signed_service

_SERVICES = {"monitoring": "cloudwatch", "email": "ses", "tagging": "tag"}
_SAGEMAKER_NAMES = (("EndpointName", "endpoint"), ("EndpointConfigName", "endpoint-config"), ("ModelName", "model"))
_ALWAYS = ("sts:GetCallerIdentity", "sts:GetSessionToken")


class Access:
    """Authorizes requests. Each method returns None if allowed, else the reason, as AWS words it."""

    def __init__(self, directory: Directory, account: str, partition: str, *, enforced: bool) -> None:
        self._directory = directory
        self._account = account
        self._partition = partition
        self.enforced = enforced

    # -- authorization

    def refuse(
        self,
        who: Principal,
        action: str,
        resource: str | None,
        context: Mapping[str, Sequence[str]],
        region: str,
        resource_policy: Document | None = None,
    ) -> str | None:
        """Why ``who`` may not do ``action``; None when it may."""
        if resource is not None and resource.startswith("arn:aws:"):  # as AWS's main partition writes it
            resource = resource.replace("arn:aws:", f"arn:{self._partition}:", 1)
        now = datetime.now(timezone.utc)
        full: dict[str, Sequence[str]] = {
            "aws:securetransport": ("true",),  # plain HTTP to loopback stands for TLS
            "aws:sourceip": ("127.0.0.1",),
            "aws:currenttime": (now.strftime("%Y-%m-%dT%H:%M:%SZ"),),
            "aws:epochtime": (str(int(now.timestamp())),),
            "aws:principalaccount": (self._account,),
            "aws:resourceaccount": (self._account,),
            "aws:requestedregion": (region,),
            "aws:viaawsservice": ("false",),
            "aws:principalisawsservice": ("false",),
            "aws:principaltype": ("Account" if who.root else "User" if ":user/" in who.arn else "AssumedRole",),
            "aws:principalarn": (who.arn,),
            **who.context,
            **{name.lower(): values for name, values in context.items()},
        }
        request = Request(action, resource, full, who.names)
        words = f"User: {who.arn} is not authorized to perform: {action}"
        if resource is not None:
            words += f' on resource: "{resource}"'
        granted = False
        if resource_policy is not None:
            verdict = policy.judge([resource_policy], request)
            if verdict == "deny":
                return f"{words} with an explicit deny in a resource-based policy"
            granted = verdict == "allow"
        if who.root:
            return None
        for documents, kind in (
            (who.policies, "identity-based policy"),
            ([who.boundary] if who.boundary is not None else None, "permissions boundary"),
            ([who.session] if who.session is not None else None, "session policy"),
        ):
            if documents is None:
                continue
            verdict = policy.judge(documents, request)
            if verdict == "deny":
                return f"{words} with an explicit deny in an {kind}"
            if verdict == "none" and not (granted and kind == "identity-based policy"):
                return f"{words} because no {kind} allows the {action} action"
        return None

    # -- the roles that SageMaker assumes

    def role_may_read(self, role_arn: str, bucket: str, key: str) -> str | None:
        """Whether an execution role may download an archive."""
        if not self.enforced:
            return None
        who = self._directory.role(role_arn)
        if who is None:
            return f"The role {role_arn} does not exist."
        holder = _bucket(self._account, self._partition, bucket)
        region = holder.region_name if holder is not None else "us-east-1"
        denied = self._refuse_s3(who, "s3:GetObject", bucket, key, {}, region)
        if denied is not None:
            return denied
        kms_key = _object_key(self._account, self._partition, bucket, key)
        return self._refuse_key_use(who, "kms:Decrypt", kms_key, region)

    def role_for_sagemaker(self, role_arn: str) -> str | None:
        """Whether SageMaker may assume the role at all."""
        if not self.enforced:
            return None
        trust = self._directory.trust(role_arn)
        came_from = {"aws:sourceaccount": [self._account]}  # SageMaker names the account that it acts for
        service = Request("sts:AssumeRole", None, came_from, frozenset({"sagemaker.amazonaws.com"}))
        if trust is not None and policy.judge([trust], service) == "allow":
            return None
        return (
            f"Could not assume role {role_arn}. Please ensure that the role exists and allows principal "
            "'sagemaker.amazonaws.com' to assume the role."
        )

    def invoke(self, environ: Mapping[str, Any], region: str, endpoint: str, target: str | None) -> str | None:
        """Whether the caller may invoke the endpoint with the target model."""
        if not self.enforced:
            return None
        try:
            who = self._directory.by_key(access_key(environ))
        except UnknownKey as problem:
            return str(problem)
        context = {} if target is None else {"sagemaker:TargetModel": [target]}
        variant = environ.get("HTTP_X_AMZN_SAGEMAKER_TARGET_VARIANT")
        if variant:
            context["sagemaker:TargetVariant"] = [str(variant)]
        arn = f"arn:aws:sagemaker:{region}:{self._account}:endpoint/{endpoint.lower()}"
        return self.refuse(who, "sagemaker:InvokeEndpoint", arn, context, region)

    # -- requests that go to moto

    def gate(self, environ: dict[str, Any], region: str) -> Callable[[Callable[..., Any]], Iterable[bytes]] | None:
        """None when the request is allowed, else the response that refuses it."""
        if not self.enforced:
            return None
        service = signed_service(environ)
        if service is None and environ.get("HTTP_X_AMZ_TARGET"):
            return refusal("json", 400, "MissingAuthenticationTokenException", "Missing Authentication Token")
        if service is None:
            return refusal("s3", 403, "AccessDenied", "Anonymous access is not allowed: sign the request.")
        try:
            who = self._directory.by_key(access_key(environ))
        except UnknownKey as problem:
            if service == "s3":
                words = "The AWS Access Key Id you provided does not exist in our records."
                return refusal(service, 403, "InvalidAccessKeyId", words)
            return refusal(
                service,
                403,
                json_or_query(environ, "UnrecognizedClientException", "InvalidClientTokenId"),
                str(problem),
            )
        denied = self._s3(who, environ, region) if service == "s3" else self._other(who, environ, service, region)
        if denied is None:
            return None
        code = "AccessDenied" if service in ("s3", "iam", "sts", "sns") else "AccessDeniedException"
        if service == "ec2":
            code = "UnauthorizedOperation"
        return refusal(service, 403, code, denied)

    def _s3(self, who: Principal, environ: dict[str, Any], region: str) -> str | None:
        body = b""
        if environ.get("REQUEST_METHOD") == "POST" and not s3_request.location(environ)[1]:
            body = peek(environ)
        if not s3_request.is_plain(environ):
            return f"User: {who.arn} is not authorized: the path of the request can be read in more ways than one"
        asks = s3_request.asks(environ, body)
        if not asks:
            return f"User: {who.arn} is not authorized: the request asks for nothing that can be judged"
        for ask in asks:
            name, _, path = ask.resource.removeprefix("arn:aws:s3:::").partition("/")
            denied = self._refuse_s3(who, ask.action, name, path, ask.context, region)
            if denied is None and ask.action == "s3:GetObject" and not who.root and path:
                denied = self._refuse_missing(who, name, path, region)
            if denied is None and ask.action == "s3:PutObject":
                kms_key = environ.get("HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION_AWS_KMS_KEY_ID") or _bucket_key(
                    self._account, self._partition, name
                )
                denied = self._refuse_key_use(who, "kms:GenerateDataKey", kms_key, region)
            if denied is None and ask.action == "s3:GetObject":
                kms_key = _object_key(self._account, self._partition, name, path)
                denied = self._refuse_key_use(who, "kms:Decrypt", kms_key, region)
            if denied is not None:
                return denied
        return None

    def _refuse_s3(
        self, who: Principal, action: str, bucket: str, key: str, context: Mapping[str, Sequence[str]], region: str
    ) -> str | None:
        holder = _bucket(self._account, self._partition, bucket)
        document = parsed_document(holder.policy.decode()) if holder is not None and holder.policy else None
        if document is not None and who.root and action.endswith("BucketPolicy"):
            document = None  # the root can always get back in
        resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
        return self.refuse(who, action, resource, context, region, document)

    def _refuse_missing(self, who: Principal, bucket: str, key: str, region: str) -> str | None:
        """Callers that may not list a bucket do not learn that an object is missing: S3 answers 403 then, not 404."""
        if (
            _object(self._account, self._partition, bucket, key) is not None
            or _bucket(self._account, self._partition, bucket) is None
        ):
            return None
        return self._refuse_s3(who, "s3:ListBucket", bucket, "", {}, region)

    def _refuse_key_use(self, who: Principal, action: str, kms_key: str | None, region: str) -> str | None:
        if not kms_key or who.root:
            return None
        arn = kms_key if kms_key.startswith("arn:") else f"arn:aws:kms:{region}:{self._account}:key/{kms_key}"
        return self.refuse(who, action, arn, {"kms:ViaService": [f"s3.{region}.amazonaws.com"]}, region)

    def _other(self, who: Principal, environ: dict[str, Any], service: str, region: str) -> str | None:
        if who.root:
            return None
        body = peek(environ)
        name = action_name(environ, body)
        if name is None:
            return (
                f"User: {who.arn} is not authorized: the local AWS cannot tell which action of {service} this is; "
                "it names none, or several"
            )
        action = f"{_SERVICES.get(service, service)}:{name}"
        if action in _ALWAYS:
            return None
        resource = None
        if service == "sagemaker":
            resource = self._sagemaker_resource(body, region)
        if action == "sts:AssumeRole":
            resource = dict(parse_qsl(body.decode("utf-8", "replace"))).get("RoleArn")
            trust = self._directory.trust(resource or "")
            request = Request(action, None, {k.lower(): v for k, v in who.context.items()}, who.names)
            if trust is None or policy.judge([trust], request) != "allow":
                return f"User: {who.arn} is not authorized to perform: sts:AssumeRole on resource: {resource}"
        return self.refuse(who, action, resource, {}, region)

    def _sagemaker_resource(self, body: bytes, region: str) -> str | None:
        try:
            asked = json.loads(body)
        except ValueError:
            return None
        for parameter, kind in _SAGEMAKER_NAMES:
            if isinstance(asked, dict) and isinstance(asked.get(parameter), str):
                return f"arn:aws:sagemaker:{region}:{self._account}:{kind}/{asked[parameter].lower()}"
        return None


# -- looking things up in moto's S3


def _bucket(account: str, partition: str, name: str) -> Any:
    from moto.s3.models import s3_backends

    return s3_backends[account][partition].buckets.get(name)


def _object(account: str, partition: str, bucket: str, key: str) -> Any:
    from moto.s3.exceptions import S3ClientError
    from moto.s3.models import s3_backends

    try:
        return s3_backends[account][partition].get_object(bucket, key)
    except S3ClientError:
        return None


def _object_key(account: str, partition: str, bucket: str, key: str) -> str | None:
    item = _object(account, partition, bucket, key)
    if item is None or item.encryption != "aws:kms":
        return None
    return item.kms_key_id or None


def _bucket_key(account: str, partition: str, bucket: str) -> str | None:
    holder = _bucket(account, partition, bucket)
    if holder is None or not holder.encryption:
        return None
    rule = holder.encryption.get("Rule", {})
    default = (rule[0] if isinstance(rule, list) else rule).get("ApplyServerSideEncryptionByDefault", {})
    return default.get("KMSMasterKeyID") if default.get("SSEAlgorithm") == "aws:kms" else None
