"""Who may do what: holds every request to the IAM policies that moto keeps.

The keys in the export lines are the account's root, which may do everything (and may assume every role, so that a test
can act as it). Keys made by IAM or STS are held to their user's or role's policies, permissions boundary and session
policy; bucket policies hold for everybody. For S3, SageMaker and STS the resource is judged exactly; for other services
an Allow counts whatever its Resource is.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

from mme.local import policy, s3_request
from mme.local.policy import Request

_SERVICES = {"monitoring": "cloudwatch", "email": "ses", "tagging": "tag"}
_SAGEMAKER_NAMES = (("EndpointName", "endpoint"), ("EndpointConfigName", "endpoint-config"), ("ModelName", "model"))
_ALWAYS = ("sts:GetCallerIdentity", "sts:GetSessionToken")
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Principal:
    """Who asks, and which policies come with them."""

    arn: str
    account: str
    root: bool = False
    policies: tuple[Document, ...] = ()
    boundary: Document | None = None
    session: Document | None = None
    names: frozenset[str] = field(default_factory=frozenset)
    context: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class UnknownKey(Exception):
    """The access key belongs to nobody."""


class Directory:
    """Finds principals in moto's IAM and STS."""

    def __init__(self, account: str, root_key: str) -> None:
        self._account = account
        self._root_key = root_key

    @property
    def _iam(self) -> Any:
        from moto.iam.models import iam_backends

        return iam_backends[self._account]["aws"]

    def by_key(self, access_key: str) -> Principal:
        """Whom the key belongs to. Raises UnknownKey."""
        if access_key == self._root_key:
            return self.root()
        from moto.sts.models import sts_backends

        for session in sts_backends[self._account]["aws"].assumed_roles:
            if session.access_key_id == access_key:
                if session.expiration < datetime.now(timezone.utc).replace(tzinfo=None):
                    raise UnknownKey("The security token included in the request is expired")
                found = self.role(session.role_arn, session.session_name)
                if found is None:
                    break
                return _with_session(found, session.policy)
        for user in list(self._iam.users.values()):
            if any(key.access_key_id == access_key and key.status == "Active" for key in user.access_keys):
                return self._user(user)
        raise UnknownKey("The security token included in the request is invalid.")

    def root(self) -> Principal:
        arn = f"arn:aws:iam::{self._account}:root"
        return Principal(arn, self._account, root=True, names=frozenset({arn, self._account}))

    def role(self, arn: str, session: str = "SageMaker") -> Principal | None:
        """The principal that somebody is who assumed the role; None when there is no such role."""
        role = next((r for r in list(self._iam.roles.values()) if r.arn == arn), None)
        if role is None:
            return None
        attached = [_default_version(p) for p in role.managed_policies.values()]
        inline = [_parsed(document) for document in role.policies.values()]
        me = f"arn:aws:sts::{self._account}:assumed-role/{role.name}/{session}"
        names = {me, role.arn, self._account, f"arn:aws:iam::{self._account}:root"}
        return Principal(
            me,
            self._account,
            policies=tuple(inline + attached),
            boundary=self._boundary(role.permissions_boundary_arn),
            names=frozenset(names),
            context={"aws:principalarn": (role.arn,), "aws:userid": (f"{role.id}:{session}",)},
        )

    def trust(self, arn: str) -> Document | None:
        """The role's trust policy; None when there is no such role."""
        role = next((r for r in list(self._iam.roles.values()) if r.arn == arn), None)
        return None if role is None else _parsed(role.assume_role_policy_document)

    def _user(self, user: Any) -> Principal:
        documents = [_parsed(document) for document in user.policies.values()]
        documents += [_default_version(p) for p in user.managed_policies.values()]
        for group in list(self._iam.groups.values()):
            if user in group.users:
                documents += [_parsed(document) for document in group.policies.values()]
                documents += [_default_version(p) for p in group.managed_policies.values()]
        return Principal(
            user.arn,
            self._account,
            policies=tuple(documents),
            boundary=self._boundary(getattr(user, "permissions_boundary_arn", None)),
            names=frozenset({user.arn, self._account, f"arn:aws:iam::{self._account}:root"}),
            context={
                "aws:principalarn": (user.arn,),
                "aws:userid": (user.id,),
                "aws:username": (user.name,),
            },
        )

    def _boundary(self, arn: str | None) -> Document | None:
        if not arn:
            return None
        found = self._iam.managed_policies.get(arn)
        return _default_version(found) if found is not None else {"Statement": []}


