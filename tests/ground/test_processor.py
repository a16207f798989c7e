"""The processor is named as the system names it, and by its architecture where the system does not."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from mme import processor

X86 = """processor\t: 0
cpu family\t: 25
model name\t: AMD EPYC 9R14
flags\t\t: fpu avx2 avx512_vnni

processor\t: 1
model name\t: another
"""
ARM = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("text", "name", "family", "flags"),
    [
        (X86, "AMD EPYC 9R14", "25", {"fpu", "avx2", "avx512_vnni"}),
        (ARM, "aarch64", None, set()),
        (None, "aarch64", None, set()),
    ],
)
def test_its_name_family_and_flags(
    text: str | None, name: str, family: str | None, flags: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, **_: object) -> str:
        assert str(path) == "/proc/cpuinfo"
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor.processor_name() == name
    assert processor.processor_family() == family
    assert processor.processor_flags() == flags
