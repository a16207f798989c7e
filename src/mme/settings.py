"""Where the bucket, the model prefix, the endpoint and the region come from.

Each is looked up in the same order: the flag, the environment, then the outputs of the Terraform root module in the
folder that ``--terraform`` (or ``MME_TERRAFORM``) names. So nobody copies names by hand. Where a root has several
endpoints, ``DIR#OUTPUT`` names one of them (see ``mme.outputs``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mme import outputs, terraform
from mme.errors import UsageError

DEFAULT_PREFIX = "models/"


@dataclass(frozen=True)
class Flags:
    """What the command line said; None for a flag that was not given."""

    bucket: str | None = None
    prefix: str | None = None
    endpoint: str | None = None
    region: str | None = None
    terraform: str | None = None


@dataclass(frozen=True)
class Settings:
    """Looks each value up when it is asked for, and asks Terraform at most once.

    ``read_outputs`` takes a folder and gives the outputs of its root module by name.
    """

    flags: Flags
    environ: Mapping[str, str]
    read_outputs: Callable[[Path], Mapping[str, object]] = field(default=terraform.outputs, repr=False)

    @property
    def bucket(self) -> str:
        """The bucket's name. Raises UsageError when nothing gives one."""
        return self._required("bucket", "--bucket", "MME_BUCKET", "bucket")

    @property
    def endpoint(self) -> str:
        """The endpoint's name. Raises UsageError when nothing gives one."""
        return self._required("endpoint", "--endpoint", "MME_ENDPOINT", "endpoint_name")

    @property
    def prefix(self) -> str:
        """The model prefix inside the bucket, with its trailing slash; ``models/`` when nothing gives one."""
        return self._find(self.flags.prefix, ("MME_PREFIX",), "model_prefix") or DEFAULT_PREFIX

    @property
    def region(self) -> str | None:
        """The AWS region; None leaves it to boto3 (the profile's own region)."""
        return self._find(self.flags.region, ("AWS_REGION", "AWS_DEFAULT_REGION"), "region")

    @property
    def knows_bucket(self) -> bool:
        """Whether anything gives a bucket."""
        return self._find(self.flags.bucket, ("MME_BUCKET",), "bucket") is not None

    @property
    def knows_endpoint(self) -> bool:
        """Whether anything gives an endpoint."""
        return self._find(self.flags.endpoint, ("MME_ENDPOINT",), "endpoint_name") is not None

    @property
    def place(self) -> outputs.Place | None:
        """The Terraform folder, if one is named, and the output in it. Raises UsageError."""
        named = self.flags.terraform or self.environ.get("MME_TERRAFORM")
        return outputs.place(named) if named else None

    @cached_property
    def _outputs(self) -> Mapping[str, object]:
        place = self.place
        return outputs.endpoint(self.read_outputs(place.folder), place) if place else {}

    def _find(self, flag: str | None, variables: tuple[str, ...], output: str) -> str | None:
        if flag:
            return flag
        for variable in variables:
            if self.environ.get(variable):
                return self.environ[variable]
        value = self._outputs.get(output)
        return str(value) if value else None

    def _required(self, what: str, flag: str, variable: str, output: str) -> str:
        value = self._find(getattr(self.flags, what), (variable,), output)
        if value:
            return value
        if self.place:
            tried = f"the Terraform folder {self.place} has no output {output} (is it applied?)"
        else:
            tried = f"name an applied Terraform folder that has the output {output}: --terraform DIR or MME_TERRAFORM"
        raise UsageError(f"No {what} is known.", f"Give {flag}, or set {variable}, or: {tried}.")