def _with_session(principal: Principal, document: str | None) -> Principal:
    if not document:
        return principal
    from dataclasses import replace

    return replace(principal, session=_parsed(document))


def _parsed(document: Any) -> Document:
    text = unquote(document) if isinstance(document, str) and document.lstrip().startswith("%7B") else document
    found: Document = json.loads(text) if isinstance(text, str) else text
    return found


def _default_version(managed: Any) -> Document:
    version = next(v for v in managed.versions if v.version_id == managed.default_version_id)
    return _parsed(version.document)


class Access:
    """The judge. Each method answers None, or why not (the message that AWS gives)."""

    def __init__(self, directory: Directory, account: str, *, enforced: bool) -> None:
        self._directory = directory
        self._account = account
        self.enforced = enforced

    # -- the judgement

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
        denied = self._refuse_s3(who, "s3:GetObject", bucket, key, {}, "us-east-1")
        if denied is not None:
            return denied
        return self._refuse_key_use(who, "kms:Decrypt", _object_key(self._account, bucket, key), "us-east-1")

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
        arn = f"arn:aws:sagemaker:{region}:{self._account}:endpoint/{endpoint}"
        return self.refuse(who, "sagemaker:InvokeEndpoint", arn, context, region)

    # -- requests that go to moto

    def gate(self, environ: dict[str, Any], region: str) -> Callable[[Callable[..., Any]], Iterable[bytes]] | None:
        """None when the request may pass, else what answers it."""
        if not self.enforced:
            return None
        service = signed_service(environ)
        if service is None:
            return _refusal("s3", 403, "AccessDenied", "Anonymous access is not allowed: sign the request.")
        try:
            who = self._directory.by_key(access_key(environ))
        except UnknownKey as problem:
            if service == "s3":
                words = "The AWS Access Key Id you provided does not exist in our records."
                return _refusal(service, 403, "InvalidAccessKeyId", words)
            return _refusal(
                service, 403, _json_or(environ, "UnrecognizedClientException", "InvalidClientTokenId"), str(problem)
            )
        denied = self._s3(who, environ, region) if service == "s3" else self._other(who, environ, service, region)
        if denied is None:
            return None
        code = "AccessDenied" if service in ("s3", "iam", "sts", "sns") else "AccessDeniedException"
        if service == "ec2":
            code = "UnauthorizedOperation"
        return _refusal(service, 403, code, denied)

    def _s3(self, who: Principal, environ: dict[str, Any], region: str) -> str | None:
        body = b""
        if environ.get("REQUEST_METHOD") == "POST" and not s3_request.location(environ)[1]:
            body = _peek(environ)
        for ask in s3_request.asks(environ, body):
            name, _, path = ask.resource.removeprefix("arn:aws:s3:::").partition("/")
            denied = self._refuse_s3(who, ask.action, name, path, ask.context, region)
            if denied is None and ask.action == "s3:GetObject" and not who.root and path:
                denied = self._refuse_missing(who, name, path, region)
            if denied is None and ask.action == "s3:PutObject":
                kms_key = environ.get("HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION_AWS_KMS_KEY_ID") or _bucket_key(
                    self._account, name
                )
                denied = self._refuse_key_use(who, "kms:GenerateDataKey", kms_key, region)
            if denied is None and ask.action == "s3:GetObject":
                denied = self._refuse_key_use(who, "kms:Decrypt", _object_key(self._account, name, path), region)
            if denied is not None:
                return denied
        return None

    def _refuse_s3(
        self, who: Principal, action: str, bucket: str, key: str, context: Mapping[str, Sequence[str]], region: str
    ) -> str | None:
        found = _bucket(self._account, bucket)
        document = _parsed(found.policy.decode()) if found is not None and found.policy else None
        if document is not None and who.root and action.endswith("BucketPolicy"):
            document = None  # the root can always get back in
        resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
        return self.refuse(who, action, resource, context, region, document)

    def _refuse_missing(self, who: Principal, bucket: str, key: str, region: str) -> str | None:
        """Who may not list a bucket does not learn that an object is missing: S3 says 403 then, not 404."""
        if _object(self._account, bucket, key) is not None or _bucket(self._account, bucket) is None:
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
        body = _peek(environ)
        name = _action_name(environ, body)
        if name is None:
            return f"User: {who.arn} is not authorized: the local AWS cannot tell which action of {service} this is"
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
                return f"arn:aws:sagemaker:{region}:{self._account}:{kind}/{asked[parameter]}"
        return None


# -- reading requests


