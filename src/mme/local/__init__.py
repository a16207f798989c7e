"""AWS on this machine: moto, and SageMaker's multi-model behaviour on top of it.

``LocalAws`` runs it as a child process; ``python -m mme.local`` runs it in a shell. Importing this package imports
neither moto nor boto3.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from mme.errors import MmeError, UsageError
from mme.local.settings import PAGE

__all__ = ["LocalAws"]


class LocalAws:
    """The local AWS, up from entering the ``with`` block until leaving it.

    ``container`` is ``ours``, ``stock`` or a command line; up to ``max_instances`` run for one variant. One minute of
    AWS's time (metrics, alarms, cool-downs, the waits of an update) lasts ``minute`` seconds. With ``echo``, its
    progress goes to this process's stderr. Raises UsageError when it cannot start: the port is taken, the folder is in
    use, a package is missing.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        container: str = "ours",
        *,
        region: str = "us-east-1",
        account: str = "123456789012",
        iam: bool = True,
        max_instances: int = 2,
        minute: float = 60.0,
        echo: bool = False,
    ) -> None:
        self._command = [
            *(sys.executable, "-m", "mme.local", "--exit-with-parent"),
            *("--data-dir", str(data_dir), "--port", str(port), "--container", container),
            *("--region", region, "--account", account),
            *([] if iam else ["--no-iam"]),
            *("--max-instances", str(max_instances), "--minute", str(minute)),
        ]
        self._echo = echo
        self._process: subprocess.Popen[str] | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=200)
        self._env: dict[str, str] = {}

    @property
    def env(self) -> dict[str, str]:
        """The environment variables with which an AWS client calls this AWS."""
        return dict(self._env)

    @property
    def url(self) -> str:
        """The endpoint URL, ``http://127.0.0.1:PORT``."""
        return self._env["AWS_ENDPOINT_URL"]

    @property
    def page(self) -> str:
        """The address of its page, for a browser."""
        return f"{self.url}{PAGE}"

    @property
    def pid(self) -> int | None:
        """The server's process, while it is up."""
        return self._process.pid if self._process else None

    @property
    def output(self) -> list[str]:
        """The last lines of its progress."""
        return list(self._tail)

    def __enter__(self) -> LocalAws:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and returns when it answers. Raises UsageError."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,  # held open: when it closes, the server knows that this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches us alone; we stop it in order
        )
        reader = threading.Thread(target=self._read, name="local-aws", daemon=True)
        reader.start()
        for line in self._process.stdout or ():
            for word in shlex.split(line.removeprefix("export ")):
                name, _, value = word.partition("=")
                self._env[name] = value
            if "AWS_DEFAULT_REGION" in self._env:
                return
        code = self._process.wait()
        reader.join(timeout=5)
        self._close_pipes()
        self._process = None
        words = "\n".join(self._tail).strip().removeprefix("error: ")
        if code == UsageError.exit_code:
            raise UsageError(words)
        raise MmeError(f"The local AWS did not start (exit code {code}).\n{words}")

    def _read(self) -> None:
        process = self._process
        for line in (process.stderr if process else None) or ():
            self._tail.append(line.rstrip("\n"))
            if self._echo:
                print(line, end="", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Stops it and returns when it and all its containers are gone. Harmless when it is not up."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._close_pipes()
        self._process = None

    def _close_pipes(self) -> None:
        for stream in (self._process.stdout, self._process.stderr) if self._process else ():
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def client_env(self) -> dict[str, str]:
        """This process's environment with these variables set, for starting other programs."""
        # Another thread may be changing the environment meanwhile, under which items() breaks.
        every = ((name, os.environ.get(name)) for name in list(os.environ))
        others = {name: value for name, value in every if value is not None and not name.startswith("AWS_")}
        return {**others, **self._env, "AWS_EC2_METADATA_DISABLED": "true"}
