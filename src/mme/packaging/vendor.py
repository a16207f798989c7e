"""requirements.txt beside a handler -> its libraries, unpacked, to travel in the archive's code/ folder.

A container in multi-model mode never installs a requirements.txt, and one without a network could not. So wheels
are chosen for the container's Python and platform, not for this machine's, and unpacked as they are: the result
depends on the wheels alone. Libraries that every image has (torch, transformers and what they need) are not packed.
Every library must be pinned, so that the same handler gives the same archive next month.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from mme.errors import HandlerError
from mme.folder import is_safe, is_stray

# What the images have, by name, with versions where it matters: the lowest and the highest that are in use.
IMAGE_VERSIONS: dict[str, tuple[str, ...]] = {"torch": ("2.6.0",), "transformers": ("4.49.0", "4.51.3", "5.5.3")}
IMAGE = frozenset(
    {
        *IMAGE_VERSIONS,
        "certifi",
        "charset-normalizer",
        "filelock",
        "fsspec",
        "huggingface-hub",
        "idna",
        "jinja2",
        "markupsafe",
        "mpmath",
        "networkx",
        "numpy",
        "packaging",
        "pyyaml",
        "regex",
        "requests",
        "safetensors",
        "setuptools",
        "sympy",
        "tokenizers",
        "tqdm",
        "typing-extensions",
        "urllib3",
    }
)

MAX_UNPACKED = 2 << 30  # bytes; a handler's libraries beyond that belong in an image


@dataclass(frozen=True)
class Vendored:
    """``folder`` holds the libraries; ``pins`` says which (NAME==VERSION, sorted); ``compiled`` whether some are
    machine code, which only the Python and platform that they are for can import."""

    folder: Path
    pins: tuple[str, ...]
    compiled: bool


def vendor(requirements: Path, into: Path, python: str, platform: str) -> Vendored:
    """Unpack the libraries that ``requirements`` names, and those that they need, into the new folder ``into``.

    ``python`` is like 3.12, ``platform`` like manylinux_2_28_x86_64. Raises HandlerError.
    """
    wanted = _read(requirements, python, platform)
    into.mkdir(parents=True)
    pins: dict[str, str] = {}
    unpinned: dict[str, str] = {}
    waiting = list(wanted.values())
    compiled = False
    with tempfile.TemporaryDirectory(prefix="mme-wheels-") as folder:
        while waiting:
            requirement = waiting.pop()
            if requirement.name in pins:
                if not requirement.allows(pins[requirement.name]):
                    raise HandlerError(
                        f"{requirements}: {requirement.origin} needs {requirement.name}{requirement.specifier}, "
                        f"and {requirement.name}=={pins[requirement.name]} is pinned.",
                        "Choose versions that go together.",
                    )
                continue
            if requirement.name in IMAGE:
                _check_image(requirements, requirement)
                continue
            pinned = wanted.get(requirement.name)
            wheel = _download(requirements, pinned or requirement, Path(folder), python, platform)
            version, needs = _metadata(wheel, requirement, python, platform)
            pins[requirement.name] = version
            if pinned is None:
                unpinned[requirement.name] = version
            elif not requirement.allows(version):
                waiting.append(requirement)  # reports versions that do not go together
            waiting += needs
            if not unpinned:
                compiled |= _unpack(requirements, wheel, into)
    if unpinned:
        lines = "\n".join(f"    {name}=={version}" for name, version in sorted(unpinned.items()))
        raise HandlerError(
            f"{requirements} does not pin everything that will be packed.",
            f"So that the archive is the same every time, add:\n{lines}",
        )
    return Vendored(into, tuple(f"{name}=={version}" for name, version in sorted(pins.items())), compiled)


@dataclass(frozen=True)
class _Requirement:
    """A library that is asked for: by whom, and in which versions."""

    name: str
    specifier: str
    extras: frozenset[str]
    origin: str

    def allows(self, version: str) -> bool:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(self.specifier).contains(version, prereleases=True)


def _read(path: Path, python: str, platform: str) -> dict[str, _Requirement]:
    """The lines of a requirements.txt, by name. Raises HandlerError for what cannot be packed reproducibly."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    wanted: dict[str, _Requirement] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HandlerError(f"{path} cannot be read: {error}.", "It must be a text file in UTF-8.") from None
    for number, line in enumerate(lines, 1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        where = f"{path}:{number}"
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            raise HandlerError(
                f"{where}: {text!r} is not NAME==VERSION.", "Options, files and links are not read."
            ) from None
        if requirement.marker and not requirement.marker.evaluate(_environment(python, platform)):
            continue
        name = canonicalize_name(requirement.name)
        if requirement.url or not re.fullmatch(r"==[^*,]+", str(requirement.specifier)):
            raise HandlerError(
                f"{where}: {text!r} does not say which version.",
                f"Pin it{_pin(name, requirement.specifier)}, so that it cannot change unseen.",
            )
        if name in IMAGE:
            raise HandlerError(
                f"{where}: the container has {name} already, and a second one beside it would clash.",
                "Remove the line.",
            )
        if name in wanted:
            raise HandlerError(f"{where}: {name} is there twice.", "Remove one of the lines.")
        wanted[name] = _Requirement(name, str(requirement.specifier), frozenset(requirement.extras), where)
    return wanted


def _pin(name: str, specifier: Any) -> str:
    """A version to pin: the one that is installed here, where it fits ``specifier``; else how to find one."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(name)
        if specifier.contains(version, prereleases=True):
            return f": {name}=={version}"
    return f" as {name}==VERSION (pip index versions {name} lists them)"


def _check_image(requirements: Path, requirement: _Requirement) -> None:
    versions = IMAGE_VERSIONS.get(requirement.name, ())
    if versions and not any(requirement.allows(version) for version in versions):
        raise HandlerError(
            f"{requirements}: {requirement.origin} needs {requirement.name}{requirement.specifier}, and the containers "
            f"have {requirement.name} {' or '.join(versions)}.",
            "Choose a version of it that goes with them.",
        )


def _download(requirements: Path, requirement: _Requirement, folder: Path, python: str, platform: str) -> Path:
    """The wheel of ``requirement`` for the container. pip finds it, with whatever index and proxy it is set up for."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", f"--dest={place}"]
        command += [f"--platform={tag}" for tag in platforms(platform)]
        command += [f"{requirement.name}{requirement.specifier}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise HandlerError(f"pip cannot be started: {error}.", "Install pip in this environment.") from None
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            raise HandlerError(
                f"{requirements}: there is no wheel of {requirement.name}{requirement.specifier} for Python {python} "
                f"on {platform} ({requirement.origin}): {(said or ['pip said nothing'])[0].removeprefix('ERROR: ')}",
                "Choose a version that has one, or set python and platform in the catalogue to what your image has.",
            )
        return wheels[0].rename(folder / wheels[0].name)


def platforms(platform: str) -> list[str]:
    """The tags of wheels that run on ``platform``: for manylinux_2_28_x86_64, all of glibc 2.28 and older."""
    match = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", platform)
    if not match:
        return [platform]
    newest, machine = int(match[1]), match[2]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    return tags + [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]


def _metadata(wheel: Path, requirement: _Requirement, python: str, platform: str) -> tuple[str, list[_Requirement]]:
    """The version of ``wheel``, and what it needs in the container."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            message = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
    except (zipfile.BadZipFile, StopIteration):
        raise HandlerError(f"{wheel.name} is not a wheel.", "Choose another version.") from None
    needs = []
    for text in message.get_all("Requires-Dist") or []:
        need = Requirement(text)
        extras = requirement.extras | {""}
        if need.marker and not any(need.marker.evaluate(_environment(python, platform, extra)) for extra in extras):
            continue
        needs.append(
            _Requirement(
                canonicalize_name(need.name),
                str(need.specifier),
                frozenset(need.extras),
                f"{requirement.name} (of {wheel.name})",
            )
        )
    return str(message["Version"]), needs


def _environment(python: str, platform: str, extra: str = "") -> dict[str, str]:
    machine = re.sub(r"^(manylinux_\d+_\d+|manylinux\d+|linux)_", "", platform)
    return {
        "extra": extra,
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def _unpack(requirements: Path, wheel: Path, into: Path) -> bool:
    """Put what a wheel installs into ``into``; True when some of it is machine code."""
    compiled = False
    total = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if not is_safe(member.filename):
                raise HandlerError(f"{wheel.name} holds {member.filename!r}, which leads out of it.", "Do not use it.")
            path = _place(member.filename)
            if path is None:
                continue
            total += member.file_size
            if total > MAX_UNPACKED:
                raise HandlerError(
                    f"{requirements}: the libraries have more than {MAX_UNPACKED >> 30} GiB.",
                    "Build an image with them.",
                )
            content = archive.read(member)
            target = into / path
            if target.exists() and target.read_bytes() != content:
                raise HandlerError(f"{requirements}: two libraries bring a file {path}.", "Leave one of them out.")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            compiled |= path.endswith(".so") or ".so." in path
    return compiled


def _place(name: str) -> str | None:
    """Where a wheel's file goes; None for what no handler imports (scripts, headers, what is stray)."""
    data = re.match(r"[^/]+\.data/(\w+)/(.*)", name)
    if data:
        return data[2] if data[1] in ("purelib", "platlib") else None
    return None if any(is_stray(part) for part in name.split("/")) else name


def runs_here(vendored: Vendored, python: str, platform: str) -> bool:
    """Whether this machine's Python can import what was vendored, and so verify the archive."""
    if not vendored.compiled:
        return True
    import platform as machine

    same_python = python == f"{sys.version_info.major}.{sys.version_info.minor}"
    return same_python and sys.platform == "linux" and platform.endswith(machine.machine())
