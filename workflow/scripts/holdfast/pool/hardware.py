"""The machine's devices: which are there, what they compute in, what a GPU says of itself; without torch."""

import ctypes
import importlib.util
import logging
import os
import re
import runpy
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ResourceError
from ..processes import beside
from .settings import PoolSettings

try:
    import pynvml  # type: ignore[import-untyped]
except ImportError:
    pynvml = None

DEVICE_FILES = Path("/dev")
CAPABILITIES = Path("/proc/driver/nvidia/capabilities")
"""Where the driver says which device file stands for a part of a GPU (NVIDIA Multi-Instance GPU User Guide)."""

log = logging.getLogger("holdfast.hardware")


class Candidate(NamedTuple):
    """A device that a pool could take.

    Attributes:
        name: As a worker takes it: ``cpu:N``, or ``cuda:N`` for the Nth that CUDA_VISIBLE_DEVICES shows.
        uuid: Of a GPU, or of a part of one (MIG), as NVML and ``nvidia-smi -L`` write it; empty for a CPU.
        title: The GPU's own name.
        node: The device file that stands for it; None for a CPU, and where none is known.
    """

    name: str
    uuid: str = ""
    title: str = ""
    node: Path | None = None

    def __str__(self) -> str:
        """Name, and what there is to tell it from others."""
        return f"{self.name} ({self.title}, {self.uuid})" if self.uuid else self.name


def find_devices(settings: PoolSettings) -> tuple[list[Candidate], str]:
    """The devices among which a pool chooses, and what they compute in; known before any model is loaded.

    Raises:
        ResourceError: a GPU was asked for and is not there, which is never made up for by a slow surprise.
    """
    found = [Candidate(f"cpu:{number}") for number in range(settings.cpu_workers)]
    if settings.device != "cpu":
        gpus = visible_gpus()
        wanted = settings.gpu or (0 if settings.device == "auto" else 1)
        if wanted > len(gpus):
            mask = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise ResourceError(
                f"{wanted} GPU(s) asked for, but torch sees {len(gpus)} CUDA device(s)"
                + ("" if mask is None else f" with CUDA_VISIBLE_DEVICES={mask}")
                + "; ask for fewer (a run by --resources gpu=N, a pool by hand by gpu: N in its settings), or for a "
                "CPU (device: cpu, and no gpu)"
            )
        if gpus:
            found = gpus
        else:
            log.warning("no CUDA device is visible and none was asked for: working on the CPU")
    precision = "fp16" if found[0].name.startswith("cuda") else "fp32"
    return found, precision if settings.precision == "auto" else settings.precision


def visible_gpus() -> list[Candidate]:
    """The CUDA devices that torch can use, in its order; the driver is asked in a process that ends at once."""
    with beside(1) as probe:
        bare = probe.submit(list_devices).result()
    return [_identify(f"cuda:{number}", identity) for number, identity in enumerate(bare)]


def list_devices() -> list[str]:
    """UUIDs, without prefix, of the CUDA devices that torch can use, so under CUDA_VISIBLE_DEVICES.

    To be called in a process of its own. The driver is asked, as torch asks it, without the seconds that torch's import
    takes. There are none where torch was built without CUDA, or for a newer major version of it than the driver knows
    (CUDA C++ Best Practices, 15.4).
    """
    built = torch_versions().get("cuda")
    if built is None:
        return []
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    version, count, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version)):
        return []
    if version.value // 1000 < int(built.partition(".")[0]):
        log.warning("the driver knows CUDA %d only, torch was built for %s", version.value // 1000, built)
        return []
    if driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):
        identity = ctypes.create_string_buffer(16)
        if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetUuid_v2(identity, device):
            raise ResourceError(f"CUDA counts {count.value} devices, but does not name number {number}; see nvidia-smi")
        found.append(str(uuid.UUID(bytes=identity.raw)))
    return found