def _credential(environ: Mapping[str, Any]) -> list[str]:
    """Access key, date, region, service of the signature: in the header, or in the query of a presigned URL."""
    header = str(environ.get("HTTP_AUTHORIZATION", ""))
    scope = header.partition("Credential=")[2].partition(",")[0]
    if scope:
        return scope.split("/")
    query = dict(parse_qsl(str(environ.get("QUERY_STRING", ""))))
    if "X-Amz-Credential" in query:
        return query["X-Amz-Credential"].split("/")
    if "AWSAccessKeyId" in query and "Signature" in query:  # the older kind, which boto3 still makes for S3
        return [query["AWSAccessKeyId"], "", "us-east-1", "s3", "aws2_request"]
    return []


def access_key(environ: Mapping[str, Any]) -> str:
    """The access key that signed the request; empty when it is not signed."""
    scope = _credential(environ)
    return scope[0] if scope else ""


def signed_service(environ: Mapping[str, Any]) -> str | None:
    """The service in the signature's scope; None when the request is not signed."""
    scope = _credential(environ)
    return scope[3].lower() if len(scope) >= 5 else None


_MAX_PEEK = 4 << 20


def _peek(environ: dict[str, Any]) -> bytes:
    """The request's body, left in place for whoever handles the request."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(min(length, _MAX_PEEK)) if length else b""
    rest = environ["wsgi.input"]
    environ["wsgi.input"] = io.BytesIO(body) if length <= _MAX_PEEK else _Joined(body, rest)
    return bytes(body)


class _Joined(io.RawIOBase):
    """What was read already, then the rest of the stream."""

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first = io.BytesIO(first)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._first.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _action_name(environ: Mapping[str, Any], body: bytes) -> str | None:
    target = str(environ.get("HTTP_X_AMZ_TARGET", ""))
    if target:
        return target.rpartition(".")[2]
    match = re.search(r"/operation/(\w+)$", str(environ.get("PATH_INFO", "")))
    if match:
        return match[1]
    form = {**dict(parse_qsl(str(environ.get("QUERY_STRING", "")))), **dict(parse_qsl(body.decode("utf-8", "replace")))}
    return form.get("Action")


# -- looking things up in moto's S3


def _bucket(account: str, name: str) -> Any:
    from moto.s3.models import s3_backends

    return s3_backends[account]["aws"].buckets.get(name)


def _object(account: str, bucket: str, key: str) -> Any:
    from moto.s3.exceptions import S3ClientError
    from moto.s3.models import s3_backends

    try:
        return s3_backends[account]["aws"].get_object(bucket, key)
    except S3ClientError:
        return None


def _object_key(account: str, bucket: str, key: str) -> str | None:
    found = _object(account, bucket, key)
    if found is None or found.encryption != "aws:kms":
        return None
    return found.kms_key_id or None


def _bucket_key(account: str, bucket: str) -> str | None:
    found = _bucket(account, bucket)
    if found is None or not found.encryption:
        return None
    rule = found.encryption.get("Rule", {})
    default = (rule[0] if isinstance(rule, list) else rule).get("ApplyServerSideEncryptionByDefault", {})
    return default.get("KMSMasterKeyID") if default.get("SSEAlgorithm") == "aws:kms" else None


# -- saying no


def _json_or(environ: Mapping[str, Any], json_code: str, query_code: str) -> str:
    return (
        json_code if environ.get("HTTP_X_AMZ_TARGET") or "json" in str(environ.get("CONTENT_TYPE", "")) else query_code
    )


def _refusal(service: str, status: int, code: str, message: str) -> Callable[[Callable[..., Any]], Iterable[bytes]]:
    """A finished answer in the shape that clients of the service read."""
    words = escape(message)
    if service == "s3":
        kind, text = "application/xml", f"<Error><Code>{code}</Code><Message>{words}</Message></Error>"
    elif service == "ec2":
        kind = "application/xml"
        text = f"<Response><Errors><Error><Code>{code}</Code><Message>{words}</Message></Error></Errors></Response>"
    elif service in ("iam", "sts", "sns", "autoscaling"):
        kind = "application/xml"
        error = f"<Type>Sender</Type><Code>{code}</Code><Message>{words}</Message>"
        text = f"<ErrorResponse><Error>{error}</Error></ErrorResponse>"
    else:
        kind, text = "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message})
    body = text.encode()

    def answer(start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("x-amzn-ErrorType", code)]
        start_response(f"{status} Forbidden", headers)
        return [body]

    return answer
