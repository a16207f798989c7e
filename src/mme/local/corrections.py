"""Where moto is wrong for this job, it is put right here, and nowhere else.

Written against moto 5.2.5; each correction says what moto does there, and has a test in
tests/local/test_corrections.py. ``apply`` replaces methods of moto's classes in this process, so it is called once, in
the server process, before the first request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mme.local import objects
from mme.local.endpoints import EndpointRefused, Endpoints

MOTO_VERSION = "5.2.5"
"""The version that the corrections were written against."""


def apply(endpoints: Endpoints, role_problem: Callable[[str], str | None], folder: Path) -> None:
    """Puts every correction in place.

    ``role_problem`` answers why SageMaker may not use a role, or None; ``folder`` is where objects' bytes go.
    """
    models(role_problem)
    endpoint_configurations()
    endpoint_lifecycle(endpoints)
    sagemaker_tags()
    autoscaling_tags()
    bucket_policies()
    lifecycle_rules()
    composite_alarms()
    delete_markers()
    object_bytes(folder)
    composite_checksums()


def _refuse(message: str) -> Exception:
    from moto.sagemaker.exceptions import ValidationError

    return ValidationError(message=message)  # type: ignore[no-any-return]


def models(role_problem: Callable[[str], str | None]) -> None:
    """CreateModel takes a role that does not exist, overwrites a model of the same name, and forgets
    EnableNetworkIsolation and InferenceExecutionConfig; DescribeModel answers an empty VpcConfig, which makes every
    plan replace the model."""
    from moto.sagemaker.models import Model, SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    create_in_backend = SageMakerModelBackend.create_model
    create = SageMakerResponse.create_model
    describe = Model.response_object.fget

    def create_model(self: Any, *args: Any, **named: Any) -> Any:
        name = named["model_name"]
        if name in self._models:
            raise _refuse(f'Cannot create already existing model "{self._models[name].arn}".')
        return create_in_backend(self, *args, **named)

    def create_model_response(self: Any) -> Any:
        problem = role_problem(self._get_param("ExecutionRoleArn") or "")
        if problem is not None:
            raise _refuse(problem)
        answer = create(self)
        model = self.sagemaker_backend._models[self._get_param("ModelName")]
        model.enable_network_isolation = bool(self._get_param("EnableNetworkIsolation"))
        model.inference_execution_config = self._get_param("InferenceExecutionConfig")
        return answer

    def response_object(self: Any) -> dict[str, Any]:
        found: dict[str, Any] = describe(self)
        for name in ("VpcConfig", "PrimaryContainer", "Containers", "Tags"):
            if not found.get(name):
                found.pop(name, None)
        return found

    SageMakerModelBackend.create_model = create_model
    SageMakerResponse.create_model = create_model_response
    Model.response_object = property(response_object)


_CONFIG_FIELDS = {
    "ShadowProductionVariants": "shadow_production_variants",
    "ExecutionRoleArn": "execution_role_arn",
    "VpcConfig": "vpc_config",
    "EnableNetworkIsolation": "enable_network_isolation",
    "ExplainerConfig": "explainer_config",
}


def endpoint_configurations() -> None:
    """CreateEndpointConfig knows only the instance types of 2020, overwrites a configuration of the same name, and
    forgets shadow variants, role, VPC and isolation; DescribeEndpointConfig answers an empty DataCaptureConfig."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.models import FakeEndpointConfig, SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    create_in_backend = SageMakerModelBackend.create_endpoint_config
    create = SageMakerResponse.create_endpoint_config
    find = SageMakerModelBackend.describe_endpoint_config

    def create_endpoint_config(self: Any, *args: Any, **named: Any) -> Any:
        existing = self.endpoint_configs.get(named["endpoint_config_name"])
        if existing is not None:
            raise _refuse(f'Cannot create already existing endpoint configuration "{existing.endpoint_config_arn}".')
        return create_in_backend(self, *args, **named)

    def create_endpoint_config_response(self: Any) -> Any:
        self.sagemaker_backend.validate_production_variants(self._get_param("ShadowProductionVariants") or [])
        answer = create(self)
        config = self.sagemaker_backend.endpoint_configs[self._get_param("EndpointConfigName")]
        for parameter, attribute in _CONFIG_FIELDS.items():
            setattr(config, attribute, self._get_param(parameter))
        return answer

    def validate_instance_type(self: Any, instance_type: str) -> None:
        known = _instance_types()
        if instance_type not in known:
            raise _refuse(
                f"1 validation error detected: Value '{instance_type}' at 'productionVariants.1.member.instanceType' "
                f"failed to satisfy constraint: Member must satisfy enum value set: [{', '.join(known)}]"
            )

    def describe_endpoint_config(self: Any) -> Any:
        found = dict(find(self.sagemaker_backend, self._get_param("EndpointConfigName")))
        for name in ("DataCaptureConfig", "AsyncInferenceConfig"):
            if not found.get(name):
                found.pop(name, None)
        return ActionResult(found)

    SageMakerModelBackend.create_endpoint_config = create_endpoint_config
    SageMakerResponse.create_endpoint_config = create_endpoint_config_response
    FakeEndpointConfig.validate_instance_type = validate_instance_type
    SageMakerResponse.describe_endpoint_config = describe_endpoint_config


