"""Terraform's AWS provider as one process, which all of Terraform's commands on a folder use.

Terraform by itself starts the provider two or three times for each command, and asks it for 40 MB of schemas, which
takes more of a processor than all else that a plan does. The provider has a mode for debugging in which it is started
once and Terraform is told where it is. It holds the configuration that Terraform last gave it, so a process is for one
account and region, and for one command at a time: each test has its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from between_workers import locked

from mme import terraform
from mme.runner import guard

# The provider writes megabytes of traces in this mode.
_QUIET = dict.fromkeys(("TF_LOG", "TF_LOG_PROVIDER", "TF_LOG_SDK", "TF_LOG_SDK_PROTO"), "off")


@functools.cache
def _installed() -> tempfile.TemporaryDirectory[str]:
    """A folder with the provider, as an ordinary ``terraform init`` installs it. It lasts as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="provider-")
    root = {"terraform": {"required_providers": {"aws": {"source": "hashicorp/aws"}}}}
    (Path(folder.name) / "main.tf.json").write_text(json.dumps(root))
    with locked("terraform-init"):
        terraform.run(["init", "-input=false", "-no-color"], Path(folder.name))
    return folder


def _program() -> Path:
    (program,) = Path(_installed().name).glob(".terraform/providers/*/hashicorp/aws/*/*/terraform-provider-aws_*")
    return program


@contextlib.contextmanager
def attached(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment in which Terraform uses one provider process, as long as the block lasts.

    The provider reads AWS's variables from ``environment`` too. ``terraform init`` has nothing to install then, but
    still prepares the modules.
    """
    env = {**environment, **_QUIET}
    env.pop("AWS_CA_BUNDLE", None)  # a provider that has one cannot be configured twice
    words = [sys.executable, "-I", "-S", guard.__file__, "1", str(_program()), "-debug"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, env=env, text=True, **pipes) as provider:
        assert provider.stdin is not None
        assert provider.stdout is not None
        try:
            said = ""
            for line in provider.stdout:
                said += line
                if found := re.search(r"TF_REATTACH_PROVIDERS='(.*)'", line):
                    yield {**env, "TF_REATTACH_PROVIDERS": found[1]}
                    break
            else:
                raise RuntimeError(f"The provider did not start: {said}")
        finally:
            provider.stdin.close()  # the guard ends the provider
