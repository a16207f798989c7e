"""Builds the serving container's image with the builder that works here, and runs it as a process for the tests.

    python scripts/image.py build TAG [OPTIONS FOR THE BUILD …]    prints the builder, the time and the image's size
    python scripts/image.py test TAG [PYTEST'S ARGUMENTS …]        the seconds until it is ready, then the tests that
                                                                   are named, against the image
    python scripts/image.py run TAG FOLDER                         what the tests start: one container

The builder is the first of docker, podman and buildah that answers; IMAGE_BUILDER names one. A build gets what pip is
configured to here (indexes, folders of wheels, certificates) as a secret, so nothing of it is in the image.

``run`` becomes the container: it gets the signals and its exit code is the container's. The server is on the port that
SAGEMAKER_BIND_TO_PORT names, on this machine alone, and FOLDER has the same path inside and outside. buildah
can only kill what it starts, so its image is mounted and entered with chroot, which needs root.
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mme.runner import process
from mme.runner.errors import ContainerError

ROOT = Path(__file__).resolve().parents[1]
BUILDERS = ("docker", "podman", "buildah")

# What the platform hands to a container. The rest of this machine's environment stays outside.
_PASSED = ("SAGEMAKER_", "MME_", "MMS_", "TS_", "HF_", "OMP_", "AWS_REGION", "AWS_DEFAULT_REGION")
_PIP_OPTIONS = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert")
# Where a builder's own program finds its engine, settings and images.
_CLIENT = ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DBUS_SESSION_BUS_ADDRESS")
_CLIENT_PREFIXES = ("DOCKER_", "CONTAINER_", "CONTAINERS_", "BUILDAH_", "STORAGE_", "REGISTRY_")
_WORKING = "mme-image-test"  # the name of buildah's working container


class ImageError(Exception):
    """What cannot be done here, and why."""


def missing() -> dict[str, str]:
    """The reason against each builder, up to the first that works."""
    reasons: dict[str, str] = {}
    for name in BUILDERS:
        if (reason := _reason_against(name)) is None:
            break
        reasons[name] = reason
    return reasons


def builder() -> str:
    """The builder to use. Raises ImageError, with the reason against each, where none works."""
    wanted = os.environ.get("IMAGE_BUILDER")
    if wanted:
        if wanted not in BUILDERS:
            raise ImageError(f"IMAGE_BUILDER is {wanted!r}; it can be {', '.join(BUILDERS)}.")
        if reason := _reason_against(wanted):
            raise ImageError(f"IMAGE_BUILDER is {wanted}, which does not work here: {reason}.")
        return wanted
    reasons = missing()
    for name in BUILDERS:
        if name not in reasons:
            return name
    raise ImageError(
        "No builder of images works here: "
        + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        + ". Start docker, or install podman or buildah."
    )


def _reason_against(name: str) -> str | None:
    """Returns None if this builder works, else the reason."""
    if shutil.which(name) is None:
        return "not installed"
    if name == "buildah" and os.geteuid() != 0:
        return "an image can be started without an engine by root alone"
    # `docker info` fails where the client is installed and no engine runs.
    done = subprocess.run([name, "info"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"`{name} info` fails"])[-1]
    return None


def build(name: str, tag: str, options: Sequence[str]) -> None:
    """Builds the Dockerfile. ``options`` go to the builder as they are. Raises ImageError."""
    with tempfile.TemporaryDirectory(prefix="mme-image-") as scratch:
        words = build_command(name, tag, options, pip_configuration(), Path(scratch))
        if subprocess.run(words, cwd=ROOT, check=False).returncode != 0:
            raise ImageError(f"{name} could not build the image; its own words are above.")


def pip_configuration() -> dict[str, str]:
    """Where pip installs from on this machine: its options by name, as its files and environment say."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
    )
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in sections and option in _PIP_OPTIONS:
            sections[section][option] = str(ast.literal_eval(value))
    return sections["global"] | sections["install"] | sections[":env:"]


def build_command(
    name: str, tag: str, options: Sequence[str], configuration: Mapping[str, str], scratch: Path
) -> list[str]:
    """The words of the build. What it is to be given lies in ``scratch``, a folder."""
    words = [name, "build", "--tag", tag]
    if name != "docker":
        words += ["--format", "docker"]
    if name == "buildah" and "BUILDAH_ISOLATION" not in os.environ:
        words += ["--isolation", "chroot"]
    pip = dict(configuration)
    if "cert" in pip:
        words += ["--secret", f"id=pip.cert,src={pip['cert']}"]
        pip["cert"] = "/run/secrets/pip.cert"
    folders = local_folders(configuration)
    if name == "docker" and folders:
        print(f"docker cannot show a build the folders that pip installs from here: {', '.join(folders)}")
        for option in ("index-url", "extra-index-url", "find-links"):
            if remote := [word for word in pip.pop(option, "").split() if _local(word) is None]:
                pip[option] = " ".join(remote)
    elif folders:
        words += [word for folder in folders for word in ("--volume", f"{folder}:{folder}:ro")]
    if pip:
        parser = configparser.RawConfigParser()
        parser["global"] = pip
        file = scratch / "pip.conf"
        with file.open("w", encoding="utf-8") as out:
            parser.write(out)
        words += ["--secret", f"id=pip.conf,src={file}"]
    return [*words, *options, "."]


def local_folders(configuration: Mapping[str, str]) -> list[str]:
    """The folders of this machine that pip installs from. An index's files often lie beside the index's own folder."""
    folders = []
    for option in ("index-url", "extra-index-url", "find-links"):
        for word in configuration.get(option, "").split():
            if folder := _local(word):
                above = Path(folder).parent
                folders.append(Path(folder) if option == "find-links" or above == above.parent else above)
    return [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]


