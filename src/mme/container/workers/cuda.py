"""CUDA in a model's process: which errors mean that the GPU's memory is full, which leave CUDA unusable in the process,
how to give back memory that torch holds, and how the parent keeps from beginning CUDA before it forks. CUDA need not be
installed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import Any

from mme.container import system

_OPENED_BY_CUDA = "/dev/nvidia-uvm"  # once CUDA begins; with some drivers when the GPUs are counted, too
_PROBE_SECONDS = 20.0

# What CUDA's libraries say where the device's memory is full, beside "out of memory".
_ALLOCATION = ("cublas_status_alloc_failed", "cudnn_status_alloc_failed", "cusparse_status_alloc_failed")
_HANDLES = ("cublascreate", "cublasltcreate", "cudnncreate")  # "not initialized" there means the same


def out_of_memory(error: BaseException, text: str) -> bool:
    """Whether the error, which says ``text``, is one of memory: the device's or the machine's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = text.lower()
    if "out of memory" in text or any(word in text for word in _ALLOCATION):
        return True
    return "status_not_initialized" in text and any(word in text for word in _HANDLES)


def ruins(error: BaseException, text: str) -> bool:
    """Whether the error leaves CUDA unusable in this process, so that every later call fails with the same: a failed
    assertion in a kernel (a token that the model does not have), an access to memory that is not there."""
    raised = isinstance(error, RuntimeError) and not out_of_memory(error, text)
    return raised and (type(error).__name__ == "AcceleratorError" or text.startswith("CUDA error: "))


def begun() -> bool:
    """Whether this process has begun to use CUDA, so that what is forked from it cannot use a GPU."""
    return system.has_open(_OPENED_BY_CUDA) and not _usable_by_a_fork()


def _usable_by_a_fork() -> bool:
    """Fork a process that begins CUDA. It has as little in common with the libraries here as can be."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(int(not _begins()))
        finally:
            os._exit(1)
    ends = time.monotonic() + _PROBE_SECONDS
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > ends:
            os.kill(pid, signal.SIGKILL)
            done = os.waitpid(pid, 0)
            break
        time.sleep(0.01)
    return done[1] == 0


def _begins() -> bool:
    """Make a context by the driver's own library: https://docs.nvidia.com/cuda/cuda-driver-api"""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    return not (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    )


def answer_without_cuda(torch: Any) -> None:
    """Let torch answer whether the current stream is being captured, which transformers 5 asks in each
    pass, without beginning CUDA: where CUDA has not begun, nothing is captured."""
    graphs: Any = getattr(torch.cuda, "graphs", None)
    original = getattr(graphs, "_cuda_isCurrentStreamCapturing", None)
    if original is not None:
        graphs._cuda_isCurrentStreamCapturing = lambda: torch.cuda.is_initialized() and original()


def give_back() -> None:
    """Let go of what torch holds of the GPU's memory for later passes: other models' processes may need it now."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