def _instance_types() -> list[str]:
    from moto.core.utils import get_service_model

    shape = get_service_model("sagemaker").shape_for("ProductionVariantInstanceType")
    return sorted(shape.enum)


def endpoint_lifecycle(endpoints: Endpoints) -> None:
    """CreateEndpoint is InService at once with nothing behind it, and overwrites an endpoint of the same name;
    UpdateEndpoint does not exist; UpdateEndpointWeightsAndCapacities sets what was not named to null; DeleteEndpoint
    forgets at once. Here the status follows the containers."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.models import FakeEndpoint, SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    create_in_backend = SageMakerModelBackend.create_endpoint
    create = SageMakerResponse.create_endpoint
    describe = FakeEndpoint.response_object.fget

    def find(backend: Any, name: str) -> Any:
        found = backend.endpoints.get(name)
        if found is None:
            arn = FakeEndpoint.arn_formatter(name, backend.account_id, backend.region_name)
            raise _refuse(f'Could not find endpoint "{arn}".')
        return found

    def create_endpoint(self: Any, *args: Any, **named: Any) -> Any:
        existing = self.endpoints.get(named["endpoint_name"])
        if existing is not None:
            raise _refuse(f'Cannot create already existing endpoint "{existing.arn}".')
        return create_in_backend(self, *args, **named)

    def create_endpoint_response(self: Any) -> Any:
        answer = create(self)
        backend = self.sagemaker_backend
        endpoint = find(backend, self._get_param("EndpointName"))
        endpoint.last_deployment_config = self._get_param("DeploymentConfig")
        endpoints.create(backend, endpoint)
        return answer

    def update_endpoint(self: Any) -> Any:
        endpoint = find(self.sagemaker_backend, self._get_param("EndpointName"))
        deployment = self._get_param("DeploymentConfig")
        if not deployment and self._get_param("RetainDeploymentConfig"):
            deployment = getattr(endpoint, "last_deployment_config", None)
        excluded = self._get_param("ExcludeRetainedVariantProperties") or []
        try:
            endpoints.update(
                self.sagemaker_backend,
                endpoint,
                self._get_param("EndpointConfigName"),
                retain=bool(self._get_param("RetainAllVariantProperties")),
                not_retained=[item["VariantPropertyType"] for item in excluded],
                deployment=deployment,
            )
        except EndpointRefused as problem:
            raise _refuse(str(problem)) from problem
        return ActionResult({"EndpointArn": endpoint.arn})

    def update_endpoint_weights_and_capacities(self: Any) -> Any:
        endpoint = find(self.sagemaker_backend, self._get_param("EndpointName"))
        try:
            endpoints.set_capacities(endpoint, self._get_param("DesiredWeightsAndCapacities"))
        except EndpointRefused as problem:
            raise _refuse(str(problem)) from problem
        return ActionResult({"EndpointArn": endpoint.arn})

    def describe_endpoint(self: Any, endpoint_name: str) -> dict[str, Any]:
        found: dict[str, Any] = find(self, endpoint_name).response_object
        return found

    def delete_endpoint(self: Any, endpoint_name: str) -> None:
        endpoints.delete(self, find(self, endpoint_name))

    def response_object(self: Any) -> dict[str, Any]:
        found: dict[str, Any] = describe(self)
        for name in ("DataCaptureConfig", "Tags"):
            if not found.get(name):
                found.pop(name, None)
        if found["EndpointStatus"] == "Creating":
            found.pop("ProductionVariants", None)
        capture = found.get("DataCaptureConfig")
        if capture:
            found["DataCaptureConfig"] = {
                "EnableCapture": capture.get("EnableCapture", False),
                "CaptureStatus": "Started" if capture.get("EnableCapture") else "Stopped",
                "CurrentSamplingPercentage": capture.get("InitialSamplingPercentage"),
                "DestinationS3Uri": capture.get("DestinationS3Uri"),
                "KmsKeyId": capture.get("KmsKeyId", ""),
            }
        return found

    SageMakerModelBackend.create_endpoint = create_endpoint
    SageMakerModelBackend.describe_endpoint = describe_endpoint
    SageMakerModelBackend.delete_endpoint = delete_endpoint
    SageMakerResponse.create_endpoint = create_endpoint_response
    SageMakerResponse.update_endpoint = update_endpoint
    SageMakerResponse.update_endpoint_weights_and_capacities = update_endpoint_weights_and_capacities
    FakeEndpoint.response_object = property(response_object)


def sagemaker_tags() -> None:
    """AddTags appends a second tag of the same key instead of changing the first."""
    from moto.sagemaker.models import SageMakerModelBackend

    def add_tags(self: Any, arn: str, tags: list[dict[str, str]]) -> list[dict[str, str]]:
        resource = self._get_resource_from_arn(arn)
        merged = {tag["Key"]: tag for tag in resource.tags}
        merged.update({tag["Key"]: tag for tag in tags})
        resource.tags = list(merged.values())
        return list(merged.values())

    SageMakerModelBackend.add_tags = add_tags


def autoscaling_tags() -> None:
    """Application Auto Scaling has no ListTagsForResource, TagResource or UntagResource, and RegisterScalableTarget
    drops its tags; the provider asks for them after every registration and retries the error for minutes."""
    from moto.applicationautoscaling.responses import ApplicationAutoScalingResponse

    register = ApplicationAutoScalingResponse.register_scalable_target

    def tags_of(self: Any) -> dict[str, str]:
        backend = self.applicationautoscaling_backend
        arn = self._get_param("ResourceARN")
        for targets in backend.targets.values():
            for target in targets.values():
                if target.arn == arn:
                    if not hasattr(target, "mme_tags"):
                        target.mme_tags = {}
                    found: dict[str, str] = target.mme_tags
                    return found
        from moto.applicationautoscaling.exceptions import AWSValidationException

        raise AWSValidationException(f"No scalable target found for resource ARN: {arn}")

    def register_scalable_target(self: Any) -> str:
        answer: str = register(self)
        tags = self._get_param("Tags")
        if tags:
            arn = json.loads(answer)["ScalableTargetARN"]
            for targets in self.applicationautoscaling_backend.targets.values():
                for target in targets.values():
                    if target.arn == arn:
                        target.mme_tags = dict(tags)
        return answer

    def list_tags_for_resource(self: Any) -> str:
        return json.dumps({"Tags": tags_of(self)})

    def tag_resource(self: Any) -> str:
        tags_of(self).update(self._get_param("Tags") or {})
        return json.dumps({})

    def untag_resource(self: Any) -> str:
        tags = tags_of(self)
        for key in self._get_param("TagKeys") or []:
            tags.pop(key, None)
        return json.dumps({})

    ApplicationAutoScalingResponse.register_scalable_target = register_scalable_target
    ApplicationAutoScalingResponse.list_tags_for_resource = list_tags_for_resource
    ApplicationAutoScalingResponse.tag_resource = tag_resource
    ApplicationAutoScalingResponse.untag_resource = untag_resource


def bucket_policies() -> None:
    """A bucket policy is judged without its conditions, so a Deny that has one denies everything. access.py judges
    bucket policies instead; moto's own judgement is switched off."""
    from moto.iam.access_control import PermissionResult
    from moto.s3.models import FakeBucket

    def get_permission(self: Any, action: str, resource: str) -> Any:
        return PermissionResult.NEUTRAL

    FakeBucket.get_permission = get_permission


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
        kept = getattr(self.backend.get_bucket(self.bucket_name), "mme_lifecycle", None)
        if status == 200 and kept is not None:
            body, headers[header] = kept
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
        found = match[0]
        return found if "<ID>" in found else found.replace("<Rule>", f"<Rule><ID>{uuid.uuid4()}</ID>", 1)

    return re.sub(r"<Rule>.*?</Rule>", rule, document, flags=re.DOTALL)


