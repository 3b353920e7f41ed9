"""Settings of a pool: what ``serve_pool.py --config POOL.yaml`` reads.

The workflow writes this file from its own config; by hand it is written for an external pool. A test keeps keys and
defaults equal to those of ``pool`` in ``schemas/config.schema.yaml``.
"""

import difflib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from . import documents
from .documents import DocumentError
from .errors import ConfigError
from .files import atomic_text
from .manifest import PRECISIONS
from .models import MODELS
from .status import LEASE_S


@dataclass(frozen=True)
class PoolSettings:
    """Everything a pool can be told.

    Attributes:
        models: Directory of each prepared model.
        precision: ``auto`` (fp16 on CUDA, fp32 on a CPU), ``fp32`` or ``fp16``.
        device: ``auto``, ``cuda`` or ``cpu``.
        gpu: How many of the visible CUDA devices to use; None for all.
        threads: CPU threads of the pool: torch's on a CPU, and the number of reader processes beside GPUs.
        cpu_workers: Workers on a CPU, which share ``threads``; more than one pays on machines with many cores.
        tokens_per_batch: Tokens in a batch, special tokens included.
        allocator: PYTORCH_ALLOC_CONF of the workers.
        memory_fraction: Largest share of a device's memory that a worker may take.
        cache_clear_interval: Batches between two clearings of torch's cache; 0 never.
        batch_timeout_s: Seconds a full batch, or the load, may take before the worker counts as hung.
        max_tasks_per_worker: Batches after which a worker is renewed; None never.
        idle_timeout_s: Seconds without work after which the pool ends; None never.
        lease_s: Seconds for which its beat may stand still before another host takes it for dead.
    """

    models: dict[str, str]
    precision: str = "auto"
    device: str = "auto"
    gpu: int | None = None
    threads: int = 8
    cpu_workers: int = 1
    tokens_per_batch: int = 16384
    allocator: str = "expandable_segments:True"
    memory_fraction: float = 0.95
    cache_clear_interval: int = 0
    batch_timeout_s: float = 1800.0
    max_tasks_per_worker: int | None = None
    idle_timeout_s: float | None = 600.0
    lease_s: float = LEASE_S

    def write(self, path: Path) -> None:
        """Write as YAML, whole or not at all."""
        with atomic_text(path) as file:
            yaml.safe_dump(asdict(self), file, sort_keys=False)


_RULES = {
    "precision": (lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "device": (lambda value: value in ("auto", "cuda", "cpu"), "one of auto, cuda, cpu"),
    "gpu": (lambda value: value is None or _whole(value, 1), "a whole number from 1, or null for all"),
    "threads": (lambda value: _whole(value, 1), "a whole number from 1"),
    "cpu_workers": (lambda value: _whole(value, 1), "a whole number from 1"),
    "tokens_per_batch": (lambda value: _whole(value, 64), "a whole number from 64"),
    "allocator": (lambda value: _text(value), "text, such as expandable_segments:True"),
    "memory_fraction": (lambda value: _number(value) and 0 < value <= 1, "a number above 0, at most 1"),
    "cache_clear_interval": (lambda value: _whole(value, 0), "a whole number, 0 for never"),
    "batch_timeout_s": (lambda value: _number(value) and value > 0, "seconds above 0"),
    "max_tasks_per_worker": (lambda value: value is None or _whole(value, 1), "a whole number from 1, or null"),
    "idle_timeout_s": (lambda value: value is None or (_number(value) and value > 0), "seconds above 0, or null"),
    "lease_s": (lambda value: _number(value) and value >= 10, "seconds from 10"),
}


def _text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def read(path: str | Path) -> PoolSettings:
    """Read the settings of a pool.

    Raises:
        ConfigError: the file, a key or a value is wrong; the message names it.
    """
    try:
        content = documents.parse_yaml(documents.read_text(path, documents.YAML_LIMIT_BYTES))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: needs keys and values, such as 'models:'")
    known = {field.name: field.default for field in fields(PoolSettings)}
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key {key!r:.80}; {hint}")
    values = {key: content.get(key, default) for key, default in known.items()}
    models = values["models"]
    known_models = isinstance(models, dict) and models and not set(models) - MODELS.keys()
    if not known_models or not all(_text(directory) and directory for directory in models.values()):
        raise ConfigError(f"{path}: models: name the prepared directory of {' and/or '.join(MODELS)}")
    for key, (holds, wanted) in _RULES.items():
        if not holds(values[key]):
            raise ConfigError(f"{path}: {key}: must be {wanted}, is {values[key]!r:.200}")
    return PoolSettings(**values)
