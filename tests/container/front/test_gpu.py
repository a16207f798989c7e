"""Admission by GPU memory. The GPUs here are made up: what they say is what NVIDIA's library would."""

from __future__ import annotations

import asyncio

import pytest
from front_parts import Machine

from mme.container import memory
from mme.container.config import MiB, read
from mme.container.errors import ServingError
from mme.container.front.admission import GPU_CONTEXT, Admission
from mme.container.front.counters import Totals
from mme.container.front.gpu import Gpu, Gpus
from mme.container.front.models import Model


class MadeUp(Gpus):
    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = list(gpus)

    def look(self) -> list[Gpu]:
        return self.gpus


def place(gpus: MadeUp | None, size: int, device: str = "auto") -> str | None:
    async def ask() -> str | None:
        admission = Admission(read({"MME_DEVICE": device}), Totals(), Machine(), gpus)
        return await admission.place(Model("m", "/m", "/m", 1, memory.Weights(size, 0, ())), wait=False)

    return asyncio.run(ask())


def test_a_model_goes_to_the_gpu_with_most_room() -> None:
    gpus = MadeUp(Gpu("GPU-a", 16 * 1024 * MiB, 4000 * MiB), Gpu("GPU-b", 16 * 1024 * MiB, 9000 * MiB))
    assert place(gpus, 1000 * MiB) == "GPU-b"


def test_a_model_that_fits_on_no_gpu_is_a_507() -> None:
    gpus = MadeUp(Gpu("GPU-a", 16 * 1024 * MiB, 4000 * MiB), Gpu("GPU-b", 16 * 1024 * MiB, 900 * MiB))
    assert place(gpus, (4000 * MiB - GPU_CONTEXT) * 10 // 13) == "GPU-a"
    with pytest.raises(ServingError, match="GPU memory") as raised:
        place(gpus, 4000 * MiB)
    assert raised.value.status == 507


def test_without_a_gpu_the_cpu_serves_unless_a_gpu_is_demanded() -> None:
    assert place(MadeUp(), 100 * MiB) is None
    assert place(None, 100 * MiB) is None
    with pytest.raises(ServingError, match="MME_DEVICE"):
        place(MadeUp(), 100 * MiB, device="cuda")


def test_the_real_library_is_asked_without_harm() -> None:
    for gpu in Gpus().look():
        assert 0 <= gpu.free <= gpu.total
    assert Gpus(visible="none-of-these").look() == []


class Nvml:
    """What pynvml answers, for two GPUs of which the second does not."""

    class NVMLError(Exception):
        pass

    class Memory:
        total, free = 16 * MiB, 9 * MiB

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, device: int) -> bytes | str:
        return b"GPU-bytes" if device == 2 else f"GPU-{device}"

    def nvmlDeviceGetMemoryInfo(self, device: int) -> object:
        if device == 1:
            raise self.NVMLError("fallen off the bus")
        return self.Memory()


def test_gpus_are_read_from_the_library_and_one_that_fails_leaves_the_others() -> None:
    assert Gpus(library=Nvml()).look() == [
        Gpu("GPU-0", 16 * MiB, 9 * MiB),
        Gpu("GPU-bytes", 16 * MiB, 9 * MiB),
    ]
    for visible in ("2", "GPU-bytes"):
        assert [gpu.name for gpu in Gpus(visible, library=Nvml()).look()] == ["GPU-bytes"]
