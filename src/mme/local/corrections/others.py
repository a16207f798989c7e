"""Corrections of moto's CloudWatch, CloudWatch Logs and STS."""

from __future__ import annotations

import copy
from typing import Any

from mme.local.settings import ACCESS_KEY, partition_of


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


def metric_dimensions() -> None:
    """GetMetricStatistics takes metrics that have more dimensions than it was asked for: the requests of a variant come
    twice, since SageMaker has them once more with the dimension EndpointConfigName."""
    from moto.cloudwatch.models import CloudWatchBackend

    statistics = CloudWatchBackend.get_metric_statistics

    def get_metric_statistics(self: Any, *args: Any, **named: Any) -> Any:
        wanted = {(one["Name"], one["Value"]) for one in named.get("dimensions") or []}
        if not wanted:
            return statistics(self, *args, **named)
        view = copy.copy(self)
        view.metric_data = [
            datum for datum in self.metric_data if {(one.name, one.value) for one in datum.dimensions} == wanted
        ]
        return statistics(view, *args, **named)

    CloudWatchBackend.get_metric_statistics = get_metric_statistics


def alarm_tags() -> None:
    """DeleteAlarms leaves an alarm's tags, and a new alarm of the same name has them."""
    from moto.cloudwatch.models import CloudWatchBackend

    delete = CloudWatchBackend.delete_alarms

    def delete_alarms(self: Any, alarm_names: list[str]) -> None:
        for name in alarm_names:
            if name in self.alarms:
                self.tagger.delete_all_tags_for_resource(self.alarms[name].alarm_arn)
        delete(self, alarm_names)

    CloudWatchBackend.delete_alarms = delete_alarms


def log_group_keys() -> None:
    """CloudWatch Logs takes a key for a new log group, and can neither give one to a group nor take it away."""
    from moto.core.responses import EmptyResult
    from moto.logs.exceptions import ResourceNotFoundException
    from moto.logs.responses import LogsResponse

    def group(self: Any) -> Any:
        log_group = self.logs_backend.groups.get(self._get_param("logGroupName"))
        if log_group is None:
            raise ResourceNotFoundException()
        return log_group

    def associate_kms_key(self: Any) -> Any:
        group(self).kms_key_id = self._get_param("kmsKeyId")
        return EmptyResult()

    def disassociate_kms_key(self: Any) -> Any:
        group(self).kms_key_id = None
        return EmptyResult()

    LogsResponse.associate_kms_key = associate_kms_key
    LogsResponse.disassociate_kms_key = disassociate_kms_key


def caller_identity() -> None:
    """GetCallerIdentity answers a user that there is not for the account's root."""
    from moto.sts.models import STSBackend

    find = STSBackend.get_caller_identity

    def get_caller_identity(self: Any, access_key_id: str, region: str) -> tuple[str, str, str]:
        if access_key_id == ACCESS_KEY:
            return self.account_id, f"arn:{partition_of(region)}:iam::{self.account_id}:root", self.account_id
        found: tuple[str, str, str] = find(self, access_key_id, region)
        return found

    STSBackend.get_caller_identity = get_caller_identity