def composite_alarms() -> None:
    """CloudWatch describes composite alarms but cannot make one: PutCompositeAlarm is missing."""
    from moto.cloudwatch.responses import CloudWatchResponse
    from moto.core.responses import EmptyResult

    def put_composite_alarm(self: Any) -> Any:
        enabled = self._get_param("ActionsEnabled")
        self.cloudwatch_backend.put_metric_alarm(
            name=self._get_param("AlarmName"),
            namespace=None,
            metric_name=None,
            comparison_operator=None,
            evaluation_periods=None,
            period=None,
            threshold=None,
            statistic=None,
            description=self._get_param("AlarmDescription"),
            dimensions=[],
            alarm_actions=self._get_param("AlarmActions", []),
            ok_actions=self._get_param("OKActions", []),
            insufficient_data_actions=self._get_param("InsufficientDataActions", []),
            actions_enabled=True if enabled is None else enabled,
            rule=self._get_param("AlarmRule"),
            tags=self._get_param("Tags", []),
        )
        return EmptyResult()

    CloudWatchResponse.put_composite_alarm = put_composite_alarm


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
    from moto.s3.exceptions import EntityTooSmall, InvalidPart, MalformedXML, S3ClientError
    from moto.s3.models import S3_UPLOAD_PART_MIN_SIZE, FakeKey, FakeMultipart
    from moto.s3.responses import S3Response

    memory_value, memory_etag, memory_dispose = FakeKey.value, FakeKey.etag, FakeKey.dispose
    put_object = S3Response.put_object
    upload_part = S3Response.upload_part
    get_checksum = S3Response._get_checksum
    key_post = S3Response._key_response_post

    def get_value(self: Any) -> Any:
        blob = getattr(self, "mme_blob", None)
        return memory_value.fget(self) if blob is None else blob.view()

    def set_value(self: Any, new_value: Any) -> None:
        old = getattr(self, "mme_blob", None)
        if isinstance(new_value, objects.Blob):
            memory_value.fset(self, b"")
            self.mme_blob = objects.own(new_value, folder)
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
        found: str = memory_etag.fget(self)
        return found

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

    def put_part(self: Any) -> Any:
        body = received()
        if body is not None:
            self.body = body.value
        return upload_part(self)

    def checksum(self: Any, response_headers: dict[str, Any]) -> tuple[str, str | None]:
        body = received()
        if body is None:
            found: tuple[str, str | None] = get_checksum(self, response_headers)
            return found
        for name, value in body.checksums.items():
            response_headers[f"x-amz-checksum-{name}"] = value
            return name.upper(), value
        return "", None

    def post(self: Any, *args: Any) -> Any:
        with _writes:
            return key_post(self, *args)

    def checksum_of_parts(parts: list[objects.Blob | bytes], algorithm: str, whole: bool) -> bytes | None:
        if whole:
            return objects.digest_of_all(parts, algorithm)
        total = objects.hasher(algorithm)
        if total is not None:
            for part in parts:
                total.update(objects.digest(part, algorithm) or b"")
        return None if total is None else total.digest()

    def complete(self: Any, body: Any) -> Any:
        algorithm = self.metadata.get("x-amz-checksum-algorithm") or ""
        whole = (self.metadata.get("x-amz-checksum-type") or "") == "FULL_OBJECT" or algorithm == "CRC64NVME"
        parts: list[objects.Blob | bytes] = []
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
        total = checksum_of_parts(parts, algorithm, whole) if algorithm else None
        if total is not None:
            value = base64.b64encode(total).decode()
            if said and said.partition("-")[0] != value:
                raise S3ClientError(
                    "BadDigest", f"The {algorithm} you specified did not match the calculated checksum."
                )
            details = ("FULL_OBJECT" if whole else "COMPOSITE", value, len(parts))
        elif said:
            details = ("FULL_OBJECT" if whole else "COMPOSITE", said.partition("-")[0], len(parts))
        joined = objects.Joined(parts, folder)
        for part in listed:
            part.mme_blob = None  # moto is about to dispose of the parts, and their files belong to the whole now
        return joined, f"{hashlib.md5(md5s, usedforsecurity=False).hexdigest()}-{len(parts)}", details

    FakeKey.value = property(get_value, set_value)
    FakeKey.etag = property(etag)
    FakeKey.dispose = dispose
    FakeKey.__deepcopy__ = lend
    FakeMultipart.complete = complete
    S3Response.put_object = put
    S3Response.upload_part = put_part
    S3Response._get_checksum = checksum
    S3Response._key_response_post = post


def composite_checksums() -> None:
    """HeadObject gives the checksum of an object in parts without the number of its parts, which is part of it."""
    from moto.s3.responses import S3Response

    head_object = S3Response.head_object

    def head(self: Any, bucket_name: str, query: dict[str, Any], key_name: str, headers: dict[str, Any]) -> Any:
        status, found, body = head_object(self, bucket_name, query, key_name, headers)
        if status == 200:
            key = self.backend.get_object(bucket_name, key_name, version_id=query.get("versionId", [None])[0])
            for name, value in found.items():
                if (
                    name.startswith("x-amz-checksum-")
                    and value == key.checksum_value
                    and key.checksum_type == "COMPOSITE"
                ):
                    found[name] = f"{value}-{key.checksum_parts}"
        return status, found, body

    S3Response.head_object = head
