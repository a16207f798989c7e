"""Corrections of moto's S3."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import uuid
from pathlib import Path
from typing import Any

from mme.local.iam import policy
from mme.local.s3 import blobs, checksums


def bucket_policies() -> None:
    """A bucket policy is judged without its conditions, so a Deny that has one denies everything. access.py judges
    bucket policies instead; moto's own judgement is switched off. And where a bucket is to take access logs, its policy
    is looked through for one way to write the permission; any other, and a statement for everybody, is a fault."""
    from moto.iam.access_control import PermissionResult
    from moto.s3.models import FakeBucket

    def get_permission(self: Any, action: str, resource: str) -> Any:
        return PermissionResult.NEUTRAL

    set_logging = FakeBucket.set_logging

    def set_logging_by_policy(self: Any, logging_config: Any, bucket_backend: Any) -> None:
        def may_deliver(target_bucket: Any, target_prefix: str | None) -> bool:
            delivery = policy.Request(
                "s3:PutObject",
                f"{target_bucket.arn}/{target_prefix or ''}log",
                {
                    "aws:securetransport": ["true"],
                    "aws:sourceaccount": [self.account_id],
                    "aws:sourcearn": [self.arn],
                },
                frozenset({"logging.s3.amazonaws.com"}),
            )
            documents = [json.loads(target_bucket.policy)] if target_bucket.policy else []
            return policy.judge(documents, delivery) == "allow"

        self._log_permissions_enabled_policy = may_deliver
        try:
            set_logging(self, logging_config, bucket_backend)
        finally:
            del self._log_permissions_enabled_policy

    FakeBucket.get_permission = get_permission
    FakeBucket.set_logging = set_logging_by_policy


def object_keys() -> None:
    """An object whose key has a line break is not found: the routes' dot is any character but that."""
    from moto.moto_server.utilities import RegexConverter

    def with_regex(self: Any, url_map: Any, *items: Any) -> None:
        prepare(self, url_map, *items)
        self.regex = f"(?s:{self.regex})"

    prepare = RegexConverter.__init__
    RegexConverter.__init__ = with_regex


def lifecycle_rules() -> None:
    """GetBucketLifecycleConfiguration leaves out NewerNoncurrentVersions, object sizes and the transition's default
    minimum; the provider waits three minutes for them and fails. Here it answers the document that was put."""
    from moto.s3.models import FakeBucket
    from moto.s3.responses import S3Response

    put = S3Response._bucket_response_put
    get = S3Response.get_bucket_lifecycle
    header = "x-amz-transition-default-minimum-object-size"

    def put_in_bucket(self: Any, request: Any, bucket_name: str, querystring: dict[str, Any]) -> Any:
        answer = put(self, request, bucket_name, querystring)
        if "lifecycle" not in querystring or answer != "":
            return answer
        bucket = self.backend.get_bucket(bucket_name)
        size = request.headers.get(header, "all_storage_classes_128K")
        bucket.mme_lifecycle = (_with_ids(bytes(self.body).decode()), size)
        return 200, {header: size}, ""

    def get_bucket_lifecycle(self: Any) -> Any:
        status, headers, body = get(self)
        stored = getattr(self.backend.get_bucket(self.bucket_name), "mme_lifecycle", None)
        if status == 200 and stored is not None:
            body, headers[header] = stored
        return status, headers, body

    def delete_lifecycle(self: Any) -> None:
        self.rules = []
        self.mme_lifecycle = None

    S3Response._bucket_response_put = put_in_bucket
    S3Response.get_bucket_lifecycle = get_bucket_lifecycle
    FakeBucket.delete_lifecycle = delete_lifecycle


def _with_ids(document: str) -> str:
    """The lifecycle document with an ID in every rule that has none, as S3 gives it."""

    def rule(match: re.Match[str]) -> str:
        tag = match[0]
        return tag if "<ID>" in tag else tag.replace("<Rule>", f"<Rule><ID>{uuid.uuid4()}</ID>", 1)

    return re.sub(r"<Rule>.*?</Rule>", rule, document, flags=re.DOTALL)


def delete_markers() -> None:
    """Deleting the last version of an object, a delete marker, fails: moto asks the marker to dispose of its file."""
    from moto.s3.models import FakeDeleteMarker

    def dispose(self: Any, garbage: bool = False) -> None:
        """A delete marker has no file."""

    FakeDeleteMarker.dispose = dispose


