"""The main job on this machine, from nothing to predictions and back: what `make demo` runs.

Starts the local AWS, applies examples/minimal with Terraform, packages and uploads two models, calls each by its
target model, publishes a second version of one beside the first without a redeploy, destroys everything. Each step
prints the command that a user would type. Everything it writes is below .local/demo.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from mme import console, terraform
from mme.errors import MmeError
from mme.local.settings import PAGE

REPOSITORY = Path(__file__).resolve().parent.parent
INVOKE = [sys.executable, "-m", "invoke"]


@dataclass(frozen=True)
class Call:
    """One line of the closing table."""

    model: str
    target: str
    cold_ms: float
    warm_ms: float
    answer: str


class DemoFailed(Exception):
    """A step failed; the text says which and where its log is."""


class Demo:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "demo.log"
        self.kept = folder / "kept.pid"
        self.root = folder / "terraform" / "examples" / "minimal"
        # torch makes a folder for compiled code as soon as it is imported, by default in the system's temporary one.
        self.env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")}
        self.started = time.monotonic()
        self.server: subprocess.Popen[str] | None = None

    # Steps -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """A clean folder, with the module copied so that Terraform's own files stay in here too."""
        if self.kept.exists():
            pid = int(self.kept.read_text())
            if alive(pid):
                raise DemoFailed(
                    f"The local AWS of an earlier `make demo KEEP=1` is still up. Stop it first: kill {pid}"
                )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.root.parent.mkdir(parents=True)
        for source in REPOSITORY.glob("*.tf"):
            shutil.copy(source, self.folder / "terraform")
        shutil.copytree(
            REPOSITORY / "examples" / "minimal",
            self.root,
            ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"),
        )

    def start_local_aws(self) -> None:
        command = [sys.executable, "-m", "mme.local", "--port", "0", "--data-dir", str(self.folder / "aws")]
        with self.log.open("a") as log:
            # A session of its own, so that an interrupt of the demo does not reach it before the clean-up has run.
            self.server = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True, env=self.env
            )
        exports = dict(self._exports(self.server))
        if "AWS_ENDPOINT_URL" not in exports:
            raise DemoFailed("The local AWS did not start.")
        for name in [name for name in self.env if name.startswith("AWS_")]:
            del self.env[name]  # nothing of a real account may leak into the demo
        self.env.update(exports)

    @staticmethod
    def _exports(server: subprocess.Popen[str]) -> Iterator[tuple[str, str]]:
        assert server.stdout is not None
        seen = 0
        for line in server.stdout:
            if line.startswith("export "):
                seen += 1
                for word in line.removeprefix("export ").split():
                    name, _, value = word.partition("=")
                    yield name, value
            if seen == 3:
                return

    def terraform(self, *args: str) -> str:
        done = terraform.run([*args, "-no-color"], self.root, self.env)
        self._log(done.stdout)
        summary = [line for line in done.stdout.splitlines() if " complete! Resources: " in line]
        return summary[-1] if summary else ""

    def invoke(self, *args: str) -> None:
        done = subprocess.run(
            [*INVOKE, *args], cwd=REPOSITORY, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        self._log(done.stdout + done.stderr)
        if done.returncode != 0:
            raise DemoFailed(f"`invoke {' '.join(args)}` failed:\n{(done.stderr or done.stdout)[-3000:]}")

    def releases(self) -> dict[str, list[str]]:
        """The released target models of each model, oldest first."""
        listed = subprocess.run(
            [*INVOKE, "models", "--catalog", "demo/models.toml", "--terraform", str(self.root), "--json"],
            cwd=REPOSITORY,
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
        )
        return {
            model["name"]: [version["target"] for version in model["versions"]]
            for model in json.loads(listed.stdout)["models"]
        }

    @functools.cached_property
    def endpoint(self) -> Any:
        return terraform.outputs(self.root, self.env)["endpoint_name"]

    def call(self, model: str, target: str, body: dict[str, Any], show: Callable[[Any], str]) -> Call:
        """The target's first answer (download, load, predict) and its next ones, as any AWS client sees them."""
        client = boto3.client(
            "sagemaker-runtime",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            region_name=self.env["AWS_REGION"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            config=Config(read_timeout=70, retries={"total_max_attempts": 1}),
        )
        times = []
        for _ in range(6):
            began = time.perf_counter()
            response = client.invoke_endpoint(
                EndpointName=self.endpoint,
                TargetModel=target,
                ContentType="application/json",
                Accept="application/json",
                Body=json.dumps(body),
            )
            answer = json.loads(response["Body"].read())
            times.append((time.perf_counter() - began) * 1000)
        return Call(model, target, times[0], sorted(times[1:])[2], show(answer))

    def second_catalogue(self) -> Path:
        """The demo's catalogue with one setting changed: enough for BERT to become another version."""
        text = (REPOSITORY / "demo" / "models.toml").read_text()
        changed = text.replace('pooling = "mean"', 'pooling = "cls"')
        if changed == text:
            raise DemoFailed('demo/models.toml no longer says pooling = "mean".')
        changed = changed.replace('"folder:', f'"folder:{REPOSITORY / "demo"}/')
        path = self.folder / "models.toml"
        path.write_text(changed)
        return path

    def stop(self) -> None:
        if self.server and self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            try:
                self.server.wait(timeout=40)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()

    # What it prints --------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, title: str, command: str = "") -> Iterator[list[str]]:
        print(f"\n{title}")
        if command:
            print(f"  $ {command}")
        began = time.monotonic()
        notes: list[str] = []
        yield notes
        for note in notes:
            print(f"    {note}")
        print(f"    done in {time.monotonic() - began:.1f} s", flush=True)

    def _log(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(text)


def shown(path: Path) -> Path:
    """The path as a user in the repository would type it."""
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def table(calls: Sequence[Call]) -> str:
    rows = [(call.model, call.target, f"{call.cold_ms:.0f}", f"{call.warm_ms:.0f}", call.answer) for call in calls]
    return console.table(("model", "target", "cold ms", "warm ms", "what came back"), rows)


def show_embedding(answer: Any) -> str:
    vector = answer["embeddings"][0]
    return f"{len(vector)} numbers: {', '.join(f'{value:.3f}' for value in vector[:3])}, ..."


def show_text(answer: Any) -> str:
    text = " ".join(answer[0]["generated_text"].split())
    return f'"{text[:56]}{"..." if len(text) > 56 else ""}"'


BERT = {"inputs": "One endpoint, many models."}
GPT2 = {"inputs": "She was", "parameters": {"max_new_tokens": 24, "return_full_text": True}}


NEXT = """What to look at next:
  make demo KEEP=1                      stays up: a page to look at, and any AWS client can use it
  notebooks/multi_model_endpoint.ipynb  the same way as a notebook, with plots
  models.toml                           your own models, one table each: docs/packaging.md
  examples/minimal                      your own AWS account: five commands in README.md"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the local AWS up and what was applied in place")
    parser.add_argument(
        "--folder", type=Path, default=REPOSITORY / ".local" / "demo", help="a folder of its own for all it writes"
    )
    words = parser.parse_args()
    keep = words.keep

    demo = Demo(words.folder.resolve())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    finished = False
    try:
        run(demo, keep)
        finished = True
    except (DemoFailed, MmeError) as error:
        story = f"\nThe log is {shown(demo.log)}." if demo.log.exists() else ""
        print(f"\n{error}{story}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    finally:
        if not (keep and finished):
            demo.stop()
    return 0


def run(demo: Demo, keep: bool) -> None:
    demo.prepare()
    folder = shown(demo.folder)
    root = shown(demo.root)
    where = ["--terraform", str(demo.root)]
    out = ["--out", str(demo.folder / "dist")]

    with demo.step("Start AWS on this machine", f"invoke local --data-dir {folder}/aws") as notes:
        demo.start_local_aws()
        notes.append(f"AWS_ENDPOINT_URL={demo.env['AWS_ENDPOINT_URL']}")
    with demo.step("Create the endpoint", f"cd {root} && terraform init && terraform apply") as notes:
        demo.terraform("init", "-input=false")
        notes.append(demo.terraform("apply", "-auto-approve", "-input=false"))
    with demo.step(
        "Package both models and upload them", f"invoke package upload --catalog demo/models.toml --terraform {root}"
    ) as notes:
        demo.invoke(
            "package", "--catalog", "demo/models.toml", *out, "upload", "--catalog", "demo/models.toml", *out, *where
        )
        released = demo.releases()
        notes.extend(versions[-1] for versions in released.values())
    bert, gpt2 = released["bert"][-1], released["gpt2"][-1]
    with demo.step(
        "Predict, each by its TargetModel", 'boto3.client("sagemaker-runtime").invoke_endpoint(...)'
    ) as notes:
        calls = [demo.call("bert", bert, BERT, show_embedding), demo.call("gpt2", gpt2, GPT2, show_text)]
        notes.extend(f"{call.model}: {call.answer}" for call in calls)

    catalogue = demo.second_catalogue()
    with demo.step(
        'Publish a second version of bert (pooling = "cls") beside the first; nothing is redeployed',
        f"invoke package --model bert upload --model bert --catalog {shown(catalogue)} ...",
    ) as notes:
        chosen = ["--model", "bert", "--catalog", str(catalogue)]
        demo.invoke("package", *chosen, *out, "upload", *chosen, *out, *where)
        second = [target for target in demo.releases()["bert"] if target != bert]
        notes.extend(second)
    with demo.step("Predict with both versions") as notes:
        calls.append(demo.call("bert", second[0], BERT, show_embedding))
        first = demo.call("bert", bert, BERT, show_embedding)
        notes.extend(f"{call.target}: {call.answer}" for call in (first, calls[-1]))

    if not keep:
        with demo.step("Remove everything", f"cd {root} && terraform destroy") as notes:
            notes.append(demo.terraform("destroy", "-auto-approve", "-input=false"))

    print(f"\n{table(calls)}\n\nAll steps took {time.monotonic() - demo.started:.0f} s.")
    if not keep:
        print(f"\n{NEXT}")
    else:
        assert demo.server is not None
        env = demo.env
        demo.kept.write_text(f"{demo.server.pid}\n")
        print(
            "\nThe local AWS stays up. In any other shell, the AWS CLI, boto3 and Terraform use it with:\n\n"
            f"export AWS_ENDPOINT_URL={env['AWS_ENDPOINT_URL']}\n"
            f"export AWS_ACCESS_KEY_ID={env['AWS_ACCESS_KEY_ID']} "
            f"AWS_SECRET_ACCESS_KEY={env['AWS_SECRET_ACCESS_KEY']}\n"
            f"export AWS_REGION={env['AWS_REGION']} AWS_DEFAULT_REGION={env['AWS_REGION']}\n\n"
            f"What to look at next:\n"
            f"  {env['AWS_ENDPOINT_URL']}{PAGE}  a page for the browser: models, requests, memory, a box to try them\n"
            "\n"
            f"  source .venv/bin/activate && export MME_TERRAFORM={root}\n"
            "  invoke status\n"
            "  invoke predict --model bert --text hello\n\n"
            'Your own model: write its table into models.toml (README.md, "Your own models"), then\n'
            "  invoke package upload --model NAME && invoke predict --model NAME --text hello\n\n"
            f"Stop it with: kill {demo.server.pid}"
        )


if __name__ == "__main__":
    sys.exit(main())
