"""Corrections of moto's Application Auto Scaling: tags, the alarms of a policy, and what was scaled."""

from __future__ import annotations

import inspect as introspection
import json
from typing import Any

from mme.local.console import log
from mme.local.sagemaker.autoscaling import DIMENSION


def autoscaling_targets() -> None:
    """RegisterScalableTarget takes variants that there are not, and ranges that are none."""
    from moto.applicationautoscaling.exceptions import AWSValidationException
    from moto.applicationautoscaling.models import ApplicationAutoscalingBackend
    from moto.sagemaker.models import sagemaker_backends

    register = ApplicationAutoscalingBackend.register_scalable_target

    def register_scalable_target(self: Any, *args: Any, **named: Any) -> Any:
        given = introspection.signature(register).bind(self, *args, **named).arguments
        known = self.targets.get(given["dimension"], {}).get(given["r_id"])
        least, most = (
            value if value is not None else getattr(known, name, None)
            for name, value in (("min_capacity", given["min_capacity"]), ("max_capacity", given["max_capacity"]))
        )
        if least is None or most is None:
            raise AWSValidationException("MinCapacity and MaxCapacity are required for a new scalable target.")
        if least > most:
            raise AWSValidationException("Maximum capacity cannot be less than minimum capacity")
        if given["dimension"] == DIMENSION and known is None:
            backend = sagemaker_backends[self.account_id][self.region_name]
            _, endpoint, _, variant = (*given["r_id"].split("/"), "", "", "", "")[:4]
            live = backend.endpoints.get(endpoint)
            if live is None or variant not in [item["VariantName"] for item in live.production_variants]:
                raise AWSValidationException(f"SageMaker endpoint variant doesn't exist: {given['r_id']}")
        return register(self, *args, **named)

    ApplicationAutoscalingBackend.register_scalable_target = register_scalable_target


def autoscaling_alarms() -> None:
    """A target-tracking policy of a SageMaker variant has no alarms; a policy that is put again leaves those of the one
    before."""
    from moto.applicationautoscaling.models import ApplicationAutoscalingBackend, FakeApplicationAutoscalingPolicy
    from moto.cloudwatch.models import cloudwatch_backends
    from moto.moto_api._internal import mock_random

    create = FakeApplicationAutoscalingPolicy.create_alarms
    put = ApplicationAutoscalingBackend.put_scaling_policy

    def create_alarms(self: Any) -> None:
        create(self)
        if self.policy_type != "TargetTrackingScaling" or self.scalable_dimension != DIMENSION:
            return
        metric = _metric(self)
        if metric is None:
            log(f"policy {self.policy_name} of {self.resource_id} tracks a metric that the local AWS does not have")
            return
        target = float(self.target_tracking_scaling_policy_configuration["TargetValue"])
        cloudwatch = cloudwatch_backends[self.account_id][self.region_name]
        for kind, operator, periods, threshold in (
            ("High", "GreaterThanThreshold", 3, target),
            ("Low", "LessThanThreshold", 15, 0.9 * target),
        ):
            alarm = cloudwatch.put_metric_alarm(
                name=f"TargetTracking-{self.resource_id}-Alarm{kind}-{mock_random.uuid4()}",
                comparison_operator=operator,
                evaluation_periods=periods,
                period=60,
                threshold=threshold,
                description=f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {self.policy_arn}.",
                alarm_actions=[self.policy_arn],
                **metric,
            )
            self.alarms.append(alarm)

    def put_scaling_policy(self: Any, *args: Any, **named: Any) -> Any:
        before = dict(self.policies)
        policy = put(self, *args, **named)
        for key, old in before.items():
            if self.policies.get(key) is not old:
                old.delete_alarms(self.account_id, self.region_name)
        return policy

    FakeApplicationAutoscalingPolicy.create_alarms = create_alarms
    ApplicationAutoscalingBackend.put_scaling_policy = put_scaling_policy


def _metric(policy: Any) -> dict[str, Any] | None:
    """The metric that a policy tracks, as an alarm names it; None where the local AWS has no such metric."""
    config = policy.target_tracking_scaling_policy_configuration
    custom = config.get("CustomizedMetricSpecification")
    if custom:
        if not custom.get("MetricName"):
            return None  # metric math
        return {
            "namespace": custom["Namespace"],
            "metric_name": custom["MetricName"],
            "dimensions": custom.get("Dimensions") or [],
            "statistic": custom["Statistic"],
            "unit": custom.get("Unit"),
        }
    kind = (config.get("PredefinedMetricSpecification") or {}).get("PredefinedMetricType")
    if kind != "SageMakerVariantInvocationsPerInstance":
        return None
    _, endpoint, _, variant = policy.resource_id.split("/", 3)
    return {
        "namespace": "AWS/SageMaker",
        "metric_name": "InvocationsPerInstance",
        "dimensions": [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": variant}],
        "statistic": "Sum",
    }


def autoscaling_activities() -> None:
    """DescribeScalingActivities does not exist."""
    from moto.applicationautoscaling.responses import ApplicationAutoScalingResponse

    def describe_scaling_activities(self: Any) -> str:
        asked = {
            name: self._get_param(name)
            for name in ("ServiceNamespace", "ResourceId", "ScalableDimension")
            if self._get_param(name)
        }
        activities = [
            activity
            for activity in getattr(self.applicationautoscaling_backend, "mme_activities", [])
            if all(activity[name] == value for name, value in asked.items())
        ]
        start, limit = int(self._get_param("NextToken") or 0), int(self._get_param("MaxResults") or 50)
        following = {"NextToken": str(start + limit)} if start + limit < len(activities) else {}
        return json.dumps({"ScalingActivities": activities[start : start + limit], **following})

    ApplicationAutoScalingResponse.describe_scaling_activities = describe_scaling_activities


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
                    stored: dict[str, str] = target.mme_tags
                    return stored
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