_writes = threading.RLock()


def object_bytes(folder: Path) -> None:
    """moto holds whole requests and whole objects in memory, several times over; takes a body whose checksum is
    wrong, or that was cut short; reads the whole object for every range; joins parts in memory; and lets two
    conditional writes of the same key both win. Here bytes are in files, were checked by objects.receive, and
    objects are written one at a time."""
    from flask import request as flask_request
    from moto.s3.exceptions import EntityTooSmall, InvalidPart, MalformedXML, PreconditionFailed, S3ClientError
    from moto.s3.models import S3_UPLOAD_PART_MIN_SIZE, FakeKey, FakeMultipart
    from moto.s3.responses import S3Response

    memory_value, memory_etag, memory_dispose = FakeKey.value, FakeKey.etag, FakeKey.dispose
    put_object = S3Response.put_object
    copy_object = S3Response.copy_object
    upload_part = S3Response.upload_part
    get_checksum = S3Response._get_checksum
    key_post = S3Response._key_response_post

    def get_value(self: Any) -> Any:
        blob = getattr(self, "mme_blob", None)
        return memory_value.fget(self) if blob is None else blob.view()

    def set_value(self: Any, new_value: Any) -> None:
        old = getattr(self, "mme_blob", None)
        if isinstance(new_value, blobs.Blob):
            memory_value.fset(self, b"")
            self.mme_blob = blobs.own(new_value, folder)
            self.contentsize = new_value.size
            self._etag = self._etag or new_value.md5
        else:
            memory_value.fset(self, new_value)
            self.mme_blob = None
        if old is not None:
            old.discard()

    def etag(self: Any) -> str:
        blob = getattr(self, "mme_blob", None)
        if self._etag is None and blob is not None:
            md5 = hashlib.md5(usedforsecurity=False)
            for data in blob.view():
                md5.update(data)
            self._etag = md5.hexdigest()
        of_memory: str = memory_etag.fget(self)
        return of_memory

    def lend(self: Any, _: dict[int, Any]) -> Any:
        """Listing versions copies every object, bytes and parts included; a copy that owns nothing will do."""
        twin = FakeKey.__new__(FakeKey)
        twin.__dict__.update(self.__dict__)
        twin.mme_lent = True
        return twin

    def dispose(self: Any, garbage: bool = False) -> None:
        if getattr(self, "mme_lent", False):
            return
        blob = getattr(self, "mme_blob", None)
        if blob is not None:
            blob.discard()
        memory_dispose(self, False)

    def received() -> Any:
        return flask_request.environ.get("mme.received")

    def put(self: Any) -> Any:
        body = received()
        if body is not None:
            self.body = body.value
        with _writes:
            return put_object(self)

    def copy(self: Any) -> Any:
        """moto copies over what is there, whatever If-None-Match says. S3 has taken conditions on copies since 2025."""
        with _writes:
            wanted = flask_request.headers.get("If-None-Match")
            if wanted and self.backend.get_object(self.bucket_name, self.parse_key_name()) is not None:
                raise PreconditionFailed("If-None-Match")
            return copy_object(self)

    def put_part(self: Any) -> Any:
        body = received()
        if body is not None:
            self.body = body.value
        return upload_part(self)

    def checksum(self: Any, response_headers: dict[str, Any]) -> tuple[str, str | None]:
        body = received()
        if body is None:
            of_memory: tuple[str, str | None] = get_checksum(self, response_headers)
            return of_memory
        for name, value in body.checksums.items():
            response_headers[f"x-amz-checksum-{name}"] = value
            return name.upper(), value
        return "", None

    def post(self: Any, *args: Any) -> Any:
        with _writes:
            return key_post(self, *args)

    def checksum_of_parts(parts: list[blobs.Blob | bytes], algorithm: str, full_object: bool) -> bytes | None:
        if full_object:
            return checksums.digest_of_all(parts, algorithm)
        total = checksums.hasher(algorithm)
        if total is not None:
            for part in parts:
                total.update(checksums.digest(part, algorithm) or b"")
        return None if total is None else total.digest()

    def complete(self: Any, body: Any) -> Any:
        algorithm = self.metadata.get("x-amz-checksum-algorithm") or ""
        full_object = (self.metadata.get("x-amz-checksum-type") or "") == "FULL_OBJECT" or algorithm == "CRC64NVME"
        parts: list[blobs.Blob | bytes] = []
        listed = []
        md5s = b""
        last = None
        for number, tag in body:
            part = self.parts.get(number)
            if part is None or part.etag.strip('"') != tag.strip('"'):
                raise InvalidPart()
            if last is not None and last.contentsize < S3_UPLOAD_PART_MIN_SIZE:
                raise EntityTooSmall()
            last = part
            listed.append(part)
            md5s += bytes.fromhex(part.etag.strip('"'))
            value = getattr(part, "mme_blob", None)
            parts.append(part.value if value is None else value)
        if not parts:
            raise MalformedXML()
        said = flask_request.headers.get(f"x-amz-checksum-{algorithm.lower()}") if algorithm else None
        details = None
        total = checksum_of_parts(parts, algorithm, full_object) if algorithm else None
        if total is not None:
            value = base64.b64encode(total).decode()
            if said and said.partition("-")[0] != value:
                raise S3ClientError(
                    "BadDigest", f"The {algorithm} you specified did not match the calculated checksum."
                )
            details = ("FULL_OBJECT" if full_object else "COMPOSITE", value, len(parts))
        elif said:
            details = ("FULL_OBJECT" if full_object else "COMPOSITE", said.partition("-")[0], len(parts))
        joined = blobs.Joined(parts, folder)
        for part in listed:
            part.mme_blob = None  # moto is about to dispose of the parts, and their files belong to the whole now
        return joined, f"{hashlib.md5(md5s, usedforsecurity=False).hexdigest()}-{len(parts)}", details

    FakeKey.value = property(get_value, set_value)
    FakeKey.etag = property(etag)
    FakeKey.dispose = dispose
    FakeKey.__deepcopy__ = lend
    FakeMultipart.complete = complete
    S3Response.put_object = put
    S3Response.copy_object = copy
    S3Response.upload_part = put_part
    S3Response._get_checksum = checksum
    S3Response._key_response_post = post


