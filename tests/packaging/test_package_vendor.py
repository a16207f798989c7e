"""A handler's libraries: chosen for the container, pinned, unpacked as they are, and nothing that the image has."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import tiny_models

from mme.catalog.spec import ModelSpec, Source
from mme.errors import ArchiveError, HandlerError
from mme.packaging import records, vendor
from mme.packaging.job import PackagingJob

PLATFORM = "manylinux_2_28_x86_64"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of the test's own: pip looks nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def wheel(
    wheels: Path, name: str, version: str = "1.0", needs: tuple[str, ...] = (), tag: str = "py3-none-any", **files: str
) -> None:
    with zipfile.ZipFile(wheels / f"{name}-{version}-{tag}.whl", "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", "\n".join(lines + [f"Requires-Dist: {n}" for n in needs])
        )
        archive.writestr(
            f"{name}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
        )
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "")
        for path, content in ({f"{name}/__init__.py": f"VERSION = {version!r}\n"} | files).items():
            archive.writestr(path, content)


def vendored(tmp_path: Path, requirements: str, python: str = "3.12") -> vendor.Vendored:
    path = tmp_path / "requirements.txt"
    path.write_text(requirements)
    return vendor.vendor(path, tmp_path / "out", python, PLATFORM)


def test_libraries_and_what_they_need(wheels: Path, tmp_path: Path) -> None:
    wheel(wheels, "alpha", needs=("beta>=1", 'gamma; extra == "more"', 'delta; python_version < "3.9"', "torch>=2"))
    wheel(wheels, "beta", "2.0", **{"beta-2.0.data/scripts/run": "#!python\n", "beta/__pycache__/x.pyc": ""})
    made = vendored(tmp_path, "alpha==1.0  # why\n\nbeta==2.0\n")
    assert made.pins == ("alpha==1.0", "beta==2.0")
    assert not made.compiled
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "alpha", "alpha-1.0.dist-info", "beta", "beta-2.0.dist-info",
    ]  # fmt: skip
    assert [path.name for path in (made.folder / "beta").iterdir()] == ["__init__.py"]


def test_extras_bring_their_own(wheels: Path, tmp_path: Path) -> None:
    wheel(wheels, "alpha", needs=('gamma==3.0; extra == "more"',))
    wheel(wheels, "gamma", "3.0")
    assert vendored(tmp_path, "alpha[more]==1.0\ngamma==3.0\n").pins == ("alpha==1.0", "gamma==3.0")


def test_all_must_be_pinned_and_the_lines_to_add_are_given(wheels: Path, tmp_path: Path) -> None:
    wheel(wheels, "alpha", needs=("beta>=1", "gamma"))
    wheel(wheels, "beta", "1.0")
    wheel(wheels, "beta", "2.0")
    wheel(wheels, "gamma", "0.5")
    with pytest.raises(HandlerError, match="does not pin everything") as caught:
        vendored(tmp_path, "alpha==1.0\n")
    assert (caught.value.hint or "").splitlines()[1:] == ["    beta==2.0", "    gamma==0.5"]


def test_wheels_for_the_container_not_for_this_machine(wheels: Path, tmp_path: Path) -> None:
    for python, content in (("cp311", "eleven"), ("cp312", "twelve")):
        tag = f"{python}-{python}-manylinux_2_17_x86_64.manylinux2014_x86_64"
        wheel(wheels, "fast", tag=tag, **{"fast/_core.so": content})
    wheel(wheels, "fast", "1.1", tag="cp312-cp312-manylinux_2_39_x86_64")
    wheel(wheels, "fast", "1.2", tag="cp312-cp312-macosx_14_0_arm64")
    made = vendored(tmp_path, "fast==1.0\n")
    assert (made.folder / "fast/_core.so").read_text() == "twelve"
    assert made.compiled
    for version in ("1.1", "1.2"):
        with pytest.raises(HandlerError, match=f"no wheel of fast=={version} for Python 3.12 on {PLATFORM}"):
            vendor.vendor(Path(_write(tmp_path, f"fast=={version}")), tmp_path / version, "3.12", PLATFORM)


def _write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "requirements.txt").write_text(text)
    return tmp_path / "requirements.txt"


WRONG = {
    "not pinned": ("alpha>=1\n", r":1: .*does not say which version"),
    "a wildcard": ("alpha==1.*\n", r":1: .*does not say which version"),
    "a link": ("\nalpha @ https://example.org/alpha-1.0-py3-none-any.whl\n", r":2: .*does not say which version"),
    "an option": ("--index-url https://example.org\nalpha==1.0\n", r":1: .*is not NAME==VERSION"),
    "another file": ("-r other.txt\n", r":1: .*is not NAME==VERSION"),
    "twice": ("alpha==1.0\nAlpha==1.0\n", r":2: alpha is there twice"),
    "what the image has": ("alpha==1.0\ntorch==2.7.0\n", r":2: the container has torch already"),
    "what there is not": ("nothing-here==1.0\n", r"no wheel of nothing-here==1\.0 for Python 3\.12"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG.keys())
def test_lines_that_cannot_be_packed(wheels: Path, tmp_path: Path, text: str, message: str) -> None:
    wheel(wheels, "alpha")
    with pytest.raises(HandlerError, match=message):
        vendored(tmp_path, text)


def test_clashes_with_the_image_and_among_themselves(wheels: Path, tmp_path: Path) -> None:
    wheel(wheels, "alpha", needs=("torch>=2.9",))
    wheel(wheels, "beta", needs=("gamma<2",))
    wheel(wheels, "gamma", "2.0")
    wheel(wheels, "delta", **{"gamma/__init__.py": "another\n"})
    with pytest.raises(HandlerError, match=r"alpha .* needs torch>=2\.9, and the containers have torch 2\.6\.0"):
        vendor.vendor(_write(tmp_path, "alpha==1.0"), tmp_path / "a", "3.12", PLATFORM)
    with pytest.raises(HandlerError, match=r"beta .* needs gamma<2, and gamma==2\.0 is pinned"):
        vendor.vendor(_write(tmp_path, "beta==1.0\ngamma==2.0"), tmp_path / "b", "3.12", PLATFORM)
    with pytest.raises(HandlerError, match=r"two libraries bring a file gamma/__init__\.py"):
        vendor.vendor(_write(tmp_path, "delta==1.0\ngamma==2.0"), tmp_path / "c", "3.12", PLATFORM)


def test_a_wheel_that_leads_out_of_its_folder(wheels: Path, tmp_path: Path) -> None:
    wheel(wheels, "evil", **{"../../owned": "x"})
    with pytest.raises(HandlerError, match="leads out"):
        vendored(tmp_path, "evil==1.0\n")
    assert not (tmp_path / "owned").exists()


def test_into_the_archive(wheels: Path, tmp_path: Path) -> None:
    wheel(wheels, "alpha")
    code = tiny_models.HANDLER.replace("import json\n", "import json\n\nimport alpha\n", 1)
    handler = tiny_models.handler(tmp_path / "handler", code)
    (handler / "requirements.txt").write_text("alpha==1.0\n")
    source = Source("folder", "model", tiny_models.bert(tmp_path / "model"))
    spec = ModelSpec("bert", source, handler=handler, task="feature-extraction")
    made = PackagingJob(spec, tmp_path / "dist").package().archive
    paths = {file.path for file in made.files}
    assert {"code/alpha/__init__.py", "code/inference.py"} <= paths
    assert "code/requirements.txt" not in paths
    assert made.manifest["requirements"] == ["alpha==1.0"]
    assert PackagingJob(spec, tmp_path / "dist").check().same_bytes
    (handler / "alpha").mkdir()
    (handler / "alpha" / "__init__.py").write_text("mine")
    with pytest.raises(ArchiveError, match="both with the handler and with a library"):
        PackagingJob(spec, tmp_path / "dist").package()
    assert records.built(tmp_path / "dist", "bert") == made


def test_platforms() -> None:
    tags = vendor.platforms("manylinux_2_28_aarch64")
    assert tags[0] == "manylinux_2_28_aarch64"
    assert "manylinux2014_aarch64" in tags
    assert "manylinux_2_29_aarch64" not in tags
    assert vendor.platforms("any") == ["any"]
