"""The machine's devices: which are there, what they compute in, and what a GPU's own sensors say. Without torch."""

import ctypes
import importlib.util
import logging
import multiprocessing
import os
import runpy
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..errors import ResourceError
from .settings import PoolSettings
from .worker import guard

try:
    import pynvml  # type: ignore[import-untyped]
except ImportError:
    pynvml = None

log = logging.getLogger("holdfast.hardware")


def name_devices(settings: PoolSettings) -> tuple[list[str], str]:
    """The devices that a pool uses, by name, and what they compute in; known before any model is loaded.

    Raises:
        ResourceError: a GPU was asked for and is not there, which is never made up for by a slow surprise.
    """
    names = [f"cpu:{number}" for number in range(settings.cpu_workers)]
    if settings.device != "cpu":
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=guard) as probe:
            visible = probe.submit(count_devices).result()
        wanted = settings.gpu or (visible if visible or settings.device == "auto" else 1)
        if wanted > visible:
            mask = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise ResourceError(
                f"{wanted} GPU(s) asked for, but torch sees {visible} CUDA device(s)"
                + ("" if mask is None else f" with CUDA_VISIBLE_DEVICES={mask}")
                + "; ask for fewer (a run by --resources gpu=N, a pool by hand by gpu: N in its settings), or for a "
                "CPU (device: cpu, and no gpu)"
            )
        if visible:
            names = [f"cuda:{number}" for number in range(wanted)]
        else:
            log.warning("no CUDA device is visible and none was asked for: working on the CPU")
    half = names[0].startswith("cuda")
    return names, {"auto": "fp16" if half else "fp32"}.get(settings.precision, settings.precision)


def count_devices() -> int:
    """CUDA devices that torch can use, so under CUDA_VISIBLE_DEVICES; to be called in a process of its own.

    The driver is asked, as torch asks it, without the seconds that torch's import takes. There are none where torch was
    built without CUDA, or for a newer major version of it than the driver knows (CUDA C++ Best Practices, 15.4).
    """
    built = torch_versions().get("cuda")
    if built is None:
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version)):
        return 0
    if version.value // 1000 < int(built.partition(".")[0]):
        log.warning("the driver knows CUDA %d only, torch was built for %s", version.value // 1000, built)
        return 0
    return 0 if driver.cuDeviceGetCount(ctypes.byref(count)) else count.value


def torch_versions() -> dict[str, str]:
    """Versions of ``torch``, without importing it, and of the ``cuda`` that it was built for; empty without torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return {}
    content = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    versions = {"torch": content.get("__version__"), "cuda": content.get("cuda")}
    return {name: str(version) for name, version in versions.items() if version is not None}


class Reading(NamedTuple):
    """Memory in use and in all (bytes), temperature (degrees Celsius) and use (0..1) of a GPU."""

    memory_used_bytes: int
    memory_bytes: int
    temperature_c: int
    use: float


def read_sensors(uuid: str) -> Reading | None:
    """Read the sensors of a GPU.

    Args:
        uuid: As NVML and ``nvidia-smi -L`` write it, such as ``GPU-5d5ba0d6-...``; empty for a device that is none.

    Returns:
        None where no sensors can be read.
    """
    if pynvml is None or not uuid:
        return None
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        temperature = pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)
        use = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
    except pynvml.NVMLError:  # no driver, or a part of a GPU (MIG), which has no use of its own
        return None
    return Reading(int(memory.used), int(memory.total), int(temperature), use)
