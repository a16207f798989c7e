"""Admission by GPU memory. The GPUs here are made up: what they say is what NVIDIA's library would."""

from __future__ import annotations

import asyncio

import pytest
from front_parts import Machine, model, worker

from mme.container import memory
from mme.container.config import MiB, read
from mme.container.errors import ServingError
from mme.container.front.admission import Admission
from mme.container.front.cards import FIRST_ANSWER, GPU_CONTEXT, unseen
from mme.container.front.counters import Totals
from mme.container.front.gpu import Gpu, Gpus
from mme.container.front.models import Model


class MadeUp(Gpus):
    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = list(gpus)

    def look(self) -> list[Gpu]:
        return self.gpus


def place(gpus: MadeUp | None, size: int, device: str = "auto", grown: int = 0) -> str | None:
    async def ask() -> str | None:
        admission = Admission(read({"MME_DEVICE": device}), Totals(), Machine(), gpus)
        return await admission.place(Model("m", "/m", "/m", 1, memory.Weights(size, 0, (), grown=grown)), wait=False)

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


def test_a_file_of_16_bits_counts_as_what_it_is_computed_in() -> None:
    gpus = MadeUp(Gpu("GPU-a", 16 * 1024 * MiB, GPU_CONTEXT + 1500 * MiB))
    assert place(gpus, 1000 * MiB) == "GPU-a"
    with pytest.raises(ServingError, match="GPU memory"):
        place(gpus, 1000 * MiB, grown=1000 * MiB)


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
    for several in ("0,GPU-b", "GPU-"):  # the beginning of an identifier is enough
        assert len(Gpus(several, library=Nvml()).look()) == 2


GiB = 1024 * MiB
MODEL = GPU_CONTEXT + 120 * MiB  # what a model of 100 MiB is taken to need


class Card(Machine):
    """A machine with one GPU, on which each process takes ``each`` bytes."""

    def __init__(self, total: int, each: int = MODEL) -> None:
        super().__init__(total=1000 * GiB, available=1000 * GiB)
        self.card, self.each, self.taken_by_others = total, each, 0

    def look(self) -> list[Gpu]:
        used = self.each * sum(link.gpu == "GPU-a" for link in self.running) + self.taken_by_others
        return [Gpu("GPU-a", self.card, self.card - used)]

    def runs(self, of: Model, idle: bool = True) -> None:
        link = worker(of)
        link.gpu, link.answered = "GPU-a", True
        self.running.append(link)
        if idle:
            self.idle_models.append(of)


def admission_of(machine: Card) -> Admission:
    return Admission(read({}), Totals(), machine, machine, machine.host)  # type: ignore[arg-type]


def test_loads_that_come_together_are_not_promised_the_same_memory() -> None:
    async def ask() -> list[object]:
        machine = Card(total=2 * MODEL + MODEL // 2)
        admission = admission_of(machine)
        models = [model(str(number), number, mapped=100 * MiB) for number in range(4)]
        asked = [asyncio.ensure_future(admission.place(each, wait=False)) for each in models]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        placed = [each for each, task in zip(models, asked, strict=True) if task.done()]
        assert len(placed) == 2  # the others wait for what these really take
        for each in placed:
            machine.runs(each, idle=False)
            admission.keep(each)
        return await asyncio.gather(*asked, return_exceptions=True)

    results = asyncio.run(ask())
    assert results[:2] == ["GPU-a", "GPU-a"]
    assert [getattr(result, "status", None) for result in results[2:]] == [507, 507]


def test_the_longest_idle_is_parked_for_room_on_the_gpu() -> None:
    async def ask() -> Card:
        machine = Card(total=2 * MODEL)
        for number in range(2):
            machine.runs(model(f"idle{number}", number, mapped=100 * MiB))
        admission = admission_of(machine)
        assert await admission.place(model("new", 9, mapped=100 * MiB), wait=False) == "GPU-a"
        return machine

    assert asyncio.run(ask()).parked == [("idle0", "gpu memory")]


def test_room_is_left_for_the_first_answers_of_models_that_are_loaded() -> None:
    """A process has a third of what it will take once it is loaded, and the rest once it has answered."""

    async def ask() -> list[object]:
        machine = Card(total=3 * MODEL - 1, each=MODEL - FIRST_ANSWER)
        admission = admission_of(machine)
        results: list[object] = []
        for number in range(3):
            new = model(str(number), number, mapped=100 * MiB)
            results.append((await asyncio.gather(admission.place(new, wait=False), return_exceptions=True))[0])
            if results[-1] == "GPU-a":
                machine.runs(new, idle=False)
                machine.running[-1].answered = False
                admission.keep(new)
        for link in machine.running:
            link.answered = True  # and the card shows what they take
        machine.each = MODEL
        machine.card += 1
        results.append(await admission.place(model("last", 9, mapped=100 * MiB), wait=False))
        return results

    results = asyncio.run(ask())
    assert [getattr(each, "status", each) for each in results] == ["GPU-a", "GPU-a", 507, "GPU-a"]


def test_nothing_is_parked_for_a_model_that_no_gpu_can_hold() -> None:
    async def ask() -> None:
        machine = Card(total=2 * MODEL)
        machine.runs(model("idle", 1, mapped=100 * MiB))
        with pytest.raises(ServingError, match="GPU memory"):
            await admission_of(machine).place(model("huge", 9, mapped=100 * GiB), wait=False)
        assert machine.parked == []

    asyncio.run(ask())


def test_a_wake_waits_for_work_that_will_end() -> None:
    async def ask() -> str | None:
        machine = Card(total=MODEL)
        at_work = model("at work", 1, mapped=100 * MiB)
        machine.runs(at_work, idle=False)
        machine.running[0].sent[1] = object()  # type: ignore[assignment]
        admission = admission_of(machine)
        waking = asyncio.ensure_future(admission.place(model("waking", 2, mapped=100 * MiB), wait=True))
        await asyncio.sleep(0)
        assert not waking.done()
        machine.running[0].sent.clear()
        machine.idle_models.append(at_work)
        admission.freed()
        return await waking

    assert asyncio.run(ask()) == "GPU-a"


def test_a_gpu_that_runs_short_has_its_longest_idle_model_parked() -> None:
    async def ask() -> list[tuple[str, str]]:
        machine = Card(total=16 * GiB)
        for number in range(3):
            machine.runs(model(f"idle{number}", number, mapped=100 * MiB))
        admission = admission_of(machine)
        for _ in range(8):
            admission.guard()
        assert machine.parked == []
        machine.taken_by_others = 16 * GiB - 3 * MODEL - 50 * MiB
        for _ in range(8):
            admission.guard()
        return machine.parked

    assert asyncio.run(ask()) == [("idle0", "gpu memory")]


def test_a_gpu_that_cannot_be_used_is_spoken_of() -> None:
    class None_(Nvml):
        def nvmlDeviceGetCount(self) -> int:
            return 0

    assert unseen(Gpus(library=Nvml()), lambda: True) is None
    assert unseen(Gpus(library=None_()), lambda: False) is None
    assert "nvidia-ml-py" in (unseen(Gpus(library=None_()), lambda: True) or "")
    assert "'MIG-1'" in (unseen(Gpus("MIG-1", library=Nvml()), lambda: True) or "")