def _local(place: str) -> str | None:
    """The folder that a place names, None if it is not one of this machine."""
    if place.startswith("file:"):
        return unquote(urlsplit(place).path)
    return place if place.startswith("/") else None


def size(name: str, tag: str) -> str:
    """The image's size in the builder's words, such as 1.2 GB."""
    done = subprocess.run([name, "images", "--format", "{{.Size}}", tag], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[0]


def inspected(name: str, tag: str) -> dict[str, object]:
    """The image's configuration (User, Env, WorkingDir, Entrypoint, Cmd, Labels)."""
    words = [name, "inspect", "--type", "image", tag]
    images = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return dict(images["Docker"]["config"] if name == "buildah" else images[0]["Config"])


def run_command(name: str, tag: str, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """The words that become one container of the image."""
    given = {key: value for key, value in environment.items() if key.startswith(_PASSED)}
    given["MME_CONTAINER_HOST"] = "127.0.0.1"  # the network is this machine's
    if name != "buildah":
        words = [name, "run", "--rm", "--network", "host", "--volume", f"{folder}:{folder}"]
        return [*words, *(word for key, value in given.items() for word in ("--env", f"{key}={value}")), tag]
    config = inspected(name, tag)
    root = subprocess.run([name, "mount", _WORKING], capture_output=True, text=True, check=True).stdout.strip()
    user = str(config.get("User") or "root")
    inside = [*_environment(config, given), *_words(config, "Entrypoint"), *_words(config, "Cmd")]
    there = ["env", "--ignore-environment", f"--chdir={config.get('WorkingDir') or '/'}", *inside]
    mounts = [f"mount --rbind {place} {shlex.quote(root)}{place}" for place in ("/proc", "/sys", "/dev")]
    target = shlex.quote(f"{root}{folder}")
    mounts += [f"mkdir -p {target}", f"mount --bind {shlex.quote(str(folder))} {target}"]
    enter = shlex.join(["chroot", f"--userspec={user}", root, *there])
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*mounts, f"exec {enter}"])]


def _environment(config: Mapping[str, object], given: Mapping[str, str]) -> list[str]:
    own = config.get("Env")
    assert isinstance(own, list)
    return [*own, *(f"{key}={value}" for key, value in given.items())]


def _words(config: Mapping[str, object], name: str) -> list[str]:
    words = config.get(name)
    return [str(word) for word in words] if isinstance(words, list) else []


def test(name: str, tag: str, arguments: Sequence[str]) -> int:
    """Runs the tests in a folder that the image's user may write in; returns pytest's exit code."""
    folder = Path(tempfile.mkdtemp(prefix="mme-image-"))
    folder.chmod(0o755)
    if name == "buildah":
        subprocess.run([name, "rm", _WORKING], capture_output=True, check=False)  # of a run that was killed
        subprocess.run([name, "from", "--name", _WORKING, tag], stdout=subprocess.DEVNULL, check=True)
    command = shlex.join(test_command(name, tag, folder))
    words = [sys.executable, "-m", "pytest", f"--basetemp={folder / 'tests'}", *arguments]
    try:
        print(f"{tag}: ready {', '.join(f'{start_seconds(command, folder):.1f}' for _ in range(3))} s after its start")
        environ = {**os.environ, "MME_TEST_CONTAINER": command, "MME_TEST_IMAGE": tag}
        return subprocess.run(words, cwd=ROOT, env=environ, check=False).returncode
    finally:
        if name == "buildah":
            subprocess.run([name, "umount", _WORKING], stdout=subprocess.DEVNULL, check=False)
            subprocess.run([name, "rm", _WORKING], stdout=subprocess.DEVNULL, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_command(name: str, tag: str, folder: Path) -> list[str]:
    """What the tests start as the container: ``run``, with this builder and what its program needs to find the image.
    ``mme.runner`` hands a container little of this process's environment, and another home folder."""
    handed = {key: value for key, value in os.environ.items() if key in _CLIENT or key.startswith(_CLIENT_PREFIXES)}
    words = [f"{key}={value}" for key, value in {**handed, "IMAGE_BUILDER": name}.items()]
    return ["env", *words, sys.executable, str(Path(__file__).resolve()), "run", tag, str(folder)]


def start_seconds(command: str, folder: Path) -> float:
    """The seconds from a container's start until it can load models. Raises ImageError if it does not come up."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        began = time.perf_counter()
        container = process.Container(command, Path(work), {}, lambda line: None, grace_seconds=40, guarded=False)
        try:
            container.wait_healthy(180)
            return time.perf_counter() - began
        except ContainerError as problem:
            raise ImageError(f"The image does not start. {problem}") from problem
        finally:
            container.stop()


def main(words: list[str]) -> int:
    if len(words) < 2 or words[0] not in ("build", "test", "run") or (words[0] == "run" and len(words) != 3):
        print(f"usage: python {Path(__file__).name} build|test TAG [OPTIONS …] | run TAG FOLDER", file=sys.stderr)
        return 2
    task, tag, *options = words
    try:
        name = builder()
        if task == "run":
            command = run_command(name, tag, Path(options[0]), os.environ)
            os.execvp(command[0], command)  # noqa: S606 (signals reach the container itself)
        if task == "test":
            return test(name, tag, options)
        began = time.perf_counter()
        build(name, tag, options)
        print(f"{tag}: {size(name, tag)}, built with {name} in {time.perf_counter() - began:.0f} s")
        return 0
    except ImageError as problem:
        print(problem, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
