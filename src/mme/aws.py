"""AWS clients, configured for the toolchain, and AWS's errors as messages that say what to do.

All calls go through boto3, which also decides where they go: to AWS, or to a server on this machine
(``AWS_ENDPOINT_URL``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore import exceptions as boto
from botocore import handlers, httpsession
from botocore.config import Config
from botocore.utils import parse_timestamp

from mme import __version__
from mme.errors import EndpointError, MmeError, ReleaseError, UsageError

if TYPE_CHECKING:
    from types_boto3_cloudwatch import CloudWatchClient
    from types_boto3_s3 import S3Client
    from types_boto3_sagemaker import SageMakerClient
    from types_boto3_sagemaker_runtime import SageMakerRuntimeClient

CONNECTIONS = 16
ATTEMPTS = 5  # of each call, with the pauses of boto3's standard mode between them

BROKEN_OFF: type[Exception] = httpsession.ProtocolError  # type: ignore[attr-defined]
"""What boto3 raises, of none of its own classes, where the body of an error breaks off."""

# SageMaker gives a model 60 s to answer; a client that gives up earlier would never see that answer.
PREDICT_READ_TIMEOUT_S = 70


def s3_client(region: str | None, session: boto3.Session | None = None) -> S3Client:
    """An S3 client for ``region`` (None: as boto3 is configured); of boto3's default session unless one is given."""
    with explained("prepare an S3 client"):
        client: S3Client = _client("s3", region, session)
    # boto3 turns a body of bytes into a stream, which waits for the server's 100 Continue and goes out 16 KiB at a
    # time. Without this handler it goes out at once; a boto3 that has no such handler is fine too.
    to_stream = getattr(handlers, "convert_body_to_file_like_object", None)
    if to_stream is not None:
        for operation in ("PutObject", "UploadPart"):
            client.meta.events.unregister(f"before-parameter-build.s3.{operation}", to_stream)
    return client


def _client(
    service: str, region: str | None, session: boto3.Session | None = None, config: Config | None = None
) -> Any:
    _quick_times()
    config = config or _config(read_timeout=60)
    try:
        made: Any = (session or boto3).client(service, region_name=region, config=config)  # type: ignore[call-overload]
        if not made.meta.region_name:  # a variable that is set, and empty, which boto3 takes for a region
            raise boto.NoRegionError
        # Before it is parsed, since XML's parsers end in a KeyError; and after, since boto3 changes S3's status itself.
        for moment in ("before-parse", "response-received"):
            made.meta.events.register(moment, _refuse_pages)
        return made
    except (OSError, json.JSONDecodeError) as problem:  # of the profile's credential_process
        if isinstance(problem, boto.BotoCoreError):
            raise
        raise UsageError(
            f"Cannot prepare a client of {service}: the program that the AWS profile names as credential_process "
            f"cannot be run, or does not print JSON ({problem}).",
            "Run it by hand (aws configure get credential_process shows it), and look at what it prints.",
        ) from problem
    except ValueError as problem:  # botocore has no error of its own for an address that it cannot read
        if isinstance(problem, boto.BotoCoreError):
            raise
        raise UsageError(
            f"Cannot prepare a client of {service}: {problem}.",
            "AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_… of one service or endpoint_url in ~/.aws/config names it: give an "
            "address such as http://127.0.0.1:PORT, or take it away to reach AWS.",
        ) from problem


class NotAwsError(boto.BotoCoreError):
    """A page for people in place of AWS's answer."""

    fmt = "a web page came in place of AWS's answer"


def _refuse_pages(response_dict: Mapping[str, Any] | None, **_: Any) -> None:
    """Refuse what a proxy or a sign-in page of a network answers in AWS's place: boto3 would take it for an answer with
    nothing in it. All that AWS answers has the request's ID; what a model or an object says may well be a page."""
    if response_dict is None or response_dict["status_code"] >= 300:
        return
    headers = {name.lower(): value for name, value in response_dict["headers"].items()}
    if str(headers.get("content-type", "")).lower().startswith("text/html") and not _REQUEST_IDS & headers.keys():
        raise NotAwsError


_REQUEST_IDS = {"x-amzn-requestid", "x-amz-request-id", "x-amz-id-2"}


def _quick_times() -> None:
    """Have boto3's default session, unless a program has made one already, read times as S3 writes them by the standard
    library: a third of the processor time of a long listing goes into them otherwise."""
    if boto3.DEFAULT_SESSION is None:
        session = botocore.session.get_session()
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
        boto3.setup_default_session(botocore_session=session)


def _time(value: Any) -> datetime:
    if isinstance(value, str) and len(value) in (20, 24) and value.endswith("Z") and value[10] == "T":
        try:
            return datetime.fromisoformat(f"{value[:-1]}+00:00")
        except ValueError:
            pass
    parsed: datetime = parse_timestamp(value)
    return parsed


