"""The worker: one process that holds every model on one device and embeds the batches it is sent.

The supervisor starts it by spawn and calls these functions through a process pool of one. Nothing here imports torch
before :func:`start` has set what torch reads when it is imported, so the supervisor can import this module without
torch.
"""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ResourceError
from ..models.registry import Output, Prepared, largest_published, open_model, read_prepared
from .batches import Recipe
from .blocks import write_block

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
WORK_BYTES = 2**29  # beside the weights: CUDA's own, and the least batch worth sending
SELF_TEST_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}

log = logging.getLogger("holdfast.worker")


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know.

    Attributes:
        name: ``cpu:N``, the Nth worker on the CPU, or ``cuda:N``, the Nth device that CUDA_VISIBLE_DEVICES shows.
        models: Prepared model directories by model.
        precision: What the models compute in, ``fp32``, ``fp16`` or ``bf16``.
        threads: CPU threads for torch; only used on a CPU.
        allocator: Value for PYTORCH_ALLOC_CONF, read by torch when it is imported.
        memory_fraction: Largest share of the device's memory that torch may take, 0..1.
        cache_clear_interval: Batches between two calls of ``torch.cuda.empty_cache``; 0 never.
    """

    name: str
    models: dict[str, Path]
    precision: str
    threads: int
    allocator: str
    memory_fraction: float
    cache_clear_interval: int


@dataclass(frozen=True)
class Ready:
    """What a worker reports once its models are loaded.

    Attributes:
        load_s: Seconds that it took.
        device_name: The device's own name.
        uuid: Name of a GPU among all, as NVML writes it; empty for a CPU.
    """

    load_s: float
    device_name: str
    uuid: str


class OutOfMemory(ResourceError):  # noqa: N818, the field's name for it
    """A batch that the device has no memory for; the worker lives on."""


class Worker:
    """Every model on one device, in the process that owns it."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Load and test the models.

        Raises:
            HoldfastError: no such device, weights that cannot be read, or a self-test that fails.
        """
        os.environ["PYTORCH_ALLOC_CONF"] = settings.allocator
        began = time.perf_counter()
        import torch

        self.torch = torch
        self.settings = settings
        self.device = torch.device(settings.name if settings.name.startswith("cuda") else "cpu")
        self.batches = 0
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise ResourceError(f"{settings.name} was asked for, but torch sees no CUDA device; use cpu")
            torch.cuda.set_device(self.device)
            torch.cuda.set_per_process_memory_fraction(settings.memory_fraction, self.device)
            name = torch.cuda.get_device_name(self.device)
            free, total = torch.cuda.mem_get_info(self.device)
            require_memory(settings, name, free, total)
            uuid = f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"
        else:
            torch.set_num_threads(settings.threads)
            name, uuid = f"CPU, {settings.threads} threads", ""
        self.models: dict[str, tuple[Prepared, Any]] = {}
        for model, directory in settings.models.items():
            known = read_prepared(directory)
            self.models[known.weights_sha256] = known, open_model(directory, str(self.device), settings.precision)
            self._self_test(model, known, settings.precision)
        self.ready = Ready(time.perf_counter() - began, name, uuid)

    def _self_test(self, model: str, known: Prepared, precision: str) -> None:
        """Refuse a device that gives other vectors to a sequence in company than alone, or no finite ones."""
        mean = Output(known.layers, "mean")
        recipe = Recipe(known.weights_sha256, (mean,), None, "")
        first, second = (np.arange(5, 5 + count, dtype=np.int16) for count in (9, 14))
        _, both = self.embed(recipe, np.concatenate([first, second]), np.array([9, 14], np.int32))
        _, one = self.embed(recipe, second, np.array([14], np.int32))
        together, alone = both[mean.name], one[mean.name]
        difference = float(np.abs(together[1] - alone[0]).max() / max(1.0, float(np.abs(alone).max())))
        if not difference <= SELF_TEST_TOLERANCE[precision]:
            raise ResourceError(
                f"{self.settings.name}: self-test of {model} failed: a sequence alone and in a batch differ by "
                f"{difference:.1e} in {precision}; exclude it through CUDA_VISIBLE_DEVICES or set pool.device: cpu"
            )

    def embed(
        self, recipe: Recipe, tokens: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Residues of each sequence of a batch, int64 [n], and by name of each output what :func:`embed` keeps."""
        torch = self.torch
        known, encoder = self.models[recipe.weights_sha256]
        on_device = torch.from_numpy(tokens).to(self.device)
        found = encoder.embed(on_device, lengths.tolist(), recipe.outputs, recipe.window)
        arrays = {}
        for output, values in found.items():
            dtype = recipe.residues_dtype if output.pooling == "residues" else "float32"
            arrays[output.name] = values.to(getattr(torch, dtype)).cpu().numpy()
        self.batches += 1
        interval = self.settings.cache_clear_interval
        if interval and self.batches % interval == 0:
            self.clear_cache()
        return lengths.astype(np.int64) - known.around, arrays

    def clear_cache(self) -> None:
        """Give memory that torch keeps for later back to the device."""
        if self.device.type == "cuda":
            self.torch.cuda.empty_cache()


