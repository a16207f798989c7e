"""The GPUs of this machine and their memory, through NVIDIA's management library.

It never makes a CUDA context: the front has no business with one, and the parent must not have one when it forks.
Where there is no such library or no GPU, there are simply none.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """``name`` is what CUDA_VISIBLE_DEVICES takes. Sizes are bytes."""

    name: str
    total: int
    free: int


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Gpus:
    """Looks the GPUs up anew at each call. ``visible`` is the value of CUDA_VISIBLE_DEVICES, where it is set."""

    def __init__(self, visible: str | None = None) -> None:
        self._visible = None if visible is None else [part.strip() for part in visible.split(",") if part.strip()]
        self._library: ctypes.CDLL | None = None
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
            if library.nvmlInit_v2() == 0:
                self._library = library
        except (OSError, AttributeError):
            pass

    def look(self) -> list[Gpu]:
        library = self._library
        count = ctypes.c_uint()
        if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        found = []
        for index in range(count.value):
            device = ctypes.c_void_p()
            memory = _Memory()
            name = ctypes.create_string_buffer(96)
            if (
                library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0
                and library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0
                and library.nvmlDeviceGetUUID(device, name, len(name)) == 0
            ):
                uuid = name.value.decode()
                if self._visible is None or str(index) in self._visible or uuid in self._visible:
                    found.append(Gpu(uuid, memory.total, memory.free))
        return found
