"""The settings of the local AWS, and the environment of its clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # noqa: S105 (AWS's own example, known to everybody)
"""The credentials of the account's root in the local AWS. They open nothing anywhere else."""

PAGE = "/_mme/"
"""Where the page is. No bucket can be called so."""


def partition_of(region: str) -> str:
    """The partition of AWS that a region belongs to, as ARNs have it."""
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


@dataclass(frozen=True)
class Settings:
    """What the local AWS is started with. ``port`` 0 takes a free one."""

    data_dir: Path
    port: int = 0
    container: str = "ours"
    region: str = "us-east-1"
    account: str = "123456789012"
    iam: bool = True
    max_instances: int = 2
    """Containers that run for one variant; more instances than these are counted only."""
    minute: float = 60.0
    """Seconds that AWS's minute lasts here."""
    exit_with_parent: bool = False
    open: bool = False
    """Whether to open the page in the browser once it is up."""

    @property
    def partition(self) -> str:
        """The partition that the account is in."""
        return partition_of(self.region)


def exports(url: str, region: str) -> list[str]:
    """The lines for another shell."""
    return [
        f"export AWS_ENDPOINT_URL={url}",
        f"export AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={SECRET_KEY}",
        f"export AWS_REGION={region} AWS_DEFAULT_REGION={region}",
    ]
