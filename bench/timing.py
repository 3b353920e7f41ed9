"""Seconds of a piece of work, with the device's own work waited for."""

import statistics
import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], repeats: int = 5, warm_ups: int = 2) -> float:
    """Median wall time of ``work`` after ``warm_ups`` calls, s."""
    times = []
    for number in range(warm_ups + repeats):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number >= warm_ups:
            times.append(time.perf_counter() - began)
    return statistics.median(times)