def composite_checksums() -> None:
    """HeadObject gives the checksum of an object in parts without the number of its parts, which is part of it."""
    from moto.s3.responses import S3Response

    head_object = S3Response.head_object

    def head(self: Any, bucket_name: str, query: dict[str, Any], key_name: str, headers: dict[str, Any]) -> Any:
        status, answered, body = head_object(self, bucket_name, query, key_name, headers)
        if status == 200:
            key = self.backend.get_object(bucket_name, key_name, version_id=query.get("versionId", [None])[0])
            for name, value in answered.items():
                if (
                    name.startswith("x-amz-checksum-")
                    and value == key.checksum_value
                    and key.checksum_type == "COMPOSITE"
                ):
                    answered[name] = f"{value}-{key.checksum_parts}"
        return status, answered, body

    S3Response.head_object = head


def listings_and_ranges() -> None:
    """A listing has as many keys as are asked for, below none or above a thousand, too; a continuation token that no
    listing gave, and a Range header that is none and that S3 passes over, end in a fault."""
    from moto.s3.exceptions import InvalidArgumentError, InvalidContinuationToken
    from moto.s3.responses import S3Response

    def listed(method: Any) -> Any:
        def checked(self: Any) -> Any:
            asked = self.querystring.get("max-keys", ["1000"])[0]
            if not re.fullmatch(r"[0-9]{1,10}", asked) or int(asked) > MAX_INTEGER:
                raise InvalidArgumentError(
                    f"Argument maxKeys must be an integer between 0 and {MAX_INTEGER}", "max-keys", asked
                )
            token = self.querystring.get("continuation-token", [None])[0]
            if token is not None and token not in self.backend._pagination_tokens:
                raise InvalidContinuationToken
            self.querystring["max-keys"] = [str(min(int(asked), 1000))]
            return method(self)

        return checked

    ranged = S3Response._handle_range_header

    def handle_range(self: Any, request: Any, response_headers: dict[str, Any], response_content: Any) -> Any:
        if not request.headers.get("range").startswith("bytes="):
            return 200, response_headers, response_content
        return ranged(self, request, response_headers, response_content)

    for name in ("list_objects", "list_objects_v2", "list_object_versions"):
        setattr(S3Response, name, listed(getattr(S3Response, name)))
    S3Response._handle_range_header = handle_range


MAX_INTEGER = 2**31 - 1
