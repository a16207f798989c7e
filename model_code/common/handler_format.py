"""Chooses the number format in which a model computes on this processor.

bfloat16 and float16 need instructions that many processors lack, and without them they take several times what float32
takes. The processor's name does not say it as reliably as a trial: a product of the size that encoders have, in both
formats, takes some milliseconds. A format that is slower than float32 is not computed in; the weights are made float32
as they are loaded.

`MME_FORMAT=asked` in the environment computes in whatever the settings ask for.
"""

import functools
import os
import time
from typing import Any

import torch
from handler_common import DTYPES, check_choice

SLOWER = 1.05  # up to so many times float32's time the format that was asked for is used
ROWS, WIDTH = 16, 768  # of the product that is tried: a short text in a model of BERT's size
TRIALS = 5
# What the setting `accuracy` stands for. "exact": float32. "close": what is nearest to it and faster, bfloat16, where
# this processor is fast in it. "small": int8 on the CPU, bfloat16 on a GPU.
ACCURACIES = ("exact", "close", "small")


def chosen(own: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The model's own settings with what their `accuracy` stands for, if they have one. Raises ValueError for one that
    is unknown or stands beside what it chooses."""
    accuracy = own.get("accuracy")
    if accuracy is None:
        return own
    where = "code/settings.json: "
    check_choice(where + "accuracy", accuracy, ACCURACIES)
    for name in ("dtype", "quantize"):
        if own.get(name) is not None:
            raise ValueError(f"{where}accuracy chooses {name}. Leave one of the two out.")
    if accuracy == "exact":
        return {**own, "dtype": "float32"}
    if accuracy == "small" and device.type == "cpu":
        return {**own, "quantize": "int8"}
    return {**own, "dtype": "bfloat16"}


def computing(wanted: str, device: torch.device) -> tuple[str, str]:
    """The format (a name out of DTYPES) to compute in where the settings say `wanted`, and why, where that is another
    one."""
    if wanted == "float32" or device.type != "cpu" or os.environ.get("MME_FORMAT", "").strip().lower() == "asked":
        return wanted, ""
    times = slowness(wanted)
    if times <= SLOWER:
        return wanted, ""
    return "float32", f"{wanted} takes {times:.1f} times as long as float32 on this processor"


@functools.cache
def slowness(dtype: str) -> float:
    """How many times as long as in float32 a product takes in this format: the best of several tries of each, in turns,
    in processor time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # whose time is the thread's own
    try:
        tried = {
            name: (torch.ones(ROWS, WIDTH, dtype=DTYPES[name]), torch.ones(WIDTH, WIDTH, dtype=DTYPES[name]))
            for name in ("float32", dtype)
        }
        best = dict.fromkeys(tried, float("inf"))
        with torch.inference_mode():
            for _ in range(1 + TRIALS):  # the first of each also makes what further ones find made
                for name, (values, weights) in tried.items():
                    began = time.thread_time()
                    torch.nn.functional.linear(values, weights)
                    best[name] = min(best[name], time.thread_time() - began)
        return best[dtype] / best["float32"]
    except RuntimeError:  # there is no such product in this format
        return float("inf")
    finally:
        torch.set_num_threads(threads)
