"""Where names come from: the flag, then the environment, then Terraform's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mme.errors import TerraformError, UsageError
from mme.settings import Flags, Settings

OUTPUTS = {
    "bucket": "from-terraform",
    "model_prefix": "production/models/",
    "endpoint_name": "endpoint-from-terraform",
    "region": "eu-west-1",
}


class Terraform:
    """Stands for ``terraform output``; counts how often it is asked."""

    def __init__(self, outputs: Mapping[str, object] = OUTPUTS) -> None:
        self.outputs = outputs
        self.asked: list[Path] = []

    def __call__(self, folder: Path) -> Mapping[str, object]:
        self.asked.append(folder)
        return self.outputs


def test_a_flag_wins_over_the_environment_and_terraform() -> None:
    terraform = Terraform()
    flags = Flags(bucket="from-flag", prefix="flag/", endpoint="flag-endpoint", region="us-west-2", terraform="infra")
    environ = {"MME_BUCKET": "from-environment", "AWS_REGION": "us-east-2"}
    settings = Settings(flags, environ, terraform)
    assert settings.bucket == "from-flag"
    assert settings.prefix == "flag/"
    assert settings.endpoint == "flag-endpoint"
    assert settings.region == "us-west-2"
    assert terraform.asked == []


def test_the_environment_wins_over_terraform() -> None:
    terraform = Terraform()
    environ = {
        "MME_BUCKET": "from-environment",
        "MME_PREFIX": "environment/",
        "MME_ENDPOINT": "environment-endpoint",
        "AWS_REGION": "us-east-2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MME_TERRAFORM": "infra",
    }
    settings = Settings(Flags(), environ, terraform)
    assert settings.bucket == "from-environment"
    assert settings.prefix == "environment/"
    assert settings.endpoint == "environment-endpoint"
    assert settings.region == "us-east-2"
    assert terraform.asked == []


@pytest.mark.parametrize(
    ("flags", "environ"), [(Flags(terraform="infra"), {}), (Flags(), {"MME_TERRAFORM": "infra"})], ids=["flag", "env"]
)
def test_terraform_gives_the_rest_and_is_asked_once(flags: Flags, environ: dict[str, str]) -> None:
    terraform = Terraform()
    settings = Settings(flags, environ, terraform)
    assert settings.knows_bucket
    assert settings.bucket == "from-terraform"
    assert settings.prefix == "production/models/"
    assert settings.endpoint == "endpoint-from-terraform"
    assert settings.region == "eu-west-1"
    assert terraform.asked == [Path("infra")]


def test_an_empty_variable_counts_as_unset() -> None:
    settings = Settings(Flags(terraform="infra"), {"MME_BUCKET": "", "AWS_REGION": ""}, Terraform())
    assert settings.bucket == "from-terraform"
    assert settings.region == "eu-west-1"


def test_prefix_and_region_have_defaults() -> None:
    settings = Settings(Flags(), {}, Terraform())
    assert settings.prefix == "models/"
    assert settings.region is None
    assert not settings.knows_bucket


def test_a_missing_value_names_all_three_ways() -> None:
    settings = Settings(Flags(), {}, Terraform())
    with pytest.raises(UsageError) as bucket:
        _ = settings.bucket
    assert all(way in str(bucket.value) for way in ("--bucket", "MME_BUCKET", "--terraform", "MME_TERRAFORM"))
    with pytest.raises(UsageError) as endpoint:
        _ = settings.endpoint
    assert all(way in str(endpoint.value) for way in ("--endpoint", "MME_ENDPOINT", "--terraform", "MME_TERRAFORM"))


def test_a_folder_without_the_output_is_named() -> None:
    settings = Settings(Flags(terraform="infra"), {}, Terraform({}))
    with pytest.raises(UsageError, match=r"infra has no output endpoint_name"):
        _ = settings.endpoint


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    settings = Settings(Flags(terraform=str(tmp_path / "nowhere")), {})
    with pytest.raises(TerraformError, match="nowhere is not a folder"):
        _ = settings.bucket
