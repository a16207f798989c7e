"""Which containers can be run here, and the command that starts each."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mme.runner.errors import ContainerError


def command_for(container: str | Sequence[str], port: int, work_dir: Path) -> tuple[list[str], dict[str, str]]:
    """The command and the extra environment of a container.

    ``container`` is ``ours`` (mme.container), ``stock`` (multi-model-server with the Hugging Face toolkit), or a
    command line of the caller's own, in one string or in words, which finds its port in SAGEMAKER_BIND_TO_PORT.
    Raises ContainerError.
    """
    if container == "ours":
        return [sys.executable, "-m", "mme.container", "serve"], {"MME_CONTAINER_HOST": "127.0.0.1"}
    if container == "stock":
        from mme.runner import stock

        return stock.command(port, work_dir)
    words = shlex.split(container) if isinstance(container, str) else list(container)
    if not words:
        raise ContainerError("The container command is empty.")
    return words, {}


def check(container: str) -> None:
    """Raises ContainerError when a container of this kind cannot run here, before any endpoint needs one."""
    if container == "ours":
        if importlib.util.find_spec("torch") is None:
            raise ContainerError("The container needs torch. Install it with `pip install 'mme[container]'`.")
    elif container == "stock":
        from mme.runner import stock

        stock.venv_python()
        stock.find_java()
    else:
        try:
            words = shlex.split(container)
        except ValueError as problem:
            raise ContainerError(f"The container command {container!r} cannot be read: {problem}.") from None
        if not words or shutil.which(words[0]) is None:
            raise ContainerError(
                f"The container is neither ours nor stock, and there is no program {words[0] if words else ''!r}."
            )
