"""The machine: its names and versions, and its ceilings, measured in the same run as everything they are compared with.

Matrices and buffers hold random numbers; zeros would run faster than anything real.
"""

import os
import platform
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch
from timing import seconds

PACKAGES = ("torch", "triton", "transformers", "fair-esm", "safetensors", "numpy")


def describe(device: str) -> dict[str, str]:
    """Names and versions."""
    found = {"device": torch.cuda.get_device_name() if device == "cuda" else _processor()}
    found["cores"] = str(len(os.sched_getaffinity(0)))
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def ceilings(device: str) -> dict[str, float]:
    """Best rates of this machine, FLOP/s and bytes/s.

    ``matmul`` is the median of short runs, ``matmul_sustained`` what is left of it after two seconds without a pause,
    when a GPU has reached its limit of power.
    """
    side, dtype = (8192, torch.float16) if device == "cuda" else (2048, torch.float32)
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(first)
    found = {"matmul": 2 * side**3 / seconds(lambda: torch.mm(first, second, out=product), 20)}
    repeats = max(1, int(2 * found["matmul"] / (2 * side**3)))

    def run() -> None:
        for _ in range(repeats):
            torch.mm(first, second, out=product)

    found["matmul_sustained"] = repeats * 2 * side**3 / seconds(run, 1, 0)
    source = torch.randint(0, 255, (2**31 if device == "cuda" else 2**28,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    return found


def memory_kib(pid: int) -> tuple[int, int]:
    """Resident memory of a process, and its anonymous part, KiB; zeros when it has ended."""
    with suppress(OSError):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        if "VmRSS" in status:
            return int(status["VmRSS"].split()[0]), int(status["RssAnon"].split()[0])
    return 0, 0


def page_cache(path: Path) -> float:
    """Reading a file that is in the page cache, one thread, bytes/s."""
    buffer = bytearray(2**24)
    for _ in range(2):
        began, total = time.perf_counter(), 0
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (time.perf_counter() - began)


def forget(path: Path) -> None:
    """Have the system drop a file from its page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