def sagemaker_client(region: str | None, session: boto3.Session | None = None) -> SageMakerClient:
    """A client of SageMaker's control plane."""
    with explained("prepare a SageMaker client", error=EndpointError):
        made: SageMakerClient = _client("sagemaker", region, session)
        return made


def runtime_client(
    region: str | None,
    session: boto3.Session | None = None,
    *,
    retries: bool = True,
    connections: int = CONNECTIONS,
) -> SageMakerRuntimeClient:
    """A client for predictions, patient enough for the slowest answer that SageMaker allows.

    Without ``retries`` a call is tried once, for callers that retry by rules of their own. ``connections`` are kept
    open.
    """
    attempts = ATTEMPTS if retries else 1
    with explained("prepare a SageMaker runtime client", error=EndpointError):
        config = _config(PREDICT_READ_TIMEOUT_S, attempts, connections)
        made: SageMakerRuntimeClient = _client("sagemaker-runtime", region, session, config)
        return made


def cloudwatch_client(region: str | None) -> CloudWatchClient:
    """A client of CloudWatch, for the metrics of endpoints."""
    with explained("prepare a CloudWatch client", error=EndpointError):
        made: CloudWatchClient = _client("cloudwatch", region)
        return made


def client(service: str, region: str | None) -> Any:
    """A client of any other service, by boto3's name for it."""
    with explained(f"prepare a client of {service}", error=EndpointError):
        return _client(service, region)


def is_local(client: Any) -> bool:
    """Whether a client speaks to a server on this machine, and to no other."""
    return urlsplit(str(client.meta.endpoint_url)).hostname in ("127.0.0.1", "localhost", "::1")


def _config(read_timeout: int, attempts: int = ATTEMPTS, connections: int = CONNECTIONS) -> Config:
    return Config(
        connect_timeout=10,
        read_timeout=read_timeout,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=connections,
        tcp_keepalive=True,
        user_agent_extra=f"mme/{__version__}",
    )


@contextmanager
def explained(doing: str, *, bucket: str | None = None, error: type[MmeError] = ReleaseError) -> Iterator[None]:
    """Turn what boto3 raises inside the block into ``error``: "cannot <doing>: <why>", and what to do about it."""
    try:
        yield
    except (boto.ClientError, boto.BotoCoreError, boto.HTTPClientError) as caught:
        raise explain(caught, doing, bucket=bucket, error=error) from caught


def code_of(error: boto.ClientError) -> str:
    """AWS's own code of an error ("NoSuchKey"); for a HEAD, which has no body, the HTTP status as text ("404")."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: boto.ClientError) -> int:
    """The HTTP status of an error, 0 when AWS gave none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_missing(s3: S3Client, bucket: str, key: str, error: boto.ClientError) -> bool:
    """Whether this error of a HEAD or GET means that there is no such object.

    S3 says 404 only to those who may list the whole bucket. To those who may list below a prefix it says 403, whether
    the object is there or not: then a listing decides.
    """
    if status_of(error) == 404:
        return code_of(error) in ("404", "NoSuchKey", "Not Found")
    if status_of(error) != 403 or code_of(error) in _EXPIRED | _BAD_KEYS:
        return False
    try:
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", [])
    except boto.ClientError:
        return False
    return not any(item["Key"] == key for item in listed)


def concerns_all(error: MmeError) -> bool:
    """Whether every other call would fail for the same reason: the sign-in, the bucket or the connection."""
    cause = error.__cause__
    if isinstance(cause, boto.ClientError):
        return concerns_every_call(cause)
    return isinstance(cause, (boto.BotoCoreError, boto.HTTPClientError))


def concerns_every_call(error: boto.ClientError) -> bool:
    """Whether AWS would refuse every other call for the same reason: the credentials or the bucket."""
    return code_of(error) in _EXPIRED | _BAD_KEYS | {"NoSuchBucket"} or _is_skewed(error)


def _is_skewed(error: boto.ClientError) -> bool:
    """Whether AWS refuses the time of the request: S3 with a code of its own, the other services in the words for a
    signature that is too old or too young."""
    message = str(error.response.get("Error", {}).get("Message") or "")
    signed = code_of(error) in ("InvalidSignatureException", "SignatureDoesNotMatch")
    return code_of(error) == "RequestTimeTooSkewed" or (
        signed and message.startswith(("Signature expired", "Signature not yet current"))
    )


_EXPIRED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
}
_BAD_KEYS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidClientTokenId",
    "InvalidToken",
    "UnrecognizedClientException",
    "AuthFailure",
    "InvalidSignatureException",
}
_DENIED = {"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "403", "Forbidden"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"}


