"""What a GPU's own sensors say, through NVML, which does not touch CUDA; nothing where there is no NVML."""

from typing import NamedTuple

try:
    import pynvml  # type: ignore[import-untyped]
except ImportError:
    pynvml = None


class Reading(NamedTuple):
    """Memory in use and in all (bytes), temperature (degrees Celsius) and use (0..1) of a GPU."""

    memory_used_bytes: int
    memory_bytes: int
    temperature_c: int
    use: float


def read(uuid: str) -> Reading | None:
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
