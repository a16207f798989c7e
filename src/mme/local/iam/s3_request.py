"""The IAM actions, resources and condition keys of an S3 request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree


@dataclass(frozen=True)
class Ask:
    """One action on one resource, with the condition keys that S3 adds."""

    action: str
    resource: str
    context: Mapping[str, tuple[str, ...]]


# Sub-resources of a bucket, by the word in the query: what follows Get and Put in the action's name.
_BUCKET = {
    "accelerate": "AccelerateConfiguration",
    "acl": "BucketAcl",
    "analytics": "AnalyticsConfiguration",
    "cors": "BucketCORS",
    "encryption": "EncryptionConfiguration",
    "intelligent-tiering": "IntelligentTieringConfiguration",
    "inventory": "InventoryConfiguration",
    "lifecycle": "LifecycleConfiguration",
    "location": "BucketLocation",
    "logging": "BucketLogging",
    "metrics": "MetricsConfiguration",
    "notification": "BucketNotification",
    "object-lock": "BucketObjectLockConfiguration",
    "ownershipControls": "BucketOwnershipControls",
    "policy": "BucketPolicy",
    "policyStatus": "BucketPolicyStatus",
    "publicAccessBlock": "BucketPublicAccessBlock",
    "replication": "ReplicationConfiguration",
    "requestPayment": "BucketRequestPayment",
    "tagging": "BucketTagging",
    "versioning": "BucketVersioning",
    "website": "BucketWebsite",
}
_OBJECT = {"acl": "Acl", "tagging": "Tagging", "retention": "Retention", "legal-hold": "LegalHold"}
_HEADERS = {
    "HTTP_X_AMZ_ACL": "s3:x-amz-acl",
    "HTTP_X_AMZ_CONTENT_SHA256": "s3:x-amz-content-sha256",
    "HTTP_X_AMZ_COPY_SOURCE": "s3:x-amz-copy-source",
    "HTTP_X_AMZ_METADATA_DIRECTIVE": "s3:x-amz-metadata-directive",
    "HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION": "s3:x-amz-server-side-encryption",
    "HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION_AWS_KMS_KEY_ID": "s3:x-amz-server-side-encryption-aws-kms-key-id",
    "HTTP_X_AMZ_STORAGE_CLASS": "s3:x-amz-storage-class",
    "HTTP_IF_NONE_MATCH": "s3:if-none-match",
    "HTTP_IF_MATCH": "s3:if-match",
}


def location(environ: Mapping[str, Any]) -> tuple[str, str]:
    """The bucket and the key of a path-style request; empty where there is none."""
    raw = str(environ.get("RAW_URI") or environ.get("REQUEST_URI") or environ.get("PATH_INFO", "")).partition("?")[0]
    bucket, _, key = raw.removeprefix("/").partition("/")
    return unquote(bucket), unquote(key)


def asks(environ: Mapping[str, Any], body: bytes) -> list[Ask]:
    """Every action that the request needs; all of them have to be allowed. ``body`` matters for DeleteObjects only."""
    method = str(environ.get("REQUEST_METHOD", "GET"))
    query = dict(parse_qsl(str(environ.get("QUERY_STRING", "")), keep_blank_values=True))
    bucket, key = location(environ)
    context = _context(environ, query)
    if not bucket:
        return [Ask("s3:ListAllMyBuckets", "arn:aws:s3:::*", context)]
    arn = f"arn:aws:s3:::{bucket}"
    if not key:
        if method == "POST" and "delete" in query:
            return [Ask(action, f"{arn}/{key}", context) for action, key in _deletions(body)]
        return [Ask(_bucket_action(method, query), arn, context)]
    resource = f"{arn}/{key}"
    action, creates = _object_action(method, query, environ)
    if creates is not None:
        context = {**context, "s3:objectcreationoperation": (str(creates).lower(),)}
    requests = [Ask(action, resource, context)]
    source = environ.get("HTTP_X_AMZ_COPY_SOURCE")
    if source:
        path, _, version = unquote(str(source)).removeprefix("/").partition("?versionId=")
        read = "s3:GetObjectVersion" if version else "s3:GetObject"
        requests.append(Ask(read, f"arn:aws:s3:::{path}", context))
    return requests


def is_plain(environ: Mapping[str, Any]) -> bool:
    """Whether the path names the same bucket and key as it was sent and as it is decoded.

    They differ where the slash behind the bucket is written as %2F.
    """
    decoded = str(environ.get("PATH_INFO", "")).encode("latin-1", "replace").decode("utf-8", "replace")
    bucket, _, key = decoded.removeprefix("/").partition("/")
    return (bucket, key) == location(environ)


def _deletions(body: bytes) -> list[tuple[str, str]]:
    """The action and the key of each object of a DeleteObjects; empty where the body is not one."""
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 (expat bounds how far entities grow, and fetches nothing)
    except ElementTree.ParseError:
        return []
    deletions = []
    for item in root.iterfind("{*}Object"):
        key, version = item.findtext("{*}Key"), item.find("{*}VersionId")
        if not key:
            return []
        deletions.append(("s3:DeleteObject" if version is None else "s3:DeleteObjectVersion", key))
    return deletions


def _context(environ: Mapping[str, Any], query: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    context: dict[str, tuple[str, ...]] = {}
    for name in ("prefix", "delimiter", "max-keys"):
        if name in query:
            context[f"s3:{name}"] = (query[name],)
    if "versionId" in query:
        context["s3:versionid"] = (query["versionId"],)
    for header, name in _HEADERS.items():
        if environ.get(header):
            context[name] = (str(environ[header]),)
    context["s3:signatureversion"] = ("AWS4-HMAC-SHA256",)
    context["s3:authtype"] = ("REST-HEADER" if environ.get("HTTP_AUTHORIZATION") else "REST-QUERY-STRING",)
    return context


def _bucket_action(method: str, query: Mapping[str, str]) -> str:
    for word, name in _BUCKET.items():
        if word in query:
            if word == "policy" and method == "DELETE":
                return "s3:DeleteBucketPolicy"
            if word == "website" and method == "DELETE":
                return "s3:DeleteBucketWebsite"
            return f"s3:{'Get' if method in ('GET', 'HEAD') else 'Put'}{name}"
    if method == "PUT":
        return "s3:CreateBucket"
    if method == "DELETE":
        return "s3:DeleteBucket"
    if "versions" in query:
        return "s3:ListBucketVersions"
    if "uploads" in query:
        return "s3:ListBucketMultipartUploads"
    return "s3:ListBucket"


def _object_action(method: str, query: Mapping[str, str], environ: Mapping[str, Any]) -> tuple[str, bool | None]:
    """The action, and whether it makes an object (None: it is no write of content)."""
    version = "Version" if "versionId" in query else ""
    for word, name in _OBJECT.items():
        if word in query:
            verb = {"GET": "Get", "HEAD": "Get", "DELETE": "Delete"}.get(method, "Put")
            return f"s3:{verb}Object{version}{name}" if word in ("acl", "tagging") else f"s3:{verb}Object{name}", None
    if method in ("GET", "HEAD"):
        if "uploadId" in query:
            return "s3:ListMultipartUploadParts", None
        return f"s3:GetObject{version}{'Attributes' if 'attributes' in query else ''}", None
    if method == "DELETE":
        return ("s3:AbortMultipartUpload" if "uploadId" in query else f"s3:DeleteObject{version}"), None
    if method == "POST" and "restore" in query:
        return "s3:RestoreObject", None
    if method == "POST":
        return "s3:PutObject", "uploadId" in query
    return "s3:PutObject", "partNumber" not in query
