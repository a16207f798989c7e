"""The GPUs of this machine and their memory, through NVIDIA's management library (nvidia-ml-py).

It never makes a CUDA context: the front needs none, and the parent must not have one when it forks.
Where there is no such library or no GPU, there are simply none.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """``name`` is what CUDA_VISIBLE_DEVICES takes. Sizes are bytes."""

    name: str
    total: int
    free: int


def _library() -> Any:
    """pynvml, ready for use. None where it, the driver or a GPU is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


class Gpus:
    """Looks the GPUs up anew at each call. ``visible`` is the value of CUDA_VISIBLE_DEVICES, where it is set."""

    def __init__(self, visible: str | None = None, library: Any = None) -> None:
        self.visible = None if visible is None else [part.strip() for part in visible.split(",") if part.strip()]
        self._library = library or _library()

    def look(self) -> list[Gpu]:
        library = self._library
        if library is None:
            return []
        gpus = []
        with contextlib.suppress(library.NVMLError):
            for index in range(library.nvmlDeviceGetCount()):
                with contextlib.suppress(library.NVMLError):  # one that does not answer leaves the others
                    device = library.nvmlDeviceGetHandleByIndex(index)
                    uuid = library.nvmlDeviceGetUUID(device)
                    uuid = uuid.decode() if isinstance(uuid, bytes) else uuid
                    if self._may_be_used(index, uuid):
                        memory = library.nvmlDeviceGetMemoryInfo(device)
                        gpus.append(Gpu(uuid, int(memory.total), int(memory.free)))
        return gpus

    def _may_be_used(self, index: int, uuid: str) -> bool:
        """As CUDA reads the variable: indexes, or identifiers, of which a beginning that no other has is enough."""
        if self.visible is None:
            return True
        return any(
            part == str(index) or (part.startswith("GPU-") and uuid.startswith(part)) or part == uuid
            for part in self.visible
        )