def torch_versions() -> dict[str, str]:
    """Versions of ``torch``, without importing it, and of the ``cuda`` that it was built for; empty without torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return {}
    content = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    versions = {"torch": content.get("__version__"), "cuda": content.get("cuda")}
    return {name: str(version) for name, version in versions.items() if version is not None}


@contextmanager
def _nvml() -> Iterator[bool]:
    """Whether NVML answers; what it refuses within the block is left out."""
    if pynvml is None:
        yield False
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        yield False
        return
    yield True


def _identify(name: str, bare: str) -> Candidate:
    """A CUDA device, whole or a part (MIG), by the UUID that CUDA gives it without prefix."""
    with _nvml() as answers:
        for prefix in ("GPU-", "MIG-") if answers else ():
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(prefix + bare)
                return Candidate(name, prefix + bare, pynvml.nvmlDeviceGetName(handle), device_file(handle))
            except pynvml.NVMLError:
                continue
    return Candidate(name, f"GPU-{bare}", "a GPU that NVML does not know")


def host_gpus() -> list[Candidate]:
    """Every GPU of the host that NVML shows, or its parts where it is parted (MIG); named by their numbers."""
    found = []
    with _nvml() as answers:
        for number in range(pynvml.nvmlDeviceGetCount() if answers else 0):
            try:
                whole = pynvml.nvmlDeviceGetHandleByIndex(number)
                handles = {str(number): whole}
                handles = {f"{number}.{part}": handle for part, handle in enumerate(_parts(whole))} or handles
                for name, handle in handles.items():
                    identity, title = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
                    found.append(Candidate(name, identity, title, device_file(handle)))
            except pynvml.NVMLError:  # such as one that the driver has lost
                continue
    return found


def _parts(gpu: Any) -> list[Any]:
    """NVML's handles of the parts (MIG) of a GPU; none where it is whole."""
    parts: list[Any] = []
    try:
        if pynvml.nvmlDeviceGetMigMode(gpu)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return parts
    except pynvml.NVMLError:  # a GPU that knows no parts
        return parts
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            parts.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number))
        except pynvml.NVMLError:  # not made
            continue
    return parts


def device_file(handle: Any) -> Path | None:
    """The device file that stands for a GPU or for a part of one, by NVML's handle."""
    if not pynvml.nvmlDeviceIsMigDeviceHandle(handle):
        return DEVICE_FILES / f"nvidia{pynvml.nvmlDeviceGetMinorNumber(handle)}"
    whole = pynvml.nvmlDeviceGetMinorNumber(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle))
    instance = pynvml.nvmlDeviceGetGpuInstanceId(handle), pynvml.nvmlDeviceGetComputeInstanceId(handle)
    return part_file(whole, *instance)


def part_file(gpu: int, instance: int, compute: int) -> Path | None:
    """The device file of a part (MIG), by the numbers of GPU, GPU instance and compute instance; None if unknown."""
    try:
        stated = (CAPABILITIES / f"gpu{gpu}/mig/gi{instance}/ci{compute}/access").read_text()
    except OSError:
        return None
    minor = re.search(r"^DeviceFileMinor: (\d+)$", stated, re.MULTILINE)
    return DEVICE_FILES / f"nvidia-caps/nvidia-cap{minor[1]}" if minor else None


class Card(NamedTuple):
    """What others make of a GPU.

    Attributes:
        memory_bytes: In all.
        free_bytes: Of that, what nobody uses.
        mode: Its compute mode: ``DEFAULT``, ``EXCLUSIVE_PROCESS`` or ``PROHIBITED``.
        processes: Ids of those that compute on it, as far as the driver tells; of another container they mean nothing.
    """

    memory_bytes: int
    free_bytes: int
    mode: str
    processes: tuple[int, ...]


def read_card(identity: str) -> Card | None:
    """Ask NVML for memory, mode and users of a GPU, or of a part of one; None where it does not tell."""
    with _nvml() as answers:
        if not answers:
            return None
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(identity)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            part = pynvml.nvmlDeviceIsMigDeviceHandle(handle)
            whole = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if part else handle
            number = pynvml.nvmlDeviceGetComputeMode(whole)
        except pynvml.NVMLError:
            return None
    modes = {
        pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "EXCLUSIVE_PROCESS",
        pynvml.NVML_COMPUTEMODE_PROHIBITED: "PROHIBITED",
    }
    mode = modes.get(number, "DEFAULT")
    return Card(int(memory.total), int(memory.free), mode, tuple(process.pid for process in processes))


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
