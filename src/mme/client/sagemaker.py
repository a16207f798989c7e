"""SDK v2's ``MultiDataModel`` on SDK v3: the same arguments and methods, made of ``sagemaker-core``'s resources.

SDK v3 has no class for multi-model endpoints. A notebook that was written for v2 runs with one line changed:

    from mme.client.sagemaker import MultiDataModel      # was: from sagemaker.multidatamodel import MultiDataModel

Where it differs from v2, it is stricter: ``add_model`` never overwrites, ``deploy`` deletes what it made when it fails
before the endpoint exists, and arguments that it does not use are errors. Needs ``sagemaker-core`` (``pip install
'mme[sagemaker]'``, or ``sagemaker`` 3).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from mme import aws
from mme.aws import explained, is_missing, status_of
from mme.client.endpoint import predict
from mme.errors import ConflictError, EndpointError, ReleaseError, UsageError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

ATTEMPTS = 4
MOST_AT_ONCE = 5 * 1024**3  # bytes that S3 takes in one PutObject or CopyObject
CHUNK = 1 << 20

Tags = Sequence[Mapping[str, str]] | Mapping[str, str] | None


class MultiDataModel:
    """A multi-model endpoint on the archives below ``model_data_prefix``.

    ``model`` is an object with ``image_uri`` and ``role``, and with ``env``, ``vpc_config``, ``predictor_cls`` and
    ``enable_network_isolation`` where it has them (SDK v2's Model), or sagemaker-core's ``Model``; without it, these
    are arguments.
    ``role`` is an ARN or a name. ``sagemaker_session`` is a session of the SDK or of boto3.
    """

    def __init__(
        self,
        name: str,
        model_data_prefix: str,
        model: Any = None,
        image_uri: str | None = None,
        role: str | None = None,
        sagemaker_session: Any = None,
        *,
        env: Mapping[str, str] | None = None,
        vpc_config: Mapping[str, Sequence[str]] | None = None,
        enable_network_isolation: bool = False,
        predictor_cls: Callable[..., Any] | None = None,
    ) -> None:
        if not model_data_prefix.startswith("s3://"):
            raise UsageError(
                f"{model_data_prefix!r} is not a model prefix.", "It begins with s3://, as in s3://my-bucket/models/."
            )
        if model is not None and (image_uri or role or env or vpc_config or enable_network_isolation or predictor_cls):
            raise UsageError(
                "The image, the role and what else describes the container are in model.", "Give one of both."
            )
        self.name = name
        self.model_data_prefix = model_data_prefix
        self.model = model
        self.container_mode = "MultiModel"
        self.sagemaker_session = sagemaker_session
        self.endpoint_name: str | None = None
        self.image_uri = image_uri
        self.role = role
        self.env = dict(env or {})
        self.vpc_config = vpc_config
        self.predictor_cls = predictor_cls
        self._isolated = enable_network_isolation
        if model is not None:
            self._take(model)
        self.boto_session = _boto_session(sagemaker_session)
        self.s3_client: S3Client = aws.s3_client(_region(self.boto_session), self.boto_session)

    def _take(self, model: Any) -> None:
        container = getattr(model, "primary_container", None)  # of sagemaker-core's Model
        self.image_uri = getattr(model, "image_uri", None) or getattr(container, "image", None)
        self.role = getattr(model, "role", None) or getattr(model, "execution_role_arn", None)
        environment = getattr(model, "env", None) or getattr(container, "environment", None)
        self.env = dict(environment) if isinstance(environment, Mapping) else {}
        vpc_config = getattr(model, "vpc_config", None)
        self.vpc_config = vpc_config if isinstance(vpc_config, Mapping) else None
        self.predictor_cls = getattr(model, "predictor_cls", None)
        isolated = getattr(model, "enable_network_isolation", False)
        self._isolated = bool(isolated() if callable(isolated) else isolated is True)

    def enable_network_isolation(self) -> bool:
        """Whether the container is cut off from the network."""
        return self._isolated

    def prepare_container_def(self, instance_type: str | None = None) -> dict[str, Any]:
        """The container as CreateModel takes it."""
        if not self.image_uri:
            raise UsageError("No image is known.", 'MultiDataModel(..., image_uri="…"), or a model that has one.')
        return {
            "Image": self.image_uri,
            "Environment": dict(self.env),
            "ModelDataUrl": self.model_data_prefix,
            "Mode": self.container_mode,
        }

    # ---- the endpoint ----

    def deploy(
        self,
        initial_instance_count: int,
        instance_type: str,
        serializer: Any = None,
        deserializer: Any = None,
        accelerator_type: None = None,
        endpoint_name: str | None = None,
        tags: Tags = None,
        kms_key: str | None = None,
        wait: bool = True,
        data_capture_config: Any = None,
    ) -> Any:
        """Make the model, an endpoint configuration and the endpoint, and return what predicts with it.

        The model is called ``name``, the other two ``endpoint_name`` (or ``name``); all three get the tags. A model of
        that name is used where it is the same container. Raises EndpointError with SageMaker's own reason when the
        endpoint cannot be made; it then stays, to be looked at and deleted.
        """
        if accelerator_type is not None:
            raise UsageError("Elastic Inference (accelerator_type) is no more.", "Take an instance type with a GPU.")
        if instance_type == "local" or instance_type.startswith("local_"):
            raise UsageError(
                "There is no local mode here.", "Run AWS on this machine (invoke local), and deploy to that."
            )
        core, shapes = _core()
        if not self.role:
            raise UsageError("No role is known.", 'MultiDataModel(..., role="…"): SageMaker runs the container as it.')
        where: dict[str, Any] = {"session": self.boto_session, "region": _region(self.boto_session)}
        container = self.prepare_container_def(instance_type)
        labels = [shapes.Tag(**tag) for tag in _tags(tags)]
        more: dict[str, Any] = {"tags": labels} if labels else {}
        endpoint_name = endpoint_name or self.name
        vpc = self.vpc_config
        with explained(f"deploy {self.name}", error=EndpointError), contextlib.ExitStack() as undo:
            model_more = {**more, "enable_network_isolation": True} if self._isolated else more
            if vpc:
                shape = shapes.VpcConfig(security_group_ids=list(vpc["SecurityGroupIds"]), subnets=list(vpc["Subnets"]))
                model_more = {**model_more, "vpc_config": shape}
            if not self._is_there(container):
                model = core.Model.create(
                    model_name=self.name,
                    primary_container=shapes.ContainerDefinition(
                        image=container["Image"],
                        mode=self.container_mode,
                        model_data_url=self.model_data_prefix,
                        environment=container["Environment"],
                    ),
                    execution_role_arn=self._role_arn(self.role),
                    **model_more,
                    **where,
                )
                undo.callback(model.delete)
            config_more = {**more, "kms_key_id": kms_key} if kms_key else more
            if data_capture_config is not None:
                config_more = {**config_more, "data_capture_config": data_capture_config}
            config = core.EndpointConfig.create(
                endpoint_config_name=endpoint_name,
                production_variants=[
                    shapes.ProductionVariant(
                        variant_name="AllTraffic",
                        model_name=self.name,
                        instance_type=instance_type,
                        initial_instance_count=initial_instance_count,
                        initial_variant_weight=1.0,
                    )
                ],
                **config_more,
                **where,
            )
            undo.callback(config.delete)
            endpoint = core.Endpoint.create(
                endpoint_name=endpoint_name, endpoint_config_name=endpoint_name, **more, **where
            )
            undo.pop_all()
        self.endpoint_name = endpoint_name
        if wait:
            self._wait(endpoint)
        made = (self.predictor_cls or Predictor)(endpoint_name, self.sagemaker_session)
        if serializer is not None:
            made.serializer = serializer
        if deserializer is not None:
            made.deserializer = deserializer
        return made

    def _is_there(self, container: Mapping[str, Any]) -> bool:
        """Whether there is a model of this name. Raises ConflictError when it is another one."""
        client = self.boto_session.client("sagemaker", region_name=_region(self.boto_session))
        try:
            held = client.describe_model(ModelName=self.name).get("PrimaryContainer", {})
        except ClientError as error:
            if "Could not find model" in str(error):
                return False
            raise
        for key in ("Image", "ModelDataUrl", "Mode", "Environment"):
            if (held.get(key) or {}) != (container.get(key) or {}):
                raise ConflictError(
                    f"There is a model {self.name} already, with another {key}.", "Delete it, or use another name."
                )
        return True

    def _role_arn(self, role: str) -> str:
        if role.startswith("arn:"):
            return role
        return str(self.boto_session.client("iam").get_role(RoleName=role)["Role"]["Arn"])

    def _wait(self, endpoint: Any) -> None:
        from sagemaker.core.utils.exceptions import FailedStatusError

        try:
            endpoint.wait_for_status("InService", poll=5)
        except FailedStatusError as error:
            raise EndpointError(
                f"Endpoint {endpoint.endpoint_name} could not be made: {error}", "Its log in CloudWatch says more."
            ) from error

    def delete_model(self) -> None:
        """Delete the model of SageMaker (not the archives)."""
        with explained(f"delete model {self.name}", error=EndpointError):
            self.boto_session.client("sagemaker", region_name=_region(self.boto_session)).delete_model(
                ModelName=self.name
            )

    # ---- the archives ----

    def add_model(self, model_data_source: str, model_data_path: str | None = None) -> str:
        """Put an archive (a file, or an object in S3) below the prefix, and return its ``s3://`` URI.

        ``model_data_path`` is its path below the prefix, which is its target model; left out, the file's name or the
        object's key. Written by a conditional write: the same bytes again change nothing, and where others are there
        under that path ConflictError is raised, because an instance that has them loaded would go on with them.
        """
        source = os.fspath(model_data_source)
        from_s3 = source.startswith("s3://")
        if not from_s3 and not Path(source).is_file():
            raise UsageError(f"{source} is neither a file nor an s3:// URI.")
        path = model_data_path or (_parse(source)[1] if from_s3 else Path(source).name)
        path = path.strip("/")
        if not path or any(part in ("", ".", "..") for part in path.split("/")):
            raise UsageError(f"{model_data_path or path!r} is not a path below the model prefix.")
        bucket, prefix = self._place()
        key = f"{prefix}{path}"
        uri = f"s3://{bucket}/{key}"
        with explained(f"add {source} as {uri}", bucket=bucket, error=ReleaseError):
            try:
                if from_s3:
                    self._copy(source, bucket, key)
                else:
                    self._send(Path(source), bucket, key)
            except ClientError as error:
                if status_of(error) not in (409, 412):
                    raise
                if not self._same(source, bucket, key):
                    raise ConflictError(
                        f"{uri} is there already, with other content; it was not overwritten.",
                        "Give the new version a path of its own, as mme names them: NAME-DIGEST.tar.gz.",
                    ) from error
        return uri

    def list_models(self) -> Iterator[str]:
        """The paths of what lies below the prefix: what ``target_model`` takes."""
        bucket, prefix = self._place()
        with explained(f"list {self.model_data_prefix}", bucket=bucket):
            for page in self.s3_client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):
                        yield item["Key"].removeprefix(prefix)

    def _place(self) -> tuple[str, str]:
        bucket, prefix = _parse(self.model_data_prefix)
        return bucket, f"{prefix.rstrip('/')}/" if prefix else ""

    def _send(self, file: Path, bucket: str, key: str) -> None:
        if file.stat().st_size > MOST_AT_ONCE:
            raise _too_large(str(file))
        with file.open("rb") as body:
            self.s3_client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*")

    def _copy(self, source: str, bucket: str, key: str) -> None:
        from_bucket, from_key = _parse(source)
        try:
            head = self.s3_client.head_object(Bucket=from_bucket, Key=from_key)
        except ClientError as error:
            if is_missing(self.s3_client, from_bucket, from_key, error):
                raise ReleaseError(f"There is no {source}.") from error
            raise
        if head["ContentLength"] > MOST_AT_ONCE:
            raise _too_large(source)
        self.s3_client.copy_object(
            Bucket=bucket,
            Key=key,
            CopySource={"Bucket": from_bucket, "Key": from_key},
            CopySourceIfMatch=head["ETag"],
            IfNoneMatch="*",
        )

    def _same(self, source: str, bucket: str, key: str) -> bool:
        """Whether the source and the object are the same bytes."""
        with contextlib.ExitStack() as stack:
            held: Any = self.s3_client.get_object(Bucket=bucket, Key=key)
            ours: Any
            if source.startswith("s3://"):
                from_bucket, from_key = _parse(source)
                given = self.s3_client.get_object(Bucket=from_bucket, Key=from_key)
                size, ours = given["ContentLength"], given["Body"]
            else:
                size, ours = Path(source).stat().st_size, stack.enter_context(Path(source).open("rb"))
            if size != held["ContentLength"]:
                return False
            while chunk := ours.read(CHUNK):
                if held["Body"].read(len(chunk)) != chunk:
                    return False
        return True


class Predictor:
    """Asks an endpoint, as SDK v2's ``Predictor`` does.

    ``serializer`` has ``serialize`` and ``CONTENT_TYPE``, ``deserializer`` has ``deserialize`` and ``ACCEPT``: those of
    ``sagemaker.core.serializers`` and ``sagemaker.core.deserializers``. Without them bytes go out and come back.
    """

    def __init__(
        self, endpoint_name: str, sagemaker_session: Any = None, serializer: Any = None, deserializer: Any = None
    ) -> None:
        self.endpoint_name = endpoint_name
        self.sagemaker_session = sagemaker_session
        self.serializer = serializer
        self.deserializer = deserializer
        self._session = _boto_session(sagemaker_session)
        self._runtime = aws.runtime_client(_region(self._session), self._session, retries=False)

    @property
    def endpoint(self) -> Any:
        """The endpoint as sagemaker-core's resource, whose ``invoke`` takes ``target_model`` too."""
        core, _ = _core()
        with explained(f"look at endpoint {self.endpoint_name}", error=EndpointError):
            return core.Endpoint.get(self.endpoint_name, session=self._session, region=_region(self._session))

    def predict(
        self,
        data: Any,
        initial_args: Mapping[str, Any] | None = None,
        target_model: str | None = None,
        target_variant: str | None = None,
        inference_id: str | None = None,
        custom_attributes: str | None = None,
    ) -> Any:
        """What the target model answers to ``data``, through serializer and deserializer.

        A model that is still being loaded is waited for. Raises the errors of ``mme.client.errors``.
        """
        given = dict(initial_args or {})
        target = target_model or given.pop("TargetModel", None)
        if not target:
            raise UsageError(
                "Which model?", "As in: predictor.predict(data, target_model=…); mme.list_models() has them."
            )
        named = {
            "TargetVariant": target_variant,
            "InferenceId": inference_id,
            "CustomAttributes": custom_attributes,
        }
        given.update({key: value for key, value in named.items() if value is not None})
        body = self.serializer.serialize(data) if self.serializer is not None else data
        if isinstance(body, str):
            body = body.encode()
        if not isinstance(body, (bytes, bytearray)):
            raise UsageError(
                f"The data are {type(data).__name__}, not bytes or a text.",
                "Set predictor.serializer, as in: sagemaker.core.serializers.JSONSerializer().",
            )
        content_type = getattr(self.serializer, "CONTENT_TYPE", "application/octet-stream")
        accept = getattr(self.deserializer, "ACCEPT", ("*/*",))
        answer = predict(
            self._runtime,
            given.pop("EndpointName", self.endpoint_name),
            str(target),
            bytes(body),
            content_type=given.pop("ContentType", content_type),
            accept=given.pop("Accept", accept if isinstance(accept, str) else ", ".join(accept)),
            more=given,
            attempts=ATTEMPTS,
        )
        if self.deserializer is None:
            return answer.body

        return self.deserializer.deserialize(io.BytesIO(answer.body), answer.content_type)

    def delete_endpoint(self, delete_endpoint_config: bool = True) -> None:
        """Delete the endpoint, and its configuration unless told otherwise."""
        endpoint = self.endpoint
        with explained(f"delete endpoint {self.endpoint_name}", error=EndpointError):
            config = endpoint.endpoint_config_name
            endpoint.delete()
            if delete_endpoint_config and isinstance(config, str):
                self._sagemaker().delete_endpoint_config(EndpointConfigName=config)

    def delete_model(self) -> None:
        """Delete the models of SageMaker that the endpoint's configuration names (not the archives)."""
        endpoint = self.endpoint
        with explained(f"delete the models of endpoint {self.endpoint_name}", error=EndpointError):
            sagemaker = self._sagemaker()
            config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint.endpoint_config_name)
            for variant in config["ProductionVariants"]:
                sagemaker.delete_model(ModelName=variant["ModelName"])

    def _sagemaker(self) -> Any:
        return self._session.client("sagemaker", region_name=_region(self._session))


def _core() -> tuple[Any, Any]:
    """sagemaker-core's resources and shapes."""
    try:
        from sagemaker.core import resources, shapes
    except ImportError as error:
        raise UsageError(
            f"SageMaker SDK v3 is not installed here ({error}).",
            "pip install 'mme[sagemaker]', in an environment without SDK v2 (sagemaker below 3).",
        ) from error
    return resources, shapes


def _boto_session(session: Any) -> boto3.Session:
    boto = getattr(session, "boto_session", session)
    return boto if boto is not None else boto3.Session()


def _region(session: boto3.Session) -> str | None:
    return session.region_name or os.environ.get("AWS_REGION")


def _parse(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _tags(tags: Tags) -> list[dict[str, str]]:
    """Tags as sagemaker-core's shape takes them, from v2's two forms."""
    if isinstance(tags, Mapping):
        return [{"key": key, "value": value} for key, value in tags.items()]
    return [{"key": tag["Key"], "value": tag["Value"]} for tag in tags or ()]


def _too_large(source: str) -> UsageError:
    return UsageError(f"{source} is larger than S3 takes at once (5 GiB).", "Send it in parts: invoke upload does.")