def explain(
    caught: Exception, doing: str, *, bucket: str | None = None, error: type[MmeError] = ReleaseError
) -> MmeError:
    """The error to raise for what boto3 raised while ``doing``."""
    why, hint = _why(caught, bucket)
    kind = UsageError if isinstance(caught, (boto.ParamValidationError, boto.ProfileNotFound)) else error
    return kind(f"Cannot {doing}: {why}.", hint)


def _why(caught: Exception, bucket: str | None) -> tuple[str, str | None]:
    if isinstance(caught, boto.ClientError):
        return _why_refused(caught, bucket)
    if isinstance(caught, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return (
            "no AWS credentials were found",
            "Sign in (aws sso login, aws configure) or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY.",
        )
    if isinstance(
        caught,
        (boto.SSOTokenLoadError, boto.UnauthorizedSSOTokenError, boto.TokenRetrievalError),
    ):
        return "the AWS sign-in has expired", "Sign in again (aws sso login), then run the same command again."
    if isinstance(caught, boto.CredentialRetrievalError):
        return f"the AWS credentials could not be fetched ({caught})", "Sign in again, then run the same command."
    if isinstance(caught, boto.NoRegionError):
        return (
            "no AWS region is set",
            "Give --region, or set AWS_REGION, or name the Terraform folder with --terraform. A variable that is set "
            "and empty names no region.",
        )
    if isinstance(caught, boto.ProfileNotFound):
        return (
            str(caught).rstrip("."),
            "AWS_PROFILE names a profile that ~/.aws/config does not have. Unset it where it is empty.",
        )
    if isinstance(caught, boto.ProxyConnectionError):
        return (
            str(caught).rstrip("."),
            "Check HTTPS_PROXY and HTTP_PROXY; NO_PROXY names the hosts that are reached without a proxy.",
        )
    if isinstance(caught, (boto.EndpointConnectionError, boto.ConnectTimeoutError)):
        return (
            str(caught).rstrip("."),
            "Check the network, the region, and AWS_ENDPOINT_URL if it is set (is the server there running?).",
        )
    if isinstance(caught, boto.HTTPClientError) and "Invalid header value" in str(caught):  # which it would print
        return (
            "the credentials hold a character that cannot be sent, such as a line break",
            "Look at the ends of AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN, or of the profile's keys: a secret that is "
            "read from a file often brings the file's last line break.",
        )
    if isinstance(caught, boto.InvalidRegionError):
        return (
            str(caught).rstrip("."),
            "A region looks like us-east-1: see --region, AWS_REGION and AWS_DEFAULT_REGION, or the profile's region.",
        )
    if isinstance(caught, NotAwsError):
        return (
            str(caught),
            "Something on the way answers in AWS's place, such as a proxy or a network that wants a sign-in: check "
            "HTTPS_PROXY, AWS_ENDPOINT_URL and the network.",
        )
    if isinstance(caught, boto.ReadTimeoutError):
        return "no answer came in time", "Run the same command again."
    return str(caught).rstrip("."), None


def _why_refused(caught: boto.ClientError, bucket: str | None) -> tuple[str, str | None]:
    code, status = code_of(caught), status_of(caught)
    text = str(caught.response.get("Error", {}).get("Message") or "").strip().rstrip(".")
    where = f"bucket {bucket}" if bucket else "it"
    if _is_skewed(caught):
        return (
            f"this machine's clock and AWS's differ by some minutes ({code}" + (f": {text})" if text else ")"),
            "Set the clock, by NTP for instance, then run the same command again.",
        )
    if code in _EXPIRED:
        return (
            f"the AWS credentials have expired ({code})",
            "Sign in again, then run the same command: what is already done is not done again.",
        )
    if code == "400":  # a HEAD's answer has no body that could say more
        return (
            f"AWS refused {caught.operation_name} without a reason",
            "Most often the credentials have expired: sign in again, then run the same command.",
        )
    if code in _BAD_KEYS:
        return (
            f"AWS does not accept the credentials ({code})",
            "Check AWS_PROFILE, or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.",
        )
    if code == "NoSuchBucket" or (bucket and caught.operation_name == "HeadBucket" and status == 404):
        return (
            f"there is no bucket {bucket}" if bucket else "there is no such bucket",
            "Check --bucket or MME_BUCKET; terraform apply creates the bucket.",
        )
    if code in _REGION or status == 301:
        region = caught.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
        return (
            f"{where} is in another region" + (f" ({region})" if region else ""),
            f"Give --region {region}." if region else "Give the bucket's own region with --region.",
        )
    if code in _DENIED or status == 403:
        return (
            f"no permission for {caught.operation_name}" + (f" on {where}" if bucket else ""),
            (f"AWS said: {text}. " if text and text != "Forbidden" else "")
            + "Ask for this permission, or use another profile or role.",
        )
    if code in _THROTTLED:
        return f"AWS asked to slow down ({code})", "Wait a little, then run the same command again."
    return (f"{text} ({code})" if text else f"{caught.operation_name} answered {code or status}"), None
