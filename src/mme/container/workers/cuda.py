"""CUDA in a model's process: which errors mean that the GPU's memory is full, which leave CUDA unusable in the process,
how to give back memory that torch holds, and how the parent keeps from beginning CUDA before it forks. CUDA need not be
installed."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from mme.container import system

_OPENED_BY_CUDA = "/dev/nvidia-uvm"  # CUDA opens it when it begins; asking NVIDIA's management library does not

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
    """Whether this process has begun to use CUDA. What is forked from it afterwards cannot use a GPU."""
    return system.has_open(_OPENED_BY_CUDA)


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
