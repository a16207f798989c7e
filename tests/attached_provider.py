"""Terraform's AWS provider as one process, which all of Terraform's commands on a folder use.

Terraform by itself starts the provider two or three times for each command, and asks it for 5 MB of schemas, which
takes more of a processor than all else that a plan does. The provider has a mode for debugging in which it is started
once and Terraform is told where it is. It holds the configuration that Terraform last gave it, so a process is for one
account and region, and for one command at a time: each test has its own. Of its schemas Terraform gets those of the
resources that are named somewhere in this repository (few_resources.py).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import few_resources
from between_workers import locked

from mme import terraform
from mme.runner import guard

ROOT = Path(__file__).resolve().parents[1]

# The provider writes megabytes of traces in this mode.
_QUIET = dict.fromkeys(("TF_LOG", "TF_LOG_PROVIDER", "TF_LOG_SDK", "TF_LOG_SDK_PROTO"), "off")


_ONE_AT_A_TIME = threading.Lock()


def _installed() -> Path:
    """A folder with the provider, as an ordinary ``terraform init`` installs it. It lasts as long as this process."""
    with _ONE_AT_A_TIME:  # two threads would each make one, and the first one's goes with the second
        return Path(_install().name)


@functools.cache
def _install() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="provider-")
    root = {"terraform": {"required_providers": {"aws": {"source": "hashicorp/aws"}}}}
    (Path(folder.name) / "main.tf.json").write_text(json.dumps(root))
    with locked("terraform-init"):
        terraform.run(["init", "-input=false", "-no-color"], Path(folder.name))
    return folder


def _program() -> Path:
    (program,) = _installed().glob(".terraform/providers/*/hashicorp/aws/*/*/terraform-provider-aws_*")
    return program


@functools.cache
def _resources() -> list[str]:
    """What could be a resource or a data source in the module, its examples and the tests."""
    places = [ROOT.glob("*.tf"), *((ROOT / name).rglob("*") for name in ("modules", "examples", "tests"))]
    files = [file for file in itertools.chain(*places) if file.suffix in (".tf", ".hcl", ".py", ".json")]
    return sorted(
        {name for file in files for name in re.findall(r"\baws_[a-z0-9_]+", file.read_text(encoding="utf-8"))}
    )


@contextlib.contextmanager
def _few_resources(reattach: str) -> Iterator[str]:
    """Turns Terraform's directions to a provider into those to a smaller one, as long as the block lasts."""
    [(name, provider)] = json.loads(reattach).items()
    address = provider["Addr"]
    schemas = _installed() / "schemas"
    words = [sys.executable, "-I", few_resources.__file__, f"{address['Network']}:{address['String']}", str(schemas)]
    words += _resources()
    with subprocess.Popen(words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as between:
        assert between.stdin is not None
        assert between.stdout is not None
        try:
            socket = between.stdout.readline().strip()
            if not socket:
                raise RuntimeError("What leaves resources out did not start; see above.")
            yield json.dumps({name: {**provider, "Addr": {"Network": "unix", "String": socket}}})
        finally:
            between.stdin.close()


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
                if directions := re.search(r"TF_REATTACH_PROVIDERS='(.*)'", line):
                    with _few_resources(directions[1]) as few:
                        yield {**env, "TF_REATTACH_PROVIDERS": few}
                    break
            else:
                raise RuntimeError(f"The provider did not start: {said}")
        finally:
            provider.stdin.close()  # the guard ends the provider