def require_memory(settings: WorkerSettings, device_name: str, free_bytes: int, total_bytes: int) -> None:
    """Refuse a GPU that has no memory for the weights, before any of them is loaded.

    Args:
        settings: Of the worker.
        device_name: The device's own name.
        free_bytes: Of its memory, what no process holds.
        total_bytes: Of its memory.

    Raises:
        ResourceError: what is needed, what there is, and what to do.
    """
    from ..models.encoder import count_parameters

    number_bytes = 4 if settings.precision == "fp32" else 2
    known = [read_prepared(directory) for directory in settings.models.values()]
    parameters = {name: count_parameters(one) for name, one in zip(settings.models, known, strict=True)}
    needed_bytes = number_bytes * sum(parameters.values()) + WORK_BYTES
    allowed_bytes = settings.memory_fraction * total_bytes
    if needed_bytes <= min(free_bytes, allowed_bytes):
        return
    sizes = ", ".join(f"{name} {number_bytes * count / 1e9:.1f} GB" for name, count in parameters.items())
    problem = (
        f"{settings.name}: the models need {needed_bytes / 1e9:.1f} GB in {settings.precision} (weights: {sizes}; to "
        f"work: {WORK_BYTES / 1e9:.1f} GB), the {device_name} has {total_bytes / 1e9:.1f} GB"
    )
    if needed_bytes <= allowed_bytes:
        raise ResourceError(
            f"{problem}, of which {free_bytes / 1e9:.1f} GB are free; end what holds the rest, or "
            "choose another device through CUDA_VISIBLE_DEVICES"
        )
    largest = max(parameters, key=lambda name: parameters[name])
    left = parameters[largest] - (needed_bytes - allowed_bytes) / number_bytes
    smaller = largest_published(known[list(parameters).index(largest)].family, left)
    advice = [f"{smaller} or less in place of {largest}"] if smaller else []
    advice += ["precision: fp16"] if settings.precision == "fp32" else []
    raise ResourceError(
        f"{problem}, of which pool.memory_fraction leaves {allowed_bytes / 1e9:.1f} GB; use "
        f"{', '.join([*advice, 'a larger card'])} or pool.device: cpu"
    )


_worker: Worker | None = None


def start(settings: WorkerSettings) -> Ready:
    """Load and test the models in this process.

    Raises:
        HoldfastError: why they cannot be loaded.
    """
    global _worker
    try:
        _worker = Worker(settings)
    except (RuntimeError, OSError, ImportError, MemoryError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ResourceError(f"{settings.name}: loading the models failed: {reason}") from None
    return _worker.ready


def embed(recipe: Recipe, tokens: np.ndarray, lengths: np.ndarray, digests: bytes, path: Path) -> float:
    """Embed one batch and write its block.

    Args:
        recipe: What is computed of each sequence.
        tokens: The sequences one behind the other, special tokens included, int16 [T].
        lengths: Tokens of each sequence, int32 [n].
        digests: SHA-256 of the tokens of each, n times 32 bytes.
        path: Where the block goes, see :mod:`.blocks`.

    Returns:
        The seconds it took.

    Raises:
        OutOfMemory: the device has no memory for the batch.
        OSError: the block cannot be written.
        RuntimeError: anything else that torch could not do; the process should be replaced.
    """
    if _worker is None:
        raise ResourceError("the worker holds no models yet")
    began = time.perf_counter()
    try:
        residues, arrays = _worker.embed(recipe, tokens, lengths)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY):
            _worker.clear_cache()
            raise OutOfMemory(f"{_worker.settings.name}: no memory for {len(tokens)} tokens in a batch") from None
        raise
    write_block(path, digests, residues, arrays)
    return time.perf_counter() - began
