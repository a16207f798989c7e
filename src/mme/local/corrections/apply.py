"""Apply every correction, to the version of moto that they were written for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mme.local.corrections.autoscaling import (
    autoscaling_activities,
    autoscaling_alarms,
    autoscaling_tags,
    autoscaling_targets,
)
from mme.local.corrections.others import (
    alarm_tags,
    caller_identity,
    composite_alarms,
    log_group_keys,
    metric_dimensions,
)
from mme.local.corrections.s3 import (
    bucket_policies,
    composite_checksums,
    delete_markers,
    lifecycle_rules,
    listings_and_ranges,
    object_bytes,
    object_keys,
)
from mme.local.corrections.sagemaker import (
    arns,
    endpoint_configurations,
    endpoint_lifecycle,
    lists,
    models,
    requests,
    sagemaker_tags,
)
from mme.local.sagemaker.endpoints import Endpoints

MOTO_VERSION = "5.2.5"
"""The version that the corrections were written against."""


def apply(endpoints: Endpoints, role_problem: Callable[[str], str | None], folder: Path) -> None:
    """Puts every correction in place.

    ``role_problem`` answers why SageMaker may not use a role, or None; ``folder`` is where objects' bytes go.
    """
    arns()
    models(role_problem)
    lists()
    endpoint_configurations()
    endpoint_lifecycle(endpoints)
    sagemaker_tags()
    requests()  # the last of SageMaker's: it goes around the others
    autoscaling_targets()
    autoscaling_tags()
    autoscaling_alarms()
    autoscaling_activities()
    object_keys()
    bucket_policies()
    lifecycle_rules()
    composite_alarms()
    metric_dimensions()
    alarm_tags()
    caller_identity()
    log_group_keys()
    delete_markers()
    object_bytes(folder)
    composite_checksums()
    listings_and_ranges()
